"""An ablation of real runs, from its file to its tables: `configs/ablations/random-reward-small.toml`, cut short."""

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from megarl.ablation.directory import AblationDirectory
from megarl.ablation.finish import tabulate
from megarl.cli.ablation_costs import pace_of_run
from megarl.cli.ablation_tables import summary_lines
from tests.e2e.processes import Megarl

FILE = Path(__file__).parents[2] / "configs" / "ablations" / "random-reward-small.toml"
SETTINGS = ("none", "low0.2", "low0.2-coin")
"""No bounds; clip-low; its matched control, with which it is compared."""
SMALL = (
    *("seeds=[0, 1]", "train.steps=2", "train.prompts_per_step=4", "train.samples_per_prompt=4"),
    *("train.mini_batch_responses=8", "rollout.max_response_tokens=16", "sft.steps=2", "sft.batch_examples=8"),
    *("policy.optimizer.warmup_updates=0", "sft.optimizer.warmup_updates=0"),
    *("eval.every_steps=2", "eval.samples=2", "eval.benchmarks.held_out.data.size=6"),
)


def cut_file(directory: Path) -> Path:
    """The file with three of its settings, and evaluations, from another place."""
    head, *settings = FILE.read_text(encoding="utf-8").split("\n[[settings]]\n")
    kept = [text for text in settings if text.split('"')[1] in SETTINGS]
    assert len(kept) == len(SETTINGS)
    asked = head.replace("\nfragments = [", '\nfragments = ["../benchmarks/quickstart.toml", ')
    assert asked != head
    text = "\n[[settings]]\n".join([asked, *kept]).replace('"../', f'"{FILE.parents[1]}/')
    path = directory / "cut.toml"
    path.write_text(text)
    return path


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_from_the_file_to_the_tables(tmp_path: Path, tiny_model_dir: Path) -> None:
    file = cut_file(tmp_path)
    with Megarl("ablate", file, *SMALL, f"model.path={tiny_model_dir}", cwd=tmp_path) as command:
        code = command.wait(1400)
        assert code == 0, command.text
        assert command.leftovers() == []
    (path,) = (tmp_path / "runs").glob("random-reward-small-ablation-*")
    check_tables(AblationDirectory.open(path))


def check_tables(directory: AblationDirectory) -> None:
    """Of the ablation when all its runs have ended."""
    summary = tabulate(directory)
    table = pq.read_table(directory.table_path)
    names = [f"{setting}-seed{seed}" for seed in (0, 1) for setting in SETTINGS]
    assert sorted(pc.unique(table["cell"]).to_pylist()) == sorted(names)
    entropy = table.filter(pc.field("metric") == "actor/entropy_over_start")
    assert entropy["step"].to_pylist() == [1, 2] * 6
    assert entropy.filter(pc.field("step") == 1)["value"].to_pylist() == [1.0] * 6
    asked = table.filter(pc.field("metric") == "eval/held_out/mean@2")
    assert asked["step"].to_pylist() == [0, 2] * 6

    assert (summary.compared.is_final, summary.steps, summary.problems) == (True, [2], ())
    none, clip, coin = (next(one for one in summary.settings if one.name == name) for name in SETTINGS)
    assert [one.seeds for one in (none, clip, coin)] == [(0, 1)] * 3
    assert [one.control for one in (none, clip, coin)] == [None, "low0.2-coin", "none"]
    assert none.differences is None
    assert clip.differences is not None
    assert coin.differences is not None
    for measures in (none.measures, clip.measures, coin.measures, clip.differences, coin.differences):
        assert {"entropy_end", "reward_end", "clip_low_mean", "length_end", "eval/held_out/mean@2"} <= set(measures)
        assert all(one.seeds.n == 2 for one in measures.values())
        problems = measures["eval/held_out/pass@2"].problems
        assert problems is not None
        assert problems.problems == 6
    # Without bounds, or where a coin acts in their place, nothing is clipped; and runs of one seed begin with the same
    # answers to the same prompts.
    assert none.measures["clip_low_mean"].seeds.value == coin.measures["clip_low_mean"].seeds.value == 0
    assert {one.measures["clip_high_mean"].seeds.value for one in (none, clip, coin)} == {0}
    first = table.filter((pc.field("metric") == "reward/mean") & (pc.field("step") == 1))
    rewards = dict(zip(first["cell"].to_pylist(), first["value"].to_pylist(), strict=True))
    assert rewards["none-seed0"] == rewards["low0.2-seed0"] == rewards["low0.2-coin-seed0"]
    lines = summary_lines(summary)
    assert lines[0] == "random-reward-small: 6 runs of 3 settings; 6 finished, at step 2"
    assert {"difference to low0.2-coin, in pairs of one seed", "difference to none, in pairs of one seed"} <= {*lines}
    run = directory.run_of(directory.plan().cells[0])
    assert run is not None
    assert pace_of_run(run) is None  # two steps are too few for one
