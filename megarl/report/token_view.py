"""The per-token part of report.html: what an update did with each token of a few responses, and which tokens rules
act on most. The responses are chosen among all that were traced. Pure; HTML without scripts, every text escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from megarl.records import TokenTrace
from megarl.report.panels import BLUE, GREEN, GREY, VERMILION
from megarl.report.traces import CLIPPING, RuledToken, TracedResponse, TraceSurvey, is_clipped
from megarl.telemetry.columns import format_number
from megarl.telemetry.rollouts import RolloutRow

STYLE = f"""
.tokens {{ font: 13px/2.0 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  margin: 6px 0 2px; }}
.tokens i, .key i {{ font-style: normal; border-bottom: 3px solid transparent; border-radius: 2px; padding: 1px 0 0; }}
i.clip_low {{ border-bottom-color: {BLUE}; }} i.clip_high {{ border-bottom-color: {VERMILION}; }}
i.dual {{ border-bottom-color: {GREEN}; }} i.other, i.dppo {{ border-bottom: 3px dotted {GREY}; }}
.response {{ background: #fff; border: 1px solid #e3e6ea; border-radius: 8px; padding: 10px 14px; }}
.response + .response {{ margin-top: 12px; }}
.response h3 {{ font-size: 14px; margin: 0; }} .key {{ font-size: 13px; color: #5f6368; margin: 0 0 10px; }}
.key i {{ color: #202124; padding: 1px 6px; margin-left: 12px; }}
.scale {{ display: inline-block; width: 120px; height: 11px; border-radius: 3px; vertical-align: -1px; margin: 0 5px; }}
.token-table {{ width: auto; margin-top: 8px; }} .token-table th {{ font-weight: 600; font-size: 13px; }}
.token-table code {{ white-space: pre; background: #f1f3f4; border-radius: 3px; }}
.token-table td, .token-table th {{ padding: 3px 16px; }} .token-table th.number {{ text-align: right; }}
"""

_SHOWN_RESPONSES = 2
"""Of each sign of the advantage."""
_SHOWN_TOKENS = 600
_SHOWN_RULES = 12
_TINT = (126, 87, 194)
"""The colour of the most uncertain token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepUpdates:
    """How a step's responses are divided among its updates."""

    count: int
    mini_batch_responses: int

    def index(self, sample_id: int) -> int:
        """Which update of the step trained the response, from 1."""
        return sample_id // self.mini_batch_responses + 1


def choose_responses(survey: TraceSurvey) -> list[int]:
    """Sample ids of the responses to show: of either sign of the advantage those with the most clipped tokens, then
    with the most that another rule acted on; one of a prompt and sign."""

    def order(response: TracedResponse) -> tuple[int, int, int]:
        return -response.num_clipped, -response.num_ruled, response.sample_id

    best: dict[tuple[int, int], int] = {}
    for response in sorted(survey.responses, key=order):
        best.setdefault((_sign(response.advantage), response.prompt_index), response.sample_id)
    positive = [sample_id for (sign, _), sample_id in best.items() if sign > 0][:_SHOWN_RESPONSES]
    negative = [sample_id for (sign, _), sample_id in best.items() if sign < 0][:_SHOWN_RESPONSES]
    return positive + negative or list(best.values())[:_SHOWN_RESPONSES]


def format_tokens(survey: TraceSurvey, rows: Sequence[RolloutRow], *, updates: StepUpdates | None) -> str:
    """The section's HTML. `rows`: the traced rows of `choose_responses`, in any order. `updates`: None where the
    run's configuration is not known; then the view names no update."""
    traced = {row.sample_id: (row, row.trace) for row in rows if row.trace is not None}
    chosen = [traced[sample_id] for sample_id in choose_responses(survey)]
    largest = max(max(trace.entropy, default=0.0) for _, trace in chosen) or 1.0
    return "\n".join(
        [
            f"<h2>Tokens of step {survey.step}</h2>",
            _key(largest),
            _update_table(survey, updates),
            *(_response(row, trace, largest, updates) for row, trace in chosen),
            _rule_table(survey),
        ]
    )


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _key(largest: float) -> str:
    gradient = f"linear-gradient(90deg, {_tint(0.0)}, {_tint(0.5)}, {_tint(1.0)})"
    marks = "".join(
        f"<i class='{name}'>{text}</i>"
        for name, text in (
            ("clip_low", "clip-low"),
            ("clip_high", "clip-high"),
            ("dual", "dual clip"),
            ("other", "another rule"),
        )
    )
    return (
        f"<p class='key'>entropy 0<span class='scale' style='background: {gradient}'></span>{largest:.2f} nats {marks}"
        "<br>Of all traced responses, those of either sign of the advantage in which clipping, or else another rule, "
        "acted most; one of a prompt and sign. Point at a token to read it.</p>"
    )


def _update_table(survey: TraceSurvey, updates: StepUpdates | None) -> str:
    """What was traced of each update of the step, and how much of that was clipped."""
    if updates is None:
        return ""
    by_update: dict[int, list[TracedResponse]] = {}
    for response in survey.responses:
        by_update.setdefault(updates.index(response.sample_id), []).append(response)
    heads = "".join(f"<th class='number'>{head}</th>" for head in ("traced responses", "tokens", "clipped", "any rule"))
    lines = []
    for update, responses in sorted(by_update.items()):
        tokens = sum(response.num_tokens for response in responses)
        shares = [
            f"{sum(counts) / tokens:.2%}" if tokens else "-"
            for counts in ([r.num_clipped for r in responses], [r.num_ruled for r in responses])
        ]
        numbers = _numbers(f"{len(responses):,}", f"{tokens:,}", *shares)
        lines.append(f"<tr><td>{update} of {updates.count}</td>{numbers}</tr>")
    return (
        f"<table class='token-table'><tr><th>update</th>{heads}</tr>{''.join(lines)}</table>"
        "<p class='sub'>Responses are trained on in the order in which they were sampled, a mini-batch per update, and "
        "the first ones of each are traced. In a step's first update the policy is still the old one.</p>"
    )


def _response(row: RolloutRow, trace: TokenTrace, largest: float, updates: StepUpdates | None) -> str:
    ruled = sum(map(bool, trace.rule))
    update = f", update {updates.index(row.sample_id)} of {updates.count}" if updates else ""
    shown = min(len(trace.logp), _SHOWN_TOKENS)
    tokens = "".join(_token(row, trace, position, largest) for position in range(shown))
    rest = f" <small>… and {len(trace.logp) - shown:,} more tokens</small>" if shown < len(trace.logp) else ""
    return (
        f"<div class='response'><h3>Prompt {row.prompt_index}, sample {row.sample_index}{update}: reward "
        f"{row.reward:g}, advantage {row.advantage:+.3g}, {len(trace.logp):,} tokens, rules acted on {ruled:,}</h3>"
        f"<details><summary>Prompt</summary><pre>{escape(row.prompt_text)}</pre></details>"
        f"<div class='tokens'>{tokens}{rest}</div></div>"
    )


def _token(row: RolloutRow, trace: TokenTrace, position: int, largest: float) -> str:
    rule = trace.rule[position]
    names = rule.split("+") if rule else []
    mark = next((name for name in CLIPPING if name in names), "other" if names else "")
    numbers = (
        f"token {position}: log p {trace.logp[position]:.3f}, H {trace.entropy[position]:.3f}, "
        f"N {trace.expected_q[position]:+.3g}, "
        f"r {trace.ratio[position]:.3f} in [{trace.low[position]:.3g}, {trace.high[position]:.3g}], "
        f"A {trace.advantage[position]:+.3g}, g {trace.gate[position]:+.3g}, weight {trace.weight[position]:.3g}"
    )
    attributes = f" class='{mark}'" if mark else ""
    title = escape(numbers + (f", {rule}" if rule else ""), quote=True)
    tint = _tint(max(trace.entropy[position], 0.0) / largest)
    return f"<i{attributes} style='background:{tint}' title='{title}'>{_visible(_text(row, position))}</i>"


def _text(row: RolloutRow, position: int) -> str:
    return f"⟨{row.response_tokens[position]}⟩" if row.token_text is None else row.token_text[position]


def _visible(text: str) -> str:
    """Line breaks also as a sign, so that their token can be pointed at; a token without text as a middle dot."""
    return escape(text).replace("\n", "↵\n") or "·"


def _tint(share: float) -> str:
    """White for 0, the full colour for 1. The square root keeps small entropies apart."""
    strength = 0.85 * min(share, 1.0) ** 0.5
    return "#" + "".join(f"{round(255 + strength * (channel - 255)):02x}" for channel in _TINT)


def _rule_table(survey: TraceSurvey) -> str:
    """Which tokens rules act on, clipping first: text and rule, how often, and what they have in common."""

    def order(token: RuledToken) -> tuple[bool, int, str, str]:
        return not is_clipped(token.rule), -token.count, token.text, token.rule

    most = sorted(survey.tokens, key=order)[:_SHOWN_RULES]
    if not most:
        return "<p class='sub'>No rule acted on a traced token.</p>"
    lines = [
        f"<tr><td><code>{escape(repr(token.text)[1:-1])}</code></td><td>{escape(token.rule)}</td>"
        + _numbers(f"{token.count:,}", f"{token.count / token.occurrences:.0%}")
        + _numbers(*(format_number(mean, width=7, decimals=3) for mean in (token.mean_entropy, token.mean_ratio)))
        + "</tr>"
        for token in most
    ]
    heads = "".join(f"<th class='number'>{head}</th>" for head in ("times", "of its tokens", "mean H", "mean r"))
    return (
        f"<h3>Tokens that rules acted on most, in {len(survey.responses):,} traced responses</h3>"
        f"<table class='token-table'><tr><th>token</th><th>rule</th>{heads}</tr>{''.join(lines)}</table>"
    )


def _numbers(*texts: str) -> str:
    return "".join(f"<td class='number'>{text}</td>" for text in texts)
