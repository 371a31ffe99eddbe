"""Frames drawn for terminals of several sizes."""

import itertools
import unicodedata
from dataclasses import replace

import pytest

from megarl.cli.top_frame import Frame, RunFrame, ShownProcess
from megarl.cli.top_screen import frame_lines, share_height
from megarl.cli.top_words import bar, duration
from tests.cli.top_frames import make_beat, make_curve, make_run


def draw(*runs: RunFrame, width: int = 80, height: int = 24, ascii_only: bool = False) -> list[str]:
    frame = Frame(title="runs", at="12:34:56", runs=runs, alone=len(runs) == 1)
    return [line.plain for line in frame_lines(frame, width=width, height=height, ascii_only=ascii_only)]


def test_one_run_on_a_small_terminal() -> None:
    lines = draw(make_run())
    assert lines[0] == "clip-higher" + " " * 52 + "running  12:34:56"
    assert lines[1].endswith("step 120 of 300   12 s a step   37 min left   51,234 tokens/s")
    assert lines[2] == f"{'reward':<12}   0.400 ▁▃█{' ' * 36}   0.100 .. 0.400"
    shown = [line.split()[0] for line in lines]
    assert shown[2:9] == ["reward", "entropy", "clip", "clip", "response", "grad", "seconds"]
    assert shown[9:14] == ["generate", "reward", "update", "publish", "eval"]  # "other" is the shortest
    assert lines[14] == "processes (heartbeat 2.0 s ago)"
    assert lines[15:18] == [
        "controller 0       n1           step 3      update for 3.0 s",
        "policy 0 to 3      n1           step 3      make an update for 3.0 s",
        "rollout 0          n1           step 3      idle for 3.0 s",
    ]
    assert len(lines) == 24
    assert lines[-3:] == ["10:00:08 rollout 0 warning 8", "checkpoint step 100, 4 min ago   restarts none", "q quits"]


def test_one_run_on_a_large_terminal() -> None:
    lines = draw(make_run(), width=140, height=50)
    assert lines[2].startswith("reward ")
    assert lines[2][72:].startswith("seconds a step, by phase")
    assert lines[3][72:].startswith("generate             6.00 ███")
    assert [line for line in lines if line.startswith("policy ")] == [
        f"policy {rank}           n1           step 3      make an update for 3.0 s" for rank in range(4)
    ]
    assert len([line for line in lines if "warning" in line]) == 1 + 9


SIZES = list(itertools.product((20, 40, 80, 119, 120, 200), (4, 10, 24, 60)))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_no_line_is_wider_and_there_are_not_more(width: int, height: int) -> None:
    stuck = tuple(ShownProcess(beat=make_beat(rank=rank), mark="no answer for 41 s") for rank in range(300))
    full = make_run("a-name-" * 20, message="why " * 60, processes=stuck, restarts=("a failure " * 20,) * 3)
    bare = RunFrame(label="new", standing="waiting")
    for runs in ((full,), (bare,), (full,) * 70, (bare, full, bare)):
        lines = draw(*runs, width=width, height=height)
        assert len(lines) <= height
        assert max(map(len, lines)) <= width
        assert lines[-1] == "q quits"


def test_what_is_stuck_is_seen_among_many() -> None:
    beats = [make_beat(rank=rank, phase="make an update") for rank in range(256)]
    processes = [ShownProcess(beat=beat) for beat in beats]
    processes[77] = ShownProcess(beat=beats[77], mark="no answer for 41 s")
    lines = draw(make_run(processes=tuple(processes)))
    assert "policy 77          n1           step 3      !! no answer for 41 s: make an upda…" in lines
    assert [line for line in lines if line.startswith("policy 0 to 76, 78 to 255")]


def test_what_was_said_of_a_run_that_ended_is_not_aged() -> None:
    run = make_run(standing="killed", message="its process is gone", beat_age_s=3600.0)
    lines = draw(run)
    assert lines[1] == "its process is gone"
    assert "processes (heartbeat 1 h 0 min ago)" in lines
    assert "controller 0       n1           step 3      update for 1.0 s" in lines


def test_restarts_and_unreadable_files_are_told() -> None:
    lines = draw(make_run(restarts=("first", "second", "third"), problems=("heartbeat.json is no heartbeat",)))
    assert lines[-5:-1] == [
        "checkpoint step 100, 4 min ago",
        "restarts   second",
        "restarts   third",
        "heartbeat.json is no heartbeat",
    ]


