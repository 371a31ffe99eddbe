"""configs/methods/: every fragment has its authors' values, loads on the examples, and combines or is refused."""

import itertools
import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from megarl.cli.show import describe_replacements
from megarl.config.base import Config, ConfigError
from megarl.config.loader import find_replacements, load_config
from megarl.config.run import RunConfig
from megarl.telemetry.names import DESCRIPTIONS

ROOT = Path(__file__).parents[2]
METHODS = ROOT / "configs" / "methods"
QUICKSTART = ROOT / "configs" / "quickstart.toml"
NAMES = sorted(path.stem for path in METHODS.glob("*.toml"))
README = (METHODS / "README.md").read_text(encoding="utf-8")

BOUNDS_OFF = {"objective.clip": {"kind": "none"}}
PLAIN_PPO = {"objective.gate": {"kind": "ppo", "dual": math.inf, "dual_at_high": False, "rescue": 0.0}}
DYNAMIC = {"objective.sampler.kind": "dynamic"}
FLEXEC = {"upper_slope": -0.25, "upper_start": 0.5, "lower_slope": -0.13, "lower_start": 0.3, "standard": 0.2}
GSPO = {
    "objective.clip": {"kind": "constant", "low": 3e-4, "high": 4e-4},
    "objective.aggregation.mode": "seq-mean-token-mean",
} | PLAIN_PPO


def constant(low: float, high: float) -> dict[str, Any]:
    return {"objective.clip": {"kind": "constant", "low": low, "high": high}}


def flexec(schedule: str) -> dict[str, Any]:
    extra = {"phase_split": 0.5, "floor_ratio": 0.2}  # both are defaults too
    return {"objective.clip": {"kind": "flexec", "schedule": schedule} | FLEXEC | extra}


LOOP = {
    **{"at": [0.0], "entropy": [1.0], "over": "run", "unit": "start"},
    **{"gain": 4.0, "integral": 0.5, "band": 0.02},  # defaults
}


def closed_loop(**loop: Any) -> dict[str, Any]:
    bounds = {"low_tight": 0.02, "low_loose": 0.4, "high_tight": 0.02, "high_loose": 0.4}
    return {"objective.clip": {"kind": "closed_loop", **bounds, "loop": LOOP | loop}}


def weight(name: str, **values: Any) -> dict[str, Any]:
    return {f"objective.weights.{name}": values}


def dppo(divergence: str, limit: float) -> dict[str, Any]:
    gate = {"kind": "dppo", "divergence": divergence, "low": limit, "high": limit, "cap": 20.0}
    return {"objective.ratio.anchor": "behavior", "objective.gate": gate} | BOUNDS_OFF


def adaptive(step: float, maximum: float) -> dict[str, Any]:
    controller = {"target": 0.2, "step": step, "minimum": 0.0, "maximum": maximum}
    return {"objective.auxiliary.entropy.coefficient": 0.0, "objective.controllers.entropy_coefficient": controller}


def ce_gppo(low: float) -> dict[str, Any]:
    return {"objective.gate": {"kind": "ce_gppo", "low_scale": low, "high_scale": 1.0, "dual": 10.0}}


