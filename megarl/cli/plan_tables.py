"""The tables of `megarl plan`. Memory is in GiB, what crosses links in GB: links are rated in powers of ten."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megarl.cli.plan import PlanReport
from megarl.planning.engine_memory import GIB
from megarl.planning.policy_memory import PolicyMemory
from megarl.planning.run_plan import RunPlan
from megarl.planning.turns import SharedMemory
from megarl.reshard.fanout import FANOUTS


def print_plan(console: Console, report: PlanReport) -> None:
    """Print everything; what does not fit, or that it does, comes last."""
    plan = report.plan
    line = f"{report.model}: {plan.family}, {plan.parameters / 1e9:.2f} B parameters, {plan.dtype}"
    console.print(Text(line, style="bold"), soft_wrap=True)
    if report.shape_file:
        console.print(Text(f"{report.model} is not here: planned from {report.shape_file}"), soft_wrap=True)
    _print_layout(console, plan)
    _print_policy(console, plan)
    _print_rollout(console, plan)
    if plan.shared:
        _print_turns(console, plan, plan.shared)
    _print_updates(console, plan)
    _print_publication(console, plan)
    console.print()
    for warning in report.warnings:
        console.print(Text(f"! {warning}", style="yellow"), soft_wrap=not console.is_terminal)
    if not report.warnings:
        memory = plan.gpu_memory_bytes / GIB
        worst, where = plan.worst.total / GIB, "on the fullest policy GPU"
        if plan.shared:
            worst, where = plan.shared.fullest.total / GIB, f"of a GPU in its fullest phase, {plan.shared.fullest.name}"
        text = f"✓ fits: {worst:.1f} of {memory:g} GiB {where}, engines with room for "
        console.print(Text(f"{text}{plan.rollout.full_sequences:,} of the longest sequences", style="green"))


def _print_layout(console: Console, plan: RunPlan) -> None:
    layout = plan.layout
    split = f"tensor {layout.tensor} × data {layout.data:,} × pipeline {layout.pipeline}"
    engines = f"{layout.engines:,} {_plural('engine', layout.engines)} × tensor {layout.engine_tensor}"
    rows = [
        ("policy", f"{layout.policy_gpus:,}", split, _span(layout.policy_nodes)),
        (
            "engines",
            f"{layout.engines * layout.engine_tensor:,}{' of these' if plan.shared else ''}",
            engines,
            _span(layout.engine_nodes),
        ),
    ]
    _print(console, "Layout", ("<role", "GPUs", "<split", "<nodes"), rows, caption=_nodes(plan))


def _nodes(plan: RunPlan) -> str:
    nodes = plan.layout.nodes
    return f"{nodes:,} {_plural('node', nodes)} of {plan.layout.gpus_per_node} GPUs"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def _span(nodes: tuple[int, int]) -> str:
    return f"{nodes[0]:,}" if nodes[0] == nodes[1] else f"{nodes[0]:,} to {nodes[1]:,}"


def _print_policy(console: Console, plan: RunPlan) -> None:
    about = _about_policy(plan)
    names = [name for name in plan.worst.items if any(stage.items[name] for stage in plan.policy)]
    rows = [(name, *(_gib(stage.items[name]) for stage in plan.policy), about.get(name, "")) for name in names]
    share = f"of {plan.gpu_memory_bytes / GIB:g} GiB"
    rows.append(("total", *(_gib(stage.total) for stage in plan.policy), share))
    stages = (_stage_name(stage, plan.layout.pipeline) for stage in plan.policy)
    caption = "GiB at the fullest moment of an update, every sequence as long as it may be"
    caption += f"\nhead {plan.head} (policy.head auto)" if plan.head else ""
    _print(console, "Memory of a policy GPU", ("<for", *stages, "<"), rows, caption=caption, total=True)


def _stage_name(stage: PolicyMemory, pipeline: int) -> str:
    if pipeline == 1:
        return "GiB"
    inner = 0 < stage.stage < pipeline - 1
    return f"stages 1 to {pipeline - 2}" if inner and pipeline > 3 else f"stage {stage.stage}"


def _about_policy(plan: RunPlan) -> dict[str, str]:
    """A few words on what each part is."""
    held = "/".join(str(stage.in_flight) for stage in plan.policy)
    return {
        "weights": plan.dtype,
        "reference": f"{plan.dtype}, for the KL",
        "gradients": "float32",
        "optimizer": "float32 weights and two moments" if plan.dtype != "float32" else "two float32 moments",
        "activations": f"{held} micro-batch{'' if held == '1' else 'es'} in flight",
        "logits": "with their hidden rows",
        "working": "of backward, estimated",
        "publication": "packed messages",
        "context": "CUDA, NCCL, allocator: assumed",
    }


def _print_rollout(console: Console, plan: RunPlan) -> None:
    rollout = plan.rollout
    per_token = f"{rollout.kv_tokens:,} tokens of {rollout.kv_bytes_per_token / 1024:g} KiB"
    tensor = plan.layout.engine_tensor
    rows = [
        ("weights", _gib(rollout.weights), plan.dtype + (f", one of {tensor} tensor ranks" if tensor > 1 else "")),
        ("working", _gib(rollout.working), "of a full batch, estimated"),
        ("context", _gib(rollout.context), "CUDA, NCCL, CUDA graphs: assumed"),
        ("KV cache", _gib(rollout.kv_cache), f"{per_token}: {rollout.full_sequences:,} of the longest sequences"),
        ("budget", _gib(rollout.budget), "rollout.memory_fraction of the GPU"),
    ]
    _print(console, "Memory of an engine GPU", ("<for", "GiB", "<"), rows, total=True)
    if rollout.staging:
        console.print(f"and {_gib(rollout.staging)} GiB in which new weights are staged", highlight=False)


def _print_turns(console: Console, plan: RunPlan, shared: SharedMemory) -> None:
    rows = [(turn.name, _gib(turn.policy), _gib(turn.engine), _gib(turn.total)) for turn in shared.turns]
    caption = f"GiB at the fullest moment of a phase, of {plan.gpu_memory_bytes / GIB:g}"
    if shared.moved:
        of_node = shared.host * min(plan.layout.policy_gpus, plan.layout.gpus_per_node)
        caption += (
            f"; while engines sample, host memory holds {' and '.join(shared.moved)}: {_gib(shared.host)} GiB of a "
            f"policy rank, {_gib(of_node)} on a node"
        )
    _print(
        console, "Memory of a shared GPU over a step", ("<phase", "policy", "engine", "total"), rows, caption=caption
    )


def _print_updates(console: Console, plan: RunPlan) -> None:
    rows = [
        (
            updates.responses,
            f"{updates.tokens:,}",
            f"{updates.samples:,}",
            f"{updates.micro_batches:,}",
            f"{100 * updates.bubble:.1f} %",
        )
        for updates in plan.updates
    ]
    columns = ("<responses", "tokens each", "samples", "micro-batches", "pipeline bubble")
    _print(console, "One update of a data-parallel rank", columns, rows)


def _print_publication(console: Console, plan: RunPlan) -> None:
    moved = plan.publication
    planned = "shared memory" if moved.fanout == "direct" and moved.fastest["NVLink + InfiniBand"] != "direct" else ""
    rows = [
        (
            "sent by a policy GPU",
            *map(_gb, (moved.sent_max_bytes, moved.sent_mean_bytes, moved.sent_least_bytes)),
            f"{moved.sent_mean_bytes / moved.sent_least_bytes:.2f}",
            f"{moved.policy_messages:,}",
        ),
        (
            "received by an engine GPU",
            *map(_gb, (moved.received_max_bytes, moved.received_mean_bytes, moved.received_mean_bytes)),
            f"{moved.received_over_bound:.2f}",
            f"{moved.worker_messages:,}",
        ),
    ]
    caption = (
        f"GB of {_gb(moved.model_bytes)} in all, fan-out {moved.fanout}{planned and f' ({planned})'}; fewest: each "
    )
    caption += "element leaves the policy once, and reaches each engine GPU that holds it once"
    columns = ("<", "most", "mean", "fewest", "mean / fewest", "messages")
    _print(console, "Publication of the weights", columns, rows, caption=caption)
    rows = [
        (fanout, *(f"{_ms(moved.estimates[links][fanout])}{_mark(plan, links, fanout)}" for links in moved.estimates))
        for fanout in FANOUTS
    ]
    caption = "ms, as fast as links allow (* fastest): NVLink 450 GB/s, InfiniBand 50 GB/s per GPU; the last column is "
    caption += "one NVLink domain"
    _print(console, "Publication time", ("<fan-out", *moved.estimates), rows, caption=caption)


def _mark(plan: RunPlan, links: str, fanout: str) -> str:
    return " *" if plan.publication.fastest[links] == fanout else "  "


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.3f}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f}"


def _print(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    total: bool = False,
) -> None:
    """A titled table at its own width; a column whose name begins with "<" is set left. total: the last row is one."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold")
    for column in columns:
        table.add_column(column.removeprefix("<"), justify="left" if column.startswith("<") else "right", no_wrap=True)
    for index, row in enumerate(rows):
        if total and index == len(rows) - 1:
            table.add_section()
        table.add_row(*map(Text, row), style="bold" if total and index == len(rows) - 1 else None)
    console.print(Text(f"\n{title}", style="bold cyan"))
    if caption:
        console.print(Text(caption, style="dim"))
    width = console.width
    console.width = max(width, console.measure(table, options=console.options.update(max_width=1000)).maximum)
    console.print(table)
    console.width = width
