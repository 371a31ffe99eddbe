"""`megarl plan`: the numbers of `planning.run_plan`, with what a person must change in this command's own words."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from megarl.cli.paths import shown_path
from megarl.cli.plan_config import Planned
from megarl.config.dump import format_value
from megarl.planning.changes import Changes
from megarl.planning.engine_memory import GIB, RolloutMemory
from megarl.planning.fit import LAYOUT
from megarl.planning.run_plan import RunPlan, plan_run
from megarl.planning.turns import OF_ENGINES, SharedMemory, could_move, fraction_beside
from megarl.planning.updates import longest_sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """Everything `megarl plan` prints."""

    model: str
    shape_file: str | None
    """What was read in place of a model that is not on this machine."""
    plan: RunPlan
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the numbers, with totals, whether they fit, and what to change."""
        numbers = asdict(self.plan)
        del numbers["engine_that_starts"]  # a warning says it
        for stage, memory in zip(numbers["policy"], self.plan.policy, strict=True):
            stage["total"] = memory.total
        if shared := self.plan.shared:
            for numbers_of_turn, turn in zip(numbers["shared"]["turns"], shared.turns, strict=True):
                numbers_of_turn["total"] = turn.total
        if fit := self.plan.fit:
            numbers["fit"] = {"arguments": arguments_of(fit.changes), "total_bytes": fit.total_bytes}
        return {
            "model": self.model,
            "shape_file": self.shape_file,
            **numbers,
            "warnings": self.warnings,
            "policy_fits": self.plan.policy_fits,
            "rollout_fits": self.plan.rollout_fits,
        }


def make_plan(planned: Planned, *, gpu_memory_gib: float) -> PlanReport:
    """Plan a layout that can work."""
    plan = plan_run(planned.placed, planned.shape, gpu_memory_gib=gpu_memory_gib, nodes_chosen=planned.nodes_typed)
    return PlanReport(
        model=planned.model,
        shape_file=None if planned.shape_file is None else shown_path(planned.shape_file),
        plan=plan,
        warnings=tuple(_warnings(plan, planned)),
    )


def _warnings(plan: RunPlan, planned: Planned) -> Iterator[str]:
    """What does not fit, its largest part, and what to change."""
    if not plan.policy_fits:
        worst = plan.worst
        name, size = max(worst.items.items(), key=lambda item: item[1])
        change = (
            f"it fits ({plan.fit.total_bytes / GIB:.1f} GiB) with {' '.join(arguments_of(plan.fit.changes))}"
            if plan.fit
            else ("no split of this model that was tried fits; shorten the sequences, or use GPUs with more memory")
        )
        yield (
            f"the policy does not fit: stage {worst.stage} needs {worst.total / GIB:.1f} of "
            f"{plan.policy_limit / GIB:g} GiB{_beside(plan)}, most of it {name} ({size / GIB:.1f} GiB); {change}"
        )
    rollout = plan.rollout
    if not rollout.starts:
        yield (
            f"an engine does not fit: of the {rollout.budget / GIB:.1f} GiB that rollout.memory_fraction gives it, "
            f"weights take {rollout.weights / GIB:.1f} GiB, and the KV cache needs "
            f"{_longest_kv_gib(planned, rollout):.2f} GiB for one sequence of the longest; {_engine_advice(plan)}"
        )
    elif plan.shared is not None:
        yield from _turns_warnings(plan, plan.shared, planned)
    elif not plan.rollout_fits:
        yield (
            f"an engine's staging memory does not fit: {rollout.staging / GIB:.1f} GiB beside the "
            f"{rollout.budget / GIB:.1f} GiB of rollout.memory_fraction; set rollout.publish.staging=host, or lower "
            "rollout.memory_fraction"
        )


def _beside(plan: RunPlan) -> str:
    return " beside an engine that sleeps" if plan.shared else ""


def _turns_warnings(plan: RunPlan, shared: SharedMemory, planned: Planned) -> Iterator[str]:
    """Phases of engines for which the policy does not leave enough of its GPUs."""
    over = [turn for turn in shared.turns if turn.name in OF_ENGINES and turn.total > plan.gpu_memory_bytes]
    if not over:
        return
    worst = max(over, key=lambda turn: turn.total)
    fraction = fraction_beside(planned.config, planned.shape, shared, gpu_bytes=plan.gpu_memory_bytes)
    if fraction is not None and [turn.name for turn in over] == ["generate"]:
        change = f"set rollout.memory_fraction={fraction:g}"
    else:
        change = (
            "split policy and engines over more GPUs (--tensor, --pipeline, --rollout-tensor), or take more (--gpus)"
        )
    if len(shared.moved) < len(could_move(planned.config)):
        change += f", or let more move: cluster.offload={format_value(list(could_move(planned.config)))}"
    yield (
        f"policy and engines do not fit in turns: {worst.name} takes {worst.total / GIB:.1f} of "
        f"{plan.gpu_memory_bytes / GIB:g} GiB, {worst.policy / GIB:.1f} of it the policy's and "
        f"{worst.engine / GIB:.1f} the engine's; {change}"
    )


def _longest_kv_gib(planned: Planned, rollout: RolloutMemory) -> float:
    return longest_sequence(planned.config) * rollout.kv_bytes_per_token / GIB


def _engine_advice(plan: RunPlan) -> str:
    if plan.engine_that_starts:
        return f"use --rollout-tensor {plan.engine_that_starts}"
    return (
        f"no engine on the {plan.layout.gpus_per_node} GPUs of a node does; use GPUs with more memory, a smaller "
        "model, or nodes of more GPUs (--gpus-per-node)"
    )


def arguments_of(changes: Changes) -> tuple[str, ...]:
    """As `megarl plan` and, the options apart, every verb takes them."""
    options = dict(zip(LAYOUT, ("--gpus", "--tensor", "--pipeline"), strict=True))
    layout = (f"{option} {changes[path]}" for path, option in options.items() if path in changes)
    others = ((path, value) for path, value in changes.items() if path not in options)
    return (*layout, *(f"{path}={value if isinstance(value, str) else format_value(value)}" for path, value in others))
