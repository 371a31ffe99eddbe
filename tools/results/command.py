"""The command that runs a stored ablation again, from the file that the repository has of that name."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megarl.ablation.directory import AblationDirectory
from megarl.config.dump import format_value
from megarl.report.groups import flatten

ROOT = Path(__file__).parent.parent.parent
_ABSENT = object()
_OWN = ("seeds", "control", "warm_start")
"""Fields of an ablation's file that say what is run, and that the command line may change."""


def find_command(directory: AblationDirectory, source: Mapping[str, Any]) -> str | None:
    """`megarl ablate configs/ablations/NAME.toml` with the overrides that make it what was run. None where there is no
    such file, or it is another ablation: other settings, or another base."""
    file = ROOT / "configs" / "ablations" / f"{source.get('name')}.toml"
    if not file.is_file():
        return None
    ours, theirs = _comparable(tomllib.loads(file.read_text(encoding="utf-8"))), _comparable(source)
    words = ["megarl", "ablate", str(file.relative_to(ROOT))]
    for path in dict.fromkeys([*ours, *theirs]):
        if ours.get(path, _ABSENT) == theirs.get(path, _ABSENT):
            continue
        name = path.removeprefix("overrides.")
        if path not in theirs or (name == path and path not in _OWN):
            return None
        words.append(f"{name}={format_value(theirs[path])}")
    given = _given(directory, source)
    return None if given is None else " ".join([*words, *given])


def _comparable(source: Mapping[str, Any]) -> dict[str, Any]:
    """Flat; files by their names, without what makes no difference to a run."""
    flat = {key: value for key, value in flatten(source).items() if key not in ("about", "at_once", "retries")}
    flat = {key: value for key, value in flat.items() if key != "keep_engines"}
    for key in ("base", "fragments"):
        if key in flat:
            flat[key] = _names(flat[key])
    if "settings" in flat:
        flat["settings"] = [
            {key: _names(value) if key == "fragments" else value for key, value in one.items() if key != "about"}
            for one in flat["settings"]
        ]
    return flat


def _names(paths: Any) -> Any:
    return [Path(path).name for path in paths] if isinstance(paths, list) else Path(paths).name


def _given(directory: AblationDirectory, source: Mapping[str, Any]) -> list[str] | None:
    """What the command line has laid over all runs: what the first cell's arguments have beyond the file's. None where
    that cannot be told."""
    plan = directory.plan()
    cell = plan.cells[0]
    try:
        launch = json.loads(directory.launch_path.read_text(encoding="utf-8"))
        _verb, _base, *arguments = launch["cells"][cell.name]["arguments"]
    except (OSError, ValueError, KeyError):
        return None
    of_file = {f"{path}={format_value(value)}" for path, value in flatten(source.get("overrides", {})).items()}
    of_setting = {f"{path}={format_value(value)}" for path, value in plan.setting(cell.setting).values.items()}
    files = len(source.get("fragments", [])) + len(plan.setting(cell.setting).fragments)
    if sum(text.endswith(".toml") for text in arguments) != files:
        return None  # a fragment of the command line
    own = ("train.seed", "name", "model.path", "logging.directory")
    found = [
        text
        for text in arguments
        if not text.endswith(".toml") and text not in of_file | of_setting and text.partition("=")[0] not in own
    ]
    seeds = sorted({one.seed for one in plan.cells})
    if seeds != sorted(source.get("seeds", [0])):
        found.insert(0, f"seeds={seeds}".replace(" ", ""))
    return [_quoted(text) for text in found]


def _quoted(text: str) -> str:
    return f"'{text}'" if any(letter in text for letter in '" {}*[') and not text.startswith("seeds=") else text
