"""What ends a response and where it comes from: one answer for engines, supervised pairs, `show` and `doctor`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig
from megarl.config.rollout import RolloutConfig
from megarl.data.answer_end import AnswerEncoder, TurnFrame, read_turn_frame
from megarl.data.control_tokens import ControlTokens

_TEMPLATE, _OWN = "the chat template's end of turn", "rollout.stop_token_ids"


@dataclass(frozen=True, slots=True, kw_only=True)
class StopConditions:
    """Tokens and texts that end a response, the most telling first."""

    sources: Mapping[int, str] = field(default_factory=dict)
    """Where each stop token comes from, by id."""
    strings: tuple[str, ...] = ()
    """rollout.stop_strings."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Text of the stops and of the tokenizer's control tokens, by id."""
    frame: TurnFrame = field(default_factory=TurnFrame)
    """What the chat template writes around an answer; empty without one."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(self.sources)

    @property
    def untold(self) -> str | None:
        """The text that ends a turn by the template, where it is no token and no stop string is in it."""
        text = self.frame.after
        ends = self.frame.end_id is not None or any(string in text for string in self.strings)
        return text if text.strip() and not ends else None

    def in_force(self) -> tuple[str, ...]:
        """A line for each stop."""
        lines = [f"{self.names[token]} (id {token}): {source}" for token, source in self.sources.items()]
        lines += [
            f"the text {string!r}: rollout.stop_strings; its tokens are kept, are in the loss and in the text that the "
            "verifier reads"
            for string in self.strings
        ]
        return tuple(lines)

    def describe(self) -> tuple[str, ...]:
        """A line for each stop, and one for what does not stop although a turn ends with it."""
        lines = [*self.in_force()]
        if self.untold is not None:
            lines.append(
                f"nothing in {self.untold!r}, the text with which the chat template ends a turn: it is no token; set "
                "rollout.stop_strings"
            )
        return tuple(lines)


def load_stops(path: str | Path, tokenizer: Any, *, data: DataConfig, rollout: RolloutConfig) -> StopConditions:
    """The stops of a checkpoint directory under a configuration.

    Tokens: the chat template's end of turn, where there is a template; eos_token_id (one or a list) of
    generation_config.json, where it has none of config.json; the tokenizer's eos_token; rollout.stop_token_ids.
    ConfigError when there is none at all, when one is no token of the tokenizer, or has no row in the embedding.
    """
    directory = Path(path)
    frame = read_turn_frame(data, tokenizer) if data.chat_template else TurnFrame()
    found = [(frame.end_id, _TEMPLATE)]
    found += next(
        (ids for name in ("generation_config.json", "config.json") if (ids := _read_eos(directory / name))), []
    )
    found += [(tokenizer.eos_token_id, "the tokenizer's eos_token")]
    found += [(token, _OWN) for token in rollout.stop_token_ids]
    sources: dict[int, str] = {}
    for token, source in found:
        if token is not None:
            sources[token] = f"{sources[token]}, {source}" if token in sources else source
    _check_known(directory, tokenizer, sources)
    if not sources and not rollout.stop_strings:
        raise ConfigError(
            f"model.path {directory}: no end-of-sequence token in generation_config.json, config.json, the tokenizer "
            "or its chat template; set eos_token_id in generation_config.json, rollout.stop_token_ids or "
            "rollout.stop_strings, or every response would run to its maximum"
        )
    names = ControlTokens(tokenizer).names | {token: str(tokenizer.decode([token])) for token in sources}
    return StopConditions(
        sources=sources,
        strings=tuple(rollout.stop_strings),
        names={token: _printable(name) for token, name in names.items()},
        frame=frame,
    )


def read_embedding_rows(path: str | Path) -> int | None:
    """vocab_size of a checkpoint's config.json: rows of its embedding, padded ones included. None: it says none."""
    rows = _read_json(Path(path) / "config.json").get("vocab_size")
    return rows if isinstance(rows, int) else None


def build_answer_encoder(stops: StopConditions, tokenizer: Any) -> AnswerEncoder:
    """How a supervised answer ends: as a sampled response does.

    With the chat template's end of turn; where the template ends a turn with text, with the stop string in it; else
    with the tokenizer's eos_token, another stop token, or the first stop string.
    """
    frame = stops.frame
    text = ""
    ids: tuple[int, ...] = ()
    told = [end for string in stops.strings if (end := frame.after.find(string) + len(string)) >= len(string)]
    if frame.end_id is not None:
        text, ids = frame.up_to_end, (frame.end_id,)
    elif told:
        text = frame.after[: min(told)]
    elif tokenizer.eos_token_id is not None:
        ids = (tokenizer.eos_token_id,)
    elif stops.sources:
        ids = stops.token_ids[:1]
    elif stops.strings:
        text = stops.strings[0]
    else:
        raise ConfigError("nothing ends an answer; set eos_token in tokenizer_config.json, or rollout.stop_strings")
    return AnswerEncoder(tokenizer=tokenizer, frame=frame, end_text=text, end_ids=ids)


def _check_known(directory: Path, tokenizer: Any, sources: Mapping[int, str]) -> None:
    rows = read_embedding_rows(directory)
    problems = []
    for token, source in sources.items():
        name = tokenizer.convert_ids_to_tokens(token) if 0 <= token < 2**31 else None
        if name is None:
            problems.append(
                f"model.path {directory}: stop token {token} ({source}) is none of the tokenizer's {len(tokenizer)} "
                "tokens; correct it there"
            )
        elif rows is not None and token >= rows:
            problems.append(
                f"model.path {directory}: stop token {name!r} (id {token}; {source}) is outside the model's embedding "
                f"of {rows} rows (vocab_size in config.json) and could never be sampled; correct it there"
            )
    if problems:
        raise ConfigError("\n".join(problems), problems)


def _printable(name: str) -> str:
    """A token's text for a line of its own; quoted where it is blank or holds a line's end."""
    return name if name.isprintable() and not name.isspace() and name else repr(name)


def _read_eos(file: Path) -> Sequence[tuple[int | None, str]]:
    eos = _read_json(file).get("eos_token_id")
    ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(isinstance(token, int) for token in ids):
        raise ConfigError(f"{file}: eos_token_id must be an integer or a list of them, found {eos!r}")
    return [(token, f"eos_token_id of {file.name}") for token in ids]


def _read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file}: expected a JSON object ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content
