"""A served page in a real browser: it follows new ones, at its place and with its choices.

The browser is that of `tests.report.browser`; without one the tests are left out.
"""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from megarl.report.figures import write_run_figures
from megarl.report.serving import LivePage, serving
from megarl.telemetry.run_directory import RunDirectory
from tests.report.token_rows import make_row as make_response
from tests.report.token_rows import write_steps
from tests.telemetry.runs import make_config, make_row, write_metrics

sync_api = pytest.importorskip("playwright.sync_api")

PAGE = """<!doctype html><html lang='en'><head><title>t</title>
<meta http-equiv='Content-Security-Policy'
content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
</head><body><main>
ADDED
<h2 id='first' style='height: 900px'>VERSION</h2>
<details id='facts'><summary>facts</summary>all of them</details>
<details><summary>more</summary>of them</details>
<label><input type='checkbox' id='marks' checked> marks</label>
<label><input type='radio' name='tint' value='a' checked> a</label>
<label><input type='radio' name='tint' value='b'> b</label>
<input id='words'>
<div id='late'></div>
<h2 id='second' style='height: 900px'>second</h2>
<div id='wide' style='height: 50px; overflow: auto'><p style='height: 500px'>x</p></div>
<h2 id='third' style='height: 3000px'>third</h2>
</main>
<script>
setTimeout(() => {
  const late = document.getElementById("late");
  late.innerHTML = "<select id='step'></select><select id='sample'></select><button aria-pressed='false'>p</button>";
  const [step, sample] = late.querySelectorAll("select"), pressed = late.querySelector("button");
  for (const one of STEPS) step.add(new Option(`step ${one}`));
  const fill = () => {
    sample.replaceChildren();
    for (const one of "xyz") sample.add(new Option(`${step.value}, ${one}`));
  };
  step.onchange = fill;
  pressed.onclick = () => pressed.setAttribute("aria-pressed", pressed.getAttribute("aria-pressed") !== "true");
  fill();
}, 300);
</script>
</body></html>"""


def make_page(version: str, *, added: str = "", steps: str = "[1, 2, 3]") -> bytes:
    return PAGE.replace("VERSION", version).replace("ADDED", added).replace("STEPS", steps).encode()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 900, "height": 600})
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    yield opened
    context.close()
    assert [text for text in complaints if "ERR_CONNECTION_REFUSED" not in text] == []


def wait_until(page: Any, condition: str) -> None:
    """Not by `wait_for_function`, an eval, which the policy of the page forbids. While it loads anew there is none."""
    deadline_s = time.monotonic() + 20
    while True:
        with suppress(sync_api.Error):
            if page.evaluate(condition):
                return
        assert time.monotonic() < deadline_s, condition
        time.sleep(0.05)


def wait_for_version(page: Any, version: str) -> None:
    wait_until(page, f"document.getElementById('first')?.textContent === {json.dumps(version)}")


def test_choices_and_place_outlive_a_new_page(page: Any) -> None:
    live = LivePage()
    live.put(make_page("one"))
    with serving(live, port=0) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#sample")
        page.click("#facts summary")
        page.uncheck("#marks")
        page.check("input[value=b]")
        page.fill("#words", "clip")
        page.select_option("#step", label="step 2")
        page.select_option("#sample", label="step 2, y")
        page.click("button")
        page.evaluate("document.getElementById('wide').scrollTop = 120")
        page.evaluate("scrollTo(0, document.getElementById('third').offsetTop - 100)")
        live.put(make_page("two", added="<h2 id='new' style='height: 700px'>new</h2>", steps="[0, 1, 2, 3]"))
        wait_for_version(page, "two")
        wait_until(page, "document.querySelector('#sample')?.value === 'step 2, y'")
        wait_until(page, "Math.abs(document.getElementById('third').getBoundingClientRect().top - 100) < 2")
        assert page.evaluate("[...document.querySelectorAll('details')].map((one) => one.open)") == [True, False]
        assert not page.is_checked("#marks")
        assert page.is_checked("input[value=b]")
        assert page.input_value("#words") == "clip"
        assert page.get_attribute("button", "aria-pressed") == "true"
        assert page.evaluate("document.getElementById('wide').scrollTop") == 120
        # Nothing is forced on the reader later.
        page.select_option("#step", label="step 3")
        page.wait_for_timeout(500)
        assert page.input_value("#step") == "step 3"


