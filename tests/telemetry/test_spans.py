"""Phases are timed once each, and the timeline of a killed run opens."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megarl.telemetry.spans import Spans, read_timeline

KILLED_RUN = """
import os, sys
from pathlib import Path
from megarl.telemetry.spans import Spans
spans = Spans(Path(sys.argv[1]))
with spans.measure("generate"):
    pass
with spans.measure("update"):
    os._exit(9)
"""


def test_calls_of_a_name_add_up_and_collect_empties() -> None:
    spans = Spans()
    for _ in range(2):
        with spans.measure("generate"):
            time.sleep(0.02)
    with pytest.raises(KeyError), spans.measure("reward"):
        raise KeyError("a failed phase took time too")
    metrics = spans.collect()
    assert sorted(metrics) == ["timing_s/generate", "timing_s/reward"]
    assert 0.04 <= metrics["timing_s/generate"].value < 0.5
    assert spans.collect() == {}


def test_closed_timeline_is_strict_json_with_nested_spans(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    with Spans(path, process="controller") as spans:
        with spans.measure("step", step=3), spans.measure("generate"):
            time.sleep(0.01)
        spans.record("decode", start_s=time.time() - 1.0, end_s=time.time(), lane="engine 0")
    events = json.loads(path.read_text())
    spans_by_name = {event["name"]: event for event in events if event["ph"] == "X"}
    outer, inner = spans_by_name["step"], spans_by_name["generate"]
    assert outer["ts"] <= inner["ts"]
    assert inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + 1  # microseconds, rounded down
    assert inner["dur"] >= 10_000
    assert abs(outer["ts"] / 1e6 - time.time()) < 60
    assert outer["args"] == {"step": 3}
    assert spans_by_name["decode"]["tid"] != inner["tid"]
    assert spans_by_name["decode"]["dur"] == pytest.approx(1e6, rel=0.01)


def test_a_killed_run_leaves_its_finished_spans(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    done = subprocess.run([sys.executable, "-c", KILLED_RUN, str(path)], check=False)
    assert done.returncode == 9
    assert [event["name"] for event in read_timeline(path) if event["ph"] == "X"] == ["generate"]
    # What viewers do with an unterminated array: close it.
    assert json.loads(path.read_text().rstrip().rstrip(",") + "]")


@pytest.mark.parametrize("ending", ["closed", "open", "torn"])
def test_a_resumed_run_continues_its_timeline(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "timeline.json"
    first = Spans(path)
    with first.measure("generate"):
        pass
    if ending == "closed":
        first.close()
    elif ending == "torn":
        with path.open("a") as file:
            file.write('{"name": "upda')
    with Spans(path) as second, second.measure("publish"):
        pass
    events = json.loads(path.read_text())
    assert [event["name"] for event in events if event["ph"] == "X"] == ["generate", "publish"]
    assert os.listdir(tmp_path) == ["timeline.json"]


def test_a_disk_that_takes_no_more_costs_spans_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    spans = Spans()
    spans._file = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115  (its owner closes it)
    with spans.measure("generate"), spans.measure("update"):
        pass
    assert sorted(spans.collect()) == ["timing_s/generate", "timing_s/update"]
    spans.close()
    (said,) = caplog.messages
    assert said.startswith("/dev/full takes no more ([Errno 28] No space left on device); THE RUN GOES ON")


def test_a_clock_that_is_set_back_bends_no_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "timeline.json"
    with Spans(path) as spans:
        start_s = spans.now_s()
        assert abs(start_s - time.time()) < 60
        monkeypatch.setattr(time, "time", lambda: start_s - 3600.0)
        spans.record("save", start_s=start_s, end_s=spans.now_s(), lane="checkpoint")
    assert [event["dur"] >= 0 for event in read_timeline(path) if event["name"] == "save"] == [True]


@pytest.mark.parametrize("damage", [b"\0" * 40 + b"\n", b'{"name": "upd\n', b"\xff\xfe\n", b"17,\n", b'{"ph": "X"},\n'])
def test_a_damaged_line_costs_its_event(damage: bytes, tmp_path: Path) -> None:
    """A machine that lost its power leaves such."""
    path = tmp_path / "timeline.json"
    for name in ("generate", "publish"):
        with Spans(path) as spans, spans.measure(name):
            pass
    lines = path.read_bytes().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if b"publish" in line)
    path.write_bytes(b"".join([*lines[:at], damage, *lines[at:]]))
    assert [event["name"] for event in read_timeline(path) if event["ph"] == "X"] == ["generate", "publish"]
    Spans(path).close()
    json.loads(path.read_text())


def test_errors_say_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"traceEvents": []}')
    with pytest.raises(ValueError, match="is no megarl timeline"):
        read_timeline(tmp_path / "other.json")
    with pytest.raises(ValueError, match="before its start"):
        Spans().record("decode", start_s=2.0, end_s=1.0, lane="engine 0")


def test_what_is_being_timed_now() -> None:
    spans = Spans()
    assert spans.open() == []
    with spans.measure("step", step=3):
        time.sleep(0.02)
        with spans.draw("ray", lane="start"):
            step, ray = spans.open()
        assert [span.name for span in spans.open()] == ["step"]
    assert (step.name, step.details, ray.name, ray.details) == ("step", {"step": 3}, "ray", {})
    assert step.for_s >= 0.02 > ray.for_s >= 0.0
    assert spans.open() == []
    with pytest.raises(KeyError), spans.measure("update"):
        raise KeyError
    assert spans.open() == []
    assert set(spans.collect()) == {"timing_s/step", "timing_s/update"}  # what is only drawn is not counted
