"""The per-token part of the report: the tables below the reader, what the section says, its place in a run's report.

What its script does is tested in a browser (`test_browser`), what it is given in `test_reader`.
"""

import dataclasses
import html
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from megarl.report.figures import write_run_figures
from megarl.report.reader import StepUpdates, TokenSource
from megarl.report.token_view import format_tokens
from megarl.report.traces import RuledToken, survey_traces
from megarl.telemetry.rollouts import RolloutRow
from megarl.telemetry.run_directory import RunDirectory
from tests.report.token_rows import make_row, payload_of, write_steps
from tests.telemetry.rollout_files import write_rows
from tests.telemetry.runs import make_config, write_metrics


def show(folder: Path, rows: Sequence[RolloutRow], updates: StepUpdates | None = None) -> str:
    """The section for a run that wrote `rows`; "" where nothing can be shown."""
    write_steps(folder, list(rows))
    markup, problem = format_tokens([TokenSource(name="run", rollouts=folder, updates=updates)])
    assert problem is None
    return markup or ""


def words(text: str) -> str:
    """What a person sees of HTML without its script."""
    visible = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", visible)))


def test_the_section_says_what_it_holds_and_where_the_rest_is(tmp_path: Path) -> None:
    few = show(tmp_path / "few", [make_row(0, ("",)), make_row(1, ("tis",))])
    assert "This page holds 2 of 2 responses, in 0.0 MB of at most 6. All responses are in" in words(few)
    assert "<code>rollouts/step-*.parquet</code>" in few
    assert "update" not in re.sub("What the numbers are.*?float32", "", words(few))
    many = show(tmp_path / "many", [make_row(n, ("",), step=step) for step in range(1, 15) for n in range(9)])
    assert "This page holds 96 of 126 responses" in words(many)
    assert "Of 12 of 14 steps (the first, the last and evenly between) it has up to 12 prompts" in words(many)
    assert "up to 8 samples" in words(many)


def test_the_section_holds_no_text_of_a_response_as_markup(tmp_path: Path) -> None:
    text = show(tmp_path, [make_row(0, ("clip_low", "", "clip_high"), texts=("</script>", "<img src=x>", "&"))])
    assert len(re.findall("<script", text)) == len(re.findall("</script>", text)) == 3
    assert "<img" not in text
    assert [token[1] for token in payload_of(text)["tokens"]] == ["</script>", "<img src=x>", "&"]
    assert payload_of(text)["prompts"] == ["<script>?"]
    row = re.search(r"<tr><td><code>(.*?)</code></td><td>clip_low</td>", text)
    assert row is not None
    assert html.unescape(row[1]) == "</script>"


def test_what_rules_acted_on_most_is_a_table(tmp_path: Path) -> None:
    text = show(tmp_path, [make_row(3, ("", "clip_low+tis", "tis", "clip_high"))])
    row = re.search(r"<tr><td><code>(.*?)</code></td><td>clip_low\+tis</td>(.*?)</tr>", text)
    assert row is not None
    assert html.unescape(row[1]) == r"\n"
    trace = make_row(3, ("", "", "", "")).trace
    assert trace is not None
    means = [f"{trace.entropy[1]:.3f}", f"{trace.ratio[1]:.3f}"]
    assert re.findall(r">([^<>]+)</td>", row[2]) == ["1", "100%", *means]
    assert "No rule acted on a traced token of step 7." in words(show(tmp_path / "none", [make_row(0, ("",))]))


def test_untraced_responses_are_shown_and_a_run_without_any_has_no_section(tmp_path: Path) -> None:
    assert "Tokens that rules" not in show(tmp_path / "one", [make_row(0, ("",), traced=False)])
    assert len(payload_of(show(tmp_path / "one", [make_row(0, ("",), traced=False)]))["responses"]) == 1
    write_rows(tmp_path / "step-000001.parquet", [])
    assert format_tokens([TokenSource(name="run", rollouts=tmp_path)]) == (None, None)
    assert format_tokens([TokenSource(name="run", rollouts=tmp_path / "absent")]) == (None, None)


def test_updates_of_the_last_step_are_a_table(tmp_path: Path) -> None:
    # 4 updates of 40 responses, the first 2 of each traced; only those of the last update are clipped.
    rows = [
        make_row(number, ("clip_low", "tis") if number == 121 else ("", ""), traced=number % 40 < 2)
        for number in range(160)
    ]
    text = show(tmp_path, [make_row(0, ("dual",), step=3), *rows], StepUpdates(count=4, mini_batch_responses=40))
    cells = re.findall(r"<tr><td>(\d of 4)</td>(.*?)</tr>", text)
    numbers = {update: re.findall(r">([^<>]+)</td>", rest) for update, rest in cells}
    assert numbers == {f"{k} of 4": ["2", "4", "0.00%", "0.00%"] for k in (1, 2, 3)} | {
        "4 of 4": ["2", "4", "25.00%", "50.00%"]
    }
    assert "in 8 traced responses of step 7" in text
    assert payload_of(text)["runs"] == [{"name": "run", "updates": 4}]


def test_tokens_are_counted_over_all_traced_responses(tmp_path: Path) -> None:
    def flat(row: RolloutRow) -> RolloutRow:
        """With the position as entropy and 1.5 as ratio."""
        assert row.trace is not None
        entropy = tuple(float(position) for position in range(len(row.response_tokens)))
        trace = dataclasses.replace(row.trace, entropy=entropy, ratio=(1.5,) * len(entropy))
        return dataclasses.replace(row, trace=trace)

    path = tmp_path / "step-000007.parquet"
    rows = [flat(make_row(number, ("clip_low" if number % 3 else "", "", "tis"))) for number in range(100)]
    undecoded = flat(make_row(100, ("dppo", ""), texts=None))
    write_rows(path, [*rows, undecoded, make_row(101, ("",), traced=False)])
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


def test_the_report_shows_the_rollouts_and_says_what_cannot_be_read(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.jsonl", [{"step": 1, "custom": 1.0}])
    folder = tmp_path / "rollouts"
    folder.mkdir()
    write_rows(folder / "step-000006.parquet", [])
    write_rows(folder / "step-000007.parquet", [make_row(0, ("clip_low",))])
    write_run_figures(tmp_path)
    assert len(payload_of((tmp_path / "report.html").read_text())["responses"]) == 1
    pq.write_table(pa.table({"x": [1]}), folder / "step-000008.parquet")
    write_run_figures(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "step-000008.parquet has columns ['x'], expected" in html.unescape(text)
    assert len(payload_of(text)["responses"]) == 1


def test_the_run_s_configuration_says_how_many_updates_there_are(tmp_path: Path) -> None:
    train = {"prompts_per_step": 4, "samples_per_prompt": 2, "mini_batch_responses": 2}
    run = RunDirectory.create(make_config(tmp_path, train=train), source=None, verb="train")
    write_metrics(run.metrics_path, [{"step": 1, "custom": 1.0}])
    write_rows(run.rollouts_path(7), [make_row(4, ("clip_high",)), make_row(6, ("",))])
    write_run_figures(run.path)
    payload = payload_of(run.report_path.read_text())
    assert payload["runs"] == [{"name": run.path.name, "updates": 4}]
    assert [(one["sample_id"], one["update"]) for one in payload["responses"]] == [(4, 3), (6, 4)]
