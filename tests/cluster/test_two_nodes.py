"""Submitted runs on a real Slurm of two nodes: to the end, and through everything that ends an attempt.

Each goes on as if nothing had happened: its metrics are those of the run that was left alone.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megarl.ablation.directory import AblationDirectory
from megarl.cli.ablation_jobs import find_jobs
from megarl.config.loader import load_config
from megarl.slurm.queue import try_script
from megarl.slurm.script import render_script
from tests.cluster.submitted import ROOT, STEPS, TIMEOUT_S, TINY, Submitted, megarl, policy_networks
from tests.cluster.two_nodes import BRIDGE, TwoNodes, describe_missing, run
from tests.slurm.jobs import make_job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(describe_missing() is not None, reason=f"no Slurm here: {describe_missing()}"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three layers, for three pipeline stages."""
    from make_tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("model"), layers=3)


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    before = set(Path("/var/run/netns").iterdir()) if Path("/var/run/netns").exists() else set()
    with TwoNodes() as nodes:
        yield nodes
    assert not Path(f"/sys/class/net/{BRIDGE}").exists()
    assert not nodes.directory.exists()
    assert set(Path("/var/run/netns").iterdir()) == before
    assert "SLURM_CONF" not in os.environ


@pytest.fixture(scope="module")
def uninterrupted(cluster: TwoNodes, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    """The run that is left alone; of it the nodes of its ranks are looked up while it runs."""
    job = Submitted.submit(tmp_path_factory.mktemp("alone"), model, "--nodes", "2", "--time", "60")
    job.wait_for_step(cluster, 1)
    networks = policy_networks(job)
    job.wait_to_the_end(cluster)
    assert len(networks) == 2
    return job


def test_slurm_takes_the_script_or_says_why_not(cluster: TwoNodes, tmp_path: Path) -> None:
    facts: dict[str, Any] = {"directory": tmp_path, "working_directory": tmp_path, "partition": None, "account": None}
    taken, words = try_script(render_script(make_job(nodes=2, gpus_per_node=0, **facts)))
    assert taken, words
    assert "on nodes n[1-2] in partition test" in words
    taken, words = try_script(render_script(make_job(nodes=64, gpus_per_node=8, **facts)))
    assert not taken
    assert "node" in words.lower() or "gres" in words.lower()
    taken, words = try_script(render_script(make_job(nodes=2, gpus_per_node=0, **(facts | {"partition": "gpu"}))))
    assert (taken, "partition" in words) == (False, True)


def test_the_quickstart_finishes_with_its_pipeline_across_both_nodes(
    uninterrupted: Submitted, cluster: TwoNodes
) -> None:
    job = uninterrupted
    (attempt,) = job.attempts
    assert (attempt.ending, attempt.step, attempt.nodes) == ("finished", STEPS, "n[1-2]")
    logs = job.place.logs(0)
    assert {path.name for path in logs.glob("*.log")} == {"batch.log", "n1.log", "n2.log"}
    assert all("this node is fit" in (logs / f"{node}.log").read_text() for node in ("n1", "n2"))
    told = megarl(job.directory.parents[2], "status", str(job.directory)).splitlines()
    assert told[0].startswith(f"job        {job.number} COMPLETED ")
    assert told[1].startswith("attempt    0 on n[1-2], begun ")
    assert f"step       {STEPS} of {STEPS}, finished" in told
    cluster.wait_for(cluster.all_idle, 60, "both nodes are idle again")


def test_the_time_limit_saves_requeues_and_goes_on(
    uninterrupted: Submitted, cluster: TwoNodes, model: Path, tmp_path: Path
) -> None:
    job = Submitted.submit(tmp_path, model, "--nodes", "2", "--time", "60", "checkpoint.every_steps=1000")
    job.wait_for_step(cluster, 2)
    # By the new limit Slurm's own signal is due at once; it looks every half minute.
    run("scontrol", "update", f"JobId={job.number}", f"TimeLimit={_minutes(job) + 2}")
    job.wait(cluster, lambda: bool(job.attempts[0].ending), "the first attempt has ended")
    run("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    first = job.attempts[0]
    assert first.ending == "time limit"
    assert f"stopped after step {first.step}, saved in" in first.text
    assert first.step < STEPS, "it was too fast for this test: more steps"
    job.wait_to_the_end(cluster)
    assert [(each.ending, each.from_step) for each in job.attempts] == [("time limit", 0), ("finished", first.step)]
    assert job.metrics() == uninterrupted.metrics()


def test_a_requeue_by_others_goes_on_from_the_last_checkpoint(
    uninterrupted: Submitted, cluster: TwoNodes, model: Path, tmp_path: Path
) -> None:
    job = Submitted.submit(tmp_path, model, "--nodes", "2", "--time", "60")
    job.wait_for_checkpoint(cluster, 4)
    run("scontrol", "requeue", job.number)
    job.start_soon(cluster)
    job.wait_to_the_end(cluster)
    first, second = job.attempts
    assert (first.ending, second.ending) == (None, "finished")
    assert second.from_step >= 4
    assert job.metrics() == uninterrupted.metrics()
    assert "           0: lost, it went on after step 0" in megarl(tmp_path, "status", str(job.directory))


def test_a_node_that_dies_is_waited_for(
    uninterrupted: Submitted, cluster: TwoNodes, model: Path, tmp_path: Path
) -> None:
    job = Submitted.submit(tmp_path, model, "--nodes", "2", "--time", "60")
    job.wait_for_checkpoint(cluster, 4)
    cluster.kill_node("n2")
    job.wait(cluster, lambda: job.state() == "PENDING", "Slurm puts the job back")
    # The lost attempt's srun gives up after 12 s. On a node that is back before, Slurm 22.05 finds no place for a step:
    # after five minutes that attempt is given up, too (srun's --immediate), and the one after it goes on.
    job.wait(cluster, lambda: cluster.node_states() == {"n1": "idle", "n2": "down*"}, "Slurm is done with the nodes")
    time.sleep(20)
    cluster.start_node("n2")
    job.start_soon(cluster)
    job.wait_to_the_end(cluster)
    assert [each.ending for each in job.attempts][-1] == "finished"
    assert job.attempts[-1].from_step >= 4
    assert job.metrics() == uninterrupted.metrics()


def test_a_cell_that_crashes_is_tried_again_after_a_pause_and_the_other_left_alone(
    cluster: TwoNodes, model: Path, tmp_path: Path
) -> None:
    """No trainer and vLLM agree to 1e-12 nats: every attempt of the second cell crashes in its first step. As the last
    of the array it has the array's number, under which Slurm knows the first one too, which is in its steps then."""
    axes = ["--array", "rollout.max_logp_diff=[0.1, 1e-12]"]
    array = Submitted.submit(tmp_path, model, "--nodes", "1", "cluster.gpus_per_node=4", "--time", "60", *axes)
    sound, job = array.cell(0), array.cell(1)
    job.wait(cluster, lambda: job.number_of_ended() == 1 and job.state() == "PENDING", "it is back in the queue")
    assert sound.state() == "RUNNING"
    (first,) = job.attempts
    assert (first.ending, first.step) == ("crashed", 0)
    assert "rollout.max_logp_diff" in first.text
    assert first.verdict == "the next attempt begins in 60 s (crash 1 of at most 6)"
    # A moment after it is back in the queue, where Slurm's own pause is two minutes.
    ended_s = first.ended_s
    assert ended_s is not None
    job.wait(cluster, lambda: job.start_time() - ended_s < 90, "the pause is the attempt's")
    assert job.start_time() - ended_s > 40
    job.start_soon(cluster)
    job.wait(cluster, lambda: job.state() == "FAILED", "the job is given up")
    assert [each.ending for each in job.attempts] == ["crashed", "crashed"]
    assert job.attempts[1].verdict == "step 1 failed twice in the same way; another attempt would do the same"
    sound.wait_to_the_end(cluster)
    assert [each.ending for each in sound.attempts] == ["finished"]


def test_four_cells_two_at_a_time(cluster: TwoNodes, model: Path, tmp_path: Path) -> None:
    axes = ["--array", "train.seed=[0, 1]", "--array", "objective.clip.high=[0.2, inf]", "--at-once", "2"]
    arguments = ["--nodes", "1", "cluster.gpus_per_node=4", "train.steps=2", "--time", "60", *axes]
    job = Submitted.submit(tmp_path, model, *arguments)
    most = 0

    def all_over() -> bool:
        nonlocal most
        states = run("squeue", "--noheader", "--array", "--states=all", f"--job={job.number}", "--format=%T").split()
        most = max(most, states.count("RUNNING"))
        return states.count("COMPLETED") == 4

    job.wait(cluster, all_over, "all four are done", timeout_s=2 * TIMEOUT_S)
    assert most == 2
    runs = [job.cell(index).run for index in range(4)]
    assert [found.read_state().status for found in runs] == ["finished"] * 4
    assert [found.path.name[:12] for found in runs] == [f"quickstart-{index}" for index in range(4)]
    told = megarl(tmp_path, "status", str(job.directory))
    assert f"job        {job.number}_3 COMPLETED" in told
    assert "train.seed=1 objective.clip.high=inf" in told


ABLATION = """
name = "clip"
base = "{base}"
seeds = [0, 1]
control = "high0.2"
warm_start = true
[overrides]
parallel = {{ tensor = 1, pipeline = 1, world_size = 1 }}
cluster.gpus_per_node = 4
sft.steps = 4
sft.optimizer.warmup_updates = 1
train.steps = 2
[grid]
objective.clip.high = [0.2, inf]
"""


def test_an_ablation_is_an_array_after_its_warm_start(cluster: TwoNodes, model: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.toml").write_text(ABLATION.format(base=ROOT / "configs" / "quickstart.toml"))
    sizes = [text for text in TINY if not text.startswith(("parallel.", "cluster.", "train.steps"))]
    options = ["--slurm", "--gpus-per-node", "0", "--time", "60", "--at-once", "2"]
    said = megarl(tmp_path, "ablate", "clip.toml", f"model.path={model}", *sizes, *options)
    words = dict(line.split(maxsplit=1) for line in said.splitlines() if line.startswith(("submitted", "ablation")))
    directory = AblationDirectory.open(tmp_path / words["ablation"])
    jobs = find_jobs(directory)
    assert jobs is not None
    array, warm = jobs
    assert warm is not None
    cells = [Submitted(array.read()["job"], array.path, said).cell(index) for index in range(4)]
    first = Submitted(warm.read()["job"], warm.path, said)
    assert {cell.state() for cell in cells} == {"PENDING"}
    first.wait(cluster, lambda: first.place.run() is not None, "the warm start has begun")
    assert {cell.state() for cell in cells} == {"PENDING"}
    first.wait_to_the_end(cluster)
    for cell in cells:
        cell.wait_to_the_end(cluster)
    names = [cell.name for cell in directory.plan().cells]
    assert list(directory.standings()) == names
    assert {facts.status for facts in directory.standings().values()} == {"finished"}
    weights = str((directory.warm / "hf" / "step-000004").resolve())
    for cell, submitted in zip(directory.plan().cells, cells, strict=True):
        path = directory.run_of(cell)
        assert path == submitted.run.path
        config = load_config(submitted.run.config_path)
        assert (config.name, config.train.seed, config.model.path) == (cell.name, cell.seed, weights)
    told = megarl(tmp_path, "status", str(directory.path))
    assert f"job        {first.number} COMPLETED" in told
    assert f"job        {cells[3].number} COMPLETED" in told
    assert names[3] in told
    assert f"ablation  {directory.path.relative_to(tmp_path)}" in megarl(
        tmp_path, "ablate", "--resume", str(directory.path)
    )


def _minutes(job: Submitted) -> int:
    """Whole minutes that the attempt has run; it is none of hours."""
    return int(run("squeue", "--noheader", f"--job={job.number}", "--format=%M").strip().split(":")[-2])
