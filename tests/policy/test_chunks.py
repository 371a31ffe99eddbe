"""The model of a rank is a list of chunks: two of them on each stage, a virtual pipeline, compute what one does.

Three stages, because Megatron's interleaved schedule sends both ways at once: with two, the neighbours on both sides
are one rank, and what goes to the next stage is taken for what comes from the one before. (Megatron's remedy,
overlap_p2p_comm, does not send the lengths of packed micro-batches so.)
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megarl.controller.batching import shard_step
from megarl.models.families import read_model_shape
from megarl.models.layout import layout_of
from megarl.models.table import hf_tensors, list_parameters
from tests.dist.gloo import run_on_ranks
from tests.policy.ranks import make_checkpoint, make_config, make_samples

STAGES = 3
LAYERS = 6
MICRO_BATCHES = 6
"""The interleaved schedule wants as many as stages in a group."""

Outcome = tuple[list[torch.Tensor], list[int], float, dict[str, torch.Tensor]]
"""Log-probs of the micro-batches, layers of each chunk, the gradient's norm, and what is exported after the update."""


def with_one_and_two_chunks(paths: list[str]) -> list[tuple[Outcome, Outcome]]:
    from megarl.parallel.device import prepare_process

    prepare_process()
    return [(score_and_update(path, virtual=1), score_and_update(path, virtual=2)) for path in paths]


def score_and_update(path: str, *, virtual: int) -> Outcome:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from megarl.policy.optimizer import build_optimizer, set_learning_rate, wrap_data_parallel
    from megarl.policy.passes import Passes
    from megarl.policy.weights import build_chunks, export_hf_weights
    from megarl.reshard.gather import plan_gather

    device = torch.device("cpu")
    interleaved = {"virtual_pipeline_model_parallel_size": virtual} if virtual > 1 else {}
    parallel_state.initialize_model_parallel(1, STAGES, *interleaved.values())
    model_parallel_cuda_manual_seed(0)
    config = make_config(
        Path(path),
        parallel__pipeline=STAGES,
        parallel__world_size=STAGES,
        policy__megatron_overrides=interleaved,
        policy__tokens_per_micro_batch=24,
    )
    shape = read_model_shape(path)
    layouts = [
        layout_of(shape, tensor_rank=0, tensor_size=1, pipeline_rank=stage, pipeline_size=STAGES, virtual=virtual)
        for stage in range(STAGES)
    ]
    chunks = build_chunks(config, shape=shape, layout=layouts[dist.get_rank()], device=device)
    (shard,) = shard_step(make_samples(16), config)
    batches = [batch for mini in shard for batch in mini][:MICRO_BATCHES]
    assert len(batches) == MICRO_BATCHES
    assert len({batch.num_stream_tokens for batch in batches}) > 1  # their lengths have to be sent, too

    def loss(_: int, batch: Any, token: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return -(token.logp_T * batch.columns_R["advantage"]).sum() / 100, token.logp_T.detach()

    ddp = wrap_data_parallel(chunks, distributed_optimizer=False)
    optimizer = build_optimizer(ddp, config=config.policy.optimizer, dtype=torch.float32, distributed_optimizer=False)
    set_learning_rate(optimizer, 1e-2)
    passes = Passes(device=device)
    scored = passes.run(chunks, batches, loss, temperature=1.0, backward=False)
    logps = passes.run(ddp, batches, loss, temperature=1.0, backward=True)
    for before, again in zip(scored, logps, strict=True):
        assert torch.equal(before, again)
    _, grad_norm, _ = optimizer.step()
    entries = {stage: list_parameters(shape, layout) for stage, layout in enumerate(layouts)}
    plan = plan_gather(entries, hf_tensors(shape), bucket_bytes=20_000, dtype=torch.float32)
    weights = {name: tensor.clone() for name, tensor in export_hf_weights(chunks, plan)}
    parallel_state.destroy_model_parallel()
    return logps, [len(chunk.decoder.layers) for chunk in chunks], float(grad_norm), weights


def test_a_virtual_pipeline_computes_what_one_chunk_does(tmp_path: Path) -> None:
    """With tied embeddings and without."""
    paths = [str(make_checkpoint(tmp_path / str(tied), tied=tied, num_hidden_layers=LAYERS)) for tied in (True, False)]
    results = run_on_ranks(with_one_and_two_chunks, STAGES, paths, timeout_s=400.0)
    for at, path in enumerate(paths):
        for stage, of_stage in enumerate(results):
            one, two = of_stage[at]
            assert (one[1], two[1]) == ([2], [1, 1])
            num_scored = MICRO_BATCHES if stage == STAGES - 1 else 0  # the last stage has the tokens
            assert (len(one[0]), len(two[0])) == (num_scored, num_scored)
            for expected, found in zip(one[0], two[0], strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(two[2], one[2], rtol=1e-5, atol=1e-7)
        (one, two), *_ = (of_stage[at] for of_stage in results)
        assert one[3].keys() == two[3].keys() == hf_tensors(read_model_shape(path)).keys()
        for name, expected in one[3].items():
            torch.testing.assert_close(
                two[3][name], expected, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )
