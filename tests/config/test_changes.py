"""What a run may take when it goes on: said field by field, refused where nobody said it."""

import math
from typing import Any

import pytest

from megarl.config.changes import allows_any, describe_effect, find_changes, find_refusals
from megarl.config.run import RunConfig


def make_config(**sections: Any) -> RunConfig:
    table: dict[str, Any] = {
        "name": "tiny",
        "model": {"path": "/models/tiny"},
        "data": {"train": {"source": "reasoning_gym", "task": "chain_sum"}},
        "reward": {"verifier": {"kind": "reasoning_gym"}},
        "parallel": {"world_size": 2},
    }
    return RunConfig.model_validate(table | sections)


def effects(**sections: Any) -> dict[str, str | None]:
    return {change.path: change.effect for change in find_changes(make_config(), make_config(**sections))}


def test_equal_configurations_differ_in_nothing() -> None:
    clip = {"objective": {"clip": {"high": math.inf}}}
    assert find_changes(make_config(**clip), make_config(**clip)) == []


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"train": {"steps": 200, "export_every": 5}}, {"train.steps": "length", "train.export_every": "none"}),
        ({"parallel": {"tensor": 2, "world_size": 2}}, {"parallel.tensor": "rounding"}),
        ({"logging": {"tensorboard": True}, "name": "other"}, {"name": "none", "logging.tensorboard": "none"}),
        ({"cluster": {"gpus_per_node": 4}}, {"cluster.gpus_per_node": "none"}),
        ({"rollout": {"engines": 2, "publish": {"bucket_mib": 8}}},
         {"rollout.engines": "rounding", "rollout.publish.bucket_mib": "none"}),
        ({"policy": {"distributed_optimizer": False, "call_timeout_s": 60.0}},
         {"policy.distributed_optimizer": "rounding", "policy.call_timeout_s": "none"}),
        ({"sft": {"steps": 3, "batch_examples": 4}}, {"sft": "none"}),
        ({"reward": {"verifier": {"kind": "reasoning_gym"}, "workers": 1}}, {"reward.workers": "none"}),
        # What makes another run of it.
        ({"model": {"path": "/models/other"}}, {"model.path": None}),
        ({"policy": {"optimizer": {"lr": 1e-5}}}, {"policy.optimizer.lr": None}),
        ({"train": {"seed": 1}}, {"train.seed": None}),
        ({"rollout": {"temperature": 0.7}}, {"rollout.temperature": None}),
        ({"reward": {"verifier": {"kind": "random"}}}, {"reward.verifier": None}),
        ({"objective": {"clip": {"kind": "bapo"}}}, {"objective.clip": None}),
        ({"objective": {"weights": {"tis": {}}}}, {"objective.weights.tis": None}),
        ({"objective": {"clip": {"low": 0.1}}}, {"objective.clip.low": None}),
        ({"data": {"train": {"source": "reasoning_gym", "task": "chain_sum", "options": {"min_terms": 2}}}},
         {"data.train.options": None}),
    ],
)  # fmt: skip
def test_each_change_has_the_effect_of_its_field(sections: dict[str, Any], expected: dict[str, str | None]) -> None:
    assert effects(**sections) == expected


def test_a_change_reads_as_a_person_would_write_it() -> None:
    def shown(**sections: Any) -> list[str]:
        return list(map(str, find_changes(make_config(), make_config(**sections))))

    assert shown(objective={"clip": {"high": math.inf}}) == ["objective.clip.high: 0.2 -> inf"]
    assert shown(sft={"steps": 3, "batch_examples": 4})[0].startswith("sft: (absent) -> {steps = 3, batch_examples = 4")
    assert shown(logging={"wandb_project": "p"}) == ['logging.wandb_project: (absent) -> "p"']


def test_what_is_neither_safe_nor_allowed_is_refused_all_at_once() -> None:
    new = make_config(train={"steps": 7, "seed": 1}, objective={"clip": {"low": 0.1, "high": 0.3}})
    changes = find_changes(make_config(), new)
    problems = find_refusals(changes, [])
    assert [problem.partition(":")[0] for problem in problems] == [
        *("objective.clip.low", "objective.clip.high", "train.seed")
    ]
    assert problems[2] == (
        "train.seed: 0 -> 1: the run would go on as another one; set it back, or allow it with --allow-change "
        "train.seed"
    )
    assert [problem.partition(":")[0] for problem in find_refusals(changes, ["objective.clip"])] == ["train.seed"]
    assert find_refusals(changes, ["objective", "train.seed"]) == []
    # A path is no prefix of letters.
    assert len(find_refusals(changes, ["objective.cli", "train.seed"])) == 3


def test_a_path_that_does_not_exist_is_no_permission() -> None:
    assert find_refusals([], ["objective.clip.hihg"]) == [
        "--allow-change objective.clip.hihg: there is no such field; did you mean objective.clip.high?"
    ]
    assert find_refusals([], ["objective.clip.high", "policy.megatron_overrides"]) == []


def test_a_section_is_allowed_by_what_is_in_it() -> None:
    assert allows_any("data", ["train.seed", "data.train.path"])
    assert allows_any("data", ["data"])
    assert not allows_any("data", ["database.path", "train.data"])


def test_the_number_of_steps_says_what_follows_from_it() -> None:
    old = make_config()
    cosine = {"policy": {"optimizer": {"schedule": "cosine"}}, "objective": {"clip": {"kind": "flexec"}}}
    for sections, expected in (
        ({}, "taken"),
        (cosine, "taken; policy.optimizer.schedule, objective.clip is from here on as in a run of 200 steps"),
    ):
        new = make_config(train={"steps": 200}, **sections)
        change = next(change for change in find_changes(old, new) if change.path == "train.steps")
        assert describe_effect(change, new) == expected
