"""Images of latents one by one, rendered in batches of one shape."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from torch import Tensor

from fastdirs.backends import Array, Kept
from fastdirs.errors import BackendError
from fastdirs.pairs import IdentitySampler
from fastdirs.runtime import Runtime
from fastdirs.throughput import stream

Row = tuple[Array, int | None]
"""Latents of one image `[layers, dim]`, float32, and its class, None if unconditional."""


class SingleImages:
    """What a runtime makes of seeds and latents, image by image.

    Attributes:
        runtime: An opened backend.
        sampler: Draws z and classes as its generator would.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.sampler = IdentitySampler(runtime.generator)

    def rows_of_seeds(self, seeds: Sequence[int]) -> list[Row]:
        """Unshifted latents of each seed, and its class."""
        return self.rows_of_z(self.sampler.sample(seeds), self.sampler.sample_classes(seeds))

    def rows_of_z(self, z: Tensor, classes: Tensor | None) -> list[Row]:
        """Unshifted latents of each z `[batch, z_dim]`, and its class `[batch]`."""
        latents = self.runtime.mapping(z.numpy(), classes)
        return list(zip(latents, [None] * len(z) if classes is None else classes.tolist(), strict=True))

    def render(self, rows: Iterable[Row]) -> Iterator[Array]:
        """Images in the order of the rows; memory holds a few batches, however many there are.

        Yields:
            `[channels, height, width]`, float32, clipped to [-1, 1].

        Raises:
            BackendError: Images that are not finite.
        """
        size = self.runtime.usual_batch
        counts: list[int] = []

        def batches() -> Iterator[list[Kept]]:
            left = iter(rows)
            while some := list(islice(left, size)):
                counts.append(len(some))
                # The last batch is filled up with copies of its last row.
                some += some[-1:] * (size - len(some))
                c = None if some[0][1] is None else np.array([each for _, each in some])
                yield self.runtime.inputs(np.stack([latents for latents, _ in some]), c)

        for number, images in enumerate(stream(self.runtime.session, batches())):
            if not np.isfinite(images).all():
                raise BackendError(
                    f"{self.runtime.backend} {self.runtime.precision} makes images that are not finite. "
                    "Choose another backend, or --precision f32."
                )
            yield from np.clip(images[: counts[number]], -1, 1)
