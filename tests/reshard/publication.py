"""Policy ranks and engine workers as processes of their own, without Megatron and vLLM: the real sender and receiver
between parameters that are filled from numbered checkpoint tensors."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from megarl.models.boxes import Box
from megarl.models.layout import layout_of
from megarl.models.shape import ModelShape
from megarl.models.shards import fill_parameter
from megarl.models.table import ParameterEntry, hf_tensors, list_parameters
from megarl.parallel.grid import RankGrid
from megarl.reshard import plan, receiver, sender, session, signals
from megarl.reshard.fanout import Fanout
from megarl.reshard.plan import PlanRequest
from megarl.reshard.receiver import WeightReceiver
from megarl.reshard.regions import parameter_key, view_region
from megarl.reshard.sender import WeightSender, serve_weights
from megarl.reshard.session import Offer, Transport, WeightEndpoint
from megarl.reshard.stored import StoredWeights
from megarl.reshard.tally import PublishReport
from tests.dist.gpus import take_gpu
from tests.models.shapes import make_shape
from tests.reshard import mapped_files
from tests.reshard.fault_processes import Action, Processes, arm
from tests.reshard.wanted import live_parameters, targets_of

HOST = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One session's layouts and options. Peers are numbered as in a topology: policy ranks first."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    engines: int = 1
    rollout_tensor: int = 1
    transport: Transport = "network"
    delta: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    """Of policy and engines; peers share GPUs where there are fewer."""
    staging: Literal["host", "device"] = "host"
    bucket_bytes: int = 1024
    timeout_s: float = 20.0
    dtype: torch.dtype = torch.float32
    """On the wire and of the engines' parameters; the policy's are float32."""
    shape: ModelShape = field(default_factory=lambda: make_shape(hidden_size=24, ffn_size=32, vocab_size=50))
    fanout: Fanout | None = None
    """Forced, whatever the estimate says."""
    nodes: Literal["one", "an engine", "a worker"] = "one"
    """How many peers pretend to be on one machine; the policy is on another unless all are on one."""
    min_share_bytes: int | None = None
    """From which replicas and nodes share a block; None: as megarl does."""
    stored: bool = False
    """The only policy rank has no parameters: it reads boxes of the version's tensors as it packs them."""
    defence_s: float = 1.0
    """How long a peer that is waited for in vain may take to say whom it waits for; a third of megarl's own."""

    @property
    def grid(self) -> RankGrid:
        return RankGrid(tensor=self.tensor, pipeline=self.pipeline, data=self.data)

    @property
    def num_peers(self) -> int:
        return self.grid.world_size + self.engines * self.rollout_tensor

    @property
    def offer(self) -> Offer:
        return Offer(
            shape=self.shape,
            grid=self.grid,
            virtual=1,
            spec="local",
            tensors=hf_tensors(self.shape),
            dtype=self.dtype,
            engines=self.engines,
            tensor=self.rollout_tensor,
            transport=self.transport,
            bucket_bytes=self.bucket_bytes,
            device=self.device,
            staging=self.staging,
            delta=self.delta,
        )

    def node_of(self, peer: int) -> str:
        """Where the peer pretends to be."""
        worker = peer - self.grid.world_size
        match self.nodes:
            case "one":
                return "node"
            case "an engine":
                return f"node-{worker // self.rollout_tensor}" if worker >= 0 else "policy"
            case "a worker":
                return f"node-{worker}" if worker >= 0 else "policy"


def make_checkpoint(shape: ModelShape, version: int) -> dict[str, Tensor]:
    """Random tensors of a version; an odd version changes one element in 37 of the version before."""
    generator = torch.Generator().manual_seed(version - version % 2)
    tensors = {name: torch.randn(dims, generator=generator) for name, dims in hf_tensors(shape).items()}
    if version % 2:
        for tensor in tensors.values():
            tensor.view(-1)[::37] += 1
    return tensors


