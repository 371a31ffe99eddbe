"""Loading: values and overrides arrive as written, and every mistake is reported at once in the user's terms."""

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megarl.config.base import ConfigError
from megarl.config.loader import is_override, load_config
from megarl.config.run import RunConfig
from tests.config.text import SMALL, problems_of, write_config


def test_defaults_and_values(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    assert config.name == "small"
    assert config.train.mini_batch_responses == 8
    assert config.objective.gate.dual == math.inf
    assert config.train.updates_per_step == 2


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("objective.clip.high=inf", lambda c: c.objective.clip.high, math.inf),
        ("policy.optimizer.lr=5e-7", lambda c: c.policy.optimizer.lr, 5e-7),
        ("policy.optimizer.lr=1", lambda c: c.policy.optimizer.lr, 1.0),
        ("model.path=foo/bar", lambda c: c.model.path, "foo/bar"),
        ('name="2024"', lambda c: c.name, "2024"),
        ("train.seed = 7", lambda c: c.train.seed, 7),
        ("parallel.sequence=false", lambda c: c.parallel.sequence, False),
        ("data.train.options={min_terms = 2}", lambda c: c.data.train.options, {"min_terms": 2}),
        ("rollout.vllm_overrides.stages=[1, 2]", lambda c: c.rollout.vllm_overrides, {"stages": [1, 2]}),
        ('reward.verifier={kind="random", p=0.3}', lambda c: c.reward.verifier.p, 0.3),
        ("data.instruction=a=b", lambda c: c.data.instruction, "a=b"),
        ("data.instruction=1\nseed = 2", lambda c: c.data.instruction, "1\nseed = 2"),
    ],
)
def test_override(tmp_path: Path, override: str, read: Callable[[RunConfig], Any], expected: Any) -> None:
    value = read(load_config(write_config(tmp_path), [override]))
    assert value == expected
    assert type(value) is type(expected)


def test_later_override_wins(tmp_path: Path) -> None:
    assert load_config(write_config(tmp_path), ["train.steps=3", "train.steps=4"]).train.steps == 4


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.stepz=1", "train.stepz: unknown key; did you mean train.steps? [override 'train.stepz=1']"),
        ("tensor=2", "tensor: unknown key; did you mean parallel.tensor or rollout.tensor? [override 'tensor=2']"),
        (
            "model.lr=1",
            "model.lr: unknown key; did you mean policy.optimizer.lr or sft.optimizer.lr? [override 'model.lr=1']",
        ),
        (
            "objective.advantage.eps=1",
            'objective.advantage.eps: unknown key; it belongs to objective.advantage.method = "grpo" or '
            'objective.advantage.method = "quantile" or objective.advantage.method = "smoothed" '
            "[override 'objective.advantage.eps=1']",
        ),
        ("train.steps=1.5", "train.steps: expected an integer >= 1, found 1.5 (float) [override 'train.steps=1.5']"),
        ("train.steps=0", "train.steps: expected an integer >= 1, found 0 (integer) [override 'train.steps=0']"),
        ("train.seed=true", "train.seed: expected an integer >= 0, found true (boolean) [override 'train.seed=true']"),
        (
            "policy.recompute=all",
            'policy.recompute: expected one of "none", "selective", "full", found "all" (string) '
            "[override 'policy.recompute=all']",
        ),
        (
            "policy.optimizer.beta1=inf",
            "policy.optimizer.beta1: expected a finite number >= 0 and < 1, found inf (float) "
            "[override 'policy.optimizer.beta1=inf']",
        ),
        ("parallel=3", "parallel: expected a table, found 3 (integer) [override 'parallel=3']"),
        (
            "name=2024",
            "name: expected a string matching ^[\\w.-]+$, found 2024 (integer) [override 'name=2024']; for text write "
            "'name=\"2024\"'",
        ),
        (
            "train.steps",
            "argument 'train.steps': expected a.b=value, e.g. train.steps=10, or a fragment FILE.toml",
        ),
        ("name.x=1", "override 'name.x=1': name is not a table, it is \"small\" (string)"),
    ],
)
def test_one_problem(tmp_path: Path, override: str, problem: str) -> None:
    assert problems_of(write_config(tmp_path), override) == [problem]


