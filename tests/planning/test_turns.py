"""What lies on a GPU that policy and engines share, phase by phase: numbers by hand, and what moves."""

from typing import Any

import pytest

from megarl.cli.plan import make_plan
from megarl.cli.plan_config import PlanOptions, load_planned
from megarl.models.families import read_model_shape
from megarl.planning.engine_memory import GIB
from megarl.planning.run_plan import RunPlan
from megarl.planning.transfer import CHECK_BYTES
from megarl.planning.turns import SharedMemory, choose_moved, largest_layer
from megarl.reshard.checksum import _CUDA_ROWS, _ROW_WORDS
from tests.models.shapes import CONFIGS
from tests.planning.plans import plan_of

TURNS = "cluster.colocate=true"
PHASES = ["generate", "sleep", "score", "update", "wake", "publish"]

H100: dict[str, tuple[str, dict[str, int], tuple[str, ...], list[float]]] = {
    # GiB in each phase, of 80.
    "7B on 8": ("qwen2.5-7b", {"gpus": 8, "tensor": 2}, (), [77.09, 11.09, 37.80, 58.89, 25.28, 26.42]),
    "32B on 16": (
        "qwen2.5-32b",
        {"gpus": 16, "tensor": 8, "rollout_tensor": 2},
        ("parallel.sequence=true",),
        [77.63, 11.63, 50.53, 65.55, 42.14, 42.99],
    ),
    "72B on 32": (
        "qwen2.5-72b",
        {"gpus": 32, "tensor": 8, "pipeline": 4, "rollout_tensor": 8},
        ("parallel.sequence=true",),
        [74.38, 8.38, 44.35, 66.90, 25.31, 25.72],
    ),
}


@pytest.mark.parametrize("name", H100)
def test_what_h100s_hold_in_turns(name: str) -> None:
    model, layout, overrides, wanted = H100[name]
    plan = plan_of(model, TURNS, *overrides, **layout)
    shared = turns_of(plan)
    assert [turn.name for turn in shared.turns] == PHASES
    assert [turn.total / GIB for turn in shared.turns] == pytest.approx(wanted, abs=0.006)
    assert plan.fits
    assert shared.fullest.name == "generate"
    assert plan.layout.engines * plan.layout.engine_tensor == layout["gpus"], "engines fill the policy's GPUs"
    assert plan.layout.nodes == layout["gpus"] // 8, "which count once"


def test_numbers_of_7b_by_hand() -> None:
    """Two tensor ranks, four data ranks; engines of one worker."""
    plan = plan_of("qwen2.5-7b", TURNS, gpus=8, tensor=2)
    shared = turns_of(plan)
    elements = 7_615_616_512
    half = elements / 2
    context, messages = 2 * GIB, 2 * (64 << 20)
    kept = 2 * half + context
    # Norms are on both tensor ranks.
    assert shared.kept == pytest.approx(kept, rel=1e-3)
    assert shared.host == pytest.approx(12 * half / 4, rel=1e-3)
    layer = 2 * max(152_064 * 3_584, 2 * 18_944 * 3_584)
    assert layer == 2 * largest_layer(read_model_shape(CONFIGS / "qwen2.5-7b.json"), tensor=1)
    by_name = {turn.name: turn for turn in shared.turns}
    assert by_name["generate"].engine == int(0.85 * 80 * GIB)
    assert by_name["wake"].engine == pytest.approx(2 * elements + context, rel=1e-3)
    assert by_name["publish"].engine - by_name["wake"].engine == layer
    assert by_name["publish"].policy - by_name["wake"].policy == messages
    assert by_name["update"].total == plan.worst.total + context
    assert by_name["score"].policy == plan.worst.total - plan.worst.activations - messages


def test_a_publication_without_staging_by_hand() -> None:
    """Checked message by message on both sides, and then installed; the engine's layer is the larger of its two."""
    none = ("rollout.publish.staging=none", "rollout.publish.transport=shared_memory")
    plan = plan_of("qwen2.5-7b", TURNS, *none, gpus=8, tensor=2)
    staged = turns_of(plan_of("qwen2.5-7b", TURNS, gpus=8, tensor=2))
    by_name, before = ({turn.name: turn for turn in turns.turns} for turns in (turns_of(plan), staged))
    assert by_name["publish"].policy - by_name["wake"].policy == (64 << 20) + CHECK_BYTES
    assert by_name["publish"].engine == before["publish"].engine
    assert plan.rollout.staging == 0
    large = plan_of("qwen2.5-7b", TURNS, *none, "rollout.publish.bucket_mib=1024", gpus=8)
    by_name = {turn.name: turn for turn in turns_of(large).turns}
    assert by_name["publish"].engine - by_name["wake"].engine == GIB + CHECK_BYTES > 2 * 152_064 * 3_584
    # [rows, both halves of a row's words] int64.
    assert CHECK_BYTES == _CUDA_ROWS * 2 * _ROW_WORDS * 8


