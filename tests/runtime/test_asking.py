"""There is one way to ask an actor, and it reaches the method that was named. Needs no Ray."""

import ast
import asyncio
from pathlib import Path
from typing import Any

import pytest
import ray

import megarl
from megarl.records import SampleRequest
from megarl.runtime.policy_actors import PolicyActor
from megarl.runtime.rollout_actor import RolloutActor
from megarl.runtime.workers import Worker, WorkerName
from megarl.telemetry.process_mark import ProcessMark

Call = tuple[str, tuple[Any, ...], dict[str, Any]]


class Handle:
    """Of an actor: notes each call, and answers with the number of calls so far."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __getattr__(self, method: str) -> Any:
        handle = self

        class Method:
            @staticmethod
            def remote(*args: Any, **kwargs: Any) -> Any:
                handle.calls.append((method, args, kwargs))
                return asyncio.sleep(0.0, result=len(handle.calls))

        return Method


def test_a_method_is_asked_by_its_name_with_its_arguments() -> None:
    async def scenario() -> tuple[list[Any], list[Call]]:
        handle = Handle()
        policy: Worker[PolicyActor] = Worker(WorkerName("policy", 0, Path("/nowhere")), handle)
        rollout: Worker[RolloutActor] = Worker(WorkerName("rollout", 0, Path("/nowhere")), handle)
        asked = [
            policy.ask(PolicyActor.score, (), hold=False),
            rollout.ask(RolloutActor.generate, [SampleRequest(prompt=(1,), seed=2)]),
            policy.ask(PolicyActor.close),
        ]
        return [await reply for reply in asked], handle.calls

    replies, calls = asyncio.run(scenario())
    assert calls == [
        ("score", ((),), {"hold": False}),
        ("generate", ([SampleRequest(prompt=(1,), seed=2)],), {}),
        ("close", (), {}),
    ]
    assert replies == [1, 2, 3]


@pytest.mark.parametrize("gone", [True, False])
def test_an_actor_is_asked_for_its_mark(gone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = ProcessMark.of(1)

    class Answer:
        @staticmethod
        async def remote() -> ProcessMark:
            if gone:
                raise ray.exceptions.RayActorError(error_msg="gone")
            return mark

    class OneMethod:
        answer = Answer

    async def scenario() -> tuple[bool, ProcessMark | None]:
        worker: Worker[PolicyActor] = Worker(WorkerName("policy", 0, Path("/nowhere")), OneMethod)
        return await worker.answers(within_s=30.0), worker.mark

    assert asyncio.run(scenario()) == (True, None if gone else mark)


def test_nothing_else_calls_an_actor() -> None:
    """`remote` is an attribute of actors only: where one is made, and in `Worker.ask`; and of the one task."""
    package = Path(megarl.__file__).parent
    users = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "remote"
    }
    assert users == {"runtime/workers.py", "runtime/cluster.py", "runtime/node_links.py"}
