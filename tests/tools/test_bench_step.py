"""The benchmark of a step: what it reads out of runs, and its refusals. The runs themselves take minutes."""

import io
import json
from pathlib import Path

import bench_step
import pytest
from bench_step import PHASES, main, medians, parse_arguments, print_table, read_layout, read_step, read_steps
from rich.console import Console

STEP = {
    "timing_s/generate": 4.0,
    "timing_s/reward": 0.5,
    "timing_s/old_logp": 2.0,
    "timing_s/update": 5.0,
    "timing_s/publish": 1.0,
    "timing_s/step": 13.0,
    "response_length/mean": 40.0,
}


def make_run(path: Path, steps: list[dict[str, float]]) -> Path:
    path.mkdir()
    (path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (path / "config.toml").write_text("[parallel]\ntensor = 1\npipeline = 2\nworld_size = 2\n")
    return path


def make_checkpoint(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    return path


def test_a_step_is_split_into_its_phases() -> None:
    step = read_step(STEP)
    assert step == {
        "seconds": 13.0,
        **dict(zip(PHASES, (4.0, 0.5, 2.0, 5.0, 1.0), strict=True)),
        "rest": 0.5,
        "response_tokens": 40.0,
    }
    without_pass = {name: value for name, value in STEP.items() if name != "timing_s/old_logp"}
    assert (read_step(without_pass)["old_logp"], read_step(without_pass)["rest"]) == (0.0, 2.5)


def test_the_first_step_of_a_run_does_not_count(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [STEP | {"timing_s/step": 99.0}, STEP, STEP | {"timing_s/step": 15.0}])
    assert [step["seconds"] for step in read_steps(run)] == [13.0, 15.0]
    assert medians(read_steps(run))["seconds"] == 14.0
    assert read_layout(run) == "world_size 2, tensor 1, pipeline 2"


def test_systems_are_measured_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    model, before = make_checkpoint(tmp_path / "model"), tmp_path / "before"
    (before / "configs").mkdir(parents=True)
    (before / "configs" / "smollm2-135m.toml").touch()
    called: list[str] = []

    def run_megarl(tree: Path, model: Path, directory: Path, *, dtype: str, steps: int, overrides=()) -> Path:
        called.append(tree.name)
        slow = 3.0 if tree == before else 1.0
        return make_run(directory / "run", [STEP] + [STEP | {"timing_s/step": 13.0 * slow}] * steps)

    def run_trl(options: object, model: Path, directory: Path) -> list[dict[str, float | None]]:
        called.append("trl")
        return [dict.fromkeys((*PHASES, "rest")) | {"seconds": 26.0, "response_tokens": 41.0}]

    monkeypatch.setattr(bench_step, "run_megarl", run_megarl)
    monkeypatch.setattr(bench_step, "run_trl", run_trl)
    options = ["--model", str(model), "--before", str(before), "--trl-python", "python3", "--steps", "2"]
    assert main([*options, "--json"]) == 0
    here = bench_step.ROOT.name
    assert called == ["before", here, "trl", "trl", here, "before"]
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["system"], row["steps"], row["seconds"]) for row in rows] == [
        ("before", 4, 39.0),
        ("after", 4, 13.0),
        ("trl", 2, 26.0),
    ]
    assert {row["model"] for row in rows} == {"model"}
    text = io.StringIO()
    print_table(Console(file=text, width=200), rows)
    assert "before takes 3.00 times as long" in text.getvalue()
    assert "trl takes 2.00 times as long" in text.getvalue()


def test_a_run_that_fails_is_told_with_the_end_of_what_it_said(tmp_path: Path, capsys) -> None:
    model = make_checkpoint(tmp_path / "model")
    assert main(["--model", str(model), "--steps", "1", "--turns", "1", "no.such=1"]) == 1
    assert "no.such" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "nowhere"], "python tools/smollm2.py nowhere"),
        (["--before", "nowhere"], "is no checkout of megarl: it has no configs/smollm2-135m.toml"),
        (["--trl-python", "nowhere"], "is not a program"),
        (["--steps", "0"], "must be at least 1"),
    ],
)
def test_refusals(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(arguments)
    assert told in capsys.readouterr().err
