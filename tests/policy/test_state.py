"""A fresh rank that loads the state of another goes on bit for bit as that one did."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megarl.config.run import RunConfig
from megarl.controller.batching import shard_step
from megarl.objective.tokens import Controls
from megarl.parallel.batches import BatchShard
from megarl.policy.state import RankState
from megarl.policy.worker import MegatronWorker
from tests.policy.ranks import copy_state, make_checkpoint, make_config, make_samples, run_workers

KL: dict[str, Any] = {"auxiliary": {"kl": {"coefficient": 0.5}}}
OPTIMIZER = {"lr": 1e-2, "weight_decay": 0.1, "schedule": "cosine", "warmup_updates": 2, "clip_grad_norm": 0.5}
PLAIN = {"policy__distributed_optimizer": False}
BFLOAT16 = {"model__dtype": "bfloat16"}
TENSOR, PIPELINE = {"tensor": 2, "world_size": 2}, {"pipeline": 2, "world_size": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one rank": {"objective": KL},
    "one rank, bfloat16, plain optimizer": BFLOAT16 | PLAIN,
    "DP2, bfloat16": {"parallel": {"world_size": 2}, "objective": KL} | BFLOAT16,
    "TP2, plain optimizer": {"parallel": TENSOR, "objective": KL} | PLAIN,
    "PP2, bfloat16": {"parallel": PIPELINE} | BFLOAT16,
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
        states = directory / f"states-{number}"
        states.mkdir()
        shards = shard_step(make_samples(16), config)
        # A worker each, one after the other: the second knows nothing of the first but what lies in the files.
        jobs += [(config, (shards, str(states), first)) for first in (True, False)]
    results = run_workers(jobs, keep_or_go_on, timeout_s=1500)
    for name, kept, gone_on in zip(layouts, results[::2], results[1::2], strict=True):
        assert kept == gone_on, name
        norms, rates = zip(*kept, strict=True)
        assert min(norms) > 0, name
        assert len(set(rates)) == 2, name


def keep_or_go_on(
    worker: MegatronWorker, config: RunConfig, rank: int, shards: list[BatchShard], directory: str, first: bool
) -> list[tuple[float, float]] | None:
    """The first worker trains, keeps its state, and trains on; the second goes on from there. (norm, rate) of the last
    updates."""
    shard, state, after = shards[worker._grid.position(rank).data], f"{directory}/{rank}", f"{directory}/{rank}-after"
    if first:
        start = copy_state(worker.state_dict())
        before = train(worker, shard, renew=worker._reference is not None)
        torch.save(worker.state_dict(), state)
        result = train(worker, shard)
        torch.save({"result": result, "state": worker.state_dict()}, after)
        worker.load_state_dict(start)
        assert_same(worker.state_dict(), start)
        assert_same(train(worker, shard, renew=worker._reference is not None), before)
        # Over other moments, which are there.
        train(worker, shard)
        worker.load_state_dict(torch.load(state, weights_only=True))
        assert_same(worker.state_dict(), torch.load(state, weights_only=True))
    else:
        kept = torch.load(state, weights_only=True)
        assert differs(kept, worker.state_dict())
        worker.load_state_dict(kept)
        assert_same(worker.state_dict(), kept)
        result = train(worker, shard)
        assert_same({"result": result, "state": worker.state_dict()}, torch.load(after, weights_only=True))
    gathered: list[Any] = [None] * config.parallel.world_size
    dist.all_gather_object(gathered, result["updates"])
    return [(norm, rate) for norm, rate, _ in next(filter(None, gathered))] if rank == 0 else None


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


def differs(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """In the weights of every parameter that this rank's optimizer updates."""
    return all(not torch.equal(found["weights"][key], expected["weights"][key]) for key in found["optimizer"]) and bool(
        found["optimizer"]
    )


def test_the_shares_of_data_ranks_make_up_the_parameters(tmp_path: Path) -> None:
    """What the distributed optimizer keeps in parts is what the plain one keeps whole."""
    path = make_checkpoint(tmp_path / "model")
    unclipped = OPTIMIZER | {"clip_grad_norm": 1e6}
    layouts: list[dict[str, Any]] = [{"parallel": {"world_size": 2}} | BFLOAT16 | plain for plain in ({}, PLAIN)]
    configs = [make_config(path, policy__optimizer=unclipped, **layout) for layout in layouts]
    jobs = [(config, (shard_step(make_samples(16), config),)) for config in configs]
    parts, whole = run_workers(jobs, gather_shares)
    assert parts.keys() == whole.keys()
    several = 0
    for key, shares in parts.items():
        assert [share["start"] for share in whole[key]] == [0, 0]
        several += len(shares) > 1
        for name in ("main", "exp_avg", "exp_avg_sq"):
            joined = torch.cat([share[name] for share in sorted(shares, key=lambda share: share["start"])])
            assert joined == pytest.approx(whole[key][0][name].flatten(), rel=1e-5, abs=1e-9), f"{key} {name}"
    assert several > 0


