"""Runs that are submitted to the two nodes as a person does it, and watched until they end."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from megarl.checkpoint.run_checkpoint import list_checkpoints
from megarl.slurm.attempts import Attempt
from megarl.slurm.job_directory import JobDirectory, RunOfJob
from megarl.slurm.queue import find_queued
from megarl.telemetry.run_directory import RunDirectory
from tests.cluster.two_nodes import TwoNodes, run
from tests.e2e.resumed_runs import metrics_of

ROOT = Path(__file__).parents[2]
STEPS = 24
TIMEOUT_S = 600.0
# Three stages in a node of two workers: the pipeline lies on both nodes, and the engine on the second.
TINY = (
    "parallel.tensor=1", "parallel.pipeline=3", "parallel.world_size=3", "rollout.publish.transport=network",
    "cluster.gpus_per_node=2", "rollout.cpu_kv_cache_gib=0.25", f"train.steps={STEPS}", "train.prompts_per_step=4",
    "train.samples_per_prompt=4", "train.mini_batch_responses=8", "checkpoint.every_steps=4",
    'reward.verifier={kind = "random"}', "policy.optimizer.warmup_updates=2", "checkpoint.stop_within_s=60",
    "checkpoint.end_margin_s=30",
)  # fmt: skip


@dataclass(frozen=True)
class Submitted:
    """A job, from `megarl submit` on."""

    number: str
    """As Slurm has it; of a cell "17_2"."""
    directory: Path
    said: str
    index: int = 0
    """Of the cell."""

    @classmethod
    def submit(cls, cwd: Path, model: Path, *arguments: str) -> "Submitted":
        """The quickstart, small, with one's own arguments after that."""
        typed = ["submit", str(ROOT / "configs" / "quickstart.toml"), f"model.path={model}", *TINY]
        said = megarl(cwd, *typed, "--gpus-per-node", "0", *arguments)
        words = dict(line.split(maxsplit=1) for line in said.splitlines())
        return cls(words["submitted"].split()[1].rstrip(":"), cwd / words["directory"], said)

    def cell(self, index: int) -> "Submitted":
        """Of an array."""
        return replace(self, number=f"{self.number}_{index}", index=index)

    @property
    def place(self) -> RunOfJob:
        return JobDirectory(self.directory).runs()[self.index]

    @property
    def run(self) -> RunDirectory:
        found = self.place.run()
        assert found is not None
        return found

    @property
    def attempts(self) -> list[Attempt]:
        return self.place.read_attempts()

    def state(self) -> str:
        """In the queue."""
        return find_queued(self.number)[self.number].state

    def number_of_ended(self) -> int:
        return sum(attempt.ending is not None for attempt in self.attempts)

    def start_time(self) -> float:
        """When Slurm may start it next, in seconds since 1970."""
        facts = dict(word.partition("=")[::2] for word in run("scontrol", "show", "job", self.number).split())
        return datetime.fromisoformat(facts["EligibleTime"]).timestamp()

    def step(self) -> int:
        """Finished steps of its run; -1 before there is one."""
        found = self.place.run()
        return found.read_state().step if found is not None else -1

    def wait_for_step(self, cluster: TwoNodes, step: int) -> None:
        cluster.wait_for(lambda: self.step() >= step or self._is_over(), TIMEOUT_S, f"step {step}")
        assert self.step() >= step, self.logs()

    def wait_for_checkpoint(self, cluster: TwoNodes, step: int) -> None:
        """A complete one, of this step or a later one: it is written beside the steps after it."""

        def complete() -> bool:
            found = self.place.run()
            return found is not None and any(each.step >= step for each in list_checkpoints(found.checkpoints))

        self.wait(cluster, lambda: complete() or self._is_over(), f"a checkpoint of step {step}")
        assert complete(), self.logs()

    def wait_to_the_end(self, cluster: TwoNodes) -> None:
        """Until the run is finished; at once with its logs where the job ends before."""
        self.wait(cluster, self._is_over, "the job is over")
        assert self.state() == "COMPLETED", self.logs()
        assert self.run.read_state().status == "finished"

    def wait(self, cluster: TwoNodes, happened: Callable[[], bool], what: str, *, timeout_s: float = TIMEOUT_S) -> None:
        try:
            cluster.wait_for(happened, timeout_s, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def start_soon(self, cluster: TwoNodes) -> None:
        """When the job is back in the queue: Slurm's own pause is two minutes. The attempt before has left its nodes
        then: Slurm would take its end for the new one's."""
        nodes = run("scontrol", "show", "hostnames", self.attempts[-1].nodes).split()

        def is_out() -> bool:
            states = cluster.node_states()
            return self.state() == "PENDING" and all(states[node] == "idle" for node in nodes)

        self.wait(cluster, is_out, "it is back in the queue")
        run("scontrol", "update", f"JobId={self.number}", "StartTime=now")

    def metrics(self) -> list[dict[str, Any]]:
        """Without the clock."""
        return metrics_of(self.run)

    def logs(self) -> str:
        """The end of every log, for a failed test."""
        files = [*self.directory.rglob("*.log"), *self.directory.rglob("attempts.json")]
        text = "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-2500:]}" for path in sorted(files))
        found = self.place.run()
        return text + (f"\n--- state\n{found.state_path.read_text()}" if found else "")

    def _is_over(self) -> bool:
        return self.state() not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING")


def megarl(cwd: Path, *arguments: str) -> str:
    """What the command prints. AssertionError where it fails."""
    command = [str(Path(sys.executable).with_name("megarl")), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def policy_networks(job: Submitted) -> set[str]:
    """Network namespaces in which policy ranks of this run live: one for each node."""
    found = set()
    for process in psutil.process_iter():
        try:
            if "PolicyActor" in process.name() or "PolicyActor" in " ".join(process.cmdline()):
                found.add(str(Path(f"/proc/{process.pid}/ns/net").readlink()))
        except (psutil.Error, OSError):
            continue
    return found
