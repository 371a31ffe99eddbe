"""The reader as a person uses it, in a browser: by keyboard and pointer, light and dark, on a phone.

That nothing is requested and nothing complained of is checked of every page that is visited (`browser`).
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import screenshots
from PIL import Image

from megarl.report.reader import TokenSource
from megarl.report.reader_colours import READER_DARK, READER_LIGHT, contrast
from megarl.report.reader_terms import NUMBERS
from megarl.report.token_view import format_token_page
from tests.report.browser import Visit, Visitor
from tests.report.token_rows import make_row, write_steps

WORDS = (" so", " we", " add", "\n", " 12", " and", " 30", ".", "\t", "  ")
RULES = ("", "clip_low", "", "clip_high+tis", "", "dual", "", "low_entropy", "", "kl_cov")
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\u202egnirts\u2066",
    "\u200b",
    "שלום",
    "\ufffd",
    "\ufffd",
    "{{ 7 * 7 }}",
    "\x00\x1b[31m",
    "a\u0301\u0301\u0301",
    "",
    "<|im_end|>",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of three steps, of four prompts each; "shared" is in both, in other steps."""
    folders = []
    for run, steps in enumerate(((1, 2, 3), (2, 3, 4))):
        rows = []
        for step in steps:
            prompts = [f"user: problem {run}{step}{number}\nassistant:" for number in range(3)]
            if step == 3 - run:
                prompts.append("user: shared\nassistant:")
            for number, prompt in enumerate(prompts):
                for sample in range(3):
                    rules = RULES[sample:] + RULES[:sample]
                    rows.append(
                        make_row(
                            number * 3 + sample,
                            rules if sample < 2 else RULES[:4],
                            step=step,
                            prompt=prompt,
                            texts=WORDS,
                            advantage=(1.0, -1.0, 0.5)[sample],
                            traced=sample < 2,
                            prompt_index=10 * run + number,
                            sample_index=sample,
                        )
                    )
        folders.append(write_steps(tmp_path_factory.mktemp(f"run{run}"), rows))
    return folders[0], folders[1]


