"""Fragments and overrides: what is merged, what is replaced, and which file a problem is blamed on."""

from pathlib import Path

import pytest

from megarl.config.advantage import Grpo, SmoothedAdvantage
from megarl.config.base import Config, ConfigError
from megarl.config.gate import PpoGate, SapoGate
from megarl.config.loader import find_replacements, load_config, load_section, load_theory, source_files
from megarl.config.objective import ObjectiveConfig
from megarl.config.run import RunConfig
from megarl.config.trust import ArcherClip, ConstantClip, DcpoClip, NoClip
from megarl.config.weight import TruncatedImportance
from tests.config.text import SMALL, write_config

BASE = f"""{SMALL}
[objective.gate]
dual = 3.0
[objective.clip]
low = 0.1
[objective.weights.tis]
cap = 5.0
[rollout.vllm_overrides]
seed = 3
"""


def write_fragment(directory: Path, name: str, text: str) -> str:
    path = directory / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def load(directory: Path, *arguments: str) -> RunConfig:
    return load_config(write_config(directory, BASE), arguments)


def message(directory: Path, *arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(directory, *arguments)
    return str(caught.value).splitlines()


def test_tables_merge_key_by_key(tmp_path: Path) -> None:
    fragment = write_fragment(
        tmp_path, "f", "[train]\nsteps = 7\n[objective.weights.tis]\nfloor = 0.5\n[rollout.vllm_overrides]\nmore = 1\n"
    )
    config = load(tmp_path, fragment)
    assert (config.train.steps, config.train.prompts_per_step) == (7, 4)
    assert config.objective.weights.tis == TruncatedImportance(cap=5.0, floor=0.5)
    assert config.rollout.vllm_overrides == {"seed": 3, "more": 1}


def test_files_and_overrides_apply_in_order(tmp_path: Path) -> None:
    one = write_fragment(tmp_path, "one", "[train]\nsteps = 1\n")
    two = write_fragment(tmp_path, "two", "[train]\nsteps = 2\n")
    assert load(tmp_path, one, two).train.steps == 2
    assert load(tmp_path, two, one).train.steps == 1
    assert load(tmp_path, one, "train.steps=9").train.steps == 9
    assert load(tmp_path, "train.steps=9", one).train.steps == 1


def test_a_new_tag_replaces_the_table(tmp_path: Path) -> None:
    sapo = write_fragment(tmp_path, "sapo", '[objective]\ngate = { kind = "sapo" }\nclip = { kind = "none" }\n')
    objective = load(tmp_path, sapo).objective
    assert objective.gate == SapoGate(kind="sapo")
    assert objective.clip == NoClip(kind="none")


def test_the_same_tag_named_or_not_merges(tmp_path: Path) -> None:
    for text in ('[objective.clip]\nkind = "constant"\nhigh = 0.4\n', "[objective.clip]\nhigh = 0.4\n"):
        assert load(tmp_path, write_fragment(tmp_path, "f", text)).objective.clip == ConstantClip(low=0.1, high=0.4)
    assert load(tmp_path, 'objective.gate.kind="ppo"').objective.gate == PpoGate(dual=3.0)


def test_an_override_of_the_tag_drops_what_the_file_said(tmp_path: Path) -> None:
    objective = load(tmp_path, "objective.gate.kind=sapo", "objective.clip.kind=none").objective
    assert objective.gate == SapoGate(kind="sapo")
    # low is a key of both, of another meaning in each: 0.16 is DCPO's own, 0.1 was the constant distance.
    assert load(tmp_path, "objective.clip.kind=dcpo").objective.clip == DcpoClip(kind="dcpo")


def test_an_override_of_the_tag_keeps_other_overrides(tmp_path: Path) -> None:
    expected = ArcherClip(kind="archer", low=0.05)
    for arguments in (
        ("objective.clip.low=0.05", "objective.clip.kind=archer"),
        ("objective.clip.kind=archer", "objective.clip.low=0.05"),
    ):
        assert load(tmp_path, *arguments).objective.clip == expected
    _, problem = message(tmp_path, "objective.gate.dual=2", "objective.gate.kind=sapo", "objective.clip.kind=none")
    assert problem == (
        '  objective.gate.dual: unknown key; it belongs to objective.gate.kind = "ppo" or objective.gate.kind = '
        '"ce_gppo" or objective.gate.kind = "up" [override \'objective.gate.dual=2\']'
    )


def test_a_tag_whose_table_the_file_lacks(tmp_path: Path) -> None:
    advantage = load(tmp_path, "objective.advantage.method=smoothed").objective.advantage
    assert advantage == SmoothedAdvantage(method="smoothed")
    config = load(tmp_path, "objective.advantage.method=grpo", "objective.advantage.eps=0.5")
    assert config.objective.advantage == Grpo(method="grpo", eps=0.5)


def test_optional_tables_go_on_and_off(tmp_path: Path) -> None:
    assert load(tmp_path, "objective.weights.tis={}").objective.weights.tis == TruncatedImportance()
    assert load(tmp_path, "objective.weights.tis=false").objective.weights.tis is None
    off = write_fragment(tmp_path, "off", "[objective.weights]\ntis = false\n")
    assert load(tmp_path, off).objective.weights.tis is None
    assert load(tmp_path, off, "objective.weights.tis={}").objective.weights.tis == TruncatedImportance()
    empty = write_fragment(tmp_path, "empty", "[objective.weights.opsm]\n[objective.weights.tis]\n")
    weights = load(tmp_path, empty).objective.weights
    assert weights.opsm is not None
    assert weights.tis == TruncatedImportance(cap=5.0)
    assert message(tmp_path, "objective.weights.opsm=true")[1] == (
        "  objective.weights.opsm: expected a table, or false (off), found true (boolean); {} turns it on with its "
        "defaults [override 'objective.weights.opsm=true']"
    )


def test_false_does_not_take_away_what_is_not_optional(tmp_path: Path) -> None:
    assert message(tmp_path, "train=false")[1] == (
        "  train: expected a table, found false (boolean) [override 'train=false']"
    )
    assert message(tmp_path, "model.path=false")[1].startswith("  model.path: expected a string, found false")


def test_a_member_named_in_place_of_its_table(tmp_path: Path) -> None:
    assert message(tmp_path, "objective.gate=sapo")[1] == (
        '  objective.gate: expected a table, found "sapo" (string); did you mean objective.gate.kind = "sapo"? '
        "[override 'objective.gate=sapo']"
    )


def test_problems_name_their_file(tmp_path: Path) -> None:
    good = write_fragment(tmp_path, "good", "[train]\nsteps = 7\n")
    bad = write_fragment(
        tmp_path, "bad", '[objective.gate]\nkind = "sapo"\ndual = 1.0\n[train]\nstepz = 3\n[policy]\nhead = "x"\n'
    )
    path = write_config(tmp_path, BASE.replace("low = 0.1", "low = 2.0"))
    with pytest.raises(ConfigError) as caught:
        load_config(path, [good, bad, "train.seed=-1"])
    assert str(caught.value).splitlines() == [
        f"{path} + {good} + {bad}: 5 problems",
        f'  policy.head: expected one of "auto", "logits", "fused", found "x" (string) [{bad}]',
        f"  objective.clip.low: expected a number >= 0 and <= 1, found 2.0 (float) [{path}]",
        '  objective.gate.dual: unknown key; it belongs to objective.gate.kind = "ppo" or objective.gate.kind = '
        f'"ce_gppo" or objective.gate.kind = "up" [{bad}]',
        "  train.seed: expected an integer >= 0, found -1 (integer) [override 'train.seed=-1']",
        f"  train.stepz: unknown key; did you mean train.steps? [{bad}]",
    ]


def test_a_rule_names_the_files_that_set_what_it_speaks_of(tmp_path: Path) -> None:
    sapo = write_fragment(tmp_path, "sapo", '[objective]\ngate = { kind = "sapo" }\nclip = { kind = "none" }\n')
    flexec = write_fragment(tmp_path, "flexec", '[objective.clip]\nkind = "flexec"\n')
    assert message(tmp_path, sapo, flexec)[1].endswith(f" [{sapo}, {flexec}]")
    # With one file its name is the heading; an override is named always.
    _, problem = message(tmp_path, "objective.gate.kind=sapo")
    assert problem.endswith("[override 'objective.gate.kind=sapo']")
    _, problem = message(tmp_path, sapo, "objective.clip={kind='flexec'}")
    assert problem.endswith(f"[{sapo}, override \"objective.clip={{kind='flexec'}}\"]")


def test_a_rule_names_keys_that_its_text_shortens(tmp_path: Path) -> None:
    """world_size is named in full, tensor beside it; tensor of another section and words of prose are not blamed."""
    _, problem = message(tmp_path, "parallel.tensor=2", "parallel.world_size=3", "rollout.tensor=1", "train.seed=2")
    assert problem.endswith("[override 'parallel.world_size=3', override 'parallel.tensor=2']")
    fragment = write_fragment(tmp_path, "f", "[train]\nsamples_per_prompt = 3\n")
    _, problem = message(tmp_path, fragment, "train.mini_batch_responses=5")
    path = tmp_path / "run.toml"
    assert problem.endswith(f"[{path}, {fragment}, override 'train.mini_batch_responses=5']")


def replaced(directory: Path, *arguments: str) -> list[tuple[str, object, str, str, object, str]]:
    path = write_config(directory, BASE)
    return [
        (found.path, found.value, Path(found.origin.text).stem, found.by_path, found.by_value, Path(found.by.text).stem)
        for found in find_replacements(path, arguments)
    ]


def test_what_files_take_from_one_another_is_known(tmp_path: Path) -> None:
    one = write_fragment(tmp_path, "one", "[objective.clip]\nlow = 0.3\nhigh = 0.5\n[objective.gate]\ndual = 3.0\n")
    two = write_fragment(
        tmp_path, "two", '[objective]\nclip = { kind = "dcpo", low = 0.3 }\nweights = { tis = false }\n'
    )
    assert replaced(tmp_path) == []
    assert replaced(tmp_path, one) == [("objective.clip.low", 0.1, "run", "objective.clip.low", 0.3, "one")]
    assert replaced(tmp_path, one, two) == [
        ("objective.clip.low", 0.1, "run", "objective.clip.low", 0.3, "one"),
        ("objective.clip.low", 0.3, "one", "objective.clip.kind", "dcpo", "two"),
        ("objective.clip.high", 0.5, "one", "objective.clip.kind", "dcpo", "two"),
        ("objective.weights.tis.cap", 5.0, "run", "objective.weights.tis", False, "two"),
    ]


def test_what_overrides_decide_is_no_disagreement_of_files(tmp_path: Path) -> None:
    one = write_fragment(tmp_path, "one", "[objective.clip]\nlow = 0.3\n")
    sapo = write_fragment(tmp_path, "sapo", '[objective]\ngate = { kind = "sapo" }\nclip = { kind = "none" }\n')
    assert replaced(tmp_path, one, "objective.clip.low=0.4") == []
    assert replaced(tmp_path, "objective.gate.dual=9") == []
    undone = replaced(tmp_path, sapo, "objective.gate.kind=ppo", "objective.clip.kind=constant")
    assert undone == []


def test_missing_keys_are_blamed_on_who_opened_the_table(tmp_path: Path) -> None:
    fragment = write_fragment(tmp_path, "f", "[sft]\nsteps = 3\n[reward.verifier]\nkind = 'function'\n")
    lines = message(tmp_path, fragment)
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["reward.verifier.path", "sft.batch_examples"]
    assert all(line.endswith(f"[{fragment}]") for line in lines[1:])


def test_every_unreadable_file_is_named(tmp_path: Path) -> None:
    broken = write_fragment(tmp_path, "broken", "[train\n")
    write_fragment(tmp_path, "sapo", "")
    lines = message(tmp_path, str(tmp_path / "sappo.toml"), broken)
    assert f"{tmp_path / 'sappo.toml'}: no such file; did you mean {tmp_path / 'sapo.toml'}" in lines[0]
    assert lines[1].startswith(f"{broken}:1:7: TOML syntax: ")


def test_a_name_without_its_directory_or_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # `configs` where the person stands is looked at too
    (tmp_path / "methods").mkdir()
    sapo = write_fragment(tmp_path / "methods", "sapo", "")
    base = write_fragment(tmp_path, "v1.5", BASE)
    expected = "expected a.b=value, e.g. train.steps=10, or a fragment FILE.toml"
    for name in ("sapo", f"{tmp_path}/methods/sapo", "sappo"):
        assert message(tmp_path, name)[1] == f"  argument {name!r}: {expected}; did you mean {sapo}?"
    assert message(tmp_path, "v1.5")[1].endswith(f"did you mean {base}?")
    for name in ("train.steps", "unheard-of"):
        assert message(tmp_path, name)[1] == f"  argument {name!r}: {expected}"
    assert message(tmp_path, "sapo.toml") == [f"sapo.toml: no such file; did you mean {sapo}?"]


def test_a_file_of_another_verb_is_one_line(tmp_path: Path) -> None:
    study = write_fragment(tmp_path, "study", "seed = 1\n[clip]\nlow = 0.1\n")
    path = write_config(tmp_path, BASE)
    for load_it in (lambda: load_theory(path, []), lambda: load_theory(Path(study), [str(path), "sed=3"])):
        with pytest.raises(ConfigError) as caught:
            load_it()
        assert str(caught.value) == (
            f"{path}: expected a theory configuration, such as configs/theory.toml; found a training configuration, "
            "which `megarl train`, `sft`, `plan`, `show` and `doctor` read"
        )
    for load_it in (lambda: load_config(Path(study)), lambda: load_config(path, [study])):
        with pytest.raises(ConfigError) as caught:
            load_it()
        assert str(caught.value) == (
            f"{study}: expected a training configuration, such as configs/quickstart.toml; found a theory "
            "configuration, which `megarl theory` reads"
        )


def test_a_fragment_that_left_out_its_section_is_told_the_section(tmp_path: Path) -> None:
    fragment = write_fragment(tmp_path, "f", "[clip]\nlow = 0.1\n")
    assert message(tmp_path, fragment)[1] == f"  clip: unknown key; did you mean objective.clip? [{fragment}]"


def test_source_files_are_the_fragments() -> None:
    assert source_files(["a.toml", "train.steps=1", "model.path=x.toml", "b/c.toml"]) == [
        Path("a.toml"),
        Path("b/c.toml"),
    ]


class Pair(Config):
    left: int = 1
    right: int = 2


def test_other_schemas(tmp_path: Path) -> None:
    assert load_section(None, [], Pair) == Pair()
    assert load_section(None, ["left=5"], Pair) == Pair(left=5)
    path = Path(write_fragment(tmp_path, "pair", "left = 3\n"))
    assert load_section(path, ["right=4"], Pair) == Pair(left=3, right=4)
    assert load_section(None, ["clip.kind=dcpo"], ObjectiveConfig).clip == DcpoClip(kind="dcpo")
    with pytest.raises(ConfigError) as caught:
        load_section(None, ["lefd=5"], Pair)
    assert str(caught.value).splitlines() == [
        "overrides: 1 problem",
        "  lefd: unknown key; did you mean left? [override 'lefd=5']",
    ]
