"""`megarl show`: the resolved configuration as TOML that loads back equal, and the schema's fields."""

import inspect
from collections.abc import Sequence
from pathlib import Path

from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from megarl.cli.show_texts import describe_texts
from megarl.config.base import Config
from megarl.config.dump import dump_config, format_value
from megarl.config.facts import MayChange
from megarl.config.fields import FieldEntry, describe_type, iter_fields, section_types, union_tag
from megarl.config.layers import Replacement
from megarl.config.loader import find_replacements, load_config
from megarl.config.rollout_files import describe_rollout_files
from megarl.config.run import RunConfig
from megarl.config.warnings import find_warnings
from megarl.models.families import read_model_shape
from megarl.models.shape import ModelError
from megarl.planning.engine_memory import GIB
from megarl.planning.head import bytes_with_logits

_MAY_CHANGE = "may change when the run goes on"


def print_config(console: Console, path: Path, arguments: Sequence[str] = ()) -> None:
    """Print the configuration of a file with fragments and overrides; in colour on a terminal, else plain TOML that
    can be redirected to a file."""
    text = render_config(load_config(path, arguments), replacements=find_replacements(path, arguments))
    if console.is_terminal:
        console.print(Syntax(text, "toml", theme="ansi_dark", background_color="default", word_wrap=True))
    else:
        console.file.write(text)


def render_config(config: RunConfig, replacements: Sequence[Replacement] = ()) -> str:
    """The configuration as TOML; as comments at its head warnings and what files took back, and the derived numbers
    below."""
    head = (*(f"warning: {text}" for text in find_warnings(config)), *describe_replacements(replacements))
    return dump_config(config, comments={"": head, **derived_comments(config)})


