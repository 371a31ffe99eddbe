"""Small JSON messages between the peers of a publication, over a TCPStore that policy rank 0 serves.

The store they are put into is sealed (seal.py): what does not come from a peer of the session is refused, not parsed.

Invariants: every wait ends, by the message, by the peer's recorded failure, or after `timeout_s` with the keys that
did not come; the first party that fails a transfer records why, and everyone waiting on that transfer reads it at the
next poll, `_LONGEST_POLL_S` later.
"""

import json
import queue
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

_LONGEST_POLL_S = 0.02
_LONGEST_ANSWER_S = 10.0  # of a store that answers in a millisecond
_STORE_OWNER = "policy rank 0, which serves the store,"
_DEFENCE_S = 3.0  # how long one who is blamed has to say whom it waited for itself


class TransportError(RuntimeError):
    """A transfer of weights failed; the text names version, tensors and peer."""

    peer: int | None = None
    """The peer that was waited for in vain, where it was one."""


def waited_for(peer: int, text: str) -> TransportError:
    """The error of one who waited for `peer`."""
    error = TransportError(text)
    error.peer = peer
    return error


class SignalTimeout(Exception):
    """Messages did not come in time; `missing` are their keys."""

    def __init__(self, missing: list[str]) -> None:
        super().__init__(f"no message under {', '.join(missing)}")
        self.missing = missing


class PeerFailed(Exception):
    """Another party recorded a failure of this transfer; the text is its own."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host` only, on a free port for 0. TransportError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise TransportError(
            f"policy rank 0 cannot listen on {host}:{port}: {error}; use an address of this machine and a free "
            "port (port 0 picks one)"
        ) from error
    return listener


def serve_store(listener: socket.socket, timeout_s: float) -> dist.TCPStore:
    """Serve a TCPStore on the interface of `listener` (not on every one), which the store takes over."""
    host, port = listener.getsockname()[:2]
    return dist.TCPStore(
        host,
        port,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def connect_store(host: str, port: int, timeout_s: float) -> dist.TCPStore:
    """Connect to the store policy rank 0 serves."""
    try:
        return dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)
    except dist.DistError as error:
        raise TransportError(
            f"no policy answers at {host}:{port} within {timeout_s:g} s; is policy rank 0 alive, and is that "
            "address reachable from this node?"
        ) from error


class _Asked:
    """A request on its way to the store, and what came of it."""

    def __init__(self, request: str, args: tuple[Any, ...]) -> None:
        self.request, self.args = request, args
        self.answered = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None


class _Keys:
    """The store's requests with an end: TCPStore waits for ever for a server that is stopped but not gone.

    One thread asks for all callers, one request after the other, as the store's one connection does anyway. It ends
    with this object; only one that the store never answers stays behind, for the rest of the process.
    """

    def __init__(self, store: dist.Store, *, timeout_s: float) -> None:
        self._timeout_s, self._silent = timeout_s, False
        self._asked: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        threading.Thread(target=_answer, args=(store, self._asked), name="megarl-store", daemon=True).start()
        weakref.finalize(self, self._asked.put, None)

    def set(self, key: str, value: str) -> None:
        self._ask("set", key, value)

    def get(self, key: str) -> bytes:
        return bytes(self._ask("get", key))

    def check(self, keys: list[str]) -> bool:
        return bool(self._ask("check", keys))

    def set_first(self, key: str, value: str) -> bytes:
        """Write `value` unless somebody has written; what then is there."""
        return bytes(self._ask("compare_set", key, "", value))

    def delete_key(self, key: str) -> None:
        self._ask("delete_key", key)

    def _ask(self, request: str, *args: Any) -> Any:
        """The store's answer. TransportError when none comes, and at once for every request after that."""
        asked = _Asked(request, args)
        if not self._silent:
            self._asked.put(asked)
            self._silent = not asked.answered.wait(self._timeout_s)
        if self._silent:
            raise waited_for(0, f"{_STORE_OWNER} does not answer within {self._timeout_s:g} s")
        error, asked.error = asked.error, None
        try:
            if error is not None:
                raise error
            return asked.value
        finally:
            # An error that its own frame holds would keep what its cause holds, the wire too, until garbage collection.
            error = None