class PolicyRank:
    """A sender and parameters that take the values of any version."""

    def __init__(self, setting: Setting, endpoint: WeightEndpoint, *, rank: int, store: dist.Store | None) -> None:
        position = setting.grid.position(rank)
        layout = layout_of(
            setting.shape,
            tensor_rank=position.tensor,
            tensor_size=setting.tensor,
            pipeline_rank=position.pipeline,
            pipeline_size=setting.pipeline,
        )
        self._setting = setting
        self._entries: Sequence[ParameterEntry] = list_parameters(setting.shape, layout)
        if setting.transport == "mapped" and setting.device == "cpu":
            self._parameters = mapped_files.make_parameters(self._entries)
        else:
            self._parameters = {
                parameter_key(entry.chunk, entry.name): torch.empty(entry.shape, device=setting.device)
                for entry in self._entries
            }
        self._stored: dict[str, Tensor] = {}
        held = StoredWeights(self._read) if setting.stored else self._parameters
        self.end = WeightSender(endpoint, setting.offer, held, rank=rank, store=store)

    def _read(self, box: Box) -> Tensor:
        return self._stored[box.tensor][box.slices]

    def publish(self, version: int) -> PublishReport:
        """Take the values of a version and send them."""
        tensors = make_checkpoint(self._setting.shape, version)
        if self._setting.stored:
            self._stored = tensors
            return self.end.publish(version)
        for entry in self._entries:
            parameter = self._parameters[parameter_key(entry.chunk, entry.name)]
            fill_parameter(parameter, entry, lambda box: tensors[box.tensor][box.slices])
        return self.end.publish(version)


class EngineWorker:
    """A receiver and parameters, zeros at first."""

    def __init__(self, setting: Setting, endpoint: WeightEndpoint, *, worker: int) -> None:
        self._setting = setting
        self._live = live_parameters(
            setting.shape, rank=worker % setting.rollout_tensor, tensor_size=setting.rollout_tensor
        )
        targets = targets_of(self._live)
        self._parameters = self._zeros()
        device = setting.device if setting.device == "cpu" else f"cuda:{torch.cuda.current_device()}"
        self.end = WeightReceiver(endpoint, worker=worker, record=lambda _: targets, device=device)

    def _zeros(self) -> dict[str, Tensor]:
        return {
            parameter.name: torch.zeros(parameter.shape, dtype=self._setting.dtype, device=self._setting.device)
            for parameter in self._live
        }

    def publish(self, version: int) -> bool:
        """Receive and install a version; does the worker hold exactly that then?"""
        self.end.begin()
        self.end.await_version(version)
        for name in self.end.parameters:
            self.end.fill(name, self._parameters[name])
        return self.holds(version)

    def holds(self, version: int) -> bool:
        """Are the parameters, to the bit, those of the version (of none for 0), with zeros in the padding?"""
        expected = self._zeros()
        if version:
            tensors = make_checkpoint(self._setting.shape, version)
            for parameter in self._live:
                for box, region in parameter.regions():
                    view = view_region(expected[parameter.name], region, (0,) * len(box.shape), box.shape)
                    view.copy_(tensors[box.tensor][box.slices])
        return all(torch.equal(self._parameters[name], expected[name]) for name in expected)


def join(
    setting: Setting, endpoint: WeightEndpoint, *, peer: int, store: dist.Store | None = None
) -> PolicyRank | EngineWorker:
    """One peer's end, connected; it makes this process pretend what the setting says of nodes and fan-out."""
    if setting.transport == "mapped" and setting.device == "cpu":
        mapped_files.stand_in()
    sender.node_name = receiver.node_name = lambda: setting.node_of(peer)  # type: ignore[assignment]
    signals._DEFENCE_S = setting.defence_s
    plan._MIN_SHARE_BYTES = 1 << 22 if setting.min_share_bytes is None else setting.min_share_bytes
    sender.await_request = receiver.await_request = _force_fanout(setting.fanout)  # type: ignore[assignment]
    if setting.device == "cuda":
        torch.cuda.set_device(take_gpu(peer, setting.num_peers))
    if peer < setting.grid.world_size:
        return PolicyRank(setting, endpoint, rank=peer, store=store)
    return EngineWorker(setting, endpoint, worker=peer - setting.grid.world_size)


