"""What ends a response and which day prompts show, for `megarl doctor`: read off the tokenizer, in a probe."""

from collections.abc import Iterator
from typing import Any

from megarl.cli.findings import Finding, findings_of
from megarl.config.base import ConfigError
from megarl.config.run import RunConfig


def judge_texts(told: dict[str, Any]) -> Iterator[Finding]:
    """A finding for each stop and for a pinned clock; a failure for each thing that cannot work."""
    if told["problems"]:
        yield from findings_of(ConfigError("", told["problems"]), "stops")
    for line in told["stops"]:
        yield Finding(name="stops", level="ok", found=line)
    if told["untold"]:
        found = f"nothing stops at {told['untold']!r}, the text with which the chat template ends a turn"
        yield Finding(name="stops", level="warning", found=found, action="set rollout.stop_strings")
    if told["date"]:
        yield Finding(name="date", level="info", found=told["date"])


def tell(config: RunConfig) -> dict[str, Any]:
    """What the tokenizer's files say, JSON-able; {"problems": [...]} among it where they cannot work."""
    from megarl.cli.inputs import load_text_inputs

    try:
        inputs = load_text_inputs(config)
    except ConfigError as error:
        return {"problems": list(error.problems), "stops": [], "untold": None, "date": None}
    stops = inputs.stops
    return {
        "problems": [],
        "stops": list(stops.in_force()),
        "untold": stops.untold,
        "date": inputs.describe_date(),
    }
