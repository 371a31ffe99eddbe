"""What an engine's failures are explained from."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from megarl.config.policy import ModelConfig
from megarl.config.rollout import RolloutConfig
from megarl.rollout import engine_process
from megarl.rollout.engine_process import EngineProcess
from megarl.rollout.engine_state import EngineState


def test_an_earlier_engine_s_log_explains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is started in another's place goes on in its log."""
    monkeypatch.setattr(engine_process, "set_engine_environment", lambda **_: None)
    log = tmp_path / "logs" / "rollout-1.log"
    log.parent.mkdir()
    log.write_text("torch.OutOfMemoryError: of the one before\n")
    process = EngineProcess(
        config=RolloutConfig(), model=ModelConfig(path="unused"), state=EngineState("engine 1"), log_path=log
    )
    process._prepare_log()
    try:
        assert process.log_text() == ""
        with log.open("a") as file:
            file.write("ValueError: its own\n")
        assert process.log_text() == "ValueError: its own\n"
    finally:
        process._close_scratch()


@pytest.mark.parametrize(("overrides", "memory"), [({}, "awake"), ({"load_format": "dummy"}, "unfilled")])
def test_what_vllm_makes_up_is_not_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, str], memory: str
) -> None:
    """Whoever asked for such weights: they stay out of the way until others are adopted."""
    monkeypatch.setattr(engine_process, "set_engine_environment", lambda **_: None)
    state = EngineState("engine 0")
    config = RolloutConfig.model_validate({"vllm_overrides": overrides})
    process = EngineProcess(config=config, model=ModelConfig(path="unused"), state=state, log_path=tmp_path / "0.log")
    monkeypatch.setattr(process, "_build", lambda: setattr(process, "_llm", SimpleNamespace()))
    try:
        asyncio.run(process.start())
        assert (state.now, state.memory) == ("ready", memory)
    finally:
        process._close_scratch()
