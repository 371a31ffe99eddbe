"""`megarl plan`: numbers against hand-computed ones and full plans, what is refused, and what is printed."""

import json
import math
import shutil
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from megarl.cli.plan import GIB, RunPlan, make_plan
from megarl.cli.plan_config import PlanOptions, load_planned
from megarl.cli.plan_fit import micro_batches
from megarl.cli.plan_tables import print_plan
from megarl.cli.plan_transfer import plan_publication
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from megarl.models.serving import engine_boxes
from megarl.parallel.grid import RankGrid
from megarl.parallel.packing import plan_micro_batches
from megarl.reshard.blocks import WantedBoxes
from megarl.reshard.plan import PlanRequest, plan_taker, plan_trainer
from megarl.reshard.regions import Region, contiguous_strides
from megarl.reshard.sources import TrainerLayout
from megarl.reshard.topology import Topology, pack_nodes
from tests.config.text import SMALL, write_config
from tests.models.shapes import CONFIGS, make_shape

PAPER = Path(__file__).parents[2] / "configs" / "papers" / "dapo-qwen2.5-32b-16nodes.toml"
LAYOUTS: dict[str, dict[str, int]] = {
    "qwen2.5-7b": {"gpus": 8, "tensor": 2},
    "qwen2.5-32b": {"gpus": 32, "tensor": 8, "rollout_tensor": 2},
    "qwen2.5-72b": {"gpus": 64, "tensor": 8, "pipeline": 4, "engines": 2, "rollout_tensor": 4},
    "llama-3-8b": {"gpus": 8, "tensor": 4},
    "llama-3-70b": {"gpus": 64, "tensor": 8, "pipeline": 4, "engines": 2, "rollout_tensor": 4},
    "llama-3.1-405b": {"gpus": 1152, "tensor": 8, "pipeline": 18, "gpus_per_node": 16, "rollout_tensor": 16},
}


def run_plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megarl.cli.main", "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def plan_of(name: str, *overrides: str, gib: float = 80, **options: int) -> RunPlan:
    return make_plan(load_planned(CONFIGS / f"{name}.json", overrides, PlanOptions(**options)), gpu_memory_gib=gib)


def problems_of(path: Path, *overrides: str, **options: int) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        load_planned(path, overrides, PlanOptions(**options))
    return error.value.problems


def printed(plan: RunPlan, *, width: int = 100) -> str:
    file = StringIO()
    print_plan(Console(file=file, width=width), plan)
    return file.getvalue()


@pytest.mark.parametrize("name", LAYOUTS)
def test_usual_layouts_of_real_models_fit(name: str) -> None:
    plan = plan_of(name, "parallel.sequence=true", **LAYOUTS[name])
    assert plan.warnings == ()
    assert plan.publication.received_over_bound == 1.0
    assert plan.publication.received_max_bytes >= plan.publication.model_bytes / plan.layout.engine_tensor
    text = printed(plan)
    assert "…" not in text
    assert "✓ fits" in text