def _answer(store: dist.Store, requests: "queue.SimpleQueue[_Asked | None]") -> None:
    """Ask the store what is put into the queue until None comes. Knows no `_Keys`, which could not go otherwise."""
    while (asked := requests.get()) is not None:
        try:
            asked.value = getattr(store, asked.request)(*asked.args)
        except BaseException as error:
            asked.error = error
        asked.answered.set()
        del asked  # it would keep its error while the next request is waited for


class Signals:
    """JSON messages under string keys, seen by all parties of one session. A message is put once."""

    def __init__(self, store: dist.Store, *, timeout_s: float) -> None:
        """store: the session's, sealed."""
        self._keys = _Keys(store, timeout_s=min(timeout_s, _LONGEST_ANSWER_S))
        self._timeout_s = timeout_s

    def put(self, key: str, message: Any) -> None:
        """Publish a message; it stays until `drop`."""
        self._keys.set(key, json.dumps(message))

    def claim(self, key: str) -> bool:
        """True for the first caller, in any process."""
        mine = secrets.token_hex(8)
        return self._keys.set_first(key, mine) == mine.encode()

    def drop(self, keys: Sequence[str]) -> None:
        """Delete messages that every party has read."""
        for key in keys:
            self._keys.delete_key(key)

    def fail(self, transfer: str, reason: str) -> str:
        """Record why `transfer` failed, unless somebody did already: the first reason is the cause of the rest.

        Returns the first reason.
        """
        try:
            return str(json.loads(self._keys.set_first(f"{transfer}/failed", json.dumps(reason))))
        except dist.DistError:
            return f"{reason} ({_STORE_OWNER} is gone)"
        except TransportError as silence:
            return reason if str(silence) in reason else f"{reason} ({silence})"

    def tell(self, transfer: str, error: BaseException, *, peer: int, name: str) -> str:
        """Say to all why `peer`, called `name`, stopped; returns the reason all stop for."""
        reason = f"{name} failed: {error}"
        accused = error.peer if isinstance(error, TransportError) else None
        if accused is None:
            return self.fail(transfer, reason)
        return self.accuse(transfer, reason, accuser=peer, accused=accused)

    def accuse(self, transfer: str, reason: str, *, accuser: int, accused: int) -> str:
        """Record that `accuser` waited in vain for `accused`, find who is to blame, and fail the transfer with that.

        Whoever waits for one who waits himself blames the wrong peer. All of them run out of patience at about the same
        time and say whom they waited for; the one who is waited for and says nothing is stopped or dead.
        """
        suspects = {accuser}
        try:
            self.put(f"{transfer}/accusation-{accuser}", [accused, reason])
            while accused not in suspects:
                suspects.add(accused)
                if not self._appears(f"{transfer}/accusation-{accused}", _DEFENCE_S, unless=f"{transfer}/failed"):
                    break
                accused, reason = json.loads(self._keys.get(f"{transfer}/accusation-{accused}"))
        except (dist.DistError, TransportError):
            pass  # policy rank 0 is gone or silent, and its store with it: `fail` says so
        return self.fail(transfer, reason)

    def _appears(self, key: str, timeout_s: float, *, unless: str | None = None) -> bool:
        """Wait for `key`, no longer than until `unless` is there."""
        deadline = time.monotonic() + timeout_s
        while not self._keys.check([key]):
            if time.monotonic() > deadline or (unless is not None and self._keys.check([unless])):
                return False
            time.sleep(_LONGEST_POLL_S)
        return True

    def get(self, keys: Sequence[str], *, transfer: str | None = None, grace_s: float = 0.0) -> list[Any]:
        """Wait for all of `keys`, `grace_s` longer than the timeout, and return their messages.

        Raises:
            PeerFailed: somebody recorded a failure of `transfer` meanwhile.
            SignalTimeout: some keys did not come within the timeout.
        """
        wanted = list(keys)
        started = time.monotonic()
        while not self._keys.check(wanted):
            if transfer is not None and self._keys.check([f"{transfer}/failed"]):
                raise PeerFailed(json.loads(self._keys.get(f"{transfer}/failed")))
            waited = time.monotonic() - started
            if waited > self._timeout_s + grace_s:
                raise SignalTimeout([key for key in wanted if not self._keys.check([key])])
            # The store's own blocking wait would not see the failure above, and logs a warning for every slice.
            time.sleep(min(_LONGEST_POLL_S, 0.0005 + waited / 20))
        return [json.loads(self._keys.get(key)) for key in wanted]
