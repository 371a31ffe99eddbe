"""Doctor's check of what a run reads: the very functions that `megarl train` and `sft` call before a worker starts.

They import torch and transformers, so doctor runs them as probes. Each prints one JSON line: what was found, or the
problems of the ConfigError that would have ended the run.
"""

import functools
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from megarl.cli.doctor_texts import judge_texts, tell
from megarl.cli.findings import Answer, Finding, findings_of
from megarl.cli.probes import Probe
from megarl.config.base import ConfigError
from megarl.config.dump import dump_config
from megarl.config.run import RunConfig

if TYPE_CHECKING:
    from megarl.cli.inputs import ModelInputs

_MODEL_TIMEOUT_S = 300.0
_DATA_TIMEOUT_S = 300.0


def input_probes(config: RunConfig) -> list[Probe]:
    """Reward, model, stops, data and, where there is an [sft] section, its answers, as a run reads them one by one."""
    text = dump_config(config)
    names = ["reward", "model", "stops", "data", *(["sft data"] if config.sft else [])]
    return [
        Probe(
            name=name,
            code=f"from megarl.cli.doctor_inputs import report; report({name!r}, {text!r})",
            timeout_s=_DATA_TIMEOUT_S if "data" in name else _MODEL_TIMEOUT_S,
        )
        for name in names
    ]


def judge_inputs(config: RunConfig, answers: Mapping[str, Future[Answer]]) -> Iterator[Finding]:
    """What the probes said. Without a model there is no data to read."""
    for name in (probe.name for probe in input_probes(config)):
        answer = answers[name].result()
        if answer.succeeded:
            found = json.loads(answer.text)
            problems = found.get("problems", [])
            if name == "stops":
                yield from judge_texts(found)
            elif problems:
                yield from findings_of(ConfigError("", problems), name)
            else:
                yield Finding(name=name, level="ok", found=found["found"])
            if problems and name == "model":
                return
        elif answer.text.startswith("no answer after") and "data" in name:
            said = f"still being read after {_DATA_TIMEOUT_S:g} s"
            yield Finding(name=name, level="warning", found=said, action="a run reads all of it before a worker starts")
        else:
            action = "read the whole message: start `megarl train` with this configuration"
            yield Finding(name=name, level="failure", found=answer.text, action=action)


def report(name: str, text: str) -> None:
    """Print what a check found, as JSON."""
    if name == "stops":
        print(json.dumps(tell(_parse(text))))
        return
    checks: dict[str, Callable[[RunConfig], str]] = {
        "reward": _check_reward,
        "model": _check_model,
        "data": _check_data,
        "sft data": _check_sft_data,
    }
    try:
        print(json.dumps({"found": checks[name](_parse(text))}))
    except ConfigError as error:
        print(json.dumps({"problems": list(error.problems)}))


def _parse(text: str) -> RunConfig:
    return RunConfig.model_validate(tomllib.loads(text))


def _check_reward(config: RunConfig) -> str:
    from megarl.rewards.verifiers import check_reward

    check_reward(config.reward)
    return f"{config.reward.verifier.kind} can score"


@functools.cache
def _load_model(text: str) -> "ModelInputs":
    from megarl.cli.inputs import load_model_inputs

    return load_model_inputs(_parse(text))


def _check_model(config: RunConfig) -> str:
    from megarl.models.families import read_model_shape
    from megarl.models.table import hf_tensors

    model = _load_model(dump_config(config))
    shape = read_model_shape(Path(config.model.path))
    count = _total(hf_tensors(shape).values())
    digits = 0 if count >= 1e8 else 1
    return f"{shape.family}, {count / 1e6:,.{digits}f} M parameters as config.json says, {len(model.tokenizer)} tokens"


def _check_data(config: RunConfig) -> str:
    from megarl.cli.inputs import load_train_inputs

    model = _load_model(dump_config(config))
    data = load_train_inputs(model.pin(config), model)
    return f"{len(data.prompts):,} prompts, each within rollout.max_prompt_tokens {config.rollout.max_prompt_tokens}"


def _check_sft_data(config: RunConfig) -> str:
    from megarl.cli.inputs import load_sft_inputs

    model = _load_model(dump_config(config))
    pairs = load_sft_inputs(model.pin(config), model)
    return f"{len(pairs):,} answers to train on"


def _total(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)
