"""What a run says of its processes, and what a reader makes of it."""

import json
from pathlib import Path

import pytest

from megarl.telemetry.heartbeat import IDLE, Heartbeat, ProcessBeat, read_heartbeat, write_heartbeat

DRIVER = ProcessBeat(role="controller", rank=0, node="n1", pid=4711, phase="update", for_s=3.25, silent_s=0.0, step=12)
STARTING = ProcessBeat(role="rollout", rank=1, node="", pid=None, phase=IDLE, for_s=9.0, silent_s=9.5, step=12)
HEARTBEAT = Heartbeat(written_s=1000.0, step=12, steps=300, processes=(DRIVER, STARTING))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat.json"
    write_heartbeat(path, HEARTBEAT)
    assert read_heartbeat(path) == HEARTBEAT
    assert HEARTBEAT.driver == DRIVER
    assert [file.name for file in tmp_path.iterdir()] == ["heartbeat.json"]
    facts = json.loads(path.read_text())
    assert (facts["step"], facts["steps"], facts["processes"][1]["pid"]) == (12, 300, None)


def test_another_version_may_say_more(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat.json"
    write_heartbeat(path, HEARTBEAT)
    facts = json.loads(path.read_text())
    facts["new"], facts["processes"][0]["memory"] = 1, 2
    path.write_text(json.dumps(facts))
    assert read_heartbeat(path) == HEARTBEAT


def test_no_file_is_no_heartbeat(tmp_path: Path) -> None:
    assert read_heartbeat(tmp_path / "heartbeat.json") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"processes": [{"role": "policy"}]}', '{"processes": [3]}'])
def test_another_file_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "heartbeat.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"heartbeat\.json is no heartbeat of a run: "):
        read_heartbeat(path)


def test_its_age_is_never_negative() -> None:
    assert HEARTBEAT.age_s(now_s=1007.5) == 7.5
    assert HEARTBEAT.age_s(now_s=990.0) == 0.0
