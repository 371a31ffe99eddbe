"""Make a small model of Qwen2.5's or Llama's shape from nothing: tokenizer, config, random weights.

    python tools/make_tiny_model.py models/tiny

The directory is an ordinary Hugging Face checkpoint, read by transformers, vLLM and megarl alike. The same arguments
give the same files. The tokenizer is a byte-level BPE with one token per digit, trained on reasoning-gym's arithmetic
prompts, so that those prompts are short and any other text still encodes.
"""

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# ChatML without a default system prompt: it would make every prompt longer.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen2's split into words (a digit is a word). transformers gives every model of type qwen2 this split and NFC whatever
# tokenizer.json says, so it must say the same.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# vllm/v1/attention/backends/cpu_attn.py, get_supported_head_sizes.
CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
CORPUS_TASKS = (
    *("chain_sum", "basic_arithmetic", "products", "decimal_chain_sum"),
    *("gcd", "lcm", "fraction_simplification"),
)
CORPUS_PROMPTS_PER_TASK = 200
# Words of templates, instructions and answers that the tasks' own prompts lack.
CORPUS_EXTRA = (
    "user\n", "assistant\n", "system\n", "Put the final answer in \\boxed{}.", "<think>\n", "</think>\n", "<answer>",
    "</answer>", "The answer is ", "#### ",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """Shape of the model; hidden / heads must be a head size that vLLM's CPU attention knows."""

    family: Literal["qwen2", "llama"] = "qwen2"
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 384
    tied: bool = True
    """The output weight is the embedding, as in Qwen2.5 up to 3B."""
    vocab: int = 512
    """Upper bound of the vocabulary: 3 special tokens, 256 bytes, and merges."""
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"hidden {self.hidden} must be a multiple of heads {self.heads}, and heads of kv_heads {self.kv_heads}"
            )
        if self.head_dim not in CPU_HEAD_DIMS:
            raise ValueError(f"hidden / heads = {self.head_dim}, expected one of {CPU_HEAD_DIMS}")

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def make_tiny_model(out: str | Path, **shape: Any) -> Path:
    """Write the checkpoint into `out` (made if missing) and return its path; `shape` are TinyModel's fields."""
    model = TinyModel(**shape)
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(model.vocab)
    tokenizer.save(str(directory / "tokenizer.json"))
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(model))
    _write_json(directory / "config.json", _model_config(model, tokenizer.get_vocab_size(), ids))
    stop = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    generation = {"eos_token_id": stop, "pad_token_id": ids["<|endoftext|>"], "do_sample": True, "temperature": 1.0}
    _write_json(directory / "generation_config.json", generation)
    _write_weights(model, directory)
    return directory


def train_tokenizer(vocab: int) -> Any:
    """Byte-level BPE of at most `vocab` tokens; every digit is a token of its own, every text round-trips."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if vocab < 256 + len(SPECIAL_TOKENS):
        raise ValueError(f"vocab {vocab} is below the {len(SPECIAL_TOKENS)} special tokens and 256 bytes")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def _corpus() -> list[str]:
    import reasoning_gym

    texts = list(CORPUS_EXTRA) * CORPUS_PROMPTS_PER_TASK
    for task in CORPUS_TASKS:
        entries = reasoning_gym.create_dataset(task, size=CORPUS_PROMPTS_PER_TASK, seed=0)
        texts += [entries[index]["question"] for index in range(CORPUS_PROMPTS_PER_TASK)]
    return texts


def _tokenizer_config(model: TinyModel) -> dict[str, Any]:
    return {
        "tokenizer_class": "Qwen2Tokenizer" if model.family == "qwen2" else "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 32768,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _model_config(model: TinyModel, vocab_size: int, ids: dict[str, int]) -> dict[str, Any]:
    """config.json with the keys of the published Qwen2.5 and Llama 3 checkpoints."""
    config = {
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": model.hidden,
        "initializer_range": 0.02,
        "intermediate_size": model.ffn,
        "max_position_embeddings": 32768,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": model.tied,
        "torch_dtype": model.dtype,
        "use_cache": True,
        "vocab_size": vocab_size,
    }
    if model.family == "qwen2":
        return {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **config, "use_sliding_window": False}
    llama = {"attention_bias": False, "mlp_bias": False, "head_dim": model.head_dim, "rope_scaling": None}
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **config, **llama}


def _write_weights(model: TinyModel, directory: Path) -> None:
    """Normal(0, 0.02) matrices and biases, norm weights 1 + normal(0, 0.02).

    Biases and norms are random too, so that a converter that drops or swaps one is noticed.
    """
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        hf_model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    generator = torch.Generator().manual_seed(model.seed)
    tensors = {}
    for name, parameter in sorted(hf_model.named_parameters()):  # a tied output weight is not among them
        noise = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, 0.02, generator=generator)
        value = 1.0 + noise if name.endswith("norm.weight") else noise
        tensors[name] = value.to(getattr(torch, model.dtype)).contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Command line: OUT and one option per field of TinyModel."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="directory to write")
    for option in dataclasses.fields(TinyModel):
        flag = f"--{option.name.replace('_', '-')}"
        if option.name == "tied":
            parser.add_argument("--tied", default=option.default, action=argparse.BooleanOptionalAction)
            parser.add_argument("--untied", dest="tied", action="store_false")
        else:
            parser.add_argument(flag, default=option.default, type=type(option.default))
    arguments = vars(parser.parse_args(argv))
    directory = make_tiny_model(arguments.pop("out"), **arguments)
    vocab = json.loads((directory / "config.json").read_text())["vocab_size"]
    size_mib = (directory / "model.safetensors").stat().st_size / 2**20
    print(f"{directory}: vocabulary {vocab}, weights {size_mib:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
