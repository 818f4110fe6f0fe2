"""The baseline: random directions, at right angles to each other."""

from dataclasses import dataclass, field

import numpy as np
import torch

from fastdirs.discovery import Found, Method, Search
from fastdirs.errors import SelectionError


@dataclass(frozen=True)
class Settings:
    """Options of the random baseline.

    Attributes:
        seed: Another one gives other directions.

    Raises:
        SelectionError: A seed outside 0 to 2**32 - 1.
    """

    seed: int = field(default=0, metadata={"help": "another one gives other directions"})

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise SelectionError(f"seed={self.seed} is out of range. Expected 0 to {2**32 - 1}.")


def find(search: Search, settings: Settings) -> Found:
    """Orthonormal vectors, evenly distributed over all such sets; the first ones do not depend on K.

    Args:
        search: The latent layers and K.
        settings: The seed.

    Returns:
        All scores are 0: nothing was looked at.

    Source:
        Voynov & Babenko, ICML 2020 (arXiv:2002.03754), compare with random directions; orthonormal in their
        code too. Differs: a seed, so that the same ones are drawn again.
    """
    rows = np.random.RandomState(settings.seed).randn(search.num_directions, search.space.size)
    q, r = torch.linalg.qr(torch.from_numpy(rows).T)
    # Signs that a solver is free to choose would make the distribution uneven.
    vectors = (q * r.diagonal().sign()).T
    search.progress(1, 1)
    return Found(vectors=vectors, scores=torch.zeros(search.num_directions))


METHOD = Method(
    summary="baseline: random directions at right angles", settings=Settings, find=find, baseline=True
)
