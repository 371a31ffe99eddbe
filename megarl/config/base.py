"""What every config section is: frozen, strict, with no unknown keys."""

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """The configuration cannot work; the text says what was expected, what was found and what to change."""


class Config(BaseModel):
    """Base of every section. A field's docstring is its documentation (`megarl show --help-fields`)."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)
