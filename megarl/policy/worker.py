"""One policy rank: model, optimizer, and the work of a step. Testable without Ray.

Every rank of a replica runs every method, in the same order; results come back from the replica's reporter (last
pipeline stage, first tensor rank) and are None elsewhere.
"""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megarl.checkpoint.hf import open_hf_checkpoint, save_hf_checkpoint
from megarl.config.objective import ObjectiveConfig
from megarl.config.policy import OptimizerConfig
from megarl.config.run import RunConfig
from megarl.models.shape import read_model_shape
from megarl.models.table import hf_tensors
from megarl.objective.loss import LossInputs, compute_token_loss
from megarl.objective.statistics import TokenSums, collect_token_sums, merge_token_sums
from megarl.parallel.batches import BatchShard, MiniBatch
from megarl.parallel.grid import RankGrid
from megarl.parallel.packing import PackedMicroBatch
from megarl.policy.model import DTYPES, PolicyModel, build_transformer_config
from megarl.policy.optimizer import build_optimizer, learning_rate, set_learning_rate, wrap_data_parallel
from megarl.policy.passes import Passes, TokenFunction
from megarl.policy.process import RankPlace, join_policy_group, leave_policy_group
from megarl.policy.reports import NonFiniteLossError, ScoredMicroBatch, UpdateReport
from megarl.policy.weights import export_hf_weights, load_hf_weights, plan_export, rank_layout
from megarl.reshard.gather import GatherPlan
from megarl.reshard.transport import WeightEndpoint, WeightSender
from megarl.telemetry.metrics import Max, Metrics


