"""The theorem's own case: a state's budget against that state's entropy, where a prompt comes again in the next step.

The state is the one in which a response's first token is chosen. Its budget is that of the first tokens of all its
responses, in one update or several; what is measured is its entropy before the next step less that before this one.
Only prompts whose responses are all traced have it.
"""

from collections.abc import Mapping

import numpy as np

from megarl.theory.practice.statistics import Agreement, agree
from megarl.theory.practice.tokens import StepTokens
from megarl.theory.practice.updates import StepUpdates


class OwnStates:
    """Files in the order of their steps; of each no more is kept than the next needs."""

    def __init__(self, updates: Mapping[int, StepUpdates]) -> None:
        self._updates = updates
        self._last_step = -1
        self._last: StepTokens | None = None
        self._pairs: list[tuple[float, float]] = []

    def add(self, step: int, tokens: StepTokens) -> None:
        last, of_step = self._last, self._updates.get(self._last_step)
        if last is not None and step == self._last_step + 1 and of_step is not None:
            for prompt, budgets in last.first_budgets.items():
                if len(budgets) == last.num_responses[prompt] and prompt in tokens.first_entropy:
                    predicted = sum(of_step.rate[mini_batch] * budget for mini_batch, budget in budgets)
                    self._pairs.append((predicted, tokens.first_entropy[prompt] - last.first_entropy[prompt]))
        self._last_step, self._last = step, tokens

    def agree(self) -> Agreement | None:
        """None where no prompt came again."""
        both = np.array(self._pairs, dtype=np.float64).reshape(-1, 2)
        return agree(both[:, 0], both[:, 1])
