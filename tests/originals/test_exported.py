"""Generators that an original wrote give the same once they are exported: mapping and synthesis graphs."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdirs.export import export_generator
from fastdirs.generators import GENERATORS, Generator
from fastdirs.recipe import DEFAULT_ACCEPT, Batch, Graph, Recipe
from fastdirs.runtime import open_runtime
from tests.originals.conftest import (
    Engine,
    Original,
    every_array,
    every_original,
    loaded,
    options_of,
    originals,
    passed_over,
    require_equal,
)

GRAPH_BACKENDS = ["ort", "openvino_cpu"]
every_backend = pytest.mark.parametrize("backend", GRAPH_BACKENDS)


class Exported:
    """A generator, its artefact, and that opened on each backend."""

    def __init__(self, generator: Generator, folder: Path, batch: int) -> None:
        recipe = Recipe(
            generator=generator.provenance.name, graph=Graph(lowering="folded"),
            batch=Batch(opt=batch, max=batch), accept={"f32": DEFAULT_ACCEPT["f32"]},
        )  # fmt: skip
        self.generator = generator
        artifact = export_generator(generator, folder / "artifact", recipe)
        self.runtimes = {
            name: open_runtime(artifact, backend=name, precision="f32") for name in GRAPH_BACKENDS
        }

    def engine(self, backend: str, batch: int) -> Engine:
        runtime = self.runtimes[backend]

        def mapping(z: Tensor, c: Tensor | None, psi: float, cutoff: int | None) -> Tensor:
            return torch.from_numpy(runtime.mapping(z.numpy(), c, psi, cutoff))

        def synthesis(latents: Tensor, c: Tensor | None) -> Tensor:
            return torch.from_numpy(runtime.synthesize(latents.numpy(), c))

        return Engine(self.generator, mapping, synthesis, batch)


Export = Callable[..., Exported]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """An original's generator as it was exported, once for all tests."""

    @cache
    def export(original: Original, options: tuple[tuple[str, str], ...] = ()) -> Exported:
        return Exported(loaded(original, options), tmp_path_factory.mktemp(str(original)), original.batch)

    return export


def require_that_seeds_give_the_same(original: Original, made: Exported, backend: str) -> None:
    """Sampling, truncation at 0.7, a class: the whole way of a machine that has no checkpoint."""
    generator, runtime, seeds = made.generator, made.runtimes[backend], range(original.batch)
    c = generator.c_dim - 1 if generator.c_dim else None
    with torch.inference_mode():
        latents = generator.mapping(generator.sample(seeds), c, psi=0.7)
        images = generator.synthesis(latents, c)
    found = runtime.latents_of(0.7, None, c)(seeds)
    torch.testing.assert_close(found, latents, rtol=0, atol=original.tolerance("latents"))
    images_found = torch.from_numpy(runtime.synthesize(found.numpy(), c))
    torch.testing.assert_close(images_found, images, rtol=0, atol=original.tolerance("images"))


# Tracing takes seconds, so the quick run exports the smallest file of each family.
@pytest.mark.parametrize("family", GENERATORS.names())
def test_the_smallest_of_each_family(family: str, exported: Export) -> None:
    found = [original for original in originals() if loaded(original).family == family]
    if not found:
        pytest.skip(f"no original's {family} is here")
    original = min(found, key=lambda each: each.weights.stat().st_size)
    made = exported(original)
    for backend in GRAPH_BACKENDS:
        for array in original.names:
            if passed_over(array) or options_of(original, array):
                continue
            for batch in (1, original.batch):
                require_equal(made.engine(backend, batch), original, array)
        require_that_seeds_give_the_same(original, made, backend)


@pytest.mark.slow
@every_array()
@every_backend
@pytest.mark.parametrize("alone", [True, False], ids=["one by one", "in a batch"])
def test_what_the_original_made(
    original: Original, array: str, backend: str, alone: bool, exported: Export
) -> None:
    made = exported(original, tuple(options_of(original, array).items()))
    require_equal(made.engine(backend, 1 if alone else original.batch), original, array)


@pytest.mark.slow
@every_original()
@every_backend
def test_seeds_give_what_torch_gives_of_them(original: Original, backend: str, exported: Export) -> None:
    require_that_seeds_give_the_same(original, exported(original), backend)
