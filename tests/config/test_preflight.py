"""Preflight: the model directory, its shape against the layout, and the data path, all problems at once."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megarl.cli.preflight import check_files
from megarl.config.base import ConfigError
from megarl.config.hub_names import is_hub_name
from megarl.config.loader import load_config
from megarl.config.run import RunConfig
from megarl.models.families import parse_model_config
from megarl.planning.checks import check_layout
from tests.config.text import write_config

SHAPE = {
    "model_type": "llama",
    "vocab_size": 1024,
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
        (8, ["12 attention heads", "use 4"]),
        (3, ["2 key-value heads are neither a multiple nor a divisor", "2048 rows of the MLP", "use 2 or 4"]),
        (5, ["12 attention heads", "2 key-value heads", "2048 rows of the MLP", "use 4"]),
    ],
)
def test_tensor_parallel_does_not_divide(tmp_path: Path, tensor: int, words: list[str]) -> None:
    """One line with every reason; the sizes it advises split everything, and the configuration loads with them."""
    model = make_model(tmp_path)
    for field in ("parallel", "rollout"):
        overrides = [f"{field}.tensor={tensor}", "cluster.gpus_per_node=16"]
        if field == "parallel":  # 4 and 2 divide it, as tensor does
            overrides += [f"parallel.world_size={4 * tensor}", "cluster.nodes=9"]
            overrides += ["rollout.publish.transport=network", f"train.mini_batch_responses={4 * tensor}"]
            overrides += [f"train.prompts_per_step={4 * tensor}"]
        (problem,) = problems(load(tmp_path, model, *overrides))
        assert problem.startswith(f"{field}.tensor {tensor} does not split the model: ")
        assert [word for word in words if word not in problem] == [], problem


def test_layouts_that_are_advised_where_no_single_size_helps(tmp_path: Path) -> None:
    """Three ranks: no tensor size that splits the model divides them."""
    model = make_model(tmp_path)
    (problem,) = problems(load(tmp_path, model, "parallel.tensor=3", "parallel.world_size=3"))
    assert problem.endswith("; use parallel.tensor=4 parallel.world_size=4"), problem
    found = problems(load(tmp_path, model, "parallel.tensor=3", "parallel.pipeline=4", "parallel.world_size=12",
                          "cluster.gpus_per_node=16"))  # fmt: skip
    assert [problem.partition(" does")[0] for problem in found] == ["parallel.tensor 3", "parallel.pipeline 4"]
    assert len({problem.rpartition("; ")[2] for problem in found}) == 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    heads=st.integers(1, 5).map(lambda n: 4 * n),
    share=st.sampled_from([1, 2, 4]),
    ffn=st.integers(1, 12).map(lambda n: 8 * n),
    layers=st.integers(1, 12),
    vocabulary=st.integers(1, 400),
    sizes=st.tuples(*[st.integers(1, 8)] * 4),
    sequence=st.booleans(),
)
def test_every_size_that_is_advised_works(tmp_path, heads, share, ffn, layers, vocabulary, sizes, sequence) -> None:
    tensor, pipeline, data, engine = sizes
    shape = parse_model_config(
        SHAPE
        | {
            "hidden_size": 2 * heads,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // share,
            "intermediate_size": ffn,
            "num_hidden_layers": layers,
            "vocab_size": vocabulary,
        }
    )
    values = {
        "parallel.tensor": tensor,
        "parallel.pipeline": pipeline,
        "parallel.world_size": tensor * pipeline * data,
        "rollout.tensor": engine,
        "train.prompts_per_step": tensor * data,
        "train.mini_batch_responses": 2 * data,
        "parallel.sequence": str(sequence and tensor > 1).lower(),
        "cluster.nodes": 65,
    }
    train = ["rollout.publish.transport=network"]
    config = load(tmp_path, "absent", *train, *(f"{path}={value}" for path, value in values.items()))
    for problem in check_layout(config, shape):
        field, advice = problem.partition(" ")[0], problem.rpartition("; use ")[2]
        if "context" in problem:
            continue
        if "=" in advice:
            ways: list[dict[str, object]] = [dict(word.split("=") for word in advice.split())]
        else:
            ways = [{field: size} for size in advice.split(" or ")]
        assert ways, problem
        for way in ways:
            better = load(tmp_path, "absent", *train, *(f"{path}={value}" for path, value in (values | way).items()))
            left = [text for text in check_layout(better, shape) if text.startswith(tuple(way))]
            assert left == [], f"{problem}\n{way}"


def test_more_ranks_than_key_value_heads_is_fine(tmp_path: Path) -> None:
    check_files(load(tmp_path, make_model(tmp_path), "parallel.tensor=4", "parallel.world_size=4", "rollout.tensor=4"))


def test_more_chunks_than_a_rank_has_are_refused(tmp_path: Path) -> None:
    name = "policy.megatron_overrides.virtual_pipeline_model_parallel_size"
    assert problems(load(tmp_path, make_model(tmp_path), f"{name}=2")) == [
        f"{name}: a policy rank has one model chunk as yet; remove it"
    ]


def test_fused_rows(tmp_path: Path) -> None:
    # 24 ranks suit 24 heads and 2 groups, but with head_dim 2 there are (24 + 2 * 2) * 2 = 56 rows.
    model = make_model(tmp_path, head_dim=2, num_attention_heads=24, intermediate_size=48)
    found = problems(load(tmp_path, model, "parallel.tensor=24", "parallel.world_size=24", "cluster.gpus_per_node=32"))
    assert found == [
        "parallel.tensor 24 does not split the model: 56 rows of the fused QKV are not a multiple of it; "
        "use parallel.tensor=8 parallel.world_size=16"
    ]


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
        "parallel.pipeline 4 does not divide the model's 6 layers; use 2",
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


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "llama"}'])
def test_broken_config_json(tmp_path: Path, content: str) -> None:
    model = make_model(tmp_path)
    (model / "config.json").write_text(content)
    (problem,) = problems(load(tmp_path, model))
    assert problem.startswith(f"model.path: {model}/config.json")


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
    assert "whose names end in .jsonl, .ndjson, .json, .csv, .tsv, .parquet" in problem
    (tmp_path / "data" / "a.parquet").write_bytes(b"")
    check_files(config(str(tmp_path / "data")))