def test_numbers_of_llama_3_70b_by_hand() -> None:
    plan = plan_of("llama-3-70b", gib=141, gpus=64, tensor=8, pipeline=4, engines=4, rollout_tensor=8)
    assert plan.parameters == 70_553_706_496
    assert (plan.layout.data, plan.layout.nodes) == (2, 12)
    assert (plan.layout.policy_nodes, plan.layout.engine_nodes) == ((0, 7), (8, 11))
    assert [stage.stage for stage in plan.policy] == [0, 1, 3]
    # A layer's rows and columns over 8, and two norms; 20 layers a stage; the embedding on the first.
    layer = (8192 * 8192 + 10240 * 8192 + 3 * 28672 * 8192) // 8 + 2 * 8192
    assert plan.policy[0].weights == 2 * (20 * layer + 128256 // 8 * 8192)
    assert plan.policy[1].weights == 2 * 20 * layer
    # 256 responses of 2047 tokens for two data ranks, four in 8192.
    longest, half = plan.updates
    assert (longest.tokens, longest.samples, longest.micro_batches) == (2047, 128, 32)
    assert longest.bubble == 3 / 35
    assert (half.tokens, half.micro_batches, half.bubble) == (1535, math.ceil(128 / 5), 3 / 29)
    assert plan.rollout.kv_bytes_per_token == 2 * 80 * 128 * 2
    # Engines are on 4 nodes: each gets the model once, over 8 adapters of 50 GB/s.
    model = 2 * 70_553_706_496
    assert plan.publication.model_bytes == model
    assert plan.publication.sent_mean_bytes == pytest.approx(4 * model / 64)
    assert plan.publication.estimates["NVLink + InfiniBand"]["direct"] == pytest.approx(model / 8 / 50e9, rel=1e-2)
    assert plan.publication.estimates["NVLink"]["direct"] == pytest.approx(model / 8 / 450e9, rel=1e-2)


@pytest.mark.parametrize("length", [100, 2047, 5000, 8192, 9000])
@pytest.mark.parametrize("data", [1, 2, 8])
def test_micro_batches_are_those_of_the_packing(tmp_path: Path, length: int, data: int) -> None:
    overrides = ["train.prompts_per_step=24", "train.mini_batch_responses=48", f"parallel.world_size={data}"]
    config = load_config(write_config(tmp_path), [*overrides, "cluster.gpus_per_node=9"])
    planned = plan_micro_batches([length] * 48, data_ranks=data, max_tokens=config.policy.tokens_per_micro_batch)
    assert micro_batches(config, length) == len(planned[0])


@pytest.mark.parametrize(("engines", "tensor", "per_node"), [(1, 1, 8), (2, 2, 2), (3, 1, 4), (4, 4, 4)], ids=str)
@pytest.mark.parametrize("shared_memory", [False, True])
def test_publication_agrees_with_the_plans_of_all_ranks(
    engines: int, tensor: int, per_node: int, shared_memory: bool
) -> None:
    # Large enough for replicas to share.
    shape = make_shape(num_layers=4, hidden_size=1024, ffn_size=2048, head_dim=64, vocab_size=1000)
    grid = RankGrid(tensor=2, pipeline=4, data=2)
    topology = pack_nodes(grid=grid, engines=engines, tensor=tensor, gpus_per_node=per_node)
    found = plan_publication(shape, topology, itemsize=2, bucket_bytes=1 << 20, shared_memory=shared_memory)
    boxes = [engine_boxes(shape, tensor_rank=rank, tensor_size=tensor) for rank in range(tensor)]
    request = PlanRequest(
        wanted=WantedBoxes(boxes), topology=topology, itemsize=2, bucket_bytes=1 << 20, fanout=found.fanout
    )
    assert shared_memory or found.fanout == found.fastest["NVLink + InfiniBand"]
    layout = TrainerLayout(shape=shape, grid=grid)
    trainers = [plan_trainer(request, layout.held_by(rank), rank=rank) for rank in range(grid.world_size)]
    sent = [plan.bytes_sent for plan in trainers]
    assert found.sent_mean_bytes == sum(sent) / len(sent)
    blocks = max(len(plan.blocks) for plan in trainers)
    assert max(sent) - 2 * blocks <= found.sent_max_bytes <= max(sent)  # an element a block is rounding
    workers = [plan_worker(request, layout, boxes, taker) for taker in range(topology.num_takers)]
    received = [plan.bytes_received for plan in workers]
    assert found.received_max_bytes == max(received)
    assert found.received_mean_bytes == sum(received) / len(received)
    assert found.received_over_bound == max(plan.received_over_bound for plan in workers) == 1.0
    assert found.model_bytes == 2 * sum(box.num_elements for box in engine_boxes(shape, tensor_rank=0, tensor_size=1))


def plan_worker(request: PlanRequest, layout: TrainerLayout, boxes: list[Any], taker: int) -> Any:
    targets = {
        box: (Region(box.tensor, 0, contiguous_strides(box.shape)),) for box in boxes[taker % request.topology.tensor]
    }
    return plan_taker(request, layout.holdings(), targets, taker=taker)


def test_a_cluster_of_sixteen_thousand_gpus_takes_seconds() -> None:
    started_s = time.process_time()
    train = ["train.prompts_per_step=448", "train.mini_batch_responses=896"]
    layout = {"gpus": 16128, "tensor": 8, "pipeline": 9, "engines": 64, "rollout_tensor": 8}
    plan = plan_of("llama-3.1-405b", *train, gib=141, **layout)
    assert time.process_time() - started_s < 3
    assert plan.layout.data == 224
    assert plan.rollout_fits


@pytest.mark.parametrize(
    ("name", "more", "options", "largest"),
    [
        ("llama-3.1-405b", [], {}, "optimizer"),
        ("qwen2.5-32b", ["policy.tokens_per_micro_batch=2048"], {"gpus": 64, "tensor": 2}, "gradients"),
        ("qwen2.5-32b", ["rollout.max_response_tokens=16384"], {"gpus": 64, "tensor": 8}, "activations"),
    ],
)
def test_what_does_not_fit_names_its_largest_part_and_changes_that_do(
    name: str, more: list[str], options: dict[str, int], largest: str
) -> None:
    plan = plan_of(name, *more, **options)
    assert not plan.policy_fits
    assert f"most of it {largest} (" in plan.warnings[0]
    assert plan.fit is not None
    path = str(CONFIGS / f"{name}.json")
    given = [argument for option in options for argument in (f"--{option}", str(options[option]))]
    changes = [word for argument in plan.fit.arguments for word in argument.split()]
    done = run_plan(path, *more, *given, *changes, "--json")
    assert done.stderr == ""
    changed = json.loads(done.stdout)
    assert changed["policy_fits"]
    assert done.returncode == (not changed["rollout_fits"])
    assert max(stage["total"] for stage in changed["policy"]) == plan.fit.total_bytes
    assert "! the policy does not fit: stage" in printed(plan, width=400)


def test_an_engine_that_does_not_fit_is_told_its_size() -> None:
    plan = plan_of("llama-3-70b")
    assert plan.rollout.kv_cache < 0
    assert plan.warnings[-1].endswith("use --rollout-tensor 4")
    assert plan_of("llama-3-70b", rollout_tensor=4).rollout_fits
    staged = plan_of("llama-3-8b", "rollout.publish.staging=device")
    assert staged.rollout.staging == staged.rollout.weights
    assert not staged.rollout_fits
    assert "rollout.publish.staging=host" in staged.warnings[-1]
    assert plan_of("llama-3-8b", "rollout.publish.staging=device", "rollout.memory_fraction=0.7").rollout_fits


def test_overrides_that_change_memory() -> None:
    plain = plan_of("llama-3-8b", gpus=2)
    quantised = plan_of("llama-3-8b", "rollout.vllm_overrides={kv_cache_dtype = 'fp8_e4m3'}")
    assert quantised.rollout.kv_bytes_per_token * 2 == plain.rollout.kv_bytes_per_token
    with_reference = plan_of("llama-3-8b", "objective.auxiliary.kl={}", gpus=2)
    assert with_reference.worst.reference == plain.worst.weights
    delta = plan_of("llama-3-8b", "rollout.publish.delta=true", gpus=2)
    assert delta.worst.publication - plain.worst.publication == plain.publication.sent_max_bytes


def test_a_configuration_is_planned_as_it_is(tmp_path: Path) -> None:
    shutil.copy(CONFIGS / "qwen2.5-32b.json", tmp_path / "config.json")
    path = f"model.path={tmp_path}"
    plan = make_plan(load_planned(PAPER, [path], PlanOptions()), gpu_memory_gib=80)
    config = load_config(PAPER, [path])
    assert plan.layout.policy_gpus == config.parallel.world_size
    assert plan.layout.nodes <= config.cluster.nodes
    # A model's directory, its config.json and a file of another name are the same model.
    models = (tmp_path, tmp_path / "config.json", CONFIGS / "qwen2.5-32b.json")
    plans = [make_plan(load_planned(model, (), PlanOptions()), gpu_memory_gib=80) for model in models]
    assert {plan.policy for plan in plans} == {plans[0].policy}
    assert plans[0].model == str(tmp_path)


# A fresh clone has no models.


@pytest.mark.parametrize("path", sorted(PAPER.parent.glob("*.toml")), ids=lambda path: path.stem)
def test_every_paper_is_planned_without_its_model(path: Path) -> None:
    planned = load_planned(path, (), PlanOptions())
    assert planned.shape_file == CONFIGS / f"{Path(planned.config.model.path).name.lower()}.json"
    plan = make_plan(planned, gpu_memory_gib=80)
    assert plan.warnings == ()
    line = printed(plan, width=300).splitlines()[1]
    assert line.startswith(f"{planned.config.model.path} is not here: planned from ")
    assert line.endswith(planned.shape_file.name)


def test_a_model_that_is_there_is_read_itself(tmp_path: Path) -> None:
    content = json.loads((CONFIGS / "qwen2.5-32b.json").read_text(encoding="utf-8"))
    model = tmp_path / "Qwen2.5-32B"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(content | {"num_hidden_layers": 60}))
    planned = load_planned(PAPER, [f"model.path={model}"], PlanOptions())
    assert (planned.shape_file, planned.shape.num_layers) == (None, 60)
    # A shape file may be the model of a configuration too, and an override of CONFIG's own.
    for path in (PAPER, CONFIGS / "llama-3-8b.json"):
        override = f"model.path={CONFIGS / 'qwen2.5-32b.json'}"
        planned = load_planned(path, [override, "parallel.sequence=false"], PlanOptions(gpus=64, tensor=8))
        assert (planned.shape_file, planned.shape.num_layers) == (None, 64)


