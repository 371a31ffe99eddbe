"""vLLM 0.26, which only a GPU's torch takes, has every name that megarl asks of vLLM, with parameters that fit.

`vllm_names_0.26.0.json` is what tools/vllm_names.py read in its unpacked wheel. The tool itself is held against the
vLLM at hand, which can be imported.
"""

import ast
import importlib
import inspect
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm_names import describe, imported_names, rollout_sources

ADAPTER = "vllm_versions.py"
"""The one file that asks which vLLM it has."""
ASYNC_LLM = "vllm.v1.engine.async_llm.AsyncLLM"
OLDER: dict[str, Any] = json.loads(Path(__file__).with_name("vllm_names_0.26.0.json").read_text())
HERE = describe(Path(sysconfig.get_paths()["purelib"]))
VERSIONS = [OLDER, HERE]


def by_version(found: dict[str, Any]) -> str:
    return str(found["vllm"])


def calls(name: str) -> Iterator[ast.Call]:
    """Of an imported name, outside the adapter."""
    for path, tree in rollout_sources():
        if path.name != ADAPTER:
            yield from (
                node
                for node in ast.walk(tree)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
            )


def of_the_engine() -> Iterator[tuple[str, ast.Call | None]]:
    """Attributes of an AsyncLLM that megarl reads, and its calls of them."""
    for path, tree in rollout_sources():
        if path.name == ADAPTER:
            continue
        called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition(".")[2] in ("llm", "_llm"):
                yield node.attr, called.get(id(node))


def check_call(call: ast.Call, parameters: list[str], *, what: str) -> None:
    """The call's arguments have parameters."""
    named = [name for name in parameters if not name.startswith("*")]
    positional = parameters[: next((i for i, name in enumerate(parameters) if name.startswith("*")), len(parameters))]
    takes_any = any(name.startswith("*") and name != "*" for name in parameters)
    assert takes_any or len(call.args) <= len(positional), f"{what}: {ast.unparse(call)} of {parameters}"
    for keyword in call.keywords:
        assert takes_any or keyword.arg is None or keyword.arg in named, f"{what} has no parameter {keyword.arg}"


def test_the_file_has_all_that_is_imported_now() -> None:
    """Else: make it anew with the tool."""
    assert set(OLDER["names"]) == {f"{module}.{name}" for module, name in imported_names()}
    assert by_version(OLDER) == "0.26.0"


@pytest.mark.parametrize("found", VERSIONS, ids=by_version)
def test_every_name_is_there(found: dict[str, Any]) -> None:
    for module, name in imported_names(without=(ADAPTER,)):
        assert found["names"][f"{module}.{name}"] is not None, f"vLLM {found['vllm']} has no {module}.{name}"


def test_what_the_older_one_lacks_is_asked_for_in_one_file() -> None:
    lacking = {name for name, what in OLDER["names"].items() if what is None}
    assert lacking == {"vllm.model_executor.model_loader.mtp_validation"}


@pytest.mark.parametrize("found", VERSIONS, ids=by_version)
def test_calls_fit(found: dict[str, Any]) -> None:
    checked = 0
    for full, what in found["names"].items():
        if what and what["kind"] == "function":
            for call in calls(full.rpartition(".")[2]):
                check_call(call, what["parameters"], what=f"{full} of vLLM {found['vllm']}")
                checked += 1
    assert checked >= 8


@pytest.mark.parametrize("found", VERSIONS, ids=by_version)
def test_the_engine_has_what_is_asked_of_it(found: dict[str, Any]) -> None:
    members = found["names"][ASYNC_LLM]["members"]
    asked = list(of_the_engine())
    wanted = {"generate", "collective_rpc", "reset_prefix_cache", "shutdown", "errored", "sleep", "wake_up"}
    assert wanted <= {name for name, _ in asked}
    for name, call in asked:
        assert name in members, f"AsyncLLM of vLLM {found['vllm']} has no {name}"
        if call is not None and members[name] is not None:
            check_call(call, members[name], what=f"AsyncLLM.{name} of vLLM {found['vllm']}")


