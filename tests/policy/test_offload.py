"""What a rank gives back comes back bit for bit, and nothing may use it meanwhile."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megarl.config.cluster import Moved
from megarl.config.run import RunConfig
from megarl.controller.batching import shard_step
from megarl.objective.tokens import Controls
from megarl.parallel.batches import BatchShard
from megarl.parallel.pinned import PinnedMemory, PinningError
from megarl.policy import offload
from megarl.policy.offload import Offload, OffloadError
from megarl.policy.worker import MegatronWorker
from tests.policy.ranks import make_checkpoint, make_config, make_samples, run_workers
from tests.policy.states import assemble, hash_elements, save_checkpoint

CPU = torch.device("cpu")


def make_offload(**moved: list[Tensor]) -> tuple[Offload, Tensor]:
    gradients = torch.full((5,), 3.0)
    return Offload(dropped=[gradients, gradients[1:3]], moved=moved, device=CPU), gradients


def test_memory_is_released_and_comes_back() -> None:
    main, moment = torch.randn(3, 4), torch.randn(7).to(torch.bfloat16)
    rows = main[1:3]
    before = main.clone(), moment.clone()
    away, gradients = make_offload(optimizer=[main, rows, moment])
    assert (away.dropped_bytes, away.moved_bytes) == (20, 1024), "each storage once, at multiples of 512"
    away.give()
    assert away.away
    assert [tensor.untyped_storage().nbytes() for tensor in (main, moment, gradients)] == [0, 0, 0]
    away.give()  # nothing more
    away.take()
    assert torch.equal(main, before[0])
    assert torch.equal(moment, before[1])
    assert torch.equal(rows, before[0][1:3]), "a view shares the storage still"
    assert torch.equal(gradients, torch.zeros(5))
    main += 1.0
    assert torch.equal(rows, before[0][1:3] + 1.0)
    away.give()
    away.take()
    assert torch.equal(main, before[0] + 1.0), "what changed meanwhile, not the first copy"


def test_values_can_be_read_while_they_are_away_and_memory_cannot() -> None:
    main = torch.arange(12.0).view(3, 4)
    away, _ = make_offload(reference=[torch.ones(9, dtype=torch.bfloat16)], optimizer=[main])
    view = main.t()[1:, :2]
    want = view.clone()
    assert away.present(view) is view
    away.give()
    assert torch.equal(away.present(main), torch.arange(12.0).view(3, 4))
    assert torch.equal(away.present(view), want)
    other = torch.ones(2)
    assert away.present(other) is other
    with pytest.raises(RuntimeError, match="out of bounds for storage of size 0"):
        main[1:]


def test_what_is_moved_and_dropped_at_once_is_refused() -> None:
    whole = torch.zeros(8)
    with pytest.raises(ValueError, match=r"\['optimizer'\] would be moved and dropped"):
        Offload(dropped=[whole[:4]], moved={"optimizer": [whole[4:]]}, device=CPU)


def test_a_host_without_room_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    main = torch.randn(6)
    before = main.clone()
    away, gradients = make_offload(optimizer=[main])

    def refuse(memory: Tensor) -> PinnedMemory:
        raise PinningError("CUDA does not take 0 MiB of host memory: out of memory (error 2)")

    with monkeypatch.context() as patch:
        patch.setattr(offload, "PinnedMemory", refuse)
        with pytest.raises(
            OffloadError, match=r"no host memory for 0 MiB of optimizer .*out of memory .*cluster\.offload"
        ):
            away.give()
    assert not away.away
    assert torch.equal(main, before)
    assert torch.equal(gradients, torch.full((5,), 3.0))
    away.give()
    assert away.away


@pytest.mark.parametrize("moment", ["give", "take"])
def test_a_copy_that_fails_loses_nothing_and_may_be_tried_again(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    main, moments = torch.randn(6), torch.randn(6)
    before = main.clone(), moments.clone()
    away, _ = make_offload(optimizer=[main, moments])
    if moment == "take":
        away.give()
    whole, calls = offload._bytes_of, iter([False, True])

    def fail(place: Any) -> Tensor:
        if next(calls, False):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 24 bytes")
        return whole(place)

    text = {
        "give": "could not be copied to the host",
        "take": "could not be taken back .* It still lies in host memory",
    }
    with monkeypatch.context() as patch:
        patch.setattr(offload, "_bytes_of", fail)
        with pytest.raises(OffloadError, match=f"0 MiB of optimizer {text[moment]}"):
            getattr(away, moment)()
    assert away.away == (moment == "take")
    away.give()
    away.take()
    assert torch.equal(main, before[0])
    assert torch.equal(moments, before[1])


class Stream:
    """Stands for a CUDA stream: says what it is asked."""

    def __init__(self, diary: list[str], name: str) -> None:
        self._diary, self._name = diary, name

    def wait_stream(self, other: "Stream") -> None:
        self._diary.append(f"{self._name} waits for {other._name}")

    def synchronize(self) -> None:
        self._diary.append(f"{self._name} has ended")

    def __enter__(self) -> None:
        self._diary.append(f"in {self._name}")

    def __exit__(self, *_: object) -> None:
        self._diary.append(f"out of {self._name}")


def test_beside_a_gpu_copies_have_ended_before_memory_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls, with stand-ins for streams and tensors on the CPU."""
    diary: list[str] = []
    side, current = Stream(diary, "side"), Stream(diary, "current")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: diary.append("cache emptied"))
    main = torch.randn(6)
    before, copy, resize = main.clone(), Tensor.copy_, torch.UntypedStorage.resize_

    def copy_noted(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        diary.append(f"copy, {'queued' if non_blocking else 'waited for'}")
        return copy(target, source)

    def resize_noted(storage: torch.UntypedStorage, size: int) -> None:
        diary.append(f"{size} bytes")
        resize(storage, size)

    away = Offload(dropped=[], moved={"optimizer": [main]}, device=torch.device("cuda", 0))
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "copy_", copy_noted)
        patch.setattr(torch.UntypedStorage, "resize_", resize_noted)
        away.give()
        given, diary[:] = list(diary), []
        away.take()
    moved = ["side waits for current", "in side", "copy, queued", "out of side", "side has ended"]
    assert given == [*moved, "0 bytes", "cache emptied"]
    assert diary == ["24 bytes", *moved]
    assert torch.equal(main, before)


