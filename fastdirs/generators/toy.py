"""The toy: a coloured disc on a grey background, whose true directions and mask are known. No weights."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from fastdirs.errors import SelectionError
from fastdirs.generators import Factor, Family, Generator, Provenance, ZGenerator
from fastdirs.manifest import Json

ATTRIBUTES = ("x", "y", "size", "hue", "background")
# How many units of the first layer carry each attribute. All different, so that a factorisation can tell them
# apart even after every row has been scaled to unit length.
_UNITS = (9, 8, 7, 6, 5)
_EDGE_PIXELS = 1.5
_MAX_SIZE = 4096
_OPTIONS = {"resolution": "height and width in pixels (default 64)", "z_dim": "size of z (default 16)"}


class _AttributeStage(nn.Module):
    """Latents -> attributes: a layer of unit rows, then one that averages each attribute's units."""

    def __init__(self, z_dim: int) -> None:
        super().__init__()
        # Rounded, so that LAPACK builds that differ in the last bits give one generator with one hash.
        rotation = np.linalg.qr(np.random.RandomState(0).randn(z_dim, z_dim))[0].round(6)
        rows = np.repeat(rotation[: len(_UNITS)], _UNITS, axis=0)
        average = np.zeros((len(_UNITS), sum(_UNITS)))
        for attribute, row in enumerate(average):
            first = sum(_UNITS[:attribute])
            row[first : first + _UNITS[attribute]] = 1 / _UNITS[attribute]
        self.hidden = nn.Linear(z_dim, len(rows), bias=False)
        self.average = nn.Linear(len(rows), len(_UNITS), bias=False)
        self.hidden.weight = nn.Parameter(torch.from_numpy(rows).float())
        self.average.weight = nn.Parameter(torch.from_numpy(average).float())

    def forward(self, state: Tensor | None, latents: Tensor) -> Tensor:
        """Latents `[batch, 1, z_dim]` -> attributes `[batch, 5]`, standard normal for standard normal z."""
        attributes: Tensor = self.average(self.hidden(latents[:, 0]))
        return attributes


class _DrawStage(nn.Module):
    """Attributes -> the picture."""

    grid_x: Tensor
    grid_y: Tensor

    def __init__(self, resolution: int) -> None:
        super().__init__()
        centres = (torch.arange(resolution).float() + 0.5) / resolution * 2 - 1
        self.register_buffer("grid_x", centres[None, None, :].clone())
        self.register_buffer("grid_y", centres[None, :, None].clone())
        self.sharpness = resolution / _EDGE_PIXELS

    def coverage(self, attributes: Tensor) -> Tensor:
        """Share of each pixel that the disc covers: attributes `[batch, 5]` -> `[batch, height, width]`."""
        x, y, size = (attributes[:, i, None, None] for i in range(3))
        distance = (
            (self.grid_x - 0.5 * torch.tanh(x)) ** 2 + (self.grid_y - 0.5 * torch.tanh(y)) ** 2 + 1e-12
        ).sqrt()
        radius = 0.2 + 0.3 * torch.sigmoid(size)
        return torch.sigmoid(self.sharpness * (radius - distance))

    def forward(self, state: Tensor, latents: Tensor) -> Tensor:
        """Attributes `[batch, 5]` -> images `[batch, 3, height, width]`, float32 in [-1, 1]."""
        coverage = self.coverage(state)[:, None]
        phases = [torch.cos(0.8 * state[:, 3] + phase) for phase in (0.0, -2 * math.pi / 3, 2 * math.pi / 3)]
        colour = torch.stack(phases, dim=1)[:, :, None, None]
        background = 0.9 * torch.tanh(0.7 * state[:, 4])[:, None, None, None]
        return coverage * colour + (1 - coverage) * background


class Toy(ZGenerator):
    """Position, size and hue of a disc and the brightness of its background, behind a fixed rotation of z.

    Args:
        resolution: Height and width, in pixels.
        z_dim: Size of z, at least 5; the rest of z changes nothing.

    Raises:
        SelectionError: A size outside 4 to 4096 pixels or 5 to 4096 numbers.
    """

    def __init__(self, resolution: int = 64, z_dim: int = 16) -> None:
        if not 4 <= resolution <= _MAX_SIZE or not len(_UNITS) <= z_dim <= _MAX_SIZE:
            raise SelectionError(
                f"A toy of {resolution} pixels with z_dim {z_dim} is out of range. "
                f"Expected 4 to {_MAX_SIZE} pixels and a z_dim of {len(_UNITS)} to {_MAX_SIZE}."
            )
        super().__init__(
            family="toy", space="z", z_dim=z_dim, num_layers=1, dim=z_dim,
            img_resolution=resolution, img_channels=3,
            stages=[_AttributeStage(z_dim), _DrawStage(resolution)], reads=[(0,), ()],
            config={"resolution": resolution, "z_dim": z_dim},
        )  # fmt: skip
        self.provenance = Provenance(name="toy", source="built into fastdirs", licence="Apache-2.0")

    def factors(self) -> list[Factor]:
        """The layer that reads z."""
        return [Factor("stages.0.hidden", 0, self._hidden)]

    def true_directions(self) -> Tensor:
        """The direction of each name in `ATTRIBUTES`, unit length. `[5, 1, z_dim]`, float32."""
        first_units = [sum(_UNITS[:k]) for k in range(len(_UNITS))]
        return self._hidden[first_units][:, None]

    def mask(self, latents: Tensor) -> Tensor:
        """The exact disc: latents `[batch, 1, z_dim]` -> `[batch, height, width]`, bool, True = disc."""
        attributes, draw = self.stages
        assert isinstance(draw, _DrawStage)
        return draw.coverage(attributes(None, latents)) > 0.5

    @property
    def _hidden(self) -> Tensor:
        return self.get_parameter("stages.0.hidden.weight").detach()


def _build(config: Json) -> Generator:
    return Toy(**config).eval().requires_grad_(False)


GENERATOR = Family(
    summary="procedural disc with known directions and mask, no weights",
    build=_build,
    infer=None,
    options=_OPTIONS,
)
