"""[eval]: tables under names of the user's choice, their defaults, and what is refused, with its place."""

from pathlib import Path

import pytest

from megarl.config.base import ConfigError
from megarl.config.changes import find_changes
from megarl.config.data import ReasoningGymData
from megarl.config.dump import dump_config
from megarl.config.evaluation import BenchmarkFile
from megarl.config.loader import load_config
from megarl.config.run import RunConfig
from megarl.config.warnings import find_warnings
from tests.config.text import SMALL, problems_of, write_config

FRAGMENT = Path(__file__).parents[2] / "configs" / "benchmarks" / "math.toml"
TEXT = f"""{SMALL}
[eval]
every_steps = 5
[eval.benchmarks.gsm8k]
data = {{ source = "file", path = "test.jsonl", layout = "gsm8k" }}
[eval.benchmarks.math-500]
samples = 16
data = {{ source = "file", path = "math", layout = "prompt_answer", columns = {{ prompt = "problem" }} }}
[eval.benchmarks.sums]
data = {{ source = "reasoning_gym", task = "chain_sum", seed = 9 }}
"""


def load(directory: Path, *overrides: str) -> RunConfig:
    return load_config(write_config(directory, TEXT), overrides)


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert (config.eval.temperature, config.eval.top_p, config.eval_tokens) == (1.0, 0.95, 1024)
    kinds = {name: benchmark.judge.kind for name, benchmark in config.eval.benchmarks.items()}
    assert kinds == {"gsm8k": "gsm8k", "math-500": "math_verify", "sums": "reasoning_gym"}
    samples = {name: config.eval.samples_of(benchmark) for name, benchmark in config.eval.benchmarks.items()}
    assert samples == {"gsm8k": 8, "math-500": 16, "sums": 8}
    data = config.eval.benchmarks["gsm8k"].data
    assert isinstance(data, BenchmarkFile)
    assert data.split == "test"


def test_overrides_reach_one_benchmark(tmp_path: Path) -> None:
    benchmarks = load(
        tmp_path,
        "eval.benchmarks.gsm8k.samples=2",
        "eval.benchmarks.math-500=false",
        "eval.benchmarks.sums.data.size=7",
    ).eval.benchmarks
    assert list(benchmarks) == ["gsm8k", "sums"]
    assert benchmarks["gsm8k"].samples == 2
    assert isinstance(benchmarks["sums"].data, ReasoningGymData)
    assert (benchmarks["sums"].data.size, benchmarks["sums"].data.seed) == (7, 9)


def test_another_source_replaces_what_the_file_said(tmp_path: Path) -> None:
    data = (
        load(tmp_path, "eval.benchmarks.gsm8k.data={source = 'reasoning_gym', task = 'chain_sum'}")
        .eval.benchmarks["gsm8k"]
        .data
    )
    assert data == ReasoningGymData(task="chain_sum")
    fragment = tmp_path / "f.toml"
    fragment.write_text('[eval.benchmarks.sums.data]\nsource = "file"\npath = "x.jsonl"\nlayout = "gsm8k"\n')
    found = load(tmp_path, str(fragment)).eval.benchmarks["sums"].data
    assert found == BenchmarkFile(source="file", path="x.jsonl", layout="gsm8k")


