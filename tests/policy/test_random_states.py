"""A checkpoint holds no state of a random generator, because nothing of a run draws from one: every random choice is a
hash of (seed, step, sample, position) or a generator made for it alone."""

import ast
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

import megarl
from megarl.controller.batching import shard_step
from megarl.objective.tokens import Controls
from megarl.parallel.batches import BatchShard
from megarl.policy.worker import MegatronWorker
from tests.policy.ranks import make_checkpoint, make_config, make_samples, run_workers

OWN_GENERATORS = {"Random", "Generator", "SeedSequence", "PCG64", "Philox"}
"""Made from a seed where it is needed; without one they would ask the machine."""


def generators() -> dict[str, bytes]:
    """Every state that a process of the policy has."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    states: dict[str, Any] = {
        "random": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state().tolist(),
        "megatron": {name: state.tolist() for name, state in get_cuda_rng_tracker().get_states().items()},
    }
    return {name: pickle.dumps(state) for name, state in states.items()}


def test_a_policy_rank_moves_no_generator(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model")
    # Rules that choose at random, a reference, dropped tokens.
    objective = {
        "auxiliary": {"kl": {"coefficient": 0.5}, "entropy": {}},
        "weights": {"clip_cov": {}},
    }
    config = make_config(path, objective=objective, parallel={"tensor": 2, "world_size": 2})
    (moved,) = run_workers([(config, (shard_step(make_samples(16), config),))], step_and_compare)
    assert moved == {"random": False, "numpy": False, "torch": False, "megatron": False}


def step_and_compare(worker: MegatronWorker, config: Any, rank: int, shards: list[BatchShard]) -> dict[str, bool]:
    before = generators()
    worker.score(shards[0])
    for index in range(2):
        worker.train_mini_batch(index, Controls(step=1, seed=0))
    worker.reset_reference()
    after = generators()
    return {name: after[name] != state for name, state in before.items()}


def test_no_module_draws_from_a_shared_generator() -> None:
    """But for `megarl.theory`, which is no part of a run."""
    package = Path(megarl.__file__).parent
    found = []
    for path in sorted(set(package.rglob("*.py")) - set((package / "theory").iterdir())):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and _draws(node):
                found.append(f"{path.relative_to(package)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def _draws(node: ast.Attribute) -> bool:
    owner = ast.unparse(node.value)
    if owner in ("random", "np.random", "numpy.random"):
        return node.attr not in OWN_GENERATORS
    return owner == "torch" and node.attr in {
        *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "dropout"),
        *("rand_like", "randn_like", "randint_like"),
    }