GOLDEN: dict[str, dict[str, Any]] = {
    "clip-low-high": constant(0.2, 0.2),
    "clip-low-only": constant(0.2, math.inf),
    "clip-high-only": constant(1.0, 0.2),
    "no-clip": BOUNDS_OFF,
    **{f"flexec-{schedule}": flexec(schedule) for schedule in ("upper", "lower", "id", "did", "od")},
    "dcpo": {
        "objective.clip": {"kind": "dcpo", "low": 0.16, "high": 0.2, "cap": 10.0},
        "objective.gate.dual": 10.0,
        "objective.advantage.method": "smoothed",
        "objective.aggregation.mode": "seq-sum-token-mean",
    },
    "bapo": {
        "objective.clip": {
            **{"kind": "bapo", "low_start": 0.6, "low_stop": 0.8, "low_step": 0.05},
            **{"high_start": 1.2, "high_stop": 2.0, "high_step": 0.05, "target": 1.0},
        },
        "objective.gate.dual": 3.0,
    },
    "sat": {
        "objective.ratio.anchor": "behavior",
        "objective.clip": {"kind": "stale", "low": 0.2, "high": 0.2, "quantile": 0.9, "power": 2.0},
    }
    | PLAIN_PPO,
    "archer": {"objective.clip": {"kind": "archer", "low": 0.2, "high_entropy": 0.4, "quantile": 0.8}},
    "closed-loop-hold": closed_loop(at=[0.0], entropy=[1.0]),
    "closed-loop-rise-fall": closed_loop(at=[0.0, 0.5, 1.0], entropy=[1.0, 1.2, 0.6]),
    "closed-loop-flexec": {"objective.clip": {"kind": "closed_loop_flexec", **FLEXEC, "loop": LOOP}},
    "dual-clip": {"objective.gate.dual": 3.0},
    "gspo": GSPO | {"objective.ratio": {"level": "sequence", "anchor": "old"}},
    "gspo-token": GSPO | {"objective.ratio": {"level": "sequence_token", "anchor": "old"}},
    "gmpo": {
        "objective.ratio.level": "geometric",
        "objective.clip": {"kind": "log", "low": 0.4, "high": 0.4},
        "objective.aggregation.mode": "seq-mean-token-mean",
    }
    | PLAIN_PPO,
    "cispo": {"objective.gate": {"kind": "cispo", "cap": 5.0, "floor": 0.0}} | BOUNDS_OFF,
    "sapo": {"objective.gate": {"kind": "sapo", "positive_temperature": 1.0, "negative_temperature": 1.05}}
    | BOUNDS_OFF,
    "dppo-tv": dppo("tv", 0.15),
    "dppo-kl": dppo("kl", 0.05),
    "aspo": {"objective.gate": {"kind": "aspo", "cap": 3.0}},
    "ce-gppo": ce_gppo(0.75),
    "gppo": ce_gppo(1.0),
    "ctpo": {
        "objective.ratio": {"level": "prefix", "anchor": "old"},
        "objective.clip": {"kind": "growing", "low": 0.025, "high": 0.05, "power": 0.5},
        "objective.gate": {"kind": "ppo", "dual": math.inf, "dual_at_high": True, "rescue": 0.0},
        "objective.aggregation.mode": "token-mean",
    },
    "nsr": {"objective.gate.kind": "ppo", "objective.gate.rescue": 0.2},
    "up-grpo": {"objective.gate": {"kind": "up", "dual": 3.0}} | constant(0.2, math.inf),
    "clip-cov": weight("clip_cov", fraction=2e-4, low=1.0, high=5.0) | constant(1.0, 1.0) | PLAIN_PPO,
    "high-entropy-tokens": weight("high_entropy", fraction=0.2),
    "steer": {"objective.weights.steer.shape": "exponential", "objective.weights.steer.low": 0.8},
    "clip-b": weight("clip_b", mu=2.5),
    "clip-v": weight("clip_v", mu=8.5, max_fraction=1e-4),
    "erc": weight("erc", low=0.95, high=1.05),
    "matched-control": weight("matched"),
    "positive-scale": {
        "objective.weights.positive_scale.scale": 1.0,
        "objective.controllers.positive_scale.step": 0.05,
    },
    "wapo": {
        "objective.advantage.method": "dr_grpo",
        "objective.ratio": {"level": "token", "anchor": "behavior"},
        "objective.aggregation.mode": "seq-mean-token-sum-norm",
    }
    | constant(1.0, 9.0)
    | PLAIN_PPO
    | weight("negative_scale", scale=0.0),
    "stare": weight("stare", fraction=0.1, positive=1.1, negative=1.0) | {"objective.controllers.stare.target": 0.3},
    "opefo": weight("entropy_flow") | BOUNDS_OFF | PLAIN_PPO,
    "tis": weight("tis", level="token", cap=2.0, floor=0.0, normalise=False),
    "masked-is": weight("importance_mask", level="sequence", low=0.0, high=3.0),
    "icepop": weight("importance_mask", level="token", low=0.5, high=5.0),
    "sequence-rejection": weight("sequence_rejection", statistic="k1", low=0.999, high=1.001),
    "opsm": weight("opsm", threshold=0.5),
    "decoupled-ppo": {"objective.ratio": {"level": "token", "anchor": "old"}}
    | weight("importance_mask", level="token", low=0.0, high=5.0),
    "grpo": {"objective.advantage.method": "grpo", "objective.aggregation.mode": "seq-mean-token-mean"},
    "dr-grpo": {"objective.advantage.method": "dr_grpo", "objective.aggregation.mode": "seq-mean-token-sum-norm"},
    "rloo": {"objective.advantage.method": "rloo"},
    "reinforce-pp": {"objective.advantage.method": "reinforce_pp"},
    "reinforce-pp-baseline": {"objective.advantage.method": "reinforce_pp_baseline"},
    "qae": {"objective.advantage.method": "quantile", "objective.advantage.quantile": 0.4},
    "entropy-advantage": {"objective.shaping.entropy": {"alpha": 0.4, "kappa": 2.0}},
    "cde": {"objective.shaping.perplexity.alpha": 1.0, "objective.shaping.perplexity.kappa": 3.0},
    "gepo": {
        "objective.advantage.method": "grpo",
        "objective.shaping.group_entropy": {
            **{"low_factor": 0.5, "high_factor": 0.2, "low_width": 0.2, "high_width": 0.3, "rate": 0.01},
        },
    },
    "fade": {
        "objective.advantage": {"method": "focal", "largest": 3.0, "rate": 0.02},
        "objective.controllers.negative_scale": {"target_ratio": 0.5, "smallest": 0.3, "rate": 0.02},
    }
    | weight("negative_scale", scale=1.0),
    "random-reward-bernoulli": {"reward.verifier.distribution": "bernoulli", "reward.verifier.p": 0.5},
    "random-reward-uniform": {"reward.verifier.kind": "random", "reward.verifier.distribution": "uniform"},
    "random-reward-gaussian": {
        **{"reward.verifier.kind": "random", "reward.verifier.distribution": "gaussian"},
        **{"reward.verifier.mean": 0.0, "reward.verifier.std": 1.0},
    },
    "kl-reference": {"objective.auxiliary.kl": {"coefficient": 1e-3, "estimator": "k3"}},
    "kl-cov": {"objective.auxiliary.kl_cov": {"coefficient": 1.0, "fraction": 2e-3}} | BOUNDS_OFF | PLAIN_PPO,
    "entropy-bonus": {"objective.auxiliary.entropy.coefficient": 1e-3},
    "entropy-skywork": adaptive(1e-4, 5e-3),
    "entropy-trl": adaptive(5e-3, 1.0),
    "aer-style": {"objective.controllers.aer.target_ratio": 0.4, "objective.auxiliary.entropy.coefficient": 0.0},
    "calibrl": {
        "objective.auxiliary.guided": {"coefficient": 0.1, "negative_slope": 0.5},
        "objective.advantage.method": "dr_grpo",
    },
    "dapo": {
        "objective.sampler.max_generations": 10,
        "objective.advantage.method": "grpo",
        "objective.gate.dual": 10.0,
        "objective.aggregation.mode": "token-mean",
        "reward.overlong.factor": 1.0,
    }
    | constant(0.2, 0.28)
    | DYNAMIC,
    "prorl": {"objective.auxiliary.kl.estimator": "k2"} | constant(0.2, 0.4) | DYNAMIC,
    "prorlv2": {
        "reward.truncated_factor": 0.0,
        "objective.advantage.method": "reinforce_pp_baseline",
        "objective.auxiliary.kl": {"coefficient": 1e-4, "estimator": "k2"},
        "objective.aggregation.mode": "token-mean",
    }
    | constant(0.2, 0.27)
    | weight("importance_mask", level="token", low=0.5, high=5.0)
    | weight("sequence_rejection", statistic="k1", low=0.999, high=1.002)
    | DYNAMIC,
    "brorl": {"train.samples_per_prompt": 512, "objective.advantage.method": "reinforce_pp_baseline"}
    | weight("tis", level="token", cap=2.0, floor=0.0, normalise=False)
    | DYNAMIC,
}


