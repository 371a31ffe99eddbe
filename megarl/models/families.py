"""The model families; another one is a module beside these (`family.Family`) and its name here."""

from pathlib import Path
from typing import Any

from megarl.models import llama, qwen2
from megarl.models.config_json import ModelError, load_json
from megarl.models.family import Family
from megarl.models.shape import ModelShape

FAMILIES: tuple[Family, ...] = (llama, qwen2)


def family_of(model_type: object) -> Family:
    """The family of config.json's model_type, which is `ModelShape.family`; ModelError where there is none."""
    for family in FAMILIES:
        if model_type == family.MODEL_TYPE:
            return family
    known = " or ".join(f'"{family.MODEL_TYPE}" ({family.MODELS})' for family in FAMILIES)
    raise ModelError(f"expected model_type {known}, found {model_type!r}; use a checkpoint of one of these families")


def parse_model_config(raw: dict[str, Any]) -> ModelShape:
    """The shape described by the content of a config.json; ModelError when it is not supported."""
    return family_of(raw.get("model_type")).read_shape(raw)


def read_model_shape(path: str | Path) -> ModelShape:
    """Read the shape of the checkpoint in directory `path` from its config.json, or of a config.json itself.

    Both spellings are read: `torch_dtype` and `rope_theta` + `rope_scaling` (transformers 4), `dtype` and
    `rope_parameters` (transformers 5); where both are there the one counts that transformers takes. Raises ModelError
    for a missing or broken file and for every feature that is not supported.
    """
    file = Path(path)
    file = file if file.suffix == ".json" and not file.is_dir() else file / "config.json"
    raw = load_json(file)
    try:
        return parse_model_config(raw)
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from None
