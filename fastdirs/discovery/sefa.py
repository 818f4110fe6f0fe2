"""SeFa: directions in closed form, from the weights that the latents meet first."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastdirs.discovery import Found, Method, Search
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


def find(search: Search, settings: Settings) -> Found:
    """Eigenvectors of A^T A, largest eigenvalue first; A stacks the weights that read the chosen layers.

    Where the layers are parts of z, each with coordinates of its own, every layer has an A of its own, and a
    direction edits that layer alone.

    Args:
        search: A generator with weights to factorise, the layers whose weights are stacked, and K.
        settings: Row normalisation.

    Raises:
        SelectionError: No weight of this generator reads those layers, or they have room for fewer directions.

    Source:
        Shen & Zhou, CVPR 2021 (arXiv:2007.06600), eq. 5-7. Differs: float64 and a symmetric solver, so the
        order is certain; the sign is fixed; a row of zeros stays zero where the paper's code divides by zero.
    """
    generator, layers = search.generator, search.space.layers
    groups = [(layer,) for layer in layers] if generator.chunked else [layers]
    found = [_factorise(generator, group, settings) for group in groups]
    scores = torch.cat([eigenvalues for eigenvalues, _ in found])
    if len(scores) < search.num_directions:
        raise SelectionError(
            f"sefa finds {len(scores)} directions in layers {list(layers)} of {generator.provenance.name}, "
            f"whose weights read {len(scores)} numbers of them directly. Ask for fewer, or for other layers."
        )
    vectors = torch.block_diag(*(eigenvectors.T for _, eigenvectors in found))
    best = scores.argsort(descending=True, stable=True)[: search.num_directions]
    search.progress(1, 1)
    return Found(vectors=vectors[best], scores=scores[best])


def _factorise(generator: Generator, layers: Sequence[int], settings: Settings) -> tuple[Tensor, Tensor]:
    """Eigenvalues `[dim]` and eigenvectors `[dim, dim]` of some layers; none if no weight reads them."""
    weights = [factor.weight for factor in generator.factors() if factor.layer in layers]
    if not weights:
        return torch.zeros(0, dtype=torch.float64), torch.zeros(generator.dim, 0, dtype=torch.float64)
    a = torch.cat([weight.double() for weight in weights])
    if settings.normalize == "rows":
        length = a.norm(dim=1, keepdim=True)
        a = a / torch.where(length > 0, length, 1.0)
    eigenvalues, eigenvectors = torch.linalg.eigh(a.T @ a)
    return eigenvalues, eigenvectors


def _refuses(generator: Generator) -> str:
    return "" if generator.factors() else "no weight of it reads latents directly."


METHOD = Method(
    summary="closed-form factorisation of the first weights (Shen & Zhou 2021)", settings=Settings, find=find,
    refuses=_refuses,
)  # fmt: skip
