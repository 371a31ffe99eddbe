"""A user's reward function, `package.module:function`, called as function(prompt: Prompt, response: str) -> float."""

import importlib
import inspect
import math
import numbers
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from megarl.config.base import ConfigError
from megarl.records import Prompt


def load_user_function(path: str) -> Callable[[Prompt, str], Any]:
    """Import the function; the working directory is searched after sys.path. ConfigError says what was not found."""
    module_name, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"reward.verifier.path {path!r}: no module {error.name!r} in {os.getcwd()} or on sys.path; install its "
                "package or add its directory to PYTHONPATH"
            ) from error
        raise ConfigError(
            f"reward.verifier.path {path!r}: importing {module_name} failed:\n{traceback.format_exc()}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        has = [
            key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module_name
        ]
        what = f"found {function!r}" if hasattr(module, name) else f"it has {', '.join(has) or 'no function'}"
        raise ConfigError(f"reward.verifier.path {path!r}: expected a function {name} in {module.__file__}, {what}")
    _check_signature(path, function)
    return function


def _check_signature(path: str, function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some compiled functions do not tell
        return
    try:
        signature.bind("prompt", "response")
    except TypeError as error:
        raise ConfigError(
            f"reward.verifier.path {path!r}: expected a function of (prompt, response), its signature is {signature}"
        ) from error
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"reward.verifier.path {path!r}: expected a plain function, found a coroutine function")


def score_with_user_function(function: Callable[[Prompt, str], Any], path: str, prompt: Prompt, response: str) -> float:
    """Call it and check the result: a finite number, else TypeError or ValueError naming the function."""
    value = function(prompt, response)
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{path} returned {value!r} ({type(value).__name__}); expected a number such as 1.0")
    score = float(value)
    if not math.isfinite(score):
        raise ValueError(f"{path} returned {score}; expected a finite number")
    return score
