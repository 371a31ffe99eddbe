"""A real Slurm of two nodes on this machine, for the time of a `with` block; nothing of it stays behind.

    bridge 10.77.0.1        munged, slurmctld, sbatch
    n1 10.77.0.11           slurmd in a network namespace, a PID namespace and a mount namespace: Ray sees two
    n2 10.77.0.12           machines, each with its processes, its /dev/shm and its /tmp/ray

Needs root and the packages that `describe_missing` names. A node's slurmd is the first process of its PID namespace, so
that killing it kills the node, as a power failure does.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.cluster import controller
from tests.cluster.controller import Controller, run

PROGRAMS = ("slurmd", "ip", "nsenter", "unshare")
BRIDGE, PREFIX = "mrlbr0", "10.77.0"
NODES = ("n1", "n2")
_UP_TIMEOUT_S = 60.0


def describe_missing() -> str | None:
    """Why there can be no such Slurm here; None: there can."""
    return controller.describe_missing(*PROGRAMS)


class TwoNodes(Controller):
    """The cluster."""

    address = f"{PREFIX}.1"
    conf = f"""
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=10
MinJobAge=3600
JobRequeue=1
SchedulerParameters=batch_sched_delay=1,sched_interval=5
SlurmdSpoolDir={{directory}}/spool-%n
SlurmdPidFile={{directory}}/slurmd-%n.pid
SlurmdLogFile={{directory}}/slurmd-%n.log
NodeName=n1 NodeAddr={PREFIX}.11 CPUs=4 RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeAddr={PREFIX}.12 CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=test Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""

    def start(self) -> None:
        self._make_network()
        super().start()
        for node in NODES:
            self.start_node(node)
        self.wait_for(self.all_idle, _UP_TIMEOUT_S, "both nodes are idle")

    def close(self) -> None:
        """End every process, node by node, then the network and the files."""
        for node in NODES:
            self.kill_node(node)
        super().close()
        self._remove_network()

    def start_node(self, node: str) -> None:
        """Power it on."""
        ray = self.directory / f"ray-{node}"
        ray.mkdir(exist_ok=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        inside = f"mount -t tmpfs tmpfs /dev/shm && mount --bind {ray} /tmp/ray && exec slurmd -D -N {node}"
        command = ["nsenter", f"--net=/var/run/netns/mrl-{node}", "unshare", "--pid", "--fork", "--kill-child"]
        self._start(f"slurmd-{node}", [*command, "--mount-proc", "--mount", "sh", "-c", inside])

    def kill_node(self, node: str) -> None:
        """As when the power fails: nothing on it lives on, nor says a word."""
        daemon = self._daemons.pop(f"slurmd-{node}", None)
        if daemon is None:
            return
        for slurmd in psutil.Process(daemon.pid).children() if daemon.poll() is None else []:
            slurmd.send_signal(signal.SIGKILL)
        daemon.wait(timeout=30)

    def node_states(self) -> dict[str, str]:
        """By node; a star is for one that does not answer."""
        lines = run("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
        return dict(line.split() for line in lines)

    def all_idle(self) -> bool:
        return set(self.node_states().values()) == {"idle"}

    def _make_network(self) -> None:
        self._remove_network()
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{PREFIX}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for number, node in enumerate(NODES, start=11):
            space, here, there = f"mrl-{node}", f"mrl-{node}", "eth0"
            run("ip", "netns", "add", space)
            run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", space)
            run("ip", "link", "set", here, "master", BRIDGE, "up")
            run("ip", "-n", space, "address", "add", f"{PREFIX}.{number}/24", "dev", there)
            run("ip", "-n", space, "link", "set", there, "up")
            run("ip", "-n", space, "link", "set", "lo", "up")

    def _remove_network(self) -> None:
        for node in NODES:
            if Path(f"/var/run/netns/mrl-{node}").exists():
                run("ip", "netns", "delete", f"mrl-{node}")  # and its end of the cable
        if Path(f"/sys/class/net/{BRIDGE}").exists():
            run("ip", "link", "delete", BRIDGE)


def main() -> int:
    """`python -m tests.cluster.two_nodes [COMMAND ...]`: a command, or a shell, with the cluster up; its exit code."""
    if (missing := describe_missing()) is not None:
        print(f"no Slurm of two nodes: {missing}", file=sys.stderr)
        return 2
    with TwoNodes():
        return subprocess.run(sys.argv[1:] or [os.environ.get("SHELL", "bash")], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
