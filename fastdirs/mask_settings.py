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


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """How a pair is made.

    Attributes:
        direction: Index in the bank.
        epsilon: Signed length of the shift.
        rule: Registered name of the mask rule.
        threshold: Of the rule; None takes its usual one.
        filters: What a pair has to be.
        psi: Truncation, 1 = off.
        cutoff: How many of the first layers to truncate; None = all.
        classes: Classes of the images; None if unconditional.

    Raises:
        SelectionError: An epsilon of 0 or beyond ±1000, or a threshold that is no number.
        UnknownNameError: No such rule.
    """

    direction: int
    epsilon: float
    rule: str = "lightening"
    threshold: float | None = None
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

    @property
    def cut(self) -> float:
        """The threshold in effect."""
        return MASK_RULES.load(self.rule).threshold if self.threshold is None else self.threshold

    def to_json(self) -> Json:
        """The values by name, as a manifest holds them."""
        classes = list(self.classes) if isinstance(self.classes, list | tuple) else self.classes
        return {
            "direction": self.direction, "epsilon": self.epsilon, "rule": self.rule, "threshold": self.cut,
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


def with_filters(settings: MaskSettings, **values: Any) -> MaskSettings:
    """The same settings with other values of the filters; None leaves one as it is."""
    given = {name: value for name, value in values.items() if value is not None}
    return replace(settings, filters=replace(settings.filters, **given))
