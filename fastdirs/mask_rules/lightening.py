"""What becomes lighter while the background becomes darker."""

from collections.abc import Sequence

from torch import Tensor

from fastdirs.mask_rules import MaskRule, grey


def _response(unshifted: Tensor, shifted: Sequence[Tensor]) -> Tensor:
    return grey(shifted[0]) - grey(unshifted)


def _mask(unshifted: Tensor, shifted: Sequence[Tensor], threshold: float) -> Tensor:
    return _response(unshifted, shifted) > threshold


RULE = MaskRule(
    summary="the shift makes it lighter (Voynov et al. 2021, Big GANs are watching you)",
    signs=(1,),
    threshold=0.0,
    response=_response,
    mask=_mask,
)
