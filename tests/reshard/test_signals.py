"""The thread that asks the store: one for all requests, with an end."""

import gc
import threading
import time
import weakref
from typing import Any

import pytest
import torch.distributed as dist

from megarl.reshard.signals import Signals, TransportError, connect_store, listen, serve_store


class Store:
    """A store whose answers a test holds back."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.open = threading.Event()
        self.open.set()
        self.askers: set[int] = set()

    def _wait(self) -> None:
        self.askers.add(threading.get_ident())
        self.open.wait()

    def set(self, key: str, value: str) -> None:
        self._wait()
        self.values[key] = value

    def check(self, keys: list[str]) -> bool:
        self._wait()
        return all(key in self.values for key in keys)

    def get(self, key: str) -> bytes:
        self._wait()
        if key not in self.values:
            raise dist.DistStoreError(f"no {key}")
        return self.values[key].encode()


def store_threads() -> int:
    return sum(thread.name == "megarl-store" for thread in threading.enumerate())


def await_threads(count: int) -> None:
    deadline = time.monotonic() + 5.0
    while store_threads() != count:
        assert time.monotonic() < deadline, f"{store_threads()} threads ask the store, not {count}"
        time.sleep(0.01)


def make_signals(store: Any, timeout_s: float = 5.0) -> Signals:
    return Signals(store, timeout_s=timeout_s)


def test_one_thread_asks_for_all_and_ends_with_the_signals() -> None:
    gc.collect()
    before, store = store_threads(), Store()
    signals = make_signals(store)
    callers = [threading.Thread(target=signals.put, args=(f"key-{number}", number)) for number in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert signals.get([f"key-{number}" for number in range(8)]) == list(range(8))
    assert len(store.askers) == 1
    assert store_threads() == before + 1
    gone = weakref.ref(store)
    del signals, callers, caller, store
    await_threads(before)
    assert gone() is None


def test_a_store_that_does_not_answer_is_given_up_once() -> None:
    """The first request waits its time, all that follow fail at once, those of other threads too."""
    store = Store()
    signals = make_signals(store, timeout_s=0.3)
    store.open.clear()
    started = time.monotonic()
    with pytest.raises(TransportError, match=r"policy rank 0.* does not answer within 0\.3 s") as caught:
        signals.put("key", 1)
    assert caught.value.peer == 0
    assert 0.3 <= time.monotonic() - started < 3.0
    started = time.monotonic()
    with pytest.raises(TransportError, match="does not answer"):
        signals.put("other", 2)
    assert time.monotonic() - started < 0.2
    before = store_threads()
    del signals, caught  # its traceback knows the signals
    store.open.set()
    await_threads(before - 1)
    assert "other" not in store.values


def test_a_request_that_waits_behind_a_silent_one_has_the_same_limit() -> None:
    store = Store()
    signals = make_signals(store, timeout_s=0.5)
    store.open.clear()
    errors = []

    def put(key: str) -> None:
        with pytest.raises(TransportError) as caught:
            signals.put(key, 0)
        errors.append(str(caught.value))

    callers = [threading.Thread(target=put, args=(f"key-{number}",)) for number in range(3)]
    started = time.monotonic()
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(errors) == 3
    assert time.monotonic() - started < 3.0
    store.open.set()


def test_an_error_of_the_store_reaches_the_caller_and_the_next_request_is_answered() -> None:
    store = Store()
    signals = make_signals(store)
    with pytest.raises(dist.DistStoreError, match="no key"):
        signals._keys.get("key")
    signals.put("key", 5)
    assert signals.get(["key"]) == [5]


def test_a_real_store_goes_with_its_last_reference() -> None:
    """Its port closes: the thread keeps nothing of a session that is over."""
    gc.collect()
    before = store_threads()
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    store = serve_store(listener, 5.0)
    signals = make_signals(store)
    signals.put("key", 1)
    del signals, store
    await_threads(before)
    with pytest.raises(TransportError, match="no policy answers"):
        connect_store("127.0.0.1", port, 0.3)