def test_a_terminal_of_ascii_gets_ascii() -> None:
    long = make_run("läufe-" * 40)
    frame = draw(make_run(), ascii_only=True) + draw(long, ascii_only=True) + draw(make_run(), long, ascii_only=True)
    assert all(line.isascii() for line in frame)
    assert "_:#" in frame[2]


def test_several_runs_are_a_table() -> None:
    lines = draw(
        make_run("low-seed0"),
        make_run("low-seed1", standing="finished", step=300, left_s=None),
        RunFrame(label="high-seed0", standing="failed", message="engine 0 died\nand more", step=7, steps=300),
        RunFrame(label="high-seed1", standing="waiting"),
        width=140,
    )
    assert lines[0] == "runs   4 runs: 1 running, 1 failed, 1 waiting, 1 finished" + " " * 75 + "12:34:56"
    assert [line.split()[:4] for line in lines[1:6]] == [
        ["run", "step", "left", "a"],
        ["low-seed0", "running", "120/300", "37"],
        ["low-seed1", "finished", "300/300", "-"],
        ["high-seed0", "failed", "7/300", "-"],
        ["high-seed1", "waiting", "-", "-"],
    ]
    assert " 0.400  ▁▃█  " in lines[2]
    assert lines[6:8] == ["ended by a failure", "high-seed0: engine 0 died"]


def test_of_more_runs_than_lines_the_urgent_are_shown() -> None:
    runs = [make_run(f"seed{number}", standing="finished") for number in range(60)]
    runs[40] = make_run("seed40")
    runs[50] = make_run("seed50", standing="killed")
    lines = draw(*runs)
    assert len(lines) == 24
    shown = [line.split()[0] for line in lines[2:-2]]
    assert shown == [*(f"seed{number}" for number in range(18)), "seed40", "seed50"]
    assert lines[-2] == "and 40 more: 40 finished"


def test_a_run_that_is_stuck_says_so_in_the_table() -> None:
    processes = (ShownProcess(beat=make_beat("controller", phase="update"), mark="no heartbeat for 25 s"),)
    stuck = draw(make_run(processes=processes), make_run("other"), width=200)
    assert stuck[2].endswith("!! controller 0: no heartbeat for 25 s")
    assert stuck[3].rstrip().endswith("update")
    narrow = draw(make_run(processes=processes), make_run("other"), width=50)
    assert [line.split()[1] for line in narrow[2:4]] == ["stuck?", "running"]


def test_heights_are_shared() -> None:
    assert share_height([7, 9, 4], [5, 4, 3], 30) == [7, 9, 4]
    assert share_height([7, 9, 40], [5, 4, 3], 15) == [7, 5, 3]
    assert sum(share_height([7, 9, 40], [5, 4, 3], 8)) == 8
    assert share_height([7, 9, 40], [5, 4, 3], -1) == [0, 0, 0]


@pytest.mark.parametrize(("share", "drawn"), [(0.0, ""), (1.0, "████"), (0.5, "██"), (1 / 32, "▏"), (2.0, "████")])
def test_bars_are_drawn_to_an_eighth(share: float, drawn: str) -> None:
    assert bar(share, 4, style="", ascii_only=False).plain == drawn
    assert len(bar(share, 4, style="", ascii_only=False, full=True).plain) == 4


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.042, "0.042 s"),
        (3.21, "3.2 s"),
        (59.4, "59 s"),
        (250, "4 min 10 s"),
        (1800, "30 min"),
        (7500, "2 h 5 min"),
        (3e5, "3 d 11 h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_metric_of_one_step_and_one_that_stopped() -> None:
    run = make_run(curves=(make_curve("reward", 0.5), make_curve("entropy", 0.1, 0.2)))
    assert "▄" in draw(run)[2]


@pytest.mark.parametrize("runs", [1, 2])
def test_what_a_run_is_called_and_says_does_not_steer_the_terminal(runs: int) -> None:
    run = replace(make_run(), label="a\x1b[2Jb", standing="failed", message="it\x1b]0;broke\x07\tso\x9b1m")
    text = "".join(draw(*[run] * runs))
    assert "a [2Jb" in text
    assert not [one for one in text if unicodedata.category(one) == "Cc"]
