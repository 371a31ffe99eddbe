"""The chat template as a function of messages alone: the clock that it may read is pinned, its variables are known.

Prompts are rendered whenever they are read, over days: a template that writes the current date would change them.
"""

import datetime
import re
from collections.abc import Callable, Sequence
from typing import Any

from megarl.config.base import ConfigError
from megarl.config.data import DataConfig
from megarl.data.messages import Message


def check_chat_template(config: DataConfig, tokenizer: Any) -> None:
    """ConfigError when the template is asked for and there is none, or it does not read a variable that it is given."""
    if not config.chat_template:
        return
    if not tokenizer.chat_template:
        raise ConfigError(
            "data.chat_template is true but the tokenizer has no chat template; set data.chat_template = false to feed "
            "the bare text (usual for base models), or add chat_template to the checkpoint's tokenizer_config.json"
        )
    source = _template_source(config, tokenizer)
    unread = [name for name in config.chat_template_kwargs if not re.search(rf"\b{re.escape(name)}\b", source)]
    if unread:
        raise ConfigError(
            f"data.chat_template_kwargs: the tokenizer's chat template does not read {', '.join(unread)}; correct the "
            "name or remove it"
        )


def render_chat(
    messages: Sequence[Message], config: DataConfig, tokenizer: Any, *, add_generation_prompt: bool = True
) -> str:
    """The template's text; ConfigError when it refuses the messages, or reads the clock while data.date is not set."""
    return _render(messages, config, tokenizer, add_generation_prompt=add_generation_prompt, clock=_clock(config.date))


def reads_clock(config: DataConfig, tokenizer: Any) -> bool:
    """Whether the chat template asks for the time, with or without a system message."""
    if not config.chat_template or not tokenizer.chat_template:
        return False
    asked: list[str] = []

    def note(form: str) -> str:
        asked.append(form)
        return ""

    user: Message = {"role": "user", "content": "a question"}
    for messages in ([user], [{"role": "system", "content": "a rule"}, user]):
        try:
            _render(messages, config, tokenizer, add_generation_prompt=True, clock=note)
        except ConfigError:  # e.g. it refuses the system role, which matters only where a problem has one
            continue
    return bool(asked)


def _render(
    messages: Sequence[Message],
    config: DataConfig,
    tokenizer: Any,
    *,
    add_generation_prompt: bool,
    clock: Callable[[str], str],
) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            list(messages),
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            strftime_now=clock,  # in place of transformers' own
            **config.chat_template_kwargs,
        )
    except ConfigError:
        raise
    except (TemplateError, TypeError, ValueError) as error:  # e.g. a template that refuses the system role
        roles = ", ".join(message["role"] for message in messages)
        raise ConfigError(f"the tokenizer's chat template refuses messages of roles {roles}: {error}") from error
    return text


def _clock(date: str | None) -> Callable[[str], str]:
    """strftime at midnight of the day, for templates."""

    def strftime_now(form: str) -> str:
        if date is None:
            raise ConfigError(
                "the tokenizer's chat template reads the clock, and prompts would change from day to day; set data.date"
            )
        return datetime.datetime.combine(datetime.date.fromisoformat(date), datetime.time()).strftime(form)

    return strftime_now


def _template_source(config: DataConfig, tokenizer: Any) -> str:
    try:
        source: str = tokenizer.get_chat_template(tools=config.chat_template_kwargs.get("tools"))
    except ValueError as error:  # several templates, none of them the default
        raise ConfigError(f"the tokenizer's chat template cannot be chosen: {error}") from error
    return source
