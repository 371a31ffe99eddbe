"""A small trainer that publishes a checkpoint's weights to a plain `vllm serve`, over vLLM's own HTTP routes.

Everything an own trainer needs is here: an offer, its parameters in Megatron's layout, and five requests. The server is
started by this program as

  VLLM_SERVER_DEV_MODE=1 vllm serve BASE --host 127.0.0.1 --weight-transfer-config '{"backend": "megarl"}'

which works because installing megarl registers the backend with vLLM (its entry point `vllm.general_plugins`). The
server begins with the weights of BASE, is sent those of NEW (a checkpoint of the same shape) over gloo, and is asked
for the same greedy completion before and after.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from megarl.checkpoint.hf import open_hf_checkpoint
from megarl.models.families import read_model_shape
from megarl.models.layout import layout_of
from megarl.models.shards import fill_parameter
from megarl.models.table import hf_tensors, list_parameters
from megarl.parallel.grid import RankGrid
from megarl.reshard.regions import parameter_key
from megarl.reshard.sender import WeightSender, serve_weights
from megarl.reshard.session import Offer

EXAMPLES = """examples:
  python tools/make_tiny_model.py models/quickstart --layers 2
  python tools/make_tiny_model.py models/other --layers 2 --seed 1
  python tools/publish_to_vllm_serve.py models/quickstart models/other
"""
START_TIMEOUT_S = 240.0
TIMEOUT_S = 60.0
PROMPT = [5, 6, 7, 8]
VERSION = 1


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    with serve(options.base, tensor=options.tensor) as url:
        before = complete(url)
        publish(url, options.new, tensor=options.tensor)
        after = complete(url)
    print(json.dumps({"before": before, "after": after, "weight_version": VERSION}))
    return 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=formatter)
    parser.add_argument("base", type=Path, help="checkpoint the server starts from")
    parser.add_argument("new", type=Path, help="checkpoint whose weights are published")
    parser.add_argument("--tensor", type=int, default=1, help="tensor-parallel ranks of the server (default 1)")
    options = parser.parse_args(arguments)
    for path in (options.base, options.new):
        if not (path / "config.json").is_file():
            parser.error(f"no checkpoint at {path}; see the examples below for two small ones (--help)")
    if read_model_shape(options.base) != read_model_shape(options.new):
        parser.error(f"{options.base} and {options.new} have different shapes; weights go between equal ones only")
    return options


# the trainer


def publish(url: str, checkpoint: Path, *, tensor: int) -> None:
    """Connect, send, install. A trainer of many steps connects once."""
    store, endpoint = serve_weights("127.0.0.1", timeout_s=TIMEOUT_S)
    offer, parameters = load_parameters(checkpoint, tensor=tensor)
    init = {"init_info": endpoint.as_dict() | {"engine_index": 0}}
    with meanwhile(url, "init_weight_transfer_engine", init):  # both sides wait for each other
        sender = WeightSender(endpoint, offer, parameters, rank=0, store=store)
    post(url, "start_weight_update")  # the workers begin to receive; the server goes on sampling
    report = sender.publish(VERSION)
    post(url, "update_weights", {"update_info": {"version": VERSION}})  # every worker has everything
    post(url, "pause?mode=wait")
    post(url, "finish_weight_update", {"weight_version": str(VERSION)})  # now they install it
    post(url, "resume")
    sender.close()
    print(f"published {report.bytes / 2**20:.1f} MiB in {report.messages} messages", file=sys.stderr)


def load_parameters(checkpoint: Path, *, tensor: int) -> tuple[Offer, dict[str, torch.Tensor]]:
    """The checkpoint as the parameters of a single Megatron rank, and what is offered of them."""
    shape = read_model_shape(checkpoint)
    reader = open_hf_checkpoint(checkpoint)
    layout = layout_of(shape, tensor_rank=0, tensor_size=1, pipeline_rank=0, pipeline_size=1)
    parameters = {}
    for entry in list_parameters(shape, layout):
        parameter = torch.empty(entry.shape, dtype=torch.float32)
        fill_parameter(parameter, entry, reader.read)
        parameters[parameter_key(entry.chunk, entry.name)] = parameter
    offer = Offer(
        shape=shape,
        grid=RankGrid(tensor=1, pipeline=1, data=1),
        virtual=1,
        spec="local",
        tensors=hf_tensors(shape),
        dtype=torch.float32,  # the server's --dtype: what is sent is what it holds
        engines=1,
        tensor=tensor,
        transport="network",
        bucket_bytes=64 << 20,
        device="cpu",
        staging="host",
        delta=False,
    )
    return offer, parameters


# the server


@contextmanager
def serve(model: Path, *, tensor: int) -> Iterator[str]:
    """A plain vLLM server of the model; its log is shown when it fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The server that `vllm serve` runs; that command itself looks for a package of the name vllm, which the CPU build
    # has not.
    # Who reaches it may do what this program does, and reads the session's secret: it listens on this machine only.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--weight-transfer-config", '{"backend": "megarl"}']
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "128", "--skip-tokenizer-init"]
    command += ["--tensor-parallel-size", str(tensor), "--distributed-executor-backend", "mp"]
    cpus = sorted(os.sched_getaffinity(0))
    binding = "|".join(str(cpus[rank % len(cpus)]) for rank in range(tensor))
    variables = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": binding}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | variables)
        try:
            url = f"http://127.0.0.1:{port}"
            await_server(url, process)
            yield url
        except BaseException:
            log.seek(0)
            print(log.read()[-4000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait(timeout=60)


def await_server(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"vllm serve ended with exit code {process.returncode}; its log follows")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except OSError:
            time.sleep(1)
    raise SystemExit(f"vllm serve was not ready after {START_TIMEOUT_S:g} s; its log follows")


def complete(url: str) -> list[int]:
    """Tokens of a greedy completion."""
    body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, "return_token_ids": True, "detokenize": False}
    answer = post(url, "v1/completions", body)
    tokens: list[int] = answer["choices"][0]["token_ids"]
    return tokens


@contextmanager
def meanwhile(url: str, route: str, body: dict[str, Any]) -> Iterator[None]:
    """The request runs beside the block."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            post(url, route, body)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise failures[0]


def post(url: str, route: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON answer of a route."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/{route}", json.dumps(body or {}).encode(), headers, method="POST")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S * 2) as answer:
        return json.loads(answer.read() or b"null")


if __name__ == "__main__":
    sys.exit(main())
