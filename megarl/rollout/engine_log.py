"""Where vLLM's processes log to."""

import json
from pathlib import Path


def write_logging_config(path: Path, *, log: Path) -> None:
    """Write to `path` what makes vLLM's processes log to the file `log`, tracebacks included; errors to stderr too."""
    handler = {"formatter": "plain", "level": "INFO", "class": "logging.FileHandler", "filename": str(log)}
    stderr = {"formatter": "plain", "level": "ERROR", "class": "logging.StreamHandler", "stream": "ext://sys.stderr"}
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(asctime)s %(levelname)s pid=%(process)d %(name)s: %(message)s"}},
        "handlers": {"file": handler, "stderr": stderr},
        "loggers": {"vllm": {"handlers": ["file", "stderr"], "level": "INFO", "propagate": False}},
    }
    path.write_text(json.dumps(config))
