"""Modules written to be exported: what `forward` takes and returns are the graph's inputs and output."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastdirs.generators import Generator
from fastdirs.latents import truncate


class SynthesisGraph(nn.Module):
    """`latents` -> `images`, or `latents`, `c` -> `images` where the synthesis reads the class.

    Attributes:
        inputs: Names of what `forward` takes.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator
        self.inputs = ("latents", "c") if generator.class_in == "synthesis" else ("latents",)

    def forward(self, latents: Tensor, c: Tensor | None = None) -> Tensor:
        """Latents `[batch, layers, dim]`, and weights of the classes `[batch, c_dim]` if it reads them.

        Returns images `[batch, channels, height, width]`, float32.
        """
        return self.generator.run_stages(latents, c)

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace with, batch 2: `[2, layers, dim]`, and `[2, c_dim]` if it reads the class."""
        latents = torch.zeros(2, self.generator.num_layers, self.generator.dim)
        return (latents, torch.zeros(2, self.generator.c_dim))[: len(self.inputs)]


class MappingGraph(nn.Module):
    """`z`, `psi` -> `latents`, or `z`, `c`, `psi` -> `latents` where the mapping reads the class.

    Attributes:
        inputs: Names of what `forward` takes.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator
        self.inputs = ("z", "c", "psi") if generator.class_in == "mapping" else ("z", "psi")

    def forward(self, z: Tensor, c: Tensor, psi: Tensor | None = None) -> Tensor:
        """z `[batch, z_dim]`, weights of the classes `[batch, c_dim]` if it reads them, psi `[layers]`.

        Returns latents `[batch, layers, dim]`, float32.
        """
        # A graph's inputs have an order and no gaps: without classes the second one is psi.
        weights, strength = (None, c) if psi is None else (c, psi)
        return truncate(self.generator.map_z(z, weights), self.generator.latent_mean, strength)

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace with, batch 2: `[2, z_dim]`, `[2, c_dim]` if it reads the class, and `[layers]`."""
        inputs = {
            "z": torch.zeros(2, self.generator.z_dim),
            "c": torch.zeros(2, self.generator.c_dim),
            "psi": torch.ones(self.generator.num_layers),
        }
        return tuple(inputs[name] for name in self.inputs)


def synthesis_inputs(generator: Generator, seeds: Sequence[int]) -> list[NDArray[np.float32]]:
    """What a `SynthesisGraph` takes for seeds, in order; of a conditional generator each seed has a class.

    Args:
        generator: The generator.
        seeds: One for each image.

    Returns:
        Latents `[seeds, layers, dim]`, and weights of the classes `[seeds, c_dim]` if the synthesis reads
        them, float32.
    """
    classes = generator.sample_classes(seeds)
    with torch.inference_mode():
        latents = generator.mapping(generator.sample(seeds), classes)
    c = generator.class_weights(classes, len(seeds), "synthesis")
    return [np.ascontiguousarray(each.numpy()) for each in (latents, c) if each is not None]
