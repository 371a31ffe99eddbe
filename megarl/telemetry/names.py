"""The names in metrics.jsonl, with their units and meaning. verl's where verl has one; TRL's for the two clip sides.

A run may log more names than these; none of these is ever used for something else.
"""

DESCRIPTIONS: dict[str, str] = {
    "step": "RL step (or SFT update), from 1",
    "policy_version": "version of the weights after this step; engines sample from it next",
    "reward/mean": "mean reward of the step's responses: verifier + overlong penalty",
    "reward/std": "population standard deviation of the rewards",
    "actor/entropy": "mean exact entropy per response token, nats",
    "actor/pg_loss": "policy-gradient loss, aggregated as objective.aggregation says",
    "actor/ppo_kl": "mean of old_logp - logp over response tokens, nats",
    "actor/kl_loss": "KL to the reference weights, nats",
    "actor/grad_norm": "global gradient norm before clipping",
    "actor/lr": "learning rate, the largest of the step's updates",
    "actor/pg_clipfrac": "share of response tokens whose gradient is clipped, either side",
    "clip_ratio/low_mean": "share of response tokens clipped below 1 - low (advantage < 0)",
    "clip_ratio/high_mean": "share of response tokens clipped above 1 + high (advantage > 0)",
    "clip_ratio/dual_mean": "share of response tokens held by the dual clip (advantage < 0)",
    "response_length/mean": "tokens per response",
    "response_length/max": "tokens of the longest response",
    "response_length/clip_ratio": "share of responses cut off at rollout.max_response_tokens",
    "prompt_length/mean": "tokens per prompt",
    "rollout/logp_diff_mean": "mean |trainer - vLLM| log-prob per response token, nats",
    "rollout/logp_diff_max": "largest |trainer - vLLM| log-prob of a response token, nats",
    "timing_s/generate": "seconds sampling responses",
    "timing_s/reward": "seconds scoring responses",
    "timing_s/old_logp": "seconds computing old_logp (trainer, before the first update) and ref_logp, if any",
    "timing_s/update": "seconds in forward, backward and optimizer of all mini-batches",
    "timing_s/publish": "seconds moving the new weights to the engines",
    "timing_s/step": "seconds of the whole step",
    "perf/tokens_per_s": "prompt and response tokens trained on, per second of the whole step",
    "sft/loss": "mean cross-entropy per answer token, nats",
}

PHASES: tuple[str, ...] = ("generate", "reward", "old_logp", "update", "publish")
"""The phases of a step in their order; `timing_s/<phase>`. Together they are at most `timing_s/step`."""