def test_torch_takes_the_calls_that_need_a_gpu() -> None:
    """Names and arguments of what no machine without one can call."""
    inspect.signature(torch.cuda.mem_get_info).bind(torch.device("cuda", 0))
    inspect.signature(torch.cuda.memory_reserved).bind(torch.device("cuda", 0))
    inspect.signature(torch.cuda.get_device_properties).bind(torch.device("cuda", 0))
    inspect.signature(torch.cuda.current_stream).bind(torch.device("cuda", 0))
    inspect.signature(torch.cuda.Stream.__new__).bind(torch.cuda.Stream, torch.device("cuda", 0))
    inspect.signature(torch.cuda.stream).bind(None)
    inspect.signature(torch.cuda.empty_cache).bind()


KL: dict[str, Any] = {"auxiliary": {"kl": {"coefficient": 0.5}}}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one rank, bfloat16": {"model__dtype": "bfloat16", "objective": KL},
    "one rank, plain optimizer, bfloat16": {"model__dtype": "bfloat16", "policy__distributed_optimizer": False},
    "DP2, float32": {"parallel": {"world_size": 2}, "objective": KL},
}


def test_a_rank_that_gave_way_trains_and_saves_as_one_that_did_not(tmp_path: Path) -> None:
    """Weights, moments and checkpoint, on every layout bit for bit; the checkpoint is written while they are away."""
    path = make_checkpoint(tmp_path / "model")
    jobs = []
    for number, layout in enumerate(LAYOUTS.values()):
        config = make_config(path, **layout)
        shards = shard_step(make_samples(16), config)
        for gives_way in (False, True):
            saved = tmp_path / f"saved-{number}-{gives_way}"
            saved.mkdir()
            jobs.append((config, (shards, str(saved), gives_way)))
    results = run_workers(jobs, train_twice, timeout_s=600)
    for name, stayed, gave in zip(LAYOUTS, results[::2], results[1::2], strict=True):
        assert stayed == gave, name


def train_twice(worker: MegatronWorker, config: RunConfig, rank: int, *job: Any) -> Any:
    shards, directory, gives_way = job
    moved: tuple[Moved, ...] = ("optimizer", "reference")
    shard = shards[worker._grid.position(rank).data]
    norms = list(one_step(worker, shard))
    if gives_way:
        assert worker.give_way(moved) is None
        check_refusals(worker, shard)
        assert list(worker.memory()) == ["generate", "score", "update"], "what is refused is of no phase"
    saved = save_checkpoint(worker, config, directory)
    if gives_way:
        worker.take_back()
        assert list(worker.memory()) == ["wake"], "a step begins"
    norms += one_step(worker, shard)
    if gives_way:
        worker.give_way(moved)
        worker.take_back()
    trained = assemble(worker)
    worker.load_checkpoint(str(saved))
    loaded = assemble(worker)
    assert trained is None or loaded is None or hash_elements(trained) != hash_elements(loaded)
    norms += one_step(worker, shard)
    return norms, [hash_elements(whole or {}) for whole in (trained, loaded, assemble(worker))]


def one_step(worker: MegatronWorker, shard: BatchShard) -> Iterator[float | None]:
    worker.score(shard)
    for index in range(2):
        report = worker.train_mini_batch(index, Controls(step=1, seed=0))
        yield report and report.grad_norm


def check_refusals(worker: MegatronWorker, shard: BatchShard) -> None:
    why = re.escape("it has given its memory to the engines")
    for work in (
        lambda: worker.score(shard),
        lambda: worker.train_mini_batch(0, Controls(step=1, seed=0)),
        lambda: worker.score_and_differentiate(shard[:1], Controls(step=1, seed=0)),
        lambda: worker.sft_update(shard[0]),
        worker.reset_reference,
        lambda: worker.load_checkpoint("nowhere"),
    ):
        with pytest.raises(RuntimeError, match=rf"policy rank \d cannot .*{why}"):
            work()
