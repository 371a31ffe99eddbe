"""Real Megatron workers, one process a rank, without Ray: a test tells all of them what to do."""

import os
import signal
import socket
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from megarl.config.run import RunConfig
from tests.dist.forks import fork_context


class PolicyProcesses:
    """A policy of `config.parallel.world_size` ranks; a context manager that leaves no process behind."""

    def __init__(self, config: RunConfig) -> None:
        context = fork_context()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._ends: list[Connection] = []
        self.processes: list[Any] = []
        for rank in range(config.parallel.world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(config, rank, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self.processes.append(process)

    def __enter__(self) -> "PolicyProcesses":
        try:
            self.receive(timeout_s=180)
        except BaseException:
            self.__exit__()
            raise
        return self

    def send(self, method: str, *args: Any) -> None:
        """Every rank begins `method`: a function of this module's `_METHODS`, or the worker's own."""
        for end in self._ends:
            end.send((method, args))

    def answers(self, *, timeout_s: float = 120.0) -> list[Any]:
        """What the ranks returned, by rank; a RuntimeError for one that raised, is gone or does not answer."""
        deadline = time.monotonic() + timeout_s
        results = []
        for rank, end in enumerate(self._ends):
            try:
                ready = end.poll(max(0.0, deadline - time.monotonic()))
                succeeded, value = end.recv() if ready else (False, f"no answer within {timeout_s} s")
            except EOFError:
                succeeded, value = False, "its process is gone"
            results.append(value if succeeded else RuntimeError(f"policy rank {rank}: {value}"))
        return results

    def receive_late(self) -> None:
        """Take the answers of ranks that could not answer before."""
        for end in self._ends:
            if end.poll(30):
                end.recv()

    def receive(self, *, timeout_s: float = 120.0) -> list[Any]:
        """What the ranks returned, by rank; the RuntimeError of one that did not."""
        results = self.answers(timeout_s=timeout_s)
        for result in results:
            if isinstance(result, RuntimeError):
                raise result
        return results

    def call(self, method: str, *args: Any, timeout_s: float = 120.0) -> list[Any]:
        self.send(method, *args)
        return self.receive(timeout_s=timeout_s)

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def load(worker: Any, path: str) -> None:
    """Take the weights of another checkpoint of the same shape."""
    from megarl.checkpoint.hf import open_hf_checkpoint
    from megarl.policy.weights import load_hf_weights

    load_hf_weights(worker._chunks, open_hf_checkpoint(Path(path)), shape=worker._shape, layout=worker._layout)


def act_at_message(worker: Any, rank: int, number: int, action: str) -> None:
    """At its `number`-th message of a publication, `rank` kills itself ("kill"), stops ("stop") or waits ("wait")."""
    if worker._place.rank != rank:
        return
    wire, count = worker._sender._wire, 0
    send = wire.send

    def sending(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == number:
            wire.send = send
            if action == "wait":
                time.sleep(3)
            else:
                os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[action])
        return send(*args, **kwargs)

    wire.send = sending


_METHODS = {"load": load, "act_at_message": act_at_message}


def _serve(config: RunConfig, rank: int, port: int, end: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        from megarl.policy.process import RankPlace
        from megarl.policy.worker import MegatronWorker

        place = RankPlace(
            rank=rank,
            world_size=config.parallel.world_size,
            master_host="127.0.0.1",
            master_port=port,
            secret="5e" * 32,
        )
        worker = MegatronWorker(config, place, optimizer=config.policy.optimizer, total_updates=1, reference=False)
        end.send((True, None))
    except BaseException:
        end.send((False, traceback.format_exc()))
        return
    while True:
        try:
            method, args = end.recv()
        except EOFError:
            return
        try:
            function = _METHODS.get(method)
            end.send((True, function(worker, *args) if function else getattr(worker, method)(*args)))
        except BaseException as error:
            end.send((False, f"{type(error).__name__}: {error}"))