def load(*names: str, base: Path = QUICKSTART, overrides: tuple[str, ...] = ()) -> RunConfig:
    return load_config(base, [*(str(METHODS / f"{name}.toml") for name in names), *overrides])


def value_at(config: Config, path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = getattr(value, key)
    return value.model_dump() if isinstance(value, Config) else value


def test_every_fragment_has_a_golden() -> None:
    assert set(NAMES) == set(GOLDEN)


@pytest.mark.parametrize("name", NAMES)
def test_has_the_authors_values(name: str) -> None:
    config = load(name)
    assert {path: value_at(config, path) for path in GOLDEN[name]} == GOLDEN[name]


@pytest.mark.parametrize("name", NAMES)
def test_says_where_it_comes_from(name: str) -> None:
    head = "".join(
        line for line in (METHODS / f"{name}.toml").read_text(encoding="utf-8").splitlines() if line.startswith("#")
    )
    assert re.search(r"arXiv \d{4}\.\d{5}|ICLR 2026|DeepSeek-V3\.2|Skywork|TRL|verl|[Oo]urs|ours", head)
    assert len(head) > 100


@pytest.mark.parametrize("name", NAMES)
def test_sets_only_what_it_is(name: str) -> None:
    """Beside the objective: the reward where the method is one, sizes where the method is a size."""
    table = tomllib.loads((METHODS / f"{name}.toml").read_text(encoding="utf-8"))
    allowed = {
        "brorl": {"objective", "train", "policy"},
        "dapo": {"objective", "reward"},
        "prorlv2": {"objective", "reward"},
        **{name: {"reward"} for name in NAMES if name.startswith("random-reward-")},
    }
    assert set(table) == allowed.get(name, {"objective"})
    for union in ("sampler", "clip", "gate"):  # a fragment works over any base, so it names its member
        assert "kind" in table.get("objective", {}).get(union, {"kind": ""}), union


@pytest.mark.parametrize("name", NAMES)
def test_loads_over_the_other_examples(name: str) -> None:
    sizes = ("train.samples_per_prompt=8",)
    load(name, base=ROOT / "configs" / "smollm2-135m.toml", overrides=sizes)
    load(
        name,
        base=ROOT / "configs" / "papers" / "clip-gsm8k-qwen2.5-1.5b.toml",
        overrides=("reward.verifier.kind=gsm8k",),
    )


REASONS = (  # why two fragments may not be joined; every refusal is one of these
    r"reads no bounds, but objective\.clip\.kind is",
    r"acts at the bounds, but objective\.clip\.kind is \"none\"",
    r"has no upper bound, but objective\.clip\.kind",
    r"gives each token bounds of its own",
    r"bounds a token's own ratio by its probability",
    r"bounds token ratios before it averages them",
    r"is defined on token ratios",
    r"has one advantage per response",
    r"weighs single tokens, but at objective\.ratio\.level",
    r"matched drops as many tokens as bounds would, but objective\.clip\.kind is \"none\"",
    r"matched drops as many tokens as bounds would, but objective\.gate\.kind",
    r"steers by the tokens that its bounds drop, but objective\.gate\.kind",
    r"matched drops as many tokens as bounds would, but with objective\.gate\.\w+ they do something else",
    r"steers by the tokens that its bounds drop, but with objective\.gate\.\w+ they do something else",
    r"matched takes the effect of the bounds away by which",
    r"matched and objective\.weights\.clip_cov draw by the same lot",
    r"dual_at_high acts at the upper bound, but objective\.clip\.kind",
    r"enlarges objective\.weights\.negative_scale\.scale, which is 0 and stays so",
    r"both multiply by old / behavior",
    r"has the trainer-vLLM mismatch in the ratio already",
    r"both move the same coefficient",
    r"both punish a response that reaches the limit",
    r"does not look at the answer",
)


def test_all_ordered_pairs_load_or_are_refused_with_a_reason_and_the_files() -> None:
    refused: set[tuple[str, str]] = set()
    used: set[str] = set()
    for pair in itertools.permutations(NAMES, 2):
        try:
            load(*pair)
        except ConfigError as error:
            refused.add(pair)
            for problem in error.problems:
                reasons = {reason for reason in REASONS if re.search(reason, problem)}
                assert reasons, f"{pair}: {problem}"
                used |= reasons
                assert any(f"{name}.toml" in problem for name in pair), f"{pair}: {problem}"
    assert used == set(REASONS)
    # A pair that is refused in one order only is one whose later fragment sets another plug point of the earlier.
    assert {("flexec-id", "gspo"), ("gspo", "flexec-id"), ("sapo", "flexec-id")} - refused == {("flexec-id", "gspo")}
    assert len(refused) < 0.09 * len(NAMES) * (len(NAMES) - 1)


def test_many_at_once() -> None:
    config = load("flexec-id", "high-entropy-tokens", "tis", "entropy-skywork")
    objective = config.objective
    assert (objective.clip.kind, objective.controllers.entropy_coefficient is not None) == ("flexec", True)
    assert {name for name, value in objective.weights if value} == {"high_entropy", "tis"}
    everything = load(
        *("dapo", "qae", "entropy-advantage", "cde", "ce-gppo", "dcpo", "tis", "sequence-rejection", "opsm"),
        *("high-entropy-tokens", "clip-b", "clip-v", "steer", "erc", "positive-scale", "entropy-trl", "kl-reference"),
    )
    assert everything.objective.needs_survey
    assert everything.objective.gate.kind == "ppo"  # DCPO came after CE-GPPO and has a gate of its own


def test_overlong_ramp_is_dapos_share() -> None:
    overlong = load("dapo").reward.overlong
    assert overlong is not None
    assert (overlong.cache_tokens, overlong.cache_of(20480), overlong.cache_of(8)) == (None, 4096, 1)


def readme_rows() -> dict[str, list[str]]:
    rows = re.findall(r"^\| \[[\w-]+\]\(([\w-]+)\.toml\) \|(.*)\|$", README, flags=re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


def test_readme_lists_every_fragment() -> None:
    assert sorted(readme_rows()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_readme_says_what_it_sets_and_costs(name: str) -> None:
    _, sets, source, _, survey = readme_rows()[name]
    table = tomllib.loads((METHODS / f"{name}.toml").read_text(encoding="utf-8"))
    paths: set[str] = set()
    for section, content in table.items():
        for key, value in content.items():
            if section == "objective":
                nested = key in ("weights", "auxiliary", "controllers", "shaping")
                paths |= {f"{key}.{inner}" for inner in value} if nested else {key}
            else:
                paths.add(section if section == "train" else f"{section}.{key}")
    assert set(re.findall(r"`([\w.]+)`", sets)) == paths
    assert source
    assert (survey == "yes") == load(name).objective.needs_survey


def test_readme_combinations_load() -> None:
    combinations = re.findall(r"^\| [^|]+ \| `(M/[^`]+)`", README, flags=re.MULTILINE)
    assert len(combinations) >= 10
    for line in combinations:
        load_config(QUICKSTART, line.replace("M/", f"{METHODS}/").split())
    commands = re.findall(r"^megarl (?:train|show) +(\S+) ([^#\n]*)", README, flags=re.MULTILINE)
    assert len(commands) == 3
    for path, arguments in commands:
        words = arguments.replace("$M", "configs/methods").split()
        load_config(ROOT / path, [str(ROOT / word) if word.endswith(".toml") else word for word in words])


def test_readme_shows_the_refusal_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError) as caught:
        load_config(Path("configs/quickstart.toml"), ["configs/methods/sapo.toml", "configs/methods/flexec-id.toml"])
    shown = [line.strip() for line in README.splitlines()]
    assert all(line.strip() in shown for line in str(caught.value).splitlines())


def test_readme_shows_a_replacement_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (command, shown), *others = re.findall(r"^\$ megarl show (.*) \| head -1\n(.*)$", README, flags=re.MULTILINE)
    path, *arguments = command.split()
    assert not others
    assert shown == f"# {describe_replacements(find_replacements(Path(path), arguments))[0]}"


def test_readme_compares_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    assert {"actor/entropy", "reward/mean"} <= set(DESCRIPTIONS) & set(re.findall(r'"(\w+/\w+)"', code))
    for run, start in (("low-0.1", 0.5), ("low-0.2", 0.75)):
        (tmp_path / run).mkdir()
        steps = [{"step": step, "actor/entropy": start / step, "reward/mean": 0.25 * step} for step in (1, 2)]
        steps.append({"step": 3, "actor/entropy": None})
        (tmp_path / run / "metrics.jsonl").write_text("".join(f"{json.dumps(step)}\n" for step in steps))
    (tmp_path / "compare.py").write_text(code)
    command = [sys.executable, "compare.py", "low-0.1", "low-0.2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "low-0.1  actor/entropy  0.500 -> 0.250  in 2 steps",
        "low-0.1  reward/mean    0.250 -> 0.500  in 2 steps",
        "low-0.2  actor/entropy  0.750 -> 0.375  in 2 steps",
        "low-0.2  reward/mean    0.250 -> 0.500  in 2 steps",
    ]
    with Image.open(tmp_path / "compare.png") as image:
        assert image.width > image.height > 100
