"""The names in metrics.jsonl, with how they merge, their units and meaning. verl's where verl has one; TRL's for the
two clip sides.

A run may log more names than these; none of these is ever used for something else.
"""

from typing import Literal

Merge = Literal["sum", "mean", "std", "max", "min", "last"]
"""How the values of several sources (ranks, engines, micro-batches, updates) become one, by `telemetry.metrics`. A mean
carries its sum and its count. Seconds that ranks or engines spend side by side are those of the slowest: max. What
belongs to a step as a whole is the last value set."""

MEMORY_PHASES: dict[str, dict[str, str]] = {
    "policy": {
        "generate": "from a publication to the next step's first pass",
        "score": "passes for old_logp and ref_logp",
        "update": "all mini-batches",
        "wake": "with cluster.colocate: it has given way",
        "publish": "its part of the publication",
    },
    "engine": {
        "generate": "from a publication to the next, awake",
        "sleep": "with cluster.colocate: the policy works",
        "wake": "with cluster.colocate: it has memory for weights",
        "publish": "until the weights are installed",
    },
}
"""By role the phases in which a process's memory is measured, in a step's order, and what each is for the role."""

_MEMORY_KINDS: dict[str, str] = {
    "max": "most at once in phase {phase} ({about}) of the {role} process that had most. CPU: its resident set, "
    "libraries and shared pages included (proc(5): VmHWM, reset as the phase begins). CUDA: reserved by torch's "
    "allocator",
    "end": "likewise at the end of phase {phase}: what stays (CPU: VmRSS)",
    "tensors_max": "likewise, CUDA: most at once of tensors in that allocator, in phase {phase}",
    "gpu_max": "most at once in phase {phase} on the fullest GPU of a {role} process, by all processes there: in use "
    "at the phase's end (cudaMemGetInfo), and what the process's allocator had reserved more before",
}
"""Of a role's phase, in GiB."""

