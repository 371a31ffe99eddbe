"""The reader's payload: which responses it holds, in how many bytes, and that its numbers are the file's own."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from megarl.report import reader, reader_payload
from megarl.report.reader import ReaderContent, StepUpdates, TokenSource, read_content
from megarl.report.reader_choice import MAX_PROMPTS, MAX_SAMPLES, MAX_STEPS, choose_steps, steps_that_share
from megarl.report.reader_payload import page_json
from megarl.report.reader_scales import Scales, tint_values
from megarl.report.reader_terms import NUMBERS, RULE_CLASS_OF
from megarl.report.token_view import format_tokens
from megarl.rules import Rule, rule_names
from megarl.telemetry.rollouts import SCHEMA
from tests.report.token_rows import make_row, tokens_of, write_steps


def content_of(*folders: Path, **options: int) -> ReaderContent:
    return read_content([TokenSource(name=folder.name, rollouts=folder) for folder in folders], **options)


def show_of(folder: Path) -> str:
    """The section of a page."""
    return str(format_tokens([TokenSource(name="run", rollouts=folder)])[0])


def keys(content: ReaderContent) -> list[tuple[int, int, int]]:
    return [(one["run"], one["step"], one["sample_id"]) for one in content.payload["responses"]]


def test_every_number_of_a_token_is_the_file_s(tmp_path: Path) -> None:
    rows = [
        make_row(0, ("", "clip_low+tis", "tis", "clip_high"), ref_logp=np.linspace(-3, -1, 4)),
        make_row(1, ("", ""), advantage=-1.0),
        make_row(2, ("",) * 3, traced=False),
        make_row(3, ("", "dual"), texts=None),
    ]
    folder = write_steps(tmp_path, rows)
    payload = content_of(folder).payload
    assert [one["sample_id"] for one in payload["responses"]] == [0, 1, 2, 3]
    table = pq.read_table(folder / "step-000007.parquet").to_pylist()
    floats = [one.name for one in SCHEMA if one.name in {number.column for number in NUMBERS} - {"rule"}]
    for response, row in zip(payload["responses"], table, strict=True):
        found = tokens_of(payload, response)
        assert list(found["columns"]) == [name for name in floats if row[name] is not None]
        for name, values in found["columns"].items():
            assert values.tobytes() == np.array(row[name], np.float32).tobytes(), name
        assert found["rules"] == (row["rule"] or [""] * len(row["response_tokens"]))
        assert [token[0] for token in found["tokens"]] == row["response_tokens"]
        assert [token[1] for token in found["tokens"]] == (row["token_text"] or [""] * len(row["response_tokens"]))
    assert {token[2] for token in tokens_of(payload, payload["responses"][3])["tokens"]} == {2}


def test_the_reader_names_every_number_that_the_file_has_per_token() -> None:
    per_token = {one.name for one in SCHEMA if str(one.type).startswith("list")}
    texts = {"prompt_tokens", "response_tokens", "token_text"}
    assert {number.column for number in NUMBERS} == per_token - texts | {"bound"}
    assert set(RULE_CLASS_OF) == {rule_names(int(rule)) for rule in Rule}


def test_special_tokens_are_those_that_the_response_s_text_leaves_out(tmp_path: Path) -> None:
    row = make_row(
        0, ("",) * 4, texts=("The", " end", "\ufffd", "<|im_end|>"), response_text="The end\N{GRINNING FACE}"
    )
    payload = content_of(write_steps(tmp_path, [row])).payload
    tokens = tokens_of(payload, payload["responses"][0])["tokens"]
    assert [token[1:] for token in tokens] == [("The", 0), (" end", 0), ("\ufffd", 0), ("<|im_end|>", 1)]


def test_the_first_steps_the_last_and_those_evenly_between() -> None:
    assert choose_steps([range(1, 6)]) == [[1, 2, 3, 4, 5]]
    (steps,) = choose_steps([range(10, 1000, 10)])
    assert (len(steps), steps[0], steps[-1]) == (MAX_STEPS, 10, 990)
    assert set(np.diff(steps)) <= {80, 90, 100}
    # Only those that both have; of runs without a common one each its own; with many runs fewer of each.
    assert choose_steps([[1, 2, 3], [2, 3, 4]]) == [[2, 3], [2, 3]]
    assert choose_steps([[1], [2]]) == [[1], [2]]
    assert {len(steps) for steps in choose_steps([range(100)] * 16)} == {3}


def test_steps_with_prompts_that_runs_share_are_found_whatever_the_order_of_the_data(tmp_path: Path) -> None:
    def run(number: int, shared_at: dict[int, str]) -> Path:
        rows = [make_row(0, ("",), step=step, prompt=shared_at.get(step, f"{number} {step}")) for step in range(1, 41)]
        return write_steps(tmp_path / str(number), rows)

    # None of these steps is among the first, the last and those evenly between.
    one, two = run(1, {7: "a", 9: "b"}), run(2, {10: "b", 20: "a", 21: "a"})
    content = content_of(one, two)
    assert content.sharing
    assert keys(content) == [(0, 7, 0), (0, 9, 0), (1, 10, 0), (1, 21, 0)]
    assert not content_of(one, run(3, {})).sharing
    third = keys(content_of(one, two, run(5, {})))
    assert sum(run == 2 for run, _, _ in third) == MAX_STEPS  # which shares none: its own, as without the others
    assert len(keys(content_of(one, run(3, {})))) == 2 * MAX_STEPS
    assert not content_of(one, run(4, {40: "b", 1: "1 1"})).sharing
    assert steps_that_share([{1: {b"x"}}, {1: {b"y"}}]) == [[], []]


def test_of_a_step_the_prompts_that_runs_share_and_of_a_prompt_the_traced_samples(tmp_path: Path) -> None:
    count = MAX_PROMPTS + 3
    shared = [make_row(100 + n, ("",), prompt="both") for n in range(MAX_SAMPLES - 1)]
    plain = [make_row(200, ("tis",), prompt="both", traced=False), make_row(201, ("dppo",), prompt="both")]
    first = [make_row(n, ("",), prompt=f"first {n}") for n in range(count)]
    # Of those that it has alone the one with a rule comes before the others.
    second = [make_row(n, ("clip_low",) if n == count - 1 else ("",), prompt=f"second {n}") for n in range(count)]
    one = write_steps(tmp_path / "one", [*first, *shared, *plain])
    two = write_steps(tmp_path / "two", [*second, make_row(300, ("",), prompt="both")])
    content = content_of(one, two)
    assert content.num_responses == count * 2 + MAX_SAMPLES + 2
    found = keys(content)
    of_both = [sample for run, _, sample in found if run == 0 and sample >= 100]
    assert of_both == [*range(100, 100 + MAX_SAMPLES - 1), 201]  # the untraced one, 200, is left out
    assert [sample for run, _, sample in found if run == 0 and sample < 100] == list(range(MAX_PROMPTS - 1))
    assert [sample for run, _, sample in found if run == 1] == [*range(MAX_PROMPTS - 2), count - 1, 300]
    assert content.payload["responses"][-1]["prompt"] == next(
        one["prompt"] for one in content.payload["responses"] if one["sample_id"] == 100
    )


def test_a_prompt_of_two_runs_comes_before_one_of_more_steps_of_a_single_run(tmp_path: Path) -> None:
    alone = [make_row(n, ("tis",), step=step, prompt=f"alone {n}") for step in (1, 2, 3) for n in range(MAX_PROMPTS)]
    both = make_row(50, ("",), step=3, prompt="both")
    other = [make_row(1, ("",), step=step, prompt="other") for step in (1, 2)]
    content = content_of(write_steps(tmp_path / "one", [*alone, both]), write_steps(tmp_path / "two", [*other, both]))
    assert [key for key in keys(content) if key[2] == 50] == [(0, 3, 50), (1, 3, 50)]
    assert len([key for key in keys(content) if key[:2] == (0, 3)]) == MAX_PROMPTS


def test_the_payload_is_no_larger_than_is_said_and_every_step_has_its_part(tmp_path: Path) -> None:
    texts = tuple(f"<{number}>" for number in range(100))
    rows = [
        make_row(sample, ("",) * 100, step=step, prompt=f"{sample // 8} " + "x" * 500, texts=texts)
        for step in range(1, 5)
        for sample in range(16)
    ]
    folder = write_steps(tmp_path, rows)
    content = content_of(folder, max_bytes=100_000)
    assert len(page_json(content.payload).encode()) <= 100_000 + 500  # names of runs, rules and scales come on top
    assert content.num_bytes > 90_000
    assert 4 <= content.num_shown < 64
    assert {step for _, step, _ in keys(content)} == set(range(1, 5))
    assert content.num_responses == 64
    assert keys(content_of(folder, max_bytes=100_000)) == keys(content)
    assert keys(content_of(folder)) == [(0, row.step, row.sample_id) for row in rows]
    assert content_of(folder, max_bytes=2_000).num_shown == 0


def test_a_response_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    long = make_row(0, ("",) * 2000, texts=tuple(f"long {n}" for n in range(2000)), prompt="long")
    short = make_row(1, ("clip_low",), texts=("short",), prompt="short")
    payload = content_of(write_steps(tmp_path, [long, short]), max_bytes=10_000).payload
    assert [one["sample_id"] for one in payload["responses"]] == [1]
    assert payload["prompts"] == ["short"]
    assert payload["tokens"] == [[0, "short", 0]]


def test_so_many_responses_are_read_as_surely_fill_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_steps(tmp_path, [make_row(n, ("",) * 10, prompt=str(n)) for n in range(10)])
    assert "taken in turn" not in show_of(folder)
    monkeypatch.setattr(reader, "MAX_TOKENS", 55)
    assert content_of(folder).num_shown == 5
    assert "This page holds 5 of 10 responses" in show_of(folder)
    assert "They are taken in turn" in show_of(folder)
    monkeypatch.setattr(reader, "MAX_TOKENS", 5)
    assert content_of(folder).num_shown == 1


def test_a_response_that_is_too_long_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_payload, "MAX_TOKENS_OF_A_RESPONSE", 50)
    payload = content_of(write_steps(tmp_path, [make_row(0, ("",) * 55)])).payload
    (response,) = payload["responses"]
    assert (response["count"], response["shown"]) == (55, 50)
    assert len(tokens_of(payload, response)["tokens"]) == 50


def test_damaged_files_are_named_and_the_others_read(tmp_path: Path) -> None:
    folder = write_steps(tmp_path, [make_row(0, ("",), step=1), make_row(0, ("",), step=4)])
    (folder / "step-000002.parquet").write_bytes(b"PAR1 no more")
    pq.write_table(pq.read_table(folder / "step-000001.parquet").drop(["rule"]), folder / "step-000003.parquet")
    (folder / "step-000005.parquet.partial").write_bytes(b"")
    content = content_of(folder)
    assert keys(content) == [(0, 1, 0), (0, 4, 0)]
    damaged, other = content.problems
    assert damaged.startswith("step-000002.parquet cannot be read: ")
    assert "step-000003.parquet has columns " in other
    assert content.num_responses == 2


def test_no_text_ends_the_script_element_or_begins_markup() -> None:
    hostile = "</script><!--<script>&\u2028\N{GRINNING FACE}\x00"
    text = page_json({"x": hostile})
    assert not set("<>&\x00") & set(text)
    assert json.loads(text) == {"x": hostile}


def test_numbers_that_json_has_not_are_none(tmp_path: Path) -> None:
    folder = write_steps(tmp_path, [make_row(0, ("",), reward=float("nan"), advantage=float("-inf"))])
    (response,) = content_of(folder).payload["responses"]
    assert (response["reward"], response["advantage"], response["verifier_reward"]) == (None, None, 1.0)


def test_the_update_of_a_response(tmp_path: Path) -> None:
    folder = write_steps(tmp_path, [make_row(n, ("",)) for n in (0, 39, 40)])
    source = TokenSource(name="x", rollouts=folder, updates=StepUpdates(count=2, mini_batch_responses=40))
    payload = read_content([source]).payload
    assert [one["update"] for one in payload["responses"]] == [1, 1, 2]
    assert payload["runs"] == [{"name": "x", "updates": 2}]


def test_tints_say_how_far_a_ratio_is_inside_its_side_s_bound() -> None:
    up = tint_values(make_row(0, ("",) * 3))
    row = make_row(0, ("",) * 3, advantage=-1.0)
    assert row.trace is not None
    down = tint_values(row)
    np.testing.assert_allclose(up["bound"], 1.28 - row.trace.ratio, atol=1e-6)
    np.testing.assert_allclose(down["bound"], row.trace.ratio - 0.8, atol=1e-6)
    np.testing.assert_allclose(up["ratio"], np.log(row.trace.ratio), atol=1e-6)
    assert np.isnan(tint_values(make_row(0, ("",), advantage=0.0))["bound"]).all()
    assert set(tint_values(make_row(0, ("",), traced=False))) == {"entropy", "advantage"}


def test_a_token_far_out_leaves_the_others_their_tint_and_nothing_is_divided_by_zero() -> None:
    scales = Scales()
    row = make_row(0, ("",) * 5000)
    assert row.trace is not None
    row.trace.ratio.setflags(write=True)
    row.trace.ratio[:100] = np.inf  # more than the hundredth that a scale leaves out
    row.trace.entropy.setflags(write=True)
    row.trace.entropy[18] = 1000.0
    scales.add(row)
    reach = scales.reach()
    assert 1.9 < reach["entropy"] < 2.0
    assert np.isfinite(reach["ratio"])
    flat = Scales()
    flat.add(make_row(0, ("",), traced=False, old_entropy=np.array([-1e-8]), advantage=0.0))
    assert flat.reach() == {"entropy": 1.0, "advantage": 1.0}
