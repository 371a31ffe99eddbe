"""What a person does wrong, as the person sees it: the exit code, one message, no traceback, nothing left running.

Exit code 2: the configuration or a file it names cannot work. 1: it failed while running.
"""

import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.e2e.configuration import write_tiny_config
from tests.e2e.processes import Megarl

TIMEOUT_S = 400


def slow(*values: object) -> object:
    """A case that starts Python, torch and transformers once more for what another case shows the way of."""
    return pytest.param(*values, marks=pytest.mark.slow)


@dataclass(frozen=True)
class Refused:
    """How a command ended."""

    code: int
    text: str
    message: str
    status: str


def refuse(cwd: Path, model: Path, *overrides: str, verb: str = "train") -> Refused:
    """Run it; it must leave nothing behind."""
    with Megarl(verb, write_tiny_config(cwd, model), *overrides, cwd=cwd) as run:
        code = run.wait(TIMEOUT_S)
        assert run.leftovers() == []
        if not (cwd / "runs").exists():
            return Refused(code, run.text, run.text, "never started")
        state = run.directory.read_state()
        assert state.message is not None, run.text
        assert state.message in run.text
        return Refused(code, run.text, state.message, state.status)


@pytest.fixture
def model_copy(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "damaged"))


# Before anything starts


def unknown_key(cwd: Path, model: Path) -> Sequence[str]:
    return ["train.stepz=3"]


def wrong_type(cwd: Path, model: Path) -> Sequence[str]:
    return ["train.steps=three"]


def heads_not_divided(cwd: Path, model: Path) -> Sequence[str]:
    return ["parallel.tensor=3", "parallel.world_size=3"]


def world_size_not_divided(cwd: Path, model: Path) -> Sequence[str]:
    return ["parallel.world_size=3"]


def no_model(cwd: Path, model: Path) -> Sequence[str]:
    return ["model.path=nowhere"]


def empty_data(cwd: Path, model: Path) -> Sequence[str]:
    (cwd / "empty.jsonl").write_text("")
    return ['data.train={source="file",path="empty.jsonl",layout="prompt_answer"}', 'reward.verifier={kind="gsm8k"}']


def unreadable_truth(cwd: Path, model: Path) -> Sequence[str]:
    rows = ['{"prompt": "Add 1 and 2", "answer": "3"}', '{"prompt": "Add 2 and 2", "answer": ""}']
    (cwd / "gold.jsonl").write_text("\n".join(rows))
    return [
        'data.train={source="file",path="gold.jsonl",layout="prompt_answer"}',
        'reward.verifier={kind="math_verify"}',
    ]


def reward_without_a_number(cwd: Path, model: Path) -> Sequence[str]:
    (cwd / "mine.py").write_text("def score(prompt, response):\n    return 1.0 if response else None\n")
    return ['reward.verifier={kind="function",path="mine:score"}']


def prompt_too_long(cwd: Path, model: Path) -> Sequence[str]:
    return ["rollout.max_prompt_tokens=8"]


def longer_than_the_context(cwd: Path, model: Path) -> Sequence[str]:
    return ["rollout.max_response_tokens=40000"]


def reward_that_is_not_there(cwd: Path, model: Path) -> Sequence[str]:
    return ['reward.verifier={kind="function",path="nowhere:score"}']


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (unknown_key, ["train.stepz", "steps"]),
        (wrong_type, ["train.steps", "integer", "three"]),
        (heads_not_divided, ["parallel.tensor 3", "4 attention heads", "use parallel.tensor=4 parallel.world_size=4"]),
        (world_size_not_divided, ["parallel.world_size 3", "multiple of tensor 2", "change one"]),
        (no_model, ["model.path", "nowhere", "no such directory", "correct the path"]),
        (longer_than_the_context, ["max_response_tokens 40000", "context of 32768", "shorten"]),
        (reward_that_is_not_there, ["reward.verifier.path", "nowhere", "PYTHONPATH"]),
    ],
)
def test_refused_before_anything_starts(
    prepare: Callable[[Path, Path], Sequence[str]], words: list[str], tmp_path: Path, tiny_model_dir: Path
) -> None:
    refused = refuse(tmp_path, tiny_model_dir, *prepare(tmp_path, tiny_model_dir))
    assert refused.code == 2
    assert [word for word in words if word not in refused.text] == [], refused.text
    assert "Traceback" not in refused.text
    assert refused.status == "never started"


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (unreadable_truth, ["gold.jsonl line 2", "the ground truth ''", "correct the row"]),
        slow(empty_data, ["empty.jsonl", "the data set is empty"]),
        slow(reward_without_a_number, ["reward.verifier.path 'mine:score'", "returned None", "expected a number"]),
        slow(prompt_too_long, ["rollout.max_prompt_tokens is 8", "tokens", "raise the limit"]),
    ],
)
def test_data_is_refused_before_a_worker_starts(
    prepare: Callable[[Path, Path], Sequence[str]], words: list[str], tmp_path: Path, tiny_model_dir: Path
) -> None:
    """A large set takes minutes to read and says so in its run directory, which therefore exists."""
    refused = refuse(tmp_path, tiny_model_dir, *prepare(tmp_path, tiny_model_dir))
    assert refused.code == 2
    assert [word for word in words if word not in refused.message] == [], refused.text
    assert "Traceback" not in refused.text
    assert refused.status == "failed"