def test_key_of_another_union_member(tmp_path: Path) -> None:
    (problem,) = problems_of(write_config(tmp_path), 'objective.advantage={method = "dr_grpo", eps = 1e-6}')
    assert problem.startswith('objective.advantage.eps: unknown key; it belongs to objective.advantage.method = "grpo"')


def test_union_paths_have_no_tags(tmp_path: Path) -> None:
    (problem,) = problems_of(write_config(tmp_path), 'objective.advantage={method = "grpo", eps = -1}')
    assert problem.startswith("objective.advantage.eps: expected a number >= 0, found -1 (integer)")


def test_unknown_and_missing_tags(tmp_path: Path) -> None:
    text = SMALL.replace('kind = "reasoning_gym"', 'kind = "maths_verify"').replace('source = "reasoning_gym"', "")
    assert problems_of(write_config(tmp_path, text)) == [
        'data.train.source: missing; expected one of "reasoning_gym", "file"',
        'reward.verifier.kind: expected one of "math_verify", "gsm8k", "reasoning_gym", "random", "function", found '
        '"maths_verify" (string); did you mean "math_verify"?',
    ]


def test_everything_at_once(tmp_path: Path) -> None:
    text = SMALL.replace('name = "small"', 'name = "a b"').replace('path = "models/tiny"', "pth = 3") + "stepz = 1\n"
    path = write_config(tmp_path, text)
    problems = problems_of(path, "foo", "cluster.nodes=0")
    assert [problem.partition(":")[0] for problem in problems] == [
        "argument 'foo'",
        "name",
        "model.path",
        "model.pth",
        "train.stepz",
        "cluster.nodes",
    ]
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["foo", "cluster.nodes=0"])
    assert str(caught.value).splitlines() == [f"{path}: 6 problems", *(f"  {problem}" for problem in problems)]


def test_missing_field_says_what_it_is(tmp_path: Path) -> None:
    problems = problems_of(write_config(tmp_path, SMALL.replace('name = "small"', "")))
    assert problems == ["name: missing; expected a string matching ^[\\w.-]+$ (Names the run directory)"]


def test_rules_across_sections_all_at_once(tmp_path: Path) -> None:
    problems = problems_of(
        write_config(tmp_path),
        "parallel.tensor=2",
        "parallel.world_size=3",
        "train.mini_batch_responses=7",
        "rollout.engines=9",
        "reward.overlong.cache_tokens=1024",
        'data.train={source="file", path="x.jsonl", layout="gsm8k"}',
        "policy.optimizer.schedule=cosine",
        "policy.optimizer.min_lr=1",
    )
    assert [problem.partition(" [override ")[0] for problem in problems] == [
        "parallel.world_size 3 is not a multiple of tensor 2 x pipeline 1 = 2; change one of the three",
        "train.prompts_per_step 4 x samples_per_prompt 4 = 16 responses are not a multiple of mini_batch_responses 7",
        "parallel.world_size 3 and rollout.engines x tensor = 9 need 12 GPUs, cluster.nodes x gpus_per_node = 8",
        "policy.optimizer.min_lr 1.0 is above lr 1e-06; the cosine falls from lr to min_lr",
        "reward.overlong.cache_tokens 1024 must be below rollout.max_response_tokens 1024",
        'reward.verifier.kind = "reasoning_gym" scores only data.train.source = "reasoning_gym", found "file"; use '
        '"math_verify", "gsm8k" or "function"',
    ]
    assert problems[1].endswith(" [override 'train.mini_batch_responses=7']")
    assert problems[2].endswith(" [override 'parallel.world_size=3', override 'rollout.engines=9']")
    assert problems[3].endswith(" [override 'policy.optimizer.min_lr=1']")


