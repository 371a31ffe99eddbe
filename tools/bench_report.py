"""What the pages of `megarl report` cost, on this machine: to build, to carry, and to open in a headless Chromium.

Made for it, through the writers that a run has: one run with its rollouts, of which the first responses are traced, and
an ablation of many runs without. The numbers are random walks under the names that a run logs.

* build_s: the page alone, in a process that has imported megarl; the first time.
* command_s: all of `megarl report`, from its start to its end, pictures included.
* bytes: of the page.
* dom_content_loaded_s, load_s, first_paint_s: as the browser tells them, since it began to open the file.
* figures_s: until the first figure has been painted; tokens_s: until the reader of tokens shows a response (null:
  the page has none). main_thread_s: CPU seconds of the page's main thread until then, which other work on the machine
  does not lengthen.
The times of the browser are medians over visits, each in a context of its own. Wanted is: every page in under 2 s.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from chromium import ARGUMENTS, find_chromium, missing
from rich.console import Console
from rich.table import Table

from megarl.ablation.directory import AblationDirectory, AblationPlan, Cell, Setting
from megarl.config.loader import load_config
from megarl.records import TokenTrace
from megarl.rules import Rule
from megarl.telemetry.names import DESCRIPTIONS
from megarl.telemetry.rollouts import RolloutRow, write_rollouts
from megarl.telemetry.run_directory import RunDirectory, RunState
from megarl.telemetry.sinks import JsonlSink

ROOT = Path(__file__).resolve().parent.parent
SEEDS = 5
"""Of each setting; the runs are so many times settings."""
PROMPTS, SAMPLES, TRACED = 16, 8, 32
TOKENS = 300
"""Of a response, on average."""
WANTED_S = 2.0
NOTE_PAINTS = """
window.noted = {};
const note = (name, there) => {
  const look = () => there() ? requestAnimationFrame(() => requestAnimationFrame(() => {
    window.noted[name] = performance.now() / 1000;
  })) : setTimeout(look, 5);
  look();
};
const visible = (selector) => () => {
  const found = document.querySelector(selector);
  return found !== null && found.getBoundingClientRect().height > 0;
};
note("figures_s", visible("figure svg, figure img, .plot svg"));
note("tokens_s", visible("#reader [role=option], .response .token"));
"""
EXAMPLES = """examples:
  python tools/bench_report.py                          # a table; some minutes, most of them to make the runs
  python tools/bench_report.py --json --directory /tmp/report-bench    # keeps the runs, and takes them again
  python tools/bench_report.py --steps 100 --runs 10 --no-browser
