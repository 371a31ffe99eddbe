"""The documents: each a template templates/NAME.md.jinja and a module NAME.py, "-" in a name being "_" there.

A module has:
    TABLES     names of the stored ablations that it needs
    OPTIONAL   of those that it says more with; () without
    compute    {table: Results} of those that are there -> values of the template
    figures    the same -> {file name without ending: figure}; the template shows figures/NAME-<file name>.svg

A table's numbers decide what a document says: prose that depends on them is computed, so that other numbers make no
false sentence.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import jinja2

from megarl.ablation.stored import SUFFIX
from megarl.report.exports import draw_picture
from results.markdown import wrap
from results.reading import Results, read_results
from results.words import FILTERS

TEMPLATES = Path(__file__).parent / "templates"
_ENDING = ".md.jinja"


class MissingTableError(Exception):
    """A table of a document is not stored."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A document as it must be."""

    name: str
    text: str
    figures: Mapping[str, str]
    """File name -> SVG."""


def document_names() -> list[str]:
    """All that there is a template of."""
    return sorted(path.name.removesuffix(_ENDING) for path in TEMPLATES.glob(f"[a-z]*{_ENDING}"))


def module_of(name: str) -> ModuleType:
    return importlib.import_module(f"results.{name.replace('-', '_')}")


def missing_tables(name: str, tables: Path) -> list[str]:
    """That the document needs and that are not stored."""
    return [table for table in module_of(name).TABLES if not (tables / f"{table}{SUFFIX}").is_file()]


def write_document(name: str, tables: Path) -> Written:
    """From the stored tables alone. MissingTableError, saying how to make it, where one is not there; ValueError where
    one is damaged."""
    if missing := missing_tables(name, tables):
        raise MissingTableError(_how_to_make(name, missing))
    module = module_of(name)
    wanted = (*module.TABLES, *module.OPTIONAL)
    found: dict[str, Results] = {
        table: read_results(tables, table) for table in wanted if (tables / f"{table}{SUFFIX}").is_file()
    }
    computed = module.compute(found)
    figures = {f"{name}-{key}.svg": draw_picture(figure) for key, figure in module.figures(found).items()}
    values = {"tables": found, "figures": list(figures), **computed}
    text = _environment().get_template(name + _ENDING).render(values)
    return Written(name=name, text=wrap(text), figures=figures)


def _how_to_make(name: str, missing: list[str]) -> str:
    lines = [f"docs/results/{name}.md needs tables that are not stored: {', '.join(missing)}. Make each with"]
    for table in missing:
        lines.append(f"    megarl ablate configs/ablations/{table}.toml")
        lines.append(f"    python tools/store_results.py runs/{table}-ablation-*")
    return "\n".join(lines)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FILTERS)
    return environment
