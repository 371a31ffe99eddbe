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
from tests.config.text import load_small
from tests.models.shapes import CONFIGS

AUTO = "policy.head='auto'"
MODEL = f"model.path='{CONFIGS / 'qwen2.5-7b.json'}'"


def answering(monkeypatch: pytest.MonkeyPatch, text: str, *, stack: str = "gpu") -> None:
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
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(head, "detect_stack", lambda _: "gpu")
    assert find_gpu_bytes() == 81_559 << 20


def test_show_says_what_will_decide(tmp_path: Path) -> None:
    text = render_config(load_small(tmp_path, AUTO, MODEL))
    assert "# head: decided when the run starts: logits on GPUs of 1" in text
    assert " GiB and more, else fused" in text
    text = render_config(load_small(tmp_path, AUTO, "model.path='not/there'"))
    assert "# head: decided when the run starts, by the model and the memory of the GPUs" in text
    assert "# head:" not in render_config(load_small(tmp_path))
