"""One policy rank: model, optimizer, and the work of a step. Testable without Ray.

Every rank of a replica runs every method, in the same order; results come back from the replica's reporter (last
pipeline stage, first tensor rank) and are None elsewhere.
"""

import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megarl.checkpoint.dist_reader import open_dist_checkpoint
from megarl.checkpoint.hf import save_hf_checkpoint
from megarl.checkpoint.manifest import check_model
from megarl.checkpoint.rank_saver import RankSaver, WrittenPart
from megarl.checkpoint.run_checkpoint import RunCheckpoint
from megarl.checkpoint.saved import StagedNumbers
from megarl.config.cluster import Moved
from megarl.config.policy import OptimizerConfig
from megarl.config.run import RunConfig
from megarl.models.families import read_model_shape
from megarl.objective.accounting import collect_token_sums
from megarl.objective.loop_numbers import LoopChoice
from megarl.objective.token_sums import TokenSums
from megarl.objective.tokens import Controls
from megarl.parallel.attention_choice import use_attention
from megarl.parallel.batches import BatchShard, MiniBatch
from megarl.parallel.device import collective_backend
from megarl.parallel.grid import RankGrid
from megarl.parallel.memory_meter import MeteredPhases
from megarl.policy.loading import load_state, load_weights
from megarl.policy.mini_batch import ObjectivePasses, TokenParts, data_parallel_reduce
from megarl.policy.model import DTYPES, PolicyModel, uses_transformer_engine
from megarl.policy.offload import Offload
from megarl.policy.optimizer import (
    build_optimizer,
    forget_gather,
    forget_moments,
    gradient_buffers,
    learning_rate,
    set_learning_rate,
    settle_weights,
    wrap_data_parallel,
)
from megarl.policy.passes import Passes
from megarl.policy.process import RankPlace, join_policy_group, leave_policy_group
from megarl.policy.reports import GpuUse, MicroBatchScores, NonFiniteLossError, ScoredMicroBatch, UpdateReport
from megarl.policy.state import DataPlace, RankState, moved_tensors
from megarl.policy.token_batches import make_traces, merge_parts
from megarl.policy.weights import (
    build_chunks,
    export_hf_weights,
    layer_spec,
    make_offer,
    plan_export,
    rank_layout,
    shared_parameters,
)
from megarl.reshard.sender import WeightSender, serve_weights
from megarl.reshard.session import WeightEndpoint
from megarl.reshard.tally import PublishReport
from megarl.telemetry.memory_phases import ByPhase

_log = logging.getLogger(__name__)


