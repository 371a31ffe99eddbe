"""What of a run's configuration its Ray and its engines are made of: runs in which that is equal may use the same."""

import hashlib
import json
from typing import Any

from megarl.config.run import RunConfig

_SECTIONS = ("model", "rollout", "cluster", "parallel")
_STOPS = ("chat_template", "chat_template_kwargs")
"""Of [data], what decides which tokens end a response."""


def describe_engines(config: RunConfig) -> dict[str, Any]:
    """The sections that say what an engine is, and beside what it lies; JSON-able, and equal after it was JSON."""
    sections = {name: getattr(config, name).model_dump(mode="json") for name in _SECTIONS}
    stops = {name: getattr(config.data, name) for name in _STOPS}
    return dict(json.loads(json.dumps(sections | {"data": stops})))


def name_shape(config: RunConfig) -> str:
    """A short name that is the same for equal descriptions, and for no others."""
    text = json.dumps(describe_engines(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
