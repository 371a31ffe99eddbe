"""A fresh rank that loads a checkpoint goes on bit for bit as the one that wrote it did."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megarl.checkpoint.errors import CheckpointError
from megarl.config.run import RunConfig
from megarl.controller.batching import shard_step
from megarl.objective.tokens import Controls
from megarl.parallel.batches import BatchShard
from megarl.policy.moments import MOMENTS, Moments
from megarl.policy.optimizer import forget_moments
from megarl.policy.state import deal
from megarl.policy.worker import MegatronWorker
from tests.policy.ranks import make_checkpoint, make_config, make_samples, run_workers
from tests.policy.states import Kept, keep_state, save_checkpoint

KL: dict[str, Any] = {"auxiliary": {"kl": {"coefficient": 0.5}}}
OPTIMIZER = {"lr": 1e-2, "weight_decay": 0.1, "schedule": "cosine", "warmup_updates": 2, "clip_grad_norm": 0.5}
PLAIN = {"policy__distributed_optimizer": False}
BFLOAT16 = {"model__dtype": "bfloat16"}
OVERLAP = {"policy__overlap": "all", "policy__bucket_elements": 20_000}
TENSOR, PIPELINE = {"tensor": 2, "world_size": 2}, {"pipeline": 2, "world_size": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one rank": {"objective": KL},
    "one rank, bfloat16, plain optimizer": BFLOAT16 | PLAIN,
    "DP2, bfloat16": {"parallel": {"world_size": 2}, "objective": KL} | BFLOAT16,
    "TP2, plain optimizer": {"parallel": TENSOR, "objective": KL} | PLAIN,
    "PP2, bfloat16": {"parallel": PIPELINE} | BFLOAT16,
    "DP2, bfloat16, all overlaps": {"parallel": {"world_size": 2}, "objective": KL} | BFLOAT16 | OVERLAP,
}
WIDE: dict[str, dict[str, Any]] = {
    "one rank, bfloat16": BFLOAT16,
    "one rank, plain optimizer": {"objective": KL} | PLAIN,
    "DP2": {"parallel": {"world_size": 2}},
    "DP2, plain optimizer": {"parallel": {"world_size": 2}} | PLAIN,
    "DP2, bfloat16, plain optimizer": {"parallel": {"world_size": 2}, "objective": KL} | BFLOAT16 | PLAIN,
    "TP2 sequence parallel, fused head": {"parallel": TENSOR | {"sequence": True}, "policy__head": "fused"},
    "TP2, bfloat16": {"parallel": TENSOR, "objective": KL} | BFLOAT16,
    "TP2, bfloat16, plain optimizer": {"parallel": TENSOR} | BFLOAT16 | PLAIN,
    "TP3": {"parallel": {"tensor": 3, "world_size": 3}, "objective": KL},
    "PP2": {"parallel": PIPELINE, "objective": KL},
    "PP2, plain optimizer": {"parallel": PIPELINE, "objective": KL} | PLAIN,
    "PP2, bfloat16, plain optimizer": {"parallel": PIPELINE} | BFLOAT16 | PLAIN,
    "TP2 DP2": {"parallel": {"tensor": 2, "world_size": 4}, "objective": KL},
    "TP2 DP2, bfloat16": {"parallel": {"tensor": 2, "world_size": 4}} | BFLOAT16,
    "PP2 DP2": {"parallel": {"pipeline": 2, "world_size": 4}},
    "PP2 DP2, bfloat16": {"parallel": {"pipeline": 2, "world_size": 4}, "objective": KL} | BFLOAT16,
    "PP2 DP2, all overlaps": {"parallel": {"pipeline": 2, "world_size": 4}, "objective": KL} | OVERLAP,
    "TP2 PP2, plain optimizer": {"parallel": {"tensor": 2, "pipeline": 2, "world_size": 4}, "objective": KL} | PLAIN,
}


def test_a_rank_goes_on_exactly(tmp_path: Path) -> None:
    check_layouts(LAYOUTS, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_a_rank_goes_on_exactly_under_every_layout(tied: bool, tmp_path: Path) -> None:
    check_layouts(LAYOUTS | WIDE, tmp_path, tied=tied)


def check_layouts(layouts: dict[str, dict[str, Any]], directory: Path, *, tied: bool = True) -> None:
    path = make_checkpoint(directory / "model", tied=tied)
    jobs = []
    for number, layout in enumerate(layouts.values()):
        config = make_config(path, **({"policy__optimizer": OPTIMIZER} | layout))
        saved = directory / f"saved-{number}"
        saved.mkdir()
        shards = shard_step(make_samples(16), config)
        # A worker each, one after the other: the second knows nothing of the first but what lies in the files.
        jobs += [(config, (shards, str(saved), first)) for first in (True, False)]
    results = run_workers(jobs, keep_or_go_on, timeout_s=1500)
    for name, kept, gone_on in zip(layouts, results[::2], results[1::2], strict=True):
        assert kept == gone_on, name
        norms, rates = zip(*kept, strict=True)
        assert min(norms) > 0, name
        assert len(set(rates)) == 2, name


def keep_or_go_on(
    worker: MegatronWorker, config: RunConfig, rank: int, shards: list[BatchShard], directory: str, first: bool
) -> list[tuple[float, float]] | None:
    """The first worker trains, is saved, and trains on; the second goes on from there. (norm, rate) of the last
    updates."""
    shard, after = shards[worker._grid.position(rank).data], f"{directory}/{rank}-after"
    if first:
        train(worker, shard, renew=worker._reference is not None)
        before, saved = keep_state(worker), str(save_checkpoint(worker, config, directory))
        assert_same(keep_state(worker), before)  # saving changes nothing
        result = train(worker, shard)
        torch.save({"result": result, "kept": as_plain(keep_state(worker))}, after)
        # Over other moments, which are there.
        train(worker, shard)
        worker.load_checkpoint(saved)
        assert_same(keep_state(worker), before)
        assert_same(train(worker, shard), result)
    else:
        fresh = keep_state(worker)
        worker.load_checkpoint(f"{directory}/step-000001")
        assert any(
            not torch.equal(one, other) for one, other in zip(keep_state(worker).tensors, fresh.tensors, strict=True)
        )
        result = train(worker, shard)
        expected = torch.load(after, weights_only=True)
        assert_same({"result": result, "kept": as_plain(keep_state(worker))}, expected)
    gathered: list[Any] = [None] * config.parallel.world_size
    dist.all_gather_object(gathered, result["updates"])
    return [(norm, rate) for norm, rate, _ in next(filter(None, gathered))] if rank == 0 else None


def as_plain(kept: Kept) -> dict[str, Any]:
    return {"tensors": kept.tensors, "updates": kept.updates, "step": kept.step}


def train(worker: MegatronWorker, shard: BatchShard, *, renew: bool = False) -> dict[str, Any]:
    """A step of two updates; `renew`: the reference in between. What this rank reports of it."""
    scored = worker.score(shard) or []
    updates = []
    for index in range(2):
        report = worker.train_mini_batch(index, Controls(step=1, seed=0))
        if report is not None:
            updates.append((report.grad_norm, report.lr, report.sums.sum_N))
        if renew and index == 0:
            worker.reset_reference()
    columns = [
        torch.from_numpy(column)
        for mini in scored
        for batch in mini
        for column in (batch.old_logp_R, batch.old_entropy_R, batch.ref_logp_R)
        if column is not None
    ]
    return {"updates": updates, "scores": columns}


def assert_same(found: Any, expected: Any, *, where: str = "state") -> None:
    """To the bit, and of the same types."""
    assert type(found) is type(expected) or isinstance(expected, torch.Tensor), where
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), where
        assert torch.equal(found, expected), where
    elif isinstance(expected, Kept):
        assert_same(as_plain(found), as_plain(expected), where=where)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            assert_same(found[name], value, where=f"{where} {name}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, where=f"{where} {index}")
    else:
        assert found == expected, where


def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path, other = make_checkpoint(tmp_path / "model"), make_checkpoint(tmp_path / "deeper", num_hidden_layers=2)
    saved = tmp_path / "saved"
    saved.mkdir()
    config, reference = make_config(path), make_config(path, objective=KL)
    shards = shard_step(make_samples(16), config)
    run_workers([(config, (shards, str(saved)))], train_and_save)
    of_other, of_reference = run_workers(
        [(make_config(other), (str(saved / "step-000001"),)), (reference, (str(saved / "step-000001"),))], refuse
    )
    assert (
        "is of another model than model.path: num_layers: expected 2, found 4. Use a checkpoint of this model"
        in of_other
    )
    missing = r"does not hold what this run needs: reference\.\S+: expected \[.*\], found none; .*; and \d more\. Is it"
    assert re.search(missing, of_reference), of_reference
    assert "and of a run with a reference where this one has a KL?" in of_reference


def train_and_save(
    worker: MegatronWorker, config: RunConfig, rank: int, shards: list[BatchShard], directory: str
) -> None:
    train(worker, shards[0])
    save_checkpoint(worker, config, directory)


def refuse(worker: MegatronWorker, config: RunConfig, rank: int, checkpoint: str) -> str:
    before = keep_state(worker)
    with pytest.raises(CheckpointError) as caught:
        worker.load_checkpoint(checkpoint)
    assert_same(keep_state(worker), before)
    return str(caught.value)


class Fused(torch.optim.Optimizer):
    """Counts its updates by group, as fused optimizers on a GPU do."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})