def _force_fanout(fanout: Fanout | None) -> Any:
    def await_request(*args: Any, **kwargs: Any) -> PlanRequest:
        request = session.await_request(*args, **kwargs)
        return replace(request, fanout=fanout) if fanout else request

    return await_request


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Of one process."""

    rss_mib: float
    descriptors: int
    threads: int
    keys: int
    """In the store that it serves."""


class Peer:
    """One process of a session; see fault_processes.Processes."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._store: dist.Store | None = None
        self._member: PolicyRank | EngineWorker | None = None

    def serve(self, timeout_s: float) -> WeightEndpoint:
        """On peer 0: open a session."""
        self._store, endpoint = serve_weights(HOST, timeout_s=timeout_s)
        return endpoint

    def join(self, setting: Setting, endpoint: WeightEndpoint) -> tuple[Fanout, float, int]:
        """Connect; (fan-out, bytes received over the fewest possible, messages sent a version)."""
        self._member = join(setting, endpoint, peer=self._number, store=self._store)
        plan_of_peer = self._member.end.plan
        return plan_of_peer.fanout, plan_of_peer.received_over_bound, len(plan_of_peer.sends)

    def join_as(self, setting: Setting, endpoint: WeightEndpoint, peer: int) -> None:
        """Connect in the place of a peer."""
        self._member = join(setting, endpoint, peer=peer)

    def publish(self, version: int) -> PublishReport | bool:
        """One version; a policy rank's report, or whether the worker then holds exactly that version."""
        return self._live.publish(version)

    def publish_many(self, versions: range) -> Resources:
        """Version after version; what this process holds in the end."""
        for version in versions:
            self.publish(version)
        gc.collect()
        process = psutil.Process()
        return Resources(
            rss_mib=process.memory_info().rss / 2**20,
            descriptors=process.num_fds(),
            threads=process.num_threads(),
            keys=self._store.num_keys() if self._store else 0,
        )

    def holds(self, version: int) -> bool:
        """Of a worker: are its parameters those of the version, to the bit?"""
        assert isinstance(self._live, EngineWorker)
        return self._live.holds(version)

    def arm(self, action: Action, after: int) -> None:
        """Fail at a message to come."""
        arm(action, after=after)

    def leave(self) -> None:
        """End the session on this side."""
        if self._member is not None:
            self._member.end.close()
        self._member = self._store = None

    @property
    def _live(self) -> PolicyRank | EngineWorker:
        assert self._member is not None
        return self._member


@dataclass(frozen=True, kw_only=True)
class PeerResult:
    """What came of one session on one peer."""

    fanout: Fanout
    received_over_bound: float
    num_sends: int
    versions: tuple[Any, ...]
    """Of each: a policy rank's report; on a worker, whether it then held exactly that version."""


def connect(processes: Processes, setting: Setting) -> list[tuple[Fanout, float, int]]:
    """A session of the setting over the first of the processes; see Peer.join."""
    (endpoint,) = processes.call([0], "serve", setting.timeout_s)
    return processes.call(range(setting.num_peers), "join", setting, endpoint)


def run(setting: Setting, versions: Sequence[int]) -> list[PeerResult]:
    """A session of its own, in processes of their own."""
    peers = range(setting.num_peers)
    with Processes(setting.num_peers, Peer) as processes:
        plans = connect(processes, setting)
        by_version = [processes.call(peers, "publish", version) for version in versions]
        processes.call(reversed(peers), "leave")
    return [
        PeerResult(fanout=fanout, received_over_bound=received, num_sends=sends, versions=versions_of_peer)
        for (fanout, received, sends), *versions_of_peer in zip(plans, *by_version, strict=True)
    ]
