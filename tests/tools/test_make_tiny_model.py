"""The tiny model: an ordinary checkpoint for transformers, with a tokenizer that any loader reads alike."""

import filecmp
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from make_tiny_model import make_tiny_model
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from megarl.data.tokenizer import load_tokenizer

TEXTS = [
    "State the final answer to the following arithmetic problem: 12 - 7 =",
    "  spaces \n\n\tand tabs don't I'LL\r\n",
    "é 日本 🙂 \x00 ∑_{i=1}^n \\boxed{\\frac{1}{2}}",
    "<|im_start|>user\n1<|im_end|>\n",
    "",
]


@pytest.fixture(scope="module")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("llama")
    return make_tiny_model(out, family="llama", layers=2, tied=False, dtype="bfloat16", vocab=443, seed=1)


@pytest.fixture(params=["qwen2", "llama"])
def model_dir(request: pytest.FixtureRequest, tiny_model_dir: Path, llama_dir: Path) -> Path:
    return tiny_model_dir if request.param == "qwen2" else llama_dir


def test_texts_round_trip_and_every_loader_agrees(model_dir: Path) -> None:
    tokenizer, raw = load_tokenizer(model_dir), Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert raw.encode(text).ids == ids == tokenizer(text)["input_ids"]


def test_digits_are_single_tokens_and_task_words_are_whole(model_dir: Path) -> None:
    tokenizer = load_tokenizer(model_dir)
    assert len(tokenizer("1234567890")["input_ids"]) == 10
    assert not [token for token in tokenizer.get_vocab() if len(token) > 1 and any(c.isdigit() for c in token)]
    assert len(tokenizer(TEXTS[0])["input_ids"]) <= 19
    assert len(tokenizer) == json.loads((model_dir / "config.json").read_text())["vocab_size"] <= 512


def test_transformers_loads_every_tensor_and_runs(model_dir: Path) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(model_dir, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    logits = model(torch.tensor([[5, 6, 7]])).logits.float()
    assert logits.isfinite().all()
    # A near-uniform start: the largest probability is below 4 / vocabulary.
    assert logits.softmax(-1).max() < 4 / logits.shape[-1]


def test_shapes_and_spread_of_the_weights(tiny_model_dir: Path, llama_dir: Path) -> None:
    qwen, llama = load_file(tiny_model_dir / "model.safetensors"), load_file(llama_dir / "model.safetensors")
    assert "lm_head.weight" not in qwen
    assert llama["lm_head.weight"].shape == (443, 128)
    assert llama["lm_head.weight"].dtype == torch.bfloat16
    assert qwen["model.layers.3.self_attn.k_proj.weight"].shape == (64, 128)
    assert qwen["model.layers.0.mlp.up_proj.weight"].std() == pytest.approx(0.02, rel=0.02)
    assert qwen["model.layers.0.self_attn.q_proj.bias"].std() == pytest.approx(0.02, rel=0.3)
    assert qwen["model.norm.weight"].mean() == pytest.approx(1.0, abs=0.01)


def test_same_arguments_give_the_same_files(tmp_path: Path, tiny_model_dir: Path) -> None:
    """In another process, through the command line; the caller's random state is left alone."""
    tool = Path(sys.modules["make_tiny_model"].__file__ or "")
    subprocess.run([sys.executable, str(tool), str(tmp_path / "again")], check=True, capture_output=True)
    names = ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json", "model.safetensors"]
    assert filecmp.cmpfiles(tiny_model_dir, tmp_path / "again", names, shallow=False) == (names, [], [])


def test_shapes_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hidden / heads = 16, expected one of"):
        make_tiny_model(tmp_path, hidden=64, heads=4)
    with pytest.raises(ValueError, match="must be a multiple of heads 3"):
        make_tiny_model(tmp_path, heads=3)
    with pytest.raises(ValueError, match="vocab 100 is below"):
        make_tiny_model(tmp_path, vocab=100)
