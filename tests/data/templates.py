"""Small tokenizers with the chat templates of published models, shortened only where they handle tools.

Each has the real model's control tokens and end of turn; the words are those of the tiny model's tokenizer.
"""

import functools
import json
from pathlib import Path
from typing import Any

CHATML = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'user' or (message.role == 'system' and not loop.first) or "
    "message.role == 'assistant' %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
"""Qwen2.5's."""
QWEN3 = (
    "{%- for message in messages %}{%- if message.role == 'assistant' %}"
    "{{- '<|im_start|>assistant\n' }}{%- if loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{- message.content.split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
LLAMA32 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}{{- 'Today Date: ' + date_string + '\n\n' }}"
    "{{- system_message }}{{- '<|eot_id|>' }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>'}}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + "
    "message['content'].strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + "
    "message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else "
    "message['role'] %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<｜User｜>' + message['content'] }}{% elif message['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
GENERATION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% generation %}{{ message['content'] + "
    "'<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{{ '### ' + message['role'] + ':\n' + message['content'] + '\n### End\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)
"""A turn that ends with text."""
OPEN = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""A turn that ends with nothing."""

SPECIAL = {
    CHATML: ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    QWEN3: ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    GENERATION: ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    PLAIN: ("<|endoftext|>",),
    OPEN: ("<|endoftext|>",),
    LLAMA32: ("<|end_of_text|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    LLAMA2: ("</s>", "<s>"),
    MISTRAL: ("</s>", "<s>", "[INST]", "[/INST]"),
    GEMMA: ("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    R1: ("<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"),
}
"""Control tokens of each; the first is eos_token, the second bos_token."""
ADDED = {QWEN3: ("<think>", "</think>"), R1: ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")}
"""Tokens that are added without being marked special."""
NO_BOS = {CHATML, QWEN3, GENERATION, PLAIN, OPEN}


@functools.cache
def _words() -> str:
    from make_tiny_model import train_tokenizer

    text: str = train_tokenizer(300).to_str()
    return text


def make_tokenizer(template: str | None, *, tokens: str | None = None) -> Any:
    """A tokenizer with a template and its tokens (or those of the template `tokens`); with a BOS it puts it before
    every text, as Llama's does."""
    from tokenizers import AddedToken, Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    of = tokens or template or LLAMA32
    backend = Tokenizer.from_str(_words())
    special = SPECIAL[of]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED.get(of, ())])
    names = {"eos_token": special[0]}
    if of not in NO_BOS:
        names["bos_token"] = special[1]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{special[1]} $A", special_tokens=[(special[1], backend.token_to_id(special[1]))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = template
    return tokenizer


def write_model_files(directory: Path, tokenizer: Any, *, eos: Any = None, rows: int | None = None) -> Path:
    """generation_config.json with `eos` (default: none) and config.json with an embedding of `rows` (default: the
    tokenizer's size)."""
    directory.mkdir(exist_ok=True)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    (directory / "config.json").write_text(json.dumps({"vocab_size": rows or len(tokenizer)}))
    return directory
