"""Where a configuration's workers lie on the cluster that it describes."""

from megarl.cli.plan_config import PlanOptions, load_planned
from tests.models.shapes import CONFIGS


def test_nodes_are_those_of_the_packing() -> None:
    topology = load_planned(CONFIGS / "llama-3-8b.json", (), PlanOptions(gpus=4, engines=3)).placed.topology
    assert topology.policy_nodes == [0] * 4
    assert topology.worker_nodes == [0] * 3
