"""A Slurm controller of one's own on this machine: munged and slurmctld, for the time of a `with` block.

Its commands find it by `SLURM_CONF` in the environment. Needs root and the packages that `describe_missing` names.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAMS = ("munged", "slurmctld", "sbatch")
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"

CONF = """
ClusterName=megarl
SlurmctldHost={host}({address})
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
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation={directory}/state
SlurmctldPidFile={directory}/slurmctld.pid
SlurmctldLogFile={directory}/slurmctld.log
"""


def describe_missing(*more: str) -> str | None:
    """Why there can be no such Slurm here; None: there can. more: further programs that are needed."""
    if os.geteuid() != 0:
        return "only root can make network namespaces and start Slurm for others"
    path = f"{os.environ['PATH']}:{_SBIN}"
    missing = [name for name in (*PROGRAMS, *more) if shutil.which(name, path=path) is None]
    return f"no {', '.join(missing)}: apt-get install slurm-wlm munge iproute2" if missing else None


class Controller:
    """Where `conf` describes the nodes. Nothing of it stays behind."""

    address = "127.0.0.1"
    conf = ""
    """Lines of slurm.conf beside those of CONF; {directory} is that of the daemons' files."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="megarl-slurm-", dir="/tmp"))
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PATH")}

    def __enter__(self) -> Self:
        os.environ["PATH"] = f"{os.environ['PATH']}:{_SBIN}"
        os.environ["SLURM_CONF"] = str(self.directory / "slurm.conf")
        try:
            self.start()
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

    def start(self) -> None:
        """munged, then slurmctld."""
        directory = self.directory
        (directory / "state").mkdir()
        text = (CONF + self.conf).format(host=socket.gethostname(), address=self.address, directory=directory)
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

    def close(self) -> None:
        """End every process, then remove the files."""
        for name in ("slurmctld", "munged"):
            if (daemon := self._daemons.pop(name, None)) is not None:
                daemon.terminate()  # not kill: slurmctld has a child of its own to end
                daemon.wait(timeout=30)
        shutil.rmtree(self.directory, ignore_errors=True)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def wait_for(self, happened: Callable[[], bool], timeout_s: float, what: str) -> None:
        """AssertionError when it does not happen in time."""
        deadline = time.monotonic() + timeout_s
        while not happened():
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}\n{run('squeue')}\n{run('sinfo')}"
            time.sleep(0.5)

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


class ManyNodes(Controller):
    """64 nodes of eight GPUs that nobody has: nodes of a cloud, which Slurm takes for switched off, not for broken."""

    conf = """
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
SuspendProgram=/bin/true
ResumeProgram=/bin/true
SuspendTime=600
ResumeTimeout=600
NodeName=n[1-64] CPUs=96 RealMemory=1000000 Gres=gpu:8 State=CLOUD
PartitionName=gpu Nodes=n[1-64] Default=YES MaxTime=INFINITE State=UP
"""

    def start(self) -> None:
        super().start()
        self.wait_for(_answers, 60, "the controller answers")


def _answers() -> bool:
    return subprocess.run(["scontrol", "ping"], capture_output=True, timeout=60, check=False).returncode == 0


def run(*command: str) -> str:
    """What a command prints. AssertionError, with its words, where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout
