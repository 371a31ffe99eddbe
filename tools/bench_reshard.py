"""What publishing weights from shard to shard moves, and how long it takes, beside the gather path.

* layouts: plans of every rank for real model shapes. received_over_bound_max: bytes an engine worker receives over
  the bytes its parameters hold, the worst worker; sent_max_over_mean: over the policy's ranks (pipeline stages with
  an embedding hold more, whatever is sent); gather_received_over_bound: the same worst worker when it receives every
  tensor whole.
* wall_ratio_to_gather: seconds from the policy's parameters to the workers', SmolLM2-135M in bfloat16, over the
  seconds of the gather path: whole tensors gathered on rank 0 by point-to-point, broadcast in buckets while the next
  are gathered, and the worker's slices copied out. Two pipeline stages to one engine of three tensor ranks, all over
  gloo, five processes of one thread, in turn, medians.
* checksum_share_of_time: what checksums add to such a publication's wall time: seconds with them over seconds without
  any, less one; both kinds in turn, in the order that alternates, medians. checksum_share_of_cpu: the same of the CPU
  seconds of all five processes, gloo's threads included: what they cost where the CPUs have nothing else to do.
* delta_bytes_over_dense: of the second step of a real run on SmolLM2 (configs/smollm2-135m.toml).
* plan_seconds_per_rank: CPU seconds of one core for the slower of a policy's and a worker's plan, from the layouts on;
  Qwen2.5-7B, half of the ranks policy (tensor 4 x pipeline 2), half engines of tensor 2.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor

from megarl.models.boxes import Box
from megarl.models.families import parse_model_config, read_model_shape
from megarl.models.serving import engine_boxes
from megarl.models.shape import ModelShape
from megarl.models.table import hf_tensors, list_parameters
from megarl.parallel.grid import RankGrid
from megarl.policy.weights import rank_layout
from megarl.reshard import receiver
from megarl.reshard.blocks import WantedBoxes
from megarl.reshard.gather import gather_hf_tensors, plan_gather
from megarl.reshard.pack import pack_range
from megarl.reshard.packer import Packer
from megarl.reshard.plan import Place, PlanRequest, plan_engine_worker, plan_policy_rank
from megarl.reshard.receiver import WeightReceiver
from megarl.reshard.regions import Region, contiguous_strides, parameter_key
from megarl.reshard.sender import WeightSender, serve_weights
from megarl.reshard.session import Offer
from megarl.reshard.sources import PolicyLayout
from megarl.reshard.tally import Tally
from megarl.reshard.topology import Topology, pack_nodes
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import read_metrics

ROOT = Path(__file__).resolve().parent.parent
SMOLLM2 = ROOT / "models" / "smollm2-135m"
BUCKET_BYTES = 64 << 20
GPUS_PER_NODE = 8
LAYOUTS = (  # shape, policy tensor x pipeline x data, engines x tensor
    ("qwen2.5-7b", (4, 2, 2), (4, 2)),
    ("qwen2.5-7b", (2, 1, 4), (8, 1)),
    ("llama-3-8b", (4, 2, 2), (4, 4)),
    ("qwen2.5-32b", (8, 2, 2), (4, 4)),
    ("llama-3-70b", (8, 4, 1), (2, 8)),
    ("qwen2.5-72b", (8, 4, 2), (4, 8)),
    ("llama-3.1-405b", (8, 14, 1), (2, 16)),
)
PATHS = ("shards", "unchecked", "gather")
GRID = RankGrid(tensor=1, pipeline=2, data=1)
ENGINE_TENSOR = 3
EXAMPLES = """examples:
  python tools/bench_reshard.py                  # tables; about ten minutes on 2 cores, most of them the training run
  python tools/bench_reshard.py --json           # the same as JSON
  python tools/bench_reshard.py --no-run         # without the training run: delta_bytes_over_dense is null
