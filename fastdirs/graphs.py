"""Modules written to be exported: what `forward` takes and returns are the graph's inputs and output."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastdirs.generators import Generator, State
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


class StatesGraph(SynthesisGraph):
    """`SynthesisGraph` that returns what each stage hands on, so that the graph can be cut between stages.

    Attributes:
        states: Names of what `forward` returns, stage by stage; the last one is "images".
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__(generator)
        with torch.inference_mode():
            counts = [len(state) for state in self._states(*self.example())]
        self.states = [[f"state{stage}.{k}" for k in range(count)] for stage, count in enumerate(counts)]
        self.states[-1] = ["images"]

    def forward(  # type: ignore[override]
        self, latents: Tensor, c: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """As in `SynthesisGraph`; returns the tensors of all states, `[batch, ...]` each, the images last."""
        return tuple(tensor for state in self._states(latents, c) for tensor in state)

    def _states(self, latents: Tensor, c: Tensor | None = None) -> list[tuple[Tensor, ...]]:
        state: State = c
        states = []
        for stage in self.generator.stages:
            state = stage(state, latents)
            assert state is not None
            states.append((state,) if isinstance(state, Tensor) else state)
        return states


class PartGraph(nn.Module):
    """Some stages: `latents`, maybe `c`, and the state before them -> the state after them, or images.

    Args:
        generator: The generator.
        begin: First stage; 0 takes no state.
        end: The stage to end before; None for the images.

    Attributes:
        class_read: Whether `forward` takes `c`.
    """

    def __init__(self, generator: Generator, begin: int = 0, end: int | None = None) -> None:
        super().__init__()
        self.stages = generator.stages[begin:end]
        self.class_read = generator.class_in == "synthesis"
        self.begin = begin
        # A state of one tensor may be a tuple of one: its stage knows, and is asked once.
        state: State = None
        with torch.inference_mode():
            latents, *c = SynthesisGraph(generator).example()
            state = c[0] if c else None
            for stage in generator.stages[:begin]:
                state = stage(state, latents)
        self.tupled = isinstance(state, tuple)

    def forward(self, latents: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Latents `[batch, layers, dim]`, weights of the classes `[batch, c_dim]` if read, the state.

        Returns the tensors of the state after the stages, `[batch, ...]` each.
        """
        c, tensors = (rest[0], rest[1:]) if self.class_read else (None, rest)
        state: State = c
        if self.begin:
            state = tensors if self.tupled else tensors[0]
        for stage in self.stages:
            state = stage(state, latents)
        assert state is not None
        return (state,) if isinstance(state, Tensor) else state


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
