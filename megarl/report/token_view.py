"""The per-token part of report.html: a reader for the tokens of chosen responses, of one run or of several side by
side, and below it, for one run, which tokens of its last step rules act on most."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from megarl.report.reader import MAX_BYTES, MAX_TOKENS, ReaderContent, StepUpdates, TokenSource, read_content
from megarl.report.reader_choice import MAX_PROMPTS, MAX_SAMPLES
from megarl.report.reader_colours import DIVERGING_STEPS, RULE_CLASSES, SEQUENTIAL_STEPS
from megarl.report.reader_payload import MAX_TOKENS_OF_A_RESPONSE, page_json
from megarl.report.reader_terms import KEYS, NUMBERS, RULE_CLASS_OF
from megarl.report.templates import render_template
from megarl.report.traces import RuledToken, TracedResponse, TraceSurvey, is_clipped, survey_traces
from megarl.telemetry.columns import format_number

_SHOWN_RULES = 12


def format_tokens(sources: Sequence[TokenSource], *, max_bytes: int = MAX_BYTES) -> tuple[Markup | None, str | None]:
    """(the section's HTML, what could not be read); None where there is nothing of it.

    A page has at most one such section, and includes tokens.css for it.
    """
    content = read_content(sources, max_bytes=max_bytes)
    problem = "; ".join(content.problems) or None
    if not content.num_shown:
        return None, problem
    survey = _survey_last(sources[0], content) if len(sources) == 1 else None
    updates = sources[0].updates
    markup = render_template(
        "tokens.html",
        payload=Markup(page_json(content.payload)),
        settings=Markup(page_json(_settings())),
        holds=_holds(content, max_bytes),
        folders=[source.shown_folder for source in sources],
        keys=KEYS,
        numbers=NUMBERS,
        several=len(sources) > 1,
        survey=survey,
        updates=_update_rows(survey, updates) if survey and updates else [],
        rules=_rule_rows(survey) if survey else [],
    )
    return markup, problem


def format_token_page(title: str, sources: Sequence[TokenSource]) -> str:
    """A page of its own with the section alone. ValueError where there is nothing to show, with why."""
    tokens, problem = format_tokens(sources)
    if tokens is None:
        raise ValueError(problem or f"no response of {', '.join(source.name for source in sources)} was written")
    return render_template("tokens_page.html", title=title, tokens=tokens, problem=problem)


def _settings() -> dict[str, Any]:
    """What the reader's script has to know besides the payload."""
    return {
        "sequentialSteps": SEQUENTIAL_STEPS,
        "divergingSteps": DIVERGING_STEPS,
        "ruleClasses": RULE_CLASSES,
        "ruleClassOf": RULE_CLASS_OF,
        "columns": [number.column for number in NUMBERS],
    }


def _survey_last(source: TokenSource, content: ReaderContent) -> TraceSurvey | None:
    """Of the last step that the reader holds."""
    last = max(response["step"] for response in content.payload["responses"])
    return survey_traces(source.files()[last])


def _holds(content: ReaderContent, max_bytes: int) -> str:
    """By what rule the page's responses were chosen."""
    size = f"{content.num_bytes / 1e6:.1f} MB of at most {max_bytes / 1e6:g}"
    text = f"This page holds {content.num_shown:,} of {content.num_responses:,} responses, in {size}."
    if content.num_shown < content.num_responses:
        looked, there = max(content.steps)
        which = "with prompts that runs share" if content.sharing else "the first, the last and evenly between"
        steps = f"{looked} of {there:,} steps ({which})" if looked < there else "all steps"
        text += (
            f" Of {steps} it has up to {MAX_PROMPTS} prompts: those that most runs and steps have, then those with "
            f"most tokens that rules acted on. Of a prompt it has up to {MAX_SAMPLES} samples: traced ones first, then "
            "those with most such tokens."
        )
    if content.num_shown < content.num_chosen:
        text += (
            " They are taken in turn, the first of every prompt and step, then the second, as long as they fit"
            f" and have at most {MAX_TOKENS:,} tokens together."
        )
    if max(response["count"] for response in content.payload["responses"]) > MAX_TOKENS_OF_A_RESPONSE:
        text += f" A longer response ends after {MAX_TOKENS_OF_A_RESPONSE:,} tokens."
    return text


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
