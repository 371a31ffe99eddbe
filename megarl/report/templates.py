"""Pages from Jinja2 templates: files in the folder `templates` of a package. Every text that they print is escaped."""

import functools

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from megarl.report import colours, reader_colours

_PACKAGE = "megarl.report"


def render_template(name: str, *, package: str = _PACKAGE, **values: object) -> Markup:
    """Fill the template `name` of a package; it may extend, include and import those of `megarl.report`.

    Raises:
        jinja2.TemplateNotFound: neither package has the template.
        jinja2.UndefinedError: the template prints a value that is not among `values`.
    """
    return Markup(_build_environment(package).get_template(name).render(**values))


@functools.cache
def _build_environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, _PACKAGE))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for module in (colours, reader_colours):
        environment.globals.update({name: value for name, value in vars(module).items() if name.isupper()})
    return environment
