"""What stays darker than the rest between the two ends of a direction."""

from collections.abc import Sequence

from torch import Tensor

from fastdirs.mask_rules import MaskRule, brightness


def _response(unshifted: Tensor, shifted: Sequence[Tensor]) -> Tensor:
    return brightness(shifted[1]) - brightness(shifted[0])


def _mask(unshifted: Tensor, shifted: Sequence[Tensor], threshold: float) -> Tensor:
    change = brightness(shifted[0]) - brightness(shifted[1])
    lowest, highest = change.amin(dim=(1, 2), keepdim=True), change.amax(dim=(1, 2), keepdim=True)
    # Not divided: where nothing changes, 0 / 0 is no number, and runtimes compare it as they like.
    return change - lowest < threshold * (highest - lowest)


RULE = MaskRule(
    summary="brightness changes little from -epsilon to +epsilon, per image from 0 to 1 "
    "(Voynov & Babenko 2020)",
    signs=(1, -1),
    threshold=0.6,
    response=_response,
    mask=_mask,
)