"""


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    with scratch(options.directory) as directory:
        run = make_run_once(directory / "one", steps=options.steps, rollouts=options.rollouts)
        ablation = make_ablation_once(directory / "many", runs=options.runs, steps=options.steps)
        pages = [
            {"page": "one run", "runs": 1, "steps": options.steps, **measure(run, directory / "one.html", options)},
            {"page": "ablation", "runs": options.runs, "steps": options.steps}
            | measure(ablation, directory / "many.html", options),
        ]
    if options.json:
        print(json.dumps({"cpus": os.cpu_count(), "visits": options.visits, "pages": pages}, indent=2))
    else:
        print_table(Console(), pages)
    return 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=formatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--steps", type=int, default=1000, help="of every run (default 1000)")
    parser.add_argument("--runs", type=int, default=100, help=f"of the ablation, a multiple of {SEEDS} (default 100)")
    parser.add_argument("--rollouts", type=int, default=20, help="steps of the one run that have them (default 20)")
    parser.add_argument("--visits", type=int, default=5, help="of the browser to each page (default 5)")
    parser.add_argument("--no-browser", action="store_true", help="build the pages and open none")
    parser.add_argument("--directory", type=Path, help="where runs and pages are kept (default: nowhere)")
    options = parser.parse_args(arguments)
    if options.runs % SEEDS or options.runs < SEEDS:
        parser.error(f"expected --runs to be a multiple of {SEEDS}, found {options.runs}")
    if min(options.steps, options.visits) < 1 or not 0 <= options.rollouts <= options.steps:
        parser.error("expected steps and visits of 1 at least, and not more rollouts than steps")
    if not options.no_browser and find_chromium() is None:
        parser.error(f"{missing()}; --no-browser measures without")
    return options


@contextmanager
def scratch(directory: Path | None) -> Iterator[Path]:
    """The directory, made where it is not there; without one a temporary one."""
    if directory is None:
        with tempfile.TemporaryDirectory(prefix="megarl-bench-report-") as made:
            yield Path(made)
    else:
        directory.mkdir(parents=True, exist_ok=True)
        yield directory.resolve()


def make_run_once(parent: Path, *, steps: int, rollouts: int) -> Path:
    """A finished run below `parent`, or the one that is there already."""
    if not (parent / "latest").exists():
        run = make_run(parent, name="one", overrides=[f"train.steps={steps}"], steps=steps, seed=0)
        random = np.random.default_rng(1)
        for step in np.unique(np.linspace(1, steps, rollouts, dtype=int)) if rollouts else ():
            write_rollouts(run.rollouts_path(int(step)), make_rollouts(int(step), random))
    return (parent / "latest").resolve()


def make_ablation_once(path: Path, *, runs: int, steps: int) -> Path:
    """An ablation whose cells have all finished, or the one that is there already."""
    if path.exists():
        return path
    settings = [
        Setting(name=f"high{high:.2f}", values={"objective.clip.high": float(high)})
        for high in np.linspace(0.2, 0.58, runs // SEEDS).round(2)
    ]
    cells = tuple(
        Cell(index=at, name=f"{one.name}-seed{seed}", setting=one.name, seed=seed, run=f"cells/{one.name}-seed{seed}")
        for at, (one, seed) in enumerate((one, seed) for one in settings for seed in range(SEEDS))
    )
    plan = AblationPlan(name="clip", settings=tuple(settings), cells=cells, control=settings[0].name)
    with tempfile.TemporaryDirectory(dir=path.parent) as unfinished:
        made = AblationDirectory.create(Path(unfinished) / path.name, plan, source="")
        for cell in cells:
            high = plan.setting(cell.setting).values["objective.clip.high"]
            overrides = [f"train.steps={steps}", f"train.seed={cell.seed}", f"objective.clip.high={high}"]
            run = make_run(made.runs, name=cell.name, overrides=overrides, steps=steps, seed=cell.index + 1)
            made.link_of(cell).symlink_to(Path("runs") / run.path.name)
        made.path.rename(path)
    return path


def make_run(parent: Path, *, name: str, overrides: Sequence[str], steps: int, seed: int) -> RunDirectory:
    """A run that has logged every declared metric at every step."""
    given = [*overrides, f"name={name}", f"logging.directory={parent}"]
    run = RunDirectory.create(load_config(ROOT / "configs" / "quickstart.toml", given), source=None, verb="train")
    names = [metric for metric in DESCRIPTIONS if metric not in ("step", "policy_version", "sft/loss")]
    values = walk(len(names), steps, np.random.default_rng(seed))
    sink = JsonlSink(run.metrics_path)
    for step in range(1, steps + 1):
        row = dict(zip(names, values[step - 1].tolist(), strict=True))
        sink.log(step, row | {"policy_version": step, "timing_s/step": 1.0 + sum(row[one] for one in PHASE_NAMES)})
    sink.close()
    run.write_state(RunState(status="finished", step=steps))
    return run


PHASE_NAMES = [f"timing_s/{name}" for name in ("generate", "reward", "old_logp", "update", "publish")]


def walk(count: int, steps: int, random: np.random.Generator) -> np.ndarray:
    """[steps, count]: of each metric a walk that stays positive, with noise on it."""
    walks = np.exp(np.cumsum(random.normal(0, 0.03, (steps, count)), axis=0)) * 0.2
    return walks * random.uniform(0.9, 1.1, (steps, count))


def make_rollouts(step: int, random: np.random.Generator) -> dict[str, list[Any]]:
    """The columns of a step's responses; the first ones are traced."""
    rows = [make_response(step, sample_id, random) for sample_id in range(PROMPTS * SAMPLES)]
    return {one.name: [getattr(row, one.name) for row in rows] for one in fields(RolloutRow)}


