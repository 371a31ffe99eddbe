"""Stopping a run between two steps, saved: by a signal, or because its time is over."""

import threading


class RunStoppedError(Exception):
    """The run ended before its last step, as it was asked to; the text says why, after which step, and what was
    saved."""


class StopRequest:
    """Whether the run shall stop after the step under way. Asked from a signal handler, read by the loop."""

    def __init__(self) -> None:
        self._heard = threading.Event()
        self._reason: str | None = None
        self._always = False
        self._overdue = threading.Event()

    def listen(self, *, saves: bool) -> None:
        """From now on there are steps to stop after. saves: whether the run saves itself without being asked to."""
        self._always = saves
        self._heard.set()

    @property
    def has_steps(self) -> bool:
        """Whether there are steps to stop after: the workers have started."""
        return self._heard.is_set()

    def ask(self, reason: str, *, to_save: bool) -> bool:
        """Stop after this step because of `reason`. False where there is no step to stop after, or where the run does
        not save itself and is not asked `to_save`: then it must be stopped otherwise."""
        if not self._heard.is_set() or not (to_save or self._always):
            return False
        self._reason = self._reason or reason
        return True

    def give_up(self) -> None:
        """The step has not ended within its limit."""
        self._overdue.set()

    def is_overdue(self) -> bool:
        """Whether it was given up that the run ends by itself."""
        return self._overdue.is_set()

    @property
    def reason(self) -> str | None:
        """Why the run shall stop; None: it goes on."""
        return self._reason
