"""What every backend promises, checked for each registered one in each precision of this machine."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS, Array, Session
from fastdirs.errors import BackendError, MissingDependencyError
from fastdirs.generators import Generator
from fastdirs.graphs import SynthesisGraph
from fastdirs.latents import sample_z
from fastdirs.parity import compare, measure
from fastdirs.recipe import DEFAULT_ACCEPT
from fastdirs.tracing import trace

MAX_BATCH = 8


def _pairs() -> Iterator[Any]:
    for name in BACKENDS.names():
        try:
            precisions = BACKENDS.load(name).precisions()
        except MissingDependencyError as error:
            yield pytest.param(name, "f32", marks=pytest.mark.skip(reason=str(error)))
            continue
        yield from (pytest.param(name, precision, id=f"{name}-{precision}") for precision in precisions)


every_pair = pytest.mark.parametrize(("backend", "precision"), list(_pairs()))


@pytest.fixture(params=["toy", "small_dcgan"])
def generator(request: pytest.FixtureRequest) -> Generator:
    chosen: Generator = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def graph(generator: Generator, toy_artifact: Artifact, dcgan_artifact: Artifact) -> Path:
    artifact = toy_artifact if generator.family == "toy" else dcgan_artifact
    return artifact.synthesis_path


def _open(backend: str, precision: str, generator: Generator, graph: Path, streaming: bool = True) -> Session:
    plugin = BACKENDS.load(backend)
    return plugin.open(graph if plugin.runs == "graph" else SynthesisGraph(generator), precision, streaming)


def _latents(generator: Generator, count: int) -> Array:
    return generator.mapping(sample_z(range(count), generator.z_dim)).numpy()


@pytest.mark.parametrize("streaming", [False, True])
@every_pair
def test_parity_with_torch(
    backend: str, precision: str, streaming: bool, generator: Generator, graph: Path
) -> None:
    latents = _latents(generator, MAX_BATCH)
    reference = generator.synthesis(torch.from_numpy(latents)).numpy()
    # What is compared is no flat picture, nor the same one for all latents.
    assert np.ptp(reference, axis=0).mean() > 0.1
    session = _open(backend, precision, generator, graph, streaming)
    parity = measure(session, [latents], reference, (1, 2, MAX_BATCH))
    session.close()
    assert parity.within(DEFAULT_ACCEPT[precision]), parity


class _SumAndDifference(nn.Module):
    """Two inputs, and three outputs of different shapes."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x + y, (x - y).mean(dim=(1, 2, 3)), x.flatten(1)[:, :5]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("several") / "several.onnx"
    example = (torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4))
    trace(
        _SumAndDifference(), example, path, ["x", "y"], ["sum", "difference", "row"], 18, {"name": "several"}
    )
    return path


@pytest.mark.parametrize("batch", [1, 2, 5])
@every_pair
def test_all_outputs_come_in_order(backend: str, precision: str, batch: int, several: Path) -> None:
    plugin = BACKENDS.load(backend)
    session = plugin.open(several if plugin.runs == "graph" else _SumAndDifference(), precision, False)
    # Values that bf16 holds exactly.
    x = np.arange(12 * batch, dtype=np.float32).reshape(batch, 1, 3, 4) / 4
    y = np.ones_like(x)
    wanted = [x + y, (x - y).mean((1, 2, 3)), x.reshape(batch, -1)[:, :5]]
    found = session.run_all([x, y])
    first = session.run([x, y])
    assert len(found) == 3
    for mine, theirs in zip([*found, first], [*wanted, wanted[0]], strict=True):
        assert mine.dtype == np.float32
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=0.01)
    # Results are the caller's own.
    kept = [each.copy() for each in found]
    session.run_all([y, x])
    for mine, theirs in zip(found, kept, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    session.close()


@every_pair
def test_says_what_runs(backend: str, precision: str, generator: Generator, graph: Path) -> None:
    session = _open(backend, precision, generator, graph)
    assert session.precision == precision
    assert session.provider
    assert session.num_parallel >= 1
    session.close()
    assert session.precision == precision, "what was in effect can still be read when it is closed"


@every_pair
def test_inputs_are_left_alone_and_results_are_independent(
    backend: str, precision: str, generator: Generator, graph: Path
) -> None:
    latents = _latents(generator, 4)
    first, second = latents[:2].copy(), latents[2:].copy()
    session = _open(backend, precision, generator, graph)
    images = session.run([first])
    kept = images.copy()
    session.run([second])
    assert images.dtype == np.float32
    assert images.shape == (2, generator.img_channels, generator.img_resolution, generator.img_resolution)
    np.testing.assert_array_equal(images, kept)
    np.testing.assert_array_equal(first, latents[:2])
    np.testing.assert_array_equal(second, latents[2:])
    images[:] = 0.0
    np.testing.assert_array_equal(session.run([first]), kept)
    session.close()


@every_pair
def test_concurrent_calls_do_not_mix(backend: str, precision: str, generator: Generator, graph: Path) -> None:
    batches = [_latents(generator, 3 * turn + 3)[-3:] for turn in range(8)]
    session = _open(backend, precision, generator, graph)
    alone = [session.run([batch]) for batch in batches]
    with ThreadPoolExecutor(max(2, session.num_parallel)) as pool:
        together = list(pool.map(lambda batch: session.run([batch]), batches * 3))
    session.close()
    for found, wanted in zip(together, alone * 3, strict=True):
        assert compare(found, wanted).max < 0.01


@every_pair
def test_closes_twice(backend: str, precision: str, generator: Generator, graph: Path) -> None:
    session = _open(backend, precision, generator, graph)
    session.run([_latents(generator, 1)])
    session.close()
    session.close()
    # Not a wrong result, nor waiting for ever.
    with pytest.raises(AssertionError):
        session.run([_latents(generator, 1)])


@pytest.mark.parametrize("backend", BACKENDS.names())
def test_unknown_precision(backend: str, toy: Generator, toy_artifact: Artifact) -> None:
    with pytest.raises(BackendError, match=f"{backend} has no precision 'f8'"):
        _open(backend, "f8", toy, toy_artifact.synthesis_path)


@pytest.mark.parametrize("backend", BACKENDS.names())
def test_describes_itself(backend: str) -> None:
    plugin = BACKENDS.load(backend)
    assert plugin.summary
    assert plugin.runs in ("graph", "module")
    assert plugin.precisions()[0] == "f32"
    assert set(plugin.precisions()) <= set(DEFAULT_ACCEPT), "a precision without a usual tolerance"