def make_response(step: int, sample_id: int, random: np.random.Generator) -> RolloutRow:
    count = int(random.integers(TOKENS // 2, TOKENS * 3 // 2))
    tokens = random.integers(100, 5000, count)
    text = tuple(f" word{token}" for token in tokens)

    def numbers(low: float, high: float) -> np.ndarray:
        return random.uniform(low, high, count).astype(np.float32)

    logp = numbers(-4, 0)
    trace = None
    if sample_id < TRACED:
        rule = np.where(random.random(count) < 0.05, int(Rule.CLIP_HIGH), 0).astype(np.int32)
        trace = TokenTrace(
            sample_id=sample_id, logp=logp, entropy=numbers(0, 3), expected_q=numbers(-1, 1), ratio=numbers(0.7, 1.4),
            low=numbers(0.8, 0.8), high=numbers(1.28, 1.28), gate=numbers(0, 1), weight=numbers(1, 1),
            coefficient=numbers(-1, 1), advantage=numbers(-1, 1), rule=rule,
        )  # fmt: skip
    reward = float(sample_id % 3 == 0)
    return RolloutRow(
        step=step, prompt_index=sample_id // SAMPLES, sample_index=sample_id % SAMPLES, sample_id=sample_id,
        policy_version=step - 1, prompt_text=f"What is {sample_id // SAMPLES} + 1?", response_text="".join(text),
        prompt_tokens=np.arange(8), response_tokens=tokens, token_text=text, behavior_logp=logp, old_logp=logp,
        old_entropy=numbers(0, 3), trace=trace, reward=reward, verifier_reward=reward, overlong=0.0, bonus=0.0,
        failure=None, advantage=reward - 0.3, stop_reason="stop", ref_logp=None,
    )  # fmt: skip


def measure(runs: Path, page: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Of the page of a run or of an ablation."""
    build = "import sys, time; from pathlib import Path; from megarl.cli.report_watch import build_page\n"
    build += "began = time.perf_counter(); build_page((Path(sys.argv[1]),), Path(sys.argv[2]))\n"
    build += "print(time.perf_counter() - began)"
    build_s = float(subprocess.run([sys.executable, "-c", build, str(runs), str(page)], check=True, **TEXT).stdout)
    began_s = time.perf_counter()
    command = [sys.executable, "-m", "megarl.cli.main", "report", str(runs), "--output", str(page)]
    subprocess.run(command, check=True, **TEXT)
    found = {"build_s": build_s, "command_s": time.perf_counter() - began_s, "bytes": page.stat().st_size}
    return found if options.no_browser else found | visit(page, visits=options.visits)


TEXT: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "cwd": ROOT}


def visit(page: Path, *, visits: int) -> dict[str, Any]:
    """Medians of what the browser tells."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(ARGUMENTS))
        told = [visit_once(browser, page) for _ in range(visits)]
        version = browser.version
        browser.close()
    medians = {
        name: None if told[0][name] is None else statistics.median(one[name] for one in told) for name in told[0]
    }
    return medians | {"chromium": version}


def visit_once(browser: Any, page: Path) -> dict[str, float | None]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(NOTE_PAINTS)
    opened = context.new_page()
    devtools = context.new_cdp_session(opened)
    devtools.send("Performance.enable")
    opened.goto(page.as_uri(), wait_until="load", timeout=120_000)
    has_tokens = opened.locator("#reader, .response").count() > 0
    for name in ("figures_s", "tokens_s") if has_tokens else ("figures_s",):
        wait_until(opened, f"window.noted.{name} !== undefined")
    found: dict[str, float | None] = opened.evaluate(
        """() => {
          const told = performance.getEntriesByType("navigation")[0];
          const paint = performance.getEntriesByName("first-contentful-paint")[0];
          return {
            dom_content_loaded_s: told.domContentLoadedEventEnd / 1000, load_s: told.loadEventEnd / 1000,
            first_paint_s: paint.startTime / 1000,
            figures_s: Math.max(window.noted.figures_s, paint.startTime / 1000),  // it is noted while the page is read
            tokens_s: window.noted.tokens_s ?? null,
          };
        }"""
    )
    metrics = {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}
    context.close()
    return found | {"main_thread_s": metrics["ThreadTime"]}


def wait_until(page: Any, condition: str) -> None:
    """Playwright's own waiting is an eval, which the policy of the pages forbids."""
    deadline_s = time.monotonic() + 120
    while not page.evaluate(condition):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{page.url}: not within 120 s: {condition}")
        time.sleep(0.02)


def print_table(console: Console, pages: Sequence[dict[str, Any]]) -> None:
    table = Table("", *(str(page["page"]) for page in pages))
    for name in [name for name in pages[0] if name != "page"]:
        cells = [page[name] for page in pages]
        slow = name.endswith("_s") and name not in ("build_s", "command_s")
        table.add_row(name, *(_cell(value, slow=slow) for value in cells))
    console.print(table)


def _cell(value: Any, *, slow: bool) -> str:
    if isinstance(value, float):
        return f"[red]{value:.2f}[/red]" if slow and value > WANTED_S else f"{value:.2f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
