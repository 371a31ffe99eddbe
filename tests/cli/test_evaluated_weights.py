"""Engines of an evaluation whose weights lie in a torch.distributed.checkpoint: checked first, sent, sent again."""

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megarl.checkpoint.convert import convert
from megarl.checkpoint.errors import CheckpointError
from megarl.cli import evaluated_weights
from megarl.cli.evaluated_model import EvaluatedModel, find_evaluated
from megarl.cli.evaluated_weights import check_stored, engines_alone, serve_stored
from megarl.config.base import ConfigError
from megarl.records import Rollout
from megarl.telemetry.metrics import Metrics
from tests.checkpoint.test_convert import complete, write_run_checkpoint
from tests.checkpoint.test_hf_checkpoint import write_source
from tests.config.text import load_small
from tests.runtime.simulated_engines import REQUESTS, Engine, Stage, gone, play

DUMMY = {"load_format": "dummy"}


def test_engines_begin_with_weights_only_where_vllm_can_read_them(tmp_path: Path) -> None:
    """Whatever the run had that made them."""
    plain = load_small(tmp_path, "rollout.vllm_overrides.max_num_seqs=4")
    dummy = load_small(tmp_path, "rollout.vllm_overrides.load_format='dummy'")
    other = load_small(tmp_path, "rollout.vllm_overrides.load_format='safetensors'")
    assert engines_alone(plain, stored=True).rollout.vllm_overrides == {"max_num_seqs": 4, **DUMMY}
    assert engines_alone(other, stored=True).rollout.starts_without_weights
    assert engines_alone(plain, stored=False).rollout == plain.rollout
    assert engines_alone(other, stored=False).rollout == other.rollout
    assert engines_alone(dummy, stored=False).rollout.vllm_overrides == {}


