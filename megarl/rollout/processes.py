"""The processes vLLM starts for an engine, and what they leave behind: both end with the engine.

vLLM terminates its workers rather than asking them to stop, so their shared-memory files stay in /dev/shm; of one that
was killed, semaphores do too. Only files that an engine's own processes had mapped are removed.
"""

import gc
from pathlib import Path

import psutil

_SHM = "/dev/shm/"
_LEFT_BEHIND = ("vllm_dist_", "psm_")
_SEMAPHORES = "sem.mp-*"
_KILL_WAIT_S = 10.0


class ChildProcesses:
    """Every process started below this one since the object was made."""

    def __init__(self) -> None:
        self._before = set(psutil.Process().children(recursive=True))
        self._found: list[psutil.Process] = []
        self._files: set[Path] = set()
        self._semaphores: set[Path] = set()

    def find(self) -> None:
        """Note the processes alive now, and the shared files they hold. Call it while they run."""
        known = set(self._found)
        semaphores = _inodes_of_semaphores()
        for process in psutil.Process().children(recursive=True):
            try:
                if process in self._before or "multiprocessing.resource_tracker" in " ".join(process.cmdline()):
                    continue  # the resource tracker is this process's own and lives as long
                mapped = _shared_maps(process.pid)
            except (psutil.Error, OSError):
                continue  # it ended meanwhile: nothing of it is left to note
            if process not in known:
                self._found.append(process)
            for inode, path in mapped:
                if path.removeprefix(_SHM).startswith(_LEFT_BEHIND):
                    self._files.add(Path(path))
                elif inode in semaphores:
                    self._semaphores.add(semaphores[inode])

    @property
    def files(self) -> set[Path]:
        """Shared files that `find` has noted so far, semaphores among them."""
        return self._files | self._semaphores

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

    def remove_semaphores(self) -> None:
        """After `end`: unlink those semaphores of the processes that their maker has not. Idempotent."""
        gc.collect()  # the maker unlinks its own as it forgets them
        for path in self._semaphores:
            path.unlink(missing_ok=True)
        self._semaphores = set()


def _inodes_of_semaphores() -> dict[int, Path]:
    """multiprocessing's semaphores of this machine by inode: they are mapped under an earlier name."""
    found = {}
    for path in Path(_SHM).glob(_SEMAPHORES):
        try:
            found[path.stat().st_ino] = path
        except FileNotFoundError:
            continue
    return found


def _shared_maps(pid: int) -> list[tuple[int, str]]:
    """(inode, path) of every file in /dev/shm that a process maps. Raises OSError when it is gone."""
    lines = (line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines())
    return [(int(line[4]), line[5]) for line in lines if len(line) == 6 and line[5].startswith(_SHM)]
