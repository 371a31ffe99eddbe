"""Which prompts a step takes: a seeded permutation per epoch, resumable exactly.

The order is a function of (seed, epoch) alone and the state is one number, the prompts drawn so far; every prompt comes
once per epoch and a batch may span epochs.
"""

from typing import Any

import numpy as np

from megarl.telemetry.state import check_keys


class PromptSampler:
    """Endless batches of prompt indices. `draw` and `next_batch` are the only things that move it."""

    def __init__(self, num_prompts: int, batch: int, *, seed: int, shuffle: bool = True, digest: str = "") -> None:
        """digest: of the prompts, by which a run that goes on knows that they are the same."""
        if num_prompts < 1 or batch < 1:
            raise ValueError(f"expected at least one prompt and a batch of one, found {num_prompts} and {batch}")
        self._num_prompts = num_prompts
        self._batch = batch
        self._seed = seed
        self._shuffle = shuffle
        self.digest = digest
        self._num_drawn = 0
        self._cached: tuple[int, np.ndarray] | None = None

    @property
    def epoch(self) -> float:
        """Epochs drawn so far, in fractions."""
        return self._num_drawn / self._num_prompts

    def next_batch(self) -> list[int]:
        """The next `batch` indices into the prompt set."""
        return self.draw(self._batch)

    def draw(self, count: int) -> list[int]:
        """The next `count` indices; how many are drawn at a time does not change their order."""
        if count < 1:
            raise ValueError(f"expected to draw at least one prompt, found {count}")
        indices: list[int] = []
        while len(indices) < count:
            epoch, start = divmod(self._num_drawn, self._num_prompts)
            taken = self._order(epoch)[start : start + count - len(indices)]
            indices.extend(taken.tolist())
            self._num_drawn += len(taken)
        return indices

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; with `load_state_dict` the next batch is the one that would have come."""
        return {
            "num_prompts": self._num_prompts,
            "digest": self.digest,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "num_drawn": self._num_drawn,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` stopped; the batch size may differ, the data set and its order may not."""
        own = self.state_dict()
        check_keys(state, own, what="sampler")
        names = {
            "num_prompts": "data set's number of prompts",
            "digest": "digest of problems, answers and tokens (--allow-change data takes others)",
            "seed": "train.seed",
            "shuffle": "data.shuffle",
        }
        for key, name in names.items():
            if state[key] != own[key]:
                raise ValueError(
                    f"cannot resume the prompt order: {name} was {state[key]} when the checkpoint was written and is "
                    f"{own[key]} now; restore it or start a new run"
                )
        self._num_drawn = int(state["num_drawn"])

    def _order(self, epoch: int) -> np.ndarray:
        if self._cached is None or self._cached[0] != epoch:
            order = np.arange(self._num_prompts)
            if self._shuffle:
                entropy = (abs(self._seed), int(self._seed < 0), epoch)
                order = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy))).permutation(order)
            self._cached = (epoch, order)
        return self._cached[1]
