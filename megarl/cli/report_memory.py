"""The plan of a run's memory for its report: from the configuration that it was started with, in plain numbers."""

from megarl.cli.plan_config import find_shape
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from megarl.config.run import RunConfig
from megarl.models.families import read_model_shape
from megarl.models.shape import ModelError, ModelShape
from megarl.planning.engine_memory import GIB
from megarl.planning.timeline import plan_timeline
from megarl.report.memory_charts import PlannedMemory, PlannedPhase, Planner
from megarl.telemetry.run_directory import RunDirectory


def memory_planner(run: RunDirectory) -> Planner:
    """Plans when the report asks, which knows the GPUs."""

    def plan(gpu_gib: float | None) -> PlannedMemory:
        try:
            config = load_config(run.config_path, [])
            shape = _read_shape(run, config)
            gpu_bytes = None if gpu_gib is None else int(gpu_gib * GIB)
            turns = plan_timeline(config, shape, gpu_bytes=gpu_bytes)
        except (ConfigError, ModelError, OSError) as error:
            return PlannedMemory(problem=str(error).partition("\n")[0])
        phases = (PlannedPhase(name=turn.name, policy=turn.policy / GIB, engine=turn.engine / GIB) for turn in turns)
        return PlannedMemory(phases=tuple(phases))

    return plan


def _read_shape(run: RunDirectory, config: RunConfig) -> ModelShape:
    """Of the model that the run began with; where that is gone, of what the run exported."""
    exported = next(iter(sorted(run.exports.glob("step-*/config.json"))), None)
    try:
        return read_model_shape(find_shape(config.model.path, near=run.config_path)[0])
    except (ConfigError, ModelError):
        if exported is None:
            raise
        return read_model_shape(exported)
