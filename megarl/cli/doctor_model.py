"""Does a checkpoint load? Each weight's name and shape is compared with the model that config.json describes.

The model is built on the meta device and only the headers of the safetensors files are read, so a 70B checkpoint
takes seconds and no memory. Run as `python -m megarl.cli.doctor_model DIRECTORY`, in a process of its own.
"""

import math
import sys
from pathlib import Path

from megarl.config.preflight import weight_files


def check_checkpoint(directory: Path) -> str:
    """A sentence on the model and its tokenizer. Raises ValueError for weights that do not fit config.json."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    if not tokenizer.encode("1 + 1 = 2"):
        raise ValueError("the tokenizer makes no tokens of a text")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    # Tied weights and buffers have no tensor of their own in a checkpoint; parameters() yields tied ones once.
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    compare_weights(wanted, read_shapes(directory))
    count = sum(math.prod(shape) for shape in wanted.values())
    return f"{type(model).__name__}, {count / 1e6:,.0f} M parameters, {len(tokenizer)} tokens"


def read_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the checkpoint's safetensors files, from their headers."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(directory):
        with safe_open(file, framework="pt") as opened:
            shapes.update({name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()})  # noqa: SIM118
    return shapes


def compare_weights(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError naming the parameters that the checkpoint lacks or has in another shape."""
    absent = sorted(name for name in wanted if name not in found)
    if absent:
        raise ValueError(f"{len(absent)} parameters are not in the weight files: {', '.join(absent[:4])}")
    wrong = sorted(name for name, shape in wanted.items() if found[name] != shape)
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{len(wrong)} parameters have another shape than config.json says, the first {name}: expected "
            f"{wanted[name]}, found {found[name]}"
        )


if __name__ == "__main__":
    print(check_checkpoint(Path(sys.argv[1])))
