"""`megarl plan`: what fits and what is advised, what is refused, and what is printed."""

import json
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from megarl.cli.plan import PlanReport, arguments_of, make_plan
from megarl.cli.plan_config import PlanOptions, load_planned
from megarl.cli.plan_tables import print_plan
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from megarl.planning.engine_memory import GIB
from tests.config.text import SMALL, write_config
from tests.models.shapes import CONFIGS
from tests.planning.plans import plan_of

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


def report_of(name: str, *overrides: str, gib: float = 80, **options: int) -> PlanReport:
    return make_plan(load_planned(CONFIGS / f"{name}.json", overrides, PlanOptions(**options)), gpu_memory_gib=gib)


def problems_of(path: Path, *overrides: str, **options: int) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        load_planned(path, overrides, PlanOptions(**options))
    return error.value.problems


def printed(report: PlanReport, *, width: int = 100) -> str:
    file = StringIO()
    print_plan(Console(file=file, width=width), report)
    return file.getvalue()


@pytest.mark.parametrize("name", LAYOUTS)
def test_usual_layouts_of_real_models_fit(name: str) -> None:
    report = report_of(name, "parallel.sequence=true", **LAYOUTS[name])
    plan = report.plan
    assert report.warnings == ()
    assert plan.publication.received_over_bound == 1.0
    assert plan.publication.received_max_bytes >= plan.publication.model_bytes / plan.layout.engine_tensor
    text = printed(report)
    assert "…" not in text
    assert "✓ fits" in text


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
    report = report_of(name, *more, **options)
    plan = report.plan
    assert not plan.policy_fits
    assert f"most of it {largest} (" in report.warnings[0]
    assert plan.fit is not None
    path = str(CONFIGS / f"{name}.json")
    given = [argument for option in options for argument in (f"--{option}", str(options[option]))]
    changes = [word for argument in arguments_of(plan.fit.changes) for word in argument.split()]
    done = run_plan(path, *more, *given, *changes, "--json")
    assert done.stderr == ""
    changed = json.loads(done.stdout)
    assert changed["policy_fits"]
    assert done.returncode == (not changed["rollout_fits"])
    assert max(stage["total"] for stage in changed["policy"]) == plan.fit.total_bytes
    assert "! the policy does not fit: stage" in printed(report, width=400)


def test_an_engine_that_does_not_fit_is_told_its_size() -> None:
    report = report_of("llama-3-70b")
    assert report.plan.rollout.kv_cache < 0
    assert report.warnings[-1].endswith("use --rollout-tensor 4")
    assert plan_of("llama-3-70b", rollout_tensor=4).rollout_fits
    report = report_of("llama-3-8b", "rollout.publish.staging=device")
    staged = report.plan
    assert staged.rollout.staging == staged.rollout.weights
    assert not staged.rollout_fits
    assert "rollout.publish.staging=host" in report.warnings[-1]
    assert plan_of("llama-3-8b", "rollout.publish.staging=device", "rollout.memory_fraction=0.7").rollout_fits


def test_a_configuration_is_planned_as_it_is(tmp_path: Path) -> None:
    shutil.copy(CONFIGS / "qwen2.5-32b.json", tmp_path / "config.json")
    path = f"model.path={tmp_path}"
    plan = make_plan(load_planned(PAPER, [path], PlanOptions()), gpu_memory_gib=80).plan
    config = load_config(PAPER, [path])
    assert plan.layout.policy_gpus == config.parallel.world_size
    assert plan.layout.nodes <= config.cluster.nodes
    # A model's directory, its config.json and a file of another name are the same model.
    models = (tmp_path, tmp_path / "config.json", CONFIGS / "qwen2.5-32b.json")
    reports = [make_plan(load_planned(model, (), PlanOptions()), gpu_memory_gib=80) for model in models]
    assert {report.plan.policy for report in reports} == {reports[0].plan.policy}
    assert reports[0].model == str(tmp_path)


# A fresh clone has no models.


@pytest.mark.parametrize("path", sorted(PAPER.parent.glob("*.toml")), ids=lambda path: path.stem)
def test_every_paper_is_planned_without_its_model(path: Path) -> None:
    planned = load_planned(path, (), PlanOptions())
    assert planned.shape_file == CONFIGS / f"{Path(planned.config.model.path).name.lower()}.json"
    report = make_plan(planned, gpu_memory_gib=80)
    assert report.warnings == ()
    line = printed(report, width=300).splitlines()[1]
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
    assert load_planned(model, ["parallel.tensor = 4"], PlanOptions(gpus=8, tensor=4)).config.parallel.tensor == 4


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
    changes = [word for argument in arguments_of(plan.fit.changes) for word in argument.split()]
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
    report = report_of("qwen2.5-7b", "policy.recompute=full", gib=40, **options)
    expected = json.loads(json.dumps(report.as_dict())) | {"model": str(path)}
    assert json.loads(done.stdout) == expected
    assert expected["gpu_memory_bytes"] == 40 * GIB
    assert expected["policy"][0]["total"] == report.plan.policy[0].total


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
        ({"gpus": 8, "tensor": 8, "gpus_per_node": 4}, "parallel.tensor 8 is larger than cluster.gpus_per_node 4"),
        ({"gpus": 16, "tensor": 4, "rollout_tensor": 16}, "an engine lives on one node"),
        ({"gpus": 4, "rollout_tensor": 5, "gpus_per_node": 10}, "rollout.tensor 5 does not split the model"),
    ],
)
def test_impossible_placements(options: dict[str, int], problem: str) -> None:
    train = ["train.prompts_per_step=6", "train.mini_batch_responses=48"]
    problems = problems_of(CONFIGS / "llama-3-8b.json", *train, **options)
    assert any(problem in found for found in problems), problems


def test_groups_that_do_not_fill_a_node_leave_their_rest_to_engines() -> None:
    """Three groups of 4 on nodes of 6 GPUs, one each; engines of 2 take what is left."""
    options = PlanOptions(gpus=12, tensor=4, gpus_per_node=6, engines=3, rollout_tensor=2)
    train = ["train.prompts_per_step=6", "train.mini_batch_responses=48"]
    planned = load_planned(CONFIGS / "llama-3-8b.json", train, options)
    assert planned.placed.topology.policy_nodes == [0] * 4 + [1] * 4 + [2] * 4
    assert planned.placed.topology.worker_nodes == [0, 0, 1, 1, 2, 2]
    assert planned.config.cluster.nodes == 3


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
    assert load_planned(path, (), PlanOptions()).placed.topology.worker_nodes[0] == 1
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
    text = printed(report_of("qwen2.5-72b", **LAYOUTS["qwen2.5-72b"]), width=width)
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
        "heavy = {'torch', 'vllm', 'megatron', 'ray', 'transformers', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