def page_of(folder: Path, *sources: Path) -> Path:
    path = folder / "page.html"
    named = [TokenSource(name=f"run {number}", rollouts=source) for number, source in enumerate(sources)]
    path.write_text(format_token_page("tokens", named), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def one_run(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page_of(tmp_path_factory.mktemp("one"), runs[0])


@pytest.fixture(scope="module")
def two_runs(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return page_of(tmp_path_factory.mktemp("two"), *runs)


def pane(seen: Visit, number: int = 0) -> Any:
    found = seen.page.locator(".reader-pane").nth(number)
    found.locator("[role=listbox][aria-busy=false]").wait_for(state="attached")
    return found


def numbers_of(box: Any) -> dict[str, str]:
    """What the pane says of its token, by the number's name."""
    found = box.locator("[data-number]").evaluate_all("all => all.map(one => [one.dataset.number, one.textContent])")
    return {name: text.replace("\u2212", "-") for name, text in found}


def choose(box: Any, part: str, value: int) -> None:
    box.locator(f"[data-part={part}]").select_option(value=str(value))
    box.locator("[role=listbox][aria-busy=false]").wait_for(state="attached")


def row_of(folder: Path, step: int, sample_id: int) -> dict[str, Any]:
    rows = pq.read_table(folder / f"step-{step:06d}.parquet").to_pylist()
    return next(row for row in rows if row["sample_id"] == sample_id)


def check_numbers(shown: dict[str, str], row: dict[str, Any], token: int) -> None:
    """All numbers of the pane are those of the parquet file's row."""
    names = [number.column for number in NUMBERS if number.column not in {"bound", "rule"}]
    for name in names:
        if row[name] is None:
            assert shown[name] == "–", name
        else:
            assert float(shown[name]) == float(f"{row[name][token]:.6g}"), name
    if row["rule"] is None:
        assert (shown["rule"], shown["bound"]) == ("not traced", "–")
        return
    assert shown["rule"] == (row["rule"][token] or "none")
    ratio, advantage = row["ratio"][token], row["token_advantage"][token]
    inside = row["high"][token] - ratio if advantage > 0 else ratio - row["low"][token]
    assert float(shown["bound"]) == pytest.approx(inside, rel=1e-4, abs=1e-5)


def test_a_token_that_the_keyboard_goes_to_shows_the_file_s_numbers(
    visit: Visitor,
    one_run: Path,
    runs: tuple[Path, Path],
) -> None:
    seen = visit(one_run)
    box = pane(seen)
    choose(box, "step", 2)
    choose(box, "sample", 0)
    row = row_of(runs[0], 2, 0)
    text, keyboard = box.locator("[role=listbox]"), seen.page.keyboard
    text.focus()
    check_numbers(numbers_of(box), row, 0)
    for _ in range(3):
        keyboard.press("ArrowRight")
    check_numbers(numbers_of(box), row, 3)
    assert numbers_of(box)["rule"] == "clip_high+tis"
    assert numbers_of(box)["token"] == "4 of 10, id 3: line break"
    # For one who hears it: the list names its active token, and a live region reads the numbers.
    active = text.get_attribute("aria-activedescendant")
    assert seen.page.locator(f"#{active}").get_attribute("aria-selected") == "true"
    said = seen.page.locator("#reader-said[aria-live=polite]")
    seen.page.wait_for_function("document.getElementById('reader-said').textContent.includes('4 of 10')")
    heard = said.text_content().replace("\u2212", "-")
    assert f"log p {numbers_of(box)['logp']}, entropy {numbers_of(box)['entropy']}" in heard
    assert heard.endswith("rule clip_high and tis")
    keyboard.press("r")
    assert numbers_of(box)["rule"] == "dual"
    keyboard.press("R")
    keyboard.press("ArrowLeft")
    assert numbers_of(box)["token"].startswith("3 of 10")
    keyboard.press("End")
    check_numbers(numbers_of(box), row, 9)
    keyboard.press("ArrowRight")
    assert numbers_of(box)["token"].startswith("10 of 10")
    keyboard.press("Home")
    keyboard.press("ArrowDown")  # below the line break
    assert numbers_of(box)["token"].startswith("5 of 10")
    keyboard.press("ArrowUp")
    assert numbers_of(box)["token"].startswith("1 of 10")
    # n and p: samples; the last of the three is not traced, and n stays there.
    for _ in range(3):
        keyboard.press("n")
        box.locator("[role=listbox][aria-busy=false]").wait_for(state="attached")
    keyboard.press("ArrowRight")
    check_numbers(numbers_of(box), row_of(runs[0], 2, 2), 1)
    assert box.locator("[data-part=on]").is_disabled()
    keyboard.press("p")
    box.locator("[role=listbox][aria-busy=false]").wait_for(state="attached")
    assert "sample 1" in box.locator("h3").text_content()


def test_a_token_under_the_pointer_shows_its_numbers_and_a_click_stays(
    visit: Visitor,
    one_run: Path,
    runs: tuple[Path, Path],
) -> None:
    seen = visit(one_run)
    box = pane(seen)
    choose(box, "step", 1)
    choose(box, "sample", 1)
    row = row_of(runs[0], 1, 1)
    box.locator("[role=option]").nth(1).click()
    box.locator("[role=option]").nth(4).hover()
    check_numbers(numbers_of(box), row, 4)
    box.locator("h3").hover()
    check_numbers(numbers_of(box), row, 1)


def test_tab_reaches_every_control_and_the_focus_is_seen(visit: Visitor, one_run: Path) -> None:
    seen = visit(one_run)
    pane(seen)
    reached, rings = [], []
    while reached[-1:] != ["text"] and len(reached) < 14:
        seen.page.keyboard.press("Tab")
        active = "document.activeElement"
        reached.append(
            seen.page.evaluate(f"{active}.dataset.part ?? {active}.id ?? ''") or seen.page.evaluate(f"{active}.tagName")
        )
        rings.append(seen.page.evaluate(f"getComputedStyle({active}).outlineStyle"))
    wanted = ["reader-marks", "reader-pair", "step", "prompt", "sample", "text"]
    assert [name for name in reached if name in wanted] == wanted
    assert "none" not in rings


def test_the_tint_is_that_of_the_number(visit: Visitor, one_run: Path, runs: tuple[Path, Path]) -> None:
    seen = visit(one_run)
    box = pane(seen)
    choose(box, "step", 3)
    choose(box, "sample", 1)
    row = row_of(runs[0], 3, 1)
    background = "all => all.map(one => getComputedStyle(one).backgroundColor)"

    def tints() -> list[str]:
        return box.locator("[role=option]").evaluate_all(background)

    def rgb(colour: str) -> str:
        return f"rgb({', '.join(str(int(colour[start : start + 2], 16)) for start in (1, 3, 5))})"

    entropies = [READER_LIGHT.sequential.index(hex_of(tint)) for tint in tints()]
    order = np.argsort(row["entropy"])
    assert [entropies[token] for token in order] == sorted(entropies)
    assert len(set(entropies)) > 3
    seen.page.get_by_label("ratio", exact=True).check()
    sides = {rgb(colour): 1 for colour in READER_LIGHT.above} | {rgb(colour): -1 for colour in READER_LIGHT.below}
    found = [sides.get(tint, 0) for tint in tints()]
    for side, ratio in zip(found, row["ratio"], strict=True):
        assert side in {0, np.sign(np.log(ratio))}
    assert {-1, 1} <= set(found)
    box.locator("[role=listbox]").focus()
    seen.page.keyboard.press("4")
    assert seen.page.get_by_label("bound", exact=True).is_checked()
    for tint, ratio in zip(tints(), row["ratio"], strict=True):
        assert (sides.get(tint, 0) > 0) == (ratio < 0.8)  # A < 0: beyond the lower bound
    seen.page.keyboard.press("5")
    assert rgb(READER_LIGHT.rules["clip_low"][0]) == tints()[0]
    legend = seen.page.locator("#reader-legend").text_content()
    for label in ("clip-low", "clip-high", "dual clip", "dropped", "loss added"):
        assert label in legend
    assert "DPPO" not in legend


def hex_of(rgb: str) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", rgb)[:3])


def test_two_runs_stand_side_by_side_on_one_prompt(
    visit: Visitor,
    two_runs: Path,
    runs: tuple[Path, Path],
) -> None:
    seen = visit(two_runs)
    left, right = pane(seen, 0), pane(seen, 1)
    # It opens with the one prompt that both have: of step 3 of the one, of step 2 of the other.
    for box, run, place in ((left, 0, "Step 3, prompt 3, "), (right, 1, "Step 2, prompt 13, ")):
        assert box.locator("[data-part=run]").input_value() == str(run)
        assert place in box.locator("h3").text_content()
        assert f"run {run}, " in box.locator("[role=listbox]").get_attribute("aria-label")
    for box in (left, right):
        assert box.locator("[data-part=prompt-text]").text_content() == "user: shared\nassistant:"
    assert left.locator("[data-part=prompt] optgroup").evaluate_all("all => all.map(one => one.label)") == [
        "in both runs",
        "in this run alone",
    ]
    choose(left, "sample", 10)
    choose(right, "sample", 9)
    left.locator("[role=listbox]").focus()
    right.locator("[role=listbox]").focus()
    check_numbers(numbers_of(left), row_of(runs[0], 3, 10), 0)
    check_numbers(numbers_of(right), row_of(runs[1], 2, 9), 0)
    boxes = [box.bounding_box() for box in (left, right)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    left.locator("[data-part=prompt]").select_option(index=1)
    assert "no response of run 1 to this prompt" in right.locator("h3").text_content()
    assert right.locator("[role=option]").count() == 0
    seen.page.locator("#reader-pair").uncheck()
    assert seen.page.locator(".reader-pane").count() == 1


def test_only_the_response_that_is_shown_is_in_the_document(visit: Visitor, one_run: Path) -> None:
    seen = visit(one_run)
    box = pane(seen)
    choose(box, "sample", 2)
    assert seen.page.locator("[role=option]").count() == 4
    assert seen.page.evaluate("document.querySelectorAll('*').length") < 600


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_no_sideways_scroll_and_nothing_that_keeps_people_out(
    scheme: str,
    width: int,
    visit: Visitor,
    two_runs: Path,
) -> None:
    seen = visit(two_runs, scheme=scheme, width=width, height=740)
    pane(seen, 1)
    box = pane(seen)
    box.locator("[role=listbox]").focus()
    seen.page.keyboard.press("1")
    assert seen.width_beyond() <= 0
    assert seen.serious_violations() == []
    theme = READER_DARK if scheme == "dark" else READER_LIGHT
    pairs = box.locator("[role=option]").evaluate_all(
        "all => all.map(one => [getComputedStyle(one).color, getComputedStyle(one).backgroundColor])"
    )
    tinted = [(hex_of(text), hex_of(back)) for text, back in pairs if "rgba(0, 0, 0, 0)" not in back]
    assert tinted
    assert {text for text, _ in tinted} == {theme.text}
    assert min(contrast(text, back) for text, back in tinted) >= 4.5


def test_a_hostile_text_neither_breaks_the_page_nor_runs(visit: Visitor, tmp_path: Path) -> None:
    text = "".join(HOSTILE[:5]) + "\N{GRINNING FACE}" + "".join(HOSTILE[7:11])
    hostile = make_row(0, ("",) * len(HOSTILE), texts=HOSTILE, prompt="".join(HOSTILE[:2]), response_text=text)
    long = make_row(1, ("", "clip_low") * 8192, texts=(*HOSTILE, "x" * 300), prompt="y" * 5000 + " long")
    folder = write_steps(tmp_path / "rollouts", [hostile, long])
    name = "<b>run</b></script>"
    path = tmp_path / "page.html"
    path.write_text(format_token_page(name, [TokenSource(name=name, rollouts=folder)]), encoding="utf-8")
    seen = visit(path, width=360, height=740)
    box = pane(seen)
    assert box.locator("[role=option]").count() == 16384  # it has most tokens that a rule acted on
    assert seen.width_beyond() <= 0
    box.locator("[role=listbox]").focus()
    seen.page.keyboard.press("End")
    assert numbers_of(box)["token"].startswith("16384 of 16384")
    check_numbers(numbers_of(box), row_of(folder, 7, 1), 16383)
    box.locator("[data-part=prompt]").select_option(index=0)
    pane(seen)
    shown = box.locator("[role=option]").evaluate_all("all => all.map(one => one.textContent)")
    assert shown == [
        "</script><script>alert(1)</script>",
        "<img·src=x·onerror=alert(2)>",
        "⟨U+202E⟩gnirts⟨U+2066⟩",
        "⟨U+200B⟩",
        "שלום",
        "\ufffd",
        "\ufffd",
        "{{·7·*·7·}}",
        "⟨U+0000⟩⟨U+001B⟩[31m",
        "a\u0301\u0301\u0301",
        "∅",
        "<|im_end|>",
    ]
    lefts = box.locator("[role=option]").evaluate_all("all => all.map(one => one.getClientRects()[0].top)")
    assert lefts == sorted(lefts)  # one after the other, whatever their direction
    assert box.locator(".special").all_text_contents() == ["<|im_end|>"]
    seen.page.locator("#reader-marks").uncheck()
    assert box.locator("[role=option]").nth(1).text_content() == "<img src=x onerror=alert(2)>"
    assert seen.page.evaluate("document.querySelectorAll('img, .reader-text b').length") == 0


def test_pictures_of_a_run_are_small(browser: Any, one_run: Path, tmp_path: Path) -> None:
    for shot in (screenshots.SHOTS[0], screenshots.SHOTS[-1]):
        screenshots.take(browser, one_run, shot, tmp_path)
        path = tmp_path / f"{shot.name}.png"
        assert 5_000 < path.stat().st_size <= screenshots.MAX_BYTES
        with Image.open(path) as picture:
            assert picture.size == (shot.width * shot.scale, shot.height * shot.scale)
