"""report.html: one run on one page that works offline and can be mailed; figures are embedded, nothing is fetched."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from megarl.report.glossary import format_glossary
from megarl.report.token_view import STYLE as _TOKEN_STYLE
from megarl.telemetry.columns import format_count, format_number
from megarl.telemetry.names import DESCRIPTIONS

_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f6f7f9; color: #202124; font: 15px/1.5 "Helvetica Neue", Helvetica, Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 25px; margin: 0 0 2px; overflow-wrap: anywhere; } h2 { font-size: 18px; margin: 34px 0 10px; }
.sub { color: #5f6368; margin: 0 0 20px; overflow-wrap: anywhere; }
.status { display: inline-block; padding: 1px 11px; border-radius: 11px; font-size: 13px; font-weight: 600;
  vertical-align: middle; margin-left: 8px; background: #e8eaed; }
.status.finished { background: #d3efe4; color: #00543c; } .status.failed,
.status.killed { background: #fbdfce; color: #8a3c00; }
.status.running { background: #d4e7f5; color: #004a75; } .status.interrupted { background: #fdeecb; color: #6b4a00; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 12px; }
.card, .figure, table, details { background: #fff; border: 1px solid #e3e6ea; border-radius: 8px; }
.card { padding: 10px 14px; } .card b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.card span { color: #5f6368; font-size: 13px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); gap: 14px; }
.figure { padding: 4px; } .figure img { width: 100%; height: auto; display: block; }
table { border-collapse: separate; border-spacing: 0; width: 100%; } td, th { padding: 5px 14px; text-align: left; }
tr + tr td { border-top: 1px solid #eef0f2; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.meaning { color: #5f6368; } code, pre { font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
.terms td:first-child { white-space: nowrap; vertical-align: top; }
details { margin-top: 10px; padding: 8px 14px; } summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; margin: 8px 0 4px; } .message { white-space: pre-wrap; }
"""

Row = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One picture of the report."""

    title: str
    svg: str


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """What the page says besides the figures; None where the run directory lacks the file."""

    name: str
    state: Mapping[str, Any] | None
    versions: Mapping[str, Any] | None
    config_toml: str | None
    tokens_html: str = ""
    """The per-token part (`format_tokens`)."""
    problems: Sequence[str] = ()
    """What could not be drawn or read."""


def format_report(rows: Sequence[Row], figures: Sequence[Figure], facts: ReportFacts) -> str:
    """The page as HTML text. `rows` are those of metrics.jsonl, none before the first step has ended."""
    status = str((facts.state or {}).get("status", "unknown"))
    message = (facts.state or {}).get("message")
    parts = [
        f"<h1>{escape(facts.name)} <span class='status {escape(status)}'>{escape(status)}</span></h1>",
        f"<p class='sub'>{escape(_origin(facts.versions))}</p>",
        f"<p class='message'>{escape(str(message))}</p>" if message else "",
        *(f"<p class='message'>{escape(problem)}</p>" for problem in facts.problems),
        *(_format_steps(rows, figures, facts) if rows else ["<p class='message'>no step has ended yet</p>"]),
        "<h2>Reproduce</h2>",
        format_details("Configuration", facts.config_toml),
        format_details("Versions", json.dumps(facts.versions, indent=2) if facts.versions else None),
    ]
    return format_page(facts.name, parts)


def _format_steps(rows: Sequence[Row], figures: Sequence[Figure], facts: ReportFacts) -> list[str]:
    last = rows[-1]
    return [
        f"<div class='cards'>{''.join(_cards(rows))}</div>",
        "<h2>Figures</h2>",
        f"<div class='figures'>{''.join(format_figure(figure) for figure in figures)}</div>",
        format_glossary(last),
        facts.tokens_html,
        f"<h2>Metrics of step {int(last['step'] or 0)}</h2>",
        _metrics_table(last),
    ]


def format_page(title: str, parts: Sequence[str]) -> str:
    """A whole page of HTML parts, with the look of every megarl report; empty parts are left out."""
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{_TOKEN_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
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


def _cards(rows: Sequence[Row]) -> list[str]:
    last = rows[-1]
    cards = [_card("steps", f"{int(last['step'] or 0):,}")]
    for name, label, decimals in (
        ("reward/mean", "mean reward", 3),
        ("sft/loss", "loss", 4),
        ("actor/entropy", "entropy, nats", 3),
    ):
        if name in last:
            first = format_number(_first(rows, name), width=9, decimals=decimals)
            cards.append(_card(f"{label} (first {first})", format_number(last[name], width=9, decimals=decimals)))
    if "response_length/mean" in last:
        cards.append(_card("tokens per response", format_count(last["response_length/mean"], width=9)))
    if "perf/tokens_per_s" in last:
        cards.append(_card("tokens per second", format_count(last["perf/tokens_per_s"], width=9)))
    seconds = [row.get("timing_s/step") or 0.0 for row in rows]
    if any(seconds):
        cards.append(_card("hours in steps", f"{sum(seconds) / 3600:.2f}"))
    return cards


def _first(rows: Sequence[Row], name: str) -> float | None:
    return next((row[name] for row in rows if row.get(name) is not None), None)


def _card(label: str, value: str) -> str:
    return f"<div class='card'><b>{escape(value)}</b><span>{escape(label)}</span></div>"


def format_figure(figure: Figure) -> str:
    """The figure embedded in the page."""
    # A data URI keeps each SVG's element ids to itself; pasted into one page they would clash.
    data = base64.b64encode(figure.svg.encode()).decode()
    return f"<div class='figure'><img alt='{escape(figure.title)}' src='data:image/svg+xml;base64,{data}'></div>"


def _metrics_table(row: Row) -> str:
    lines = [
        f"<tr><td><code>{escape(name)}</code></td>"
        f"<td class='number'>{escape('not finite' if value is None else f'{value:,.6g}')}</td>"
        f"<td class='meaning'>{escape(DESCRIPTIONS.get(name, ''))}</td></tr>"
        for name, value in row.items()
    ]
    return f"<table>{''.join(lines)}</table>"


def format_details(title: str, text: str | None) -> str:
    """A folded part with text as it is; nothing for None."""
    if text is None:
        return ""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