def change_config(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_checkpoint_of_another_model_is_refused_before_anything_starts(tmp_path: Path, tiny_model_dir: Path) -> None:
    checkpoint = tmp_path / "dist"
    convert(tiny_model_dir, checkpoint)
    evaluated = find_evaluated(checkpoint)
    assert evaluated.is_dist
    check_stored(evaluated)
    before = json.loads((checkpoint / "hf" / "config.json").read_text())
    change_config(checkpoint, intermediate_size=2 * before["intermediate_size"])
    with pytest.raises(ConfigError, match=r"(?s)^megarl eval: .*wrong shape: decoder.layers.mlp.linear_fc1.weight"):
        check_stored(evaluated)
    change_config(checkpoint, **before | {"tie_word_embeddings": not before["tie_word_embeddings"]})
    with pytest.raises(ConfigError, match=r"(?s)(missing|unexpected): output_layer.weight"):
        check_stored(evaluated)
    change_config(checkpoint, **before)
    check_stored(evaluated)
    (file, *_) = sorted(checkpoint.glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=f"truncated: {file.name} has"):
        check_stored(evaluated)


def test_a_runs_checkpoint_is_of_the_model_that_its_manifest_names(tmp_path: Path) -> None:
    """What it has of the optimizer is left alone."""
    write_source(tmp_path / "hf")
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000005"
    write_run_checkpoint(tmp_path / "hf", checkpoint)
    complete(checkpoint, step=5)
    evaluated = find_evaluated(checkpoint)
    assert evaluated.saved is not None
    check_stored(evaluated)
    model = evaluated.saved.manifest.model | {"num_layers": 7}
    other = replace(evaluated.saved, manifest=replace(evaluated.saved.manifest, model=model))
    with pytest.raises(ConfigError, match=r"^megarl eval: .*is of another model than .*hf/config.json: num_layers"):
        check_stored(replace(evaluated, saved=other))


class Publisher:
    """In the place of a checkpoint's; notes what is asked of it, and fails once as told."""

    def __init__(self, *_: Any) -> None:
        self.calls: list[str] = []
        self.failures: list[Exception] = []

    async def open_session(self) -> None:
        self.calls.append("open")

    async def join_session(self, _: Any) -> None:
        self.calls.append("join")

    async def publish_weights(self, version: int) -> Metrics:
        self.calls.append(f"publish {version}")
        if self.failures:
            raise self.failures.pop()
        return {}

    async def close(self) -> None:
        self.calls.append("close")


class Reporter:
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def phase(self, *_: Any) -> AbstractContextManager[None]:
        return nullcontext()

    start_up = phase

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


class Served:
    """An evaluation's engines, and what became of one that asks them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *first: Engine, later: tuple[Engine, ...] = ()) -> None:
        self.publisher, self.reporter = Publisher(), Reporter()
        monkeypatch.setattr(evaluated_weights, "CheckpointPublisher", lambda *_: self.publisher)
        self.started = [*first, *later]
        self._open = lambda: Stage(monkeypatch, first, later, vllm_overrides=DUMMY)

    async def ask(self) -> list[Rollout]:
        session: Any = SimpleNamespace(reporter=self.reporter)
        stage, evaluated = self._open(), EvaluatedModel(path=Path("unused"), is_dist=True, run=None)
        pool = stage.pool
        await pool.setup()
        with pytest.raises(RuntimeError, match=r"^engines \[0, 1\] have adopted no weights since they were started$"):
            await stage.generate()
        try:
            async with serve_stored(session, pool._config, evaluated, pool) as ask:
                return await ask(REQUESTS, lambda *_: None)
        finally:
            await pool.close()


def test_engines_sample_what_they_were_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(monkeypatch, Engine(0), Engine(1))
    assert len(play(served.ask())) == len(REQUESTS)
    assert served.publisher.calls == ["open", "join", "publish 0", "close"]
    for engine in served.started:
        assert engine.calls[:5] == ["setup", "connect", "receive_weights", "adopt_weights", "generate"]


def test_an_engine_that_is_lost_is_sent_the_weights_before_it_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    heir = Engine(1)
    served = Served(monkeypatch, Engine(0), Engine(1, generate=gone()), later=(heir,))
    rollouts = play(served.ask())
    assert [int(rollout.response[0]) for rollout in rollouts] == list(range(len(REQUESTS)))
    again = ["open", "join", "publish 0"]
    assert served.publisher.calls == [*again, *again, "close"]
    assert heir.calls[:6] == ["setup", "check", "connect", "receive_weights", "adopt_weights", "generate"]
    assert heir.asked
    assert len(served.reporter.warnings) == 1
    assert "responses are sampled again: rollout rank 1 died" in served.reporter.warnings[0]


@pytest.mark.parametrize("engine", [0, 1])
def test_one_that_is_lost_while_it_adopts_is_sent_them_again(monkeypatch: pytest.MonkeyPatch, engine: int) -> None:
    first = [Engine(index, **({"adopt_weights": gone()} if index == engine else {})) for index in range(2)]
    served = Served(monkeypatch, *first, later=(Engine(engine),))
    assert len(play(served.ask())) == len(REQUESTS)
    assert served.publisher.calls.count("publish 0") == 2
    assert served.started[-1].calls[:5] == ["setup", "check", "connect", "receive_weights", "adopt_weights"]


def test_a_damaged_checkpoint_ends_it_without_a_second_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(monkeypatch, Engine(0), Engine(1))
    served.publisher.failures = [CheckpointError("__0_0.distcp: its bytes have the CRC-32 00000000")]
    with pytest.raises(ConfigError, match=r"^megarl eval: __0_0.distcp: its bytes have the CRC"):
        play(served.ask())
    assert served.publisher.calls == ["open", "join", "publish 0", "close"]
    assert all("generate" not in engine.calls for engine in served.started)


def test_a_checkpoint_that_is_damaged_later_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is read again for an engine that was lost."""

    async def damage() -> None:
        served.publisher.failures = [CheckpointError("__0_0.distcp cannot be opened")]
        raise gone()

    served = Served(monkeypatch, Engine(0), Engine(1, generate=damage), later=(Engine(1),))
    with pytest.raises(ConfigError, match=r"^megarl eval: __0_0.distcp cannot be opened"):
        play(served.ask())
    assert served.publisher.calls[-1] == "close"