class MegatronWorker:
    """The policy on one rank."""

    def __init__(
        self, config: RunConfig, place: RankPlace, *, optimizer: OptimizerConfig, total_updates: int, reference: bool
    ) -> None:
        """Join the group, build the model, read the weights. `reference` keeps a frozen copy for the KL."""
        self._config = config
        self._grid = RankGrid(
            tensor=config.parallel.tensor, pipeline=config.parallel.pipeline, data=config.parallel.data
        )
        self._place = place
        self._device = join_policy_group(
            place,
            parallel=config.parallel,
            timeout_s=config.policy.collective_timeout_s,
            seed=config.train.seed,
        )
        self._shape = read_model_shape(Path(config.model.path))
        self._layout = rank_layout(self._shape, grid=self._grid, rank=place.rank)
        self._dtype = DTYPES[config.model.dtype]
        self._optimizer_config, self._total_updates, self._updates = optimizer, total_updates, 0
        self._model = self._build_model()
        self._reference = self._build_model().requires_grad_(False).eval() if reference else None
        distributed = config.policy.distributed_optimizer
        self._ddp = wrap_data_parallel(self._model, config=self._model.config, distributed_optimizer=distributed)
        self._optimizer = build_optimizer(
            self._ddp, config=optimizer, dtype=self._dtype, distributed_optimizer=distributed
        )
        self._passes = Passes(vocab_size=self._shape.vocab_size, device=self._device)
        self._held: BatchShard = ()
        self._scores: list[list[ScoredMicroBatch]] = []
        self._sender: WeightSender | None = None
        self._publish_plan: GatherPlan | None = None

    def _build_model(self) -> PolicyModel:
        config = build_transformer_config(
            self._shape, model=self._config.model, parallel=self._config.parallel, policy=self._config.policy
        )
        pipeline_rank = self._grid.position(self._place.rank).pipeline
        model = PolicyModel(config, self._shape, pipeline_rank=pipeline_rank).to(self._device)
        checkpoint = open_hf_checkpoint(Path(self._config.model.path))
        checkpoint.validate(hf_tensors(self._shape))
        load_hf_weights(model, checkpoint, shape=self._shape, layout=self._layout)
        return model

    @property
    def _reports(self) -> bool:
        return self._place.rank == self._grid.reporter(self._grid.position(self._place.rank).data)

    def score(self, shard: BatchShard) -> list[list[ScoredMicroBatch]] | None:
        """Hold the step's mini-batches and compute old (and reference) log-probs of their response tokens."""
        self._held = shard
        batches = [batch for mini in shard for batch in mini]
        self._model.eval()
        old = self._logp(self._model, batches)
        self._model.train()
        ref = self._logp(self._reference, batches) if self._reference is not None else [None] * len(old)
        flat = iter(ScoredMicroBatch(old_logp_R=old_R, ref_logp_R=ref_R) for old_R, ref_R in zip(old, ref, strict=True))
        self._scores = [[next(flat) for _ in mini] for mini in shard] if old else []
        if not self._reports:
            return None
        return [[_to_host(scored) for scored in mini] for mini in self._scores]

    def _logp(self, model: PolicyModel, batches: Sequence[PackedMicroBatch]) -> list[Tensor]:
        def keep(_index: int, _batch: PackedMicroBatch, logp_R: Tensor, _entropy: Tensor) -> tuple[Tensor, Tensor]:
            return logp_R.new_zeros(()), logp_R

        with torch.no_grad():
            return self._passes.run(model, batches, keep, temperature=self._config.rollout.temperature, backward=False)

    def train_mini_batch(self, index: int) -> UpdateReport | None:
        """One update on held mini-batch `index` with the configured objective; `score` held it."""
        scores = self._scores[index] if self._scores else []

        def loss(at: int, batch: PackedMicroBatch, logp_R: Tensor, entropy_R: Tensor) -> tuple[Tensor, TokenSums]:
            return _token_loss(
                self._config.objective,
                LossInputs(
                    logp_T=logp_R,
                    entropy_T=entropy_R,
                    old_logp_T=scores[at].old_logp_R,
                    advantage_T=batch.advantage_R,
                    weight_T=batch.weight_R,
                    ref_logp_T=scores[at].ref_logp_R,
                ),
            )

        return self._update(self._held[index], loss, temperature=self._config.rollout.temperature)

    def sft_update(self, batches: MiniBatch) -> UpdateReport | None:
        """One update that raises the log-probs of the given responses: loss = -sum of weight * logp."""

        def loss(_at: int, batch: PackedMicroBatch, logp_R: Tensor, entropy_R: Tensor) -> tuple[Tensor, TokenSums]:
            inputs = LossInputs(
                logp_T=logp_R.detach(),
                entropy_T=entropy_R,
                old_logp_T=logp_R.detach(),
                advantage_T=batch.advantage_R,
                weight_T=batch.weight_R,
            )
            _, sums = _token_loss(_PLAIN_OBJECTIVE, inputs)
            return -(batch.weight_R * logp_R).sum(), sums

        return self._update(batches, loss, temperature=1.0)

    def _update(self, batches: MiniBatch, loss: TokenFunction, *, temperature: float) -> UpdateReport | None:
        self._updates += 1
        lr = learning_rate(self._updates, config=self._optimizer_config, total_updates=self._total_updates)
        set_learning_rate(self._optimizer, lr)
        self._ddp.zero_grad_buffer()
        self._optimizer.zero_grad()
        parts: list[TokenSums] = self._passes.run(self._ddp, batches, loss, temperature=temperature, backward=True)
        sums = merge_token_sums(parts, device=self._device)
        self._refuse_non_finite(sums, parts, batches)
        _, grad_norm, _ = self._optimizer.step()
        if not self._reports:
            return None
        return UpdateReport(
            sums=TokenSums(sums.sum_N.cpu(), sums.max_M.cpu()), grad_norm=float(grad_norm or 0.0), lr=lr
        )

    def _refuse_non_finite(self, sums: TokenSums, parts: Sequence[TokenSums], batches: MiniBatch) -> None:
        """NonFiniteLossError on every rank, before the optimizer acts, when any rank has a NaN or infinity.

        One scalar all-reduce and one host read per update; only on failure are the micro-batches looked at one by one.
        """
        checked = [buffer.grad_data.norm().double() for buffer in self._ddp.buffers] + [sums.sum_N.sum()]
        bad = (~torch.isfinite(torch.stack(checked)).all()).float()
        dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        if not bad.item():
            return
        mine = [
            batch.sample_ids
            for part, batch in zip(parts, batches, strict=False)
            if not torch.isfinite(part.sum_N).all()
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

    def connect_engines(self, *, num_receivers: int) -> WeightEndpoint | None:
        """Open the sending side of publication on rank 0; the engines get what it returns. None on other ranks."""
        publish = self._config.rollout.publish
        self._publish_plan = plan_export(
            self._shape, grid=self._grid, bucket_bytes=publish.bucket_mib << 20, dtype=self._dtype
        )
        if self._place.rank != 0:
            return None
        self._sender = WeightSender(
            transport=publish.transport,
            receivers=num_receivers,
            bucket_bytes=publish.bucket_mib << 20,
            timeout_s=publish.timeout_s,
            host=self._place.master_host,
            device=self._device,
        )
        return self._sender.endpoint

    def await_engines(self) -> None:
        """Wait until every engine has connected to what `connect_engines` opened."""
        if self._sender is not None:
            self._sender.connect()

    def publish_weights(self, version: int) -> Metrics | None:
        """Send the current weights to all engines as `version`; rank 0 says what moved."""
        if self._grid.position(self._place.rank).data != 0:
            return None
        if self._publish_plan is None:
            raise RuntimeError("publish_weights before connect_engines")
        tensors = export_hf_weights(self._model, self._publish_plan)
        if self._sender is None:
            deque(tensors, maxlen=0)
            return None
        report = self._sender.send(version, tensors)
        return {"publish/bytes": Max(float(report.bytes)), "publish/tensors": Max(float(report.tensors))}

    def export_hf(self, path: str) -> None:
        """Write a Hugging Face checkpoint: rank 0 writes what the first replica holds."""
        if self._grid.position(self._place.rank).data != 0:
            return
        plan = plan_export(self._shape, grid=self._grid, bucket_bytes=_EXPORT_BUCKET_BYTES, dtype=self._dtype)
        tensors = export_hf_weights(self._model, plan)
        if self._place.rank == 0:
            save_hf_checkpoint(Path(path), tensors, source=Path(self._config.model.path), dtype=self._dtype)
        else:
            deque(tensors, maxlen=0)

    def close(self) -> None:
        """Leave the process groups and free the sender's shared memory."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        leave_policy_group()


_EXPORT_BUCKET_BYTES = 1 << 30

_PLAIN_OBJECTIVE = ObjectiveConfig()
"""For the statistics of supervised updates: they have no reference, whatever the run's objective says."""


def _token_loss(objective: ObjectiveConfig, inputs: LossInputs) -> tuple[Tensor, TokenSums]:
    token_loss = compute_token_loss(objective, inputs)
    return token_loss.loss, collect_token_sums(objective.clip, objective.kl, inputs, token_loss)


def _to_host(scored: ScoredMicroBatch) -> ScoredMicroBatch:
    ref_R = None if scored.ref_logp_R is None else scored.ref_logp_R.cpu()
    return ScoredMicroBatch(old_logp_R=scored.old_logp_R.cpu(), ref_logp_R=ref_R)
