"""Images and masks changed at random, alike: mirrored, enlarged or made smaller, other colours."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdirs.saliency.settings import SaliencySettings


def augment(
    images: Tensor, masks: Tensor, rows: slice, step: int, settings: SaliencySettings
) -> tuple[Tensor, Tensor]:
    """Change images and masks at random. The change depends on seed, step and row alone.

    Args:
        images: `[rows, channels, height, width]`, float in [-1, 1].
        masks: `[rows, height, width]`, float, 0 or 1.
        rows: Which rows of the step's batch these are.
        step: Number of the step.
        settings: `flip`, `zoom` and `jitter` say how much; all off changes nothing.

    Returns:
        Images and masks, of the same shapes. What comes in from beyond the border is a mirror image.
    """
    # For the whole batch, whichever rows are asked for: so several processes are one run.
    random = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    draws = torch.rand(settings.batch, 7, generator=random)[rows].to(images.device)
    if settings.flip or settings.zoom > 1:
        images, masks = _moved(images, masks, draws[:, :4], settings)
    if settings.jitter:
        images = _coloured(images, draws[:, 4:], settings.jitter)
    return images, masks


def _moved(images: Tensor, masks: Tensor, draws: Tensor, settings: SaliencySettings) -> tuple[Tensor, Tensor]:
    """Mirrored by the first of the draws `[rows, 4]`, scaled by the second, moved by the others."""
    # Half as large is as likely as twice as large.
    scale = torch.exp((draws[:, 1] * 2 - 1) * math.log(settings.zoom))
    sign = torch.where(draws[:, 0] < 0.5, -1.0, 1.0) if settings.flip else torch.ones_like(scale)
    # An enlarged picture is cut somewhere, a smaller one lies somewhere.
    room = (1 - scale).abs()
    matrices = torch.zeros(len(images), 2, 3, device=images.device)
    matrices[:, 0, 0], matrices[:, 1, 1] = scale * sign, scale
    matrices[:, :, 2] = (draws[:, 2:] * 2 - 1) * room[:, None]
    places = F.affine_grid(matrices, list(images.shape), align_corners=False)
    whole = torch.cat([images, masks[:, None]], dim=1)
    moved = F.grid_sample(whole, places, "bilinear", "reflection", align_corners=False)
    return moved[:, :-1], (moved[:, -1] > 0.5).float()


def _coloured(images: Tensor, draws: Tensor, jitter: float) -> Tensor:
    """Brightness, contrast and saturation changed by the draws `[rows, 3]`, by up to `jitter`."""
    brightness, contrast, saturation = ((draws * 2 - 1) * jitter)[:, :, None, None, None].unbind(1)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (1 + saturation)
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    return (middle + (images - middle) * (1 + contrast) + brightness).clamp(-1, 1)
