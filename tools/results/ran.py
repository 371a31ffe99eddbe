"""What was run, as every document says it: from the stored facts alone."""

import math
from collections.abc import Sequence

from megarl.ablation.seeds import LEVEL, t_quantile
from megarl.ablation.stored import Facts
from results.reading import Results
from results.words import field, hours, listed


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; the first column is text."""
    lines = [heads, ["---", *["---:" if _is_number(rows, at) else "---" for at in range(1, len(heads))]], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ran(found: Sequence[Results]) -> str:
    """A column per ablation, and below it which runs are not finished."""
    parts = (
        ("command", _command),
        ("runs", _runs),
        ("a step", _step),
        ("model", _model),
        ("task", _task),
        ("rate", _rate),
        ("took", lambda facts: f"{hours(facts.wall_seconds)}, runs alone {hours(facts.run_seconds)}"),
        ("on", _machine),
    )
    rows = [[head, *(say(one.facts) for one in found)] for head, say in parts]
    text = table(["", *(one.facts.name for one in found)], rows)
    text += (
        f"\n\nTogether they took about {hours(sum(one.facts.wall_seconds for one in found))}." if len(found) > 1 else ""
    )
    for one in found:
        if one.facts.left_out:
            names = listed(sorted(one.facts.left_out))
            text += f"\n\nNot finished, and in no number here, are of {one.facts.name}: {names}."
    return text


def width_words(found: Sequence[Results]) -> str:
    """How wide an interval of so many seeds is: Student's t over the root of their number, in deviations."""
    counts = sorted({len(one.seeds) for results in found for one in results.facts.settings if len(one.seeds) > 1})
    if not counts:
        return "One seed has no interval."
    widths = [t_quantile(count - 1, LEVEL) / math.sqrt(count) for count in counts]
    told = [f"of {count} seeds {width:.1f}" for count, width in zip(counts, widths, strict=True)]
    told[0] = f"An interval of {counts[0]} seeds is {widths[0]:.1f} deviations wide to either side"
    return f"{', '.join(told)}: what is undecided may be large."


def _command(facts: Facts) -> str:
    return f"`{facts.command}`" if facts.command else "none: its file is not one of configs/ablations"


def _runs(facts: Facts) -> str:
    counts = sorted({len(one.seeds) for one in facts.settings})
    each = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    steps = " or ".join(map(str, facts.steps))
    return f"{len(facts.settings)} settings x {each} seeds, {steps} steps"


def _step(facts: Facts) -> str:
    config = facts.config
    try:
        prompts, samples = config["train.prompts_per_step"], config["train.samples_per_prompt"]
        updates = prompts * samples // config["train.mini_batch_responses"]
    except KeyError as error:
        return f"{error} differs between settings"
    return f"{prompts} prompts x {samples} responses, {updates} updates"


def _model(facts: Facts) -> str:
    model = facts.model
    warm = f", {model['warm_steps']} updates of a warm start" if model["warm_steps"] else ""
    return f"{model['name']}: {model['parameters']:,} weights, {model['layers']} layers{warm}"


def _task(facts: Facts) -> str:
    longest = facts.config.get("rollout.max_response_tokens", "different numbers of")
    return f"{facts.config.get('data.train.task', 'differs')}, answers of at most {longest} tokens"


def _rate(facts: Facts) -> str:
    optimizer = facts.optimizer
    if missing := {"lr", "schedule"} - optimizer.keys():
        return f"{listed(sorted(missing))} differs between settings"
    return f"AdamW, {field(optimizer['lr'])}, {optimizer['schedule']}, {optimizer.get('warmup_updates', 0)} of warm-up"


def _machine(facts: Facts) -> str:
    versions = facts.versions
    return f"{versions['cpus']} CPU cores, {versions['date']}, megarl {listed(versions['revisions'])}"


def _is_number(rows: Sequence[Sequence[str]], at: int) -> bool:
    """Whether a column is of numbers: every cell begins as one."""
    texts = [row[at].strip("*") for row in rows if row[at] not in ("", "–")]
    return bool(texts) and all(text[0] in "+−0123456789" and " of " not in text for text in texts)
