"""What only the newer vLLM has, with the vLLM at hand and as the older one lacks it."""

import asyncio
import sys
from types import SimpleNamespace

import pytest
from torch import nn
from vllm.model_executor.layers import attention

from megarl.rollout.vllm_versions import (
    disable_mtp_completeness_check,
    is_deferred_attention_layer,
    label_weights,
    sampled_versions,
)


def test_attention_is_deferred_and_a_linear_layer_is_not() -> None:
    layer = attention.Attention.__new__(attention.Attention)
    assert is_deferred_attention_layer(layer)
    assert not is_deferred_attention_layer(nn.Linear(1, 1))


def test_attention_where_vllm_has_no_such_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(attention, "is_deferred_attention_layer", raising=False)
    test_attention_is_deferred_and_a_linear_layer_is_not()
    assert is_deferred_attention_layer(attention.MLAAttention.__new__(attention.MLAAttention))


def test_completeness_check_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    with disable_mtp_completeness_check():
        pass
    monkeypatch.setitem(sys.modules, "vllm.model_executor.model_loader.mtp_validation", None)
    monkeypatch.delattr("vllm.model_executor.model_loader.mtp_validation", raising=False)
    with disable_mtp_completeness_check():
        pass


def test_labels_of_weights() -> None:
    spans = [SimpleNamespace(version="default"), SimpleNamespace(version="3")]
    assert sampled_versions(SimpleNamespace(weight_versions=spans)) == {"default", "3"}
    assert sampled_versions(SimpleNamespace(weight_versions=None)) == set()
    assert sampled_versions(SimpleNamespace()) == set()
    labels = []

    class Newer:
        async def update_weight_version(self, version: str) -> None:
            labels.append(version)

    asyncio.run(label_weights(Newer(), "4"))
    asyncio.run(label_weights(object(), "5"))
    assert labels == ["4"]
