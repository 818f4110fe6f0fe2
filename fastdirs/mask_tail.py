"""What follows a synthesis to make pairs: pixels, mask, histogram of the shifted image, maybe saliency."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.images import GREY_LEVELS
from fastdirs.mask_rules import MASK_RULES, MaskRule

HISTOGRAM_BINS = 12
_SOFTNESS = 0.15
"""Of a response above its threshold, in units of images in [-1, 1]: what is as good as sure."""


class MaskTail(nn.Module):
    """An image and the same shifted -> `pixels`, `mask`, `histogram`.

    Args:
        rule: Registered name.
        threshold: Of the rule.
        soft: Give saliency, too, for masks that are refined.

    Attributes:
        signs: What epsilon is multiplied with, for each of the images; the unshifted one, 0, is the first.
        size: How many images that are.
        outputs: Names of what `forward` returns.

    Source:
        Masks: see the rule. Histogram: Voynov et al. 2021, 12 bins of the shifted image over [-1, 1], all
        channels together.
    """

    def __init__(self, rule: str, threshold: float, soft: bool = False) -> None:
        super().__init__()
        # Grey levels; steps of 255. What falls into which bin of a histogram is for the filter alone.
        self.differences = {"pixels": 1, "mask": 0, "saliency": 8}
        self.outputs = ("pixels", "mask", "histogram", *(["saliency"] if soft else []))
        self.soft = soft
        self.rule: MaskRule = MASK_RULES.load(rule)
        self.threshold = threshold
        self.signs = (0, *self.rule.signs)
        self.size = len(self.signs)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images `[batch, signs, channels, height, width]`, float32 in [-1, 1].

        Returns pixels `[batch, height, width, channels]`, uint8; masks `[batch, height, width]`, uint8, 1 =
        salient object; how many values of the first shifted image lie in each bin, `[batch, 12]`, int32; if
        soft, saliency `[batch, height, width]`, uint8, 255 = surely the object.
        """
        # What is beyond the range cannot be seen, and is to make no mask.
        unshifted, *shifted = images.clamp(-1, 1).unbind(1)
        mask = self.rule.mask(unshifted, shifted, self.threshold)
        pixels = (unshifted * GREY_LEVELS + (GREY_LEVELS + 0.5)).clamp(0, 255).permute(0, 2, 3, 1)
        outputs = pixels.to(torch.uint8), mask.to(torch.uint8), _histogram(shifted[0])
        return (*outputs, self._saliency(unshifted, shifted)) if self.soft else outputs

    def _saliency(self, unshifted: Tensor, shifted: list[Tensor]) -> Tensor:
        # Noise of single pixels is no object.
        response = F.avg_pool2d(self.rule.response(unshifted, shifted)[:, None], 3, 1, 1)[:, 0]
        return (torch.sigmoid((response - self.threshold) / _SOFTNESS) * 255 + 0.5).to(torch.uint8)


def _histogram(images: Tensor) -> Tensor:
    """Values of each image in equal bins over [-1, 1], the outer ones open: `[batch, bins]`."""
    edges = [2 * place / HISTOGRAM_BINS - 1 for place in range(1, HISTOGRAM_BINS)]
    # One comparison with each edge: a graph for any runtime, and no values are sorted.
    above = [(images >= edge).to(torch.int32).sum(dim=(1, 2, 3), dtype=torch.int32) for edge in edges]
    every = torch.ones_like(images, dtype=torch.int32).sum(dim=(1, 2, 3), dtype=torch.int32)
    counts = torch.stack([every, *above, torch.zeros_like(every)], dim=1)
    return counts[:, :-1] - counts[:, 1:]
