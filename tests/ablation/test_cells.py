"""An ablation's file becomes runs: every combination by name, in order, each with the configuration that it says."""

import math
from pathlib import Path

import pytest

from megarl.ablation.cells import Ablation, load_ablation
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from tests.ablation.files import GRID, write_ablation
from tests.config.text import SMALL

LISTED = """
name = "methods"
base = "base.toml"
seeds = [3]
control = "plain"
[overrides]
train.steps = 7
[[settings]]
name = "plain"
about = "as it is"
[[settings]]
fragments = ["wide.toml"]
[[settings]]
name = "narrow"
overrides = { objective = { clip = { high = 0.1 } } }
"""
WIDE = "[objective]\nclip = { low = 1.0, high = 5.0 }\n"


def load(folder: Path, text: str = GRID, *arguments: str, **fragments: str) -> Ablation:
    return load_ablation(write_ablation(folder, text, **fragments), arguments)


def refused(folder: Path, text: str = GRID, *arguments: str, **fragments: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *arguments, **fragments)
    return caught.value.problems


def test_a_grid_has_every_combination_seed_by_seed(tmp_path: Path) -> None:
    ablation = load(tmp_path)
    names = ["low0.2-high0.28", "low0.2-highinf", "low1-high0.28", "low1-highinf"]
    assert [setting.name for setting in ablation.plan.settings] == names
    assert [cell.name for cell in ablation.plan.cells] == [f"{name}-seed{seed}" for seed in (0, 1) for name in names]
    assert [cell.index for cell in ablation.plan.cells] == list(range(8))
    fifth = ablation.runs[5]
    assert (fifth.config.objective.clip.low, fifth.config.objective.clip.high) == (0.2, math.inf)
    assert (fifth.config.train.seed, fifth.config.name) == (1, "low0.2-highinf-seed1")
    assert dict(ablation.plan.settings[1].values) == {"objective.clip.low": 0.2, "objective.clip.high": math.inf}


def test_what_is_loaded_is_what_the_arguments_give(tmp_path: Path) -> None:
    """The runs are started by these arguments, so they must say all of it."""
    for run in load(tmp_path, LISTED, "train.prompts_per_step=8", wide=WIDE).runs:
        assert load_config(tmp_path / "base.toml", run.arguments) == run.config


def test_a_list_has_its_fragments_and_overrides(tmp_path: Path) -> None:
    ablation = load(tmp_path, LISTED, wide=WIDE)
    assert [setting.name for setting in ablation.plan.settings] == ["plain", "wide", "narrow"]
    assert [run.config.train.steps for run in ablation.runs] == [7, 7, 7]
    plain, wide, narrow = (run.config.objective.clip for run in ablation.runs)
    assert (wide.low, wide.high) == (1.0, 5.0)
    assert (narrow.low, narrow.high) == (plain.low, 0.1)
    assert ablation.plan.settings[0].about == "as it is"
    assert [Path(name).name for name in ablation.plan.settings[1].fragments] == ["wide.toml"]
    assert ablation.plan.control == "plain"


def test_a_list_and_a_grid_are_crossed(tmp_path: Path) -> None:
    ablation = load(tmp_path, LISTED.replace('control = "plain"', ""), "grid.train.steps=[8, 9]", wide=WIDE)
    assert [setting.name for setting in ablation.plan.settings] == [
        "plain-steps8", "plain-steps9", "wide-steps8", "wide-steps9", "narrow-steps8", "narrow-steps9",
    ]  # fmt: skip
    # The grid is over what all runs share, which has train.steps = 7.
    assert [run.config.train.steps for run in ablation.runs] == [8, 9] * 3


def test_without_grid_and_list_there_are_seeds_alone(tmp_path: Path) -> None:
    ablation = load(tmp_path, 'name = "seeds"\nbase = "base.toml"\n')
    assert [cell.name for cell in ablation.plan.cells] == ["base-seed0", "base-seed1", "base-seed2"]


def test_the_command_line_changes_the_file_or_all_runs(tmp_path: Path) -> None:
    (tmp_path / "wide.toml").write_text(WIDE)
    arguments = ["at_once=3", "seeds=[5]", "grid={}", "train.steps=2", str(tmp_path / "wide.toml"), "name=other"]
    ablation = load(tmp_path, GRID, *arguments)
    assert (ablation.config.at_once, ablation.config.name) == (3, "other")
    (run,) = ablation.runs
    assert (run.config.train.seed, run.config.train.steps, run.config.objective.clip.high) == (5, 2, 5.0)


def test_an_axis_that_the_command_line_changes_stays_in_its_place(tmp_path: Path) -> None:
    ablation = load(tmp_path, GRID, "grid.objective.clip.low=[0.1]")
    assert [setting.name for setting in ablation.plan.settings] == ["low0.1-high0.28", "low0.1-highinf"]


def test_a_setting_may_have_a_control_of_its_own(tmp_path: Path) -> None:
    steps = {name: f"overrides = {{train = {{steps = {3 + at}}}}}" for at, name in enumerate("abc")}
    own = {"a": "", "b": "control = 'c', ", "c": ""}
    listed = "[" + ", ".join(f"{{name = '{name}', {own[name]}{steps[name]}}}" for name in "abc") + "]"
    plan = load(tmp_path, GRID, "grid={}", f"settings={listed}", "control=a").plan
    assert {setting.name: plan.control_of(setting.name) for setting in plan.settings} == {"a": None, "b": "c", "c": "a"}
    assert type(plan).from_json(plan.as_json()) == plan


