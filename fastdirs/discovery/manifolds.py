"""Disentangled manifolds: a network from one-hot vectors to the latent space, whose paths may curve."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.deformators import Deformator
from fastdirs.discovery import Found, Method, Search
from fastdirs.discovery._learned import learn, refuses
from fastdirs.errors import SelectionError
from fastdirs.training.settings import TrainingSettings, option


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """Options of the method, besides those of every training.

    Raises:
        SelectionError: A value out of range.
    """

    centroid_weight: float = option(0.1, "weight of the centroid loss (0 = without)")
    per_direction: int = option(4, "latents of each direction in a batch")
    hidden: int = option(128, "width of the network's hidden layers")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.centroid_weight < 1000:
            raise SelectionError(
                f"centroid_weight={self.centroid_weight:g} is out of range. Expected 0 to 1000."
            )
        if self.per_direction < 2 or self.hidden < 1:
            raise SelectionError(
                f"per_direction={self.per_direction} and hidden={self.hidden} are out of range. Expected 2 "
                "or more latents of each direction, so that each has company, and 1 or more units."
            )


class Manifold(Deformator):
    """One-hot vector and epsilon -> a point of the path, at distance |epsilon| from its beginning.

    Args:
        num_directions: K.
        size: Numbers in a shift.
        hidden: Width of the hidden layers.
        reach: Epsilon that counts as 1 for the network.
    """

    straight = False

    def __init__(self, num_directions: int, size: int, hidden: int, reach: float) -> None:
        super().__init__(num_directions, size)
        self.reach = reach
        self.straight_part = nn.Linear(num_directions, size, bias=False)
        nn.init.normal_(self.straight_part.weight, std=0.1)
        self.network = nn.Sequential(
            nn.Linear(num_directions + 1, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU(),
            nn.Linear(hidden, size, bias=False),
        )  # fmt: skip

    def forward(self, directions: Tensor, epsilons: Tensor) -> Tensor:
        """Directions and epsilons `[batch]` -> shifts `[batch, size]`."""
        one_hot = F.one_hot(directions, self.num_directions).to(epsilons.dtype)
        place = (epsilons / self.reach)[:, None]
        heading = self.straight_part(one_hot) + self.network(torch.cat([one_hot, place], dim=1))
        return epsilons[:, None] * F.normalize(heading, dim=1)

    def deform(self, basis: Tensor) -> Tensor:
        """`[batch, num_directions]` with one entry a row -> `[batch, size]`."""
        directions = basis.abs().argmax(dim=1)
        shifts: Tensor = self(directions, basis.gather(1, directions[:, None])[:, 0])
        return shifts


class CentroidLoss(nn.Module):
    """Features of pairs of one direction shall lie together, and apart from those of others.

    Source:
        Wan et al. 2018 (GE2E, arXiv:1710.10467), eq. 5-6, softmax form, initial scale 10 and offset -5.
        Differs: the scale is kept positive by its logarithm, and the mean over pairs is taken, not the sum.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())
        self.offset = nn.Parameter(torch.tensor(-5.0))

    def forward(self, features: Tensor, directions: Tensor) -> Tensor:
        """The loss.

        Args:
            features: Of pairs. `[batch, width]`, float32.
            directions: `[batch]`, int64; each with two pairs or more.

        Returns:
            Mean cross entropy of each pair's own centroid among all in the batch. `[]`, float32.
        """
        present, own = torch.unique(directions, return_inverse=True)
        unit = F.normalize(features, dim=1)
        sums = unit.new_zeros(len(present), unit.shape[1]).index_add(0, own, unit)
        similarity = unit @ F.normalize(sums, dim=1).T
        # A pair is compared with the centroid of the others of its direction: it must not vote for itself.
        others = F.cosine_similarity(unit, sums[own] - unit, dim=1)
        similarity = similarity.scatter(1, own[:, None], others[:, None])
        return F.cross_entropy(self.log_scale.exp() * similarity + self.offset, own)


def find(search: Search, settings: Settings) -> Found:
    """Curved paths by the reconstructor's held-out accuracy times how visible the change is, best first.

    Args:
        search: A generator with gradients, the layers to edit, and K.
        settings: See there; "auto" is the family's published value for `voynov`, or else the usual one.

    Raises:
        TrainingError: The loss is no number any more.
        OutputError: The folder holds something else, or a run with other settings.
        SelectionError: A setting out of range.

    Source:
        Lu, Lee, Tseng & Yang 2020 (arXiv:2011.11842), of which only the abstract is public. Stated there: a
        transformation from one-hot vectors to the latent space of a pretrained generator is learned, with a
        centroid loss that improves consistency and smoothness. Ours: everything else. The network (a linear
        part and three layers), a heading of unit length times epsilon, the reconstructor and its losses
        (Voynov & Babenko 2020), the centroid loss in the form of GE2E on the reconstructor's features, its
        weight, and batches of N directions x M latents.
    """
    settings = settings.resolved(search.generator)
    return learn(
        search, "manifolds", settings,
        lambda: Manifold(
            search.num_directions, search.space.size, settings.hidden, settings.shift_scale
        ),
        CentroidLoss if settings.centroid_weight else None, settings.centroid_weight, settings.per_direction,
    )  # fmt: skip


METHOD = Method(
    summary="a network from one-hot vectors to curved paths, with a centroid loss (after Lu et al. 2020)",
    settings=Settings, find=find, refuses=refuses, trains=True,
)  # fmt: skip
