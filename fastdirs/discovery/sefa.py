"""SeFa: directions in closed form, from the weights that the latents meet first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastdirs.discovery import Found, Method
from fastdirs.errors import SelectionError
from fastdirs.generators import Generator


@dataclass(frozen=True)
class Settings:
    """Options of SeFa.

    Attributes:
        normalize: "rows" scales each output unit's row to unit length, as the paper's code; "none" keeps the
            raw weights.

    Raises:
        SelectionError: Another normalisation.
    """

    normalize: str = field(default="rows", metadata={"help": "rows (published) or none (raw weights)"})

    def __post_init__(self) -> None:
        if self.normalize not in ("rows", "none"):
            raise SelectionError(f"normalize={self.normalize!r} is unknown. Expected rows or none.")


def find(
    generator: Generator,
    num_directions: int,
    layers: Sequence[int],
    settings: Settings,
    progress: Callable[[int, int], None],
) -> Found:
    """Eigenvectors of A^T A, largest eigenvalue first; A stacks the weights that read the chosen layers.

    Where the layers are parts of z, each with coordinates of its own, every layer has an A of its own, and a
    direction edits that layer alone.

    Args:
        generator: A generator with weights to factorise.
        num_directions: K, at most its dim.
        layers: Latent layers whose weights are stacked, and which the directions edit.
        settings: Row normalisation.
        progress: Called once, at the end.

    Raises:
        SelectionError: No weight of this generator reads those layers.

    Source:
        Shen & Zhou, CVPR 2021 (arXiv:2007.06600), eq. 5-7. Differs: float64 and a symmetric solver, so the
        order is certain; the sign is fixed; a row of zeros stays zero where the paper's code divides by zero.
    """
    groups = [(layer,) for layer in layers] if generator.chunked else [tuple(layers)]
    found = [(group, _factorise(generator, group, settings)) for group in groups]
    if not any(len(eigenvalues) for _, (eigenvalues, _) in found):
        raise SelectionError(
            f"sefa does not apply to {generator.provenance.name} (family {generator.family}): "
            f"no weight of it reads layers {list(layers)} directly."
        )
    scores = torch.cat([eigenvalues for _, (eigenvalues, _) in found])
    directions = torch.zeros(len(scores), generator.num_layers, generator.dim, dtype=torch.float64)
    first = 0
    for group, (eigenvalues, eigenvectors) in found:
        directions[first : first + len(eigenvalues), list(group)] = eigenvectors.T[:, None]
        first += len(eigenvalues)
    best = scores.argsort(descending=True, stable=True)[:num_directions]
    progress(1, 1)
    return Found(directions=directions[best], scores=scores[best])


def _factorise(generator: Generator, layers: Sequence[int], settings: Settings) -> tuple[Tensor, Tensor]:
    """Eigenvalues `[dim]` and eigenvectors `[dim, dim]` of some layers; empty if no weight reads them."""
    weights = [factor.weight for factor in generator.factors() if factor.layer in layers]
    if not weights:
        return torch.zeros(0, dtype=torch.float64), torch.zeros(generator.dim, 0, dtype=torch.float64)
    a = torch.cat([weight.double() for weight in weights])
    if settings.normalize == "rows":
        length = a.norm(dim=1, keepdim=True)
        a = a / torch.where(length > 0, length, 1.0)
    eigenvalues, eigenvectors = torch.linalg.eigh(a.T @ a)
    return eigenvalues, eigenvectors


METHOD = Method(
    summary="closed-form factorisation of the first weights (Shen & Zhou 2021)", settings=Settings, find=find
)