def describe_replacements(replacements: Sequence[Replacement]) -> tuple[str, ...]:
    """A line for each value that a file took from another; values that fell to one new tag share theirs."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for found in replacements:
        new = format_value(found.by_value)
        cause = new if found.by_path == found.path else f"{found.by_path} {new}"
        place = (found.origin.label, f"{cause} ({found.by.label})", found.path if found.by_path == found.path else "")
        lines.setdefault(place, []).append(f"{found.path} {format_value(found.value)}")
    return tuple(f"replaced: {', '.join(old)} ({origin}) by {new}" for (origin, new, _), old in lines.items())


def derived_comments(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """What follows from the fields, by section: comment lines."""
    train, parallel, cluster = config.train, config.parallel, config.cluster
    per_rank = train.mini_batch_responses / parallel.data
    gpus = cluster.nodes * cluster.gpus_per_node
    texts = describe_texts(config)
    tokens = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    return {
        "parallel": (
            f"data-parallel ranks: {parallel.data} = world_size {parallel.world_size} / (tensor {parallel.tensor} "
            f"x pipeline {parallel.pipeline})",
        ),
        "train": (
            f"responses per step: {train.responses_per_step} = {train.prompts_per_step} prompts x "
            f"{train.samples_per_prompt} samples",
            f"updates per step: {train.updates_per_step} = {train.responses_per_step} responses / "
            f"{train.mini_batch_responses}; {train.updates_per_step * train.steps} in {train.steps} steps",
            f"old log-probs: {_scoring(config)}",
            f"responses per data-parallel rank and update: {per_rank:g}",
        ),
        **_head_comment(config),
        **_survey_comment(config),
        **_rate_comment(config),
        "rollout": (f"longest sequence: {tokens} tokens", *texts.stops),
        **({"data": texts.prompts} if texts.prompts else {}),
        "logging": (describe_rollout_files(config),),
        "cluster": (
            f"with CUDA: {config.gpus_needed} of {gpus} GPUs used: policy {parallel.world_size}, "
            f"{'in turns with ' if cluster.colocate else ''}engines {config.rollout.engines} x {config.rollout.tensor}",
        ),
    }


def _scoring(config: RunConfig) -> str:
    """Where the old log-probs come from, and why."""
    if config.scores_in_update:
        return "the update's own forward gives them; nothing needs them before, so they have no pass of their own"
    if config.train.updates_per_step > 1:
        return "a forward pass of their own before the first of several updates"
    return "a forward pass of their own; the objective chooses tokens or sets numbers by it before the update"


def _head_comment(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """What decides the head, where that is open."""
    if config.policy.head != "auto":
        return {}
    try:
        needed = bytes_with_logits(config, read_model_shape(config.model.path))
    except (ModelError, OSError):
        return {"policy": ("head: decided when the run starts, by the model and the memory of the GPUs",)}
    least = -(-10 * needed // GIB) / 10
    return {"policy": (f"head: decided when the run starts: logits on GPUs of {least:.1f} GiB and more, else fused",)}


def _survey_comment(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """What choosing tokens from statistics of the mini-batch costs, where the objective does."""
    passes = config.train.updates_per_step - 1
    if not config.objective.needs_survey:
        return {}
    return {
        "objective": (
            "tokens are chosen from statistics of the whole mini-batch under the current weights;",
            f"survey: one more forward pass before every update but a step's first, {passes} a step",
        )
    }


def _rate_comment(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """The rate that is used, where it follows the size of the update."""
    optimizer, responses = config.policy.optimizer, config.train.mini_batch_responses
    if optimizer.lr_for_responses is None:
        return {}
    return {
        "policy.optimizer": (
            f"peak learning rate: {optimizer.scaled(responses).lr:.4g} = lr x sqrt({responses} responses / "
            f"{optimizer.lr_for_responses})",
        )
    }


def print_fields(console: Console) -> None:
    """Print every field of the schema: path, type, default, meaning."""
    for entry in iter_fields(RunConfig):
        console.print(render_field(entry), soft_wrap=not console.is_terminal)


def render_field(entry: FieldEntry) -> Text:
    """One field in two or three lines; a section as a heading."""
    if entry.is_section:
        text = Text(f"\n[{entry.path}]", style="bold magenta")
        about = describe_field(entry)
        text.append(f"  {about}" if about else "", style="not bold")
        text.append(f"  ({_MAY_CHANGE})" if _may_change(entry) else "", style="not bold yellow")
        return text.append("  (absent: off)" if entry.is_optional_section else "", style="not bold yellow")
    text = Text(entry.path, style="bold cyan")
    text.append(f" = {_default(entry)}", style="green")
    text.append(f"  ({describe_type(entry.info)})", style="dim")
    text.append(f"  ({_MAY_CHANGE})" if _may_change(entry) else "", style="yellow")
    if entry.when and not entry.when.startswith(f"{entry.path} ="):
        text.append(f"\n    with {entry.when}", style="yellow")
    return text.append(f"\n    {describe_field(entry)}")


def _may_change(entry: FieldEntry) -> bool:
    """Whether the field itself says so, or the table for all that is in it."""
    return any(isinstance(mark, MayChange) for mark in entry.info.metadata)


def describe_field(entry: FieldEntry) -> str:
    """A field's documentation on one line; of a section its class's, of an optional one (a method) both, of a union's
    tag the chosen member's."""
    if entry.info.description:
        text = " ".join(entry.info.description.split())
        return f"{text} {_class_doc(section_types(entry.info.annotation)[0])}" if entry.is_optional_section else text
    if entry.is_section:
        classes = section_types(entry.info.annotation)
        return _class_doc(classes[0]) if len(classes) == 1 else _choices(classes)
    member = _tagged_member(entry)
    return _class_doc(member) if member else ""


def _tagged_member(entry: FieldEntry) -> type[Config] | None:
    """The union member whose tag field this is."""
    union_path, _, name = entry.path.rpartition(".")
    for other in iter_fields(RunConfig):
        if other.path == union_path:
            for member in section_types(other.info.annotation):
                tag = union_tag(member)
                if tag and tag[0] == name and member.model_fields[name] is entry.info:
                    return member
    return None


def _choices(classes: list[type[Config]]) -> str:
    tags = [tag for member in classes if (tag := union_tag(member))]
    return f"{tags[0][0]} chooses: {', '.join(str(tag[1]) for tag in tags)}"


def _class_doc(section: type[Config]) -> str:
    return " ".join(inspect.cleandoc(section.__doc__ or "").split())


def _default(entry: FieldEntry) -> str:
    default = entry.info.default
    if default is PydanticUndefined:
        return "(required)"
    return "(absent)" if default is None else format_value(default)