@pytest.mark.parametrize("verb", ["train", slow("sft")])
def test_what_a_fragment_takes_back_is_said(verb: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    """As `megarl show` says it, on the display and in the log; the data end these runs."""
    (tmp_path / "wide.toml").write_text("[objective.clip]\nhigh = 0.5\n")
    refused = refuse(tmp_path, tiny_model_dir, "wide.toml", *empty_data(tmp_path, tiny_model_dir), verb=verb)
    line = f"replaced: objective.clip.high 0.28 ({tmp_path / 'tiny.toml'}) by 0.5 (wide.toml)"
    assert line in " ".join(refused.text.split())
    (log,) = (tmp_path / "runs" / "latest" / "logs").glob("controller-0.log")
    assert line in log.read_text()


def test_truncated_weights_are_refused_before_anything_starts(model_copy: Path, tmp_path: Path) -> None:
    weights = model_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused = refuse(tmp_path, model_copy)
    assert refused.code == 2
    assert str(weights) in refused.text
    assert "truncated or corrupt" in refused.text
    assert "download or export" in refused.text
    assert "Traceback" not in refused.text
    assert refused.status == "never started"


# At start and in the run


@pytest.mark.parametrize("verb", ["train", slow("sft")])
def test_a_dead_ray_address(verb: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    refused = refuse(tmp_path, tiny_model_dir, "cluster.ray_address=127.0.0.1:1", verb=verb)
    assert refused.code == 2
    assert refused.status == "failed"
    assert refused.message.startswith('cluster.ray_address "127.0.0.1:1": nothing answers there (')
    assert "Traceback" not in refused.text


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("0.0.0.0", 0))
        held.listen()
        yield held.getsockname()[1]


def test_a_busy_master_port(busy_port: int, tmp_path: Path, tiny_model_dir: Path) -> None:
    refused = refuse(tmp_path, tiny_model_dir, f"policy.master_port={busy_port}", verb="sft")
    assert refused.code == 2
    assert refused.status == "failed"
    assert f"policy.master_port {busy_port}" in refused.message
    assert "in use" in refused.message
    assert "0 for a free one" in refused.message
    assert "Traceback" not in refused.text


@pytest.mark.slow
def test_an_engine_that_cannot_start(tmp_path: Path, tiny_model_dir: Path) -> None:
    refused = refuse(tmp_path, tiny_model_dir, "rollout.cpu_kv_cache_gib=1e-6")
    assert refused.code == 1
    assert refused.status == "failed"
    assert refused.message.startswith("rollout rank 0 raised EngineStartError: engine 0 (")
    assert "raise rollout.memory_fraction (CUDA) or rollout.cpu_kv_cache_gib (CPU)" in refused.message


REWARD = """
def score(prompt, response):
    raise ValueError("the answer key is empty")
"""


def test_a_reward_function_that_raises(tmp_path: Path, tiny_model_dir: Path) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    refused = refuse(tmp_path, tiny_model_dir, 'reward.verifier={kind="function",path="mine:score"}')
    assert refused.code == 1
    assert refused.status == "failed"
    assert refused.message.startswith("reward function mine:score failed on ")
    first = refused.message.splitlines()[0]
    assert "prompt" in first
    assert "sample" in first
    assert "ValueError: the answer key is empty" in first
    assert "response: " in refused.message
    # The one traceback is the function's own, which is the person's to read.
    assert refused.text.count("Traceback") == 1
    assert 'mine.py", line 3, in score' in refused.text
    assert "asyncio" not in refused.text


@pytest.mark.slow
def test_trainer_and_engine_that_differ(tmp_path: Path, tiny_model_dir: Path) -> None:
    refused = refuse(tmp_path, tiny_model_dir, "rollout.max_logp_diff=1e-9")
    assert refused.code == 1
    assert refused.status == "failed"
    assert refused.message.startswith("step 1: trainer and vLLM differ by ")
    assert "above rollout.max_logp_diff 1e-09" in refused.message
    assert "raise the bound" in refused.message
    assert "Traceback" not in refused.text


@pytest.fixture
def nan_model(model_copy: Path) -> Path:
    weights = model_copy / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    return model_copy


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_its_samples(nan_model: Path, tmp_path: Path) -> None:
    refused = refuse(tmp_path, nan_model, verb="sft")
    assert refused.code == 1
    assert refused.status == "failed"
    first = refused.message.splitlines()[0]
    assert "NonFiniteLossError: update 1: NaN or infinity in the micro-batches with samples [[" in first
    assert "no weight was changed. Look at the weights the run started from" in first


@pytest.mark.slow
def test_not_a_number_in_both_models(nan_model: Path, tmp_path: Path) -> None:
    refused = refuse(tmp_path, nan_model)
    assert refused.code == 1
    assert refused.status == "failed"
    assert "not finite" in refused.message
    assert "Traceback" not in refused.text
