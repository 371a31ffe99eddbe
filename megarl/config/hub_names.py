"""Names on the Hugging Face hub, told from local paths."""

import re
from pathlib import Path

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_LOCAL_PARENTS = {"models", "model", "checkpoints", "runs", "data"}


def is_hub_name(name: str) -> bool:
    """Whether a path that does not exist reads like "Qwen/Qwen2.5-3B-Instruct" and not like a local directory."""
    parent = name.partition("/")[0]
    return bool(_HUB_NAME.fullmatch(name)) and parent not in _LOCAL_PARENTS and not Path(parent).is_dir()
