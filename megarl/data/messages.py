"""Conversations as data sets write them: a list of messages, also as JSON text, which is never taken literally."""

import json
import re
from collections.abc import Mapping
from typing import Any

Message = dict[str, str]
# How a conversation written as text begins, whether as JSON or as Python prints it.
_BEGINS_LIKE_MESSAGES = re.compile(r"""\s*(\[\s*)?\{\s*["'](role|content|messages)["']\s*:""")


class MessagesError(ValueError):
    """Neither text nor a conversation; the text says what was expected and found."""


def read_messages(value: Any) -> tuple[Message, ...]:
    """Messages of a prompt given as text, as a list of {role, content}, or as that list in JSON.

    Text is one message of the user. Text that begins like a conversation and is none is an error, not a question.
    """
    if isinstance(value, str):
        parsed = _parse(value)
        if parsed is None:
            return ({"role": "user", "content": value},)
        value = parsed
    if not isinstance(value, list) or not value:
        raise MessagesError(f"expected text or a list of {{role, content}}, found {value!r}")
    for message in value:
        if not _is_message(message):
            raise MessagesError(f"expected messages with a role and a content, found {message!r}")
    if value[-1]["role"] != "user":
        raise MessagesError(f"expected the last message from the user, found role {value[-1]['role']!r}")
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def _parse(text: str) -> Any:
    """The list that the text holds as JSON, None for ordinary text."""
    begins = bool(_BEGINS_LIKE_MESSAGES.match(text))
    if not begins and not text.lstrip().startswith("["):
        return None
    try:
        parsed = json.loads(text)
    except ValueError as error:
        if begins:
            raise MessagesError(
                f"the text begins like messages but is no JSON list of {{role, content}} ({error}): {text[:60]!r}"
            ) from None
        return None
    if begins and not isinstance(parsed, list):
        raise MessagesError(f"expected messages as a JSON list of {{role, content}}, found {text[:60]!r}")
    is_conversation = bool(parsed) and all(_is_message(item) for item in parsed)
    return parsed if begins or is_conversation else None


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("role", "content"))