def test_the_exit_code_says_whether_it_fits() -> None:
    model = str(CONFIGS / "llama-3-8b.json")
    fits, policy = run_plan(model, "--gpus", "8", "--tensor", "4"), run_plan(model, "--json")
    engine = run_plan(model, "--gpus", "8", "--tensor", "4", "rollout.memory_fraction=0.1", "--json")
    assert [done.returncode for done in (fits, policy, engine)] == [0, 1, 1]
    assert not json.loads(policy.stdout)["policy_fits"]
    assert json.loads(engine.stdout)["policy_fits"]
    assert not json.loads(engine.stdout)["rollout_fits"]


# What was typed counts.


def test_a_typed_number_of_nodes_is_kept() -> None:
    model = CONFIGS / "llama-3-8b.json"
    assert load_planned(model, ["cluster.nodes=3"], PlanOptions(gpus=8, tensor=4)).config.cluster.nodes == 3
    assert load_planned(model, [], PlanOptions(gpus=8, tensor=4)).config.cluster.nodes == 2
    (problem,) = problems_of(model, "cluster.nodes=1", gpus=8, tensor=4)
    assert "need 9 GPUs, cluster.nodes x gpus_per_node = 8" in problem


def test_an_option_and_an_override_that_disagree() -> None:
    model = CONFIGS / "llama-3-8b.json"
    assert problems_of(model, "parallel.tensor=4", "rollout.engines=1", gpus=8, tensor=2, engines=2) == (
        "--tensor 2 and 'parallel.tensor=4' both set parallel.tensor; leave out one of them",
        "--engines 2 and 'rollout.engines=1' both set rollout.engines; leave out one of them",
    )
    assert load_planned(model, ["parallel.tensor = 4"], PlanOptions(gpus=8, tensor=4)).grid.tensor == 4


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["qwen2.5-7b", "qwen2.5-32b", "llama-3-70b", "smollm2-135m"]),
    gib=st.sampled_from([8, 16, 40, 80]),
    layout=st.tuples(st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 3, 4])),
    nodes=st.booleans(),
    more=st.lists(
        st.sampled_from(
            [
                "sft={steps = 1, batch_examples = 24}",
                "rollout.publish.transport=shared_memory",
                "policy.recompute=full",
                "train.mini_batch_responses=384",
                "cluster.gpus_per_node=6",
            ]
        ),
        unique=True,
    ),
)
def test_every_change_that_is_advised_works(name, gib, layout, nodes, more) -> None:
    tensor, pipeline, data = layout
    more = [*more, "train.prompts_per_step=528", *(["cluster.nodes=9"] if nodes else [])]
    options = {"gpus": tensor * pipeline * data, "tensor": tensor, "pipeline": pipeline}
    try:
        plan = plan_of(name, *more, gib=gib, **options)
    except ConfigError:
        return
    if plan.fit is None:
        return
    changes = [word for argument in plan.fit.arguments for word in argument.split()]
    flags = {"--gpus": "gpus", "--tensor": "tensor", "--pipeline": "pipeline"}
    for flag, option in flags.items():
        if flag in changes:
            at = changes.index(flag)
            options[option] = int(changes[at + 1])
            del changes[at : at + 2]
    assert plan_of(name, *more, *changes, gib=gib, **options).policy_fits


