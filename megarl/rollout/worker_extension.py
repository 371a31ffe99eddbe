"""What megarl adds to vLLM's workers: calls that answer instead of raising.

vLLM reads the workers' answers one after the other and stops at the first that is an error: the answers of the other
tensor ranks stay in their queues and are taken for those of the next call, which ends the engine. A publication that
fails must leave the engine sampling.
"""

from dataclasses import asdict
from typing import Any

import torch
from vllm.logger import init_logger

from megarl.parallel.memory_meter import MemoryMeter

_log = init_logger(__name__)


class WorkerExtension:
    """Mixed into vLLM's worker class by the engine argument `worker_extension_cls`."""

    device: torch.device
    """vLLM's worker sets it."""
    weight_transfer_engine: Any
    """Likewise: `transfer_engine.MegarlWeightTransferEngine`."""
    _megarl_meter: MemoryMeter | None = None

    def megarl_call(self, method: str, arguments: dict[str, Any]) -> str | None:
        """Call the worker's own `method`; what went wrong, or None."""
        try:
            getattr(self, method)(**arguments)
        except Exception as error:
            _log.exception("%s failed", method)
            return str(error) or type(error).__name__
        return None

    def megarl_disconnect(self) -> None:
        """End the session with the policy, if there is one, and let go of its memory."""
        self.weight_transfer_engine.shutdown()

    def megarl_memory(self) -> dict[str, int | None]:
        """The fields of a `MemoryUse`: of this worker, since the last call; the first is of the time since it began."""
        if self._megarl_meter is None:
            self._megarl_meter = MemoryMeter(self.device)
        return asdict(self._megarl_meter.read())
