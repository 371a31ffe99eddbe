"""What ends a response and which day prompts show, for `megarl doctor`: read in a process of its own, which loads the
tokenizer. Run as `python -m megarl.cli.doctor_texts CONFIG.toml`.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from megarl.cli.findings import Finding, ask_process
from megarl.config.base import ConfigError
from megarl.config.dump import dump_config
from megarl.config.loader import load_config
from megarl.config.run import RunConfig

_TIMEOUT_S = 120.0


def check_texts(config: RunConfig) -> Iterator[Finding]:
    """A finding for each stop and for a pinned clock; a failure for each thing that cannot work."""
    with tempfile.TemporaryDirectory(prefix="megarl-doctor-") as scratch:
        path = Path(scratch) / "config.toml"
        path.write_text(dump_config(config), encoding="utf-8")
        answer = ask_process([sys.executable, "-m", "megarl.cli.doctor_texts", str(path)], timeout_s=_TIMEOUT_S)
    if not answer.succeeded:
        action = f"copy the model's own tokenizer files into {config.model.path}"
        yield Finding(name="stops", level="failure", found=answer.text, action=action)
        return
    told = json.loads(answer.text)
    for problem in told["problems"]:
        found, _, action = problem.rpartition("; ")
        yield Finding(name="stops", level="failure", found=found or problem, action=action)
    for line in told["stops"]:
        yield Finding(name="stops", level="ok", found=line)
    if told["untold"]:
        found = f"nothing stops at {told['untold']!r}, the text with which the chat template ends a turn"
        yield Finding(name="stops", level="warning", found=found, action="set rollout.stop_strings")
    if told["date"]:
        yield Finding(name="date", level="info", found=told["date"])


def tell(config: RunConfig) -> dict[str, object]:
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


if __name__ == "__main__":
    print(json.dumps(tell(load_config(Path(sys.argv[1])))))
