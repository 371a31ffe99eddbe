"""What a run saves becomes a Hugging Face model by itself, whatever layout saved it."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from megarl.checkpoint.convert import convert
from megarl.config.run import RunConfig
from megarl.policy.worker import MegatronWorker
from tests.policy.ranks import make_checkpoint, make_config, run_workers
from tests.policy.states import save_checkpoint


def save(worker: MegatronWorker, config: RunConfig, rank: int, directory: str) -> str:
    return str(save_checkpoint(worker, config, directory))


def test_a_saved_model_is_the_one_it_was_read_from(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model")
    config = make_config(model, parallel__tensor=2, parallel__world_size=2)
    (saved,) = run_workers([(config, (str(tmp_path / "saved"),))], save)
    converted = tmp_path / "converted"
    convert(Path(saved), converted, check=True)
    expected, found = load_file(model / "model.safetensors"), load_file(converted / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    beside = {file.name: file.read_bytes() for file in model.iterdir() if file.suffix != ".safetensors"}
    assert {file.name: file.read_bytes() for file in converted.iterdir() if file.suffix != ".safetensors"} == beside
