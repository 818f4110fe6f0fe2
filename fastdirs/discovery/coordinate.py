"""The baseline: the axes of the latent space."""

from dataclasses import dataclass

import torch

from fastdirs.discovery import Found, Method, Search


@dataclass(frozen=True)
class Settings:
    """The coordinate baseline has no options."""


def find(search: Search, settings: Settings) -> Found:
    """The first K axes, each of which changes one number of the latents.

    Args:
        search: The latent layers and K.
        settings: None.

    Returns:
        All scores are 0: nothing was looked at.

    Source:
        Voynov & Babenko, ICML 2020 (arXiv:2002.03754), compare with coordinate axes.
    """
    vectors = torch.eye(search.num_directions, search.space.size)
    search.progress(1, 1)
    return Found(vectors=vectors, scores=torch.zeros(search.num_directions))


METHOD = Method(summary="baseline: the axes of the latent space", settings=Settings, find=find, baseline=True)
