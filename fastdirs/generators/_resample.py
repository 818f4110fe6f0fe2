"""Resampling with a fixed filter: insert zeros, pad, filter each channel, keep every n-th value."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_DENSE = 96
"""Pixels per side up to which a product with dense matrices is faster than convolutions, measured."""


class Resample(nn.Module):
    """Finite impulse response resampling of every channel alike.

    No zeros are inserted. Pictures go through a transposed convolution (up) or a strided one (down). Small
    ones, and separable filters, through a matrix for each axis that does all steps at once: torch and the
    compiled runtimes multiply matrices faster than they filter channels one by one.

    Args:
        taps: The filter, applied as a convolution (that is, flipped). `[k]` for a separable one, or `[k, k]`,
            float32.
        up: Factor of upsampling.
        down: Factor of downsampling.
        padding: Zeros to add at the left, right, top and bottom, after upsampling; negative ones crop.
        gain: Factor of the result.
        size: Pixels per side of the pictures that will come, where that is known; None allows all.

    Source:
        Karras et al. 2019 and 2021 (StyleGAN, StyleGAN3), "upfirdn".
    """

    taps: Tensor
    places: Tensor | None

    def __init__(
        self,
        taps: Tensor,
        up: int = 1,
        down: int = 1,
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        gain: float = 1.0,
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("taps", taps.clone())
        self.up = up
        self.down = down
        self.padding = padding
        self.gain = gain
        places = None
        if size is not None and size <= _DENSE and taps.ndim == 1 and padding[:2] == padding[2:]:
            places = self._places(size)
        self.register_buffer("places", places, persistent=False)

    def _places(self, size: int) -> Tensor:
        """Which tap an output takes an input by, the number of taps for none: `[outputs, size]`, int64."""
        before, after = self.padding[:2]
        count = len(self.taps)
        outputs = (size * self.up + before + after - count) // self.down + 1
        places = (
            count - 1 - before + torch.arange(outputs)[:, None] * self.down - torch.arange(size) * self.up
        )
        return torch.where((places >= 0) & (places < count), places, count)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, channels, height, width]` -> `[batch, channels, height', width']`, float32."""
        if self.taps.ndim == 2:
            return self._convolved(x, self.taps * self.gain, (True, True))
        taps = self.taps * math.sqrt(self.gain)
        if self.places is None:
            x = self._convolved(x, taps[:, None], (True, False))
            return self._convolved(x, taps[None], (False, True))
        matrix = F.pad(taps, (0, 1))[self.places]
        # One order leaves pictures transposed in memory, the other takes them so: up, then down copies least.
        return matrix @ (x @ matrix.T) if self.up > 1 else (matrix @ x) @ matrix.T

    def _convolved(self, x: Tensor, taps: Tensor, axes: tuple[bool, bool]) -> Tensor:
        """Resampled on the axes (vertical, horizontal) that are True; taps `[k, k]`, `[k, 1]` or `[1, k]`."""
        channels = x.shape[1]
        left, right, top, bottom = self.padding
        up = (self.up if axes[0] else 1, self.up if axes[1] else 1)
        down = (self.down if axes[0] else 1, self.down if axes[1] else 1)
        vertical, horizontal = (top, bottom) if axes[0] else (0, 0), (left, right) if axes[1] else (0, 0)
        if self.up == 1:
            x = _padded(x, vertical, horizontal)
            kernel = taps.flip(0, 1).expand(channels, 1, -1, -1)
            return F.conv2d(x, kernel, stride=down, groups=channels)
        x = F.conv_transpose2d(x, taps.expand(channels, 1, -1, -1), stride=up, groups=channels)
        # It makes all values that any input reaches; those that a filter within the padding makes are kept.
        ends = [
            (before + 1 - count, after + factor - count)
            for (before, after), count, factor in zip((vertical, horizontal), taps.shape, up, strict=True)
        ]
        return _padded(x, *ends)[:, :, :: down[0], :: down[1]]


def _padded(x: Tensor, vertical: tuple[int, int], horizontal: tuple[int, int]) -> Tensor:
    """Zeros around the pictures, or, where negative, pixels cut off (which copies nothing)."""
    ends = (*horizontal, *vertical)
    if any(end > 0 for end in ends):
        x = F.pad(x, [max(end, 0) for end in ends])
    left, right, top, bottom = (max(-end, 0) for end in ends)
    height, width = x.shape[2:]
    return x[:, :, top : height - bottom, left : width - right]


def binomial(taps: tuple[int, ...]) -> Tensor:
    """The two-dimensional filter of a row of weights, summing to one: `[k, k]`, float32."""
    row = torch.tensor(taps, dtype=torch.float32)
    return torch.outer(row, row) / row.sum() ** 2


def lowpass(taps: int, cutoff: float, width: float, rate: float, radial: bool = False) -> Tensor:
    """A low-pass filter by the window method, with a Kaiser window.

    Args:
        taps: Length of the filter.
        cutoff: Frequency at which it passes one half, in cycles per unit.
        width: Width of the transition from pass band to stop band, in cycles per unit.
        rate: Taps per unit.
        radial: The same in all directions, instead of separable.

    Returns:
        The filter, summing to one: `[taps]`, or `[taps, taps]` if radial; float32.

    Source:
        Kaiser 1974; Karras et al. 2021 (StyleGAN3), appendix C: the radial ideal filter is a jinc.
    """
    places = (np.arange(taps) - (taps - 1) / 2) / rate
    attenuation = 2.285 * (taps - 1) * math.pi * width / (rate / 2) + 7.95
    window = np.kaiser(taps, _kaiser_beta(attenuation))
    if not radial:
        ideal = np.sinc(2 * cutoff * places) * window
        return torch.from_numpy(ideal / ideal.sum()).float()
    radii = torch.from_numpy(np.hypot(*np.meshgrid(places, places)))
    # J1(x) / x tends to one half at the centre, which an odd number of taps meets.
    ideal = torch.special.bessel_j1(2 * math.pi * cutoff * radii) / (math.pi * radii)
    ideal = torch.where(radii == 0, torch.full_like(ideal, cutoff), ideal)
    ideal = ideal * torch.from_numpy(np.outer(window, window))
    return (ideal / ideal.sum()).float()


def _kaiser_beta(attenuation: float) -> float:
    """Shape of the window that damps the stop band by so many decibels."""
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return 0.5842 * math.pow(attenuation - 21, 0.4) + 0.07886 * (attenuation - 21)
    return 0.0
