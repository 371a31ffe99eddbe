"""What the driver makes of the ranks' answers about a checkpoint."""

from pathlib import Path

import pytest

from megarl.checkpoint.errors import CheckpointError
from megarl.checkpoint.rank_saver import WrittenPart
from megarl.checkpoint.saved import StagedNumbers
from megarl.config.run import RunConfig
from megarl.runtime.saving import Outcome, Saving, merge_written, numbers_of, outcome, results


def staged(updates: int, step: int | None) -> Outcome[StagedNumbers]:
    return Outcome(StagedNumbers(updates=updates, optimizer_step=step))


def test_a_checkpoint_error_is_an_answer_and_other_errors_are_not() -> None:
    def fail(error: Exception) -> None:
        raise error

    assert outcome(int, "7") == Outcome(7)
    assert outcome(fail, CheckpointError("no disk")) == Outcome(None, "no disk")
    with pytest.raises(ValueError, match="a mistake"):
        outcome(fail, ValueError("a mistake"))


def test_every_rank_must_have_done_its_part() -> None:
    assert results([Outcome(1), Outcome(None), Outcome(3)]) == [1, None, 3]
    failures = [Outcome(None, f"rank {rank}: no disk") for rank in range(6)]
    with pytest.raises(CheckpointError) as caught:
        results([Outcome(1), *failures, failures[0]])
    told = "rank 0: no disk\nrank 1: no disk\nrank 2: no disk\nrank 3: no disk\nand 2 more ranks"
    assert str(caught.value) == told


def test_the_ranks_have_made_the_same_updates() -> None:
    assert numbers_of([staged(6, 2), staged(6, None), staged(6, 2)]) == StagedNumbers(updates=6, optimizer_step=2)
    with pytest.raises(RuntimeError, match=r"have made \{.*\} updates, their optimizers \{2\}; expected one each"):
        numbers_of([staged(6, 2), staged(7, 2)])
    with pytest.raises(CheckpointError, match="no memory"):
        numbers_of([staged(6, 2), Outcome(None, "no memory")])


def test_a_part_that_is_missing_makes_no_checkpoint(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = RunConfig.model_validate(
        {
            "name": "saving",
            "model": {"path": str(tiny_model_dir)},
            "data": {"train": {"source": "reasoning_gym", "task": "chain_sum"}},
            "reward": {"verifier": {"kind": "random"}},
        }
    )
    chunk = {"key": "a", "shape": [4], "dtype": "float32", "offsets": [0], "sizes": [2]}
    result = {"files": {}, "chunks": [chunk | {"file": "__0_0.distcp", "offset": 0, "length": 9}]}
    saving = Saving(tmp_path, StagedNumbers(updates=1, optimizer_step=1))
    with pytest.raises(CheckpointError, match=r"a \[4\]: chunks hold 2 of 4 elements"):
        merge_written(saving, [Outcome(WrittenPart(result=result, staged_bytes=64))], config)
    assert not (tmp_path / ".metadata").exists()
