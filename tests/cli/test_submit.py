"""`megarl submit` up to the moment when Slurm is asked; tests/cluster has the real one."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megarl.cli.main import app
from megarl.cli.submit_checks import find_hidden_paths
from megarl.cli.submit_options import SubmitOptions, build_job, load_asked, read_paths
from megarl.config.base import ConfigError
from megarl.slurm.job import Container, Virtualenv
from tests.e2e.configuration import write_tiny_config
from tests.slurm.golden import FOLDER, OF_A_CONFIGURATION, print_script


@pytest.fixture
def config(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration in the directory in which the command is typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    write_tiny_config(tmp_path, tiny_model_dir)
    return Path("tiny.toml")


def submit(*arguments: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of the command in a process of its own."""
    command = [sys.executable, "-m", "megarl.cli.main", "submit", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_dry_run_for_64_nodes_prints_the_script_as_kept(tmp_path: Path, tiny_model_dir: Path) -> None:
    kept = FOLDER / f"{OF_A_CONFIGURATION}.sbatch"
    assert print_script(tmp_path, tiny_model_dir) == kept.read_text(encoding="utf-8")
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_keeps_standard_output_for_the_script(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    code, out, error = submit(str(config), "--gpus-per-node", "0", "cluster.gpus_per_node=3", "--dry-run")
    assert (code, error) == (0, "Slurm was not asked: there is no sbatch on this machine\n")
    assert out.startswith("#!/bin/bash\n# Written by: megarl submit tiny.toml --gpus-per-node 0")
    assert out.endswith("\nend_attempt\n")
    assert "\n#SBATCH --gpus-per-node" not in out
    assert "--num-cpus 3 --num-gpus 0" in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--nodes", "2"], "--nodes: policy and engines take 1 of the 2 nodes of 8 GPUs"),
        (["--gpus-per-node", "2"], "need 3 GPUs, cluster.nodes x gpus_per_node = 2"),
        (["--gpu-memory-gib", "1"], "(--gpu-memory-gib says what a GPU has)"),
        (["cluster.ray_address=auto"], "cluster.ray_address: a job starts Ray on its own nodes; remove it"),
        (["model.path=models/absent"], 'model.path "models/absent"'),
        (["--time", "10:00"], "but the run is asked to save 720 s before its end"),
        (["--array", "train.seed=[0, -1]"], "cell 1 (train.seed=-1 name=tiny-1): train.seed"),
        (["--array", "train.seed=[0]", "cluster.ray_address=auto"], "cell 0: cluster.ray_address"),
        (["--environment", "/absent"], "--environment /absent: no bin/megarl in it"),
        (["--container", "x.sif", "--environment", "/x"], "a run is in one of them"),
        (["--mount", "/a:/a"], "belong to --container IMAGE"),
        (["logging.directory=/dev/shm/runs"], "lies in this machine's memory"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_before_slurm_is_asked(config: Path, arguments: list[str], text: str) -> None:
    extra = [] if "--nodes" not in arguments else ["rollout.publish.transport=network"]
    result = CliRunner().invoke(app, ["submit", str(config), *extra, *arguments])
    assert isinstance(result.exception, ConfigError)
    assert text in str(result.exception)
    assert not Path("runs").exists()


def test_a_sweep_is_checked_and_named_cell_by_cell(config: Path) -> None:
    options = SubmitOptions(gpus_per_node=4, array=("train.seed=[3, 4]",), at_once=1)
    asked = load_asked(config, ["train.steps=5"], options)
    assert [(run.train.seed, run.name, run.train.steps) for run in asked.runs] == [(3, "tiny-0", 5), (4, "tiny-1", 5)]
    job = build_job(asked, directory=Path("/jobs/x"), command=["megarl", "submit"])
    assert job.name == "tiny"
    assert job.train == ("/jobs/x/tiny.toml", "train.steps=5", "cluster.gpus_per_node=4")
    assert [cell.overrides for cell in job.cells] == [
        ("train.seed=3", "name=tiny-0"), ("train.seed=4", "name=tiny-1"),
    ]  # fmt: skip


@pytest.mark.parametrize(("colocate", "gpus_per_node", "workers"), [("false", 4, 4), ("true", 4, 8), ("true", 0, 3)])
def test_ray_has_a_cpu_for_each_of_two_that_share_a_gpu(
    config: Path, colocate: str, gpus_per_node: int, workers: int
) -> None:
    overrides = ("cluster.gpus_per_node=3", f"cluster.colocate={colocate}", "rollout.engines=1")
    asked = load_asked(config, overrides, SubmitOptions(gpus_per_node=gpus_per_node))
    job = build_job(asked, directory=Path("/jobs/x"), command=())
    assert (job.workers_per_node, job.gpus_per_node) == (workers, gpus_per_node)


def test_files_are_kept_under_names_of_their_own_in_the_order_of_the_command(config: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.toml").write_text("[train]\nsteps = 7\n")
    asked = load_asked(config, ["train.seed=1", "a/one.toml", "train.steps=9", "b/one.toml"], SubmitOptions())
    assert asked.sources == {
        "tiny.toml": config, "1-one.toml": Path("a/one.toml"), "2-one.toml": Path("b/one.toml"),
    }  # fmt: skip
    assert asked.train_arguments(Path("/j")) == (
        "/j/tiny.toml", "train.seed=1", "/j/1-one.toml", "train.steps=9", "/j/2-one.toml",
    )  # fmt: skip
    assert asked.first.train.steps == 7


def test_a_container_sees_what_the_run_reads(config: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    asked = load_asked(config, (), SubmitOptions(container="images/m.sif", mount=("/data:/data",)))
    environment = build_job(asked, directory=tmp_path / "runs" / "jobs" / "x", command=()).environment
    assert isinstance(environment, Container)
    assert environment.runtime == "apptainer"
    assert environment.mounts == ("/data:/data", f"{tmp_path}:{tmp_path}", f"{tiny_model_dir}:{tiny_model_dir}")
    image = load_asked(config, (), SubmitOptions(container="registry#lab/megarl:1"))
    environment = build_job(image, directory=tmp_path / "x", command=()).environment
    assert isinstance(environment, Container)
    assert environment.runtime == "pyxis"
    here = build_job(load_asked(config, (), SubmitOptions()), directory=tmp_path / "x", command=()).environment
    assert here == Virtualenv(directory=Path(sys.prefix))


def test_all_that_nodes_must_see_is_known(config: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"prompt": "1", "answer": "1"}\n')
    arguments = [
        'data.train={source = "file", path = "data.jsonl", layout = "prompt_answer"}',
        "reward.verifier.kind=random",
    ]
    asked = load_asked(config, arguments, SubmitOptions())
    assert read_paths(asked.runs) == [tiny_model_dir, tmp_path / "runs", tmp_path / "data.jsonl"]


def test_paths_in_the_memory_of_one_machine_are_found() -> None:
    mounts = "/dev/vda / ext4 rw 0 0\ntmpfs /run tmpfs rw 0 0\nserver:/x /run/my\\040home nfs4 rw 0 0\n"
    paths = [Path("/data"), Path("/run/a/b"), Path("/run/my home/models")]
    (problem,) = find_hidden_paths(paths, mounts)
    assert problem.startswith("/run/a/b lies in this machine's memory (tmpfs on /run)")
