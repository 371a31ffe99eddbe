"""Token weights that share out credit by the sign of the advantage (plug point 4)."""

from typing import ClassVar, Literal

from pydantic import Field

from megarl.config.facts import RuleName
from megarl.config.weight_variant import WeightVariant


class NegativeScale(WeightVariant):
    """Multiplies tokens with A < 0; 0 drops them: only responses that did better than their group are trained on
    (WAPO, arXiv 2606.16154)."""

    tells_tokens_apart: ClassVar[bool] = False
    needs_survey: ClassVar[bool] = False
    mismatch: ClassVar[Literal["ignores", "filters", "corrects"]] = "ignores"
    compares_updates: ClassVar[bool] = False
    rules: ClassVar[tuple[RuleName, ...]] = ()
    scale: float = Field(1.0, ge=0)
    """The factor."""
