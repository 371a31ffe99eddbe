"""A job's script, from the template in `cluster/`."""

import shlex
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import megarl
from megarl.config.base import ConfigError
from megarl.slurm.job import Container, Job

_TEMPLATE = "job.sbatch.j2"


def render_script(job: Job, template: Path | None = None) -> str:
    """The script that sbatch takes. template: a site's own, in place of cluster/job.sbatch.j2."""
    path = template or find_template()
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        undefined=StrictUndefined,
        autoescape=False,  # no page: values go through `quote`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    container = job.environment if isinstance(job.environment, Container) else None
    return environment.get_template(path.name).render(
        job=job, container=container, environment=None if container else job.environment
    )


def find_template() -> Path:
    """cluster/job.sbatch.j2 of the checkout, or of the installed data files. ConfigError where it is in neither."""
    looked = list(_places())
    found = next((path for path in looked if path.is_file()), None)
    if found is None:
        raise ConfigError(
            f"megarl submit: no {_TEMPLATE} (looked at {', '.join(map(str, looked))}); install megarl from its "
            "checkout, or give --template PATH"
        )
    return found


def _places() -> Iterator[Path]:
    yield Path(megarl.__file__).resolve().parents[1] / "cluster" / _TEMPLATE
    yield Path(sysconfig.get_path("data")) / "share" / "megarl" / "cluster" / _TEMPLATE
