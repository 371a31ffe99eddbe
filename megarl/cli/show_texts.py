"""What `megarl show` says of prompts and of the end of a response: read off the model's tokenizer, where it is here.

The tokenizer is only loaded for a model directory that exists; elsewhere the lines say what will decide.
"""

from dataclasses import dataclass
from pathlib import Path

from megarl.config.base import ConfigError
from megarl.config.run import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TextComments:
    """Comment lines by section."""

    stops: tuple[str, ...]
    """Of [rollout]."""
    prompts: tuple[str, ...]
    """Of [data]."""


def describe_texts(config: RunConfig) -> TextComments:
    """The lines; a tokenizer that cannot be read is said in them, not raised: `show` shows the configuration."""
    if not Path(config.model.path).is_dir():
        return TextComments(stops=_undecided_stops(config), prompts=_undecided_prompts(config))
    from megarl.cli.inputs import load_text_inputs
    from megarl.data.encoding import find_beginning

    try:
        inputs = load_text_inputs(config)
        beginning = () if config.data.chat_template else find_beginning(inputs.tokenizer)
    except ConfigError as error:
        return TextComments(
            stops=("what stops a response cannot be told:", *(f"  {line}" for line in str(error).splitlines())),
            prompts=(),
        )
    date = "today" if config.data.date is None else "data.date"
    clock = (
        (f"the chat template reads the clock; a run pins it to {date}: {inputs.date}",) if inputs.reads_clock else ()
    )
    bare = (f"bare text begins with {inputs.tokenizer.decode(beginning)}",) if beginning else ()
    return TextComments(
        stops=("a response ends at (and with, in the loss too)", *(f"  {line}" for line in inputs.stops.describe())),
        prompts=clock + bare,
    )


def _undecided_stops(config: RunConfig) -> tuple[str, ...]:
    sources = ["the chat template's end of turn"] if config.data.chat_template else []
    sources += ["eos_token_id of generation_config.json (else config.json)", "the tokenizer's eos_token"]
    own = {
        "rollout.stop_token_ids": config.rollout.stop_token_ids,
        "rollout.stop_strings (their tokens are kept and in the loss)": config.rollout.stop_strings,
    }
    sources += [name for name, value in own.items() if value]
    return (f"a response ends at: {', '.join(sources)}", f"  read off {config.model.path}, which is not there yet")


def _undecided_prompts(config: RunConfig) -> tuple[str, ...]:
    if config.data.chat_template:
        return ()
    return ("bare text begins with the tokenizer's own beginning-of-sequence token, where it has one",)
