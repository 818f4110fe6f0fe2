"""How well a mask separates what a shift did, and whether it lies where objects lie; without labels."""

import torch
from torch import Tensor

# Of the image: where the background is looked for. The bottom is left out: objects stand on it.
_BORDER, _SIDES = 1 / 16, 5 / 8
# Half axes of the ellipse in which the object is looked for, and where its centre lies; 1 = half the image.
_ELLIPSE, _BELOW = (0.35, 0.5), 0.1
_NO_VARIANCE = 0.01


def separation(response: Tensor, mask: Tensor) -> Tensor:
    """Share of a response's variance that lies between the two sides of a mask.

    Args:
        response: `[batch, height, width]`, float32.
        mask: Soft or hard, 0 to 1. `[batch, height, width]`, float32.

    Returns:
        `[batch]`, 0 (the two sides are alike) to below 1 (two flat sides). Differentiable.

    Source:
        Otsu 1979, the criterion that his threshold maximises. Differs: the mask may be soft, and variances
        far below a hundredth (of images in [-1, 1]) count as none.
    """
    inside = mask.mean(dim=(1, 2))
    outside = 1 - inside
    high = (response * mask).mean(dim=(1, 2)) / inside.clamp(min=1e-3)
    low = (response * (1 - mask)).mean(dim=(1, 2)) / outside.clamp(min=1e-3)
    return inside * outside * (high - low) ** 2 / (response.var(dim=(1, 2)) + _NO_VARIANCE)


def polarity(mask: Tensor) -> Tensor:
    """How much more of a mask lies in the middle than at the top and upper sides: `[batch]`, -1 to 1.

    Args:
        mask: Soft or hard, 0 to 1. `[batch, height, width]`, float32.
    """
    middle, edge = _places(*mask.shape[1:])
    return (mask * (middle - edge).to(mask)).sum(dim=(1, 2))


def _places(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Weights of the middle and of the edge, each summing to 1: `[height, width]`."""
    down = ((torch.arange(height) + 0.5) / height * 2 - 1)[:, None]
    across = ((torch.arange(width) + 0.5) / width * 2 - 1)[None]
    middle = ((across / _ELLIPSE[0]) ** 2 + ((down - _BELOW) / _ELLIPSE[1]) ** 2 < 1).float()
    rim = max(1, round(_BORDER * height))
    edge = torch.zeros(height, width)
    edge[:rim] = 1
    edge[: round(_SIDES * height), :rim] = 1
    edge[: round(_SIDES * height), -rim:] = 1
    return middle / middle.sum(), edge / edge.sum()