@pytest.mark.parametrize("found", VERSIONS, ids=by_version)
def test_an_engine_sleeps_and_wakes_by_these_words(found: dict[str, Any]) -> None:
    """Level and tags go by position; a tag that vLLM does not know wakes nothing, and only its log says so."""
    (tree,) = [tree for path, tree in rollout_sources() if path.name == "sleeping.py"]
    (level,) = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "_LEVEL"
        and isinstance(node.value, ast.Constant)
    ]
    woken = [
        ast.literal_eval(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("llm.wake_up")
    ]
    assert woken == [["weights"], ["kv_cache"]]
    assert {tag for tags in woken for tag in tags} == set(found["sleep"]["tags"])
    assert level in found["sleep"]["levels"]
    members = found["names"][ASYNC_LLM]["members"]
    assert (members["sleep"][0], members["wake_up"][0]) == ("level", "tags")
    assert "enable_sleep_mode" in found["names"]["vllm.engine.arg_utils.AsyncEngineArgs"]["members"]


@pytest.mark.parametrize("found", VERSIONS, ids=by_version)
def test_arguments_and_fields_are_there(found: dict[str, Any]) -> None:
    (sampling,) = calls("SamplingParams")
    known = found["names"]["vllm.SamplingParams"]["members"]
    assert {keyword.arg for keyword in sampling.keywords} <= set(known)
    (tree,) = [tree for path, tree in rollout_sources() if path.name == "arguments.py"]
    constants = {
        key.value
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign)
        and ast.unparse(node.target) == "arguments"
        and isinstance(node.value, ast.Dict)
        for key in node.value.keys
        if isinstance(key, ast.Constant)
    }
    constants |= {
        node.slice.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and ast.unparse(node.value) == "arguments"
        and isinstance(node.slice, ast.Constant)
    }
    assert {"model", "gpu_memory_utilization", "kv_cache_memory_bytes"} <= constants
    assert constants <= set(found["names"]["vllm.engine.arg_utils.AsyncEngineArgs"]["members"])
    assert "backend" in found["names"]["vllm.config.weight_transfer.WeightTransferConfig"]["members"]
    assert "FINAL_ONLY" in found["names"]["vllm.sampling_params.RequestOutputKind"]["members"]


@pytest.mark.parametrize("found", VERSIONS, ids=by_version)
def test_the_transfer_engine_can_be_made(found: dict[str, Any]) -> None:
    """No abstract method of vLLM's is left open, and the factory registers as the plug-in asks."""
    (tree,) = [tree for path, tree in rollout_sources() if path.name == "transfer_engine.py"]
    (ours,) = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == "MegarlWeightTransferEngine"]
    base = found["names"]["vllm.distributed.weight_transfer.base.WeightTransferEngine"]
    own = {node.name for node in ours.body if isinstance(node, ast.FunctionDef)}
    assert set(base["abstract"]) <= own
    assert {"parallel_config", "model_config", "device", "model"} <= set(base["members"])
    factory = found["names"]["vllm.distributed.weight_transfer.factory.WeightTransferEngineFactory"]
    assert "register_engine" in factory["members"]


def test_the_tool_reads_what_python_imports() -> None:
    """Kinds, parameters and members of the vLLM at hand."""
    for module, name in imported_names():
        what = HERE["names"][f"{module}.{name}"]
        found = getattr(importlib.import_module(module), name, None) or importlib.import_module(f"{module}.{name}")
        match what["kind"]:
            case "class":
                assert inspect.isclass(found), name
                assert found.__module__ == what["module"]
                assert set(what["abstract"]) == set(getattr(found, "__abstractmethods__", ()))
                assert set(vars(found).get("__annotations__", {})) <= set(what["members"])
            case "function" if not any(p.startswith("*") for p in what["parameters"]):
                assert [*inspect.signature(found).parameters] == what["parameters"], name
            case "module":
                assert inspect.ismodule(found)
