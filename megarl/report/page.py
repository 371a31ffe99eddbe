"""report.html: one run on one page that works offline and can be mailed; figures are embedded, nothing is fetched."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from megarl.report.glossary import terms_of
from megarl.report.templates import render_template
from megarl.telemetry.columns import format_count, format_number
from megarl.telemetry.names import DESCRIPTIONS

Row = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One picture of the report."""

    title: str
    svg: str

    def data_uri(self) -> str:
        """The picture as an address that holds it."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """What the page says besides the figures; None where the run directory lacks the file."""

    name: str
    state: Mapping[str, Any] | None
    versions: Mapping[str, Any] | None
    config_toml: str | None
    tokens: Markup | None = None
    """The per-token part (`format_tokens`)."""
    tokens_problem: str | None = None
    """Why there is none."""
    problems: Sequence[str] = ()
    """What could not be drawn or read."""


def format_report(rows: Sequence[Row], figures: Sequence[Figure], facts: ReportFacts) -> str:
    """The page as HTML text. `rows` are those of metrics.jsonl, none before the first step has ended."""
    state = facts.state or {}
    message = state.get("message")
    last = rows[-1] if rows else None
    return render_template(
        "report.html",
        facts=facts,
        status=str(state.get("status", "unknown")),
        origin=_origin(facts.versions),
        messages=[*([message] if message else []), *facts.problems],
        last=last,
        cards=_cards(rows) if rows else [],
        figures=figures,
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


def _cards(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(label, value) of the numbers at the head."""
    last = rows[-1]
    cards = [("steps", f"{int(last['step'] or 0):,}")]
    for name, label, decimals in (
        ("reward/mean", "mean reward", 3),
        ("sft/loss", "loss", 4),
        ("actor/entropy", "entropy, nats", 3),
    ):
        if name in last:
            first = format_number(_first(rows, name), width=9, decimals=decimals)
            cards.append((f"{label} (first {first})", format_number(last[name], width=9, decimals=decimals)))
    if "response_length/mean" in last:
        cards.append(("tokens per response", format_count(last["response_length/mean"], width=9)))
    if "perf/tokens_per_s" in last:
        cards.append(("tokens per second", format_count(last["perf/tokens_per_s"], width=9)))
    seconds = [row.get("timing_s/step") or 0.0 for row in rows]
    if any(seconds):
        cards.append(("hours in steps", f"{sum(seconds) / 3600:.2f}"))
    return cards


def _first(rows: Sequence[Row], name: str) -> float | None:
    return next((row[name] for row in rows if row.get(name) is not None), None)
