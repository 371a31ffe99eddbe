"""The schema: documented, and small enough to be read."""

from megarl.config.advantage import Grpo
from megarl.config.fields import describe_type, iter_fields
from megarl.config.run import RunConfig

ENTRIES = list(iter_fields(RunConfig))


def test_every_plain_field_is_documented() -> None:
    tags = {entry.when.partition(" = ")[0] for entry in ENTRIES if entry.when}
    bare = [e.path for e in ENTRIES if not e.is_section and e.path not in tags and not e.info.description]
    assert not bare


def test_field_budget() -> None:
    methods = ("objective.", "reward.verifier.")
    again = ("eval.benchmarks.NAME.data.", "eval.benchmarks.NAME.verifier.")  # as data.train and reward.verifier
    own = {entry.path for entry in ENTRIES if not entry.is_section and not entry.path.startswith((*methods, *again))}
    assert len(own) <= 130


def test_union_members_share_a_path() -> None:
    eps = [entry for entry in ENTRIES if entry.path == "objective.advantage.eps"]
    methods = ("grpo", "quantile", "smoothed")
    assert [entry.when for entry in eps] == [f'objective.advantage.method = "{method}"' for method in methods]
    assert eps[0].info is Grpo.model_fields["eps"]


def test_optional_sections() -> None:
    optional = {entry.path for entry in ENTRIES if entry.is_optional_section}
    assert {"sft", "reward.overlong", "objective.weights.tis", "objective.auxiliary.kl"} <= optional
    assert not optional & {"train", "objective.clip", "data.train", "objective.weights", "data.system_prompt"}
    tis = next(entry for entry in ENTRIES if entry.path == "objective.weights.tis")
    assert describe_type(tis.info) == "a table, or false (off)"
