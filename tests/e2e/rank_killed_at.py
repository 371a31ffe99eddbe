"""`megarl ...` whose policy rank 1 is killed while it makes an update of a given step: once, or whenever it gets there.

    python tests/e2e/rank_killed_at.py 3 once train run.toml

Everything else is the real program. "once" is kept in a file of the current directory, for a run that goes on.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

KILLED = Path("rank-killed")
IN_A_CALL_S = 0.02


def arm(step: int, *, once: bool) -> None:
    from megarl.controller import loop
    from megarl.runtime.policy_actors import RayPolicyGroup

    train_step, update, now = loop.train_step, RayPolicyGroup.train_mini_batch, 0

    async def follow(number: int, config: Any, parts: Any, **named: Any) -> Any:
        nonlocal now
        now = number
        if now == step:
            await parts.checkpoints.settle()  # so that it is known from where the run goes on
        return await train_step(number, config, parts, **named)

    async def update_and_kill(group: Any, index: int, *arguments: Any, **named: Any) -> Any:
        asked = asyncio.ensure_future(update(group, index, *arguments, **named))
        if now == step and index == 1 and not (once and KILLED.exists()):
            await asyncio.sleep(IN_A_CALL_S)
            KILLED.write_text("killed\n")
            os.kill(group._workers[1].mark.pid, signal.SIGKILL)
        return await asked

    loop.train_step = follow  # type: ignore[assignment]
    RayPolicyGroup.train_mini_batch = update_and_kill  # type: ignore[method-assign]


if __name__ == "__main__":
    arm(int(sys.argv[1]), once=sys.argv[2] == "once")
    sys.argv = ["megarl", *sys.argv[3:]]
    from megarl.cli.main import main

    main()
