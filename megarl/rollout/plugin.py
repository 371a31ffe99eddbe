"""The `vllm.general_plugins` entry point: makes the weight-transfer backend "megarl" known to vLLM.

vLLM calls `register` in every process of an engine, plain `vllm serve` included. It imports nothing heavy: the
backend's module is named, and vLLM imports it when an engine asks for that backend.
"""

BACKEND = "megarl"
WORKER_EXTENSION = "megarl.rollout.worker_extension.WorkerExtension"


def register() -> None:
    """Register the backend, once per process; watch the engine's owner where one is named; tell stacks when asked."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    from megarl.rollout.environment import watch_owner
    from megarl.telemetry.stacks import hear_stack_requests

    watch_owner()
    hear_stack_requests()
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            BACKEND, "megarl.rollout.transfer_engine", "MegarlWeightTransferEngine"
        )
