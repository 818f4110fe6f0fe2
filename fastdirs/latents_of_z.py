"""From z to latents, wherever the way was kept: in a graph, in a generator, or nowhere (z is the latents)."""

import numpy as np
import torch

from fastdirs.backends import Array, Session
from fastdirs.generators import Generator
from fastdirs.graphs import MappingGraph
from fastdirs.manifest import Json


class LatentsOfZ:
    """Latents of z, with weights of classes and a truncation for each layer."""

    def __init__(self, source: Generator | Session | Json) -> None:
        self._source = source

    def __call__(self, z: Array, c: Array | None, psi: Array) -> Array:
        """z `[batch, z_dim]`, weights `[batch, c_dim]` or None, psi `[layers]` -> `[batch, layers, dim]`."""
        inputs = [z, psi] if c is None else [z, c, psi]
        if isinstance(self._source, Session):
            return self._source.run(inputs)
        if isinstance(self._source, Generator):
            with torch.inference_mode():
                latents: Array = MappingGraph(self._source)(*map(torch.from_numpy, inputs)).numpy()
            return latents
        # Without a mapping the latents are z itself, in another shape, and their mean is zero.
        shaped = z.reshape(len(z), int(self._source["num_layers"]), int(self._source["dim"]))
        return np.asarray(psi[:, None] * shaped, dtype=np.float32)

    def close(self) -> None:
        """Free the session, if there is one. May be called twice."""
        if isinstance(self._source, Session):
            self._source.close()