def test_json_is_what_was_planned() -> None:
    arguments = ["--gpus", "16", "--tensor", "2", "--pipeline", "2", "--engines", "2", "--rollout-tensor", "2"]
    path = CONFIGS / "qwen2.5-7b.json"
    done = run_plan(str(path), "policy.recompute=full", *arguments, "--gpu-memory-gib", "40", "--json")
    assert done.returncode == 0, done.stderr
    options: dict[str, int] = {"gpus": 16, "tensor": 2, "pipeline": 2, "engines": 2, "rollout_tensor": 2}
    plan = plan_of("qwen2.5-7b", "policy.recompute=full", gib=40, **options)
    expected = json.loads(json.dumps(plan.as_dict())) | {"model": str(path)}
    assert json.loads(done.stdout) == expected
    assert expected["gpu_memory_bytes"] == 40 * GIB
    assert expected["policy"][0]["total"] == plan.policy[0].total


# What is refused.


def test_every_problem_of_a_layout_at_once(tmp_path: Path) -> None:
    shutil.copy(CONFIGS / "qwen2.5-7b.json", tmp_path / "config.json")
    problems = problems_of(
        tmp_path, "rollout.max_response_tokens=40000", gpus=24, tensor=8, pipeline=3, rollout_tensor=8
    )
    assert len(problems) == 4
    for part in ("parallel.tensor 8", "parallel.pipeline 3", "rollout.tensor 8", "max_response_tokens 40000"):
        assert any(part in problem for problem in problems), part


