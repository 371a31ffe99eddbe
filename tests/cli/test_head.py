"""A head that the configuration leaves open is named before the run starts."""

from pathlib import Path

import pytest

from megarl.cli import head
from megarl.cli.findings import Answer
from megarl.cli.head import find_gpu_bytes, pin_head
from megarl.cli.show import render_config
from megarl.config.base import ConfigError
from megarl.config.dump import dump_config
from megarl.config.run import RunConfig
from megarl.models.families import read_model_shape
from megarl.planning.head import bytes_with_logits
from megarl.planning.policy_memory import policy_memory, policy_setup
from megarl.planning.transfer import sending_bytes
from megarl.planning.turns import ASLEEP_BYTES
from tests.config.text import load_small
from tests.models.shapes import CONFIGS

AUTO = "policy.head='auto'"
MODEL = f"model.path='{CONFIGS / 'qwen2.5-7b.json'}'"


def answering(monkeypatch: pytest.MonkeyPatch, text: str, *, stack: str = "gpu") -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(head, "detect_stack", lambda _: stack)
    monkeypatch.setattr(head, "ask_process", lambda *_, **__: Answer(succeeded=True, text=text))


def test_a_head_that_is_named_stays(tmp_path: Path) -> None:
    config = load_small(tmp_path, "policy.head='fused'")
    assert pin_head(config) == (config, ())


@pytest.mark.parametrize(("mib", "wanted"), [("300000", "logits"), ("81559", "fused")])
def test_the_gpus_decide_and_the_runs_own_file_names_it(
    mib: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, mib)
    pinned, (said,) = pin_head(load_small(tmp_path, AUTO, MODEL))
    assert pinned.policy.head == wanted
    assert said.startswith(f"head   {wanted}: ")
    assert said.endswith(" (policy.head auto)")
    assert f'head = "{wanted}"' in dump_config(pinned)
    assert pin_head(pinned) == (pinned, ())  # of a run that goes on


def test_without_gpus_it_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "never asked", stack="cpu")
    pinned, said = pin_head(load_small(tmp_path, AUTO, MODEL))
    assert pinned.policy.head == RunConfig.model_fields["policy"].default.head == "logits"
    assert said == ("head   logits: there are no GPUs (policy.head auto)",)


def test_a_machine_without_gpus_cannot_decide_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "sh: 1: nvidia-smi: not found")
    with pytest.raises(
        ConfigError, match=r"nvidia-smi tells of none on this machine \(sh: 1: .* set policy.head=logits"
    ):
        find_gpu_bytes()


def test_the_smallest_gpu_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 143771\necho 81559\necho 100000\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(head, "detect_stack", lambda _: "gpu")
    assert find_gpu_bytes() == 81_559 << 20


FAKE_TORCH = """
import os
from types import SimpleNamespace
SIZES = {"0": 5 << 30, "1": 9 << 30, "2": 7 << 30}
seen = [SIZES[name] for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
cuda = SimpleNamespace(
    device_count=lambda: len(seen), get_device_properties=lambda index: SimpleNamespace(total_memory=seen[index])
)
"""


@pytest.mark.parametrize(("visible", "gib"), [("1,2", 7), ("1", 9), ("2,0", 5)])
def test_of_chosen_gpus_the_smallest_counts(
    visible: str, gib: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch is asked, in a process of its own, as nvidia-smi shows all of them, in another order."""
    (tmp_path / "torch.py").write_text(FAKE_TORCH, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(head, "detect_stack", lambda _: "gpu")
    monkeypatch.setattr(head, "ask_process", lambda *_, **__: pytest.fail("nvidia-smi was asked"))
    assert find_gpu_bytes() == gib << 30


def test_where_no_gpu_is_chosen_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text(FAKE_TORCH, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(head, "detect_stack", lambda _: "gpu")
    with pytest.raises(ConfigError, match=r"torch sees none with CUDA_VISIBLE_DEVICES='' \(ValueError: .*choose GPUs"):
        find_gpu_bytes()


def test_a_supervised_run_counts_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On GPUs on which the same configuration's reinforcement learning has no room for logits."""
    config = load_small(tmp_path, AUTO, MODEL, "cluster.colocate=true", "objective.auxiliary.kl={}")
    shape = read_model_shape(config.model.path)
    needed, alone = bytes_with_logits(config, shape), bytes_with_logits(config, shape, sft=True)
    # The reference in bfloat16 or float32, the messages, and an engine that sleeps.
    reference = policy_memory(policy_setup(config, shape), 0).reference
    assert needed - alone == reference + sending_bytes(config.rollout.publish) + ASLEEP_BYTES
    answering(monkeypatch, str((alone >> 20) + 1))
    assert pin_head(config, sft=True)[0].policy.head == "logits"
    assert pin_head(config)[0].policy.head == "fused"


def test_show_says_what_will_decide(tmp_path: Path) -> None:
    text = render_config(load_small(tmp_path, AUTO, MODEL))
    assert "# head: decided when the run starts: logits on GPUs of 1" in text
    assert " GiB and more, else fused" in text
    text = render_config(load_small(tmp_path, AUTO, "model.path='not/there'"))
    assert "# head: decided when the run starts, by the model and the memory of the GPUs" in text
    assert "# head:" not in render_config(load_small(tmp_path))
