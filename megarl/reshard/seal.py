"""What makes a message of a publication believable: the session's secret, and a store whose values carry its seal.

Who reaches the port of policy rank 0's TCPStore can read, write and delete every key of it: TCPStore asks nobody who
they are. What holds all the same:

* A value counts only with a seal: HMAC-SHA256, under a key made of the session's secret and name, of the key it lies
  under and of the value. A value that was forged, cut short, lengthened, moved from another key or kept from an earlier
  session is refused before anything of it is parsed. A key is written once in a session, so an old value of the same
  key is the value.
* gloo and NCCL exchange their addresses over the same sealed store, so that nobody leads their connections elsewhere.
* The messages with weights are sealed too (message.py): a stranger who gets at a connection can end a session with
  them, not change a weight.
* The secret travels through Ray to the policy ranks and engines, and inside an engine through vLLM's own pipes and
  sockets of the host. It is in no file, log, command line, error or repr.

What does not: whoever reaches the port can disturb. A deleted or overwritten key ends the publication with an error, no
worker installs, the engines sample on; counters (`add`), of which a publication has none, are not sealed. He can read
names of tensors and addresses. Weights travel in the clear.
"""

import hmac
import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from megarl.reshard.signals import TransportError

SECRET_BYTES = 32
SEAL_BYTES = 32


class ForgedMessage(TransportError):
    """What was read carries no seal of this session."""


def new_secret() -> str:
    """Hexadecimal; from the operating system's generator."""
    return secrets.token_hex(SECRET_BYTES)


class Seal:
    """Seals under one secret, for one purpose. Shows neither in its repr, and does not pickle by itself."""

    __slots__ = ("_empty",)

    def __init__(self, secret: str, *, purpose: str) -> None:
        """secret: of `new_secret`. purpose: seals for one are none for another."""
        if len(secret) < 2 * SECRET_BYTES:
            raise ValueError(f"a session's secret has {2 * SECRET_BYTES} hexadecimal digits, found {len(secret)}")
        key = hmac.digest(bytes.fromhex(secret), purpose.encode(), "sha256")
        self._empty = hmac.new(key, digestmod="sha256")  # copied for each seal, which takes a third of making it

    def of(self, *fields: bytes) -> bytes:
        """[32] of the fields, each with its length, so that no byte can change sides."""
        seal = self._empty.copy()
        seal.update(b"".join([len(field).to_bytes(8, "little") + field for field in fields]))
        return seal.digest()

    def fits(self, seal: bytes, *fields: bytes) -> bool:
        """Is it theirs? Takes as long for a wrong one."""
        return hmac.compare_digest(seal, self.of(*fields))

    def __repr__(self) -> str:
        return "Seal()"

    def __reduce__(self) -> Any:
        raise TypeError("a Seal does not leave its process; send the secret where it may go")


class SealedStore(dist.Store):
    """A store whose values carry seals, under keys of one session. See the module.

    It is a store to torch as well: its requests are answered by the Python methods here, from C++ too. Whoever hands it
    to a process group keeps it alive as long as that: C++ knows its other half only.
    """

    def __init__(self, store: dist.Store, *, secret: str, session: str) -> None:
        """session: public; its keys begin with it."""
        super().__init__()
        self._store = dist.PrefixStore(session, store)
        self._seal = Seal(secret, purpose=f"store of session {session}")

    def set(self, key: str, value: str | bytes) -> None:
        self._store.set(key, self._close(key, value))  # type: ignore[arg-type]

    def get(self, key: str) -> bytes:
        """Waits for the key. Raises ForgedMessage for a value that nobody of this session wrote there."""
        return self._open(key, bytes(self._store.get(key)))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Write `desired` where `expected` is (empty: nothing is); what then is there."""
        before = self._close(key, expected) if expected else b""
        return self._open(key, bytes(self._store.compare_set(key, before, self._close(key, desired))))  # type: ignore[arg-type]

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self.get(key) for key in keys]

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        for key, value in zip(keys, values, strict=True):
            self.set(key, value)

    def add(self, key: str, value: int) -> int:
        """A counter; not sealed."""
        return self._store.add(key, value)

    def check(self, keys: list[str]) -> bool:
        """Are there values? Whether they are believable is seen when they are read."""
        return self._store.check(keys)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        if timeout is None:
            self._store.wait(keys)
        else:
            self._store.wait(keys, timeout)

    def delete_key(self, key: str) -> bool:
        return self._store.delete_key(key)

    def num_keys(self) -> int:
        return self._store.num_keys()

    def set_timeout(self, timeout: timedelta) -> None:
        super().set_timeout(timeout)
        self._store.set_timeout(timeout)

    def has_extended_api(self) -> bool:
        return False

    def _close(self, key: str, value: str | bytes) -> bytes:
        plain = value.encode() if isinstance(value, str) else value
        return self._seal.of(key.encode(), plain) + plain

    def _open(self, key: str, sealed: bytes) -> bytes:
        seal, plain = sealed[:SEAL_BYTES], sealed[SEAL_BYTES:]
        if not self._seal.fits(seal, key.encode(), plain):
            raise ForgedMessage(
                f"the message {key} ({len(sealed)} bytes) does not carry this session's seal: someone else wrote to "
                "the store of this run; keep its port from others, and see README, who can reach a run"
            )
        return plain
