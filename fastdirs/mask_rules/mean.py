"""What is lighter than the mean of the shifted image."""

from collections.abc import Sequence

from torch import Tensor

from fastdirs.mask_rules import MaskRule, grey


def _response(unshifted: Tensor, shifted: Sequence[Tensor]) -> Tensor:
    values = grey(shifted[0])
    return values - values.mean(dim=(1, 2), keepdim=True)


def _mask(unshifted: Tensor, shifted: Sequence[Tensor], threshold: float) -> Tensor:
    return _response(unshifted, shifted) > threshold


RULE = MaskRule(
    summary="lighter than the shifted image's mean (Voynov et al. 2021, Big GANs are watching you)",
    signs=(1,),
    threshold=0.0,
    response=_response,
    mask=_mask,
)
