"""The loop's saves: their order beside training, what a failed one costs, and a stop between two steps."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megarl.checkpoint.dist_writer import write_file
from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.run_checkpoint import RunCheckpoint, list_checkpoints, newest_checkpoint
from megarl.checkpoint.saved import SavedState
from megarl.config.checkpoint import CheckpointConfig
from megarl.config.run import RunConfig
from megarl.controller import checkpoints as module
from megarl.controller.checkpoints import Checkpoints
from megarl.controller.loop import train
from megarl.controller.progress import RunProgress
from megarl.controller.stopping import RunStoppedError, StopRequest
from tests.checkpoint.mounts import make_read_only, tmpfs
from tests.controller.fakes import Recorder, make_config, make_parts

STEP = ["generate", "reward", "old_logp", "update 0", "update 1"]


def configure(*, steps: int = 4, **checkpoint: Any) -> RunConfig:
    return make_config(steps=steps).model_copy(update={"checkpoint": CheckpointConfig(**checkpoint)})


def run(config: RunConfig, recorder: Recorder, directory: Path, *, stop: StopRequest | None = None) -> None:
    checkpoints = Checkpoints(config, directory, stop=stop or StopRequest())
    asyncio.run(train(config, make_parts(config, recorder, checkpoints=checkpoints)))


def steps_below(directory: Path) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(directory)]


def test_a_checkpoint_holds_the_run_after_its_step(tmp_path: Path) -> None:
    recorder = Recorder()
    config = configure(every_steps=2)
    run(config, recorder, tmp_path)
    assert steps_below(tmp_path) == [2, 4]
    second, last = list_checkpoints(tmp_path)
    second.verify()
    manifest = second.manifest
    assert (manifest.step, manifest.policy_version, manifest.updates, manifest.optimizer_step) == (2, 2, 2, 1)
    assert RunProgress.from_state(manifest.progress) == recorder.reached[1]
    assert RunProgress.from_state(last.manifest.progress) == recorder.reached[3]
    assert manifest.telemetry == {"metrics.jsonl": 2}
    assert manifest.metrics == {"reward/mean": 0.5}  # NaN is no number to choose by
    assert RunConfig.model_validate(manifest.config) == config
    assert manifest.versions["packages"]["torch"]
    assert [note.split(":")[0] for note in recorder.notes] == ["saved  step 2", "saved  step 4"]
    assert recorder.warnings == []


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    class Slow(Recorder):
        async def generate(self, *arguments: Any) -> Any:
            if self.calls.count("generate") == 3:
                self.may_finish.set()
                await asyncio.sleep(0.2)
            return await super().generate(*arguments)

    recorder = Slow()
    recorder.may_finish.clear()
    run(configure(every_steps=3), recorder, tmp_path)
    copied, written = (recorder.calls.index(f"{what} .step-000003.partial") for what in ("copy", "written"))
    assert recorder.calls[copied - 1] == "adopt 3"
    assert "commit 3" in recorder.calls[copied:written]  # the step is over, and its state.json says so
    assert steps_below(tmp_path) == [3, 4]


def test_one_save_at_a_time(tmp_path: Path) -> None:
    """The next one waits for the one before, however long that takes."""

    class Late(Recorder):
        async def finish_checkpoint(self) -> SavedState:
            await asyncio.sleep(0.1)
            return await super().finish_checkpoint()

    recorder = Late()
    run(configure(every_steps=1, keep_last=9), recorder, tmp_path)
    saves = [call.split()[0] for call in recorder.calls if call.startswith(("copy", "written"))]
    assert saves == ["copy", "written"] * 4
    assert steps_below(tmp_path) == [1, 2, 3, 4]


def test_older_ones_go_when_a_newer_one_is_complete(tmp_path: Path) -> None:
    run(configure(every_steps=1, keep_last=1, keep_every_steps=2), Recorder(), tmp_path)
    assert steps_below(tmp_path) == [2, 4]


def test_a_best_that_no_step_has_is_said(tmp_path: Path) -> None:
    recorder = Recorder()
    run(configure(every_steps=4, keep_best="reward/men"), recorder, tmp_path)
    assert recorder.warnings == ["checkpoint.keep_best: step 4 has no number reward/men, and cannot be the best"]


@pytest.mark.parametrize("where", ["copy", "write"])
def test_a_save_that_fails_is_told_and_costs_nothing_else(where: str, tmp_path: Path) -> None:
    class Failing(Recorder):
        async def stage_checkpoint(self, path: str) -> None:
            await super().stage_checkpoint(path)
            if where == "copy" and "000002" in path:
                raise CheckpointError("policy rank 1 has no memory")

        async def finish_checkpoint(self) -> SavedState:
            if where == "write" and "000002" in str(self._saved_to):
                (self._saved_to / "__0_0.distcp").write_bytes(b"half of it")
                raise CheckpointError("policy rank 1 has no disk")
            return await super().finish_checkpoint()

    recorder = Failing()
    run(configure(every_steps=1, keep_last=9), recorder, tmp_path)
    assert steps_below(tmp_path) == [1, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000003", "step-000004"]
    missing = "memory" if where == "copy" else "disk"
    assert recorder.warnings == [
        f"step 2 is not saved: policy rank 1 has no {missing}\nThe run goes on; the last one is that of step 1"
    ]
    assert [progress.step for progress in recorder.reached] == [1, 2, 3, 4]


def test_what_is_no_checkpoint_error_costs_the_save_only(tmp_path: Path) -> None:
    class Broken(Recorder):
        async def finish_checkpoint(self) -> SavedState:
            raise RuntimeError("policy rank 0 died")

    recorder = Broken()
    run(configure(every_steps=4), recorder, tmp_path)
    assert recorder.warnings == [
        "step 4 is not saved: RuntimeError: policy rank 0 died\nThe run goes on; nothing is saved yet"
    ]


def test_a_directory_that_takes_no_writes_costs_the_saves_only(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", size="1m") as disk:
        make_read_only(disk)
        recorder = Recorder()
        run(configure(every_steps=2), recorder, disk)
        assert [progress.step for progress in recorder.reached] == [1, 2, 3, 4]
        assert len(recorder.warnings) == 2
        assert "step-000002.partial cannot be made: Read-only file system" in recorder.warnings[0]


def test_a_full_disk_costs_the_saves_only(tmp_path: Path) -> None:
    """What there was before stays, whole."""
    with tmpfs(tmp_path / "disk", size="64k") as disk:

        class Large(Recorder):
            async def finish_checkpoint(self) -> SavedState:
                if "000001" not in str(self._saved_to):
                    (self._saved_to / "__0_0.distcp").write_bytes(bytes(1 << 20))
                return await super().finish_checkpoint()

        recorder = Large()
        run(configure(every_steps=1, steps=2), recorder, disk)
        (warning,) = recorder.warnings
        assert "step 2 is not saved: OSError: [Errno 28] No space left on device" in warning
        (kept,) = list_checkpoints(disk)
        kept.verify()
        assert kept.step == 1
        assert [path.name for path in disk.iterdir()] == ["step-000001"]


class Asked(Recorder):
    """A signal comes in the second step."""

    def __init__(self, stop: StopRequest, reason: str = "SIGUSR1") -> None:
        super().__init__()
        self._stop, self._why = stop, reason

    async def publish_weights(self, version: int) -> Any:
        if version == 2:
            assert self._stop.ask(self._why, to_save=True)
        return await super().publish_weights(version)


def test_a_run_that_is_asked_to_stop_is_saved_first(tmp_path: Path) -> None:
    """Also one that does not save itself otherwise."""
    stop = StopRequest()
    recorder = Asked(stop)
    with pytest.raises(RunStoppedError) as caught:
        run(configure(), recorder, tmp_path, stop=stop)
    assert str(caught.value) == f"SIGUSR1: stopped after step 2, saved in {tmp_path / 'step-000002'}"
    assert steps_below(tmp_path) == [2]
    assert [progress.step for progress in recorder.reached] == [1, 2]
    assert recorder.calls[-3:] == ["copy .step-000002.partial", "commit 2", "written .step-000002.partial"]


@pytest.mark.parametrize("moment", ["copy", "write"])
def test_a_stop_that_is_asked_for_during_a_save_needs_no_other_step(moment: str, tmp_path: Path) -> None:
    """While the state is copied no step is under way; once the next one has begun it is finished, and saved."""
    stop = StopRequest()

    class Saving(Recorder):
        async def stage_checkpoint(self, path: str) -> None:
            if moment == "copy":
                assert stop.ask("SIGTERM", to_save=False)
            await super().stage_checkpoint(path)

        async def finish_checkpoint(self) -> SavedState:
            if moment == "write" and "000001" in str(self._saved_to):
                while self.calls.count("generate") < 2:
                    await asyncio.sleep(0.01)
                for _ in range(2):
                    assert stop.ask("SIGTERM", to_save=False)
            return await super().finish_checkpoint()

        async def publish_weights(self, version: int) -> Any:
            while moment == "write" and version == 2 and stop.reason is None:
                await asyncio.sleep(0.01)
            return await super().publish_weights(version)

    step = {"copy": 1, "write": 2}[moment]
    recorder = Saving()
    with pytest.raises(RunStoppedError) as caught:
        run(configure(every_steps=1), recorder, tmp_path, stop=stop)
    path = tmp_path / f"step-{step:06d}"
    assert str(caught.value) == f"SIGTERM: stopped after step {step}, saved in {path}"
    assert [progress.step for progress in recorder.reached] == list(range(1, step + 1))
    assert steps_below(tmp_path)[-1] == step


def test_a_save_for_which_there_is_no_room_is_not_begun(tmp_path: Path) -> None:
    """A disk that a save fills up takes the rows, rollouts and state.json of the next step no more."""
    with tmpfs(tmp_path / "disk", size="400k") as disk:

        class Large(Recorder):
            async def finish_checkpoint(self) -> SavedState:
                saved = await super().finish_checkpoint()
                large = write_file(self._saved_to / "__1_0.distcp", bytes(200 << 10))
                return replace(saved, files=saved.files | {"__1_0.distcp": large})

        recorder = Large()
        run(configure(every_steps=1, steps=2), recorder, disk)
        (warning,) = recorder.warnings
        assert "step 2 is not saved: " in warning
        assert "step-000002: 0.0 GB are to be written and 0.0 GB are free; free some, or write to another" in warning
        assert [call for call in recorder.calls if call.startswith("copy")] == ["copy .step-000001.partial"]
        assert [path.name for path in disk.iterdir()] == ["step-000001"]


def test_a_failed_save_whose_directory_cannot_even_be_looked_at_costs_the_save_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Recorder):
        async def finish_checkpoint(self) -> SavedState:
            raise CheckpointError("no disk")

    def fail(_: Path) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(module, "newest_checkpoint", fail)
    recorder = Failing()
    run(configure(every_steps=2), recorder, tmp_path)
    assert recorder.warnings == [
        f"step {step} is not saved: no disk\nThe run goes on; what was saved before cannot be looked at "
        "([Errno 116] Stale file handle)"
        for step in (2, 4)
    ]


def test_a_clock_that_is_set_back_during_a_save_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Back(Recorder):
        async def finish_checkpoint(self) -> SavedState:
            monkeypatch.setattr(time, "time", lambda: 1.0)
            return await super().finish_checkpoint()

    recorder = Back()
    run(configure(every_steps=1, keep_last=1), recorder, tmp_path)
    assert len(recorder.notes) == 4
    assert steps_below(tmp_path) == [4]


def test_a_stop_whose_save_fails_says_so(tmp_path: Path) -> None:
    class Failing(Asked):
        async def finish_checkpoint(self) -> SavedState:
            raise CheckpointError("no disk")

    stop = StopRequest()
    recorder = Failing(stop)
    with pytest.raises(RunStoppedError, match="SIGUSR1: stopped after step 2, which could not be saved"):
        run(configure(), recorder, tmp_path, stop=stop)
    assert "no disk" in recorder.warnings[0]


def test_a_stop_in_the_last_step_stops_nothing(tmp_path: Path) -> None:
    stop = StopRequest()
    run(configure(steps=2), Asked(stop), tmp_path, stop=stop)
    assert steps_below(tmp_path) == [2]


def test_a_run_whose_time_is_over_is_saved_and_stops(tmp_path: Path) -> None:
    config = configure(end_time="2001-01-01T00:00:00Z")
    with pytest.raises(RunStoppedError, match=r"checkpoint\.end_time is in 0 s, .*: stopped after step 1, saved in "):
        run(config, Recorder(), tmp_path)
    assert steps_below(tmp_path) == [1]


def test_a_run_that_fails_completes_the_save_before(tmp_path: Path) -> None:
    class Failing(Recorder):
        async def finish_checkpoint(self) -> SavedState:
            await asyncio.sleep(0.2)
            return await super().finish_checkpoint()

        async def train_mini_batch(self, index: int, *arguments: Any, **named: Any) -> Any:
            if self.reached:
                raise ValueError("NaN")
            return await super().train_mini_batch(index, *arguments, **named)

    with pytest.raises(ValueError, match="NaN"):
        run(configure(every_steps=1), Failing(), tmp_path)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    newest.verify()
    assert newest.step == 1


def test_a_run_that_is_cancelled_does_not_wait_for_its_save(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.may_finish.clear()
    config = configure(every_steps=1)
    checkpoints = Checkpoints(config, tmp_path, stop=StopRequest())

    async def cancelled() -> None:
        work = asyncio.create_task(train(config, make_parts(config, recorder, checkpoints=checkpoints)))
        while len(recorder.reached) < 1:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(work, 5.0)

    asyncio.run(cancelled())
    assert steps_below(tmp_path) == []
    # What it left is removed when the run goes on.
    recorder.may_finish.set()
    assert [path.name for path in tmp_path.iterdir()] == [".step-000001.partial"]
    asyncio.run(checkpoints.listen())
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_of_files_that_are_written(tmp_path: Path) -> None:
    """Rows that a checkpoint speaks of are there before it is."""
    order = []

    class Writing(Recorder):
        async def settle(self) -> None:
            await asyncio.sleep(0.02)
            order.append("rows")

        def positions(self) -> dict[str, Any]:
            order.append("positions")
            return super().positions()

    recorder = Writing()
    run(configure(every_steps=1, steps=1), recorder, tmp_path)
    assert order[: order.index("positions") + 1][-2:] == ["rows", "positions"]
    assert isinstance(newest_checkpoint(tmp_path), RunCheckpoint)
