"""Every weight, main weight and moment is, element by element, what was saved: under any other layout."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from megarl.checkpoint.dist_reader import open_dist_checkpoint
from megarl.config.run import RunConfig
from megarl.controller.batching import shard_step
from megarl.parallel.batches import BatchShard
from megarl.planning.checkpoint_size import checkpoint_bytes
from megarl.policy.worker import MegatronWorker
from tests.policy.ranks import make_checkpoint, make_config, make_samples, run_workers
from tests.policy.states import assemble, hash_elements, keep_state, save_checkpoint
from tests.policy.test_state import BFLOAT16, KL, PLAIN, train

SAVED: dict[str, dict[str, Any]] = {
    "DP2, bfloat16": {"parallel": {"world_size": 2}, "objective": KL} | BFLOAT16,
    "TP2": {"parallel": {"tensor": 2, "world_size": 2}},
}
LOADED: dict[str, dict[str, Any]] = {
    "one rank, plain optimizer": PLAIN,
    "PP2": {"parallel": {"pipeline": 2, "world_size": 2}},
}
WIDE_SAVED: dict[str, dict[str, Any]] = {
    "TP2 PP2, KL": {"parallel": {"tensor": 2, "pipeline": 2, "world_size": 4}, "objective": KL},
    "DP2 PP2, bfloat16": {"parallel": {"pipeline": 2, "world_size": 4}} | BFLOAT16,
    "TP2 DP2, KL, bfloat16": {"parallel": {"tensor": 2, "world_size": 4}, "objective": KL} | BFLOAT16,
    "DP2, plain optimizer, KL": {"parallel": {"world_size": 2}, "objective": KL} | PLAIN,
}
WIDE_LOADED: dict[str, dict[str, Any]] = {
    "one rank": {},
    "TP3": {"parallel": {"tensor": 3, "world_size": 3}},
    "DP3": {"parallel": {"world_size": 3}},
    "TP2 DP2, plain optimizer": {"parallel": {"tensor": 2, "world_size": 4}} | PLAIN,
    "PP4": {"parallel": {"pipeline": 4, "world_size": 4}},
}


def test_every_element_comes_back_under_another_layout(tmp_path: Path) -> None:
    check_layouts(SAVED, LOADED, tmp_path, tied=True)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_every_element_comes_back_under_every_layout(tied: bool, tmp_path: Path) -> None:
    check_layouts(SAVED | WIDE_SAVED, LOADED | WIDE_LOADED, tmp_path, tied=tied)


def check_layouts(
    saved: dict[str, dict[str, Any]], loaded: dict[str, dict[str, Any]], directory: Path, *, tied: bool
) -> None:
    # 12 heads in 6 groups and a vocabulary of 77, which every number of tensor ranks pads to another size.
    path = make_checkpoint(directory / "model", tied=tied)
    saves = {}
    for number, (name, layout) in enumerate(saved.items()):
        (directory / str(number)).mkdir()
        saves[name] = (layout, str(directory / str(number)))
    jobs = [
        (made := configure(path, layout), (shard_step(make_samples(12), made), at)) for layout, at in saves.values()
    ]
    before = dict(zip(saves, run_workers(jobs, train_and_save, timeout_s=1200), strict=True))
    pairs = list(product(saves, loaded))
    # What is not of the layout is as it was saved: the dtype, and whether there is a reference.
    jobs = [(configure(path, of_run(saves[name][0]) | loaded[other]), (saves[name][1],)) for name, other in pairs]
    for (name, other), after in zip(pairs, run_workers(jobs, load_and_hash, timeout_s=1200), strict=True):
        assert after == before[name], f"{name}, then {other}"


def configure(path: Path, layout: dict[str, Any]) -> RunConfig:
    return make_config(path, **({"train__mini_batch_responses": 6, "train__samples_per_prompt": 3} | layout))


def of_run(layout: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in layout.items() if name in ("model__dtype", "objective")}


def train_and_save(
    worker: MegatronWorker, config: RunConfig, rank: int, shards: list[BatchShard], directory: str
) -> dict[str, Any] | None:
    """Hashes of what the ranks hold, which are those of what the files hold."""
    train(worker, shards[worker._grid.position(rank).data], renew=worker._reference is not None)
    saved = save_checkpoint(worker, config, directory)
    whole = assemble(worker)
    if whole is None:
        return None
    hashes = hash_elements(whole)
    with open_dist_checkpoint(saved, verify=True) as checkpoint:
        assert checkpoint.tensors.keys() == hashes.keys()
        found = {key: checkpoint.read(key, (0,) * len(of.shape), of.shape) for key, of in checkpoint.tensors.items()}
    assert hash_elements(found) == hashes
    moments = [tensor for key, tensor in whole.items() if key.startswith("optimizer.state.exp_avg_sq.")]
    assert all(bool((tensor > 0).any()) for tensor in moments)
    size = sum(tensor.nbytes for tensor in whole.values())
    assert size == checkpoint_bytes(worker._shape, config)
    assert len(moments) == sum(not key.startswith(("optimizer.", "reference.")) for key in whole)
    return {"hashes": hashes, "updates": worker._updates, "step": worker._state.optimizer_step}


def load_and_hash(worker: MegatronWorker, config: RunConfig, rank: int, directory: str) -> dict[str, Any] | None:
    worker.load_checkpoint(f"{directory}/step-000001")
    whole = assemble(worker)
    if whole is None:
        return None
    step = worker._state.optimizer_step
    return {"hashes": hash_elements(whole), "updates": worker._updates, "step": step}


def test_weights_alone_begin_anew(tmp_path: Path) -> None:
    """A fresh optimizer, a reference of the same weights; from bfloat16 the float32 ones are taken where they are."""
    path, saved = make_checkpoint(tmp_path / "model"), tmp_path / "saved"
    saved.mkdir()
    written = configure(path, BFLOAT16 | {"parallel": {"world_size": 2}})
    run_workers([(written, (shard_step(make_samples(12), written), str(saved)))], train_and_save)
    for dtype in ("float32", "bfloat16"):
        config = configure(path, {"model__dtype": dtype, "objective": KL})
        run_workers([(config, (str(saved / "step-000001"),))], check_weights_alone)


def check_weights_alone(worker: MegatronWorker, config: RunConfig, rank: int, directory: str) -> None:
    first = keep_state(worker)
    worker.load_checkpoint(directory, weights_only=True)
    state = worker._state
    assert (worker._updates, state.optimizer_step) == (0, 0)
    assert any(not torch.equal(a, b) for a, b in zip(first.tensors, keep_state(worker).tensors, strict=True))
    whole = assemble(worker)
    assert whole is not None
    main, half = "optimizer.state.fp32_param.", config.model.dtype == "bfloat16"
    with open_dist_checkpoint(directory) as checkpoint:
        for key in (key for key in checkpoint.tensors if not key.startswith("optimizer.")):
            exact = checkpoint.read(main + key, (0,) * len(whole[key].shape), tuple(whole[key].shape))
            assert torch.equal(whole[key], exact.to(whole[key].dtype)), key
            assert torch.equal(whole[key], whole[f"reference.{key}"]), key
            assert not half or torch.equal(whole[main + key], exact), key
            assert not whole[f"optimizer.state.exp_avg.{key}"].any(), key
