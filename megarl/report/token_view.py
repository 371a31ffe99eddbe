"""The per-token part of report.html: what an update did with each token of a few responses, and which tokens rules
act on most. The responses are chosen among all that were traced. Pure; HTML without scripts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from megarl.records import TokenTrace
from megarl.report.templates import render_template
from megarl.report.traces import CLIPPING, RuledToken, TracedResponse, TraceSurvey, is_clipped
from megarl.rules import rule_names
from megarl.telemetry.columns import format_number
from megarl.telemetry.rollouts import RolloutRow

_SHOWN_RESPONSES = 2
"""Of each sign of the advantage."""
_SHOWN_TOKENS = 600
_SHOWN_RULES = 12
_TINT = (126, 87, 194)
"""The colour of the most uncertain token."""
_MARKS = (("clip_low", "clip-low"), ("clip_high", "clip-high"), ("dual", "dual clip"), ("other", "another rule"))
"""(class, label) of the key."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _UpdateRow:
    """A line of the table of updates."""

    name: str
    numbers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _RuleRow:
    """A line of the table of tokens that rules acted on."""

    text: str
    rule: str
    numbers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    """A token as it is shown."""

    text: str
    title: str
    """What a reader sees who points at it."""
    tint: str
    mark: str
    """Its class: the rule that is underlined; "" without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Response:
    """A response as it is shown."""

    heading: str
    prompt: str
    tokens: list[_Token]
    num_more: int
    """Tokens beyond those shown."""


def format_tokens(survey: TraceSurvey, rows: Sequence[RolloutRow], *, updates: StepUpdates | None) -> Markup:
    """The section's HTML. `rows`: the traced rows of `choose_responses`, in any order. `updates`: None where the
    run's configuration is not known; then the view names no update."""
    traced = {row.sample_id: (row, row.trace) for row in rows if row.trace is not None}
    chosen = [traced[sample_id] for sample_id in choose_responses(survey)]
    largest = max(max(trace.entropy, default=0.0) for _, trace in chosen) or 1.0
    return render_template(
        "tokens.html",
        step=survey.step,
        largest=largest,
        gradient=f"linear-gradient(90deg, {_tint(0.0)}, {_tint(0.5)}, {_tint(1.0)})",
        marks=_MARKS,
        updates=_update_rows(survey, updates) if updates else [],
        responses=[_show_response(row, trace, largest, updates) for row, trace in chosen],
        rules=_rule_rows(survey),
        num_traced=len(survey.responses),
    )


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _update_rows(survey: TraceSurvey, updates: StepUpdates) -> list[_UpdateRow]:
    """What was traced of each update of the step, and how much of that was clipped."""
    by_update: dict[int, list[TracedResponse]] = {}
    for response in survey.responses:
        by_update.setdefault(updates.index(response.sample_id), []).append(response)
    rows = []
    for update, responses in sorted(by_update.items()):
        tokens = sum(response.num_tokens for response in responses)
        shares = [
            f"{sum(counts) / tokens:.2%}" if tokens else "-"
            for counts in ([r.num_clipped for r in responses], [r.num_ruled for r in responses])
        ]
        numbers = (f"{len(responses):,}", f"{tokens:,}", *shares)
        rows.append(_UpdateRow(name=f"{update} of {updates.count}", numbers=numbers))
    return rows


def _show_response(row: RolloutRow, trace: TokenTrace, largest: float, updates: StepUpdates | None) -> _Response:
    num_ruled = int(np.count_nonzero(trace.rule))
    update = f", update {updates.index(row.sample_id)} of {updates.count}" if updates else ""
    num_shown = min(len(trace.logp), _SHOWN_TOKENS)
    return _Response(
        heading=f"Prompt {row.prompt_index}, sample {row.sample_index}{update}: reward {row.reward:g}, advantage "
        f"{row.advantage:+.3g}, {len(trace.logp):,} tokens, rules acted on {num_ruled:,}",
        prompt=row.prompt_text,
        tokens=[_show_token(row, trace, position, largest) for position in range(num_shown)],
        num_more=len(trace.logp) - num_shown,
    )


def _show_token(row: RolloutRow, trace: TokenTrace, position: int, largest: float) -> _Token:
    rule = rule_names(int(trace.rule[position]))
    names = rule.split("+") if rule else []
    numbers = (
        f"token {position}: log p {trace.logp[position]:.3f}, H {trace.entropy[position]:.3f}, "
        f"N {trace.expected_q[position]:+.3g}, "
        f"r {trace.ratio[position]:.3f} in [{trace.low[position]:.3g}, {trace.high[position]:.3g}], "
        f"A {trace.advantage[position]:+.3g}, g {trace.gate[position]:+.3g}, weight {trace.weight[position]:.3g}"
    )
    return _Token(
        text=_visible(_text(row, position)),
        title=numbers + (f", {rule}" if rule else ""),
        tint=_tint(max(trace.entropy[position], 0.0) / largest),
        mark=next((name for name in CLIPPING if name in names), "other" if names else ""),
    )


def _text(row: RolloutRow, position: int) -> str:
    return f"⟨{row.response_tokens[position]}⟩" if row.token_text is None else row.token_text[position]


def _visible(text: str) -> str:
    """Line breaks also as a sign, so that their token can be pointed at; a token without text as a middle dot."""
    return text.replace("\n", "↵\n") or "·"


def _tint(share: float) -> str:
    """White for 0, the full colour for 1. The square root keeps small entropies apart."""
    strength = 0.85 * min(share, 1.0) ** 0.5
    return "#" + "".join(f"{round(255 + strength * (channel - 255)):02x}" for channel in _TINT)


def _rule_rows(survey: TraceSurvey) -> list[_RuleRow]:
    """Which tokens rules act on, clipping first: text and rule, how often, and what they have in common."""

    def order(token: RuledToken) -> tuple[bool, int, str, str]:
        return not is_clipped(token.rule), -token.count, token.text, token.rule

    return [
        _RuleRow(
            text=repr(token.text)[1:-1],
            rule=token.rule,
            numbers=(
                f"{token.count:,}",
                f"{token.count / token.occurrences:.0%}",
                *(format_number(mean, width=7, decimals=3) for mean in (token.mean_entropy, token.mean_ratio)),
            ),
        )
        for token in sorted(survey.tokens, key=order)[:_SHOWN_RULES]
    ]
