"""configs/ablations/: every cell of every file loads, has the paper's numbers, and a layout that its model allows."""

import functools
import math
import re
from pathlib import Path

import pytest

from megarl.ablation.cells import Ablation, PlannedRun, load_ablation
from megarl.config.auxiliary import AuxiliaryConfig
from megarl.config.run import RunConfig
from megarl.config.trust import ConstantClip, FlexEcClip
from megarl.models.families import read_model_shape
from megarl.planning.checks import check_layout

ROOT = Path(__file__).parents[2] / "configs"
ABLATIONS = ROOT / "ablations"
README = (ABLATIONS / "README.md").read_text(encoding="utf-8")
FILES = sorted(ABLATIONS.glob("*.toml"))
INF = math.inf

CLIP_PAPER = {"none": (1.0, INF), "low0.3": (0.3, INF), "low0.2": (0.2, INF), "low0.15": (0.15, INF)}
CLIP_PAPER |= {"low0.1": (0.1, INF), "high0.3": (1.0, 0.3), "high0.2": (1.0, 0.2), "high0.1": (1.0, 0.1)}
CLIP_PAPER |= {"symmetric": (0.2, 0.2), "symmetric-p0.3": (0.2, 0.2), "symmetric-p0.7": (0.2, 0.2)}
CLIP_PAPER |= {"symmetric-gaussian": (0.2, 0.2), "no-clip-high": (0.2, INF), "no-clip-low": (1.0, 0.2)}
CLIP_PAPER |= {"balanced": (0.15, INF), "tuned": (0.15, INF)}
"""Bounds by the setting's name, a family before it left out."""

FAMILY = ("symmetric", "low0.2", "high0.2", "none")
COINED = ("low0.2", "low0.1", "high0.2", "high0.1", "symmetric")
FEWER = ("low0.2", "high0.2", "symmetric")
"""Bounds that have a matched control beside them."""
SETTINGS = {
    "random-reward": ["none", "low0.3", "low0.2", "low0.15", "low0.1", "high0.3", "high0.2", "high0.1", "symmetric",
                      "symmetric-p0.3", "symmetric-p0.7", "symmetric-gaussian"],
    "random-reward-small": ["none", *COINED, *(f"{name}-coin" for name in COINED)],
    "random-reward-products-small": ["none", *FEWER, *(f"{name}-coin" for name in FEWER)],
    "random-reward-first-step-small": ["none", *FEWER, *(f"{name}-coin" for name in FEWER)],
    "families": [f"{family}-{name}" for family in ("qwen", "llama") for name in FAMILY],
    "true-reward": ["symmetric", "no-clip-high", "balanced", "low0.1", "no-clip-low"],
    "true-reward-llama": ["symmetric", "no-clip-high", "balanced", "no-clip-low"],
    "true-reward-small": ["symmetric", "no-clip-high", "balanced", "no-clip-low"],
    "dapo-math": ["symmetric", "no-clip-high", "tuned", "no-clip-low"],
    "flexec": ["grpo", "clip-higher", "id", "did", "od", "id-split0.3", "id-split0.4", "id-split0.6"],
    "flexec-small": ["grpo", "clip-higher", "id", "did", "od", "id-split0.3", "id-split0.6"],
}  # fmt: skip
SETTINGS |= {"families-small": SETTINGS["families"], "dapo-math-small": SETTINGS["dapo-math"]}
CONTROLS = {"random-reward": "none", "families": None, "true-reward": "symmetric", "dapo-math": "symmetric"}
CONTROLS |= {"true-reward-llama": "symmetric", "flexec": "grpo"}
TWIN_OF = dict.fromkeys(("random-reward-products-small", "random-reward-first-step-small"), "random-reward")
"""What a small file is the twin of, where its name does not say so."""
SEEDS = {"random-reward-small": list(range(5)), "random-reward-first-step-small": list(range(3, 15))}
"""Of those that do not have the first three."""
LARGE = [name for name in SETTINGS if not name.endswith("-small")]
SMALL = [name for name in SETTINGS if name.endswith("-small")]


@functools.cache
def load(name: str) -> Ablation:
    return load_ablation(ABLATIONS / f"{name}.toml", ())


