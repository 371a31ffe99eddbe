"""Every metric that the program can emit is described, and nothing else is."""

import ast
import re
from pathlib import Path

import megarl
from megarl.objective.token_sums import TokenSums, to_metrics
from megarl.report.panels import PANELS, HeatPanel
from megarl.telemetry.memory_phases import MemoryUse, memory_metrics
from megarl.telemetry.names import DESCRIPTIONS, MEMORY_PHASES, PHASES
from tests.telemetry.runs import make_row

PACKAGE = Path(megarl.__file__).parent
METRIC = re.compile(r"[a-z_]+/[a-z0-9_.]+")
READERS = ("telemetry/names.py",)
"""Files whose dictionary keys are names of metrics that others emit."""
HOLD_MEANS = {
    "objective/token_sums.py",
    "objective/update_result.py",
    "controller/mismatch.py",
    "controller/reporting.py",
    "runtime/merging.py",
}
"""Files that have sums with their counts."""
COMPUTED_NAMES = {"objective/token_sums.py": "to_metrics", "telemetry/spans.py": "timing_s"}
"""Files that put names together at run time; both are read in another way here, and so is what `memory_name` makes."""


def trees() -> dict[str, ast.Module]:
    """The package's modules by their path in it."""
    return {
        str(path.relative_to(PACKAGE)): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
        if str(path.relative_to(PACKAGE)) not in READERS
    }


def key_expressions(tree: ast.Module) -> list[ast.expr]:
    """Keys of dictionaries, and subscripts that are assigned to."""
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            found += [key for key in node.keys if key is not None]
        elif isinstance(node, ast.DictComp):
            found.append(node.key)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            found.append(node.slice)
    return found


def literal_names(tree: ast.Module) -> set[str]:
    keys = {key.value for key in key_expressions(tree) if isinstance(key, ast.Constant) and isinstance(key.value, str)}
    return {key for key in keys if METRIC.fullmatch(key)}


def timed_names(tree: ast.Module) -> set[str]:
    """The spans of `.measure("name")` and `.phase("name")`, as metrics."""
    return {
        f"timing_s/{node.args[0].value}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("measure", "phase")
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }


def test_every_metric_of_the_program_is_described_and_no_other() -> None:
    one = TokenSums.zeros()
    one.sum_N[:] = 1.0
    emitted = set(to_metrics(one)) | {"step", "policy_version"}
    use = MemoryUse(peak=1, end=1, tensors=1, gpu_in_use=1, gpu_peak=1, gpu_total=1)
    for role, phases in MEMORY_PHASES.items():
        emitted |= set(memory_metrics(role, [dict.fromkeys(phases, use)]))
    for tree in trees().values():
        emitted |= literal_names(tree) | timed_names(tree)
    assert {"reward/mean", "publish/bytes", "timing_s/reset_reference", "control/positive_scale"} <= emitted
    assert emitted == set(DESCRIPTIONS)


def test_names_are_put_together_only_where_this_test_looks() -> None:
    computed = {
        path
        for path, tree in trees().items()
        for key in key_expressions(tree)
        if isinstance(key, ast.JoinedStr) and "/" in ast.unparse(key)
    }
    assert computed == set(COMPUTED_NAMES)


def test_every_metric_that_is_drawn_is_described_and_drawn_by_the_tests() -> None:
    drawn: set[str] = set()
    for panel in PANELS:
        if isinstance(panel, HeatPanel):
            drawn |= {metric for band in panel.bands for _, metric in band.rows}
        else:
            drawn |= {series.metric for series in panel.series}
    assert drawn <= set(DESCRIPTIONS)
    assert {f"timing_s/{phase}" for phase in PHASES} <= set(DESCRIPTIONS)
    assert drawn - set(make_row(1)) <= {"sft/loss"} | {name for name in drawn if name.startswith("rule/")}


def test_nobody_but_the_declaration_says_how_a_metric_merges() -> None:
    """`Mean` apart, which is also a number that others hold: they hand it to `declared` as they do other values."""
    imported = {
        (path, name.name)
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "megarl.telemetry.metrics"
        for name in node.names
    }
    assert {name for _, name in imported} == {"Mean", "Metrics", "Values", "declared", "merge", "to_values"}
    assert {path for path, name in imported if name == "Mean"} == HOLD_MEANS
