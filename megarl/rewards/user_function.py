"""A user's reward function, `package.module:function`: finding it, calling it by its signature, reading the result.

Adapters: verl's compute_score(data_source, solution_str, ground_truth, extra_info) and TRL's f(prompts, completions,
**columns) -> list, with one response a call.
"""

import importlib
import inspect
import math
import numbers
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, assert_never

from megarl.config.base import ConfigError
from megarl.config.reward import FunctionReward
from megarl.records import Prompt
from megarl.rewards.item import NoNumberError

Function = Callable[..., Any]
_ANSWER_COLUMNS = ("answer", "ground_truth", "solution")


def load_user_function(config: FunctionReward) -> Function:
    """Import the function; the working directory is searched after sys.path. ConfigError says what was not found."""
    path = config.path
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
            f"{_environment_hint(error)}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        has = [
            key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module_name
        ]
        what = f"found {function!r}" if hasattr(module, name) else f"it has {', '.join(has) or 'no function'}"
        raise ConfigError(f"reward.verifier.path {path!r}: expected a function {name} in {module.__file__}, {what}")
    _check_signature(config, function)
    return function


def _check_signature(config: FunctionReward, function: Function) -> None:
    if inspect.iscoroutinefunction(function):
        raise ConfigError(
            f"reward.verifier.path {config.path!r}: expected a plain function, found a coroutine function"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some compiled functions do not tell
        return
    try:
        match config.signature:
            case "megarl":
                expected = "(prompt, response)"
                signature.bind("prompt", "response")
            case "verl":
                expected = "(data_source, solution_str, ground_truth, extra_info)"
                signature.bind(data_source="", solution_str="", ground_truth="", extra_info=None)
            case "trl" | "trl_messages":
                expected = "(prompts, completions, **columns)"
                signature.bind_partial(completions=[])  # the others are handed on where it names them
            case _:
                assert_never(config.signature)
    except TypeError as error:
        others = [name for name in ("megarl", "verl", "trl") if name != config.signature]
        raise ConfigError(
            f"reward.verifier.path {config.path!r}: expected a function of {expected}, its signature is {signature}; "
            f'reward.verifier.signature may also be "{others[0]}" or "{others[1]}"'
        ) from error


def score_with_user_function(function: Function, config: FunctionReward, prompt: Prompt, response: str) -> float:
    """Call it and check the result: a finite number, else NoNumberError naming the function."""
    match config.signature:
        case "megarl":
            value = function(prompt, response)
        case "verl":
            value = function(
                data_source=prompt.metadata.get("data_source"),
                solution_str=response,
                ground_truth=prompt.answer,
                extra_info=prompt.metadata.get("extra_info"),
            )
        case "trl" | "trl_messages":
            value = _only_element(_call_trl(function, config, prompt, response), config.path)
        case _:
            assert_never(config.signature)
    return read_score(value, config.path)


def read_score(value: Any, path: str) -> float:
    """A finite number from what a function returned: a number, a bool, a 0-d array or tensor, or a dict's `score`;
    NoNumberError otherwise."""
    if isinstance(value, Mapping):
        if "score" not in value:
            raise NoNumberError(
                f'{path} returned a dict with {", ".join(map(repr, value)) or "nothing"}; expected "score"'
            )
        return read_score(value["score"], path)
    number = value
    if not isinstance(value, numbers.Real | Decimal) and getattr(value, "size", None) != 0:
        try:
            number = value.item()  # numpy's bool, arrays and tensors of one element
        except (AttributeError, TypeError, ValueError, RuntimeError):
            number = None
    if not isinstance(number, numbers.Real | Decimal):
        raise NoNumberError(f"{path} returned {value!r} ({type(value).__name__}); expected a number such as 1.0")
    score = float(number)
    if not math.isfinite(score):
        raise NoNumberError(f"{path} returned {score}; expected a finite number")
    return score


def _call_trl(function: Function, config: FunctionReward, prompt: Prompt, response: str) -> Any:
    """TRL hands every column on by name, as lists; a function without **kwargs gets those it names."""
    columns = {**dict.fromkeys(_ANSWER_COLUMNS, prompt.answer), **prompt.metadata}
    prompts: list[Any] = [prompt.text]
    completions: list[Any] = [response]
    if config.signature == "trl_messages":
        prompts = [[{"role": "user", "content": prompt.text}]]
        completions = [[{"role": "assistant", "content": response}]]
    arguments = {**{name: [value] for name, value in columns.items()}, "prompts": prompts, "completions": completions}
    parameters = inspect.signature(function).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        names = {parameter.name for parameter in parameters}
        arguments = {name: value for name, value in arguments.items() if name in names}
    return function(**arguments)


def _only_element(values: Any, path: str) -> Any:
    try:
        (value,) = list(values)
    except (TypeError, ValueError) as error:
        raise NoNumberError(f"{path} returned {values!r} for one completion; expected a list of one number") from error
    return value


def _environment_hint(error: BaseException) -> str:
    """For a KeyError of os.environ: the name is the function's to ask for."""
    if isinstance(error, KeyError) and error.args and str(error.args[0]).isupper():
        return (
            "\nreward functions see no environment variables of the trainer but those that the configuration names: "
            f'reward.verifier.environment = ["{error.args[0]}"]'
        )
    return ""


def describe_error(error: Exception) -> str:
    """Type and message of what a function raised, with a hint where it misses an environment variable."""
    return f"{type(error).__name__}: {error}{_environment_hint(error)}"
