"""reasoning-gym: the task's own scorer over the entry that made the prompt."""

import logging
import math
import re

from megarl.config.data import ReasoningGymData
from megarl.records import Prompt
from megarl.rewards.final_answer import drop_thoughts, ends_in_thought, extract_answer

logger = logging.getLogger(__name__)


class GeneratedTaskScorer:
    """Builds the task once; scores are the task's, in [0, 1], and 1 is the maximum of every task.

    In reasoning-gym 0.1.25 every task gives its own answer 1, those excepted that have none to give (boxnet,
    graph_color, propositional_logic, rubiks_cube, rush_hour: they check what they are shown; a right answer gets 1).
    """

    def __init__(self, data: ReasoningGymData, *, answer_pattern: str | None = None) -> None:
        import reasoning_gym

        self._dataset = reasoning_gym.create_dataset(data.task, size=data.size, seed=data.seed, **data.options)
        self._task = data.task
        self._pattern = re.compile(answer_pattern, re.DOTALL) if answer_pattern is not None else None
        self._warned: set[str] = set()

    def __call__(self, prompt: Prompt, response: str) -> float:
        """The task's score; 0.0 when the pattern finds no answer or the task's scorer cannot read it."""
        entry = prompt.metadata.get("entry")
        if entry is None:
            raise ValueError(f"prompt {prompt.index} carries no reasoning-gym entry in its metadata")
        spoken = drop_thoughts(response, thinking=ends_in_thought(prompt.text))
        answer = extract_answer(self._pattern, spoken)
        if answer is None:
            return 0.0
        try:
            score = float(self._dataset.score_answer(answer, entry))
        except MemoryError:
            raise
        except Exception as error:  # many tasks parse the answer without guarding against what is not one
            self._warn_once(error)
            return 0.0
        if not math.isfinite(score):
            raise ValueError(f"reasoning-gym's {self._task} scored {score}")
        return score

    def _warn_once(self, error: Exception) -> None:
        kind = type(error).__name__
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("reasoning-gym's %s could not read an answer (%s: %s); it scores 0", self._task, kind, error)
