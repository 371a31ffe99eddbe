"""What is kept of an ablation: enough for the documents, nothing of the machine."""

import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import store_results
from results.command import find_command
from results.storing import store_ablation
from safetensors.numpy import save_file

from megarl.ablation.directory import AblationDirectory, AblationPlan, Cell, Setting
from megarl.ablation.stored import read_stored, updates_path
from megarl.telemetry.run_directory import RunDirectory, RunState
from tests.ablation.runs_of_cells import add_run, make_ablation

SHIPPED = Path(__file__).parents[2] / "configs" / "ablations" / "random-reward-products-small.toml"
MODEL = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 8,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 32,
    "use_sliding_window": False,
}
CURVES = {"actor/entropy": (0.5, 0.25), "memory/policy_update_end_gib": (1.0, 2.0), "timing_s/step": (4.0, 5.0)}


def export(run: RunDirectory) -> None:
    folder = run.exports / "step-000002"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(MODEL))
    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)}, folder / "model.safetensors")


def add_updates(run: RunDirectory) -> None:
    rows = [
        {"step": step, "update": float(update), "actor/lr": 0.5, "entropy/budget": -math.pi, "actor/logp": -1.0}
        | ({"entropy/clip_low_difference": 0.1} if update else {})
        for step in (1, 2)
        for update in (0, 1)
    ]
    run.updates_path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def ablation(tmp_path: Path) -> AblationDirectory:
    """Two settings with two seeds, one run of them not finished."""
    made = make_ablation(tmp_path, ["none", "clip"], control="none")
    made.source_path.write_text('name = "clip"\nabout = "why"\n')
    for name in ("none-seed0", "clip-seed0", "none-seed1"):
        run = add_run(made, name, CURVES)
        export(run)
        add_updates(run)
        text = run.config_path.read_text()
        assert '"models/tiny"' in text
        run.config_path.write_text(text.replace('"models/tiny"', f'"{tmp_path}/secret/tiny"'))
    add_run(made, "clip-seed1", CURVES, status="failed", message="engine 0 died")
    return made


def test_a_table_has_what_the_documents_read(ablation: AblationDirectory) -> None:
    stored = store_ablation(ablation.path)
    assert stored.table.to_pylist()[:2] == [
        {"cell": "none-seed0", "setting": "none", "seed": 0, "step": step, "metric": "actor/entropy", "value": value}
        for step, value in ((1, 0.5), (2, 0.25))
    ]
    assert stored.table["metric"].unique().to_pylist() == ["actor/entropy", "timing_s/step"]
    assert list(stored.cells) == ["none-seed0", "none-seed1", "clip-seed0"]
    assert stored.updates is not None
    first, second = stored.updates.to_pylist()[:2]
    assert {key: first[key] for key in ("cell", "step", "update", "actor/lr")} == {
        "cell": "none-seed0",
        "step": 1,
        "update": 0,
        "actor/lr": 0.5,
    }
    assert first["entropy/budget"] == pytest.approx(-math.pi, rel=1.3e-4)
    assert first["entropy/clip_low_difference"] is None
    assert second["entropy/clip_low_difference"] == pytest.approx(0.1, rel=1.3e-4)
    assert "actor/logp" not in first


def test_the_facts_are_of_the_runs(ablation: AblationDirectory) -> None:
    facts = store_ablation(ablation.path).facts
    assert (facts.name, facts.about, facts.control, facts.steps) == ("clip", "why", "none", (2,))
    assert {one.name: (one.control, one.seeds, one.planned) for one in facts.settings} == {
        "none": (None, (0, 1), 2),
        "clip": ("none", (0,), 2),
    }
    assert facts.left_out == {"clip-seed1": "failed after step 2: engine 0 died"}
    assert facts.model == {
        "name": "tiny",
        "warm_steps": 0,
        "parameters": 17,
        "layers": 3,
        "hidden_size": 8,
        "vocab_size": 32,
    }
    assert facts.optimizer["schedule"] == "constant"
    assert facts.config["data.train.task"] == "chain_sum"
    assert "train.seed" not in facts.config
    assert 0 <= facts.run_seconds <= 3 * (facts.wall_seconds + 1)
    assert facts.command is None  # no file of configs/ablations is called so


