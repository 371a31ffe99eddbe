"""Reward functions that worker processes of the tests import."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from megarl.records import Prompt


def by_command(prompt: Prompt, response: str) -> float:  # noqa: PLR0912  (a branch for each command)
    """Does what the response says."""
    match response.split():
        case ["sleep", seconds]:
            time.sleep(float(seconds))
        case ["hold_lock"]:  # a C call that keeps the interpreter's lock: no Python thread of the worker runs again
            (10**7) ** (10**8)
        case ["exit", code]:
            os._exit(int(code))
        case ["value", seconds, number]:
            time.sleep(float(seconds))
            return float(number)
        case ["signal", path, number]:  # ends or stops its own process, each time that it is asked
            with Path(path).open("a") as file:
                file.write("asked\n")
            os.kill(os.getpid(), int(number))
            time.sleep(600)
        case ["noted_exit", path]:
            with Path(path).open("a") as file:
                file.write("asked\n")
            os._exit(5)
        case ["raise"]:
            raise ZeroDivisionError("the user's own bug")
        case ["nan"]:
            return float("nan")
        case ["text"]:
            return "1.0"  # type: ignore[return-value]
        case ["numpy"]:
            return np.float32(0.25)  # type: ignore[return-value]
        case ["print"]:
            print("to stdout")
        case ["child", path]:
            child = subprocess.Popen(["sleep", "600"])
            Path(path).write_text(str(child.pid))
            time.sleep(600)
        case ["torch"]:
            return float("torch" in sys.modules)
        case ["answer"]:
            return float(prompt.answer)
    return 1.0


def one_argument(prompt: Prompt) -> float:
    return 0.0


async def coroutine(prompt: Prompt, response: str) -> float:
    return 0.0


NOT_A_FUNCTION = 3


def verl_score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, int]) -> dict[str, float]:
    right = (data_source, extra_info) == ("sums", {"level": 2}) and solution_str.endswith(ground_truth)
    return {"score": float(right), "acc": 1.0}


def trl_reward(prompts: list[str], completions: list[str], answer: list[str], **kwargs: list[object]) -> list[float]:
    assert kwargs["difficulty"] == ["easy"]
    assert kwargs["ground_truth"] == answer
    assert prompts == ["What is 3 + 4?"]
    return [float(text.endswith(truth)) for text, truth in zip(completions, answer, strict=True)]


def trl_named_columns(completions: list[str], solution: list[str]) -> list[bool]:
    return [text.endswith(truth) for text, truth in zip(completions, solution, strict=True)]


def trl_messages_reward(
    prompts: list[list[dict[str, str]]], completions: list[list[dict[str, str]]], answer: list[str], **kwargs: object
) -> list[float]:
    assert prompts[0][-1]["role"] == "user"
    return [float(turns[-1]["content"].endswith(truth)) for turns, truth in zip(completions, answer, strict=True)]


def is_answer(prompt: Prompt, response: str) -> bool:
    return response == prompt.answer


def none_for_empty(prompt: Prompt, response: str) -> float | None:
    return 1.0 if response else None


def nan_for_truth(prompt: Prompt, response: str) -> float:
    return float("nan") if response == prompt.answer else 0.0


def hangs(prompt: Prompt, response: str) -> float:
    time.sleep(600)
    return 0.0


def exits(prompt: Prompt, response: str) -> float:
    os._exit(4)


def needs_variable(prompt: Prompt, response: str) -> float:
    return float(bool(os.environ["JUDGE_URL"]))


def sees_variable(prompt: Prompt, response: str) -> float:
    """Whether the variable that the response names is set."""
    return float(response in os.environ)


def allocates(prompt: Prompt, response: str) -> float:
    """As many MiB as the response says, touched."""
    return float(len(bytearray(int(response) * 2**20)) > 0)


def minus_one_to_one(prompt: Prompt, response: str) -> float:
    return _on_scale(response, -1.0, 1.0)


def five_to_ten(prompt: Prompt, response: str) -> float:
    return _on_scale(response, 5.0, 10.0)


def minus_ten_to_minus_five(prompt: Prompt, response: str) -> float:
    return _on_scale(response, -10.0, -5.0)


def zero_to_one(prompt: Prompt, response: str) -> float:
    return _on_scale(response, 0.0, 1.0)


def _on_scale(response: str, wrong: float, right: float) -> float:
    match response:
        case "hang":
            time.sleep(600)
        case "exit":
            os._exit(4)
        case "half":
            return (wrong + right) / 2
        case "worse":
            return wrong - 0.5
    return right if response == "right" else wrong
