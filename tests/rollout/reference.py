"""A small real model and the log-probs transformers gives for it: the independent reference of the engine tests."""

from pathlib import Path

import torch
from torch import Tensor

from megarl.records import Rollout

VOCAB = 997
"""vLLM pads it to a multiple of 64, so the padded path is tested."""
EOS = list(range(500))
"""What config.json calls end of sequence: half of the vocabulary, so that heeding it could not go unnoticed."""


def make_model(path: Path, *, tied: bool) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(  # head_dim 32: the smallest that vLLM's CPU attention knows
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        eos_token_id=EOS,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    model.load_state_dict(random_weights(model.state_dict(), seed=0))
    model.save_pretrained(path)


def random_weights(like: dict[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    """Weights under which every tensor matters: biases and norms are random too, tied tensors stay tied."""
    generator = torch.Generator().manual_seed(seed)
    fresh: dict[int, Tensor] = {}
    weights = {}
    for name, tensor in like.items():
        if tensor.data_ptr() not in fresh:
            noise = torch.randn(tensor.shape, generator=generator)
            fresh[tensor.data_ptr()] = 1 + 0.1 * noise if "norm" in name else 0.1 * noise
        weights[name] = fresh[tensor.data_ptr()]
    return weights


def checkpoint_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def reference_logp(path: Path, weights: dict[str, Tensor] | None, rollout: Rollout, temperature: float) -> Tensor:
    """log p of the response tokens by transformers in float32, under `weights` (None: the checkpoint's)."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if weights is not None:
        model.load_state_dict(weights, strict=not model.config.tie_word_embeddings)
    tokens = torch.tensor([[*rollout.prompt, *rollout.response]])
    with torch.no_grad():
        logits = model(tokens).logits[0, len(rollout.prompt) - 1 : -1]
    logp = torch.log_softmax(logits.double() / temperature, dim=-1)
    return logp.gather(1, torch.tensor(rollout.response, dtype=torch.int64)[:, None])[:, 0]
