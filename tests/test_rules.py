"""Names of the rules that act on tokens, and back."""

import pytest

from megarl.rules import Rule, rule_flags, rule_names


def test_names_of_flags_and_back() -> None:
    for flags in (0, Rule.CLIP_HIGH, Rule.CLIP_HIGH | Rule.TIS | Rule.SATURATED, *Rule):
        assert rule_flags(rule_names(int(flags))) == flags
    assert rule_names(0) == ""
    assert rule_names(int(Rule.TIS | Rule.CLIP_HIGH)) == "clip_high+tis"


def test_a_name_of_no_rule_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="no rule is called 'clip_hi'; there are clip_low, clip_high, dual"):
        rule_flags("clip_high+clip_hi")