"""

Targets = dict[Box, tuple[Region, ...]]


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    console = Console(stderr=True)
    results: dict[str, Any] = {"layouts": [measure_layout(*layout) for layout in LAYOUTS]}
    console.print("plans done", style="dim")
    results |= measure_wall(options.model, repeats=options.repeats)
    console.print("transfers done", style="dim")
    results["delta_bytes_over_dense"] = None if options.no_run else measure_delta(options.model)
    results["plan_seconds_per_rank"] = {str(ranks): measure_planning(ranks) for ranks in (1024, 10_240)}
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        print_tables(Console(), results)
    return 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=formatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--repeats", type=int, default=15, help="publications of each kind that are timed (default 15)")
    parser.add_argument("--no-run", action="store_true", help="leave out the training run that measures deltas")
    parser.add_argument("--model", type=Path, default=SMOLLM2, help="SmolLM2-135M as tools/smollm2.py writes it")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}; it must be at least 1")
    if not (options.model / "config.json").is_file():
        parser.error(f"no checkpoint at {options.model}; make it: python tools/smollm2.py {options.model}")
    return options


# plans


def make_targets(shape: ModelShape, *, tensor_rank: int, tensor_size: int) -> Targets:
    """What a worker wants, every box a parameter of its own."""
    boxes = engine_boxes(shape, tensor_rank=tensor_rank, tensor_size=tensor_size)
    return {box: (Region(box.tensor, 0, contiguous_strides(box.shape)),) for box in boxes}


def make_request(shape: ModelShape, topology: Topology) -> tuple[PlanRequest, list[Targets]]:
    size = topology.tensor
    targets = [make_targets(shape, tensor_rank=rank, tensor_size=size) for rank in range(size)]
    wanted = WantedBoxes(targets)
    return PlanRequest(wanted=wanted, topology=topology, itemsize=2, bucket_bytes=BUCKET_BYTES), targets


def measure_layout(name: str, policy: tuple[int, int, int], rollout: tuple[int, int]) -> dict[str, Any]:
    shape = read_shape(name)
    tensor, pipeline, data = policy
    grid = RankGrid(tensor=tensor, pipeline=pipeline, data=data)
    topology = pack_nodes(grid=grid, engines=rollout[0], tensor=rollout[1], gpus_per_node=GPUS_PER_NODE)
    request, targets = make_request(shape, topology)
    layout = PolicyLayout(shape=shape, grid=grid)
    holdings = list(layout.holdings())
    workers = [
        plan_engine_worker(request, holdings, targets[worker % topology.tensor], worker=worker)
        for worker in range(topology.num_workers)
    ]
    sent = [plan_policy_rank(request, layout.held_by(rank), rank=rank).bytes_sent for rank in range(grid.world_size)]
    model = request.wanted.distinct_elements(range(topology.tensor))
    least = min(request.wanted.elements(rank) for rank in range(topology.tensor))
    return {
        "shape": name,
        "policy": f"TP{tensor}xPP{pipeline}xDP{data}",
        "rollout": f"{rollout[0]} x TP{rollout[1]}",
        "received_over_bound_max": max(plan.received_over_bound for plan in workers),
        "sent_max_over_mean": max(sent) / statistics.mean(sent),
        "gather_received_over_bound": model / least,
    }


def read_shape(name: str) -> ModelShape:
    """One of configs/shapes/."""
    return parse_model_config(json.loads((ROOT / "configs" / "shapes" / f"{name}.json").read_text(encoding="utf-8")))


def measure_planning(ranks: int) -> float:
    shape = read_shape("qwen2.5-7b")
    grid = RankGrid(tensor=4, pipeline=2, data=ranks // 16)
    topology = pack_nodes(grid=grid, engines=ranks // 4, tensor=2, gpus_per_node=GPUS_PER_NODE)
    targets = [make_targets(shape, tensor_rank=rank, tensor_size=2) for rank in range(2)]
    layout = PolicyLayout(shape=shape, grid=grid)

    def request() -> PlanRequest:
        wanted = WantedBoxes(targets)
        return PlanRequest(wanted=wanted, topology=topology, itemsize=2, bucket_bytes=BUCKET_BYTES)

    def policy() -> None:
        rank = grid.world_size - 1
        plan_policy_rank(request(), layout.held_by(rank), rank=rank)

    def worker() -> None:
        last = topology.num_workers - 1
        plan_engine_worker(request(), layout.holdings(), targets[1], worker=last)

    return max(cpu_seconds(policy), cpu_seconds(worker))


def cpu_seconds(function: Callable[[], None]) -> float:
    """Median of five."""
    seconds = []
    for _ in range(5):
        started = time.process_time()
        function()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


# transfers


def measure_wall(model: Path, *, repeats: int) -> dict[str, float]:
    """Both paths in turn, in one set of processes."""
    rows = run_processes(transfer_main, GRID.world_size + ENGINE_TENSOR, str(model), repeats)
    wall, cpu = {}, {}
    for path in PATHS:
        turns = [[row[path][turn] for row in rows] for turn in range(1, repeats + 1)]
        wall[path] = statistics.median(max(of_rank[0] for of_rank in turn) for turn in turns)
        cpu[path] = statistics.median(sum(of_rank[1] for of_rank in turn) for turn in turns)
    return {
        "wall_ratio_to_gather": wall["shards"] / wall["gather"],
        "checksum_share_of_time": wall["shards"] / wall["unchecked"] - 1,
        "checksum_share_of_cpu": cpu["shards"] / cpu["unchecked"] - 1,
    }


def transfer_main(model: str, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """One process: policy ranks first, then workers. (wall, CPU) seconds by path; the first turn does not count."""
    rank, shape = dist.get_rank(), read_model_shape(model)
    offer = make_offer(shape)
    endpoint, store = open_session()
    seconds: dict[str, list[tuple[float, float]]] = {path: [] for path in PATHS}
    if rank < GRID.world_size:
        parameters = make_parameters(shape, rank)
        end: Any = WeightSender(endpoint, offer, parameters, rank=rank, store=store)
    else:
        tensor_rank = rank - GRID.world_size
        targets = make_targets(shape, tensor_rank=tensor_rank, tensor_size=ENGINE_TENSOR)
        parameters = {box.tensor: torch.zeros(box.shape, dtype=torch.bfloat16) for box in targets}
        end = WeightReceiver(endpoint, worker=tensor_rank, record=lambda _: targets)
    gather = GatherPath(shape, rank, parameters)
    for turn in range(repeats + 1):
        for path in PATHS if turn % 2 else reversed(PATHS):
            with unchecked() if path == "unchecked" else nullcontext(), timed(seconds[path]):
                if path == "gather":
                    gather.publish()
                else:
                    publish_shards(end, parameters, version=len(seconds["shards"]) + len(seconds["unchecked"]) + 1)
    end.close()
    return seconds


def make_offer(shape: ModelShape) -> Offer:
    return Offer(
        shape=shape,
        grid=GRID,
        virtual=1,
        spec="local",
        tensors=hf_tensors(shape),
        dtype=torch.bfloat16,
        engines=1,
        tensor=ENGINE_TENSOR,
        transport="network",
        bucket_bytes=BUCKET_BYTES,
        device="cpu",
        staging="host",
        delta=False,
    )


def publish_shards(end: WeightSender | WeightReceiver, parameters: Mapping[str, Tensor], *, version: int) -> None:
    if isinstance(end, WeightSender):
        end.publish(version)
        return
    end.begin()
    end.await_version(version)
    for name, parameter in parameters.items():
        end.fill(name, parameter)


@contextmanager
def unchecked() -> Iterator[None]:
    """Within, publications have no checksums: their headers say 0 of every part, and nobody reads the elements."""

    def pack(packer: Packer, place: Place, out: Tensor, tally: Tally) -> list[int]:
        key, start, stop = place
        with tally.time("pack_s"):
            pack_range(packer._parameters, packer._blocks[key], start, stop, out=out)
        return [0] * len(packer.parts.of(place))

    before = Packer.pack, receiver.compute_part_checksums
    Packer.pack = pack  # type: ignore[method-assign]
    receiver.compute_part_checksums = lambda _elements, parts, _checksums: [0] * len(parts)
    try:
        yield
    finally:
        Packer.pack, receiver.compute_part_checksums = before  # type: ignore[method-assign]


def make_parameters(shape: ModelShape, rank: int) -> dict[str, Tensor]:
    torch.manual_seed(rank)
    entries = list_parameters(shape, rank_layout(shape, grid=GRID, rank=rank))
    return {parameter_key(0, entry.name): torch.randn(entry.shape).to(torch.bfloat16) for entry in entries}


def open_session() -> tuple[Any, Any]:
    store, shared = None, [None]
    if dist.get_rank() == 0:
        store, shared[0] = serve_weights("127.0.0.1", timeout_s=120)  # type: ignore[call-overload]
    dist.broadcast_object_list(shared, src=0)
    return shared[0], store


class GatherPath:
    """Whole tensors to rank 0, from there to every worker, which takes its slices."""

    def __init__(self, shape: ModelShape, rank: int, parameters: dict[str, Tensor]) -> None:
        self._rank, self._parameters = rank, parameters
        ranks = range(GRID.world_size)
        entries = {at: list_parameters(shape, rank_layout(shape, grid=GRID, rank=at)) for at in ranks}
        self._plan = plan_gather(entries, hf_tensors(shape), bucket_bytes=BUCKET_BYTES, dtype=torch.bfloat16)
        self._group = dist.new_group([0, *range(GRID.world_size, dist.get_world_size())])
        tensor_rank = max(rank - GRID.world_size, 0)
        self._boxes = {
            box.tensor: box for box in engine_boxes(shape, tensor_rank=tensor_rank, tensor_size=ENGINE_TENSOR)
        }

    def publish(self) -> None:
        if self._rank >= GRID.world_size:
            self._receive()
            return
        tensors = gather_hf_tensors(self._parameters, self._plan, rank=self._rank)
        flights: list[tuple[dist.Work, Tensor]] = []
        for bucket in self._plan.buckets if self._rank == 0 else ():
            packed = torch.cat([values.reshape(-1) for _, values in (next(tensors) for _ in bucket)])
            flights.append((dist.broadcast(packed, 0, group=self._group, async_op=True), packed))
            if len(flights) > 1:  # one bucket travels while the next is gathered
                flights.pop(0)[0].wait()
        for _ in tensors:
            pass
        for work, _ in flights:
            work.wait()

    def _receive(self) -> None:
        shapes = self._plan.shapes
        for bucket in self._plan.buckets:
            sizes = [torch.Size(shapes[name]).numel() for name in bucket]
            packed = torch.empty(sum(sizes), dtype=torch.bfloat16)
            dist.broadcast(packed, 0, group=self._group)
            for name, values in zip(bucket, packed.split(sizes), strict=True):
                if name in self._boxes:
                    self._parameters[name].copy_(values.view(shapes[name])[self._boxes[name].slices])


@contextmanager
def timed(seconds: list[tuple[float, float]]) -> Iterator[None]:
    """(wall, CPU) from all processes ready to this one done."""
    dist.barrier()
    started = time.perf_counter(), time.process_time()
    yield
    seconds.append((time.perf_counter() - started[0], time.process_time() - started[1]))


def run_processes(function: Callable[..., Any], count: int, *args: Any) -> list[Any]:
    """What the function returned on each of `count` gloo ranks."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory, context.Pool(count) as pool:
        calls = [(function, rank, count, f"{directory}/store", args) for rank in range(count)]
        return pool.starmap(run_rank, calls, chunksize=1)


