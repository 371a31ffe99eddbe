"""A first step whose responses nearly all run to the limit: said at once and loudly, with the likely cause.

Such a run learns nothing but costs as much as any other. Most often the model ends its turns with a token that is no
stop, or it was never taught to end them.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from megarl.data.stops import StopConditions
from megarl.records import Rollout

LOUD_SHARE = 0.95
"""Share of responses cut off at the limit from which it is told."""
_TELLING_SHARE = 0.1
"""Share of the cut ones that must contain a control token: an untrained model writes any of them now and then."""


def describe_cut_off(rollouts: Sequence[Rollout], stops: StopConditions, *, limit: int) -> str | None:
    """What to tell about a step's responses when at least LOUD_SHARE of them reached `limit` tokens; else None."""
    cut = [rollout for rollout in rollouts if rollout.stop_reason == "length"]
    if not rollouts or len(cut) < LOUD_SHARE * len(rollouts):
        return None
    share = len(cut) / len(rollouts)
    in_force = "; ".join(stops.describe()) or "nothing"
    return (
        f"{share:.0%} of the first {len(rollouts)} responses ran to rollout.max_response_tokens = {limit}.\n"
        f"What stops a response: {in_force}.\n"
        f"Likely cause: {_likely_cause(cut, stops, limit=limit)}."
    )


def _likely_cause(cut: Sequence[Rollout], stops: StopConditions, *, limit: int) -> str:
    written = Counter(
        token for rollout in cut for token in np.unique(rollout.response).tolist() if token in stops.names
    )
    passed = [
        (token, count)
        for token, count in written.most_common()
        if token not in stops.sources and count >= _TELLING_SHARE * len(cut)
    ]
    if passed:
        token, count = passed[0]
        return (
            f"{count} of them contain {stops.names[token]} (id {token}), which stops nothing; if the model ends its "
            f"turns with it, set rollout.stop_token_ids = [{token}]"
        )
    if stops.untold is not None:
        return (
            f"the chat template ends a turn with the text {stops.untold!r}, which is no token; set rollout.stop_strings"
        )
    return (
        "hardly one of them contains a control token that could have ended it: the limit is too small for this model's "
        f"answers (raise rollout.max_response_tokens = {limit}), or the model does not end its turns in this form of "
        "prompt (a base model: warm it up with `megarl sft`, or set rollout.stop_strings)"
    )
