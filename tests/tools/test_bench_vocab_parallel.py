"""The benchmark of the vocabulary-parallel cores: its JSON, and the memory and collectives it is there to show."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench_vocab_parallel import parse_arguments

TOOL = Path(__file__).parent.parent.parent / "tools" / "bench_vocab_parallel.py"
KEYS = {
    "implementation",
    "dtype",
    "tensor",
    "forward_ms",
    "backward_ms",
    "peak_extra_over_shard",
    "collectives_forward",
    "collectives_backward",
}


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], dict]:
    """TP2 at a shard large enough that scratch blocks are small beside it (240 MiB of float32 logits a rank)."""
    sizes = ["--tokens", "768", "--vocab", "163840", "--hidden", "32", "--tensor", "2"]
    command = [sys.executable, str(TOOL), "--json", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    (results,) = json.loads(done.stdout).values()
    assert all(set(row) == KEYS for row in results)
    return {(row["implementation"], row["dtype"]): row for row in results}


@pytest.mark.slow
def test_every_row_is_there(rows) -> None:
    names = {"core", "fused_linear", "megatron_plus_entropy", "floor"}
    assert set(rows) == {(name, dtype) for name in names for dtype in ("float32", "bfloat16")}
    assert all(row["tensor"] == 2 for row in rows.values())
    assert all(row["forward_ms"] > 0 and row["backward_ms"] > 0 for row in rows.values())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_and_collectives(rows, dtype: str) -> None:
    def numbers(name: str) -> tuple[float, int, int]:
        row = rows[name, dtype]
        return row["peak_extra_over_shard"], row["collectives_forward"], row["collectives_backward"]

    peak, *calls = numbers("core")
    assert peak < 0.05
    assert calls == [1, 0]
    peak, *calls = numbers("fused_linear")
    assert peak < 0.1
    assert calls == [1, 0]
    # Max, target's logit and sum of the cross-entropy; max, sum and dot of the entropy.
    peak, *calls = numbers("megatron_plus_entropy")
    assert peak > 2
    assert calls == [6, 0]
    assert numbers("floor")[1:] == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--repeats", "3"), "at least 5"),
        (("--tensor", "two"), "numbers such as 1,2"),
        (("--dtypes", "float64"), "float32, bfloat16"),
        (("--vocab", "101", "--tensor", "2"), "does not split"),
        (("--tokens", "0"), "at least 1"),
    ],
)
def test_arguments_that_cannot_work_are_refused(capsys, arguments, message) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(list(arguments))
    assert message in capsys.readouterr().err


def test_help_has_examples(capsys) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    assert "--tensor 2 --dtypes bfloat16" in capsys.readouterr().out
