"""Reward functions that worker processes of the tests import."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from megarl.records import Prompt


def by_command(prompt: Prompt, response: str) -> float:
    """Does what the response says."""
    match response.split():
        case ["sleep", seconds]:
            time.sleep(float(seconds))
        case ["hold_lock"]:  # a C call that keeps the interpreter's lock: no Python thread of the worker runs again
            (10**7) ** (10**8)
        case ["exit", code]:
            os._exit(int(code))
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
