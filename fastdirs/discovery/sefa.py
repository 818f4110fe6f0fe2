"""SeFa: directions in closed form, from the weights that the latents meet first."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastdirs.discovery import Found, Method, Search
from fastdirs.errors import SelectionError
from fastdirs.generators import Factor, Generator

_NORMALIZE = ("rows", "none")
_WEIGHTS = ("sefa", "rosinality", "all")


@dataclass(frozen=True)
class Settings:
    """Options of SeFa. What genforce/sefa computes is the default; rosinality's is "none" of "rosinality".

    Attributes:
        normalize: "rows" scales each output unit's row to unit length, as genforce/sefa; "none" keeps the raw
            weights, as rosinality/stylegan2-pytorch.
        weights: Which weights are stacked where some of them style images of several resolutions, as in
            StyleGAN2: all of convolutions, and of the images the last ("sefa"), the first ("rosinality"), or
            every one ("all"). Elsewhere the three are the same.

    Raises:
        SelectionError: Another normalisation or set of weights.
    """

    normalize: str = field(default="rows", metadata={"help": "rows (published) or none (raw weights)"})
    weights: str = field(
        default="sefa",
        metadata={"help": "those that genforce/sefa (sefa) or rosinality's code (rosinality) takes, or all"},
    )

    def __post_init__(self) -> None:
        if self.normalize not in _NORMALIZE:
            raise SelectionError(f"normalize={self.normalize!r} is unknown. Expected rows or none.")
        if self.weights not in _WEIGHTS:
            raise SelectionError(f"weights={self.weights!r} is unknown. Expected sefa, rosinality or all.")


def find(search: Search, settings: Settings) -> Found:
    """Eigenvectors of A^T A, largest eigenvalue first; A stacks the weights that read the chosen layers.

    What is factorised: in families that begin with a linear or transposed convolution layer of z, that layer;
    in StyleGAN families, the layers that turn w into styles. In BigGAN and BigGAN-deep z enters in several
    places: the first linear layer, and the layers that turn z and the class into gain and offset of each
    conditional norm. All of them are stacked, each without the columns that meet the class and divided by its
    spectral norm, since that is how z meets them: they do to z what a style does to w.

    Where the layers are parts of z, each with coordinates of its own (BigGAN), every layer has an A of its
    own, and a direction edits that layer alone.

    Args:
        search: A generator with weights to factorise, the layers whose weights are stacked, and K.
        settings: Row normalisation, and which weights.

    Raises:
        SelectionError: No weight reads those layers, or they have room for fewer directions.

    Source:
        Shen & Zhou, CVPR 2021 (arXiv:2007.06600), eq. 5-7; genforce/sefa and, with other weights and without
        normalisation, rosinality/stylegan2-pytorch. Neither code knows BigGAN. Differs: float64 and a
        symmetric solver, so the order is certain; the sign is fixed; a row of zeros stays zero where the
        paper's code divides by zero.
    """
    generator, layers = search.generator, search.space.layers
    factors = _chosen(generator.factors(), settings.weights)
    groups = [(layer,) for layer in layers] if generator.chunked else [layers]
    found = [_factorise(factors, generator.dim, group, settings.normalize) for group in groups]
    scores = torch.cat([eigenvalues for eigenvalues, _ in found])
    if len(scores) < search.num_directions:
        raise SelectionError(_too_few(search, factors, len(scores)))
    vectors = torch.block_diag(*(axes.T for _, axes in found))  # type: ignore[no-untyped-call]
    best = scores.argsort(descending=True, stable=True)[: search.num_directions]
    search.progress(1, 1)
    return Found(vectors=vectors[best], scores=scores[best])


def _chosen(factors: Sequence[Factor], weights: str) -> list[Factor]:
    """The factors that belong to a set of weights, in order."""
    images = [factor.name for factor in factors if factor.role == "image"]
    kept = {"sefa": images[-1:], "rosinality": images[:1], "all": images}[weights]
    return [factor for factor in factors if factor.role == "features" or factor.name in kept]


def _factorise(
    factors: Sequence[Factor], dim: int, layers: Sequence[int], normalize: str
) -> tuple[Tensor, Tensor]:
    """Eigenvalues `[dim]` and eigenvectors `[dim, dim]` of some layers; none if no weight reads them."""
    weights = [factor.weight for factor in factors if factor.layer in layers]
    if not weights:
        return torch.zeros(0, dtype=torch.float64), torch.zeros(dim, 0, dtype=torch.float64)
    a = torch.cat([weight.double() for weight in weights])
    if normalize == "rows":
        length = a.norm(dim=1, keepdim=True)
        a = a / torch.where(length > 0, length, 1.0)
    eigenvalues, eigenvectors = torch.linalg.eigh(a.T @ a)
    return eigenvalues, eigenvectors


def _too_few(search: Search, factors: Sequence[Factor], count: int) -> str:
    layers, name = list(search.space.layers), search.generator.provenance.name
    read = sorted({factor.layer for factor in factors})
    if not count:
        return (
            f"No weight of {name} reads layers {layers} directly, so that sefa has nothing to factorise. "
            f"Choose among the layers that are read: {', '.join(map(str, read))}."
        )
    return (
        f"sefa finds {count} directions in layers {layers} of {name}, fewer than {search.num_directions}: "
        f"each layer has room for {search.generator.dim}, and weights read layers "
        f"{', '.join(map(str, read))} directly. Ask for fewer, or for other layers."
    )


def _refuses(generator: Generator) -> str:
    return "" if generator.factors() else "no weight of it reads latents directly."


METHOD = Method(
    summary="closed-form factorisation of the first weights (Shen & Zhou 2021)", settings=Settings, find=find,
    refuses=_refuses,
)  # fmt: skip