def test_it_is_written_as_it_is_read(tmp_path: Path) -> None:
    config = load(tmp_path, "eval.benchmarks.gsm8k.verifier.kind=math_verify")
    text = dump_config(config)
    assert "[eval.benchmarks.math-500.data]" in text
    assert load_config(write_config(tmp_path, text)) == config
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_the_ready_benchmarks_load(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), [str(FRAGMENT)])
    assert list(config.eval.benchmarks) == ["gsm8k", "math500", "amc23", "aime24", "aime25"]
    samples = [config.eval.samples_of(benchmark) for benchmark in config.eval.benchmarks.values()]
    assert samples == [8, 32, 32, 32, 32]
    judges = [benchmark.judge.kind for benchmark in config.eval.benchmarks.values()]
    assert judges == ["gsm8k", *["math_verify"] * 4]
    splits = {
        name: one.data.split for name, one in config.eval.benchmarks.items() if isinstance(one.data, BenchmarkFile)
    }
    assert splits == {name: "train" if name == "aime24" else "test" for name in config.eval.benchmarks}


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("eval.benchmarks.gsm8k.sample=2", "eval.benchmarks.gsm8k.sample: unknown key; did you mean "
         "eval.benchmarks.gsm8k.samples?"),
        ("eval.benchmarks.gsm8k.samples=0", "eval.benchmarks.gsm8k.samples: expected an integer >= 1"),
        ("eval.benchmarks.new.samples=2", "eval.benchmarks.new.data: missing"),
        ("eval.benchmarks.gsm8k.data.layout=mine",
         'eval.benchmarks.gsm8k.data.layout: expected one of "gsm8k", "dapo_math", "prompt_answer", found "mine"'),
        ("eval.benchmarks.gsm8k.data.columns={prompt = 'x'}",
         'eval.benchmarks.gsm8k.data.columns: "prompt" is no column of layout "gsm8k"'),
        ("eval.benchmarks.gsm8k.verifier.kind=random", "eval.benchmarks.gsm8k.verifier.kind: expected one of"),
        ("eval.benchmarks.gsm8k.verifier.kind=reasoning_gym",
         'eval.benchmarks.gsm8k.verifier.kind = "reasoning_gym" judges only data.source = "reasoning_gym"'),
        ("eval.benchmarks={}", "eval.every_steps 5 evaluates a run, but there is no benchmark"),
        ("eval.benchmarks={'a b' = {data = {source = 'reasoning_gym', task = 'x'}}}",
         "eval.benchmarks: expected names of letters"),
        ("eval.max_tokens=2000", "eval.max_tokens 2000 is above rollout.max_response_tokens 1024"),
        ("eval.benchmarks.gsm8k=3", "eval.benchmarks.gsm8k: expected a table"),
    ],
)  # fmt: skip
def test_what_is_refused_names_the_benchmark(tmp_path: Path, override: str, problem: str) -> None:
    found = problems_of(write_config(tmp_path, TEXT), override)
    assert len(found) == 1
    assert found[0].startswith(problem), found


def test_an_evaluation_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    other = load(tmp_path, "eval.benchmarks.gsm8k.samples=2", "eval.benchmarks.sums=false", "eval.top_p=1.0")
    changes = find_changes(load(tmp_path), other)
    assert {change.path: change.effect for change in changes} == {
        "eval.top_p": "none",
        "eval.benchmarks.gsm8k.samples": "none",
        "eval.benchmarks.sums": "none",
    }
    assert str(changes[-1]).endswith("-> (absent)")


def test_benchmarks_that_ask_training_problems_are_warned_of(tmp_path: Path) -> None:
    """data.train: 10,000 problems from seed 0 on."""
    (warning,) = find_warnings(load(tmp_path))
    assert warning.startswith("eval.benchmarks.sums.data: 9991 of its 10000 problems are among those of data.train")
    assert find_warnings(load(tmp_path, "eval.benchmarks.sums.data.seed=10000")) == []
    assert find_warnings(load(tmp_path, "eval.benchmarks.sums.data.options={min_terms = 3}")) == []


def test_a_message_of_training_data_stays(tmp_path: Path) -> None:
    text = SMALL.replace('source = "reasoning_gym"\ntask = "chain_sum"', 'source = "file"\npath = ""\nlayout = "gsm8k"')
    text = text.replace('kind = "reasoning_gym"', 'kind = "gsm8k"')
    with pytest.raises(ConfigError, match=r"data\.train\.path: expected a path"):
        load_config(write_config(tmp_path, text))