def test_a_quoted_field_is_a_path_too(tmp_path: Path) -> None:
    text = GRID.replace("objective.clip.low =", '"objective.clip.low" =')
    assert load(tmp_path, text).plan == load(tmp_path).plan


def test_all_problems_of_all_runs_are_told_once_with_their_settings(tmp_path: Path) -> None:
    problems = refused(tmp_path, GRID, "grid.objective.clip.low=[0.2, 7.5]", "grid.objective.clip.high=[0.28, -1]")
    assert len(problems) == 2
    low, high = sorted(problems, key=lambda text: "clip.high" in text)
    assert low.startswith("low7.5-high0.28, low7.5-high-1: objective.clip.low: expected a number")
    assert high.startswith("low0.2-high-1, low7.5-high-1: objective.clip.high: expected a number")


def test_what_is_wrong_with_all_is_told_without_them(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, GRID, "train.stepz=3")
    assert problem.startswith("train.stepz: unknown key; did you mean train.steps?")
    (problem,) = refused(tmp_path, GRID, 'base="absent.toml"')
    assert problem.endswith("absent.toml: no such file; did you mean " + problem.rpartition("mean ")[2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["control=wide"], 'control: there is no setting "wide"; expected one of low0.2-high0.28, '),
        (
            ["settings=[{name='a'}, {name='b', control='c'}]", "grid={}"],
            'control of b: found "c", expected another setting: a',
        ),
        (["settings=[{name='a', control='a'}]", "grid={}"], 'control of a: found "a", expected another setting: '),
        (["seeds=[1, 1]"], "seeds: expected different integers >= 0, found [1, 1]"),
        (["seeds=[]"], "seeds: expected an array of integers"),
        (["grid.train.seed=[1]"], "grid.train.seed: seeds are those of `seeds`; set them there"),
        (["overrides.name=x"], "overrides.name: the ablation names its runs after their settings; leave it out"),
        (["grid.logging.directory=[1]"], "grid.logging.directory: runs lie in the ablation's directory"),
        (["grid.objective.clip.low=0.2"], "grid.objective.clip.low: expected an array of its values"),
        (["grid.objective.clip.low=[0.2, 0.2]"], "grid.objective.clip.low: expected different values"),
        (["grid={'a b' = [1]}"], 'grid: "a b" is no field of a run; expected a dotted path'),
        (["settings=[{name = 'x'}, {name = 'x'}]"], 'settings: 2 have the name "x"'),
        (["settings=[{}, {}]", "grid={}"], '2 settings have the name "base"; give them a `name` each'),
        (["settings=[{overrides={objective={clip={low=0.1}}}}]"], "objective.clip.low: the grid has it too"),
        (["grid.train.steps=[" + ", ".join(map(str, range(1, 200))) + "]"], "1592 runs are more than 1000"),
        (["settings=[{nme = 'x'}]"], "settings.0.nme: unknown key; did you mean settings.0.name?"),
        (["warm_start=true"], "warm_start: the base has no [sft]"),
        (["train.seed=5"], "train.seed=5: seeds are those of `seeds`; set them there"),
        (["logging.directory=x"], "logging.directory=x: runs lie in the ablation's directory"),
        (["objective.clip.low=0.3"], "objective.clip.low=0.3: every setting sets objective.clip.low, so no run"),
        (["settings=[{name = '" + "x" * 151 + "'}]", "grid={}"], "is too long for a name of directories"),
    ],
)
def test_what_cannot_be_an_ablation_is_refused(tmp_path: Path, arguments: list[str], said: str) -> None:
    problems = refused(tmp_path, GRID, *arguments)
    assert any(said in problem for problem in problems), problems


def test_two_settings_that_come_to_the_same_are_refused(tmp_path: Path) -> None:
    same = "[objective]\nclip = { low = 0.2, high = 0.1 }\n"
    base = SMALL + "[objective]\nclip = { low = 0.2, high = 0.2 }\n"
    text = LISTED.replace("wide.toml", "same.toml")
    with pytest.raises(ConfigError) as caught:
        load_ablation(write_ablation(tmp_path, text, base=base, same=same), ())
    assert caught.value.problems == ("narrow and same are one configuration; leave one of them out",)


SFT = "sft={steps = 2, batch_examples = 4}"


def test_a_warm_start_is_of_one_model_and_begins_alone(tmp_path: Path) -> None:
    grid = "grid={model = {path = ['models/a', 'models/b']}}"
    (problem,) = refused(tmp_path, GRID, SFT, "warm_start=true", grid)
    assert "warm_start: one warm start is of one model, models/tiny, and path-a, path-b: another model.path" in problem
    (problem,) = refused(tmp_path, GRID, SFT, "warm_start=true", "train.init_from=runs/x")
    assert "warm_start: its weights and those of train.init_from" in problem
    warm = load(tmp_path, GRID, SFT, "warm_start=true").warm
    assert warm is not None
    assert (warm.name, warm.sft is not None and warm.sft.steps) == ("clip-warm", 2)


def test_what_only_some_settings_set_may_be_said_for_the_others(tmp_path: Path) -> None:
    ablation = load(tmp_path, LISTED, "objective.clip.high=0.4", wide=WIDE)
    assert [run.config.objective.clip.high for run in ablation.runs] == [0.4, 5.0, 0.1]
