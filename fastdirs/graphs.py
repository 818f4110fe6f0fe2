"""Modules written to be exported: what `forward` takes and returns are the graph's inputs and output."""

import torch
from torch import Tensor, nn

from fastdirs.generators import Generator
from fastdirs.latents import truncate


class SynthesisGraph(nn.Module):
    """`latents` -> `images`."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, latents: Tensor) -> Tensor:
        """Latents `[batch, layers, dim]` -> images `[batch, channels, height, width]` in [-1, 1], float32."""
        return self.generator.run_stages(latents)

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace with, batch 2: `[2, layers, dim]`."""
        return (torch.zeros(2, self.generator.num_layers, self.generator.dim),)


class MappingGraph(nn.Module):
    """`z`, `psi` -> `latents`."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor, psi: Tensor) -> Tensor:
        """z `[batch, z_dim]` and psi of each layer `[layers]` -> latents `[batch, layers, dim]`, float32."""
        return truncate(self.generator.map_z(z, None), self.generator.latent_mean, psi)

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace with, batch 2: `[2, z_dim]` and `[layers]`."""
        return torch.zeros(2, self.generator.z_dim), torch.ones(self.generator.num_layers)
