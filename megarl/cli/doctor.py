"""`megarl doctor`: is this machine, its packages and a configuration fit to run?

Heavy packages are only imported in processes of their own, with a time limit. Every failure says what to do.
"""

import importlib.metadata
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from megarl.cli.doctor_machine import (
    check_devices,
    check_disk,
    check_network,
    check_ray,
    check_shared_memory,
    check_slurm,
)
from megarl.cli.doctor_packages import (
    check_companions,
    check_conflicts,
    check_imports,
    check_plugin,
    check_python,
    check_versions,
    check_vllm,
    detect_stack,
    installed_apex_is_nvidia,
    installed_versions,
)
from megarl.cli.findings import Finding, ask_process, print_summary, render_findings
from megarl.config.base import ConfigError
from megarl.config.loader import load_config, source_files
from megarl.config.preflight import check_files, weight_files
from megarl.config.run import LoggingConfig, RunConfig
from megarl.config.warnings import find_warnings

_MODEL_TIMEOUT_S = 300.0


def run_doctor(console: Console, path: Path | None = None, overrides: Sequence[str] = (), *, deep: bool = False) -> int:
    """Print all findings by part; returns the exit code: 1 when a check failed."""
    config: RunConfig | None = None
    config_findings: list[Finding] = []
    if path is not None:
        try:
            config = load_config(path, overrides)
            found = " + ".join(map(str, [path, *source_files(overrides)]))
            config_findings.append(Finding(name="configuration", level="ok", found=found))
            for warning in find_warnings(config):
                said, _, meant = warning.partition("; ")
                config_findings.append(Finding(name="configuration", level="warning", found=said, action=meant))
        except ConfigError as error:
            config_findings += findings_of(error, "configuration")
    installed = installed_versions()
    parts: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("Packages", lambda: check_packages(installed)),
        ("Machine", lambda: check_machine(installed, config, deep=deep)),
    ]
    if path is not None:
        parts.append(("Configuration", lambda: [*config_findings, *(check_config(config) if config else [])]))
    findings: list[Finding] = []
    for title, check in parts:
        with console.status(f"checking: {title.lower()}"):
            of_part = list(check())
        console.print(f"[bold]{title}[/bold]", highlight=False)
        console.print(render_findings(of_part))
        findings += of_part
    return print_summary(console, findings)


def check_packages(installed: dict[str, str]) -> Iterator[Finding]:
    """Versions, conflicts and imports of the Python environment."""
    stack = detect_stack(installed)
    metadata = importlib.metadata.metadata("megarl")
    yield check_python(platform.python_version(), metadata["Requires-Python"])
    yield Finding(name="stack", level="info", found=f"{stack} (the extra `megarl[{stack}]`), {sys.prefix}")
    yield from check_versions(importlib.metadata.requires("megarl") or [], installed, stack)
    yield from check_conflicts(installed, apex_is_nvidia=installed_apex_is_nvidia())
    yield from check_companions(installed)
    yield from check_imports(installed)
    yield from check_vllm(installed, stack)
    yield check_plugin()


def check_machine(installed: dict[str, str], config: RunConfig | None, *, deep: bool) -> Iterator[Finding]:
    """Devices, memory, disk, ports, Ray and Slurm; measured against the configuration where there is one."""
    one_node = config is not None and config.cluster.nodes == 1
    yield from check_devices(detect_stack(installed), gpus_wanted=config.gpus_needed if config and one_node else None)
    yield check_shared_memory()
    directory = config.logging.directory if config else LoggingConfig().directory
    yield check_disk(Path(directory), need_gib=export_gib(config) if config else None)
    yield from check_network(
        config.policy.master_port if config else 0, num_nodes=config.cluster.nodes if config else 1
    )
    yield from check_ray(config.cluster.ray_address if config else None, deep=deep)
    yield check_slurm()


def check_config(config: RunConfig) -> Iterator[Finding]:
    """The configuration's files, and whether the model's weights are what its config.json says."""
    try:
        check_files(config)
    except ConfigError as error:
        yield from findings_of(error, "files")
        return
    yield Finding(name="files", level="ok", found="model directory, layout, context length and data path fit")
    command = [sys.executable, "-m", "megarl.cli.doctor_model", config.model.path]
    answer = ask_process(command, timeout_s=_MODEL_TIMEOUT_S)
    if answer.succeeded:
        yield Finding(name="model", level="ok", found=answer.text)
    else:
        action = f"download {config.model.path} again, or correct model.path"
        yield Finding(name="model", level="failure", found=answer.text, action=action)


def findings_of(error: ConfigError, name: str) -> Iterator[Finding]:
    """One failure per problem; what a problem's text says after its last semicolon is what to do."""
    for problem in error.problems:
        found, semicolon, action = problem.rpartition("; ")
        default = "correct the file; `megarl show --fields` explains every field"
        yield Finding(
            name=name, level="failure", found=found if semicolon else problem, action=action if semicolon else default
        )


def export_gib(config: RunConfig) -> float | None:
    """Disk for the run's exported checkpoints, each as large as the model's weight files; None if unknown."""
    directory = Path(config.model.path)
    try:
        files = weight_files(directory)
    except ValueError:
        return None  # check_files reports the broken index
    sizes = [file.stat().st_size for file in files if file.is_file()]
    every = config.train.export_every
    exports = -(-config.train.steps // every) if every else 1
    return exports * sum(sizes) / 2**30 if sizes else None
