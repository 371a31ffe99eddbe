"""What an engine's failures are explained from."""

from pathlib import Path

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
