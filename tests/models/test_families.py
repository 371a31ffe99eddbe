"""Another family is a module and its name in `families.FAMILIES`: nothing else asks which family a model is of."""

import ast
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import megarl
from megarl.models import dense, families, llama
from megarl.models.families import FAMILIES, family_of, parse_model_config
from megarl.models.serving import engine_boxes
from megarl.models.shape import ModelError, ModelShape
from megarl.models.table import hf_tensors
from tests.models.test_model_shape import LLAMA


def test_a_model_type_is_named_in_its_familys_module_only() -> None:
    root = Path(megarl.__file__).parent
    types = {family.MODEL_TYPE for family in FAMILIES}
    named = {
        (str(path.relative_to(root)), node.value)
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in types
    }
    assert named == {(f"models/{name}.py", name) for name in types}


def test_a_family_that_is_added_is_read_and_has_its_own_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up one: Llama with a scale for every layer."""

    def read_shape(raw: dict[str, Any]) -> ModelShape:
        return replace(llama.read_shape(raw | {"model_type": "llama"}), family="scaled")

    def tensors(shape: ModelShape) -> Any:
        yield from dense.tensors(shape)
        yield from ((f"model.layers.{index}.scale", (1,)) for index in range(shape.num_layers))

    table = SimpleNamespace(tensors=tensors, engine_cut=dense.engine_cut)
    scaled = SimpleNamespace(MODEL_TYPE="scaled", MODELS="Scaled", TABLE=table, read_shape=read_shape)
    monkeypatch.setattr(families, "FAMILIES", (*FAMILIES, scaled))
    shape = parse_model_config(LLAMA | {"model_type": "scaled"})
    plain = parse_model_config(LLAMA)
    assert shape == replace(plain, family="scaled")
    added = {"model.layers.0.scale": (1,), "model.layers.1.scale": (1,)}
    assert hf_tensors(shape) == hf_tensors(plain) | added
    # Whole on every worker.
    boxes = {box.tensor for box in engine_boxes(shape, tensor_rank=1, tensor_size=2)}
    assert boxes == {box.tensor for box in engine_boxes(plain, tensor_rank=1, tensor_size=2)} | added.keys()
    with pytest.raises(ModelError, match=r'expected model_type "llama" .* or "scaled" \(Scaled\), found \'opt\''):
        family_of("opt")


@pytest.mark.parametrize("model_type", [None, ["llama"], {"llama": 1}])
def test_what_is_no_name_is_no_family(model_type: object) -> None:
    with pytest.raises(ModelError, match=r'expected model_type "llama" \(Llama 3, SmolLM2\) or "qwen2" \(Qwen2.5\)'):
        family_of(model_type)
