"""The per-token part of the report: which responses it shows, what a reader can tell of a token, and its escaping."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megarl.records import TokenTrace
from megarl.telemetry.figures import write_run_figures
from megarl.telemetry.rollouts import RolloutRow, write_rollouts
from megarl.telemetry.token_view import format_tokens
from tests.telemetry.runs import make_row, write_metrics


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


def traced_row(sample_id: int, rules: tuple[str, ...], *, prompt: int = 0, advantage: float = 0.5) -> RolloutRow:
    num = len(rules)
    zeros = (0.0,) * num
    trace = TokenTrace(
        sample_id=sample_id,
        logp=(-0.75,) * num,
        entropy=tuple(float(position) for position in range(num)),
        ratio=(1.5,) * num,
        low=(0.75,) * num,
        high=(1.25,) * num,
        gate=(0.25,) * num,
        weight=(2.0,) * num,
        advantage=(advantage,) * num,
        rule=rules,
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
        failure=None,
        advantage=advantage,
        stop_reason="stop",
    )


def headings(text: str) -> list[str]:
    return re.findall(r"<h3>(Prompt \d+, sample \d+)", text)


def test_a_token_shows_its_text_entropy_numbers_and_rule() -> None:
    text = format_tokens([traced_row(3, ("", "clip_low+tis", "tis", "clip_high"))])
    reader = TokenReader()
    reader.feed(text)
    assert [token[0] for token in reader.tokens] == ["", "clip_low", "other", "clip_high"]
    assert [token[2] for token in reader.tokens] == ["<b>", "↵\n", "·", " so"]
    assert reader.tokens[1][1] == (
        "token 1: log p -0.750, H 1.000, r 1.500 in [0.75, 1.25], A +0.5, g +0.25, weight 2, clip_low+tis"
    )
    # White at H = 0; 255 + .85 (channel - 255) at the largest entropy.
    assert reader.tints[0] == "#ffffff"
    assert reader.tints[3] == "#9170cb"
    assert "<script>" not in text
    assert "Prompt 0, sample 3: reward 1, advantage +0.5, 4 tokens, rules acted on 3" in text
    row = re.search(r"<tr><td><code>(.*?)</code></td><td>clip_low\+tis</td>(.*?)</tr>", text)
    assert row is not None
    assert html.unescape(row[1]) == r"\n"
    assert re.findall(r">([^<>]+)</td>", row[2]) == ["1", "100%", "1.000", "1.500"]


def test_the_most_clipped_responses_of_either_sign_are_shown_one_per_prompt() -> None:
    rows = [
        traced_row(0, ("", "")),
        traced_row(1, ("tis", "tis"), prompt=1),
        traced_row(2, ("clip_high", ""), prompt=2),
        traced_row(3, ("clip_high", "clip_high"), prompt=2),
        traced_row(4, ("", ""), prompt=2, advantage=-1.0),
        traced_row(5, ("dual", ""), prompt=3, advantage=0.0),
    ]
    assert headings(format_tokens(rows)) == ["Prompt 2, sample 3", "Prompt 1, sample 1", "Prompt 2, sample 4"]
    assert headings(format_tokens(rows[-1:])) == ["Prompt 3, sample 5"]


def test_long_responses_are_cut_and_untraced_ones_left_out() -> None:
    text = format_tokens([traced_row(0, ("",) * 700)])
    assert "… and 100 more tokens" in text
    assert "No rule acted on a traced token" in text
    untraced = RolloutRow(
        **{name: getattr(traced_row(0, ("",)), name) for name in RolloutRow.__slots__ if name != "trace"}
    )
    assert format_tokens([untraced]) == ""


def test_the_report_shows_the_last_rollouts_or_why_it_cannot(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.jsonl", [{"step": 1, "actor/entropy": make_row(1)["actor/entropy"]}])
    folder = tmp_path / "rollouts"
    folder.mkdir()
    write_rollouts(folder / "step-000006.parquet", [])
    write_rollouts(folder / "step-000007.parquet", [traced_row(0, ("clip_low",))])
    write_run_figures(tmp_path)
    assert "Tokens of step 7" in (tmp_path / "report.html").read_text()
    pq.write_table(pa.table({"x": [1]}), folder / "step-000008.parquet")
    write_run_figures(tmp_path)
    assert "step-000008.parquet has columns [&#x27;x&#x27;], expected" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("entropy", [0.0, -1e-6])
def test_a_certain_policy_divides_by_no_zero(entropy: float) -> None:
    row = traced_row(0, ("",))
    assert row.trace is not None
    changed = {name: getattr(row.trace, name) for name in TokenTrace.__slots__} | {"entropy": (entropy,)}
    fields = {name: getattr(row, name) for name in RolloutRow.__slots__} | {"trace": TokenTrace(**changed)}
    assert "background:#ffffff" in format_tokens([RolloutRow(**fields)])
