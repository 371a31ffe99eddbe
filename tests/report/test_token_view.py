"""The per-token part of the report: which responses it shows, what a reader can tell of a token, and its escaping."""

import dataclasses
import html
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megarl.records import TokenTrace
from megarl.report.figures import write_run_figures
from megarl.report.token_view import StepUpdates, choose_responses, format_tokens
from megarl.report.traces import RuledToken, survey_traces
from megarl.rules import rule_flags
from megarl.telemetry.rollouts import RolloutRow, read_rollouts
from megarl.telemetry.run_directory import RunDirectory
from tests.telemetry.rollout_files import write_rows
from tests.telemetry.runs import make_config, write_metrics


class TokenReader(HTMLParser):
    """Collects the tokens of the responses: (class, title, text)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[tuple[str, str, str]] = []
        self.tints: list[str] = []
        self._open: tuple[str, str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "i" and "title" in found:
            self._open = (found.get("class", ""), found["title"])
            self.tints.append(found["style"].removeprefix("background:"))

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.tokens.append((*self._open, data))

    def handle_endtag(self, tag: str) -> None:
        self._open = None


def untraced_row(sample_id: int) -> RolloutRow:
    return dataclasses.replace(traced_row(sample_id, ("",)), trace=None)


def traced_row(sample_id: int, rules: tuple[str, ...], *, prompt: int = 0, advantage: float = 0.5) -> RolloutRow:
    num = len(rules)
    zeros = (0.0,) * num
    trace = TokenTrace(
        sample_id=sample_id,
        logp=(-0.75,) * num,
        entropy=tuple(float(position) for position in range(num)),
        expected_q=(0.125,) * num,
        ratio=(1.5,) * num,
        low=(0.75,) * num,
        high=(1.25,) * num,
        gate=(0.25,) * num,
        weight=(2.0,) * num,
        coefficient=(0.5,) * num,
        advantage=(advantage,) * num,
        rule=[rule_flags(names) for names in rules],
    )
    return RolloutRow(
        step=7,
        prompt_index=prompt,
        sample_index=sample_id,
        sample_id=sample_id,
        policy_version=6,
        prompt_text="<script>?",
        response_text="",
        prompt_tokens=(1,),
        response_tokens=tuple(range(num)),
        token_text=tuple(("<b>", "\n", "", " so")[position % 4] for position in range(num)),
        behavior_logp=zeros,
        old_logp=zeros,
        old_entropy=zeros,
        ref_logp=None,
        trace=trace,
        reward=1.0,
        verifier_reward=1.0,
        overlong=0.0,
        bonus=0.0,
        failure=None,
        advantage=advantage,
        stop_reason="stop",
    )


def show(folder: Path, rows: Sequence[RolloutRow], updates: StepUpdates | None = None) -> str:
    """The section for a step that wrote `rows`; "" where nothing was traced."""
    path = folder / "step-000007.parquet"
    write_rows(path, rows)
    survey = survey_traces(path)
    if survey is None:
        return ""
    return format_tokens(survey, read_rollouts(path, sample_ids=choose_responses(survey)), updates=updates)


def headings(text: str) -> list[str]:
    return re.findall(r"<h3>(Prompt \d+, sample \d+)", text)


def test_a_token_shows_its_text_entropy_numbers_and_rule(tmp_path: Path) -> None:
    text = show(tmp_path, [traced_row(3, ("", "clip_low+tis", "tis", "clip_high"))])
    reader = TokenReader()
    reader.feed(text)
    assert [token[0] for token in reader.tokens] == ["", "clip_low", "other", "clip_high"]
    assert [token[2] for token in reader.tokens] == ["<b>", "↵\n", "·", " so"]
    assert reader.tokens[1][1] == (
        "token 1: log p -0.750, H 1.000, N +0.125, r 1.500 in [0.75, 1.25], A +0.5, g +0.25, weight 2, clip_low+tis"
    )
    # White at H = 0; 255 + .85 (channel - 255) at the largest entropy.
    assert reader.tints[0] == "#ffffff"
    assert reader.tints[3] == "#9170cb"
    assert "<script>" not in text
    assert "update" not in re.sub(r"<[^>]*>", "", text)
    assert "Prompt 0, sample 3: reward 1, advantage +0.5, 4 tokens, rules acted on 3" in text
    row = re.search(r"<tr><td><code>(.*?)</code></td><td>clip_low\+tis</td>(.*?)</tr>", text)
    assert row is not None
    assert html.unescape(row[1]) == r"\n"
    assert re.findall(r">([^<>]+)</td>", row[2]) == ["1", "100%", "1.000", "1.500"]


def test_the_most_clipped_responses_of_either_sign_are_shown_one_per_prompt(tmp_path: Path) -> None:
    rows = [
        traced_row(0, ("", "")),
        traced_row(1, ("tis", "tis"), prompt=1),
        traced_row(2, ("clip_high", ""), prompt=2),
        traced_row(3, ("clip_high", "clip_high"), prompt=2),
        traced_row(4, ("", ""), prompt=2, advantage=-1.0),
        traced_row(5, ("dual", ""), prompt=3, advantage=0.0),
    ]
    assert headings(show(tmp_path, rows)) == ["Prompt 2, sample 3", "Prompt 1, sample 1", "Prompt 2, sample 4"]
    assert headings(show(tmp_path, rows[-1:])) == ["Prompt 3, sample 5"]


def test_clipped_tokens_of_late_updates_are_found_and_their_update_is_named(tmp_path: Path) -> None:
    # 4 updates of 40 responses, the first 2 of each traced; only those of the last update are clipped.
    rows = [
        traced_row(number, ("clip_low", "tis") if number == 121 else ("", ""), prompt=number // 4)
        if number % 40 < 2
        else untraced_row(number)
        for number in range(160)
    ]
    text = show(tmp_path, rows, StepUpdates(count=4, mini_batch_responses=40))
    assert headings(text)[0] == "Prompt 30, sample 121"
    assert "Prompt 30, sample 121, update 4 of 4: reward 1," in text
    cells = re.findall(r"<tr><td>(\d of 4)</td>(.*?)</tr>", text)
    numbers = {update: re.findall(r">([^<>]+)</td>", rest) for update, rest in cells}
    assert numbers == {f"{k} of 4": ["2", "4", "0.00%", "0.00%"] for k in (1, 2, 3)} | {
        "4 of 4": ["2", "4", "25.00%", "50.00%"]
    }
    assert "in 8 traced responses" in text


def test_tokens_are_counted_over_all_traced_responses(tmp_path: Path) -> None:
    path = tmp_path / "step-000007.parquet"
    undecoded = dataclasses.replace(traced_row(100, ("dppo", "")), token_text=None)
    rows = [traced_row(number, ("clip_low" if number % 3 else "", "", "tis")) for number in range(100)]
    write_rows(path, [*rows, undecoded, untraced_row(101)])
    survey = survey_traces(path)
    assert survey is not None
    assert [response.sample_id for response in survey.responses] == list(range(101))
    assert (survey.responses[4].num_tokens, survey.responses[4].num_clipped, survey.responses[4].num_ruled) == (3, 1, 2)
    assert (survey.responses[100].num_clipped, survey.responses[100].num_ruled) == (1, 1)
    low, tis = (
        RuledToken(text=text, rule=rule, count=count, occurrences=100, mean_entropy=entropy, mean_ratio=1.5)
        for text, rule, count, entropy in (("<b>", "clip_low", 66, 0.0), ("", "tis", 100, 2.0))
    )
    dppo = RuledToken(text="⟨0⟩", rule="dppo", count=1, occurrences=1, mean_entropy=0.0, mean_ratio=1.5)
    assert {low, tis, dppo} == set(survey.tokens)


def test_long_responses_are_cut_and_untraced_ones_left_out(tmp_path: Path) -> None:
    text = show(tmp_path, [traced_row(0, ("",) * 700)])
    assert "… and 100 more tokens" in text
    assert "No rule acted on a traced token" in text
    assert show(tmp_path, [untraced_row(0)]) == ""
    assert show(tmp_path, []) == ""


def test_the_report_shows_the_last_rollouts_or_why_it_cannot(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.jsonl", [{"step": 1, "custom": 1.0}])
    folder = tmp_path / "rollouts"
    folder.mkdir()
    write_rows(folder / "step-000006.parquet", [])
    write_rows(folder / "step-000007.parquet", [traced_row(0, ("clip_low",))])
    write_run_figures(tmp_path)
    assert "Tokens of step 7" in (tmp_path / "report.html").read_text()
    pq.write_table(pa.table({"x": [1]}), folder / "step-000008.parquet")
    write_run_figures(tmp_path)
    assert "step-000008.parquet has columns ['x'], expected" in html.unescape((tmp_path / "report.html").read_text())


def test_the_run_s_configuration_says_how_many_updates_there_are(tmp_path: Path) -> None:
    train = {"prompts_per_step": 4, "samples_per_prompt": 2, "mini_batch_responses": 2}
    run = RunDirectory.create(make_config(tmp_path, train=train), source=None, verb="train")
    write_metrics(run.metrics_path, [{"step": 1, "custom": 1.0}])
    write_rows(run.rollouts_path(7), [traced_row(4, ("clip_high",)), traced_row(6, ("",), prompt=1)])
    write_run_figures(run.path)
    text = run.report_path.read_text()
    assert headings(text) == ["Prompt 0, sample 4", "Prompt 1, sample 6"]
    assert "sample 4, update 3 of 4: " in text
    assert "sample 6, update 4 of 4: " in text


@pytest.mark.parametrize("entropy", [0.0, -1e-6])
def test_a_certain_policy_divides_by_no_zero(entropy: float, tmp_path: Path) -> None:
    row = traced_row(0, ("",))
    assert row.trace is not None
    trace = dataclasses.replace(row.trace, entropy=(entropy,))
    assert "background:#ffffff" in show(tmp_path, [dataclasses.replace(row, trace=trace)])
