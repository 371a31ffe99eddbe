"""The step table lines up at every width; off a terminal it is plain text; on one, progress shows and goes away."""

import io
import math
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megarl.telemetry import console as module
from megarl.telemetry.columns import RL_COLUMNS, SFT_COLUMNS, StepTable, format_count, format_number
from megarl.telemetry.console import Console
from tests.telemetry.runs import make_row

GOLDEN = """\
vLLM engines      0.0 s
         -- reward --           -- clip % --                   ----- tokens -----  ----------------- seconds -----------------
   step     mean ±std  entropy    low   high       kl    grad  response     per s    total      gen     logp    train  publish
  1/100   0.300 ±0.40    1.000   0.10   0.20   0.0001   0.300       300     1,234    40.00    20.00     3.00    14.00     1.50
  2/100   0.400 ±0.40      nan   0.10   0.20  -3.1e-7  12.000       300     1,234    40.00    20.00     3.00    14.00     1.50
new best checkpoint
  3/100   0.500 ±-       0.333      -      -        -       -         -         -        -        -        -        -        -
"""  # noqa: E501


def test_plain_output_is_aligned_text() -> None:
    text = io.StringIO()
    with Console(steps=100, file=text) as console:
        with console.phase("vLLM engines", total=2, announce=True) as phase:
            phase.advance()
        console.step_line(make_row(1))  # type: ignore[arg-type]
        with console.phase("generate", total=512) as phase:
            phase.advance(512)
        changes = {"actor/entropy": math.nan, "actor/ppo_kl": -3.14e-7, "actor/grad_norm": 12.0}
        console.step_line(make_row(2) | changes)  # type: ignore[arg-type]
        console.note("new best checkpoint")
        console.step_line({"step": 3, "reward/mean": 0.5, "actor/entropy": 1 / 3})
    assert text.getvalue() == GOLDEN


def test_header_comes_every_20_lines_and_nothing_is_a_control_character() -> None:
    text = io.StringIO()
    console = Console(steps=50, columns=SFT_COLUMNS, file=text, width=80)
    for step in range(1, 51):
        console.step_line({"step": step, "sft/loss": 2.0 / step, "actor/lr": 5e-7, "timing_s/step": 0.5})
    console.close()
    lines = text.getvalue().splitlines()
    assert [i for i, line in enumerate(lines) if "loss" in line] == [1, 23, 45]
    assert len(lines) == 50 + 3 * 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text.getvalue())


@pytest.mark.parametrize("columns", [RL_COLUMNS, SFT_COLUMNS])
@given(
    width=st.integers(80, 160),
    steps=st.integers(1, 999_999),
    value=st.one_of(st.none(), st.floats(), st.floats(-10, 10)),
)
def test_every_line_of_a_table_is_equally_long_and_fits(columns, width: int, steps: int, value: float | None) -> None:  # type: ignore[no-untyped-def]
    table = StepTable(columns, steps=steps, width=width)
    values = {} if value is None else dict.fromkeys(make_row(1), value)
    lines = [*table.header(), table.line(values | {"step": steps})]
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= width


def test_narrow_terminals_lose_the_least_important_columns_first() -> None:
    def headers(width: int) -> str:
        line = StepTable(RL_COLUMNS, steps=100, width=width).header()[1]
        return re.sub(" +", " ", line.replace("mean ±std", "reward").replace("per s", "speed")).strip()

    every = "step reward entropy low high kl grad response speed total gen logp train publish"
    assert headers(126) == headers(200) == every
    assert headers(125) == "step reward entropy low high kl grad response speed total gen train"
    assert headers(100) == "step reward entropy low high kl grad response speed total"
    assert headers(80) == "step reward entropy low high kl grad response total"
    assert headers(60) == "step reward entropy low high total"
    assert headers(20) == "step reward"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (0.12345, "0.123"),
        (-12.3456, "-12.346"),
        (1234.5678, "1.23e3"),
        (0.00012, "1.20e-4"),
        (-0.00012, "-1.2e-4"),
        (None, "-"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_format_number(value: float | None, text: str) -> None:
    assert format_number(value, width=7, decimals=3) == text


@pytest.mark.parametrize(
    ("value", "text"), [(7.4, "7"), (12345.0, "12,345"), (1234567.0, "1.2M"), (9.9e11, "990.0G"), (None, "-")]
)
def test_format_count(value: float | None, text: str) -> None:
    assert format_count(value, width=6) == text


def test_a_long_phase_off_the_terminal_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    now_s = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s[0])
    console = Console(steps=2, file=text)
    console.step_line({"step": 1})
    before = text.getvalue()
    with console.phase("generate", total=512) as phase:
        for _ in range(4):
            now_s[0] += 25
            phase.advance(10)
    assert text.getvalue().removeprefix(before) == "generate: 30/512 after 75 s\n"


def test_a_failed_start_up_phase_is_not_reported_as_done() -> None:
    text = io.StringIO()
    console = Console(steps=1, file=text)
    with pytest.raises(RuntimeError), console.phase("vLLM engines", announce=True):
        raise RuntimeError
    assert text.getvalue() == ""


TERMINAL_RUN = """
import logging, sys
from pathlib import Path
from megarl.telemetry.console import Console
from megarl.telemetry.logs import setup_logging
setup_logging("controller", 0, Path(sys.argv[1]))
with Console(steps=3, width=100) as console:
    with console.phase("generate", total=4) as phase:
        phase.advance(3)
        console._live.refresh()
        logging.getLogger("megarl").warning("a log line")
    console.step_line({"step": 1, "reward/mean": 0.5, "reward/std": 0.25})
"""


def test_on_a_terminal_progress_shows_and_the_table_stays(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "NO_COLOR": "1"}
    command = [sys.executable, "-c", TERMINAL_RUN, str(tmp_path)]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    output = bytearray()
    try:
        while chunk := os.read(ours, 65536):
            output += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    text = output.decode()
    assert "generate" in text
    assert "3/4" in text
    assert "a log line" in text
    assert " 1/3   0.500 ±0.25" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor comes back
