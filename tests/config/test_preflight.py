"""Preflight: the model directory, its shape against the layout, and the data path, all problems at once."""

import json
from pathlib import Path

import pytest

from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from megarl.config.preflight import check_files, is_hub_name
from megarl.config.run import RunConfig
from tests.config.text import write_config

SHAPE = {
    "hidden_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 2048,
    "max_position_embeddings": 4096,
}


def make_model(directory: Path, **changes: object) -> Path:
    """A checkpoint directory as far as preflight looks."""
    model = directory / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(SHAPE | changes))
    (model / "tokenizer.json").write_text("{}")
    (model / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    (model / "model.safetensors").write_bytes(b"x")
    return model


def load(directory: Path, model: Path | str, *overrides: str) -> RunConfig:
    return load_config(write_config(directory), [f"model.path={model}", *overrides])


def problems(config: RunConfig) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_files(config)
    return list(caught.value.problems)


def test_a_good_model_passes(tmp_path: Path) -> None:
    check_files(load(tmp_path, make_model(tmp_path)))


def test_hub_name_is_not_a_directory(tmp_path: Path) -> None:
    config = load(tmp_path, "Qwen/Qwen2.5-3B-Instruct")
    assert problems(config) == [
        'model.path "Qwen/Qwen2.5-3B-Instruct": expected a local directory, found a hub name; download it first with '
        "`hf download Qwen/Qwen2.5-3B-Instruct --local-dir models/Qwen2.5-3B-Instruct` and set "
        "model.path=models/Qwen2.5-3B-Instruct"
    ]
    check_files(config, need_model=False)


def test_missing_local_directory(tmp_path: Path) -> None:
    (problem,) = problems(load(tmp_path, tmp_path / "absent"))
    assert f"no such directory (looked at {tmp_path / 'absent'})" in problem


def test_file_in_place_of_directory(tmp_path: Path) -> None:
    (problem,) = problems(load(tmp_path, make_model(tmp_path) / "model.safetensors"))
    assert problem.endswith("expected the directory of a Hugging Face checkpoint, found a file")


def test_hub_names() -> None:
    assert is_hub_name("openai/gsm8k")
    assert not is_hub_name("models/Qwen2.5-3B")
    assert not is_hub_name("./Qwen/x")
    assert not is_hub_name("/srv/x")
    assert not is_hub_name("a/b/c")


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (8, ["12 attention heads; use 6 or 12"]),
        (3, ["neither a divisor nor a multiple of the model's 2 key/value heads; use 2", "intermediate_size 2048"]),
        (5, ["12 attention heads; use 4 or 6", "2 key/value heads; use 2", "2048; use 4 or 8"]),
    ],
)
def test_tensor_parallel_does_not_divide(tmp_path: Path, tensor: int, words: list[str]) -> None:
    model = make_model(tmp_path)
    for field in ("parallel", "rollout"):
        overrides = [f"{field}.tensor={tensor}", "cluster.gpus_per_node=16"]
        if field == "parallel":
            overrides.append(f"parallel.world_size={tensor}")
        found = problems(load(tmp_path, model, *overrides))
        assert len(found) == len(words)
        for problem, word in zip(found, words, strict=True):
            assert problem.startswith(f"{field}.tensor {tensor} ")
            assert word in problem


def test_more_ranks_than_key_value_heads_is_fine(tmp_path: Path) -> None:
    check_files(load(tmp_path, make_model(tmp_path), "parallel.tensor=4", "parallel.world_size=4", "rollout.tensor=4"))


def test_fused_rows(tmp_path: Path) -> None:
    # 12 ranks suit 12 heads and 2 groups, but with head_dim 1 there are 12 + 2 * 2 = 16 rows.
    model = make_model(tmp_path, head_dim=1, intermediate_size=24)
    found = problems(load(tmp_path, model, "parallel.tensor=12", "parallel.world_size=12", "cluster.gpus_per_node=16"))
    assert found == ["parallel.tensor 12 does not divide the 16 rows of the model's fused query, key and value"]


def test_layers_and_context_together(tmp_path: Path) -> None:
    found = problems(
        load(
            tmp_path,
            make_model(tmp_path),
            "parallel.pipeline=4",
            "parallel.world_size=4",
            "rollout.max_prompt_tokens=97",
            "rollout.max_response_tokens=4000",
        )
    )
    assert found == [
        "parallel.pipeline 4 does not divide the model's 6 layers; use 3 or 6",
        "rollout.max_prompt_tokens 97 + max_response_tokens 4000 = 4097 is longer than the model's context of 4096 "
        "(max_position_embeddings); shorten one of them",
    ]


def test_context_is_inclusive_and_stretched_by_linear_scaling(tmp_path: Path) -> None:
    exact = ["rollout.max_prompt_tokens=96", "rollout.max_response_tokens=4000"]
    model = make_model(tmp_path)
    check_files(load(tmp_path, model, *exact))
    (model / "config.json").write_text(json.dumps(SHAPE | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}))
    check_files(load(tmp_path, model, "rollout.max_prompt_tokens=192", "rollout.max_response_tokens=8000"))


def test_incomplete_directory_is_reported_whole(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    (model / "tokenizer.json").unlink()
    (model / "model.safetensors").unlink()
    (model / "config.json").unlink()
    (model / "pytorch_model.bin").write_bytes(b"x")
    found = problems(load(tmp_path, model))
    assert [
        part in text for part, text in zip(("no tokenizer.json", "safetensors", "no config.json"), found, strict=True)
    ]
    assert found[1].endswith("found only pytorch_model.bin")


def test_index_names_missing_files(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "model-1.safetensors").write_bytes(b"x")
    (problem,) = problems(load(tmp_path, model))
    assert "1 of 2 weight files are missing or empty (model-2.safetensors)" in problem


@pytest.mark.parametrize("content", ["{", "[]", '{"num_hidden_layers": 6}'])
def test_broken_config_json(tmp_path: Path, content: str) -> None:
    model = make_model(tmp_path)
    (model / "config.json").write_text(content)
    (problem,) = problems(load(tmp_path, model))
    assert problem.startswith(f"{model}/config.json: ")


def test_base_model_without_chat_template(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    (model / "tokenizer_config.json").write_text("{}")
    (problem,) = problems(load(tmp_path, model))
    assert "no chat template" in problem
    check_files(load(tmp_path, model, "data.chat_template=false"))
    (model / "chat_template.jinja").write_text("x")
    check_files(load(tmp_path, model))


def test_data_path(tmp_path: Path) -> None:
    model = make_model(tmp_path)
    reward = 'reward.verifier={kind = "gsm8k"}'

    def config(path: str) -> RunConfig:
        return load(tmp_path, model, reward, f'data.train={{source = "file", path = "{path}", layout = "gsm8k"}}')

    check_files(config("openai/gsm8k"))
    (problem,) = problems(config("data/absent.jsonl"))
    assert "no such file" in problem
    (tmp_path / "data").mkdir()
    (problem,) = problems(config(str(tmp_path / "data")))
    assert "without .jsonl or .parquet" in problem
    (tmp_path / "data" / "a.parquet").write_bytes(b"")
    check_files(config(str(tmp_path / "data")))