def test_nothing_of_the_machine_gets_in(
    ablation: AblationDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    into = tmp_path / "tables"
    store_results.main([str(ablation.path), "--into", str(into)])
    path = into / "clip.parquet"
    assert read_stored(path).facts.name == "clip"
    for one in (path, updates_path(path)):
        assert str(tmp_path).encode() not in one.read_bytes()
        assert b"/home" not in one.read_bytes()
    shown = capsys.readouterr().out
    assert "3 runs of 2 steps\n" in shown
    assert "left out clip-seed1: failed after step 2: engine 0 died\n" in shown


def test_what_cannot_be_stored_is_said(ablation: AblationDirectory, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"absent is no ablation's directory"):
        store_results.main([str(tmp_path / "absent"), "--into", str(tmp_path)])
    run = ablation.run_of(ablation.plan().cells[0])
    assert run is not None
    with RunDirectory(run).metrics_path.open("a") as file:
        file.write("damaged\n{}\n")
    with pytest.raises(SystemExit, match=r"none-seed0: metrics\.jsonl, line 3: .*; expected rows that can be read"):
        store_results.main([str(ablation.path), "--into", str(tmp_path)])
    for cell in ablation.plan().cells:
        if (path := ablation.run_of(cell)) is not None:
            RunDirectory(path).write_state(RunState(status="failed", step=2))
    with pytest.raises(SystemExit, match=r"no run is finished; expected one at least \(megarl ablate --resume "):
        store_results.main([str(ablation.path), "--into", str(tmp_path)])
    assert not list(tmp_path.glob("*.parquet"))


def test_two_of_one_name_are_refused_before_either_is_stored(ablation: AblationDirectory, tmp_path: Path) -> None:
    into = tmp_path / "tables"
    with pytest.raises(SystemExit, match="are both of clip; expected one of each name"):
        store_results.main([str(ablation.path), str(ablation.path), "--into", str(into)])
    assert not into.exists()


def test_a_place_that_cannot_be_written_is_said(ablation: AblationDirectory, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit, match=r"store_results: .*file"):
        store_results.main([str(ablation.path), "--into", str(file)])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json\n", "updates.jsonl, line 1: expected a JSON object"),
        ('{"step": 1, "update": 0}\n{"st', "ends within a line"),
        ('{"step": 1}\n', "has a row without 'update'"),
    ],
)
def test_updates_that_cannot_be_read_are_refused(ablation: AblationDirectory, text: str, words: str) -> None:
    run = next((ablation.path / "cells" / "runs").glob("none-seed0*"))
    RunDirectory(run).updates_path.write_text(text)
    with pytest.raises(ValueError, match=words):
        store_ablation(ablation.path)


@pytest.mark.parametrize("text", ["{", "{}", '{"settings": [{}]}', "[]"])
def test_a_damaged_summary_is_refused(ablation: AblationDirectory, text: str) -> None:
    ablation.summary_path.write_text(text)
    with pytest.raises(ValueError, match=r"summary\.json is damaged .*--resume"):
        store_ablation(ablation.path)


def test_bootstrap_intervals_are_of_the_summary(ablation: AblationDirectory) -> None:
    interval = {"low": 0.1, "high": 0.2, "n": 96}
    measures = {f"eval/held/{name}": {"problems": interval} for name in ("mean@8", "pass@4", "pass@8")}
    settings = [
        {"name": "none", "measures": measures | {"entropy_end": {"problems": None}}, "differences": None},
        {"name": "clip", "measures": measures, "differences": {"eval/held/mean@8": {"problems": {"low": 0.0}}}},
    ]
    ablation.summary_path.write_text(json.dumps({"settings": settings}))
    found = store_ablation(ablation.path).facts.over_problems
    assert found["none"] == {
        "eval/held/mean@8": {"value": interval, "difference": None},
        "eval/held/pass@8": {"value": interval, "difference": None},
    }
    assert found["clip"]["eval/held/mean@8"]["difference"] == {"low": 0.0}


def command_of(
    tmp_path: Path, change: Mapping[str, Any], given: tuple[str, ...] = (), seeds: tuple[int, ...] | None = None
) -> str | None:
    """Of the shipped file with other fields, and what the command line has laid over. seeds: None, the file's."""
    source = tomllib.loads(SHIPPED.read_text()) | dict(change)
    seeds = tuple(source["seeds"]) if seeds is None else seeds
    steps = source["overrides"]["train"]["steps"]
    names = [one["name"] for one in source["settings"]]
    cells = [
        Cell(index=at, name=f"{name}-seed{seed}", setting=name, seed=seed, run=f"cells/{name}-seed{seed}")
        for at, (seed, name) in enumerate((seed, name) for seed in seeds for name in names)
    ]
    settings = tuple(Setting(name=name, values={"objective.clip.low": 1.0}) for name in names)
    plan = AblationPlan(name=source["name"], settings=settings, cells=tuple(cells), control="none")
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    directory = AblationDirectory.create(folder, plan, source="")
    shared = ("/x/1-random-reward-bernoulli.toml", 'data.train.task="products"', "objective.gate.dual=inf")
    own = ("objective.clip.low=1.0", "train.seed=0", 'name="x"', 'model.path="/x"', 'logging.directory="/x"')
    mode = ('objective.aggregation.mode="seq-mean-token-mean"', f"train.steps={steps}", "train.mini_batch_responses=48")
    arguments = ["train", "/x/0-quickstart.toml", *shared, *mode, *given, *own]
    directory.launch_path.write_text(json.dumps({"cells": {cells[0].name: {"arguments": arguments}}}))
    return find_command(directory, source)


def test_the_command_has_what_was_other_than_the_file(tmp_path: Path) -> None:
    file = "megarl ablate configs/ablations/random-reward-products-small.toml"
    assert command_of(tmp_path, {}) == file
    assert command_of(tmp_path, {"base": "/elsewhere/quickstart.toml", "at_once": 2, "about": "other words"}) == file
    assert command_of(tmp_path, {}, ("train.steps=8",)) == f"{file} train.steps=8"
    assert command_of(tmp_path, {}, seeds=(0, 1)) == f"{file} seeds=[0,1]"
    settings = tomllib.loads(SHIPPED.read_text())["settings"]
    assert command_of(tmp_path, {"settings": settings[:2]}) is None
    assert command_of(tmp_path, {"base": "other.toml"}) is None
    assert command_of(tmp_path, {}, ("/x/other.toml",)) is None