@pytest.mark.parametrize("steps", [3, torch.tensor(3)])
def test_updates_that_are_counted_by_group_are_state_too(steps: int | torch.Tensor) -> None:
    main = torch.nn.Parameter(torch.ones(2))
    optimizer = Fused([main])
    assert Moments(optimizer, main).step == 0
    optimizer.param_groups[0]["step"] = steps
    moments = Moments(optimizer, main)
    assert moments.step == 3
    moments.step = 5
    assert int(optimizer.param_groups[0]["step"]) == 5
    assert isinstance(optimizer.param_groups[0]["step"], type(steps))
    forget_moments(SimpleNamespace(optimizer=optimizer, chained_optimizers=[SimpleNamespace(optimizer=optimizer)]))
    assert moments.step == 0


def test_moments_that_are_made_ahead_are_those_of_the_first_update() -> None:
    """An optimizer that was looked at before its first update makes the same updates."""
    results = []
    for ahead in (True, False):
        main = torch.nn.Parameter(torch.arange(4.0))
        optimizer = torch.optim.AdamW([main], lr=0.1)
        if ahead:
            assert Moments(optimizer, main).step == 0
        for gradient in (1.0, -3.0):
            main.grad = torch.full_like(main, gradient)
            optimizer.step()
        moments = Moments(optimizer, main)
        assert moments.step == 2
        results.append([main.detach(), *(moments[name] for name in MOMENTS)])
    assert_same(*results)


def test_what_nobody_would_save_is_refused() -> None:
    main = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([main], amsgrad=True)
    main.grad = torch.ones(2)
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"AdamW keeps \['max_exp_avg_sq'\] of a parameter, which no checkpoint"):
        Moments(optimizer, main)


def test_data_ranks_write_about_as_much_each() -> None:
    writers = deal({"a": 10, "b": 7, "c": 4, "d": 3, "e": 2}, ranks=2)
    assert writers == {"a": 0, "b": 1, "c": 1, "d": 0, "e": 1}  # 13 and 13
    assert deal({"a": 1}, ranks=3) == {"a": 0}
