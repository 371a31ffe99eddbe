"""tools/bench_report.py on small runs: the rows it promises, of pages that hold what was made."""

import json
import subprocess
import sys
from pathlib import Path

from megarl.telemetry.rollouts import read_rollouts
from megarl.telemetry.sinks import read_metrics
from tests.documents import ROOT

COMMAND = [sys.executable, str(ROOT / "tools" / "bench_report.py"), "--no-browser"]


def test_rows_of_both_pages(tmp_path: Path) -> None:
    sizes = ["--steps", "6", "--runs", "10", "--rollouts", "2", "--directory", str(tmp_path)]
    done = subprocess.run([*COMMAND, "--json", *sizes], capture_output=True, text=True, check=True, timeout=500)
    one, many = json.loads(done.stdout)["pages"]
    assert (one["page"], one["runs"], one["steps"]) == ("one run", 1, 6)
    assert (many["page"], many["runs"], many["steps"]) == ("ablation", 10, 6)
    for row, page in ((one, tmp_path / "one.html"), (many, tmp_path / "many.html")):
        assert row["bytes"] == page.stat().st_size
        assert row["build_s"] > 0
        assert row["command_s"] > 0
    rollouts = sorted((tmp_path / "one" / "latest" / "rollouts").iterdir())
    assert [path.name for path in rollouts] == ["step-000001.parquet", "step-000006.parquet"]
    assert len(read_rollouts(rollouts[1], sample_ids=[0, 127])) == 2
    rows = read_metrics(tmp_path / "many" / "cells" / "high0.58-seed4" / "metrics.jsonl")
    assert len(rows) == 6
    assert all(0 < (row["timing_s/update"] or 0) < (row["timing_s/step"] or 0) for row in rows)
    assert "high0.58" in (tmp_path / "many.html").read_text()


def test_what_cannot_be_made_is_said() -> None:
    done = subprocess.run([*COMMAND, "--runs", "7"], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2
    assert "expected --runs to be a multiple of 5, found 7" in done.stderr
