"""The per-token part of report.html: what an update did with each token of a few responses, and which tokens rules
act on most. Pure; HTML without scripts, every text escaped."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape

from megarl.records import TokenTrace
from megarl.telemetry.columns import format_number
from megarl.telemetry.panels import BLUE, GREEN, GREY, VERMILION
from megarl.telemetry.rollouts import RolloutRow

STYLE = f"""
.tokens {{ font: 13px/2.0 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  margin: 6px 0 2px; }}
.tokens i, .key i {{ font-style: normal; border-bottom: 3px solid transparent; border-radius: 2px; padding: 1px 0 0; }}
i.clip_low {{ border-bottom-color: {BLUE}; }} i.clip_high {{ border-bottom-color: {VERMILION}; }}
i.dual {{ border-bottom-color: {GREEN}; }} i.other {{ border-bottom: 3px dotted {GREY}; }}
.response {{ background: #fff; border: 1px solid #e3e6ea; border-radius: 8px; padding: 10px 14px; }}
.response + .response {{ margin-top: 12px; }}
.response h3 {{ font-size: 14px; margin: 0; }} .key {{ font-size: 13px; color: #5f6368; margin: 0 0 10px; }}
.key i {{ color: #202124; padding: 1px 6px; margin-left: 12px; }}
.scale {{ display: inline-block; width: 120px; height: 11px; border-radius: 3px; vertical-align: -1px; margin: 0 5px; }}
.token-table {{ width: auto; margin-top: 8px; }} .token-table th {{ font-weight: 600; font-size: 13px; }}
.token-table code {{ white-space: pre; background: #f1f3f4; border-radius: 3px; }}
.token-table td, .token-table th {{ padding: 3px 16px; }} .token-table th.number {{ text-align: right; }}
"""

LOOKED_AT = 64
"""Responses of the file that are read for this part, from its first."""
_SHOWN_RESPONSES = 2
"""Of each sign of the advantage."""
_SHOWN_TOKENS = 600
_SHOWN_RULES = 12
_TINT = (126, 87, 194)
"""The colour of the most uncertain token."""
_CLIPPING = ("clip_high", "clip_low", "dual")


def format_tokens(rows: Sequence[RolloutRow]) -> str:
    """The section's HTML; "" where none of the rows was traced."""
    traced = [(row, row.trace) for row in rows if row.trace is not None]
    if not traced:
        return ""
    chosen = _choose(traced)
    largest = max(max(trace.entropy) for _, trace in chosen) or 1.0
    return "\n".join(
        [
            f"<h2>Tokens of step {traced[0][0].step}</h2>",
            _key(largest),
            *(_response(row, trace, largest) for row, trace in chosen),
            _rule_table(traced),
        ]
    )


def _choose(traced: Iterable[tuple[RolloutRow, TokenTrace]]) -> list[tuple[RolloutRow, TokenTrace]]:
    """Of either sign of the advantage the responses with the most clipped tokens, then with the most that another rule
    acted on; one of a prompt and sign."""

    def order(pair: tuple[RolloutRow, TokenTrace]) -> tuple[int, int, int]:
        row, trace = pair
        return -sum(map(_is_clipped, trace.rule)), -sum(map(bool, trace.rule)), row.sample_id

    best: dict[tuple[int, int], tuple[RolloutRow, TokenTrace]] = {}
    for row, trace in sorted(traced, key=order):
        best.setdefault((_sign(row.advantage), row.prompt_index), (row, trace))
    positive = [pair for (sign, _), pair in best.items() if sign > 0][:_SHOWN_RESPONSES]
    negative = [pair for (sign, _), pair in best.items() if sign < 0][:_SHOWN_RESPONSES]
    return positive + negative or list(best.values())[:_SHOWN_RESPONSES]


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _is_clipped(rule: str) -> bool:
    return any(name in _CLIPPING for name in rule.split("+"))


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
        "<br>Traced responses in which clipping, or else another rule, acted most. Point at a token to read it.</p>"
    )


def _response(row: RolloutRow, trace: TokenTrace, largest: float) -> str:
    ruled = sum(map(bool, trace.rule))
    shown = min(len(trace.logp), _SHOWN_TOKENS)
    tokens = "".join(_token(row, trace, position, largest) for position in range(shown))
    rest = f" <small>… and {len(trace.logp) - shown:,} more tokens</small>" if shown < len(trace.logp) else ""
    return (
        f"<div class='response'><h3>Prompt {row.prompt_index}, sample {row.sample_index}: reward {row.reward:g}, "
        f"advantage {row.advantage:+.3g}, {len(trace.logp):,} tokens, rules acted on {ruled:,}</h3>"
        f"<details><summary>Prompt</summary><pre>{escape(row.prompt_text)}</pre></details>"
        f"<div class='tokens'>{tokens}{rest}</div></div>"
    )


def _token(row: RolloutRow, trace: TokenTrace, position: int, largest: float) -> str:
    rule = trace.rule[position]
    names = rule.split("+") if rule else []
    mark = next((name for name in _CLIPPING if name in names), "other" if names else "")
    numbers = (
        f"token {position}: log p {trace.logp[position]:.3f}, H {trace.entropy[position]:.3f}, "
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


def _rule_table(traced: Sequence[tuple[RolloutRow, TokenTrace]]) -> str:
    """Which tokens rules act on, clipping first: text and rule, how often, and what they have in common."""
    occurrences: dict[str, int] = defaultdict(int)
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row, trace in traced:
        for position, (rule, entropy, ratio) in enumerate(zip(trace.rule, trace.entropy, trace.ratio, strict=True)):
            text = _text(row, position)
            occurrences[text] += 1
            if rule:
                found[text, rule].append((entropy, ratio))
    most = sorted(found.items(), key=lambda item: (not _is_clipped(item[0][1]), -len(item[1]), item[0]))[:_SHOWN_RULES]
    if not most:
        return "<p class='sub'>No rule acted on a traced token.</p>"
    lines = [
        f"<tr><td><code>{escape(repr(text)[1:-1])}</code></td><td>{escape(rule)}</td>"
        + _numbers(f"{len(pairs):,}", f"{len(pairs) / occurrences[text]:.0%}", _mean(pairs, 0), _mean(pairs, 1))
        + "</tr>"
        for (text, rule), pairs in most
    ]
    heads = "".join(f"<th class='number'>{head}</th>" for head in ("times", "of its tokens", "mean H", "mean r"))
    return (
        f"<h3>Tokens that rules acted on most, in {len(traced):,} traced responses</h3>"
        f"<table class='token-table'><tr><th>token</th><th>rule</th>{heads}</tr>{''.join(lines)}</table>"
    )


def _numbers(*texts: str) -> str:
    return "".join(f"<td class='number'>{text}</td>" for text in texts)


def _mean(pairs: Sequence[tuple[float, float]], index: int) -> str:
    return format_number(sum(pair[index] for pair in pairs) / len(pairs), width=7, decimals=3)
