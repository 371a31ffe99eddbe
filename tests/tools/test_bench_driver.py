"""The benchmark of the driver's work drives the real loop to its end, and refuses sizes."""

import json

import pytest
from bench_driver import GROUP, RESPONSE_TOKENS, main


def test_it_measures_the_real_loop(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--sizes", str(2 * GROUP), str(4 * GROUP), "--mini-batch", str(GROUP)]) == 0
    rows = json.loads(capfd.readouterr().out)["rows"]
    assert [row["responses"] for row in rows] == [2 * GROUP, 4 * GROUP]
    assert [row["tokens"] for row in rows] == [2 * GROUP * RESPONSE_TOKENS, 4 * GROUP * RESPONSE_TOKENS]
    for row in rows:
        assert 0 < row["seconds"] < 60
        assert 0 < row["longest_stall_s"] < 60
        assert row["peak_rss_bytes"] > 2**20


def test_sizes_that_do_not_make_whole_groups_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--sizes", str(GROUP + 1)])
    assert f"not a multiple of the group {GROUP}" in capsys.readouterr().err
