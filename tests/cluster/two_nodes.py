"""A real Slurm of two nodes on this machine, for the time of a `with` block; nothing of it stays behind.

    bridge 10.77.0.1        munged, slurmctld, sbatch
    n1 10.77.0.11           slurmd in a network namespace, a PID namespace and a mount namespace: Ray sees two
    n2 10.77.0.12           machines, each with its processes, its /dev/shm and its /tmp/ray

Needs root and the packages that `describe_missing` names. A node's slurmd is the first process of its PID namespace, so
that killing it kills the node, as a power failure does.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "ip", "nsenter", "unshare")
BRIDGE, PREFIX = "mrlbr0", "10.77.0"
NODES = ("n1", "n2")
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_UP_TIMEOUT_S = 60.0

CONF = """
ClusterName=megarl
SlurmctldHost={host}({prefix}.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmdTimeout=10
KillWait=10
MinJobAge=3600
JobRequeue=1
SchedulerParameters=batch_sched_delay=1,sched_interval=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
NodeName=n1 NodeAddr={prefix}.11 CPUs=4 RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeAddr={prefix}.12 CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=test Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def describe_missing() -> str | None:
    """Why there can be no such Slurm here; None: there can."""
    if os.geteuid() != 0:
        return "only root can make network namespaces and start slurmd for others"
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:{_SBIN}") is None]
    return f"no {', '.join(missing)}: apt-get install slurm-wlm munge iproute2" if missing else None


class TwoNodes:
    """The cluster. Its commands find it by `SLURM_CONF` in the environment, which is set meanwhile."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="megarl-slurm-", dir="/tmp"))
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PATH")}

    def __enter__(self) -> Self:
        os.environ["PATH"] = f"{os.environ['PATH']}:{_SBIN}"
        os.environ["SLURM_CONF"] = str(self.directory / "slurm.conf")
        try:
            self._make_network()
            self._start_controller()
            for node in NODES:
                self.start_node(node)
            self.wait_for(lambda: self.node_states() == {"idle"}, _UP_TIMEOUT_S, "both nodes are idle")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for log in sorted(self.directory.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}")
        self.close()

    def close(self) -> None:
        """End every process, node by node, then the network and the files."""
        for node in NODES:
            self.kill_node(node)
        for name in ("slurmctld", "munged"):
            if (daemon := self._daemons.pop(name, None)) is not None:
                daemon.terminate()  # not kill: slurmctld has a child of its own to end
                daemon.wait(timeout=30)
        self._remove_network()
        shutil.rmtree(self.directory, ignore_errors=True)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

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

    def node_states(self) -> set[str]:
        return set(run("sinfo", "--noheader", "--Node", "--format=%T").split())

    def wait_for(self, happened: Callable[[], bool], timeout_s: float, what: str) -> None:
        """AssertionError when it does not happen in time."""
        deadline = time.monotonic() + timeout_s
        while not happened():
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}\n{run('squeue')}\n{run('sinfo')}"
            time.sleep(0.5)

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

    def _start_controller(self) -> None:
        directory = self.directory
        (directory / "state").mkdir()
        text = CONF.format(host=socket.gethostname(), prefix=PREFIX, directory=directory)
        (directory / "slurm.conf").write_text(text, encoding="utf-8")
        key = directory / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        directory.chmod(0o755)
        munge = ["munged", "--foreground", "--force", f"--socket={directory}/munge.socket", f"--key-file={key}"]
        munge += [f"--{name}={directory}/munge.{name}" for name in ("pid-file", "log-file", "seed-file")]
        self._start("munged", munge)
        self.wait_for_file(directory / "munge.socket")
        self._start("slurmctld", ["slurmctld", "-D", "-i"])

    def wait_for_file(self, path: Path, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not path.exists():
            assert time.monotonic() < deadline, f"{path} did not appear within {timeout_s:g} s"
            time.sleep(0.1)

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self.directory / f"{name}.out.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
            )


def run(*command: str) -> str:
    """What a command prints. AssertionError, with its words, where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


def main() -> int:
    """`python -m tests.cluster.two_nodes [COMMAND ...]`: a command, or a shell, with the cluster up; its exit code."""
    if (missing := describe_missing()) is not None:
        print(f"no Slurm of two nodes: {missing}", file=sys.stderr)
        return 2
    with TwoNodes():
        return subprocess.run(sys.argv[1:] or [os.environ.get("SHELL", "bash")], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
