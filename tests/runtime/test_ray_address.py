"""A cluster that cannot be joined is a configuration error in set time that says where the address came from."""

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megarl.config.base import ConfigError
from megarl.runtime import ray_address as module
from megarl.runtime.ray_address import RayAddress, check_address, find_address


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Something listens there that is not Ray and never says anything."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_where_the_address_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_address(None) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert str(find_address(None)) == 'RAY_ADDRESS (environment) "10.0.0.1:6379"'
    assert str(find_address("head:6379")) == 'cluster.ray_address "head:6379"'
    assert str(find_address("auto")) == 'RAY_ADDRESS (environment) "10.0.0.1:6379"'
    assert find_address("[fe80::1]:6379") == RayAddress("[fe80::1]:6379", "cluster.ray_address")
    for local in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", local)
        assert find_address(None) is None
        assert str(find_address("auto")) == 'cluster.ray_address "auto"'


@pytest.mark.parametrize("text", ["ray://head:10001", "http://head:8265", "head", "head:port", "he ad:1"])
def test_what_is_no_address_of_a_head(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", text)
    with pytest.raises(ConfigError, match=rf'RAY_ADDRESS \(environment\) "{text}": expected "auto" or host:port'):
        find_address(None)


def refuse(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        asyncio.run(check_address(RayAddress(text, "RAY_ADDRESS (environment)")))
    return str(caught.value)


def test_a_dead_address_is_refused_at_once() -> None:
    started = time.monotonic()
    text = refuse("127.0.0.1:1")
    assert time.monotonic() - started < 5
    assert text.startswith('RAY_ADDRESS (environment) "127.0.0.1:1": nothing answers there (')
    assert "Connect" in text
    assert "`ray start --head`" in text
    assert 'RAY_ADDRESS (environment) "no.such.host.invalid:6379"' in refuse("no.such.host.invalid:6379")
    assert "nothing answers there" in refuse("127.0.0.1:99999")


def test_auto_says_what_it_stands_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1\n")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert '"auto" (127.0.0.1:1): nothing answers there' in refuse("auto")


def test_what_listens_and_is_not_ray_is_refused_in_set_time(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ANSWER_TIMEOUT_S", 8.0)
    started = time.monotonic()
    text = refuse(f"127.0.0.1:{silent_port}")
    assert time.monotonic() - started < 20
    assert "something listens there, but no Ray head answered within 8 s" in text


def test_asking_can_be_interrupted(silent_port: int) -> None:
    """The loop goes on meanwhile, so that a signal is heard."""

    async def interrupted() -> float:
        task = asyncio.ensure_future(check_address(RayAddress(f"127.0.0.1:{silent_port}", "cluster.ray_address")))
        await asyncio.sleep(1.0)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - started

    assert asyncio.run(interrupted()) < 2
