"""A torch.distributed.checkpoint published to workers, without Ray and vLLM: every bit, in set memory, or nothing."""

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from bench_convert import write_random_checkpoint

from megarl.checkpoint.convert import convert
from megarl.checkpoint.errors import CheckpointError
from megarl.config.run import RunConfig
from megarl.reshard.receiver import NOT_INSTALLED
from megarl.runtime.checkpoint_publisher import CheckpointPublisher
from megarl.telemetry.metrics import to_values
from tests.checkpoint.test_dist_files import flip_byte_of
from tests.checkpoint.test_hf_checkpoint import write_source
from tests.reshard.fault_processes import Processes
from tests.runtime.checkpoint_session import HOST, Member, make_config

MIB = 1 << 20
FC1 = "decoder.layers.mlp.linear_fc1.weight"


def meet(processes: Processes, config: RunConfig, checkpoint: Path, peers: Sequence[int]) -> None:
    (endpoint,) = processes.call([0], "serve", config, checkpoint)
    processes.call(peers, "join", endpoint)


@pytest.mark.parametrize(
    ("family", "engines", "tensor", "dtype"), [("llama", 1, 1, "float32"), ("qwen2", 2, 2, "bfloat16")]
)
def test_workers_hold_what_is_stored(tmp_path: Path, family: str, engines: int, tensor: int, dtype: str) -> None:
    """Whatever layout has saved it; rounded once where the engines' dtype is narrower. Again in a second session."""
    write_source(tmp_path / "hf", family=family, tied=family == "qwen2")
    convert(tmp_path / "hf", tmp_path / "wide", to="hf", dtype=torch.float32)
    convert(tmp_path / "wide", tmp_path / "dist", tensor=2, pipeline=2)
    config = make_config(dtype=dtype, engines=engines, tensor=tensor)
    peers = range(1 + engines * tensor)
    with Processes(len(peers), Member) as processes:
        for _ in range(2):
            meet(processes, config, tmp_path / "dist", peers)
            processes.call(peers, "publish")
            wanted = tmp_path / "wide", getattr(torch, dtype)
            assert processes.call(peers[1:], "differing", *wanted) == [[]] * len(peers[1:])
        processes.call(peers, "leave")


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """192 MiB of weights; the publisher opens, meets, reads, checks and sends with messages of 1 MiB."""
    write_source(tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 4}
    num_bytes = write_random_checkpoint(
        tmp_path / "hf", config | wide | {"head_dim": 128, "vocab_size": 16_000, "num_hidden_layers": 4}
    )
    assert num_bytes > 180 * MIB
    convert(tmp_path / "hf", tmp_path / "dist", tensor=2)
    with Processes(2, Member) as processes:
        (endpoint,) = processes.call([0], "serve", make_config(), tmp_path / "dist")
        processes.call([0], "begin_memory")
        processes.call([0, 1], "join", endpoint)
        sent, _ = processes.call([0, 1], "publish")
        (grown,) = processes.call([0], "grown_bytes")
        assert processes.call([1], "differing", tmp_path / "hf", torch.bfloat16) == [[]]
    assert to_values(sent)["publish/bytes"] == num_bytes
    assert grown < num_bytes / 4


def test_a_damaged_file_is_named_and_nothing_is_installed(tmp_path: Path) -> None:
    """The same processes go on once it is whole again."""
    write_source(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "dist")
    shutil.copytree(tmp_path / "dist", tmp_path / "whole")
    file = flip_byte_of(tmp_path / "dist", FC1)
    config = make_config()
    with Processes(2, Member) as processes:
        meet(processes, config, tmp_path / "dist", range(2))
        for peer in range(2):
            processes.order(peer, "publish")
        answers = processes.collect(range(2))
        for answer in answers.values():
            assert f"{tmp_path / 'dist' / file}: {FC1} at [0, 0, 0] is damaged: its bytes have the CRC" in answer.error
            assert answer.seconds < 10
        assert answers[0].error.startswith("CheckpointError: ")
        assert answers[1].error.endswith(NOT_INSTALLED)
        shutil.copy(tmp_path / "whole" / file, tmp_path / "dist" / file)
        meet(processes, config, tmp_path / "dist", range(2))
        processes.call(range(2), "publish")
        assert processes.call([1], "differing", tmp_path / "hf", torch.bfloat16) == [[]]


def test_a_file_that_is_cut_short_or_gone_is_found_when_the_session_opens(tmp_path: Path) -> None:
    write_source(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "dist")
    file, *_ = sorted((tmp_path / "dist").glob("*.distcp"))

    async def join() -> None:
        publisher = CheckpointPublisher(make_config(), tmp_path / "dist", host=HOST)
        try:
            await publisher.join_session(await publisher.open_session())
        finally:
            await publisher.close()

    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=rf"truncated: {file.name} has \d+ bytes"):
        asyncio.run(join())
    file.unlink()
    with pytest.raises(CheckpointError, match=f"missing: {file.name}"):
        asyncio.run(join())


def test_an_evaluation_that_is_stopped_waits_for_nobody(tmp_path: Path) -> None:
    """While it waits for engines that never come; and nobody is left in a thread."""
    write_source(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "dist")

    async def stop() -> None:
        publisher = CheckpointPublisher(make_config(), tmp_path / "dist", host=HOST)
        joining = asyncio.create_task(publisher.join_session(await publisher.open_session()))
        await asyncio.sleep(0.5)
        joining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await joining
        thread = publisher._working
        assert thread is not None
        assert thread.running()
        await publisher.close()
        with pytest.raises(Exception, match="the evaluation ends"):
            thread.result(timeout=0)

    asyncio.run(stop())
