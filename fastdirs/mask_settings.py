"""What pairs of images and masks are made with, and the published settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fastdirs.errors import SelectionError
from fastdirs.latents import MAX_EPSILON
from fastdirs.manifest import Json
from fastdirs.mask_filters import Filters
from fastdirs.mask_rules import MASK_RULES

Classes = int | Sequence[int] | Literal["random"] | None
"""One class for all images, several that are drawn from by seed, all ("random"), or None."""

# Those whose response is a difference of grey, above a threshold.
_REFINED = ("lightening", "mean")


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """How a pair is made.

    Attributes:
        direction: Index in the bank.
        epsilon: Signed length of the shift.
        rule: Registered name of the mask rule.
        threshold: Of the rule; None takes its usual one.
        refine: Lead masks to the edges of the picture, see `mask_refinement`.
        filters: What a pair has to be.
        psi: Truncation, 1 = off.
        cutoff: How many of the first layers to truncate; None = all.
        classes: Classes of the images; None if unconditional.

    Raises:
        SelectionError: An epsilon of 0 or beyond ±1000, a threshold that is no number, a rule whose masks
            cannot be refined, or an agreement of masks that are not refined.
        UnknownNameError: No such rule.
    """

    direction: int
    epsilon: float
    rule: str = "lightening"
    threshold: float | None = None
    refine: bool = False
    filters: Filters = field(default_factory=Filters)
    psi: float = 1.0
    cutoff: int | None = None
    classes: Classes = None

    def __post_init__(self) -> None:
        if not 0 < abs(self.epsilon) <= MAX_EPSILON:
            raise SelectionError(
                f"Epsilon {self.epsilon:g} is out of range. Expected a length other than 0, up to ±1000."
            )
        MASK_RULES.load(self.rule)
        if not abs(self.cut) <= MAX_EPSILON:
            raise SelectionError(f"Threshold {self.threshold} is out of range. Expected -1000 to 1000.")
        if self.refine and self.rule not in _REFINED:
            raise SelectionError(
                f"Masks of the rule {self.rule} cannot be refined. Those of {' and '.join(_REFINED)} can."
            )
        if self.filters.min_agreement and not self.refine:
            raise SelectionError(
                "An agreement is of refined masks only. Ask for refined ones, or leave it out."
            )

    @property
    def cut(self) -> float:
        """The threshold in effect."""
        return MASK_RULES.load(self.rule).threshold if self.threshold is None else self.threshold

    def to_json(self) -> Json:
        """The values by name, as a manifest holds them."""
        classes = list(self.classes) if isinstance(self.classes, list | tuple) else self.classes
        return {
            "direction": self.direction, "epsilon": self.epsilon, "rule": self.rule, "threshold": self.cut,
            "refine": self.refine,
            "filters": self.filters.to_json(), "psi": self.psi, "cutoff": self.cutoff, "classes": classes,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Published settings.

    Attributes:
        source: Who published them, for which generator.
        values: Arguments of `MaskSettings` by name.
    """

    source: str
    values: Mapping[str, Any]


PRESETS: dict[str, Preset] = {
    "published": Preset(
        source="Voynov & Babenko 2020, BigGAN 128, direction 59 of the authors' file, any class",
        values={
            "direction": 59, "epsilon": 26.0, "rule": "intensity", "threshold": 0.95,
            "filters": Filters(min_area=0.05, max_area=0.5), "classes": "random",
        },
    ),
    "bgw": Preset(
        source="Voynov et al. 2021 (Big GANs are watching you), BigBiGAN 128, direction file of the authors",
        values={
            "direction": 0, "epsilon": 5.0, "rule": "lightening",
            "filters": Filters(min_area=0.0, max_area=0.5, min_peaks=2, min_component=0.2), "classes": 0,
        },
    ),
}  # fmt: skip


def filters_of(values: Mapping[str, Any], **changes: float | None) -> Filters:
    """The filters of a preset's values, or the usual ones, with some changed; None leaves one as it is.

    Raises:
        SelectionError: A value out of range.
    """
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    filters: Filters = values.get("filters", Filters())
    return replace(filters, **given)
