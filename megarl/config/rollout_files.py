"""How much of the disk rollouts/ takes, and how often it is written where nobody has said.

Bytes per response token were measured on files of 64 responses of 1,000 tokens with random numbers, which compress
worst (zstd): 13.3 without a trace, 47.2 with one; a response of no length takes about 200.
"""

from megarl.config.run import RunConfig

BUDGET_BYTES = 20 * 10**9
"""What a run's rollouts may take where logging.rollouts_every is absent."""

_TOKEN_BYTES = 14
_REFERENCE_BYTES = 4
_TRACED_BYTES = 34
_RESPONSE_BYTES = 200


def rollouts_interval(config: RunConfig) -> int:
    """Steps from one file to the next; 0: none is written.

    logging.rollouts_every; where that is absent the smallest with which the files of the whole run stay within
    BUDGET_BYTES even if every response is as long as it may be.
    """
    every = config.logging.rollouts_every
    if every is not None:
        return every
    files = max(1, BUDGET_BYTES // step_bytes(config))
    return config.train.steps // (files + 1) + 1


def step_bytes(config: RunConfig) -> int:
    """Bytes of one file whose responses are as long as they may be."""
    responses, length = config.train.responses_per_step, config.rollout.max_response_tokens
    per_token = _TOKEN_BYTES + (_REFERENCE_BYTES if config.objective.auxiliary.kl is not None else 0)
    traced = min(config.logging.traced_responses, responses)
    prompts = responses * 8 * config.rollout.max_prompt_tokens
    return responses * (_RESPONSE_BYTES + per_token * length) + traced * _TRACED_BYTES * length + prompts


def run_bytes(config: RunConfig) -> int:
    """Bytes of all files of a run, at most."""
    every = rollouts_interval(config)
    return config.train.steps // every * step_bytes(config) if every else 0


def describe_rollout_files(config: RunConfig) -> str:
    """One line: which steps are written, and the room they take."""
    every = rollouts_interval(config)
    if not every:
        return "rollouts/: none is written (logging.rollouts_every is 0)"
    files = config.train.steps // every
    why = " (chosen: logging.rollouts_every is absent)" if config.logging.rollouts_every is None else ""
    which = "every step" if every == 1 else f"every {every} steps"
    return f"rollouts/: {which}{why}, {files} files, {run_bytes(config) / 1e9:.3g} GB at most"
