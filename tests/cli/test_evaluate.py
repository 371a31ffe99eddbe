"""`megarl eval`: which weights a path means, which configuration is theirs, what is refused before engines start."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megarl.cli.benchmarks import load_benchmarks
from megarl.cli.evaluated_model import check_evaluation, find_evaluated, load_evaluation
from megarl.cli.evaluated_weights import engines_alone
from megarl.cli.evaluation_base import find_base
from megarl.cli.inputs import load_text_inputs
from megarl.cli.main import app
from megarl.cli.train_checks import find_train_problems
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from megarl.config.run import RunConfig
from megarl.planning.placement import plan_placement
from megarl.planning.resources import Node, Workers
from megarl.telemetry.run_directory import RunDirectory
from tests.config.text import SMALL, write_config
from tests.evaluation.answers import write_answers

BENCHMARK = """
[eval.benchmarks.sums]
samples = 2
data = { source = "reasoning_gym", task = "chain_sum", size = 3, seed = 20000 }
"""


def make_run(directory: Path, model: Path, *exports: int) -> RunDirectory:
    path = write_config(directory, SMALL.replace("models/tiny", str(model)) + BENCHMARK)
    config = load_config(path, [f"logging.directory={directory / 'runs'}"])
    run = RunDirectory.create(config, source=None, verb="train")
    for step in exports:
        shutil.copytree(model, run.exports / f"step-{step:06d}")
    return run


def test_a_run_is_its_newest_export_under_its_own_configuration(tmp_path: Path, tiny_model_dir: Path) -> None:
    run = make_run(tmp_path, tiny_model_dir, 2, 10)
    found = find_evaluated(run.path)
    assert (found.path, found.is_dist) == (run.exports / "step-000010", False)
    config = load_evaluation(found, None, ["eval.samples=4"])
    assert (config.model.path, config.eval.samples) == (str(found.path), 4)
    named = find_evaluated(run.exports / "step-000002")
    assert (named.path, named.run) == (run.exports / "step-000002", run)
    # What has no name of a run is a fragment.
    fragment = tmp_path / "more.toml"
    fragment.write_text('[eval.benchmarks.more]\ndata = { source = "reasoning_gym", task = "chain_sum" }\n')
    assert list(load_evaluation(found, fragment, []).eval.benchmarks) == ["sums", "more"]
    check_evaluation(config, found)


def test_a_model_of_no_run_needs_a_configuration(tmp_path: Path, tiny_model_dir: Path) -> None:
    found = find_evaluated(tiny_model_dir)
    assert (found.run, found.is_dist) == (None, False)
    with pytest.raises(ConfigError, match="name a CONFIG"):
        load_evaluation(found, None, [])
    with pytest.raises(ConfigError, match="there is no benchmark"):
        load_evaluation(found, write_config(tmp_path), [])


def test_what_is_no_model_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"megarl eval .*absent: expected a checkpoint's directory"):
        find_evaluated(tmp_path / "absent")
    run = make_run(tmp_path, tiny_model_dir)
    with pytest.raises(ConfigError, match="has exported no weights yet; they are written after its last step"):
        find_evaluated(run.path)
    (run.checkpoints / "step-000004").mkdir()
    with pytest.raises(ConfigError, match=r"name one of its checkpoints, e\.g\. .*step-000004"):
        find_evaluated(run.path)
    (run.checkpoints / "step-000004" / ".metadata").write_bytes(b"x")
    with pytest.raises(ConfigError):
        find_evaluated(run.checkpoints / "step-000004")


def config_with(directory: Path, model: Path, benchmarks: str) -> RunConfig:
    return load_config(write_config(directory, SMALL.replace("models/tiny", str(model)) + benchmarks))


def test_all_that_is_wrong_with_files_is_told_at_once(tmp_path: Path, tiny_model_dir: Path) -> None:
    text = "".join(
        f'[eval.benchmarks.{name}]\ndata = {{ source = "file", path = "{tmp_path}/{name}.jsonl", layout = "gsm8k" }}\n'
        for name in ("one", "two")
    )
    config = config_with(tmp_path, tiny_model_dir, text)
    with pytest.raises(ConfigError) as caught:
        check_evaluation(config, find_evaluated(tiny_model_dir))
    assert [problem.partition(" ")[0] for problem in caught.value.problems] == [
        "eval.benchmarks.one.data.path",
        "eval.benchmarks.two.data.path",
    ]
    # A run looks at them where it is evaluated, and not otherwise.
    assert list(find_train_problems(config)) == []
    every = config.model_copy(update={"eval": config.eval.model_copy(update={"every_steps": 1})})
    assert len(list(find_train_problems(every, begins=False))) == 2


def of_file(path: Path, layout: str, *lines: str) -> str:
    """A benchmark, and its file."""
    path.write_text("".join(f"{line}\n" for line in lines))
    data = f'data = {{ source = "file", path = "{path}", layout = "{layout}" }}'
    return f'[eval.benchmarks.{path.stem}]\ninstruction = "Say it."\n{data}\n'


def test_benchmarks_are_read_with_their_own_instruction(tmp_path: Path, tiny_model_dir: Path) -> None:
    text = of_file(tmp_path / "one.jsonl", "gsm8k", *['{"question": "1 + 1?", "answer": "so #### 2"}'] * 2)
    config = config_with(tmp_path, tiny_model_dir, BENCHMARK + text)
    model = load_text_inputs(config)
    sums, one = load_benchmarks(config, model)
    assert (sums.name, len(sums.prompts), len(one.prompts)) == ("sums", 3, 2)
    assert "Say it." in one.prompts[0].text
    assert "Say it." not in sums.prompts[0].text
    assert one.prompts[0].answer == "2"
    other = config_with(tmp_path, tiny_model_dir, BENCHMARK + text.replace("Say it.", "Now."))
    assert load_benchmarks(other, model)[1].digest != one.digest


def test_a_benchmark_loses_none_of_its_problems(tmp_path: Path, tiny_model_dir: Path) -> None:
    """What training would leave out or cut is an error here, of each benchmark at once."""
    text = of_file(tmp_path / "one.jsonl", "gsm8k", '{"question": "1?", "answer": "one"}')
    text += of_file(tmp_path / "two.jsonl", "prompt_answer", '{"prompt": "1?", "answer": "\\\\frac{"}')
    config = config_with(tmp_path, tiny_model_dir, BENCHMARK + text)
    reward = config.reward.model_copy(update={"unreadable_answers": "drop"})
    data = config.data.model_copy(update={"overlong_prompts": "drop"})
    rollout = config.rollout.model_copy(update={"max_prompt_tokens": 40})
    config = config.model_copy(update={"reward": reward, "data": data, "rollout": rollout})
    with pytest.raises(ConfigError) as caught:
        load_benchmarks(config, load_text_inputs(config))
    named = [name for name in ("sums", "one", "two") for text in caught.value.problems if f"benchmarks.{name}" in text]
    assert {*named} >= {"one", "two"}
    assert all("eval.benchmarks." in text for text in caught.value.problems)


def test_a_base_was_asked_the_same_in_the_same_way(tmp_path: Path) -> None:
    mine = write_answers(tmp_path / "mine", ["x."], seed=1)
    (tmp_path / "base" / "eval").mkdir(parents=True)
    with pytest.raises(ConfigError, match="expected a directory that `megarl eval` made"):
        find_base(tmp_path / "base", [mine])
    write_answers(tmp_path / "base" / "eval", ["x."], seed=1, model="other")
    (found,) = find_base(tmp_path / "base", [mine]).compare([mine])
    assert found.differences["mean@2"].value == 0
    assert find_base(tmp_path / "base" / "eval", [mine]).directory == tmp_path / "base" / "eval"
    write_answers(tmp_path / "seeds", ["x."], seed=2)
    with pytest.raises(ConfigError, match="sums was asked with seed 2, not 1"):
        find_base(tmp_path / "seeds", [mine])
    more = write_answers(tmp_path / "mine", ["x."], name="more")
    with pytest.raises(ConfigError, match="it has no answers to more, or not all of them"):
        find_base(tmp_path / "base", [mine, more])
    (tmp_path / "run" / "eval" / "step-000004").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"name one of .*step-000004"):
        find_base(tmp_path / "run", [mine])


def test_answers_to_other_questions_are_left_alone(tmp_path: Path, tiny_model_dir: Path) -> None:
    """--run leads to an evaluation with another number of samples, and to what is none."""
    config = write_config(tmp_path, SMALL.replace("models/tiny", str(tiny_model_dir)) + BENCHMARK)
    loaded = load_config(config, [f"logging.directory={tmp_path / 'runs'}"])
    earlier = RunDirectory.create(loaded, source=None, verb="eval")
    assert not (tmp_path / "runs" / "latest").exists()
    write_answers(earlier.evaluations, ["xx", "x."], samples=7)
    before = earlier.config_path.read_text()
    result = CliRunner().invoke(app, ["eval", str(tiny_model_dir), str(config), "--run", str(earlier.path)])
    assert isinstance(result.exception, ConfigError)
    assert "has answers to other questions; begin a new evaluation (another --run)" in str(result.exception)
    assert "samples 7, not 2" in str(result.exception)
    assert earlier.config_path.read_text() == before
    trained = RunDirectory.create(loaded, source=None, verb="train")
    result = CliRunner().invoke(app, ["eval", str(tiny_model_dir), str(config), "--run", str(trained.path)])
    assert "it leads to a run of `megarl train`" in str(result.exception)


@pytest.mark.parametrize("colocate", ["true", "false"])
def test_engines_have_the_gpus_to_themselves(tmp_path: Path, colocate: str) -> None:
    config = load_config(
        write_config(tmp_path, SMALL + BENCHMARK),
        [
            "parallel.world_size=4",
            "parallel.tensor=2",
            "rollout.engines=2",
            "rollout.tensor=2",
            f"cluster.colocate={colocate}",
        ],
    )
    workers = Workers.of(engines_alone(config, stored=False), engines=2, on_gpu=True)
    assert workers.needs == {"CPU": 2.0, "GPU": 4.0}
    plan = plan_placement([Node("n0", {"CPU": 8.0, "GPU": 4.0})], workers)
    assert (plan.rank_nodes, plan.engine_nodes) == ((), (0, 0))


def test_an_override_with_a_path_needs_no_file_before_it(tmp_path: Path, tiny_model_dir: Path) -> None:
    """The run's own configuration is taken; what is refused then is said of the override."""
    run = make_run(tmp_path, tiny_model_dir, 2)
    result = CliRunner().invoke(app, ["eval", str(run.path), f"logging.directoy={tmp_path}/x"])
    assert "logging.directoy: unknown key; did you mean logging.directory?" in str(result.exception)