def test_options_are_named_as_typed() -> None:
    problems = problems_of(CONFIGS / "qwen2.5-7b.json", "train.mini_batch_responses=30", gpus=20, tensor=8)
    assert problems == (
        "parallel.world_size 20 is not a multiple of tensor 8 x pipeline 1 = 8; change one of the three "
        "[--gpus 20, --tensor 8]",
        "train.prompts_per_step 512 x samples_per_prompt 8 = 4096 responses are not a multiple of "
        "mini_batch_responses 30 [override 'train.mini_batch_responses=30']",
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"gpus": 12, "tensor": 4, "gpus_per_node": 6}, "policy ranks 4 to 7 are one tensor-parallel group and lie on"),
        ({"gpus": 16, "tensor": 4, "rollout_tensor": 16}, "an engine lives on one node"),
        ({"gpus": 4, "rollout_tensor": 5, "gpus_per_node": 10}, "rollout.tensor 5 does not split the model"),
    ],
)
def test_impossible_placements(options: dict[str, int], problem: str) -> None:
    train = ["train.prompts_per_step=6", "train.mini_batch_responses=48"]
    problems = problems_of(CONFIGS / "llama-3-8b.json", *train, **options)
    assert any(problem in found for found in problems), problems


def test_a_vocabulary_that_engines_cannot_split(tmp_path: Path) -> None:
    """28 heads over 7 workers, but 152064 rows are no multiple of 7."""
    content = json.loads((CONFIGS / "qwen2.5-7b.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(content | {"num_key_value_heads": 7, "intermediate_size": 7000}))
    (problem,) = problems_of(tmp_path, rollout_tensor=7)
    assert problem == (
        "rollout.tensor 7 does not split the model: 152064 rows of the padded vocabulary are not a multiple of it; "
        "use 1"
    )


def test_engines_that_the_cluster_of_the_file_cannot_hold(tmp_path: Path) -> None:
    shutil.copy(CONFIGS / "llama-3-8b.json", tmp_path / "config.json")
    text = SMALL.replace("models/tiny", str(tmp_path)) + "[cluster]\nnodes = 2\n[parallel]\nworld_size = 4\n"
    text += '[rollout]\ntensor = 8\npublish = { transport = "network" }\n'
    path = write_config(tmp_path, text)
    assert load_planned(path, (), PlanOptions()).topology.taker_nodes[0] == 1
    (problem,) = problems_of(path, "cluster.nodes=1")
    assert "need 12 GPUs, cluster.nodes x gpus_per_node = 8" in problem
    (problem,) = problems_of(path, "rollout.engines=1", "rollout.tensor=8", "parallel.world_size=8", "cluster.nodes=1")
    assert "need 16 GPUs" in problem
    (problem,) = problems_of(
        path, "parallel.world_size=4", "rollout.engines=2", "rollout.tensor=4", "cluster.gpus_per_node=6"
    )
    assert "policy and engines take 3 nodes of 6 GPUs" in problem
    # An option means as many nodes as it takes.
    planned = load_planned(path, (), PlanOptions(engines=5))
    assert planned.config.cluster.nodes == 6


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Qwen/Qwen2.5-14B", "hf download Qwen/Qwen2.5-14B config.json --local-dir models/Qwen2.5-14B"),
        ("models/not-there", "only the model's config.json is needed"),
    ],
)
def test_a_model_that_is_not_there(tmp_path: Path, name: str, problem: str) -> None:
    assert problem in problems_of(write_config(tmp_path), f"model.path={name}")[0]