def test_responses_not_dealt_evenly_to_the_ranks(tmp_path: Path) -> None:
    assert problems_of(write_config(tmp_path), "parallel.world_size=4", "train.mini_batch_responses=2") == [
        "train.mini_batch_responses 2 is not a multiple of the 4 data-parallel ranks; every rank takes equally many "
        "micro-batches [override 'train.mini_batch_responses=2']"
    ]


def test_shared_memory_does_not_cross_nodes(tmp_path: Path) -> None:
    assert problems_of(write_config(tmp_path), "cluster.nodes=2") == [
        'rollout.publish.transport "shared_memory" works within one node, cluster.nodes is 2; set it to "network" '
        "[override 'cluster.nodes=2']"
    ]


def test_syntax_error_names_place(tmp_path: Path) -> None:
    path = write_config(tmp_path, 'name = "a"\n[model\npath = 2\n')
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    first, line, caret = str(caught.value).splitlines()
    assert first.startswith(f"{path}:2:7: TOML syntax: ")
    assert (line, caret) == ("  [model", "        ^")


def test_syntax_error_at_end_of_file(tmp_path: Path) -> None:
    path = write_config(tmp_path, 'name = "a"\nx = [1,')
    with pytest.raises(ConfigError, match=r"run\.toml:2:8: TOML syntax"):
        load_config(path)


def test_missing_file_suggests_near_names(tmp_path: Path) -> None:
    write_config(tmp_path)
    for wrong in ("rum.toml", "run"):
        with pytest.raises(ConfigError, match=r"no such file; did you mean .*/run\.toml\?"):
            load_config(tmp_path / wrong)
    with pytest.raises(ConfigError, match=r"no such file; the directory .*/nowhere does not exist"):
        load_config(tmp_path / "nowhere" / "run.toml")


def test_directory_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a TOML file, found a directory"):
        load_config(tmp_path)


def test_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("a\nb", ["a", "b"])))
    assert (str(error), error.problems) == ("a\nb", ("a", "b"))


@pytest.mark.parametrize(("text", "meant"), [(r"in \boxed{}.", r"\\boxed{}."), (r"as \frac{a}{b}", r"\\frac{a}{b}")])
def test_latex_in_double_quotes_is_not_read_as_a_control_character(tmp_path: Path, text: str, meant: str) -> None:
    [problem] = problems_of(write_config(tmp_path), f'data.instruction="{text}"')
    assert problem.startswith("data.instruction: expected text, found a ")
    assert f"write {meant} there, or the text in single quotes" in problem
    for right in (text.replace("\\", "\\\\").join('""'), f"'{text}'", text):
        assert load_config(write_config(tmp_path), [f"data.instruction={right}"]).data.instruction == text


@pytest.mark.parametrize("override", ["reward.verifier={kind=gsm8k}", "rollout.stop_strings=[a, b]"])
def test_a_table_or_array_of_words_without_quotes(tmp_path: Path, override: str) -> None:
    [problem] = problems_of(write_config(tmp_path), override)
    assert "it is not TOML: words inside a table or an array need quotes" in problem


def test_an_array_says_of_what(tmp_path: Path) -> None:
    [strings, integers] = sorted(
        problems_of(write_config(tmp_path), "rollout.stop_strings=x", "rollout.stop_token_ids=x")
    )
    assert "expected an array of strings" in strings
    assert "expected an array of integers" in integers


def test_an_override_in_the_place_of_the_file_is_told_by_its_key() -> None:
    assert all(map(is_override, ("train.steps=3", "model.path=/models/x", "logging.directory=runs/a=b", "name=")))
    assert not any(map(is_override, ("configs/a.toml", "runs/lr=3/config.toml", "=3", "a b=3", "train.steps")))