def large_of(name: str) -> str:
    return TWIN_OF.get(name, name.removesuffix("-small"))


def configs_of(name: str) -> dict[str, RunConfig]:
    """By setting, of its first seed."""
    return {run.cell.setting: run.config for run in load(name).first_runs}


def test_every_file_is_tested() -> None:
    assert {path.stem for path in FILES} >= set(SETTINGS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_cell_loads(path: Path) -> None:
    ablation = load(path.stem)
    assert ablation.config.name == path.stem
    assert len(ablation.runs) == len(ablation.plan.settings) * len(ablation.config.seeds)
    assert ablation.config.about


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_seeds_and_control(name: str) -> None:
    ablation = load(name)
    assert [setting.name for setting in ablation.plan.settings] == SETTINGS[name]
    assert all(setting.about for setting in ablation.plan.settings)
    assert ablation.config.seeds == SEEDS.get(name, [0, 1, 2])
    assert ablation.plan.control == CONTROLS[large_of(name)]
    coined = {name.removesuffix("-coin") for name in SETTINGS[name] if name.endswith("-coin")}
    own = {setting.name: setting.control for setting in ablation.plan.settings}
    assert own == {name: f"{name}-coin" if name in coined else None for name in SETTINGS[name]}


@pytest.mark.parametrize("name", [name for name in SMALL if name.startswith("random-reward")])
def test_a_coin_is_the_matched_control_of_its_clip(name: str) -> None:
    configs = configs_of(name)
    for setting, config in configs.items():
        assert config.objective.bounds_act == (not setting.endswith("-coin"))
        assert config.objective.clip == configs[setting.removesuffix("-coin")].objective.clip
        assert config.train.updates_per_step == 16  # as Table 1 has it


def test_the_first_step_alone_is_the_second_task_with_other_seeds_and_fewer_steps() -> None:
    one, other = load("random-reward-first-step-small"), load("random-reward-products-small")
    assert one.config.overrides["train"] == {**other.config.overrides["train"], "steps": 2}
    assert not set(one.config.seeds) & set(other.config.seeds)
    same = {"overrides": ..., "seeds": ..., "name": ..., "about": ...}
    mine, theirs = ({**each.config.model_dump(), **same} for each in (one, other))
    assert mine == theirs
    left = {**one.config.overrides, "train": ...}
    assert left == {**other.config.overrides, "train": ...}


@pytest.mark.parametrize("name", [name for name in SETTINGS if not name.startswith("flexec")])
def test_bounds(name: str) -> None:
    for setting, config in configs_of(name).items():
        low, high = CLIP_PAPER[setting.removeprefix("qwen-").removeprefix("llama-").removesuffix("-coin")]
        assert config.objective.clip == ConstantClip(low=low, high=high), setting


@pytest.mark.parametrize("name", ["flexec", "flexec-small"])
def test_flexec_bounds(name: str) -> None:
    configs = configs_of(name)
    assert configs["grpo"].objective.clip == ConstantClip(low=0.2, high=0.2)
    assert configs["clip-higher"].objective.clip == ConstantClip(low=0.2, high=0.28)
    for schedule in ("id", "did", "od"):
        assert configs[schedule].objective.clip == FlexEcClip(kind="flexec", schedule=schedule)
    for setting in SETTINGS[name][5:]:
        split = float(setting.removeprefix("id-split"))
        assert configs[setting].objective.clip == FlexEcClip(kind="flexec", schedule="id", phase_split=split)


def test_closed_loops_stand_beside_the_constant_bounds_of_true_reward_small() -> None:
    ablation, beside = load("control-small"), configs_of("true-reward-small")
    configs = configs_of("control-small")
    assert list(configs) == [
        "symmetric", "balanced", "hold", "hold-low", "hold-flexec", "rise-fall", "od", "adaptive", "adaptive-trl",
    ]  # fmt: skip
    assert (ablation.plan.control, ablation.config.seeds) == ("symmetric", [0, 1, 2])

    def rest(config: RunConfig) -> dict[str, object]:
        found = config.model_dump()
        del found["name"], found["logging"], found["train"]["steps"], found["eval"]["every_steps"]
        for key in ("clip", "auxiliary", "controllers"):
            del found["objective"][key]
        return found

    for setting, config in configs.items():
        assert config.objective.clip.steers == (setting in ("hold", "hold-low", "hold-flexec", "rise-fall"))
        assert rest(config) == rest(beside["symmetric"])
        if setting in beside:
            assert config.objective == beside[setting].objective
        assert config.eval.samples_of(config.eval.benchmarks["held_out"]) == 8  # mean@8, pass@8
    under_random = configs_of("control-random-small")
    for setting in under_random.keys() & configs.keys():
        assert configs[setting].objective == under_random[setting].objective
    kinds = {setting: config.objective.clip.kind for setting, config in configs.items()}
    assert kinds["hold-flexec"] == "closed_loop_flexec"
    assert {kinds[name] for name in ("hold", "hold-low", "rise-fall")} == {"closed_loop"}


def test_closed_loops_under_a_random_reward_stand_beside_what_is_to_hold_the_entropy_too() -> None:
    ablation, beside = load("control-random-small"), configs_of("random-reward-small")
    configs = configs_of("control-random-small")
    assert list(configs) == [
        "symmetric", "low0.2", "hold", "hold-flexec", "rise-fall", "od", "adaptive", "adaptive-trl",
    ]  # fmt: skip
    assert (ablation.plan.control, ablation.config.seeds) == ("symmetric", [0, 1, 2])

    def rest(config: RunConfig) -> dict[str, object]:
        found = config.model_dump()
        del found["name"], found["logging"], found["train"]["steps"]
        for key in ("clip", "auxiliary", "controllers"):
            del found["objective"][key]
        return found

    for setting, config in configs.items():
        assert config.train.updates_per_step == 16
        assert rest(config) == rest(beside["symmetric"]), setting
        if setting in beside:
            assert config.objective == beside[setting].objective
        assert config.objective.clip.steers == (setting in ("hold", "hold-flexec", "rise-fall"))
    targets = {setting: config.objective.controllers.entropy_coefficient for setting, config in configs.items()}
    assert {name: one.target for name, one in targets.items() if one} == {"adaptive": 0.68, "adaptive-trl": 0.68}
    for name in ("adaptive", "adaptive-trl"):
        assert configs[name].objective.clip == configs["symmetric"].objective.clip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_differ_in_what_is_studied_alone(name: str) -> None:
    """Beside bounds and what acts in their place: the coin in random-reward, the model in families; and between seeds
    the seed."""
    studied = {"random-reward": "reward", "families": "model"}.get(large_of(name))

    def rest(run: PlannedRun) -> dict[str, object]:
        found = run.config.model_dump()
        del found["name"], found["train"]["seed"], found["objective"]["clip"]
        del found["objective"]["weights"]["matched"]
        found.pop(studied or "name", None)
        return found

    first, *others = load(name).runs
    assert all(rest(run) == rest(first) for run in others)


def test_coins_of_figure_4() -> None:
    verifiers = {setting: config.reward.verifier for setting, config in configs_of("random-reward").items()}
    assert {setting: (one.distribution, one.p) for setting, one in verifiers.items()} == {
        **dict.fromkeys(SETTINGS["random-reward"], ("bernoulli", 0.5)),
        "symmetric-p0.3": ("bernoulli", 0.3),
        "symmetric-p0.7": ("bernoulli", 0.7),
        "symmetric-gaussian": ("gaussian", 0.5),
    }
    assert all(config.reward.verifier.kind == "random" for config in configs_of("random-reward-small").values())


@pytest.mark.parametrize("name", [name for name in LARGE if name != "flexec"])
def test_table_1_of_the_clip_paper(name: str) -> None:
    """arXiv 2509.26114: sizes, rates, evaluation, no KL, no entropy term, no dual clip."""
    is_math = name == "dapo-math"
    for config in configs_of(name).values():
        train, rollout, objective = config.train, config.rollout, config.objective
        assert (train.prompts_per_step, train.samples_per_prompt, train.mini_batch_responses) == (512, 8, 256)
        assert train.updates_per_step == 16
        assert config.policy.optimizer.lr == (1e-6 if is_math else 5e-7)
        assert config.policy.optimizer.schedule == "constant"
        assert (rollout.max_response_tokens, rollout.temperature) == (4096, 1.0)
        assert objective.sampler.kind == ("dynamic" if is_math else "all")
        assert (config.reward.overlong.factor if config.reward.overlong else None) == (1.0 if is_math else None)
        assert objective.auxiliary == AuxiliaryConfig()
        assert (objective.advantage.method, objective.aggregation.mode) == ("dr_grpo", "seq-mean-token-mean")
        assert objective.gate.dual == INF
        if config.eval.every_steps:
            assert (config.eval.temperature, config.eval.top_p) == (1.0, 0.95)
            asked = {bench: config.eval.samples_of(one) for bench, one in config.eval.benchmarks.items()}
            math_sets = dict.fromkeys(("math500", "amc23", "aime24", "aime25"), 32)
            assert asked == (math_sets if is_math else {"gsm8k": 8})
        assert bool(config.eval.every_steps) == (config.reward.verifier.kind != "random")


def test_flexec_is_as_its_paper_says() -> None:
    """arXiv 2602.09782: 400 steps, GRPO without KL, evaluation at temperature 0.7 and top-p 0.8, also at step 120."""
    for config in configs_of("flexec").values():
        assert config.train.steps == 400
        assert config.objective.advantage.method == "grpo"
        assert config.objective.auxiliary == AuxiliaryConfig()
        assert (config.eval.temperature, config.eval.top_p) == (0.7, 0.8)
        assert 120 % config.eval.every_steps == 0
        assert set(config.eval.benchmarks) == {"gsm8k", "math500", "amc23", "aime24", "aime25"}


@pytest.mark.parametrize("name", LARGE)
def test_layouts_are_possible(name: str) -> None:
    for setting, config in configs_of(name).items():
        shape = read_model_shape(ROOT / "shapes" / f"{Path(config.model.path).name.lower()}.json")
        assert list(check_layout(config, shape)) == [], setting
        assert config.gpus_needed == config.cluster.nodes * config.cluster.gpus_per_node == 8
        assert config.checkpoint.on


@pytest.mark.parametrize("name", SMALL)
def test_a_twin_has_the_paper_s_objective_at_the_quickstart_s_sizes(name: str) -> None:
    large, small = configs_of(large_of(name)), configs_of(name)
    assert {setting.removesuffix("-coin") for setting in small} <= set(large)
    for setting, config in small.items():
        twin = large[setting.removesuffix("-coin")]
        assert config.objective.clip == twin.objective.clip
        assert config.objective.gate == twin.objective.gate
        assert config.objective.advantage.method == twin.objective.advantage.method
        assert config.objective.aggregation == twin.objective.aggregation
        assert config.objective.sampler.kind == twin.objective.sampler.kind
        assert (config.reward.verifier.kind == "random") == (twin.reward.verifier.kind == "random")
        assert config.train.updates_per_step > 1  # or no bound would ever act
        shape = read_model_shape(ROOT / "shapes" / "quickstart.json")
        assert list(check_layout(config, shape)) == []
        assert config.train.responses_per_step <= 1000


def test_the_readme_has_a_row_for_every_file() -> None:
    rows = dict(re.findall(r"^\| \[([\w-]+)\]\(\1\.toml\) \|[^|]*\| (\d+ x \d+) \|", README, re.MULTILINE))
    found = {path.stem: load(path.stem) for path in FILES}
    assert rows == {
        name: f"{len(ablation.plan.settings)} x {len(ablation.config.seeds)}" for name, ablation in found.items()
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_head_counts_its_runs(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    head = " ".join(line.lstrip("# ") for line in text.split("\nname = ")[0].splitlines())
    ablation = load(path.stem)
    assert f"= {len(ablation.runs)} runs" in head
    if not path.stem.endswith("-small"):
        assert "Never run." in head


def test_the_command_s_examples_are_of_files_that_exist() -> None:
    text = (ROOT.parent / "megarl" / "cli" / "main.py").read_text(encoding="utf-8")
    named = set(re.findall(r"megarl ablate (configs/\S+\.toml)", text))
    assert named
    assert all((ROOT.parent / name).is_file() for name in named), named
