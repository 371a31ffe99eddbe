"""The benchmark of saving, on a model of two layers."""

import io
import json

import pytest
from bench_checkpoint import main, parse_arguments, print_table, summarise
from rich.console import Console


@pytest.mark.slow
def test_a_save_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--saves", "1", "--layers", "2", "--layouts", "DP2, distributed optimizer"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["layout"], row["ranks"], row["saves"]) == ("DP2, distributed optimizer", 2, 1)
    # 576 x 49152 and two layers, 2 bytes of each weight and 12 of the optimizer.
    parameters = 576 * 49152 + 2 * (576 * (576 + 2 * 192 + 576) + 3 * 576 * 1536 + 2 * 576) + 576
    assert 14 * parameters < row["bytes"] < 14.2 * parameters
    assert row["staged_bytes_per_rank"] < row["bytes"]
    assert 0 < row["held_up_s"] < row["total_s"]
    assert 0 < row["writer_bytes_per_rank"] < 2e9
    assert row["share_of_disk"] > 0


def test_medians_leave_the_first_save_out() -> None:
    saves = [{"held_up_s": float(seconds), "bytes": 7} for seconds in (9, 1, 2, 3)]
    row = summarise("PP2", {"ranks": 2, "saves": saves})
    assert row == {
        "layout": "PP2",
        "ranks": 2,
        "saves": 3,
        "first_held_up_s": 9.0,
        "held_up_s": 2.0,
        "bytes": 7,
    }


def test_the_table_has_every_figure() -> None:
    names = ("held_up_s", "first_held_up_s", "slowed_s", "total_s", "share_of_disk")
    sizes = ("bytes", "staged_bytes_per_rank", "writer_bytes_per_rank")
    row = {"layout": "PP2"} | {name: 0.25 * number for number, name in enumerate(names, 1)}
    row |= {name: 1e9 * number for number, name in enumerate(sizes, 1)}
    text = io.StringIO()
    print_table(Console(file=text, width=200), [row])
    for figure in ("1.00", "0.25", "0.50", "0.75", "1.25", "2.00", "3.00"):
        assert figure in text.getvalue()


def test_no_saves_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--saves", "0"])
    assert "--saves and --layers must be at least 1" in capsys.readouterr().err
