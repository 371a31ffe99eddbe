"""A first step whose responses nearly all run to the limit: when it is told, and with which cause."""

import dataclasses
import io
import logging
from pathlib import Path

import pytest

from megarl.controller.cut_off import describe_cut_off
from megarl.controller.reporting import StepReporter
from megarl.data.answer_end import TurnFrame
from megarl.data.stops import StopConditions
from megarl.records import Rollout, SampleRequest
from megarl.telemetry.console import Console
from megarl.telemetry.run_directory import RunDirectory
from megarl.telemetry.sinks import build_sinks, build_update_sinks
from megarl.telemetry.spans import Spans
from tests.controller.fakes import Recorder, make_config, run

NAMES = {1: "<|endoftext|>", 2: "<|im_end|>"}
STOPS = StopConditions(sources={1: "eos_token_id of config.json"}, names=NAMES)


def rollout(*response: int, cut: bool = True) -> Rollout:
    return Rollout(
        prompt=(5,),
        response=response,
        behavior_logp=(-1.0,) * len(response),
        stop_reason="length" if cut else "stop",
        policy_version=0,
    )


def described(rollouts: list[Rollout], stops: StopConditions = STOPS) -> str:
    text = describe_cut_off(rollouts, stops, limit=3)
    assert text is not None
    return text


def test_it_is_told_from_95_of_100_on() -> None:
    assert describe_cut_off([rollout(7, 8, 9)] * 94 + [rollout(1, cut=False)] * 6, STOPS, limit=3) is None
    text = described([rollout(7, 8, 9)] * 95 + [rollout(1, cut=False)] * 5)
    assert text.startswith("95% of the first 100 responses ran to rollout.max_response_tokens = 3.\n")
    assert "What stops a response: <|endoftext|> (id 1): eos_token_id of config.json.\n" in text
    assert describe_cut_off([], STOPS, limit=3) is None


def test_a_control_token_that_stops_nothing_is_the_likely_cause() -> None:
    text = described([rollout(7, 2, 2), rollout(2, 8, 9), rollout(7, 8, 9)])
    assert text.endswith(
        "Likely cause: 2 of them contain <|im_end|> (id 2), which stops nothing; if the model ends its turns with it, "
        "set rollout.stop_token_ids = [2]."
    )


def test_a_control_token_in_few_responses_is_not() -> None:
    """A model that was never trained writes every token now and then."""
    assert "hardly one of them contains" in described([rollout(7, 2, 2)] * 9 + [rollout(7, 8, 9)] * 91)
    assert "10 of them contain <|im_end|>" in described([rollout(7, 2, 2)] * 10 + [rollout(7, 8, 9)] * 90)


def test_a_turn_that_ends_with_text_is_the_likely_cause() -> None:
    stops = StopConditions(sources=STOPS.sources, names=NAMES, frame=TurnFrame(after="\n### End"))
    assert "ends a turn with the text '\\n### End', which is no token; set rollout.stop_strings" in described(
        [rollout(7, 8, 9)], stops
    )


def test_else_the_limit_or_the_model_is() -> None:
    text = described([rollout(7, 8, 9)])
    assert "hardly one of them contains a control token" in text
    assert "raise rollout.max_response_tokens = 3" in text
    assert "warm it up with `megarl sft`" in text


class CutOff(Recorder):
    """Every response of the steps asked for reaches the limit."""

    def __init__(self, *, calls: int) -> None:
        super().__init__()
        self._calls = calls

    def answer(self, position: int, request: SampleRequest) -> Rollout:
        rollout = super().answer(position, request)
        if self.calls.count("generate") <= self._calls:
            return rollout
        return dataclasses.replace(rollout, stop_reason="length")


def test_only_the_first_step_is_judged() -> None:
    first, later = CutOff(calls=0), CutOff(calls=1)
    run(make_config(steps=2), first)
    run(make_config(steps=2), later)
    assert (len(first.warnings), later.warnings) == (1, [])
    assert first.warnings[0].startswith("100% of the first 4 responses ran to rollout.max_response_tokens = 1024.")


def test_it_is_told_before_dynamic_sampling_gives_up() -> None:
    """Where nothing stops, all rewards are equal, and the step itself never comes to be."""
    recorder = CutOff(calls=0)
    recorder._verify = lambda item: 0.0
    with pytest.raises(RuntimeError, match="only 0 of the 2 groups"):
        run(make_config({"sampler": {"kind": "dynamic"}}, steps=1), recorder)
    assert len(recorder.warnings) == 1


def test_a_warning_stands_out_on_the_display_and_is_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config()
    logging_config = config.logging.model_copy(update={"directory": str(tmp_path)})
    directory = RunDirectory.create(config.model_copy(update={"logging": logging_config}), source=None, verb="train")
    file = io.StringIO()
    sinks, update_sinks = build_sinks(config, run=directory), build_update_sinks(run=directory)
    with Console(steps=2, file=file) as console, Spans() as spans, caplog.at_level(logging.WARNING):
        StepReporter(
            config=config,
            directory=directory,
            console=console,
            sinks=sinks,
            update_sinks=update_sinks,
            spans=spans,
        ).warn("a\nb")
    sinks.close()
    update_sinks.close()
    assert file.getvalue() == "\n!!! a\n!!! b\n\n"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("WARNING", "a\nb")]
