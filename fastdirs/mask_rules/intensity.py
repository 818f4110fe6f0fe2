"""What is not white after the background has been removed."""

from collections.abc import Sequence

from torch import Tensor

from fastdirs.mask_rules import MaskRule, brightness


def _response(unshifted: Tensor, shifted: Sequence[Tensor]) -> Tensor:
    return 1 - brightness(shifted[0])


def _mask(unshifted: Tensor, shifted: Sequence[Tensor], threshold: float) -> Tensor:
    return brightness(shifted[0]) < threshold


RULE = MaskRule(
    summary="the shifted image is darker than 0.95 of white (Voynov & Babenko 2020)",
    signs=(1,),
    threshold=0.95,
    response=_response,
    mask=_mask,
)
