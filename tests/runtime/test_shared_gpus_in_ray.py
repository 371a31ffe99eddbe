"""What a real Ray makes of shared GPUs. It counts GPUs that are not there: nothing asks CUDA for them."""

import asyncio
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from megarl.planning.placement import plan_placement
from megarl.planning.resources import Workers
from megarl.runtime.cluster import Placement, _find_nodes, _place, start_worker
from megarl.runtime.ray_start import start_local_ray
from megarl.runtime.shared_gpus import UNSET, visible_gpus
from megarl.runtime.workers import Worker, WorkerName
from tests.runtime.actors import Seeing


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    start_local_ray(num_cpus=8, num_gpus=4, include_dashboard=False)
    yield
    ray.shutdown()


def start(role: str, rank: int, options: dict[str, Any], env_vars: Mapping[str, str]) -> Worker[Seeing]:
    return start_worker(WorkerName(role, rank, Path("/nowhere")), Seeing, options, env_vars)


def test_an_engine_has_the_gpus_of_its_ranks_and_sees_the_others(cluster: None) -> None:
    """Four ranks on all GPUs, an engine of two workers on each pair; nothing is left for anybody else."""
    workers = Workers(ranks=4, tensor=2, engines=2, engine_tensor=2, on_gpu=True, shared=True)

    async def scenario() -> None:
        nodes = _find_nodes({})
        plan = plan_placement(nodes, workers)
        group = _place(plan, nodes, workers, given_up=threading.Event())
        assert group is not None
        placement = Placement(group, workers, plan)
        ranks = [start("policy", rank, placement.policy_rank(rank), UNSET) for rank in range(4)]
        places = [await rank.ask(Seeing.find_gpu) for rank in ranks]
        assert sorted(place.gpu for place in places) == ["0", "1", "2", "3"]
        assert [await rank.ask(Seeing.visible) for rank in ranks] == [None] * 4, "Ray set nothing"
        for index, sharing in enumerate(plan.engine_ranks):
            sees = visible_gpus(places, sharing)
            engine = start("rollout", index, placement.engine(index), {**UNSET, "CUDA_VISIBLE_DEVICES": sees})
            assert await engine.ask(Seeing.visible) == sees
            assert sees.split(",")[:2] == [places[rank].gpu for rank in sharing]
            assert sorted(sees.split(",")) == ["0", "1", "2", "3"]
        assert ray.available_resources().get("GPU", 0) == 0

    asyncio.run(asyncio.wait_for(scenario(), 300))