def test_a_run_that_chooses_what_moves_counts_messages_too() -> None:
    """With packed messages of 2 GiB the phase publish is the fullest, and decides."""
    arguments = [TURNS, "rollout.publish.bucket_mib=1024", "rollout.memory_fraction=0.3"]
    config = load_planned(CONFIGS / "qwen2.5-7b.json", arguments, PlanOptions(gpus=8, tensor=2)).config
    needed = next(turn.total for turn in turns_of(plan_of("qwen2.5-7b", *arguments, gpus=8, tensor=2)).turns[-1:])
    assert choose_moved(config, gpu_bytes=needed) == ()
    assert choose_moved(config, gpu_bytes=needed - GIB) == ("optimizer",)


def turns_of(plan: RunPlan) -> SharedMemory:
    assert plan.shared is not None
    return plan.shared


KL = "objective.auxiliary.kl={}"


@pytest.mark.parametrize(
    ("overrides", "moved"),
    [
        # Of 80 GiB the policy keeps 9.1 of weights and context, 7.1 of a reference, 10.6 of an optimizer.
        (("rollout.memory_fraction=0.85",), ("optimizer",)),
        (("rollout.memory_fraction=0.7",), ()),
        (("rollout.memory_fraction=0.7", KL), ("reference",)),
        (("rollout.memory_fraction=0.78", KL), ("optimizer",)),
        (("rollout.memory_fraction=0.85", KL), ("optimizer", "reference")),
        # Nothing is enough: as much as there is.
        (("rollout.memory_fraction=0.95",), ("optimizer",)),
        # What was set is not asked for again.
        (("rollout.memory_fraction=0.5", "cluster.offload=['optimizer']"), ("optimizer",)),
        (("rollout.memory_fraction=0.85", "cluster.offload=[]"), ()),
    ],
)
def test_the_least_moves_that_leaves_engines_their_memory(overrides: tuple[str, ...], moved: tuple[str, ...]) -> None:
    assert turns_of(plan_of("qwen2.5-7b", TURNS, *overrides, gpus=8, tensor=2)).moved == moved


@pytest.mark.parametrize(("gpu_gib", "moved"), [(80, ("optimizer",)), (141, ()), (None, ("optimizer",))])
def test_a_run_chooses_by_the_gpus_that_it_finds(gpu_gib: int | None, moved: tuple[str, ...]) -> None:
    """Without any, everything moves. vLLM's share of a larger GPU is larger too, and so is what it leaves."""
    options = PlanOptions(gpus=8, tensor=2)
    config = load_planned(CONFIGS / "qwen2.5-7b.json", [TURNS], options).config
    assert choose_moved(config, gpu_bytes=None if gpu_gib is None else gpu_gib * GIB) == moved


def warnings_of(*overrides: str, **layout: int) -> tuple[str, ...]:
    planned = load_planned(CONFIGS / "qwen2.5-72b.json", [TURNS, *overrides], PlanOptions(**layout))
    return make_plan(planned, gpu_memory_gib=80).warnings


def test_what_does_not_fit_says_what_to_change() -> None:
    recompute = ("policy.recompute=full", "parallel.sequence=true")
    (text,) = warnings_of(*recompute, gpus=64, tensor=8, rollout_tensor=8)
    assert text == (
        "policy and engines do not fit in turns: generate takes 86.9 of 80 GiB, 18.9 of it the policy's and 68.0 the "
        "engine's; set rollout.memory_fraction=0.76"
    )
    assert warnings_of(*recompute, "rollout.memory_fraction=0.76", gpus=64, tensor=8, rollout_tensor=8) == ()
    (text,) = warnings_of(*recompute, "cluster.offload=[]", gpus=64, tensor=8, rollout_tensor=8)
    assert 'or let more move: cluster.offload=["optimizer"]' in text


def test_a_policy_has_what_a_sleeping_engine_leaves() -> None:
    (text,) = warnings_of(gpus=32, tensor=8, pipeline=4, rollout_tensor=8)
    assert text == (
        "the policy does not fit: stage 0 needs 100.3 of 78 GiB beside an engine that sleeps, most of it activations "
        "(58.3 GiB); it fits (64.9 GiB) with parallel.sequence=true"
    )


def test_a_layout_that_leaves_engines_no_place_is_not_advised() -> None:
    """Three engines of two fill the six GPUs; a tensor size of 4 would be a policy of four."""
    train = ("train.prompts_per_step=384", "train.mini_batch_responses=384")
    plan = plan_of("qwen2.5-72b", TURNS, *train, gpus=6, tensor=2, rollout_tensor=2)
    assert plan.layout.engines == 3
    assert plan.fit is None or plan.fit.changes.get("parallel.world_size", 6) >= 6


def test_without_turns_there_are_none() -> None:
    assert plan_of("qwen2.5-7b", gpus=8, tensor=2).shared is None


def test_as_json() -> None:
    planned = load_planned(CONFIGS / "qwen2.5-7b.json", [TURNS], PlanOptions(gpus=8, tensor=2))
    numbers: dict[str, Any] = make_plan(planned, gpu_memory_gib=80).as_dict()
    first = numbers["shared"]["turns"][0]
    assert (first["name"], first["total"]) == ("generate", first["policy"] + first["engine"])
