"""`megarl ...` that is killed at a given moment of a given step, with all that it has started: as by a loss of power.

    python tests/e2e/killed_at.py "update 1" 3 train run.toml

The moments are places in the driver's calls; everything else is the real program.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import psutil

IN_A_CALL_S = 0.02
"""So long after a worker was asked: it works, and nothing has come back."""


def die() -> NoReturn:
    """End every process of the run at once."""
    for process in psutil.Process().children(recursive=True):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit  # never reached


class Moment:
    """Wraps the program's own functions, so that one of them ends it in step `step`."""

    def __init__(self, step: int) -> None:
        self._step, self._now = step, 0

    def arm(self, name: str) -> None:
        """One of MOMENTS."""
        from megarl.controller import loop

        train_step = loop.train_step

        async def follow(step: int, config: Any, parts: Any, **named: Any) -> Any:
            self._now = step
            if self._here:
                # So that it is known from where the run goes on; a tiny step is over before its save is complete.
                await parts.checkpoints.settle()
                if name == "between steps":
                    die()
            return await train_step(step, config, parts, **named)

        loop.train_step = follow  # type: ignore[assignment]
        MOMENTS[name](self)

    @property
    def _here(self) -> bool:
        return self._now == self._step

    def generate(self) -> None:
        """Some responses have come."""
        from megarl.runtime.rollout_actors import RayRolloutPool

        original = RayRolloutPool.generate

        async def generate(pool: Any, requests: Any, arrived: Any) -> Any:
            def die_then(indexes: Any, rollouts: Any) -> None:
                if self._here:
                    die()
                arrived(indexes, rollouts)

            return await original(pool, requests, die_then)

        RayRolloutPool.generate = generate  # type: ignore[method-assign]

    def in_policy(self, method: str, *, index: int | None = None, after_s: float = IN_A_CALL_S) -> None:
        """The policy ranks work on it."""
        from megarl.runtime.policy_actors import RayPolicyGroup

        original = getattr(RayPolicyGroup, method)

        async def call(group: Any, *arguments: Any, **named: Any) -> Any:
            if self._here and (index is None or arguments[0] == index):
                asked = asyncio.ensure_future(original(group, *arguments, **named))
                await asyncio.sleep(after_s)
                assert not asked.done(), f"{method} was done within {after_s} s"
                die()
            return await original(group, *arguments, **named)

        setattr(RayPolicyGroup, method, call)

    def adopt(self) -> None:
        """Every engine has the weights, checked; none has installed them."""
        from megarl.runtime.rollout_actors import RayRolloutPool

        original = RayRolloutPool.adopt_weights

        async def adopt_weights(pool: Any, version: int) -> Any:
            if self._here:
                die()
            return await original(pool, version)

        RayRolloutPool.adopt_weights = adopt_weights  # type: ignore[method-assign]

    def complete(self, *, before: bool) -> None:
        """Every other file of the checkpoint is there; before: and no manifest, else it has its name."""
        from megarl.checkpoint.run_checkpoint import PendingCheckpoint

        original = PendingCheckpoint.complete

        def complete(pending: Any, manifest: Any) -> Any:
            here = manifest.step == self._step
            if here and before:
                die()
            done = original(pending, manifest)
            if here:
                die()
            return done

        PendingCheckpoint.complete = complete  # type: ignore[method-assign]

    def manifest_written(self) -> None:
        """The manifest is there, in a directory that is not renamed yet."""
        from megarl.checkpoint.manifest import Manifest

        original = Manifest.write

        def write(manifest: Any, directory: Any) -> None:
            original(manifest, directory)
            if manifest.step == self._step:
                die()

        Manifest.write = write  # type: ignore[method-assign]

    def report(self) -> None:
        """The step's rollouts are written, and no row speaks of them yet."""
        from megarl.controller.reporting import StepReporter

        original = StepReporter._log

        def log(reporter: Any, step: int, metrics: Any) -> None:
            if step == self._step:
                die()
            original(reporter, step, metrics)

        StepReporter._log = log  # type: ignore[method-assign]


MOMENTS: dict[str, Callable[[Moment], None]] = {
    "generate": Moment.generate,
    "score": lambda moment: moment.in_policy("score"),
    "update 0": lambda moment: moment.in_policy("train_mini_batch", index=0),
    "update 1": lambda moment: moment.in_policy("train_mini_batch", index=1),
    "publication, before the verdict": lambda moment: moment.in_policy("publish_weights", after_s=0.0),
    "publication, after the verdict": Moment.adopt,
    "save, before the manifest": lambda moment: moment.complete(before=True),
    "save, before the rename": Moment.manifest_written,
    "save, after the manifest": lambda moment: moment.complete(before=False),
    "report": Moment.report,
    "between steps": lambda moment: None,
}


if __name__ == "__main__":
    Moment(int(sys.argv[2])).arm(sys.argv[1])
    sys.argv = ["megarl", *sys.argv[3:]]
    from megarl.cli.main import main

    main()
