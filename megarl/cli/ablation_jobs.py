"""The jobs of an ablation that was submitted, where they lie in its directory."""

from pathlib import Path

from megarl.ablation.directory import AblationDirectory
from megarl.slurm.job_directory import FACTS, JobDirectory


def find_jobs(directory: AblationDirectory) -> tuple[JobDirectory, JobDirectory | None] | None:
    """(the array, the job of the shared warm start) of an ablation that was submitted; None of another one."""
    array, warm = (JobDirectory(path) for path in (array_path(directory), warm_path(directory)))
    if not (array.path / FACTS).is_file():
        return None
    return array, warm if (warm.path / FACTS).is_file() else None


def array_path(directory: AblationDirectory) -> Path:
    """Of the job that has a run an index."""
    return directory.path / "slurm"


def warm_path(directory: AblationDirectory) -> Path:
    """Of the job before that."""
    return directory.path / "slurm" / "warm"
