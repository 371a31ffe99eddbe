"""Tiny Hugging Face checkpoints to break: each test has a copy of its own, as `hf` in its directory."""

import shutil
from pathlib import Path

import pytest

from tests.checkpoint.test_hf_checkpoint import write_source


@pytest.fixture(scope="session")
def hf_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """single, sharded and tied, which are copied and left as they are."""
    directory = tmp_path_factory.mktemp("models")
    write_source(directory / "single")
    write_source(directory / "sharded", max_shard_size="3KB")
    write_source(directory / "tied", tied=True)
    return directory


@pytest.fixture
def single(hf_models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hf_models / "single", tmp_path / "hf"))


@pytest.fixture
def sharded(hf_models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hf_models / "sharded", tmp_path / "hf"))


@pytest.fixture
def tied(hf_models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hf_models / "tied", tmp_path / "hf"))
