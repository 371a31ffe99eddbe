"""The names in metrics.jsonl, with their units and meaning. verl's where verl has one; TRL's for the two clip sides.

A run may log more names than these; none of these is ever used for something else.
"""

DESCRIPTIONS: dict[str, str] = {
    "step": "RL step (or SFT update), from 1",
    "policy_version": "version of the weights after this step; engines sample from it next",
    "reward/mean": "mean reward of the step's responses: verifier + overlong penalty",
    "reward/std": "population standard deviation of the rewards",
    "actor/entropy": "mean exact entropy per response token, nats",
    "actor/entropy_response_mean": "mean over responses of the mean entropy of their tokens, nats",
    "actor/logp": "mean log-prob of the response tokens, nats",
    "actor/pg_loss": "policy-gradient loss, aggregated as objective.aggregation says",
    "actor/aux_loss": "auxiliary losses, aggregated likewise",
    "actor/loss": "what the update minimised: pg_loss + aux_loss",
    "actor/ratio_mean": "mean ratio of the response tokens, at objective.ratio's level and anchor",
    "actor/ratio_max": "largest ratio of a response token",
    "actor/ratio_min": "smallest ratio of a response token",
    "actor/ratio_saturated_frac": "share of response tokens whose log ratio is beyond the overflow clamp",
    "actor/weight_mean": "mean product of the token weights",
    "actor/masked_frac": "share of response tokens with weight 0",
    "actor/advantage_positive_frac": "share of response tokens with advantage > 0",
    "actor/advantage_negative_frac": "share of response tokens with advantage < 0",
    "actor/ppo_kl": "mean of old_logp - logp over response tokens, nats",
    "actor/kl_loss": "KL to the reference weights, nats",
    "actor/grad_norm": "global gradient norm before clipping",
    "actor/lr": "learning rate, the largest of the step's updates",
    "actor/pg_clipfrac": "share of response tokens that are clipped, low, high or dual",
    "clip_ratio/low_mean": "share of response tokens clipped below the lower bound (advantage < 0)",
    "clip_ratio/high_mean": "share of response tokens clipped above the upper bound (advantage > 0)",
    "clip_ratio/dual_mean": "share of response tokens held by the dual clip (advantage < 0)",
    "clip_ratio/region_mean": "low_mean + high_mean",
    "clip_ratio/low_of_negative": "clip-low's share of the tokens with advantage < 0",
    "clip_ratio/high_of_positive": "clip-high's share of the tokens with advantage > 0",
    **{
        f"clip_ratio/{side}_q{q}": f"clip-{side}'s share of the tokens in entropy quintile {q} of 5 (5: most uncertain)"
        for side in ("low", "high")
        for q in (1, 2, 3, 4, 5)
    },
    "rule/clip_low_frac": "share of response tokens flagged by a bound from below",
    "rule/clip_high_frac": "share of response tokens flagged by a bound from above",
    "rule/dual_frac": "share of response tokens flagged by the dual clip",
    "rule/cap_frac": "share of response tokens whose weight a gate limited",
    "rule/dppo_frac": "share of response tokens that DPPO dropped",
    "rule/tis_frac": "share of response tokens whose importance weight was limited",
    "rule/importance_mask_frac": "share of response tokens dropped for their importance ratio",
    "rule/sequence_rejection_frac": "share of response tokens dropped with a mismatched response",
    "rule/opsm_frac": "share of response tokens dropped with an off-policy response",
    "rule/low_entropy_frac": "share of response tokens dropped by the 80/20 mask",
    "rule/clip_cov_frac": "share of response tokens dropped by Clip-Cov",
    "rule/clip_b_frac": "share of response tokens dropped by Clip_B",
    "rule/clip_v_frac": "share of response tokens dropped by Clip_V",
    "rule/erc_frac": "share of response tokens dropped for their entropy ratio",
    "rule/kl_cov_frac": "share of response tokens with a KL-Cov penalty",
    "rule/saturated_frac": "share of response tokens whose log ratio is beyond the overflow clamp",
    **{
        f"entropy/clip_{side}_{name}": text.format(side=side)
        for side in ("low", "high")
        for name, text in {
            "contribution": "mean of r (N - Q) on the {side} side, nats: Theorem 1's p (E[Q] - E[Q | side])",
            "difference": "E[Q] - E[Q | {side} side] under the current policy, nats",
            "surprisal": "E[-log p | {side} side] - H under the current policy, nats",
            "surprisal_contribution": "mean of r (-log p - H) on the {side} side, nats: Theorem 2's term",
        }.items()
    },
    "entropy/region_e1": "share of response tokens with advantage > 0 and -log p < H",
    "entropy/region_e2": "share of response tokens with advantage > 0 and -log p > H",
    "entropy/region_e3": "share of response tokens with advantage < 0 and -log p < H",
    "entropy/region_e4": "share of response tokens with advantage < 0 and -log p > H",
    "entropy/budget": "first-order entropy change of an update, nats per unit of learning rate; positive raises it",
    "entropy/budget_positive_kept": "its part from unclipped tokens with advantage > 0",
    "entropy/budget_positive_clipped": "its part from clipped tokens with advantage > 0",
    "entropy/budget_negative_kept": "its part from unclipped tokens with advantage < 0",
    "entropy/budget_negative_clipped": "its part from clipped tokens with advantage < 0",
    "entropy/budget_removed_low": "budget that clip-low took away; positive: it would have raised the entropy",
    "entropy/budget_removed_high": "budget that clip-high took away; positive: it would have raised the entropy",
    "entropy/budget_removed_dual": "budget that the dual clip took away; positive: it would have raised the entropy",
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
