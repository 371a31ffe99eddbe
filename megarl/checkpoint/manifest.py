"""What a run's checkpoint says of itself: `manifest.json`, the last of its files to be written.

Invariant: what a manifest lists was complete and on the disk before the manifest was.
"""

import hashlib
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import date, time
from pathlib import Path
from typing import Any, Self, cast, get_origin

from megarl.checkpoint.errors import CheckpointError, list_faults
from megarl.checkpoint.names import is_plain_name
from megarl.config.dump import dump_config, format_value
from megarl.config.run import RunConfig
from megarl.models.shape import ModelShape
from megarl.telemetry.atomic_file import write_text_atomically

FORMAT = 1
"""Of the manifest and of what it says how to read; one of another is refused."""
MANIFEST_FILE = "manifest.json"
_TOML = "$toml"
"""JSON has no infinity, no NaN and no dates: {"$toml": "inf"} stands for one, as TOML writes it."""
_CHECKSUM = "checksum"
"""The manifest's last key: sha256 of what it is without it. Nothing else would tell that a digit of it has changed."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A checkpoint's account of itself. All of it is JSON-able, but for numbers that are not finite."""

    step: int
    """Steps that were finished."""
    policy_version: int
    """Of the weights."""
    updates: int
    """Optimizer updates that they contain: the place in the learning rate's schedule."""
    optimizer_step: int
    """The optimizer's own count, since its moments were last forgotten."""
    progress: dict[str, Any]
    """`controller.progress.RunProgress.state_dict()`."""
    layout: dict[str, Any]
    """Of the policy that wrote it, for people: any other can read it."""
    model: dict[str, Any]
    """`describe_model`, which must be equal where it is read."""
    config: dict[str, Any]
    """The resolved configuration, as its TOML holds it."""
    config_digest: str
    """sha256 of that TOML."""
    versions: dict[str, Any]
    """`telemetry.versions.collect_versions()`."""
    telemetry: dict[str, Any]
    """What the run's files and sinks need to go on after this step."""
    metrics: dict[str, float]
    """The step's, as metrics.jsonl has them; numbers that are finite."""
    files: dict[str, dict[str, Any]]
    """By name, every other file of the checkpoint: {"bytes", "checksum"}."""
    format: int = FORMAT

    def write(self, directory: Path) -> None:
        """Into `directory`, whole or not at all, and on the disk when this returns."""
        facts = _to_json(asdict(self))
        write_text_atomically(directory / MANIFEST_FILE, _dump(facts | {_CHECKSUM: _digest(_dump(facts))}))

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Raises CheckpointError where there is none, or none that this version reads."""
        path = directory / MANIFEST_FILE
        try:
            facts = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
        except FileNotFoundError:
            raise CheckpointError(
                f"{path} is missing: the checkpoint was never complete, or is none of a run; use another"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); use another checkpoint") from error
        facts = cls._checked(facts, path)
        return cls(**{name: _from_json(value) for name, value in facts.items()})

    @classmethod
    def _checked(cls, facts: Any, path: Path) -> dict[str, Any]:
        """The manifest as JSON has it, without its checksum, which is right."""
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            found = facts.get("format") if isinstance(facts, dict) else facts
            raise CheckpointError(
                f"{path} has format {found!r}, this version of megarl reads {FORMAT}; use the version that wrote it"
            )
        names = {one.name for one in fields(cls)}
        written = facts.pop(_CHECKSUM, None)
        if facts.keys() != names:
            raise CheckpointError(
                f"{path}: expected the keys {sorted(names)}, found {sorted(facts)}; it is damaged: use another "
                "checkpoint"
            )
        if written != (found := _digest(_dump(facts))):
            raise CheckpointError(
                f"{path} is damaged: expected checksum {written}, found {found}; use another checkpoint"
            )
        if faults := list(_faults_of_kind(facts)):
            raise CheckpointError(f"{path} is damaged:\n  {list_faults(faults)}\nUse another checkpoint")
        return facts


def _faults_of_kind(facts: dict[str, Any]) -> Iterator[str]:
    """What is not of the kind that the manifest's fields have: somebody edited it."""
    for one in fields(Manifest):
        kind = get_origin(one.type) or one.type
        if not isinstance(facts[one.name], cast(type, kind)) or isinstance(facts[one.name], bool):
            yield f"{one.name}: expected {getattr(kind, '__name__', kind)}, found {facts[one.name]!r}"[:200]
        elif kind is int and facts[one.name] < 0:
            yield f"{one.name}: expected a number from 0 on, found {facts[one.name]}"
    for name, value in facts["metrics"].items() if isinstance(facts["metrics"], dict) else ():
        if not isinstance(value, int | float):
            yield f"metrics: {name}: expected a number, found {value!r}"[:200]
    for name, record in facts["files"].items() if isinstance(facts["files"], dict) else ():
        if not all(map(is_plain_name, name.split("/"))):
            yield f"files: {name!r} is no file of the checkpoint"
        match record:
            case {"bytes": int(size), "checksum": str()} if size >= 0:
                continue
        yield f'files: {name}: expected {{"bytes": number, "checksum": text}}, found {record!r}'[:200]


def describe_config(config: RunConfig) -> tuple[dict[str, Any], str]:
    """(the configuration as its TOML holds it, sha256 of that)."""
    text = dump_config(config)
    return tomllib.loads(text), _digest(text)


def describe_model(shape: ModelShape) -> dict[str, Any]:
    """What must be equal where a checkpoint is read: all of the shape but the dtype that its files were in."""
    facts: dict[str, Any] = json.loads(json.dumps(asdict(shape)))
    del facts["hf_dtype"]
    return facts


def check_model(manifest: Manifest, shape: ModelShape, directory: str, *, than: str = "model.path") -> None:
    """CheckpointError, with what differs, where the checkpoint in `directory` is of another model than this, which is
    `than`'s."""
    own, found = describe_model(shape), manifest.model
    faults = [
        f"{name}: expected {own.get(name)}, found {found.get(name)}"
        for name in sorted(own.keys() | found.keys())
        if own.get(name) != found.get(name)
    ]
    if faults:
        raise CheckpointError(
            f"{directory} is of another model than {than}: {'; '.join(faults)}. Use a checkpoint of this model, or "
            "the model that it is of"
        )


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Those of the numbers that are."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _dump(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=1, allow_nan=False) + "\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _to_json(value: Any) -> Any:
    match value:
        case dict():
            return {key: _to_json(item) for key, item in value.items()}
        case list() | tuple():
            return [_to_json(item) for item in value]
        case float() if not math.isfinite(value):
            return {_TOML: format_value(value)}
        case date() | time():
            return {_TOML: format_value(value)}
    return value


def _from_json(value: Any) -> Any:
    match value:
        case {"$toml": str(text), **rest} if not rest:
            return tomllib.loads(f"value = {text}")["value"]
        case dict():
            return {key: _from_json(item) for key, item in value.items()}
        case list():
            return [_from_json(item) for item in value]
    return value
