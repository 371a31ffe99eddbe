"""vLLM's weight-transfer backend "megarl": one worker's end of the weight stream.

vLLM drives it: `init_transfer_engine` once, then per version `start_weight_update`, `update_weights` (which calls
`receive_weights`), `finish_weight_update`. Between start and finish the model's layers are in checkpoint format, and
each is processed back into kernel format when its last weight has come, so a whole second copy of the model never
exists.

Invariant: after `finish_weight_update` every loadable element of every layer came from the stream exactly once. A
stream that lacks a tensor, repeats one or has an unknown one is an error, before the engine samples from a mixture of
versions.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from megarl.reshard.transport import Transport, TransportError, WeightEndpoint, WeightReceiver

_NAMES_IN_MESSAGE = 8


@dataclass
class MegarlInitInfo(WeightTransferInitInfo):
    """Where the sender is, and which engine this is among all: the fields of WeightEndpoint, and two."""

    host: str
    port: int
    token: str
    transport: Transport
    receivers: int
    timeout_s: float
    device: str
    engine_index: int

    def endpoint(self) -> WeightEndpoint:
        return WeightEndpoint(**{name: value for name, value in asdict(self).items() if name != "engine_index"})


@dataclass
class MegarlUpdateInfo(WeightTransferUpdateInfo):
    """Which version to take from the stream."""

    version: int


class MegarlWeightTransferEngine(WeightTransferEngine[MegarlInitInfo, MegarlUpdateInfo]):
    """Receiver rank = engine index x tensor-parallel size + tensor-parallel rank."""

    init_info_cls = MegarlInitInfo
    update_info_cls = MegarlUpdateInfo
    supports_draft_weight_update = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receiver: WeightReceiver | None = None
        self._tied: dict[str, torch.nn.Module] = {}

    def init_transfer_engine(self, init_info: MegarlInitInfo) -> None:
        """Connect to the sender; a second call replaces the first connection."""
        self.shutdown()
        parallel = self.parallel_config
        if parallel.pipeline_parallel_size > 1 or parallel.data_parallel_size > 1:
            raise ValueError(
                f"the megarl weight stream feeds tensor-parallel engines; this one has pipeline parallel size "
                f"{parallel.pipeline_parallel_size} and data parallel size {parallel.data_parallel_size}; set both to 1"
            )
        rank = init_info.engine_index * parallel.tensor_parallel_size + get_tensor_model_parallel_rank()
        self._receiver = WeightReceiver(init_info.endpoint(), rank=rank, device=self.device)

    def start_weight_update(self) -> None:
        """Put every layer into checkpoint format."""
        if self._receiver is None:
            raise RuntimeError("init_weight_transfer_engine must be called before the first weight update")
        self._tied = _find_tied_layers(self.model)
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: MegarlUpdateInfo) -> None:
        """Load the version from the stream and check that the model is complete.

        Raises:
            TransportError: the stream failed.
            ValueError: the stream does not fit the model; names the tensors or layers.
        """
        assert self._receiver is not None
        try:
            with disable_mtp_completeness_check(), torch.device(self.device):
                self.model.load_weights(_once(self._receiver.receive(update_info.version)))
            _check_complete(self.model, tied=self._tied)
        except TransportError:
            raise
        except BaseException as error:
            self._receiver.abort(update_info.version, f"{type(error).__name__}: {error}")
            raise

    def finish_weight_update(self) -> None:
        """Process what layer-wise loading left (attention, padded vocabularies)."""
        with torch.device(self.device):
            finalize_layerwise_reload(self.model, self.model_config)
            # A tied output layer got its weight through the embedding: nothing told it to renew what it made of it.
            for layer in self._tied.values():
                layer.quant_method.process_weights_after_loading(layer)  # type: ignore[union-attr, operator]

    def shutdown(self) -> None:
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None


def _once(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    seen: set[str] = set()
    for name, tensor in tensors:
        if name in seen:
            raise ValueError(f"tensor {name} came twice in one version")
        seen.add(name)
        yield name, tensor


def _expected_numel(layer: torch.nn.Module, total: int) -> int:
    """Elements the stream must fill: all, less the rows that pad a vocabulary to vLLM's multiple."""
    if not isinstance(layer, VocabParallelEmbedding):
        return total
    shards = layer.shard_indices
    padded_rows = shards.num_elements_padded - shards.num_org_elements
    per_row = sum(tensor.numel() // tensor.shape[0] for tensor in layer._parameters.values() if tensor is not None)
    return total - padded_rows * per_row


def _find_tied_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Layers all of whose parameters are an earlier layer's: an output layer tied to the embedding."""
    owned: set[int] = set()
    tied = {}
    for name, layer in model.named_modules():
        addresses = {parameter.data_ptr() for parameter in layer.parameters(recurse=False) if parameter.numel()}
        if addresses and addresses <= owned:
            tied[name] = layer
        owned |= addresses
    return tied


def _check_complete(model: torch.nn.Module, *, tied: Mapping[str, torch.nn.Module]) -> None:
    """Every layer still waiting for weights is short of some, except attention (none of its own) and tied layers."""
    short = []
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        if not info.can_load() or name in tied or is_deferred_attention_layer(layer):
            continue
        if not any(True for _ in layer.parameters(recurse=False)):
            continue
        expected = _expected_numel(layer, info.load_numel_total or 0)
        if info.load_numel != expected:
            short.append(f"{name} ({info.load_numel} of {expected} elements)")
    if short:
        raise ValueError(
            f"the published weights do not fill {len(short)} layers of the model: "
            f"{', '.join(short[:_NAMES_IN_MESSAGE])}{', ...' if len(short) > _NAMES_IN_MESSAGE else ''}; the sender "
            "must publish every tensor of the checkpoint"
        )
