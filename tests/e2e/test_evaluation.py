"""The same weights inside a run, as its export and as its checkpoint: the same answers, the same numbers."""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from megarl.checkpoint.convert import convert
from megarl.evaluation.answers import read_answers, read_settings
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import read_metrics
from tests.e2e.configuration import write_tiny_config
from tests.e2e.processes import MEGARL, Megarl
from tests.e2e.resumed_runs import ROOT

TIMEOUT_S = 400
BENCHMARKS = """
[eval]
every_steps = 2
samples = 4
[eval.benchmarks.sums]
data = { source = "reasoning_gym", task = "chain_sum", size = 6, seed = 1000, options = OPTIONS }
[eval.benchmarks.words]
samples = 2
data = { source = "file", path = "PATH", layout = "prompt_answer" }
"""


def run_to_end(cwd: Path, *arguments: str | Path, program: Sequence[str | Path] = (MEGARL,)) -> str:
    """What `megarl ...` has printed; it leaves nothing behind."""
    with Megarl(*arguments, cwd=cwd, program=program) as command:
        code = command.wait(TIMEOUT_S)
        assert code == 0, command.text
        assert command.leftovers() == []
        return command.text


def answers(directory: Path, name: str) -> list[dict[str, Any]]:
    return read_answers(directory / f"{name}.parquet").to_pylist()


@contextmanager
def watching(directory: Path) -> Iterator[dict[str, int]]:
    """The most bytes that a file in the directory has had while the block ran, by name, as far as looks tell."""
    largest: dict[str, int] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            for folder, _, names in os.walk(directory):  # a folder that vanishes is no error there
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        largest[name] = max(largest.get(name, 0), Path(folder, name).stat().st_size)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield largest
    finally:
        over.set()
        watcher.join()


def trained(row: dict[str, float | None]) -> dict[str, float | None]:
    """What a row says of training: not when, how long, or of benchmarks."""
    others = ("timestamp", "timing_s/", "perf/", "memory/", "eval/")
    return {name: value for name, value in row.items() if not name.startswith(others)}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_one_model_answers_alike_wherever_its_weights_are(tmp_path: Path, tiny_model_dir: Path) -> None:
    problems = tmp_path / "words.jsonl"
    problems.write_text(
        "".join(json.dumps({"prompt": f"What is {n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(5))
    )
    fragment = tmp_path / "benchmarks.toml"
    options = "{ max_terms = 2, max_digits = 1 }"
    fragment.write_text(BENCHMARKS.replace("PATH", str(problems)).replace("OPTIONS", options))
    config = write_tiny_config(tmp_path, tiny_model_dir)
    text = run_to_end(tmp_path, "train", config, fragment, "checkpoint.every_steps=3")
    run = RunDirectory.open(tmp_path / "runs" / "latest")
    assert "eval   step 3: sums: mean@4" in text

    # Before the first step, after every second one and after the last; in the rows of those steps.
    assert sorted(path.name for path in run.evaluations.iterdir()) == ["step-000000", "step-000002", "step-000003"]
    rows = read_metrics(run.metrics_path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["step"] for row in rows if "eval/sums/mean@4" in row] == [0, 2, 3]
    assert [row["step"] for row in rows if "timing_s/eval" in row] == [0, 2, 3]
    assert "<html" in run.report_path.read_text()
    # Training is what it is without, to the last bit.
    (tmp_path / "plain").mkdir()
    run_to_end(tmp_path / "plain", "train", config)
    plain = read_metrics(RunDirectory.open(tmp_path / "plain" / "runs" / "latest").metrics_path)
    assert [trained(row) for row in rows[1:]] == [trained(row) for row in plain]

    own = run.evaluations / "step-000003"
    assert answers(own, "sums") != answers(run.evaluations / "step-000000", "sums")
    assert read_settings(own / "sums.parquet")["top_p"] == 0.95

    base = run.evaluations / "step-000000"
    told = run_to_end(tmp_path, "eval", run.path, "--base", base, "--run", tmp_path / "export")
    run_to_end(tmp_path, "eval", run.checkpoints / "step-000003", "--run", tmp_path / "checkpoint")
    for link in ("export", "checkpoint"):
        directory = tmp_path / link / "eval"
        for name in ("sums", "words"):
            assert answers(directory, name) == answers(own, name), (link, name)
        numbers = json.loads((directory / "results.json").read_text())["benchmarks"]
        assert numbers == json.loads((own / "results.json").read_text())["benchmarks"]
    assert RunDirectory.open(tmp_path / "runs" / "latest").path == run.path
    assert "against base" in told
    compared = json.loads((tmp_path / "export" / "eval" / "results.json").read_text())["against_base"]
    assert set(compared) == {"sums", "words"}

    # All is there: no engine starts.
    again = run_to_end(tmp_path, "eval", run.path, "--run", tmp_path / "export")
    assert "nothing is sampled" in again
    assert "vLLM engines" not in again


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("dtype", "engines", "loss"),
    [
        pytest.param("bfloat16", 2, "", id="rounded from float32 as vLLM's own loader rounds"),
        pytest.param("float32", 1, "0 generate core-0 SIGKILL", id="an engine is lost"),
    ],
)
def test_a_checkpoint_is_sent_to_engines_and_written_nowhere(
    dtype: str, engines: int, loss: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    convert(tiny_model_dir, tmp_path / "hf", to="hf", dtype=torch.float32)
    convert(tmp_path / "hf", tmp_path / "dist", tensor=2, pipeline=2)
    weights = sum(path.stat().st_size for path in (tmp_path / "dist").glob("*.distcp"))
    config = write_tiny_config(tmp_path, tiny_model_dir)
    fragment = tmp_path / "benchmarks.toml"
    options = "{ max_terms = 2, max_digits = 1 }"
    fragment.write_text(BENCHMARKS.partition("[eval.benchmarks.words]")[0].replace("OPTIONS", options))
    # One response after the other, so that an engine owes some when it has answered others.
    overrides = [f"rollout.engines={engines}", "rollout.vllm_overrides={max_num_seqs=1}"]
    overrides += ["rollout.max_response_tokens=32", f"model.dtype={dtype}", "rollout.publish.bucket_mib=1"]
    losing = (sys.executable, ROOT / "tests" / "e2e" / "losing_engines.py", loss)
    found = {}
    for name, program in (("hf", (MEGARL,)), ("dist", losing if loss else (MEGARL,))):
        link = tmp_path / f"at-{name}"
        with watching(tmp_path / "runs") as largest:
            arguments = (tmp_path / name, config, fragment, *overrides, "--run", link)
            told = run_to_end(tmp_path, "eval", *arguments, program=program)
        found[name] = answers(link / "eval", "sums")
        assert {"results.json", f"rollout-{engines - 1}.log"} <= largest.keys()
        assert max(largest.values()) < weights / 10, largest
        assert told.count("weight transfer") == (name == "dist")
        assert ("rollout rank 0 is started again (1 of 3" in told) == (program == losing)
        assert ("of 24 responses are sampled again: rollout rank 0" in told) == (program == losing)
    assert found["hf"] == found["dist"]
