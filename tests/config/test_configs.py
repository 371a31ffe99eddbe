"""Every file in configs/ loads; the papers' files have the papers' numbers and layouts their models allow."""

import math
import random
from pathlib import Path

import pytest

from megarl.config.advantage import DynamicSampling
from megarl.config.auxiliary import AuxiliaryConfig
from megarl.config.loader import load_config, load_section
from megarl.config.reward import RandomReward
from megarl.config.rollout_files import (
    BUDGET_BYTES,
    describe_rollout_files,
    rollouts_interval,
    run_bytes,
    step_bytes,
)
from megarl.config.run import RunConfig
from megarl.config.theory import TheoryConfig
from megarl.config.trust import ConstantClip, FlexEcClip
from megarl.models.families import read_model_shape
from megarl.planning.checks import check_layout
from megarl.records import TokenTrace
from megarl.telemetry.rollouts import RolloutRow
from tests.telemetry.rollout_files import write_rows

ROOT = Path(__file__).parents[2] / "configs"
PAPERS = ROOT / "papers"
SHAPES = ROOT / "shapes"
FILES = sorted({*ROOT.glob("*.toml"), *PAPERS.glob("*.toml")} - {ROOT / "theory.toml"})
"""Of runs. configs/methods/: test_methods.py; theory.toml: tests/cli/test_theory.py."""

LAYOUTS = {  # shape, data-parallel ranks, updates per step, GPUs
    "clip-gsm8k-qwen2.5-1.5b": ("qwen2.5-1.5b-instruct", 4, 16, 8),
    "clip-gsm8k-qwen2.5-3b": ("qwen2.5-3b-instruct", 4, 16, 8),
    "clip-gsm8k-llama3-8b": ("meta-llama-3-8b-instruct", 2, 16, 8),
    "clip-gsm8k-llama3-8b-2nodes": ("meta-llama-3-8b-instruct", 4, 16, 16),
    "clip-dapo-math-qwen2.5-7b": ("qwen2.5-7b-instruct", 2, 16, 8),
    "clip-dapo-math-qwen2.5-7b-4nodes": ("qwen2.5-7b-instruct", 8, 16, 32),
    "flexec-baseline-qwen2.5-7b": ("qwen2.5-7b", 2, 16, 8),
    "flexec-id-qwen2.5-7b": ("qwen2.5-7b", 2, 16, 8),
    "flexec-id-qwen2.5-math-7b": ("qwen2.5-math-7b", 2, 16, 8),
    "dapo-qwen2.5-32b-16nodes": ("qwen2.5-32b", 8, 16, 128),
    "dr-grpo-qwen2.5-math-7b": ("qwen2.5-math-7b", 2, 8, 8),
}
CLIP_FILES = [name for name in LAYOUTS if name.startswith("clip-")]


def load_paper(name: str) -> RunConfig:
    return load_config(PAPERS / f"{name}.toml")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_loads(path: Path) -> None:
    load_section(path, [], TheoryConfig if path.stem == "theory" else RunConfig)


