"""`megarl doctor`: is this machine, its packages and a configuration fit to run?

What `train` refuses is refused here, by the same functions. Heavy packages are only imported in processes of their
own, with a time limit. Every failure says what to do.
"""

import importlib.metadata
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from rich.console import Console

from megarl.cli.doctor_inputs import input_probes, judge_inputs
from megarl.cli.doctor_leftovers import check_leftovers
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
    check_plugin,
    check_python,
    check_together,
    check_versions,
    declared_requirements,
    detect_stack,
    import_probes,
    installed_apex_is_nvidia,
    installed_versions,
    judge_imports,
)
from megarl.cli.findings import Answer, Finding, findings_of, print_summary, render_findings
from megarl.cli.paths import resolve_model_path
from megarl.cli.preflight import check_files
from megarl.cli.probes import ProbeChain
from megarl.cli.stack import deciding_versions, find_costs
from megarl.cli.train_checks import find_environment_problems, find_train_problems
from megarl.config.base import ConfigError
from megarl.config.loader import load_config, source_files
from megarl.config.preflight import weight_files
from megarl.config.rollout_files import run_bytes
from megarl.config.run import LoggingConfig, RunConfig
from megarl.config.warnings import find_warnings
from megarl.models.families import read_model_shape
from megarl.models.shape import ModelError
from megarl.planning.checkpoint_size import checkpoint_bytes, most_checkpoints


def run_doctor(console: Console, path: Path | None = None, overrides: Sequence[str] = (), *, deep: bool = False) -> int:
    """Print all findings by part; returns the exit code: 1 when a check failed."""
    installed = installed_versions()
    reading, working = import_probes(installed)
    # What takes seconds runs in two processes beside this one and each other.
    reader, worker = ProbeChain(reading), ProbeChain(working)
    config, config_findings = (None, []) if path is None else check_config(path, overrides)
    fit = config if all(finding.level != "failure" for finding in config_findings) else None
    reader.add(input_probes(resolve_model_path(fit)) if fit else ())
    reader.close()
    worker.close()
    answers = reader.answers | worker.answers
    parts: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("Packages", lambda: check_packages(installed, answers)),
        ("Machine", lambda: check_machine(installed, config, deep=deep)),
    ]
    if path is not None:
        inputs = judge_inputs(fit, answers) if fit else ()
        parts.append(("Configuration", lambda: [*config_findings, *inputs]))
    findings: list[Finding] = []
    for title, check in parts:
        with console.status(f"checking: {title.lower()}"):
            of_part = list(check())
        console.print(f"[bold]{title}[/bold]", highlight=False)
        console.print(render_findings(of_part))
        findings += of_part
    return print_summary(console, findings)


def check_config(path: Path, overrides: Sequence[str]) -> tuple[RunConfig | None, list[Finding]]:
    """The configuration, None where it does not load, and what `train` sees of it and its files in a moment."""
    config: RunConfig | None = None
    try:
        config = load_config(path, overrides)
        found = " + ".join(map(str, [path, *source_files(overrides)]))
        findings = [Finding(name="configuration", level="ok", found=found), *_warnings(config)]
        check_files(config, [*find_train_problems(config), *find_environment_problems(config)], versions=False)
        said = "model directory, layout, context length and data path fit"
        return config, [*findings, Finding(name="files", level="ok", found=said)]
    except ConfigError as error:
        return config, list(findings_of(error, "configuration" if config is None else "files"))


def _warnings(config: RunConfig) -> Iterator[Finding]:
    for warning in (*find_warnings(config), *find_costs(config, deciding_versions())):
        said, _, meant = warning.partition("; ")
        yield Finding(name="configuration", level="warning", found=said, action=meant)


def check_packages(installed: dict[str, str], answers: Mapping[str, Future[Answer]]) -> Iterator[Finding]:
    """Versions, conflicts and imports of the Python environment."""
    stack = detect_stack(installed)
    metadata = importlib.metadata.metadata("megarl")
    yield check_python(platform.python_version(), metadata["Requires-Python"])
    yield Finding(name="stack", level="info", found=f"{stack} (the extra `megarl[{stack}]`), {sys.prefix}")
    yield from check_versions(importlib.metadata.requires("megarl") or [], installed, stack)
    yield from check_together(declared_requirements(installed), installed, stack)
    yield from check_conflicts(installed, apex_is_nvidia=installed_apex_is_nvidia())
    yield from check_companions(installed)
    yield from judge_imports(stack, answers)
    yield check_plugin(answers)


def check_machine(installed: dict[str, str], config: RunConfig | None, *, deep: bool) -> Iterator[Finding]:
    """Devices, memory, disk, ports, Ray and Slurm; measured against the configuration where there is one."""
    one_node = config is not None and config.cluster.nodes == 1
    yield from check_devices(detect_stack(installed), gpus_wanted=config.gpus_needed if config and one_node else None)
    yield check_shared_memory()
    directory = config.logging.directory if config else LoggingConfig().directory
    yield check_disk(
        Path(directory),
        exports_gib=export_gib(config) if config else None,
        checkpoints_gib=checkpoint_gib(config) if config else None,
        rollouts_gib=run_bytes(config) / 2**30 if config else 0.0,
    )
    yield from check_network(
        config.policy.master_port if config else 0, num_nodes=config.cluster.nodes if config else 1
    )
    yield from check_ray(config.cluster.ray_address if config else None, deep=deep)
    yield check_slurm()
    yield from check_leftovers()


def export_gib(config: RunConfig) -> float | None:
    """Disk for the run's exported weights, each time as large as the model's weight files; None if unknown."""
    directory = Path(config.model.path)
    try:
        files = weight_files(directory)
    except ValueError:
        return None  # check_files reports the broken index
    sizes = [file.stat().st_size for file in files if file.is_file()]
    every = config.train.export_every
    exports = -(-config.train.steps // every) if every else 1
    return exports * sum(sizes) / 2**30 if sizes else None


def checkpoint_gib(config: RunConfig) -> float | None:
    """Disk for as many checkpoints as the run has at a time; None if unknown."""
    try:
        shape = read_model_shape(Path(config.model.path))
    except (ModelError, OSError):
        return None  # check_files reports it
    return most_checkpoints(config) * checkpoint_bytes(shape, config) / 2**30
