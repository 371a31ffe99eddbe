"""report.html of one run: a page that works offline and can be mailed; what it shows is in it, nothing is fetched."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from megarl.report.figure import finite
from megarl.report.glossary import terms_of
from megarl.report.plots import PlotSection
from megarl.report.run_data import RunData
from megarl.report.templates import render_template
from megarl.report.thinning import FEWEST_VALUES, MOST_VALUES
from megarl.telemetry.columns import format_count, format_number
from megarl.telemetry.names import DESCRIPTIONS

THINNING = (
    "A line of many steps is thinned: it is cut into equal parts, and of each the smallest and the largest value stay, "
    "at their steps; so do the first and the last of the line. "
    f"Of few lines {MOST_VALUES} values of each stay, of many {FEWEST_VALUES} at least. "
    "Every value is in the run's metrics.jsonl."
)
DIGITS = "Numbers in the page have six digits, those in its tables four. A missing value is a gap, never a zero."


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture that a page holds whole."""

    title: str
    svg: str

    def data_uri(self) -> str:
        """The picture as an address that holds it."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """What the page says besides the figures; None where the run directory lacks the file."""

    name: str
    status: str = "unknown"
    message: str | None = None
    versions: Mapping[str, Any] | None
    config_toml: str | None
    tokens: Markup | None = None
    """The per-token part (`format_tokens`)."""
    tokens_problem: str | None = None
    """Why there is none."""
    problems: Sequence[str] = ()
    """What could not be drawn or read."""


def format_report(data: RunData | None, sections: Sequence[PlotSection], numbers: Markup, facts: ReportFacts) -> str:
    """The page as HTML text. `numbers`: those of the figures, JSON. data: None, or without a last row, before the first
    step has ended."""
    last = data.last if data else None
    return render_template(
        "report.html",
        facts=facts,
        status=facts.status,
        origin=_origin(facts.versions),
        messages=[*([facts.message] if facts.message else []), *facts.problems],
        last=last,
        cards=_cards(data) if data and last else [],
        sections=sections,
        json=numbers,
        notes=[THINNING, DIGITS],
        terms=terms_of(last or ()),
        descriptions=DESCRIPTIONS,
        versions=json.dumps(facts.versions, indent=2) if facts.versions else None,
    )


def _origin(versions: Mapping[str, Any] | None) -> str:
    if versions is None:
        return "no versions.json in the run directory"
    git = versions.get("git")
    code = f"megarl {versions.get('packages', {}).get('megarl', '?')}"
    if git:
        code += f" at {git['revision'][:12]}" + (" with uncommitted changes" if git["dirty"] else "")
    return (
        f"{versions.get('verb', 'run')} started {versions.get('started', '?')} on {versions.get('host', '?')}, {code}"
    )


def _cards(data: RunData) -> list[tuple[str, str]]:
    """(label, value) of the numbers at the head."""
    last = data.last or {}
    cards = [("steps", f"{int(last['step'] or 0):,}")]
    for name, label, decimals in (
        ("reward/mean", "mean reward", 3),
        ("sft/loss", "loss", 4),
        ("actor/entropy", "entropy, nats", 3),
    ):
        if name in last:
            first = format_number(_first(data, name), width=9, decimals=decimals)
            cards.append((f"{label} (first {first})", format_number(last[name], width=9, decimals=decimals)))
    if "response_length/mean" in last:
        cards.append(("tokens per response", format_count(last["response_length/mean"], width=9)))
    if "perf/tokens_per_s" in last:
        cards.append(("tokens per second", format_count(last["perf/tokens_per_s"], width=9)))
    seconds = finite(data.series("timing_s/step")[1])
    if seconds.any():
        cards.append(("hours in steps", f"{seconds.sum() / 3600:.2f}"))
    return cards


def _first(data: RunData, name: str) -> float | None:
    known = finite(data.series(name)[1])
    return float(known[0]) if len(known) else None
