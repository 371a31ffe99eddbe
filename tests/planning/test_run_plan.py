"""A whole run's plan against hand-computed numbers."""

import math
import time

import pytest

from tests.planning.plans import plan_of


def test_numbers_of_llama_3_70b_by_hand() -> None:
    plan = plan_of("llama-3-70b", gib=141, gpus=64, tensor=8, pipeline=4, engines=4, rollout_tensor=8)
    assert plan.parameters == 70_553_706_496
    assert (plan.layout.data, plan.layout.nodes) == (2, 12)
    assert (plan.layout.policy_nodes, plan.layout.engine_nodes) == ((0, 7), (8, 11))
    assert [stage.stage for stage in plan.policy] == [0, 1, 3]
    # A layer's rows and columns over 8, and two norms; 20 layers a stage; the embedding on the first.
    layer = (8192 * 8192 + 10240 * 8192 + 3 * 28672 * 8192) // 8 + 2 * 8192
    assert plan.policy[0].weights == 2 * (20 * layer + 128256 // 8 * 8192)
    assert plan.policy[1].weights == 2 * 20 * layer
    # 256 responses of 2047 tokens for two data ranks, four in 8192.
    longest, half = plan.updates
    assert (longest.tokens, longest.samples, longest.micro_batches) == (2047, 128, 32)
    assert longest.bubble == 3 / 35
    assert (half.tokens, half.micro_batches, half.bubble) == (1535, math.ceil(128 / 5), 3 / 29)
    assert plan.rollout.kv_bytes_per_token == 2 * 80 * 128 * 2
    # Engines are on 4 nodes: each gets the model once, over 8 adapters of 50 GB/s.
    model = 2 * 70_553_706_496
    assert plan.publication.model_bytes == model
    assert plan.publication.sent_mean_bytes == pytest.approx(4 * model / 64)
    assert plan.publication.estimates["NVLink + InfiniBand"]["direct"] == pytest.approx(model / 8 / 50e9, rel=1e-2)
    assert plan.publication.estimates["NVLink"]["direct"] == pytest.approx(model / 8 / 450e9, rel=1e-2)


def test_a_cluster_of_sixteen_thousand_gpus_takes_seconds() -> None:
    started_s = time.process_time()
    train = ["train.prompts_per_step=448", "train.mini_batch_responses=896"]
    layout = {"gpus": 16128, "tensor": 8, "pipeline": 9, "engines": 64, "rollout_tensor": 8}
    plan = plan_of("llama-3.1-405b", *train, gib=141, **layout)
    assert time.process_time() - started_s < 3
    assert plan.layout.data == 224
    assert plan.rollout_fits


def test_overrides_that_change_memory() -> None:
    plain = plan_of("llama-3-8b", gpus=2)
    quantised = plan_of("llama-3-8b", "rollout.vllm_overrides={kv_cache_dtype = 'fp8_e4m3'}")
    assert quantised.rollout.kv_bytes_per_token * 2 == plain.rollout.kv_bytes_per_token
    with_reference = plan_of("llama-3-8b", "objective.auxiliary.kl={}", gpus=2)
    assert with_reference.worst.reference == plain.worst.weights
    delta = plan_of("llama-3-8b", "rollout.publish.delta=true", gpus=2)
    assert delta.worst.publication - plain.worst.publication == plain.publication.sent_max_bytes
