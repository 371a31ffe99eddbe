"""One process drives a run at a time: a lock on `driver.lock` in its directory.

It is a POSIX record lock: the kernel gives it up when the process ends, however it ends, no other process inherits it,
NFS keeps it between machines, and it stays with a process that becomes another program. It comes before everything that
is read of a run that goes on, so that what is decided from that still holds when the first file is written.
"""

import errno
import fcntl
import logging
import os
from pathlib import Path

from megarl.telemetry.process_mark import ProcessMark

LOCK_FILE = "driver.lock"
_HELD = {errno.EAGAIN, errno.EACCES}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_MARK_BYTES = 4096

_log = logging.getLogger(__name__)


class RunHeldError(RuntimeError):
    """Another process drives the run; the text says which."""


def hold_run(directory: Path) -> None:
    """This process alone may drive the run in `directory`, from now on until it ends.

    Raises RunHeldError where another one may, and OSError where the directory takes no writes. Where its file system
    has no locks that is logged, and two processes that begin in one moment are not told apart.
    """
    path = directory / LOCK_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, _MARK_BYTES)
        os.close(descriptor)
        if error.errno in _HELD:
            raise RunHeldError(f"it is driven by {_describe(holder)}") from error
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning("%s cannot be locked (%s): see to it that no two processes drive this run", path, error.strerror)
        return
    # Never closed: closing any descriptor of the file would give the lock up.
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(ProcessMark.of(os.getpid())).encode(), 0)


def keep_lock_over_exec(directory: Path) -> None:
    """The lock stays with this process when it becomes another program, which then calls `hold_run` again.

    Linux before 5.11 gives the lock of a process with threads up all the same; who takes it first then has it, and
    `hold_run` tells the other. The descriptor stays open for good: there is one more with every program.
    """
    lock = (directory / LOCK_FILE).stat()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.fstat(int(name)), lock):
                os.set_inheritable(int(name), True)
        except OSError:
            continue  # that of the listing itself


def _describe(mark: bytes) -> str:
    try:
        holder = ProcessMark.parse(mark.decode())
    except ValueError:
        return "another process"
    # It has locked the file and not yet said who it is; the mark is of the one before.
    return "another process" if holder.standing() == "dead" else f"process {holder.pid} on {holder.host}"
