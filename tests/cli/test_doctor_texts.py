"""`megarl doctor` on what ends a response, as doctor's probe reads it."""

import datetime
import shutil
from pathlib import Path

import pytest

from megarl.cli.doctor_texts import judge_texts, tell
from megarl.cli.findings import Finding
from megarl.cli.inputs import load_text_inputs
from tests.config.text import load_small
from tests.data.templates import LLAMA32, PLAIN, make_tokenizer, write_model_files


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model_files(tmp_path / "model", make_tokenizer(LLAMA32))


def save(template: str, model: Path) -> None:
    make_tokenizer(template).save_pretrained(model)


def findings(tmp_path: Path, model: Path, *overrides: str) -> list[Finding]:
    return list(judge_texts(tell(load_small(tmp_path, f"model.path={model}", *overrides))))


def test_stops_and_the_pinned_clock(tmp_path: Path, model: Path) -> None:
    save(LLAMA32, model)
    found = findings(tmp_path, model, "data.date=2024-02-29", 'rollout.stop_strings=["###"]')
    assert [(finding.name, finding.level) for finding in found] == [("stops", "ok")] * 3 + [("date", "info")]
    assert found[0].found.endswith("the chat template's end of turn")
    assert found[2].found.startswith("the text '###': rollout.stop_strings")
    assert found[3].found == "2024-02-29 (data.date): the chat template reads the clock, which stands at this day"


def test_a_turn_that_ends_with_text_is_a_warning(tmp_path: Path, model: Path) -> None:
    save(PLAIN, model)
    found = findings(tmp_path, model, "data.date=2024-02-29")
    assert [finding.level for finding in found] == ["ok", "warning", "info"]
    assert "nothing stops at '\\n### End\\n'" in found[1].found
    assert found[2].found == "2024-02-29 (data.date): no prompt shows it"


def test_what_cannot_work_is_a_failure(tmp_path: Path, model: Path) -> None:
    save(LLAMA32, model)
    (finding,) = findings(tmp_path, model, "rollout.stop_token_ids=[99999]")
    assert (finding.level, finding.action) == ("failure", "correct it there")
    assert "stop token 99999 (rollout.stop_token_ids) is none of the tokenizer's" in finding.found
    (finding,) = findings(tmp_path, model, "data.instruction=Stop with <|eot_id|>")
    assert finding.found == "data.instruction contains the control token <|eot_id|>"
    shutil.rmtree(model)
    assert [finding.level for finding in findings(tmp_path, model)] == ["failure"]


def test_a_run_pins_today_where_the_template_reads_the_clock_and_keeps_it(tmp_path: Path, model: Path) -> None:
    save(LLAMA32, model)
    config = load_small(tmp_path, f"model.path={model}")
    today = datetime.date.today().isoformat()
    assert load_text_inputs(config).pin(config).data.date == today
    given = load_small(tmp_path, f"model.path={model}", "data.date=2024-02-29")
    assert load_text_inputs(given).pin(given).data.date == "2024-02-29"
    save(PLAIN, model)
    assert load_text_inputs(config).pin(config).data.date is None
    assert load_text_inputs(given).pin(given).data.date == "2024-02-29"