def run_rank(function: Callable[..., Any], rank: int, count: int, store: str, args: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    try:
        result = function(*args)
        dist.barrier()
    finally:
        dist.destroy_process_group()
    return result


# a real step


def measure_delta(model: Path) -> float:
    """Bytes that the second step of a run sent, over what all elements would have been."""
    with tempfile.TemporaryDirectory() as directory:
        overrides = [
            f"model.path={model}",
            "train.steps=2",
            f"logging.directory={directory}",
            "rollout.publish.transport=network",
            "rollout.publish.delta=true",
        ]
        megarl = Path(sys.executable).with_name("megarl")
        command = [str(megarl), "train", str(ROOT / "configs" / "smollm2-135m.toml"), *overrides]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory)
        if done.returncode:
            raise SystemExit(f"the training run failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        run = RunDirectory.open(Path(directory) / "latest")
        (*_, last) = read_metrics(run.metrics_path)
    print(f"changed elements: {last['publish/changed_share']:.4f} of all", file=sys.stderr)
    return float(last["publish/bytes_over_dense"] or 0.0)


def print_tables(console: Console, results: dict[str, Any]) -> None:
    table = Table("shape", "policy", "engines", "received / bound", "sent max / mean", "gather: received / bound")
    for row in results["layouts"]:
        figures = (row["received_over_bound_max"], row["sent_max_over_mean"], row["gather_received_over_bound"])
        table.add_row(row["shape"], row["policy"], row["rollout"], *(f"{figure:.3f}" for figure in figures))
    console.print(table)
    for name, value in results.items():
        if name != "layouts":
            console.print(f"{name}: {value}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
