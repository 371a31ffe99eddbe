"""Paths as the verbs print them, and as workers need them."""

from pathlib import Path

from megarl.config.run import RunConfig


def shown_path(path: Path) -> str:
    """Relative to where the person stands, when it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def resolve_model_path(config: RunConfig) -> RunConfig:
    """The config with an absolute model.path: workers do not share this process's working directory."""
    path = str(Path(config.model.path).expanduser().resolve())
    return config.model_copy(update={"model": config.model.model_copy(update={"path": path})})
