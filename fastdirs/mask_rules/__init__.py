"""How a mask is read off an image and the same image shifted along a direction; one file per rule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdirs.registry import Registry

_LUMA = (0.2989, 0.5870, 0.1140)


@dataclass(frozen=True, kw_only=True)
class MaskRule:
    """One rule.

    Attributes:
        summary: One line, with the paper.
        signs: The images that it looks at beside the unshifted one: each is shifted by this times epsilon.
        threshold: The usual one, in the unit of the rule.
        response: What is compared: (unshifted images, shifted ones, in the order of `signs`) ->
            `[batch, height, width]`, float32, higher = rather the salient object. Images
            `[batch, channels, height, width]`, float32 in [-1, 1]; traceable.
        mask: (unshifted images `[batch, channels, height, width]`, shifted ones likewise, in the order of
            `signs`, threshold) -> `[batch, height, width]`, bool, True = salient object. float32 in [-1, 1];
            traceable.
    """

    summary: str
    signs: tuple[int, ...]
    threshold: float
    response: Callable[[Tensor, Sequence[Tensor]], Tensor]
    mask: Callable[[Tensor, Sequence[Tensor], float], Tensor]


MASK_RULES: Registry[MaskRule] = Registry("fastdirs.mask_rules", "RULE", "mask rule")


def grey(images: Tensor) -> Tensor:
    """Luma of images `[batch, channels, height, width]`: `[batch, height, width]`, in the same range."""
    if images.shape[1] == 1:
        return images[:, 0]
    red, green, blue = _LUMA
    return red * images[:, 0] + green * images[:, 1] + blue * images[:, 2]


def brightness(images: Tensor) -> Tensor:
    """Mean over channels, from [-1, 1] to [0, 1]: `[batch, channels, height, width]` -> without channels."""
    return torch.mean(0.5 * images + 0.5, dim=1)