def test_a_choice_that_is_gone_is_left_as_the_page_opens(page: Any) -> None:
    live = LivePage()
    live.put(make_page("one"))
    with serving(live, port=0) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#sample")
        page.select_option("#step", label="step 3")
        live.put(make_page("two", steps="[7, 8]"))
        wait_for_version(page, "two")
        page.wait_for_selector("#sample")
        assert page.input_value("#step") == "step 7"


def test_it_waits_while_the_reader_marks_text(page: Any) -> None:
    live = LivePage()
    live.put(make_page("one"))
    with serving(live, port=0) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        page.evaluate("getSelection().selectAllChildren(document.getElementById('first'))")
        live.put(make_page("two"))
        page.wait_for_timeout(4000)
        assert page.text_content("#first") == "one"
        page.evaluate("getSelection().removeAllRanges()")
        wait_for_version(page, "two")


def test_the_page_stays_when_the_server_ends(page: Any) -> None:
    live = LivePage()
    live.put(make_page("one"))
    with serving(live, port=0) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("output[data-watch=following]")
    page.wait_for_selector("output[data-watch=ended]", timeout=20_000)
    assert page.text_content("#first") == "one"
    with serving(live, port=port):  # megarl report --watch again, at the same port
        page.wait_for_selector("output[data-watch=following]", timeout=20_000)


def test_a_real_page_follows_its_run(page: Any, tmp_path: Path) -> None:
    run = RunDirectory.create(make_config(tmp_path), source=None, verb="train")
    live = LivePage()

    def build(steps: int) -> None:
        write_metrics(run.metrics_path, [make_row(step) for step in range(1, steps + 1)])
        write_run_figures(run.path, page=tmp_path / "page.html", pictures=False)
        live.put((tmp_path / "page.html").read_bytes())

    with serving(live, port=0) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("text=The page is being built.")
        build(2)
        page.wait_for_selector("text=Metrics of step 2", timeout=20_000)
        page.locator("summary", has_text="Configuration").click()
        build(3)
        page.wait_for_selector("text=Metrics of step 3", timeout=20_000)
        assert page.evaluate("[...document.querySelectorAll('details')].filter((one) => one.open).length") == 1
    assert not list(run.figures.iterdir())


def test_what_is_read_of_the_tokens_stays(page: Any, tmp_path: Path) -> None:
    run = RunDirectory.create(make_config(tmp_path), source=None, verb="train")
    live = LivePage()
    rules = ("", "clip_high", "", "")

    def build(steps: int) -> None:
        write_metrics(run.metrics_path, [make_row(step) for step in range(1, steps + 1)])
        rows = [make_response(sample, rules, step=step) for step in range(1, steps + 1) for sample in (0, 1)]
        write_steps(run.rollouts, rows)
        write_run_figures(run.path, page=tmp_path / "page.html", pictures=False)
        live.put((tmp_path / "page.html").read_bytes())

    build(2)
    with serving(live, port=0) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#reader-0-0")
        page.locator("[data-part=step]").select_option(label="1")
        sample = page.locator("[data-part=sample] option:checked").text_content()
        page.locator("#reader-tints input").nth(2).check()
        page.locator("#reader-marks").uncheck()
        page.wait_for_selector("[data-part=text][aria-busy=false]")
        page.locator("#reader-0-2").click()
        heading = page.locator("[data-part=heading]").text_content()
        build(3)
        page.wait_for_selector("text=Metrics of step 3", timeout=20_000)
        page.wait_for_selector("#reader-0-2[aria-selected=true]", timeout=20_000)
        assert page.locator("[data-part=step] option:checked").text_content() == "1"
        assert page.locator("[data-part=sample] option:checked").text_content() == sample
        assert page.locator("[data-part=heading]").text_content() == heading
        assert page.locator("#reader-tints input").nth(2).is_checked()
        assert not page.locator("#reader-marks").is_checked()
        assert page.locator("[data-part=step] option").all_text_contents() == ["1", "2", "3"]