class MegatronWorker:
    """The policy on one rank."""

    def __init__(
        self, config: RunConfig, place: RankPlace, *, optimizer: OptimizerConfig, total_updates: int, reference: bool
    ) -> None:
        """Join the group, build the model, read the weights. `reference` keeps a frozen copy for the KL."""
        self._config = config
        self._grid = RankGrid.of(config.parallel)
        self._place = place
        self._device = join_policy_group(
            place,
            grid=self._grid,
            timeout_s=config.policy.collective_timeout_s,
            seed=config.train.seed,
            backend=config.policy.backend,
        )
        self._shape = read_model_shape(Path(config.model.path))
        self._layout = rank_layout(self._shape, grid=self._grid, rank=place.rank)
        self._dtype = DTYPES[config.model.dtype]
        attention = self._attention()
        self._optimizer_config, self._total_updates, self._updates = optimizer, total_updates, 0
        self._lr = optimizer.lr
        self._chunks = self._build_chunks()
        self._reference = self._build_chunks() if reference else None
        for chunk in self._reference or ():
            chunk.requires_grad_(False).eval()
        distributed = config.policy.distributed_optimizer
        nccl = collective_backend(config.policy.backend) == "nccl"
        overlap = config.policy.overlap_of(data_ranks=self._grid.data, nccl=nccl)
        if place.rank == 0:
            _log.info("attention: %s", attention)
            _log.info("overlap of the data-parallel ranks (policy.overlap %s): %s", config.policy.overlap, overlap)
        self._ddp = wrap_data_parallel(
            self._chunks,
            distributed_optimizer=distributed,
            overlap=overlap,
            bucket_elements=config.policy.bucket_elements,
        )
        self._optimizer = build_optimizer(
            self._ddp,
            config=optimizer,
            dtype=self._dtype,
            distributed_optimizer=distributed,
            overlap=overlap,
            fused=self._device.type == "cuda",
        )
        self._state = RankState(
            self._chunks,
            self._reference,
            self._optimizer,
            shape=self._shape,
            layout=self._layout,
            spec=layer_spec(),
            data=DataPlace(rank=self._grid.position(place.rank).data, ranks=self._grid.data),
            present=self._present,
        )
        self._offload: Offload | None = None
        self._saver = RankSaver(place.rank, timeout_s=config.checkpoint.timeout_s)
        self._objective = ObjectivePasses(
            config.objective,
            Passes(device=self._device),
            device=self._device,
            temperature=config.rollout.temperature,
        )
        self._held: BatchShard = ()
        self._scores: list[list[ScoredMicroBatch]] = []
        self._differentiated: tuple[TokenParts, MiniBatch] | None = None
        self._store: Any = None
        self._sender: WeightSender | None = None
        self._memory = MeteredPhases(self._device)
        self._memory.enter("generate")

    def _attention(self) -> str:
        """Have this process use the best kernels there are; which."""
        if uses_transformer_engine():
            return "Transformer Engine's, which chooses among FlashAttention and cuDNN"
        return use_attention(self._dtype, self._device)

    def _build_chunks(self) -> list[PolicyModel]:
        return build_chunks(self._config, shape=self._shape, layout=self._layout, device=self._device)

    def _present(self, tensor: Tensor) -> Tensor:
        return tensor if self._offload is None else self._offload.present(tensor)

    def _check_here(self, verb: str) -> None:
        """RuntimeError while the rank's memory is given back: engines use the GPU, and nothing here may."""
        if self._offload is not None and self._offload.away:
            raise RuntimeError(f"policy rank {self._place.rank} cannot {verb}: it has given its memory to the engines")

    def _begin(self, phase: str, verb: str, *, step: bool = False) -> None:
        """A phase that needs the rank's memory. step: it may be a step's first."""
        self._check_here(verb)
        if step:
            self._memory.begin_step()
        self._memory.enter(phase)

    def give_way(self, moved: Sequence[Moved]) -> GpuUse | None:
        """Give gradients back and move the named to host memory, for engines on the same GPU; the weights stay, and
        can be published, exported and saved. Nothing where that is so already. None without a GPU.

        Raises OffloadError where the host has no room: all of it is still here.
        """
        if self._differentiated is not None:
            raise RuntimeError("give_way before apply_update: gradients that wait for it would be lost")
        self._memory.enter(None)
        self._optimizer.zero_grad()
        if self._offload is None:
            tensors = moved_tensors(self._state, moved)
            self._offload = Offload(dropped=gradient_buffers(self._ddp), moved=tensors, device=self._device)
        self._offload.give()
        self._memory.enter("wake")
        if self._device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info(self._device)
        return GpuUse(used=total - free, reserved=torch.cuda.memory_reserved(self._device))

    def take_back(self) -> None:
        """Everything is here again, as it was but for the gradients. OffloadError where the GPU has no room."""
        self._memory.begin_step()
        self._memory.enter(None)
        if self._offload is not None:
            self._offload.take()

    def memory(self) -> ByPhase:
        """What this rank used in the phases of the step that have ended."""
        return self._memory.report()

    def gpu_bytes(self) -> int | None:
        """Memory of the rank's GPU; None without one."""
        if self._device.type != "cuda":
            return None
        return int(torch.cuda.get_device_properties(self._device).total_memory)

    @property
    def _reports(self) -> bool:
        return self._place.rank == self._grid.reporter(self._grid.position(self._place.rank).data)

    def score(self, shard: BatchShard, *, hold: bool = True) -> list[list[MicroBatchScores]] | None:
        """Old log-probs and entropies of the response tokens; `hold` keeps the batch for updates, which also need
        the reference's log-probs."""
        self._begin("score", "compute log-probs", step=True)
        reference = self._reference if hold else None
        flat = iter(self._objective.score(self._chunks, reference, [batch for mini in shard for batch in mini]))
        scores = [[scored for _, scored in zip(mini, flat, strict=False)] for mini in shard]
        if hold:
            self._held, self._scores = shard, scores
        return [[scored.report() for scored in mini] for mini in scores] if self._reports else None

    def train_mini_batch(self, index: int, controls: Controls, *, traced: range = range(0)) -> UpdateReport | None:
        """One update on held mini-batch `index` with the configured objective; `score` held it.

        The report traces the tokens of the samples whose id is in `traced`.
        """
        self._begin("update", "make an update")
        batches, scores = self._held[index], self._scores[index]
        choices = self._objective.choose(self._chunks, batches, scores, controls, first=index == 0)
        self._prepare_update()
        parts = self._objective.differentiate(self._ddp, batches, scores, choices, controls, first=index == 0)
        return self._finish_update(parts, batches, traced=traced, loop=choices[0].loop if choices else None)

    def score_and_differentiate(self, shard: BatchShard, controls: Controls) -> list[list[MicroBatchScores]] | None:
        """What `score` returns, by the forward of the step's only update, for whose gradients `apply_update` waits: no
        weight changes before the caller has seen the scores. Nothing is held."""
        self._begin("update", "make an update", step=True)
        (batches,) = shard
        self._prepare_update()
        parts, scores = self._objective.score_and_differentiate(self._ddp, self._reference, batches, controls)
        self._differentiated = (parts, batches)
        return [[scored.report() for scored in scores]] if self._reports else None

    def apply_update(self, *, traced: range = range(0)) -> UpdateReport | None:
        """The update whose gradients `score_and_differentiate` left; reports as `train_mini_batch` does."""
        if self._differentiated is None:
            raise RuntimeError("apply_update before score_and_differentiate: there are no gradients to apply")
        (parts, batches), self._differentiated = self._differentiated, None
        return self._finish_update(parts, batches, traced=traced)

    def sft_update(self, batches: MiniBatch) -> UpdateReport | None:
        """One update that raises the log-probs of the given responses: loss = -sum of weight * logp."""
        self._begin("update", "make an update")
        self._prepare_update()
        return self._finish_update(self._objective.imitate(self._ddp, batches), batches, traced=range(0))

    def _prepare_update(self) -> None:
        self._updates += 1
        lr = learning_rate(self._updates, config=self._optimizer_config, total_updates=self._total_updates)
        set_learning_rate(self._optimizer, lr)
        self._lr = lr
        for chunk in self._ddp:
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()

    def _finish_update(
        self, parts: TokenParts, batches: MiniBatch, *, traced: range, loop: LoopChoice | None = None
    ) -> UpdateReport | None:
        """Count the tokens, then let the optimizer act on the gradients."""
        self._refuse_non_finite(parts, batches)
        sums, traces = TokenSums.zeros(self._device), []
        if parts:
            tokens, loss = merge_parts(parts)
            sums = collect_token_sums(tokens, loss, data_parallel_reduce())
            traces = make_traces(tokens, loss, ids=traced) if self._reports else []
        _, grad_norm, _ = self._optimizer.step()
        forget_gather(self._ddp)
        if not self._reports:
            return None
        return UpdateReport(
            sums=sums.cpu(), grad_norm=float(grad_norm or 0.0), lr=self._lr, traces=tuple(traces), loop=loop
        )

    def _refuse_non_finite(self, parts: TokenParts, batches: MiniBatch) -> None:
        """NonFiniteLossError on every rank, before the optimizer acts, when any rank has a NaN or infinity.

        One scalar all-reduce and one host read per update; only on failure are the micro-batches looked at one by one.
        """
        checked = [buffer.grad_data.norm().double() for chunk in self._ddp for buffer in chunk.buffers]
        checked += [_suspect(tokens.logp_T, tokens.entropy_T, loss.loss) for tokens, loss in parts]
        bad = (~torch.isfinite(torch.stack(checked)).all()).float()
        dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        if not bad.item():
            return
        mine = [
            batch.sample_ids
            for (tokens, loss), batch in zip(parts, batches, strict=False)
            if not torch.isfinite(_suspect(tokens.logp_T, tokens.entropy_T, loss.loss))
        ]
        # Only last stages have parts; every rank tells the same story, whichever is heard first.
        gathered: list[Any] = [None] * self._grid.world_size
        dist.all_gather_object(gathered, mine)
        culprits = [list(ids) for ids in sorted({ids for theirs in gathered for ids in theirs})]
        where = f"in the micro-batches with samples {culprits}" if culprits else "in the gradient (the loss is finite)"
        raise NonFiniteLossError(
            f"update {self._updates}: NaN or infinity {where}; no weight was changed. Look at the weights the run "
            "started from, at these samples (positions in the step), or lower the learning rate"
        )

    def reset_reference(self) -> None:
        """The reference becomes the current weights, and the optimizer's moments start anew (ProRL)."""
        self._check_here("renew the reference")
        if self._reference is None:
            raise RuntimeError("reset_reference: the objective has no KL, so there is no reference to renew")
        settle_weights(self._ddp)
        for reference, chunk in zip(self._reference, self._chunks, strict=True):
            reference.load_state_dict(chunk.state_dict())
        forget_moments(self._optimizer)

    def stage_checkpoint(self, directory: str) -> StagedNumbers:
        """Copy what this rank must save and begin to write it into `directory`; updates may go on when this returns.

        Raises CheckpointError where there is no host memory for the copy: nothing is being written then.
        """
        settle_weights(self._ddp)
        self._saver.stage(self._state.saved(), Path(directory))
        return StagedNumbers(updates=self._updates, optimizer_step=self._state.optimizer_step)

    def finish_checkpoint(self) -> WrittenPart:
        """When all of it is on the disk; waits in whatever thread calls it, beside updates. CheckpointError, once this
        rank writes no more, where it could not be written within checkpoint.timeout_s."""
        return self._saver.finish()

    def abandon_checkpoint(self) -> None:
        """Write no more of what is being written, if anything is."""
        self._saver.abandon()

    def load_checkpoint(self, directory: str, *, weights_only: bool = False) -> None:
        """Become what the run's checkpoint in `directory` says, whatever layout wrote it. A held batch is dropped.

        weights_only: with an optimizer and a schedule that begin, and a reference of these weights. Raises
        CheckpointError, naming file and tensor, where it is not of this model or damaged.
        """
        self._check_here("read a checkpoint")
        settle_weights(self._ddp)  # nothing that is still gathered may come over what is read
        manifest = RunCheckpoint.open(Path(directory)).manifest
        check_model(manifest, self._shape, directory)
        with open_dist_checkpoint(directory, verify=True) as checkpoint:
            if weights_only:
                load_weights(self._state, checkpoint)
            else:
                load_state(self._state, checkpoint, step=manifest.optimizer_step)
        self._updates = 0 if weights_only else manifest.updates
        self._held, self._scores, self._differentiated = (), [], None

    def open_session(self) -> WeightEndpoint | None:
        """Let engines find the policy; rank 0 returns where. Ends an earlier session."""
        self._leave_session()
        if self._place.rank != 0:
            return None
        self._store, endpoint = serve_weights(self._place.master_host, timeout_s=self._config.rollout.publish.timeout_s)
        return endpoint

    def join_session(self, endpoint: WeightEndpoint) -> None:
        """Meet the engines' workers and plan; every rank at once, while the engines connect."""
        offer = make_offer(self._shape, config=self._config, grid=self._grid, dtype=self._dtype, device=self._device)
        parameters = shared_parameters(self._chunks)
        self._sender = WeightSender(endpoint, offer, parameters, rank=self._place.rank, store=self._store)

    def publish_weights(self, version: int) -> PublishReport:
        """Send the current weights to all engines as `version`; the report is of this rank's part."""
        if self._sender is None:
            raise RuntimeError("publish_weights before join_session")
        self._memory.enter("publish")
        settle_weights(self._ddp)
        report = self._sender.publish(version)
        self._memory.enter("generate")
        return report

    def _leave_session(self) -> None:
        if self._sender is not None:
            self._sender.close()
        self._sender, self._store = None, None

    def export_hf(self, path: str) -> None:
        """Write a Hugging Face checkpoint: rank 0 writes what the first replica holds."""
        settle_weights(self._ddp)
        if self._grid.position(self._place.rank).data != 0:
            return
        plan = plan_export(self._shape, grid=self._grid, bucket_bytes=_EXPORT_BUCKET_BYTES, dtype=self._dtype)
        tensors = export_hf_weights(self._chunks, plan)
        if self._place.rank == 0:
            save_hf_checkpoint(Path(path), tensors, source=Path(self._config.model.path), dtype=self._dtype)
        else:
            deque(tensors, maxlen=0)

    def close(self) -> None:
        """Leave the engines and the process groups."""
        self._saver.close()
        self._leave_session()
        if self._offload is not None:
            self._offload.close()
        leave_policy_group()


_EXPORT_BUCKET_BYTES = 1 << 30


def _suspect(*values: Tensor) -> Tensor:
    """A scalar that is finite where every value is."""
    return torch.stack([value.double().sum() for value in values]).sum()
