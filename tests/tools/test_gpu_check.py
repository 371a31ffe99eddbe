"""The measuring of a GPU without one: how its parts are run, and each of them, small."""

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import gpu_check
import psutil
import pytest
from gpu_check import PARTS, Part, main, make_result, parse_arguments, run_parts, start_part, write_results
from gpu_parts import layouts, rl_run
from gpu_parts.check import Check, CheckSettings
from rich.console import Console

from megarl.config.loader import load_config

NAMES = ["rl_run", "kernels", "parity", "layouts", "publication", "train_step", "speed"]

FAKES = {
    "fine": "def run(check):\n    check.row(rate=3.0)\n    check.say('as fast as that')\n",
    "broken": "def run(check):\n    check.row(rate=1.0)\n    raise RuntimeError('the card is on fire')\n",
    "wrong": "def run(check):\n    check.judge('sum', {'error': (2.0, 1.0), 'other': (0.5, 1.0)}, size=4)\n",
    "nan": "def run(check):\n    check.judge('sum', {'error': (float('nan'), 1.0)})\n",
    "silent": "def run(check):\n    pass\n",
    "hanging": (
        "import subprocess, sys, time\n"
        "def run(check):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    check.row(pid=child.pid)\n"
        "    def wait_for_ever():\n"
        "        time.sleep(600)\n"
        "    wait_for_ever()\n"
    ),
    "stubborn": (
        "import signal, time\n"
        "def run(check):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    check.row(begun=True)\n"
        "    time.sleep(600)\n"
    ),
    "tolerant": (
        "def run(check):\n"
        "    check.attempt('first', lambda: 1 / 0)\n"
        "    check.attempt('second', lambda: check.row(second=2))\n"
        "    check.attempt('third', lambda: check.row(third=3), need_s=1e6)\n"
    ),
}


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Part]:
    for name, source in FAKES.items():
        (tmp_path / f"fake_{name}.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(gpu_check, "TERMINATION_S", 1.0)
    return {name: Part(name, 1.0, f"fake_{name}") for name in FAKES}


def start(part: Part, *, limit_s: float = 60.0) -> dict[str, Any]:
    return start_part(part, limit_s=limit_s, gpus=0, shape="quickstart")


def test_a_part_tells_what_it_measured(fakes: dict[str, Part]) -> None:
    result = start(fakes["fine"])
    assert {**result, "seconds": 0.0} == {
        "name": "fine",
        "ok": True,
        "seconds": 0.0,
        "limit_s": 60.0,
        "error": None,
        "wrong": [],
        "said": ["as fast as that"],
        "rows": [{"rate": 3.0}],
    }


def test_a_part_that_fails_keeps_what_it_had(fakes: dict[str, Part]) -> None:
    result = start(fakes["broken"])
    assert (result["ok"], result["rows"]) == (False, [{"rate": 1.0}])
    assert "exit code 1" in result["error"]
    assert "the card is on fire" in result["error"]


def test_what_is_beyond_its_limit_is_wrong(fakes: dict[str, Part]) -> None:
    result = start(fakes["wrong"])
    assert (result["ok"], result["error"]) == (False, None)
    assert result["wrong"] == ["sum: error 2 (at most 1)"]
    assert result["rows"] == [{"case": "sum", "size": 4, "error": 2.0, "other": 0.5, "ok": False}]
    not_a_number = start(fakes["nan"])
    assert (not_a_number["ok"], not_a_number["rows"]) == (False, [{"case": "sum", "error": "nan", "ok": False}])


def test_a_part_that_measures_nothing_is_not_ok(fakes: dict[str, Part]) -> None:
    result = start(fakes["silent"])
    assert (result["ok"], result["error"]) == (False, "it measured nothing")


def test_a_step_that_fails_leaves_the_others(fakes: dict[str, Part]) -> None:
    result = start(fakes["tolerant"])
    assert (result["ok"], result["error"], result["rows"]) == (False, None, [{"second": 2}])
    assert result["wrong"][0] == "first: ZeroDivisionError: division by zero"
    assert result["wrong"][1].startswith("third: not begun, ")


@pytest.mark.parametrize("name", ["hanging", "stubborn"])
def test_a_part_that_hangs_is_ended_with_all_its_processes(fakes: dict[str, Part], name: str) -> None:
    started = time.monotonic()
    result = start(fakes[name], limit_s=8.0)
    assert time.monotonic() - started < 25
    assert not result["ok"]
    assert result["error"].startswith("ended when its 8 s were over")
    assert len(result["rows"]) == 1
    if name == "hanging":
        assert "wait_for_ever" in result["error"]  # where it hung
        assert has_ended(result["rows"][0]["pid"])


def has_ended(pid: int, *, within_s: float = 20.0) -> bool:
    """A killed process takes a moment on a loaded machine; where nobody asks how an orphan ended it stays a zombie."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.2)
    return False


def test_results_are_there_after_every_part(fakes: dict[str, Part], tmp_path: Path) -> None:
    file, seen = tmp_path / "found.json", []
    results: list[dict[str, Any]] = []

    def write() -> None:
        write_results(file, {"device": "a card"}, results)
        seen.append(json.loads(file.read_text()))

    parts = [fakes["broken"], fakes["fine"]]
    run_parts(
        parts, minutes=1, gpus=0, shape="quickstart", results=results, write=write, console=Console(file=io.StringIO())
    )
    assert [[part["name"] for part in found["parts"]] for found in seen] == [["broken"], ["broken", "fine"]]
    assert [part["ok"] for part in seen[-1]["parts"]] == [False, True]
    assert seen[-1]["device"] == "a card"
    # The first has half of a minute, the second all that the first left.
    limits = [part["limit_s"] for part in seen[-1]["parts"]]
    assert limits[0] == pytest.approx(30, abs=0.5)
    assert limits[1] == pytest.approx(60 - seen[-1]["parts"][0]["seconds"], abs=1.0)
    assert not list(tmp_path.glob(".*partial"))


def test_a_part_without_time_is_not_begun(fakes: dict[str, Part]) -> None:
    results: list[dict[str, Any]] = []
    run_parts(
        [fakes["fine"]], minutes=0.05, gpus=0, shape="quickstart", results=results, write=lambda: None,
        console=Console(file=io.StringIO()),
    )  # fmt: skip
    assert [(result["ok"], result["error"]) for result in results] == [(False, "no time was left for it")]


def test_the_parts_and_their_order() -> None:
    assert [part.name for part in PARTS] == NAMES
    assert make_result("speed", seconds=1.0, limit_s=2.0, error=None, lines=[{"row": {"a": 1}}])["ok"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--parts", "kernels,spede"], "no part spede; there are rl_run, kernels"),
        (["--minutes", "0"], "--minutes is 0; it must be above 0"),
        (["--shape", "gpt-5"], "no shape gpt-5; there are llama-3-70b"),
        (["--json", "/nowhere/x.json"], "there is no directory /nowhere"),
    ],
)
def test_bad_arguments(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(arguments)
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("gpus", [0, 1, 2, 3, 8])
def test_runs_are_placed_on_the_gpus_that_there_are(gpus: int) -> None:
    for tensor in (1, 2):
        overrides = rl_run.placement(gpus, tensor=tensor)
        config = load_config(rl_run.CONFIG, overrides)
        if gpus:
            assert config.gpus_needed <= gpus
            assert config.cluster.colocate == (gpus == 1)
            assert config.parallel.tensor == (tensor if gpus > tensor else 1)


def test_layouts_share_processes_by_their_world_size() -> None:
    groups = layouts.grouped((*layouts.ONE, *layouts.TWO))
    assert [len({layouts.world_size(name) for name in group}) for group in groups] == [1] * len(groups)
    assert [name for group in groups for name in group] == [*layouts.ONE, *layouts.TWO]
    assert max(map(len, groups)) == layouts.AT_A_TIME


def test_the_time_that_is_left(tmp_path: Path) -> None:
    settings = CheckSettings(module="", scratch=str(tmp_path), deadline=time.time() + 20, gpus=0, shape="")
    assert CheckSettings(**json.loads(settings.as_json())) == settings
    check = Check(settings)
    assert (check.small, check.device) == (True, "cpu")
    assert 0 < check.left_s <= 20


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_part_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    file = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    code = main(["--minutes", "14", "--json", str(file)])
    found = json.loads(file.read_text())
    assert [part["name"] for part in found["parts"]] == NAMES
    assert {part["name"]: part["wrong"] or part["error"] for part in found["parts"] if not part["ok"]} == {}
    assert code == 0
    assert found["gpus"] == []
    assert found["device"].startswith("no GPU")
    assert found["versions"]["torch"]
    shown = capsys.readouterr().out
    assert "these figures say nothing about a GPU" in " ".join(shown.split())
    (quickstart,) = found["parts"][0]["rows"]
    assert len(quickstart["rewards"]) == 3
    assert quickstart["logp_diff_mean"] < 1e-4
    assert all(row["ok"] for part in found["parts"] for row in part["rows"] if "ok" in row)


def run_of(folder: Path, verb: str, rewards: list[float]) -> None:
    """What a run of megarl leaves, of which rl_run reads something."""
    run = folder / "runs" / verb
    (run / "hf" / "step-000080").mkdir(parents=True)
    rows = [
        {
            "step": step,
            "reward/mean": reward,
            "rollout/logp_diff_mean": 1e-3,
            "rollout/logp_diff_max": 0.1,
            "timing_s/step": 2.0 / step,
        }
        for step, reward in enumerate(rewards, start=1)
    ]
    (run / "state.json").write_text("{}")
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    latest = folder / "runs" / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(verb)


@pytest.mark.parametrize("gain", [0.3, 0.1])
def test_a_whole_run_is_judged_by_its_rewards_and_log_probs(
    gain: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def leave_a_run(check: Check, verb: str, *overrides: str) -> None:
        commands.append([verb, *overrides])
        run_of(tmp_path, verb, [0.5] * 5 + [0.5 + gain] * 5)

    monkeypatch.setattr(rl_run, "megarl", leave_a_run)
    settings = CheckSettings(module="", scratch=str(tmp_path), deadline=time.time() + 99, gpus=3, shape="")
    rl_run.run_quickstart(Check(settings), tmp_path / "model")
    assert [command[0] for command in commands] == ["sft", "train"]
    assert commands[1][1].endswith("sft/hf/step-000080")
    assert {"parallel.tensor=2", "cluster.gpus_per_node=3"} <= set(commands[1])
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    (row,) = [line["row"] for line in lines if "row" in line]
    assert (row["steps"], row["rewards"][-1], row["logp_diff_mean"]) == (10, 0.5 + gain, 1e-3)
    assert row["ok"] == (gain > rl_run.REQUIRED_GAIN)
    wrong = [line["wrong"] for line in lines if "wrong" in line]
    assert wrong == ([] if row["ok"] else ["quickstart: missing gain 0.05 (at most 0)"])
    assert any("a step 0.20 s at best, log-probs 1.0e-03 from vLLM's" in line.get("said", "") for line in lines)


def test_on_one_gpu_a_run_publishes_without_staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def leave_a_run(check: Check, verb: str, *overrides: str) -> None:
        commands.append([verb, *overrides])
        run_of(tmp_path, verb, [0.5] * 3)

    monkeypatch.setattr(rl_run, "megarl", leave_a_run)
    settings = CheckSettings(module="", scratch=str(tmp_path), deadline=time.time() + 99, gpus=1, shape="")
    rl_run.run_mapped(Check(settings), tmp_path / "model")
    ((verb, *overrides),) = commands
    assert verb == "train"
    assert {"cluster.colocate=true", "rollout.publish.staging=none", "train.steps=3"} <= set(overrides)
    assert load_config(rl_run.CONFIG, overrides).rollout.publish.staging == "none"


def test_a_command_that_fails_or_takes_too_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = CheckSettings(module="", scratch=str(tmp_path), deadline=time.time() + 9, gpus=0, shape="")
    check = Check(settings)
    with pytest.raises(RuntimeError, match=r"(?s)-c .*: 3\nno such card"):
        rl_run.start(check, "-c", "import sys; print('no such card'); sys.exit(3)")
    monkeypatch.setattr(rl_run, "TERMINATION_S", 15.0)
    slow = (
        "import time\nprint('begun', flush=True)\n"
        "try:\n    time.sleep(99)\nexcept KeyboardInterrupt:\n    print('put away')"
    )
    with pytest.raises(RuntimeError, match=r"(?s)not done in time\nbegun\nput away"):
        rl_run.start(check, "-c", slow)
    assert check.left_s > 0
