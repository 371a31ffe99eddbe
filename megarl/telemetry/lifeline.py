"""What a process owes the one that started it: to end with it, and to be the first whom a lack of memory costs."""

import contextlib
import fcntl
import os
import select


def die_with_parent(life_fd: int) -> None:
    """Let the kernel end this process group when the pipe's other end closes, which the parent alone holds.

    The default action of SIGIO ends a process without asking the interpreter, so a call that hangs with the
    interpreter's lock held ends too. (PR_SET_PDEATHSIG would fire when the parent's *thread* ends.)
    """
    os.set_inheritable(life_fd, False)
    fcntl.fcntl(life_fd, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(life_fd, fcntl.F_SETFL, fcntl.fcntl(life_fd, fcntl.F_GETFL) | os.O_ASYNC)
    # Not select(), which takes no descriptor from 1024 on: a rank of a large run passes on higher ones.
    waiting = select.poll()
    waiting.register(life_fd, select.POLLIN)
    if waiting.poll(0):  # the parent went before the signal was armed
        os._exit(1)


def be_first_to_die_of_memory() -> None:
    """A process that eats the machine's memory must be the one that it costs, not the trainer."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # Linux only
        file.write("1000")
