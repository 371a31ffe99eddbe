"""The script of a job: golden files, shellcheck, and what bash makes of its arguments."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from megarl.config.base import ConfigError
from megarl.slurm.job import Cell
from megarl.slurm.script import find_template, render_script
from tests.slurm.golden import FOLDER, JOBS, OF_A_CONFIGURATION, OF_AN_ABLATION
from tests.slurm.jobs import CELLS, make_job


@pytest.mark.parametrize("name", JOBS)
def test_scripts_are_as_kept(name: str) -> None:
    assert render_script(JOBS[name]) == (FOLDER / f"{name}.sbatch").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*JOBS, OF_A_CONFIGURATION, OF_AN_ABLATION])
def test_bash_reads_every_script(name: str) -> None:
    done = subprocess.run(["bash", "-n", FOLDER / f"{name}.sbatch"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck: apt-get install shellcheck")
@pytest.mark.parametrize("name", [*JOBS, OF_A_CONFIGURATION, OF_AN_ABLATION])
def test_shellcheck_finds_nothing(name: str) -> None:
    done = subprocess.run(["shellcheck", FOLDER / f"{name}.sbatch"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_nothing_but_directives_comes_before_the_last_directive() -> None:
    """sbatch stops reading at the first command."""
    for path in FOLDER.glob("*.sbatch"):
        lines = path.read_text(encoding="utf-8").splitlines()
        last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
        assert all(line.startswith("#") or not line for line in lines[:last])


@pytest.mark.parametrize("number", [0, 1])
def test_arguments_of_the_trainer_arrive_as_they_were_typed(number: int, tmp_path: Path) -> None:
    job = make_job(cells=CELLS)
    script = render_script(job)
    assignment = script[(begin := script.index("train=(")) : script.index("\n)\n", begin) + 2]
    cases = script[script.index('case "$SLURM_ARRAY_TASK_ID"') : script.index("esac") + 4]
    program = f"SLURM_ARRAY_TASK_ID={number}; here=/x; {cases}\n{assignment}\nprintf '%s\\n' \"${{train[@]}}\""
    done = subprocess.run(["bash", "-euc", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [*job.train, *CELLS[number].overrides, "cluster.restarts=0", "--run", "/x/run"]


@pytest.mark.parametrize(("cells", "number"), [(CELLS, "17_1"), ((), "17")])
def test_an_attempt_is_put_back_by_its_own_number(cells: Sequence[Cell], number: str) -> None:
    """The last cell's job has the number of the array, which would put back all of its cells."""
    script = render_script(make_job(cells=cells))
    end = script[(begin := script.index("end_attempt() {")) : script.index("\n}\n", begin) + 3]
    (assignment,) = [line for line in script.splitlines() if line.startswith("job=")]
    program = f"""
        SLURM_JOB_ID=17 SLURM_ARRAY_JOB_ID=17 SLURM_ARRAY_TASK_ID=1 asked=0
        squeue() {{ echo "squeue $*" >&2; echo RUNNING; }}
        scontrol() {{ echo "scontrol $*" >&2; }}
        record() {{ echo requeue 60 n3; }}
        {assignment}
        {end}
        end_attempt
    """
    done = subprocess.run(["bash", "-uc", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"squeue -h -j {number} -o %T",
        f"scontrol requeue {number}",
        f"scontrol update JobId={number} StartTime=now+60",
        f"scontrol update JobId={number} ExcNodeList=n3",
    ]


def test_a_site_can_have_a_template_of_its_own(tmp_path: Path) -> None:
    template = tmp_path / "ours.j2"
    template.write_text("#!/bin/bash\n# {{ job.nodes }} of {{ job.name | quote }}\n")
    assert render_script(make_job(), template) == "#!/bin/bash\n# 64 of tiny\n"


def test_an_installation_without_its_template_says_where_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_template().name == "job.sbatch.j2"
    monkeypatch.setattr("megarl.slurm.script._places", lambda: iter([Path("/absent/job.sbatch.j2")]))
    with pytest.raises(ConfigError, match=r"looked at /absent/job\.sbatch\.j2\); install megarl from its checkout"):
        find_template()
