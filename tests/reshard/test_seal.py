"""What a sealed store believes, and that secrets show nowhere."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

import megarl
from megarl.reshard.seal import ForgedMessage, Seal, SealedStore, new_secret
from megarl.reshard.session import WeightEndpoint, new_token
from megarl.reshard.signals import Signals

SECRET = new_secret()
EXPLAINED = {
    "sealed_objects.py": "pickles of policy ranks, once their seal fits",
    "dist_format.py": "a checkpoint's metadata, of which only torch's own metadata classes are made",
    "dist_chunk.py": "what a checkpoint's tensor is; its unpickler makes a description and nothing else",
    "sources.py": "whether Transformer Engine's object is empty: torch.load, of tensors and plain values alone",
    "probes.py": "doctor's own code, from the pipe of the process that started it",
}
"""Modules that unpickle or evaluate, and what."""


@pytest.fixture
def plain() -> dist.Store:
    """As anybody sees it."""
    return dist.HashStore()


def sealed(plain: dist.Store, *, secret: str = SECRET, session: str = "a") -> SealedStore:
    return SealedStore(plain, secret=secret, session=session)


def test_peers_read_what_peers_wrote(plain: dist.Store) -> None:
    sealed(plain).set("key", b"\x00value\xff")
    assert sealed(plain).get("key") == b"\x00value\xff"
    assert sealed(plain).multi_get(["key"]) == [b"\x00value\xff"]
    assert plain.get("a/key")[32:] == b"\x00value\xff"
    assert sealed(plain).check(["key"])
    assert not sealed(plain, session="b").check(["key"])


def test_cpp_asks_the_sealed_store(plain: dist.Store) -> None:
    """As gloo and NCCL do, through torch's own prefix store."""
    store = sealed(plain)
    dist.PrefixStore("gloo", store).set("0", "address")
    assert plain.get("a/gloo/0")[32:] == b"address"
    assert dist.PrefixStore("gloo", store).get("0") == b"address"
    plain.set("a/gloo/0", "mine")
    with pytest.raises(ForgedMessage, match="message gloo/0"):
        dist.PrefixStore("gloo", store).get("0")


def moved(value: bytes, plain: dist.Store) -> bytes:
    """A true value of another key."""
    sealed(plain).set("other", value[32:])
    return bytes(plain.get("a/other"))


def of_another_session(value: bytes, plain: dist.Store) -> bytes:
    sealed(plain, session="b").set("key", value[32:])
    return bytes(plain.get("b/key"))


def of_another_secret(value: bytes, plain: dist.Store) -> bytes:
    sealed(plain, secret=new_secret()).set("key", value[32:])
    return bytes(plain.get("a/key"))


FORGERIES: dict[str, Callable[[bytes, dist.Store], bytes]] = {
    "without a seal": lambda value, _: value[32:],
    "cut short": lambda value, _: value[:-1],
    "cut to nothing": lambda value, _: b"",
    "a part of a seal": lambda value, _: value[:20],
    "lengthened": lambda value, _: value + b" ",
    "changed": lambda value, _: value[:-1] + b"!",
    "of zeros": lambda value, _: bytes(len(value)),
    "moved": moved,
    "of another session": of_another_session,
    "of another secret": of_another_secret,
    "as large as you like": lambda value, _: bytes(1 << 24),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_anything_else_is_refused_by_name(plain: dist.Store, name: str) -> None:
    store = sealed(plain)
    store.set("key", "[1, 2]")
    plain.set("a/key", FORGERIES[name](bytes(plain.get("a/key")), plain))
    with pytest.raises(ForgedMessage, match=r"the message key .* does not carry this session's seal"):
        store.get("key")
    if name != "cut to nothing":  # which is as if nobody had written
        with pytest.raises(ForgedMessage):
            store.compare_set("key", "", "mine")
        with pytest.raises(ForgedMessage):
            Signals(store, timeout_s=1.0).get(["key"])


def test_the_first_writer_wins(plain: dist.Store) -> None:
    assert sealed(plain).compare_set("key", "", "one") == b"one"
    assert sealed(plain).compare_set("key", "", "two") == b"one"
    assert sealed(plain).compare_set("key", "one", "three") == b"three"
    assert sealed(plain).get("key") == b"three"


def test_one_claims_and_the_first_reason_stays(plain: dist.Store) -> None:
    first, second = (Signals(sealed(plain), timeout_s=1.0) for _ in range(2))
    assert [first.claim("it"), second.claim("it"), first.claim("it")] == [True, False, False]
    assert first.fail("session", "no power") == "no power"
    assert second.fail("session", "nobody there") == "no power"


def test_a_planted_reason_is_not_told(plain: dist.Store) -> None:
    plain.set("a/session/failed", json.dumps("all is well"))
    reason = Signals(sealed(plain), timeout_s=1.0).fail("session", "no power")
    assert reason.startswith("no power (the message session/failed ")
    assert "all is well" not in reason


def test_secrets_do_not_show() -> None:
    endpoint = WeightEndpoint(host="127.0.0.1", port=1, token=new_token(), secret=SECRET, timeout_s=1.0)
    assert endpoint.token in repr(endpoint)
    for shown in (repr(endpoint), str(endpoint), repr(endpoint.seal()), repr(endpoint.seal_store(dist.HashStore()))):
        assert SECRET not in shown
    with pytest.raises(TypeError, match="does not leave its process"):
        pickle.dumps(endpoint.seal())
    from megarl.policy.process import RankPlace
    from megarl.rollout.transfer_engine import MegarlInitInfo

    info = MegarlInitInfo(**endpoint.as_dict(), engine_index=0)
    assert info.endpoint() == endpoint
    assert SECRET not in repr(info)
    assert SECRET not in repr(RankPlace(rank=0, world_size=1, master_host="h", master_port=1, secret=SECRET))


def test_a_secret_is_long_and_new() -> None:
    assert len(bytes.fromhex(SECRET)) == 32
    assert new_secret() != new_secret()
    with pytest.raises(ValueError, match="64 hexadecimal digits, found 62"):
        Seal(SECRET[2:], purpose="x")


def test_fields_do_not_flow_together() -> None:
    seal = Seal(SECRET, purpose="x")
    assert seal.of(b"ab", b"c") != seal.of(b"a", b"bc")
    assert seal.of(b"ab") != Seal(SECRET, purpose="y").of(b"ab")
    assert seal.fits(seal.of(b"ab"), b"ab")
    assert not seal.fits(b"", b"ab")


def test_nothing_that_came_over_a_wire_is_unpickled_or_evaluated() -> None:
    words = re.compile(r"\b(pickle|marshal|shelve|dill|cloudpickle)\b|torch\.load\(|(?<![\w.])(eval|exec)\(|yaml\.")
    code = {
        path: re.sub(r'""".*?"""', "", path.read_text(), flags=re.S) for path in Path(megarl.__path__[0]).rglob("*.py")
    }
    found = {path.name for path, text in code.items() if words.search(text)}
    assert found == set(EXPLAINED)
