"""The schema: documented, and small enough to be read."""

from megarl.config.fields import iter_fields
from megarl.config.objective import Grpo
from megarl.config.run import RunConfig

ENTRIES = list(iter_fields(RunConfig))


def test_every_plain_field_is_documented() -> None:
    tags = {entry.when.partition(" = ")[0] for entry in ENTRIES if entry.when}
    bare = [e.path for e in ENTRIES if not e.is_section and e.path not in tags and not e.info.description]
    assert not bare


def test_field_budget() -> None:
    methods = ("objective.", "reward.verifier.")
    own = {entry.path for entry in ENTRIES if not entry.is_section and not entry.path.startswith(methods)}
    assert len(own) <= 120


def test_union_members_share_a_path() -> None:
    eps = [entry for entry in ENTRIES if entry.path == "objective.advantage.eps"]
    assert [entry.when for entry in eps] == ['objective.advantage.method = "grpo"']
    assert eps[0].info is Grpo.model_fields["eps"]