def gather_shares(
    worker: MegatronWorker, config: RunConfig, rank: int, shards: list[BatchShard]
) -> dict[str, list[dict[str, Any]]] | None:
    """By parameter, what each data rank keeps of it."""
    train(worker, shards[rank])
    mine = {
        key: {"start": share["start"], "main": share["main"], **share["moments"]}
        for key, share in worker.state_dict()["optimizer"].items()
    }
    gathered: list[Any] = [None] * 2
    dist.all_gather_object(gathered, mine)
    keys = {key: None for shares in gathered for key in shares}
    return {key: [shares[key] for shares in gathered if key in shares] for key in keys} if rank == 0 else None


def test_a_state_of_another_rank_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model")
    config = make_config(path, objective=KL, **BFLOAT16)
    messages = run_workers([(config, (shard_step(make_samples(16), config),))], refuse_states)[0]
    expected = {
        "no steps": r"policy rank state has keys \['format', .*'reference', 'up.*\], expected \['format', .*'steps', ",
        "format": r"from this state: format: expected 1, found 2\.",
        "layout": r"from this state: tensor: expected 1, found 2\. A state is of one rank",
        "no weight": r": weights 0:decoder\.final_layernorm\.weight: expected bfloat16 \[96\], found none\.",
        "dtype": r"final_layernorm\.weight: expected bfloat16 \[96\], found float32 \[96\]\.",
        "no reference": r"reference 0:\S+: expected bfloat16 \[\d+.*\], found none; .*; and \d\d more\.",
        "no main": r"norm\.weight: expected 96 elements from 0 and their float32 copy, found 96 elements from 0\.",
        "share": r"final_layernorm\.weight: expected 96 elements from 0 and .*, found 96 elements from 48 and their",
        "moment": r"0:decoder\.final_layernorm\.weight exp_avg: expected \[96\], found \[95\]\.",
        "no start": r"optimizer's 0:decoder\.final_\S+ state has keys \['main', 'moments', 'size'\], expected",
    }
    assert messages.keys() == expected.keys()
    for name, message in messages.items():
        assert re.search(expected[name], message), f"{name}: {message}"


def refuse_states(worker: MegatronWorker, config: RunConfig, rank: int, shards: list[BatchShard]) -> dict[str, str]:
    name = "0:decoder.final_layernorm.weight"
    other = copy_state(worker.state_dict())
    train(worker, shards[0])
    good = copy_state(worker.state_dict())
    share, norm = good["optimizer"][name], good["weights"][name]
    wrong_moments = share["moments"] | {"exp_avg": share["moments"]["exp_avg"][1:]}
    bad = {
        "no steps": {key: value for key, value in other.items() if key != "steps"},
        "format": other | {"format": 2},
        "layout": other | {"layout": other["layout"] | {"tensor": 2}},
        "no weight": other | {"weights": {key: value for key, value in other["weights"].items() if key != name}},
        "dtype": other | {"weights": other["weights"] | {name: norm.float()}},
        "no reference": other | {"reference": None},
        "no main": with_share(other, name, share | {"main": None}),
        "share": with_share(other, name, share | {"start": 48}),
        "moment": with_share(other, name, share | {"moments": wrong_moments}),
        "no start": with_share(other, name, {key: value for key, value in share.items() if key != "start"}),
    }
    messages = {}
    for what, state in bad.items():
        with pytest.raises(ValueError, match="state") as caught:
            worker.load_state_dict(state)
        messages[what] = str(caught.value)
        assert_same(worker.state_dict(), good)
    return messages


def with_share(state: dict[str, Any], name: str, share: dict[str, Any]) -> dict[str, Any]:
    return state | {"optimizer": state["optimizer"] | {name: share}}


@pytest.mark.parametrize("steps", [3, torch.tensor(3)])
def test_updates_that_are_counted_by_group_are_state_too(steps: int | torch.Tensor) -> None:
    """As fused optimizers on a GPU count them."""
    fused, other = make_rank(), make_rank()
    group = fused[1].param_groups[0]
    group["step"] = steps
    state = fused[0].state_dict(updates=3)
    assert state["steps"] == [3]
    assert other[0].load_state_dict(copy_state(state)) == 3
    assert other[1].param_groups[0]["step"] == 3
    fresh = make_rank()[0].state_dict(updates=0)
    assert other[0].load_state_dict(fresh) == 0
    assert "step" not in other[1].param_groups[0]


def make_rank() -> tuple[RankState, torch.optim.Optimizer]:
    chunk = torch.nn.Linear(2, 2)
    inner = torch.optim.AdamW(chunk.parameters())
    optimizer: Any = SimpleNamespace(optimizer=inner, param_groups=inner.param_groups)
    return RankState([chunk], None, optimizer, layout={}), inner
