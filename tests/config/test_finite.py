"""Which numbers may be inf, and what is legal but probably not meant."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import ValidationError

from megarl.cli import doctor
from megarl.cli.show import render_config
from megarl.config.base import Config, ConfigError
from megarl.config.fields import iter_fields, section_types
from megarl.config.loader import load_config
from megarl.config.run import RunConfig
from megarl.config.theory import TheoryConfig
from megarl.config.warnings import find_warnings
from tests.config.text import SMALL, write_config

MAY_BE_INFINITE = {
    *("ConstantClip.high", "LogClip.low", "LogClip.high", "DcpoClip.cap", "GrowingClip.low", "GrowingClip.high"),
    *("PpoGate.dual", "CeGppoGate.dual"),
    *("CispoGate.cap", "DppoGate.low", "DppoGate.high", "DppoGate.cap", "AspoGate.cap", "UpGate.dual"),
    *("TruncatedImportance.cap", "MaskedImportance.high", "SequenceRejection.high", "EntropyRatioClip.high"),
    *("ClosedLoopClip.high_tight", "ClosedLoopClip.high_loose", "RolloutConfig.max_logp_diff", "TheoryClipConfig.high"),
}
"""Where inf means off."""


def float_fields() -> Iterator[tuple[type[Config], str]]:
    """Every section of both schemas with each of its fields that is a number."""
    sections: list[type[Config]] = [RunConfig, TheoryConfig]
    for schema in (RunConfig, TheoryConfig):
        sections += [section for entry in iter_fields(schema) for section in section_types(entry.info.annotation)]
    for section in dict.fromkeys(sections):
        for name, info in section.model_fields.items():
            if info.annotation is float or (get_origin(info.annotation) and float in get_args(info.annotation)):
                yield section, name


def accepts(section: type[Config], name: str, value: Any) -> bool:
    try:
        section.model_validate({name: value})
    except ValidationError as error:
        return all(detail["loc"] != (name,) for detail in error.errors())
    return True


def test_every_number_is_finite_or_says_that_inf_is_off() -> None:
    found = list(float_fields())
    assert len(found) > 70
    infinite = {f"{section.__name__}.{name}" for section, name in found if accepts(section, name, math.inf)}
    assert infinite == MAY_BE_INFINITE
    for section, name in found:
        assert not accepts(section, name, math.nan), f"{section.__name__}.{name}"
        assert not accepts(section, name, -math.inf), f"{section.__name__}.{name}"
        if f"{section.__name__}.{name}" in infinite:
            assert "inf" in (section.model_fields[name].description or ""), f"{section.__name__}.{name}"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("policy.optimizer.lr=inf", "policy.optimizer.lr: expected a finite number > 0, found inf (float)"),
        ("policy.optimizer.lr=nan", "policy.optimizer.lr: expected a finite number > 0, found nan (float)"),
        ("objective.clip.high=nan", "objective.clip.high: expected a number >= 0, found nan (float)"),
        ("rollout.temperature=inf", "rollout.temperature: expected a finite number > 0, found inf (float)"),
        ("objective.clip.low=1.2", "objective.clip.low: expected a number >= 0 and <= 1, found 1.2 (float)"),
    ],
)
def test_what_the_user_reads(tmp_path: Path, override: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(tmp_path), [override])
    assert [text.partition(" [override")[0] for text in caught.value.problems] == [problem]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["train.steps=3", "policy.optimizer.warmup_updates=12"],
            "policy.optimizer.warmup_updates 12 leaves no update after the warm-up: the run has 12 (train.steps 3 x 4 "
            "updates per step); warm up for fewer, or train longer",
        ),
        (
            ["sft.steps=5", "sft.batch_examples=4", "sft.optimizer.warmup_updates=8"],
            "sft.optimizer.warmup_updates 8 leaves no update after the warm-up: the run has 5 (sft.steps 5); warm up "
            "for fewer, or train longer",
        ),
    ],
)
def test_a_warm_up_is_shorter_than_the_run(tmp_path: Path, overrides: list[str], problem: str) -> None:
    sizes = ["train.prompts_per_step=4", "train.samples_per_prompt=4", "train.mini_batch_responses=4"]
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(tmp_path), [*sizes, *overrides])
    assert [text.partition(" [override")[0] for text in caught.value.problems] == [problem]
    fewer = [text.replace("warmup_updates=12", "warmup_updates=11").replace("=8", "=4") for text in overrides]
    load_config(write_config(tmp_path), [*sizes, *fewer])


WARNINGS = {
    "objective.clip.high=1.28": (
        "objective.clip.high 1.28 is the distance from 1: ratios are clipped above 2.28; did you mean 0.28? inf turns "
        "the side off"
    ),
    'objective.clip={kind="log", low=1.4}': (
        "objective.clip.low 1.4 is the distance of the log ratio from 0; did you mean 0.4? inf turns the side off"
    ),
    'objective.gate={kind="cispo", cap=0.28}': (
        "objective.gate.cap 0.28 is a ratio, so no weight is more than 0.28; did you mean 1.28?"
    ),
    "objective.weights.tis.cap=0.5": (
        "objective.weights.tis.cap 0.5 is a ratio, so no weight is more than 0.5; did you mean 1.5?"
    ),
    "policy.optimizer.min_lr=1e-8": (
        'policy.optimizer.min_lr 1e-08 is not read by policy.optimizer.schedule "constant"; did you mean "cosine"?'
    ),
}


@pytest.mark.parametrize("override", WARNINGS)
def test_legal_and_probably_not_meant(tmp_path: Path, override: str) -> None:
    extra = ['objective.clip={kind="none"}'] if "cispo" in override else []
    config = load_config(write_config(tmp_path), [*extra, override])
    assert find_warnings(config) == [WARNINGS[override]]
    assert render_config(config).startswith(f"# warning: {WARNINGS[override]}\n")


@pytest.mark.parametrize("high", ["0.28", "1.0", "2.0", "10.0", "inf"])
def test_bounds_that_papers_use_are_not_warned_of(tmp_path: Path, high: str) -> None:
    assert find_warnings(load_config(write_config(tmp_path), [f"objective.clip.high={high}"])) == []


def test_no_configuration_of_the_repository_is_warned_of() -> None:
    root = Path(__file__).parents[2] / "configs"
    for path in [root / "quickstart.toml", root / "smollm2-135m.toml", *sorted((root / "papers").glob("*.toml"))]:
        assert find_warnings(load_config(path)) == [], path.name
    for fragment in sorted((root / "methods").glob("*.toml")):
        assert find_warnings(load_config(root / "quickstart.toml", [str(fragment)])) == [], fragment.name


def test_doctor_shows_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_files", lambda config, others, versions: None)
    _, findings = doctor.check_config(write_config(tmp_path, SMALL), ["objective.clip.high=1.28"])
    (warning,) = [finding for finding in findings if finding.level == "warning"]
    assert warning.found == "objective.clip.high 1.28 is the distance from 1: ratios are clipped above 2.28"
    assert warning.action == "did you mean 0.28? inf turns the side off"