_DECLARED: dict[str, tuple[Merge, str]] = {
    "step": ("last", "RL step (or SFT update), from 1"),
    "policy_version": ("max", "version of the weights after this step; engines sample from it next"),
    "reward/mean": (
        "mean",
        "mean reward of the step's responses: verifier's (times reward.truncated_factor where cut off) "
        "+ overlong penalty + bonus",
    ),
    "reward/std": ("std", "population standard deviation of the rewards"),
    "reward/max": ("max", "largest reward of a response"),
    "reward/verifier_mean": ("mean", "mean of what the verifier gave"),
    "reward/correct_mean": (
        "mean",
        "share of correct responses (reward.correct_from); 0 where the verifier knows none",
    ),
    "reward/overlong_mean": ("mean", "mean overlong penalty, at most 0"),
    "reward/timeouts": ("sum", "responses whose verifier ran out of time; they count as wrong"),
    "reward/crashes": ("sum", "responses whose verifier crashed; they count as wrong"),
    "shaping/perplexity_bonus_mean": ("mean", "mean bonus of objective.shaping.perplexity, part of the reward"),
    "shaping/perplexity_omega": ("mean", "weight of that bonus in this step"),
    "sampler/generations": ("sum", "rounds of sampling that the step needed"),
    "sampler/generated_groups": ("sum", "groups of responses sampled, dropped ones included"),
    "sampler/kept_groups": ("sum", "groups among them with both correct and wrong responses"),
    "sampler/reward_mean_all": ("mean", "mean reward of all sampled responses, dropped groups included"),
    "actor/entropy": ("mean", "mean exact entropy per response token, nats"),
    "actor/entropy_response_mean": ("mean", "mean over responses of the mean entropy of their tokens, nats"),
    "actor/old_entropy": (
        "mean",
        "mean exact entropy per response token before the first update, nats; what controllers see",
    ),
    "actor/entropy_over_start": ("mean", "actor/old_entropy over that of the run's first step"),
    "actor/logp": ("mean", "mean log-prob of the response tokens, nats"),
    "actor/pg_loss": ("mean", "policy-gradient loss, aggregated as objective.aggregation says"),
    "actor/aux_loss": ("mean", "auxiliary losses, aggregated likewise"),
    "actor/loss": ("mean", "what the update minimised: pg_loss + aux_loss"),
    "actor/ratio_mean": ("mean", "mean ratio of the response tokens, at objective.ratio's level and anchor"),
    "actor/ratio_max": ("max", "largest ratio of a response token"),
    "actor/ratio_min": ("min", "smallest ratio of a response token"),
    "actor/ratio_saturated_frac": ("mean", "share of response tokens whose log ratio is beyond the overflow clamp"),
    "actor/weight_mean": ("mean", "mean product of the token weights"),
    "actor/masked_frac": ("mean", "share of response tokens with weight 0"),
    "actor/advantage_positive_frac": ("mean", "share of response tokens with advantage > 0"),
    "actor/advantage_negative_frac": ("mean", "share of response tokens with advantage < 0"),
    "actor/ppo_kl": ("mean", "mean of old_logp - logp over response tokens, nats"),
    "actor/kl_loss": ("mean", "KL to the reference weights, nats"),
    "actor/grad_norm": ("mean", "global gradient norm before clipping"),
    "actor/lr": ("max", "learning rate, the largest of the step's updates"),
    "actor/pg_clipfrac": ("mean", "share of response tokens that are clipped, low, high or dual"),
    "clip_ratio/low_mean": ("mean", "share of response tokens with ratio below lo and advantage < 0, masked ones too"),
    "clip_ratio/high_mean": ("mean", "share of response tokens with ratio above hi and advantage > 0, masked ones too"),
    "clip_ratio/dual_mean": ("mean", "share of response tokens held by the dual clip (advantage < 0), masked ones too"),
    "clip_ratio/low_effective": ("mean", "clip_ratio/low_mean without tokens that a mask gave weight 0"),
    "clip_ratio/high_effective": ("mean", "clip_ratio/high_mean without tokens that a mask gave weight 0"),
    "clip_ratio/region_mean": ("mean", "low_mean + high_mean"),
    "clip_ratio/low_of_negative": ("mean", "clip-low's share of the tokens with advantage < 0"),
    "clip_ratio/high_of_positive": ("mean", "clip-high's share of the tokens with advantage > 0"),
    **{
        f"clip_ratio/{side}_q{q}": (
            "mean",
            f"clip-{side}'s share of the tokens in entropy quintile {q} of 5 (5: most uncertain)",
        )
        for side in ("low", "high")
        for q in (1, 2, 3, 4, 5)
    },
    "clip_bound/low_mean": (
        "mean",
        "mean distance 1 - lo of the lower bound from 1, over response tokens that have one",
    ),
    "clip_bound/high_mean": (
        "mean",
        "mean distance hi - 1 of the upper bound from 1, over response tokens that have one",
    ),
    **{
        f"matched/{side}_{name}": ("mean", text.format(side=side, sign=sign))
        for side, sign in (("low", "< 0"), ("high", "> 0"))
        for name, text in {
            "beyond": "share of response tokens with advantage {sign} that clip-{side} would drop, were it no control",
            "dropped": "share of response tokens with advantage {sign} that the control's coin dropped in their place",
        }.items()
    },
    "control/flexec_low_at_0.5": ("last", "FlexEC's distance 1 - lo for a token of probability 0.5"),
    "control/flexec_high_at_0.5": ("last", "FlexEC's distance hi - 1 for a token of probability 0.5"),
    "control/flexec_raising": ("last", "1 while FlexEC's oscillating schedule raises the entropy, else 0"),
    "control/loop_knob": (
        "mean",
        "place of a closed loop's bounds, 0 to 1; 1: those that raise the entropy most; clip_bound/ has them",
    ),
    "control/loop_wanted": ("mean", "entropy budget that the loop asks for, as a share of its size without bounds"),
    "control/loop_predicted": ("mean", "share that the bounds it chose were to give, to first order"),
    "control/loop_measured": ("mean", "share that the update's own pass has found: entropy/budget over that size"),
    "control/loop_entropy": (
        "mean",
        "entropy before an update as the loop estimates it from the mini-batch's tokens, nats per token",
    ),
    "control/loop_offset": ("last", "part of control/loop_wanted that errors of earlier steps have added up to"),
    "control/entropy_coefficient": ("last", "coefficient of the entropy bonus in this step; 0: it does not act"),
    "control/entropy_target": ("last", "entropy that the controller steers to, nats per token"),
    "control/positive_scale": ("last", "factor on tokens with advantage > 0 in this step"),
    "control/negative_scale": ("last", "factor on tokens with advantage < 0 in this step"),
    "control/focal_power": ("last", "FADE's exponent alpha in this step; 1: hard prompts weigh no more than others"),
    "control/group_entropy_low": ("last", "entropy of a group, nats, below which GEPO shrinks advantages > 0"),
    "control/group_entropy_high": ("last", "entropy of a group, nats, above which GEPO shrinks advantages < 0"),
    "control/stare_acts": ("last", "1 while STARE weighs tokens, else 0"),
    "control/reference_resets": ("last", "renewals of the reference weights so far"),
    "rule/cap_frac": ("mean", "share of response tokens whose weight a gate limited"),
    "rule/dppo_frac": ("mean", "share of response tokens that DPPO dropped"),
    "rule/tis_frac": ("mean", "share of response tokens whose importance weight was limited"),
    "rule/importance_mask_frac": ("mean", "share of response tokens dropped for their importance ratio"),
    "rule/sequence_rejection_frac": ("mean", "share of response tokens dropped with a mismatched response"),
    "rule/opsm_frac": ("mean", "share of response tokens dropped with an off-policy response"),
    "rule/low_entropy_frac": ("mean", "share of response tokens dropped by the 80/20 mask"),
    "rule/clip_cov_frac": ("mean", "share of response tokens dropped by Clip-Cov"),
    "rule/clip_b_frac": ("mean", "share of response tokens dropped by Clip_B"),
    "rule/clip_v_frac": ("mean", "share of response tokens dropped by Clip_V"),
    "rule/erc_frac": ("mean", "share of response tokens dropped for their entropy ratio"),
    "rule/kl_cov_frac": ("mean", "share of response tokens with a KL-Cov penalty"),
    "rule/matched_frac": ("mean", "share of response tokens that a coin dropped in the place of clipped ones"),
    **{
        f"entropy/clip_{side}_{name}": ("mean", text.format(beyond=beyond, sign=sign))
        for side, beyond, sign in (("low", "< lo", "raises"), ("high", "> hi", "lowers"), ("dual", "> dual", "raises"))
        for name, text in {
            "contribution": "mean of r (N - Q) over r {beyond}, any sign of A, nats: Theorem 1's term ({sign})",
            "contribution_weighted": "sum of aggregation weight * r (N - Q) over r {beyond}: the same, with states "
            "weighing as in the loss",
            "difference": "E[Q] - E[Q | r {beyond}] under the current policy, any sign of A, nats",
            "surprisal": "E[-log p | r {beyond}] - H under the current policy, any sign of A, nats",
            "surprisal_contribution": "mean of r (-log p - H) over r {beyond}, any sign of A: Theorem 2's ({sign})",
        }.items()
    },
    "entropy/region_e1": ("mean", "share of response tokens with advantage > 0 and -log p < H"),
    "entropy/region_e2": ("mean", "share of response tokens with advantage > 0 and -log p > H"),
    "entropy/region_e3": ("mean", "share of response tokens with advantage < 0 and -log p < H"),
    "entropy/region_e4": ("mean", "share of response tokens with advantage < 0 and -log p > H"),
    "entropy/budget": (
        "mean",
        "first-order entropy change of one plain gradient step, nats per unit of learning rate; positive "
        "raises it; signs and shares compare, sizes do not (Adam)",
    ),
    "entropy/budget_positive_kept": ("mean", "its part from unclipped tokens with advantage > 0"),
    "entropy/budget_positive_clipped": ("mean", "its part from clipped tokens with advantage > 0"),
    "entropy/budget_negative_kept": ("mean", "its part from unclipped tokens with advantage < 0"),
    "entropy/budget_negative_clipped": ("mean", "its part from clipped tokens with advantage < 0"),
    "entropy/budget_removed_low": (
        "mean",
        "budget that clip-low took away; positive: it would have raised the entropy",
    ),
    "entropy/budget_removed_high": (
        "mean",
        "budget that clip-high took away; positive: it would have raised the entropy",
    ),
    "entropy/budget_removed_dual": (
        "mean",
        "budget that the dual clip took away; positive: it would have raised the entropy",
    ),
    "response_length/mean": ("mean", "tokens per response"),
    "response_length/max": ("max", "tokens of the longest response"),
    "response_length/clip_ratio": ("mean", "share of responses cut off at rollout.max_response_tokens"),
    "prompt_length/mean": ("mean", "tokens per prompt"),
    "rollout/logp_diff_mean": ("mean", "mean |trainer - vLLM| log-prob per response token, nats"),
    "rollout/logp_diff_max": ("max", "largest |trainer - vLLM| log-prob of a response token, nats"),
    "rollout/restarts": ("sum", "engines that died or hung and were started again"),
    "rollout/regenerated": ("sum", "responses generated again because their engine was lost before they had come"),
    "rollout/regenerated_compared": (
        "sum",
        "finished responses that were generated once more beside those, to see whether their tokens are the same",
    ),
    "rollout/regenerated_differences": (
        "sum",
        "those among them whose tokens were not the same: the engines depend on what they sample beside a response",
    ),
    "timing_s/generate": ("sum", "seconds sampling responses; they are decoded and scored meanwhile"),
    "timing_s/reward": ("sum", "seconds that scoring took beyond the sampling"),
    "timing_s/sleep": (
        "sum",
        "with cluster.colocate: seconds in which engines gave their memory back and the policy took its own",
    ),
    "timing_s/old_logp": (
        "sum",
        "seconds computing old_logp (trainer, before the first update) and ref_logp, if any; absent where the only "
        "update's own forward gives them",
    ),
    "timing_s/update": ("sum", "seconds in forward, backward and optimizer of all mini-batches"),
    "timing_s/reset_reference": ("sum", "seconds renewing the reference weights"),
    "timing_s/publish": ("sum", "seconds moving the new weights to the engines"),
    "timing_s/wake": (
        "sum",
        "with cluster.colocate: its seconds in which the policy gave its memory back and engines took theirs",
    ),
    "timing_s/restart": ("sum", "seconds of the two waiting for engines that are started again"),
    "timing_s/publish_pack": (
        "max",
        "its seconds copying out of the policy's parameters (on a CPU with checksums, one pass), slowest rank",
    ),
    "timing_s/publish_checksum": (
        "max",
        "its seconds in the policy's checksums, where they are a pass of their own, slowest rank",
    ),
    "timing_s/publish_wire": ("max", "its seconds waiting for transfer and the workers' checks, slowest rank"),
    "timing_s/publish_drain": ("max", "its seconds until running requests had ended, slowest engine"),
    "timing_s/publish_install": (
        "max",
        "its seconds putting staged weights into the model, slowest engine; sampling rests",
    ),
    "timing_s/publish_resume": ("max", "its seconds until sampling went on, slowest engine"),
    "timing_s/step": ("sum", "seconds of the whole step, up to its own files"),
    "timing_s/write_wait": ("sum", "its seconds waiting for the files of the step before"),
    "timing_s/checkpoint": (
        "sum",
        "seconds between the step before and this one while the policy's state was copied for a checkpoint",
    ),
    "timing_s/eval": ("sum", "seconds of the evaluation after this step, which are not in timing_s/step"),
    "timing_s/write": ("sum", "seconds writing this step's rollouts, beside the next step"),
    "publish/bytes": ("sum", "bytes of weights that the policy sent to the engines"),
    "publish/messages": ("sum", "messages in which they were sent"),
    "publish/changed_share": (
        "mean",
        "share of the sent elements that differ from the publication before (with publish.delta)",
    ),
    "publish/bytes_over_dense": ("mean", "bytes sent over what all elements would have been (with publish.delta)"),
    "memory/asleep_max_gib": (
        "max",
        "GiB of its GPU that the engine kept while it slept which kept most (CUDA with cluster.colocate)",
    ),
    "memory/gpu_gib": ("min", "GiB of memory that the run's smallest GPU has (CUDA)"),
    **{
        f"memory/{role}_{phase}_{kind}_gib": ("max", "GiB, " + text.format(role=role, phase=phase, about=about))
        for role, phases in MEMORY_PHASES.items()
        for phase, about in phases.items()
        for kind, text in _MEMORY_KINDS.items()
    },
    "perf/tokens_per_s": ("mean", "prompt and response tokens trained on, per second of the whole step"),
    "perf/loop_stall_max": (
        "max",
        "longest time in seconds for which the driver's event loop could do nothing else",
    ),
    "sft/loss": ("mean", "mean cross-entropy per answer token, nats"),
}
"""Each name with how it merges and what it means, with its unit."""