def test_every_paper_file_has_a_layout_test() -> None:
    assert {path.stem for path in PAPERS.glob("*.toml")} == set(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_derived_numbers_and_layout(name: str) -> None:
    shape, data_ranks, updates, gpus = LAYOUTS[name]
    config = load_paper(name)
    assert config.name == name
    assert config.parallel.data == data_ranks
    assert config.train.updates_per_step == updates
    assert config.train.mini_batch_responses % data_ranks == 0
    assert config.gpus_needed == config.cluster.nodes * config.cluster.gpus_per_node == gpus
    assert config.parallel.tensor <= config.cluster.gpus_per_node
    assert list(check_layout(config, read_model_shape(SHAPES / f"{shape}.json"))) == []
    assert Path(config.model.path).name.lower() == shape
    # A sequence of the greatest length fits a micro-batch, which otherwise would hold it alone and overflow the plan.
    longest = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    assert longest <= config.policy.tokens_per_micro_batch
    # One node passes weights through shared memory, several cannot.
    assert config.rollout.publish.transport == ("shared_memory" if config.cluster.nodes == 1 else "network")


@pytest.mark.parametrize("name", CLIP_FILES)
def test_clip_paper_table_1(name: str) -> None:
    """arXiv 2509.26114, Table 1 and section 2.1."""
    config = load_paper(name)
    assert (config.train.prompts_per_step, config.train.samples_per_prompt) == (512, 8)
    assert config.train.mini_batch_responses == 256
    assert config.policy.optimizer.lr == (1e-6 if "dapo-math" in name else 5e-7)
    assert config.policy.optimizer.schedule == "constant"
    assert config.policy.optimizer.warmup_updates == 0
    assert config.rollout.max_response_tokens == 4096
    assert config.rollout.temperature == 1.0
    assert config.objective.auxiliary == AuxiliaryConfig()
    assert config.objective.sampler.kind == ("dynamic" if "dapo-math" in name else "all")
    assert config.objective.advantage.method == "dr_grpo"
    assert config.objective.aggregation.mode == "seq-mean-token-mean"
    assert (config.reward.overlong is not None) == ("dapo-math" in name)


def test_random_reward_control() -> None:
    config = load_paper("clip-gsm8k-qwen2.5-1.5b")
    assert config.reward.verifier == RandomReward(kind="random", distribution="bernoulli", p=0.5)
    assert (config.objective.clip.low, config.objective.clip.high) == (0.2, 0.2)


def test_balanced_bounds_of_figure_5() -> None:
    clip = load_paper("clip-gsm8k-qwen2.5-3b").objective.clip
    assert (clip.low, clip.high) == (0.15, math.inf)


@pytest.mark.parametrize(
    ("one", "several"),
    [
        ("clip-gsm8k-llama3-8b", "clip-gsm8k-llama3-8b-2nodes"),
        ("clip-dapo-math-qwen2.5-7b", "clip-dapo-math-qwen2.5-7b-4nodes"),
    ],
)
def test_several_nodes_change_only_the_machines(one: str, several: str) -> None:
    small, large = load_paper(one).model_dump(), load_paper(several).model_dump()
    for config in (small, large):
        del config["name"], config["cluster"], config["parallel"]["world_size"]
        del config["rollout"]["engines"], config["rollout"]["publish"]
    assert small == large


def test_dapo() -> None:
    """arXiv 2503.14476 and its released recipe."""
    config = load_paper("dapo-qwen2.5-32b-16nodes")
    clip, overlong = config.objective.clip, config.reward.overlong
    assert (clip.low, clip.high, config.objective.gate.dual) == (0.2, 0.28, 10.0)
    assert config.objective.sampler == DynamicSampling(kind="dynamic", prompts_per_generation=1536)
    assert config.objective.advantage.method == "grpo"
    assert config.objective.aggregation.mode == "token-mean"
    assert config.train.responses_per_step == 512 * 16
    assert overlong is not None
    assert (config.rollout.max_response_tokens, overlong.cache_tokens, overlong.factor) == (20480, 4096, 1.0)


def test_dr_grpo() -> None:
    """arXiv 2503.20783: the constant is the maximum response length, 3000."""
    config = load_paper("dr-grpo-qwen2.5-math-7b")
    assert config.objective.aggregation.mode == "seq-mean-token-sum-norm"
    assert config.objective.aggregation.norm_length == config.rollout.max_response_tokens == 3000


def test_flexec() -> None:
    """arXiv 2602.09782: 400 steps, GRPO, no KL; ID differs from the baseline in the bounds alone."""
    baseline, flexec = load_paper("flexec-baseline-qwen2.5-7b"), load_paper("flexec-id-qwen2.5-7b")
    assert flexec.objective.clip == FlexEcClip(kind="flexec")
    assert baseline.objective == flexec.objective.model_copy(update={"clip": ConstantClip(low=0.2, high=0.2)})
    assert flexec.model_copy(update={"name": baseline.name, "objective": baseline.objective}) == baseline
    assert flexec.train.steps == 400
    math_7b = load_paper("flexec-id-qwen2.5-math-7b")
    assert math_7b.objective == flexec.objective
    assert math_7b.rollout.max_prompt_tokens + math_7b.rollout.max_response_tokens == 4096


# What a run keeps of its rollouts where nobody has said.


def test_rollouts_are_sized_to_the_run() -> None:
    small = load_config(ROOT / "quickstart.toml")
    assert small.logging.rollouts_every is None
    assert rollouts_interval(small) == 1
    assert run_bytes(small) < 1e9
    for path in FILES:
        config = load_config(path)
        every = rollouts_interval(config)
        assert run_bytes(config) <= BUDGET_BYTES or every == config.train.steps
        if every > 1:  # one step fewer would be too much
            assert config.train.steps // (every - 1) * step_bytes(config) > BUDGET_BYTES
    large = load_paper("dapo-qwen2.5-32b-16nodes")
    assert rollouts_interval(large) > 1
    assert describe_rollout_files(large).startswith(
        f"rollouts/: every {rollouts_interval(large)} steps (chosen: logging.rollouts_every is absent), "
    )
    for said in (0, 1, 7):
        config = large.model_copy(update={"logging": large.logging.model_copy(update={"rollouts_every": said})})
        assert rollouts_interval(config) == said


def test_the_estimate_of_a_rollout_file(tmp_path: Path) -> None:
    """Against a real one, of random numbers and as long as it may be."""
    draw = random.Random(0)
    length = 500

    def numbers() -> tuple[float, ...]:
        return tuple(draw.expovariate(2.0) for _ in range(length))

    def row(index: int) -> RolloutRow:
        tokens = tuple(int(draw.paretovariate(0.3)) % 150_000 for _ in range(length))
        trace = TokenTrace(
            sample_id=index, **{name: numbers() for name in ("logp", "entropy", "ratio", "expected_q", "coefficient")},
            **dict.fromkeys(("low", "high", "gate", "weight", "advantage"), (1.0,) * length), rule=(0,) * length,
        )  # fmt: skip
        return RolloutRow(
            step=1, prompt_index=0, sample_index=index, sample_id=index, policy_version=0, prompt_text="x" * 400,
            response_text=" ".join(map(str, tokens)), prompt_tokens=tokens[:100], response_tokens=tokens,
            behavior_logp=numbers(), old_logp=numbers(), old_entropy=numbers(), ref_logp=None,
            trace=trace if index < 8 else None, reward=1.0, verifier_reward=1.0, overlong=0.0, bonus=0.0, failure=None,
            advantage=0.5, stop_reason="stop",
        )  # fmt: skip

    write_rows(tmp_path / "step.parquet", map(row, range(32)))
    sizes = ["train.prompts_per_step=4", "train.samples_per_prompt=8", "train.mini_batch_responses=32"]
    lengths = ["rollout.max_prompt_tokens=100", f"rollout.max_response_tokens={length}", "logging.traced_responses=8"]
    config = load_config(ROOT / "quickstart.toml", [*sizes, *lengths])
    written = (tmp_path / "step.parquet").stat().st_size
    assert 0.7 < written / step_bytes(config) < 1.1
