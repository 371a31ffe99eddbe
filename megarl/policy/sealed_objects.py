"""Python objects that policy ranks send each other carry a seal of their group.

torch's object collectives (Megatron gathers its parameter groups with one) unpickle what arrived, and unpickling runs
what the sender wants. gloo's connections ask nobody who they are. So a pickle counts only with the seal of the ranks'
secret: one that a stranger sent is refused before it is looked at.
"""

import pickle
from typing import Any, BinaryIO

from torch.distributed import distributed_c10d

from megarl.reshard.seal import SEAL_BYTES, ForgedMessage, Seal


def seal_objects(secret: str) -> None:
    """From now on, in this process. Raises RuntimeError when torch has not the place for it."""
    if not hasattr(distributed_c10d, "_pickler") or not hasattr(distributed_c10d, "_unpickler"):
        raise RuntimeError("this torch has no distributed_c10d._pickler: objects between ranks could not be sealed")
    seal = Seal(secret, purpose="objects of the policy ranks")

    class Sealer:
        def __init__(self, stream: BinaryIO) -> None:
            self._stream = stream

        def dump(self, value: Any) -> None:
            plain = pickle.dumps(value)
            self._stream.write(seal.of(plain) + plain)

    class Opener:
        def __init__(self, stream: BinaryIO) -> None:
            self._sealed = stream.read()

        def load(self) -> Any:
            plain = self._sealed[SEAL_BYTES:]
            if not seal.fits(self._sealed[:SEAL_BYTES], plain):
                raise ForgedMessage(
                    f"an object of {len(self._sealed)} bytes arrived without the seal of the policy ranks: someone "
                    "else is connected to one of them; see README, who can reach a run"
                )
            return pickle.loads(plain)

    distributed_c10d._pickler, distributed_c10d._unpickler = Sealer, Opener  # type: ignore[assignment]


def unseal_objects() -> None:
    """As torch has it."""
    distributed_c10d._pickler, distributed_c10d._unpickler = pickle.Pickler, pickle.Unpickler
