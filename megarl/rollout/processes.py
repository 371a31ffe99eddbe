"""The processes vLLM starts for an engine, and what they leave behind: both end with the engine.

vLLM terminates its workers rather than asking them to stop, so their shared-memory files stay in /dev/shm. Only files
that an engine's own processes had mapped are removed.
"""

from pathlib import Path

import psutil

_SHM = "/dev/shm/"
_LEFT_BEHIND = ("vllm_dist_", "psm_")
_KILL_WAIT_S = 10.0


class ChildProcesses:
    """Every process started below this one since the object was made."""

    def __init__(self) -> None:
        self._before = set(psutil.Process().children(recursive=True))
        self._found: list[psutil.Process] = []
        self._files: set[Path] = set()

    def find(self) -> None:
        """Note the processes alive now, and the shared files they hold. Call it while they run."""
        known = set(self._found)
        for process in psutil.Process().children(recursive=True):
            try:
                if process in self._before or "multiprocessing.resource_tracker" in " ".join(process.cmdline()):
                    continue  # the resource tracker is this process's own and lives as long
                paths = [entry.path for entry in process.memory_maps()]
            except psutil.Error:
                continue  # it ended meanwhile: nothing of it is left to note
            if process not in known:
                self._found.append(process)
            for path in paths:
                if path.startswith(_SHM) and path.removeprefix(_SHM).startswith(_LEFT_BEHIND):
                    self._files.add(Path(path))

    @property
    def files(self) -> set[Path]:
        """Shared files that `find` has noted so far."""
        return set(self._files)

    def find_stopped(self) -> list[str]:
        """Of the noted processes those that are stopped: their command's name and number."""
        stopped = []
        for process in self._found:
            try:
                if process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
                    stopped.append(f"process {process.pid} ({process.name()})")
            except psutil.Error:
                continue  # it ended: the engine notices that itself
        return stopped

    def end(self, grace_s: float) -> None:
        """Wait for the noted processes to end by themselves, kill the rest, remove the files. Idempotent."""
        _, alive = psutil.wait_procs(self._found, timeout=grace_s)
        for process in alive:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(alive, timeout=_KILL_WAIT_S)
        for path in self._files:
            path.unlink(missing_ok=True)
        self._found, self._files = [], set()