MERGES: dict[str, Merge] = {name: merge for name, (merge, _) in _DECLARED.items()}
DESCRIPTIONS: dict[str, str] = {name: text for name, (_, text) in _DECLARED.items()}

_EVALUATION = "eval/"

EVALUATION_MEASURES: dict[str, str] = {
    "mean@N": "mean over problems of the share of their N responses that are correct",
    "pass@K": "mean over problems of the probability that one of K responses is correct (unbiased, from N)",
    "maj@K": "mean over problems of the probability that the most frequent answer of K responses is correct (from N)",
    "length_mean": "tokens per response",
    "truncated": "share of responses cut off at eval.max_tokens",
    "entropy": "minus the mean log-prob per token of the distribution that was sampled from (eval.top_p), nats: an "
    "estimate of its entropy",
}
"""Of `eval/<benchmark>/<measure>`, K and N numbers: each is of the whole evaluation, and merges with nothing."""


def evaluation_name(benchmark: str, measure: str) -> str:
    """The name in metrics.jsonl."""
    return f"{_EVALUATION}{benchmark}/{measure}"


def memory_name(role: str, phase: str, kind: str) -> str:
    """The name in metrics.jsonl, for a kind of `max`, `end`, `tensors_max`, `gpu_max`."""
    return f"memory/{role}_{phase}_{kind}_gib"


def merge_of(name: str) -> Merge | None:
    """How the metric merges; None: it is not declared."""
    return "last" if name.startswith(_EVALUATION) else MERGES.get(name)


PHASES: tuple[str, ...] = ("generate", "reward", "old_logp", "update", "publish")
"""The phases of a step in their order; `timing_s/<phase>`. Together they are at most `timing_s/step`."""
