"""Objects between policy ranks: a pickle of a stranger is not looked at."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import distributed_c10d

from megarl.policy.sealed_objects import seal_objects, unseal_objects
from megarl.reshard.seal import ForgedMessage, new_secret

CPU = torch.device("cpu")


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


@pytest.fixture(autouse=True)
def sealed() -> Iterator[None]:
    seal_objects(new_secret())
    yield
    unseal_objects()


def receive(arrived: bytes) -> Any:
    """As torch's all_gather_object does with what a rank sent."""
    return distributed_c10d._tensor_to_object(
        torch.frombuffer(bytearray(arrived), dtype=torch.uint8), len(arrived), None
    )


def send(value: Any) -> bytes:
    tensor, size = distributed_c10d._object_to_tensor(value, CPU, None)
    return tensor.numpy().tobytes()[: int(size)]


def test_ranks_understand_each_other() -> None:
    assert receive(send({"wd_mult": 1.0, "is_expert": False})) == {"wd_mult": 1.0, "is_expert": False}


def test_a_strangers_pickle_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "touched"
    forged = pickle.dumps(Touch(path))
    for arrived in (forged, bytes(32) + forged, send(1)[:32] + forged, send(1)[:-1], b"x"):
        with pytest.raises(ForgedMessage, match="without the seal of the policy ranks"):
            receive(arrived)
    assert not path.exists()
    receive(send(Touch(path)))
    assert path.exists()  # it would have


def test_leaving_the_group_leaves_torch_as_it_was() -> None:
    unseal_objects()
    assert pickle.loads(send(5)) == 5
