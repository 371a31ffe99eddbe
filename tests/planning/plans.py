"""The numbers that `megarl plan` prints for a model of configs/shapes."""

from megarl.cli.plan import make_plan
from megarl.cli.plan_config import PlanOptions, load_planned
from megarl.planning.run_plan import RunPlan
from tests.models.shapes import CONFIGS


def plan_of(name: str, *overrides: str, gib: float = 80, **options: int) -> RunPlan:
    """`options` are fields of PlanOptions."""
    planned = load_planned(CONFIGS / f"{name}.json", overrides, PlanOptions(**options))
    return make_plan(planned, gpu_memory_gib=gib).plan