def test_a_model_that_is_no_model(tmp_path: Path) -> None:
    assert f"found no {tmp_path / 'config.json'}" in problems_of(tmp_path)[0]
    (tmp_path / "config.json").write_text("{")
    assert "not readable JSON" in problems_of(tmp_path)[0]
    content = json.loads((CONFIGS / "llama-3-8b.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(content | {"model_type": "mamba"}))
    assert 'expected model_type "llama"' in problems_of(tmp_path)[0]
    assert "no such file" in problems_of(tmp_path / "nothing.toml")[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--tenzor", "2"], "--tensor"),
        (["--gpu", "2"], "--gpus"),
        (["parallel.tensr=2"], "did you mean parallel.tensor?"),
        (["tensor=2"], "did you mean parallel.tensor or rollout.tensor?"),
        (["parallel.tensor=two"], "parallel.tensor: expected an integer >= 1"),
    ],
)
def test_typos_get_a_suggestion(arguments: list[str], expected: str) -> None:
    done = run_plan(str(CONFIGS / "llama-3-8b.json"), *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


# What is printed.


@pytest.mark.parametrize("width", [60, 80, 200])
def test_tables_line_up(width: int) -> None:
    text = printed(plan_of("qwen2.5-72b", **LAYOUTS["qwen2.5-72b"]), width=width)
    assert "…" not in text
    lines = text.splitlines()
    assert sum("───" in line for line in lines) == 6
    start = next(index for index, line in enumerate(lines) if line.startswith("Memory of a policy GPU"))
    rows = [line for line in lines[start:] if line.startswith((" weights", " gradients", " optimizer", " total"))][:4]
    points = [[index for index, letter in enumerate(row) if letter == "."] for row in rows]
    assert len({tuple(found[:3]) for found in points}) == 1


def test_help_has_examples() -> None:
    done = run_plan("--help")
    assert done.returncode == 0
    assert "megarl plan " in done.stdout.partition("Examples")[2]


def test_nothing_that_runs_is_imported() -> None:
    code = (
        "import sys, megarl.cli.main as m\n"
        f"sys.argv = ['megarl', 'plan', {str(CONFIGS / 'smollm2-135m.json')!r}]\n"
        "try:\n    m.main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'vllm', 'megatron', 'ray', 'transformers', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_nodes_are_those_of_the_packing() -> None:
    topology: Topology = load_planned(CONFIGS / "llama-3-8b.json", (), PlanOptions(gpus=4, engines=3)).topology
    assert topology.trainer_nodes == [0] * 4
    assert topology.taker_nodes == [0] * 3
