"""vLLM's weight-transfer backend "megarl": one worker's end of a publication.

vLLM drives it: `init_transfer_engine` once, then per version `start_weight_update`, which begins to receive beside
sampling; `update_weights`, which returns when the version is whole in every worker of every engine; and
`finish_weight_update`, which installs it. Sampling need rest during the last only.

Invariant: the model changes inside `finish_weight_update` and nowhere else. vLLM calls that after `update_weights` has
returned in all workers of the engine, so that all of them install a version or none does.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from megarl.reshard.receiver import WeightReceiver
from megarl.reshard.record import Recording
from megarl.reshard.session import Offer, Targets, WeightEndpoint
from megarl.rollout.install import install_weights
from megarl.rollout.recording import record_model


@dataclass
class MegarlInitInfo(WeightTransferInitInfo):
    """Where the policy's store is, and which engine this is among all: the fields of WeightEndpoint, and one."""

    host: str
    port: int
    token: str
    secret: str = field(repr=False)
    timeout_s: float
    engine_index: int

    def endpoint(self) -> WeightEndpoint:
        return WeightEndpoint(**{name: value for name, value in asdict(self).items() if name != "engine_index"})


@dataclass
class MegarlUpdateInfo(WeightTransferUpdateInfo):
    """Which version to install."""

    version: int


class MegarlWeightTransferEngine(WeightTransferEngine[MegarlInitInfo, MegarlUpdateInfo]):
    """Worker rank = engine index x tensor-parallel size + tensor-parallel rank."""

    init_info_cls = MegarlInitInfo
    update_info_cls = MegarlUpdateInfo
    supports_draft_weight_update = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receiver: WeightReceiver | None = None
        self._recording: Recording | None = None

    def init_transfer_engine(self, init_info: MegarlInitInfo) -> None:
        """Connect to the policy; a second call replaces the first connection."""
        self.shutdown()
        parallel = self.parallel_config
        if parallel.pipeline_parallel_size > 1 or parallel.data_parallel_size > 1:
            raise ValueError(
                f"the megarl weight transfer feeds tensor-parallel engines; this one has pipeline parallel size "
                f"{parallel.pipeline_parallel_size} and data parallel size {parallel.data_parallel_size}; set both to 1"
            )
        worker = init_info.engine_index * parallel.tensor_parallel_size + get_tensor_model_parallel_rank()
        self._receiver = WeightReceiver(init_info.endpoint(), worker=worker, record=self._record, device=self.device)

    def _record(self, offer: Offer) -> Targets:
        if offer.tensor != self.parallel_config.tensor_parallel_size:
            raise ValueError(
                f"the policy expects engines of {offer.tensor} tensor ranks, this one has "
                f"{self.parallel_config.tensor_parallel_size}"
            )
        self._recording = record_model(self.model, self.model_config, offer.tensors, offer.dtype)
        return self._recording.targets

    def start_weight_update(self) -> None:
        """Begin to receive the next version in the background."""
        if self._receiver is None:
            raise RuntimeError("init_weight_transfer_engine must be called before the first weight update")
        self._receiver.begin()

    def receive_weights(self, update_info: MegarlUpdateInfo) -> None:
        """Wait for the version.

        Raises:
            TransportError: it did not come whole; the model is as it was.
        """
        assert self._receiver is not None
        self._receiver.await_version(update_info.version)

    def finish_weight_update(self) -> None:
        """Install the version that came; leave a session in which no other comes."""
        assert self._receiver is not None
        assert self._recording is not None
        install_weights(self.model, self.model_config, self._receiver, self._recording, device=self.device)
        if self._receiver.offer.once:
            self.shutdown()

    @staticmethod
    def trainer_send_weights(iterator: Any, trainer_args: Any) -> None:
        """Abstract in vLLM 0.26, gone in 0.32: megarl's policy sends to the workers itself."""
        raise NotImplementedError("megarl.reshard.sender sends the weights; vLLM's trainer side is not used")

    def shutdown(self) -> None:
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None
