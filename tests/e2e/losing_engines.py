"""`megarl ...` that loses engines at given moments: a process of one is killed or stopped, and the run left alone.

    python tests/e2e/losing_engines.py "2 generate core-1 SIGKILL, 3 publish actor-0 SIGSTOP" train run.toml

Each: the step; "generate", when the engine has answered and owes more answers, "publish", when it was told to receive,
or "asleep", when it sleeps and the policy has the GPUs that they share; which of its processes, vLLM's core or the
actor above it, and of which engine; the signal. The moments are places in the driver's calls; everything else is the
real program.
"""

import signal
import sys
from collections.abc import Sequence
from typing import Any

import psutil


class Losses:
    """Wraps the program's own functions."""

    def __init__(self, plan: str) -> None:
        self._due = {
            (int(step), moment): (process, number) for step, moment, process, number in map(str.split, plan.split(","))
        }
        self._step = 0

    def arm(self) -> None:
        from megarl.controller import loop
        from megarl.runtime.dealing import deal_prompts
        from megarl.runtime.rollout_actors import RayRolloutPool

        train_step, generate, receive = loop.train_step, RayRolloutPool.generate, RayRolloutPool.receive_weights
        sleep = RayRolloutPool.sleep

        async def follow(step: int, config: Any, parts: Any, **named: Any) -> Any:
            self._step = step
            return await train_step(step, config, parts, **named)

        async def generate_some(pool: Any, requests: Any, arrived: Any) -> Any:
            dealt = {deal.engine: set(deal.indexes) for deal in deal_prompts(requests, engines=len(pool._workers))}

            def tell(indexes: Sequence[int], rollouts: Any) -> None:
                arrived(indexes, rollouts)
                for engine, owed in dealt.items():
                    if owed & set(indexes):
                        owed -= set(indexes)
                        assert owed or (self._step, "generate") not in self._due, "it has answered all at once"
                        self._act(pool, "generate", engine)

            return await generate(pool, requests, tell)

        async def receive_weights(pool: Any, version: int) -> None:
            await receive(pool, version)
            self._act(pool, "publish", None)

        async def go_to_sleep(pool: Any) -> Any:
            used = await sleep(pool)
            self._act(pool, "asleep", None)
            return used

        RayRolloutPool.sleep = go_to_sleep  # type: ignore[method-assign]
        loop.train_step = follow  # type: ignore[assignment]
        RayRolloutPool.generate = generate_some  # type: ignore[method-assign]
        RayRolloutPool.receive_weights = receive_weights  # type: ignore[method-assign]

    def _act(self, pool: Any, moment: str, engine: int | None) -> None:
        process, number = self._due.get((self._step, moment), ("", ""))
        what, _, of = process.partition("-")
        if not what or engine not in (None, int(of)):
            return
        del self._due[self._step, moment]
        victim = psutil.Process(pool._workers[int(of)].mark.pid)
        if what == "core":
            (victim,) = [child for child in victim.children(recursive=True) if "EngineCor" in child.name()]
        victim.send_signal(signal.Signals[number])


if __name__ == "__main__":
    Losses(sys.argv[1]).arm()
    sys.argv = ["megarl", *sys.argv[2:]]
    from megarl.cli.main import main

    main()
