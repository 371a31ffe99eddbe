"""What the run's files must be before a worker starts; reads directory listings and small files, imports no torch."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megarl.config.base import ConfigError
from megarl.config.data import FileData
from megarl.config.data_files import find_data_files
from megarl.config.hub_names import is_hub_name
from megarl.config.run import RunConfig


def find_file_problems(config: RunConfig) -> Iterator[str]:
    """Everything wrong with the model's directory, the data's path, and the packages that logging asks for."""
    yield from _check_data(config)
    yield from _check_sinks(config)
    directory = Path(config.model.path)
    if directory.is_dir():
        yield from check_model_files(config, directory)
    else:
        yield _describe_missing_model(config.model.path)


def check_model_files(config: RunConfig, directory: Path) -> Iterator[str]:
    """Problems of a Hugging Face checkpoint directory: tokenizer, chat template, safetensors weights."""
    where = f'model.path "{config.model.path}"'
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        yield f"{where}: no tokenizer.json, tokenizer.model or vocab.json; copy the model's own tokenizer there"
    elif config.data.chat_template:
        yield from _check_chat_template(where, directory)
    yield from _check_weights(where, directory)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those its index names, present or not, else every one there is."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return sorted({directory / str(name) for name in _read_json(index).get("weight_map", {}).values()})
    return sorted(directory.glob("*.safetensors"))


def _check_weights(where: str, directory: Path) -> Iterator[str]:
    try:
        files = weight_files(directory)
    except ValueError as error:
        yield f"{where}: model.safetensors.index.json: {error}"
        return
    absent = [file.name for file in files if not file.is_file()]
    empty = [file.name for file in files if file.is_file() and not file.stat().st_size]
    if absent or empty:
        yield (
            f"{where}: {len(absent) + len(empty)} of {len(files)} weight files are missing or empty "
            f"({', '.join((absent + empty)[:4])}); the download is incomplete, run it again"
        )
    if not files:
        others = sorted(file.name for pattern in ("*.bin", "*.pt", "*.gguf") for file in directory.glob(pattern))
        found = f"found only {', '.join(others[:4])}" if others else "found none"
        yield f"{where}: expected safetensors weights (model.safetensors or model-*.safetensors), {found}"


def _check_data(config: RunConfig) -> Iterator[str]:
    if isinstance(config.data.train, FileData):
        try:
            find_data_files(config.data.train)
        except ConfigError as error:
            yield from error.problems


def _check_sinks(config: RunConfig) -> Iterator[str]:
    wanted = {"wandb": config.logging.wandb_project is not None, "tensorboard": config.logging.tensorboard}
    for package in (name for name, asked in wanted.items() if asked and find_spec(name) is None):
        yield f"logging asks for {package}, which is not installed: pip install 'megarl[{package}]', or remove the key"


def _describe_missing_model(name: str) -> str:
    if is_hub_name(name):
        local = f"models/{name.rpartition('/')[2]}"
        return (
            f'model.path "{name}": expected a local directory, found a hub name; download it first with '
            f"`hf download {name} --local-dir {local}` and set model.path={local}"
        )
    path = Path(name)
    if path.is_file():
        return f'model.path "{name}": expected the directory of a Hugging Face checkpoint, found a file'
    return (
        f'model.path "{name}": no such directory (looked at {path.absolute()}); download the model there with '
        f"`hf download OWNER/NAME --local-dir {name}`, or correct the path"
    )


def _check_chat_template(where: str, directory: Path) -> Iterator[str]:
    if any((directory / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return
    path = directory / "tokenizer_config.json"
    try:
        if path.is_file() and _read_json(path).get("chat_template"):
            return
    except ValueError as error:
        yield f"{path}: {error}"
        return
    yield (
        f"{where}: its tokenizer has no chat template, and data.chat_template is true; set "
        "data.chat_template=false for bare text, or use the instruct model"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found {type(content).__name__}")
    return content
