"""What an ablation's runs are started with is what was checked, however its files change afterwards."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megarl.ablation.cells import Ablation, load_ablation
from megarl.ablation.directory import AblationDirectory
from megarl.ablation.launch import Launch, Needs, find_shapes, read_launch, write_launch
from megarl.config.loader import load_config
from megarl.config.run import RunConfig
from tests.ablation.files import GRID, write_ablation

NEEDS = Needs(nodes=1, gpus=8, cores=2, memory_gib=3.5, joins_ray=False)
SFT = "sft={steps = 2, batch_examples = 4}"


def launched(folder: Path, *arguments: str, **fragments: str) -> tuple[AblationDirectory, Ablation, Launch]:
    ablation = load_ablation(write_ablation(folder, **fragments), arguments)
    (folder / "made").mkdir()
    directory = AblationDirectory.create(folder / "made", ablation.plan, source=GRID)
    return directory, ablation, write_launch(directory, ablation, NEEDS)


def started(arguments: tuple[str, ...]) -> RunConfig:
    """As `megarl train` and `megarl sft` load it."""
    _, base, *rest = arguments
    return load_config(Path(base), rest)


def written_in(config: RunConfig, directory: AblationDirectory) -> RunConfig:
    logging = config.logging.model_copy(update={"directory": str(directory.runs)})
    return config.model_copy(update={"logging": logging})


def test_runs_are_those_that_were_checked_though_their_files_change(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    for name, high in (("wide.toml", 5.0), ("deeper/wide.toml", 7.0)):
        (tmp_path / name).write_text(f"[objective]\nclip = {{ high = {high} }}\n")
    wide = ["grid={}", str(tmp_path / "wide.toml"), str(tmp_path / "deeper" / "wide.toml")]
    directory, ablation, launch = launched(tmp_path, *wide)
    for name in ("base.toml", "wide.toml", "deeper/wide.toml"):
        (tmp_path / name).write_text("changed since")
    assert list(launch.cells) == [cell.name for cell in ablation.plan.cells]
    for run in ablation.runs:
        start = launch.cells[run.cell.name]
        assert start.arguments[0] == "train"
        assert started(start.arguments) == written_in(run.config, directory)
        assert start.steps == run.config.train.steps
    assert started(launch.cells["base-seed0"].arguments).objective.clip.high == 7.0


def test_a_warm_start_is_started_before_and_its_weights_begun_with(tmp_path: Path) -> None:
    directory, ablation, launch = launched(tmp_path, SFT, "warm_start=true")
    assert ablation.warm is not None
    assert launch.warm is not None
    assert launch.warm.arguments[0] == "sft"
    assert started(launch.warm.arguments) == written_in(ablation.warm, directory)
    assert launch.warm.steps == 2
    paths = {started(start.arguments).model.path for start in launch.cells.values()}
    assert paths == {str(directory.warm / "hf" / "step-000002")}


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    directory, _, launch = launched(tmp_path, SFT, "warm_start=true", "at_once=3", "retries=0")
    assert read_launch(directory) == launch
    assert (launch.at_once, launch.retries, launch.needs, launch.working_directory) == (3, 0, NEEDS, str(Path.cwd()))
    (tmp_path / "other").mkdir()
    assert launched(tmp_path / "other")[2].warm is None


@pytest.mark.parametrize(
    ("arguments", "shapes"),
    [
        ((), 1),
        (("grid={rollout={temperature=[0.7,1.0]}}",), 2),
        (("grid={rollout={temperature=[0.7,1.0]}}", "seeds=[0]"), 0),  # each would be alone in its own
        (("keep_engines=false",), 0),
        (("cluster.ray_address=auto",), 0),
    ],
)
def test_which_runs_may_have_the_same_engines(arguments: tuple[str, ...], shapes: int, tmp_path: Path) -> None:
    _, ablation, _ = launched(tmp_path, *arguments)
    joins = any("ray_address" in argument for argument in arguments)
    found = find_shapes(ablation, replace(NEEDS, joins_ray=joins))
    assert len(set(found.values())) == shapes
    assert list(found) == ([run.cell.name for run in ablation.runs] if shapes else [])


def test_one_of_an_earlier_version_has_no_shapes(tmp_path: Path) -> None:
    directory, _, launch = launched(tmp_path)
    facts = json.loads(directory.launch_path.read_text())
    assert all(start.shape for start in launch.cells.values())
    for start in facts["cells"].values():
        del start["shape"]
    directory.launch_path.write_text(json.dumps(facts))
    assert {start.shape for start in read_launch(directory).cells.values()} == {None}


@pytest.mark.parametrize("text", ["{", "[]", "{}", None])
def test_what_is_none_is_refused(tmp_path: Path, text: str | None) -> None:
    directory, _, _ = launched(tmp_path)
    if text is None:
        directory.launch_path.unlink()
    else:
        directory.launch_path.write_text(text)
    with pytest.raises(ValueError, match=r"launch\.json cannot be used"):
        read_launch(directory)


def test_one_that_was_moved_is_refused(tmp_path: Path) -> None:
    directory, _, _ = launched(tmp_path)
    facts = json.loads(directory.launch_path.read_text()) | {"directory": "/elsewhere"}
    directory.launch_path.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="it was made as /elsewhere"):
        read_launch(directory)
