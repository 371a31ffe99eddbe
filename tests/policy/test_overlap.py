"""Weights that are gathered while a forward goes on are waited for wherever something else than a module reads them."""

from types import SimpleNamespace
from typing import Any

import torch

from megarl.policy.model import PolicyModel
from megarl.policy.optimizer import _await_weight, settle_weights
from megarl.policy.worker import MegatronWorker


class Group:
    """Buckets that are gathered together."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self._name, self._calls = name, calls
        self.param_gather_dispatched = False

    def finish_param_sync(self, *, skip_next_bucket_dispatch: bool) -> None:
        assert skip_next_bucket_dispatch, "what comes next is gathered when it is asked for"
        self._calls.append(self._name)
        self.param_gather_dispatched = True


def wrapped(calls: list[str], *, overlap: bool = True) -> Any:
    """Megatron's data-parallel wrapper of two groups, the first with the last parameters."""
    head, embedding = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    groups = [Group("head", calls), Group("embedding", calls)]
    return SimpleNamespace(
        ddp_config=SimpleNamespace(overlap_param_gather=overlap),
        bucket_groups=groups,
        expert_parallel_bucket_groups=[],
        param_to_bucket_group={head: groups[0], embedding: groups[1]},
        head=head,
    )


def test_all_are_settled_in_the_order_of_a_forward() -> None:
    """The same on every rank, so that none waits for another's."""
    calls: list[str] = []
    settle_weights([wrapped(calls), wrapped(calls, overlap=False)])
    assert calls == ["embedding", "head"]


def test_one_weight_is_waited_for() -> None:
    calls: list[str] = []
    ddp = wrapped(calls)
    _await_weight(ddp, ddp.head)
    _await_weight(ddp, torch.nn.Parameter(torch.zeros(2)))  # of another chunk
    assert calls == ["head"]


def test_the_head_waits_for_its_weight() -> None:
    """Its product is not the output layer's own forward, for which Megatron's hooks would wait."""
    asked: list[torch.Tensor] = []
    tied, own = torch.zeros(3), torch.ones(3)
    model: Any = SimpleNamespace(
        output_layer=SimpleNamespace(weight=own),
        shared_embedding_or_output_weight=lambda: tied,
        share_embeddings_and_output_weights=False,
        await_weight=asked.append,
    )
    assert PolicyModel._head_weight(model) is own
    model.share_embeddings_and_output_weights = True
    assert PolicyModel._head_weight(model) is tied
    assert asked == [own, tied]


def test_whoever_reads_a_ranks_weights_finds_them_settled() -> None:
    """What is published, saved and exported, and what a reference becomes."""
    calls: list[str] = []
    module = torch.nn.Linear(1, 1)

    def note(name: str) -> Any:
        return lambda *_, **__: calls.append(name)

    rank: Any = SimpleNamespace(
        _ddp=[wrapped(calls)],
        _sender=SimpleNamespace(publish=note("publish")),
        _saver=SimpleNamespace(stage=note("stage")),
        _state=SimpleNamespace(saved=note("saved"), optimizer_step=1),
        _updates=1,
        _place=SimpleNamespace(rank=1),
        _grid=SimpleNamespace(position=lambda _: SimpleNamespace(data=1)),
        _check_here=note("check"),
        _memory=SimpleNamespace(enter=lambda _: None),
        _reference=[SimpleNamespace(load_state_dict=note("reference"))],
        _chunks=[module],
        _optimizer=SimpleNamespace(chained_optimizers=[]),
    )
    settled = ["embedding", "head"]
    MegatronWorker.publish_weights(rank, 1)
    assert calls == [*settled, "publish"]
    calls.clear()
    MegatronWorker.stage_checkpoint(rank, "here")
    assert calls == [*settled, "saved", "stage"]
    calls.clear()
    MegatronWorker.export_hf(rank, "here")
    assert calls == settled, "of a replica that exports nothing too: gathering takes all of them"
    calls.clear()
    MegatronWorker.reset_reference(rank)
    assert calls == ["check", *settled, "reference"]


def test_what_was_gathered_before_an_update_is_gathered_again_after_it() -> None:
    """Whoever reads weights between a step's gradients and its update has had the old ones gathered; Megatron takes
    them for the new ones then."""
    ddp = wrapped([])
    settle_weights([ddp])
    rank: Any = SimpleNamespace(
        _ddp=[ddp],
        _refuse_non_finite=lambda *_: None,
        _device=torch.device("cpu"),
        _optimizer=SimpleNamespace(step=lambda: (True, 1.0, None)),
        _reports=False,
    )
    MegatronWorker._finish_update(rank, [], (), traced=range(0))
    assert not any(group.param_gather_dispatched for group in ddp.bucket_groups)
