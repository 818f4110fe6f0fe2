"""What every backend promises, checked for each registered one in each precision of this machine."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS, Array, Session
from fastdirs.backends._memory import enough_memory
from fastdirs.errors import BackendError, MissingDependencyError
from fastdirs.generators import Generator
from fastdirs.graph_parts import part
from fastdirs.graph_precision import typed
from fastdirs.graphs import SynthesisGraph
from fastdirs.images import to_uint8
from fastdirs.latents import sample_z
from fastdirs.parity import compare, measure
from fastdirs.quantization import quantize
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
        # It compiles for half a minute; test_compiled.py has the quick ones.
        marks = [pytest.mark.slow] if name == "compiled" else []
        for precision in precisions:
            yield pytest.param(name, precision, marks=marks, id=f"{name}-{precision}")


def _unknown_operator() -> bytes:
    helper = onnx.helper
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Unheard", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


PAIRS = list(_pairs())
every_pair = pytest.mark.parametrize(("backend", "precision"), PAIRS)
every_graph_pair = pytest.mark.parametrize(
    ("backend", "precision"),
    [pair for pair in PAIRS if pair.id and BACKENDS.load(pair.values[0]).runs == "graph"],
)


@pytest.fixture(params=["toy", "small_dcgan"])
def generator(request: pytest.FixtureRequest) -> Generator:
    chosen: Generator = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture(scope="session")
def toy_graphs(toy: Generator, toy_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> "Graphs":
    return Graphs(toy, toy_artifact.synthesis_path, tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def dcgan_graphs(
    small_dcgan: Generator, dcgan_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> "Graphs":
    return Graphs(small_dcgan, dcgan_artifact.synthesis_path, tmp_path_factory.mktemp("dcgan"))


class Graphs:
    """The graph of a generator in the precision that a backend runs, made when it is first asked for."""

    def __init__(self, generator: Generator, path: Path, folder: Path) -> None:
        self.generator, self.folder, self.paths = generator, folder, {"f32": path}

    def __getitem__(self, precision: str) -> Path:
        if precision not in self.paths:
            path = self.folder / f"{precision}.onnx"
            if precision == "int8":
                if self.generator.family == "toy":
                    pytest.skip("the toy has no convolution that could be quantised")
                quantize(self.paths["f32"], path, [[_latents(self.generator, 64)]])
            else:
                onnx.save(typed(onnx.load(self.paths["f32"]), precision), path)
            self.paths[precision] = path
        return self.paths[precision]


@pytest.fixture
def graphs(generator: Generator, toy_graphs: Graphs, dcgan_graphs: Graphs) -> Graphs:
    return toy_graphs if generator.family == "toy" else dcgan_graphs


def _open(backend: str, precision: str, graphs: Graphs, streaming: bool = True) -> Session:
    plugin = BACKENDS.load(backend)
    if plugin.runs == "module":
        return plugin.open(SynthesisGraph(graphs.generator), precision, streaming)
    return plugin.open(graphs[plugin.graph_of(precision)], precision, streaming)


def _latents(generator: Generator, count: int) -> Array:
    return generator.mapping(sample_z(range(count), generator.z_dim)).numpy()


@pytest.mark.parametrize("streaming", [False, True])
@every_pair
def test_parity_with_torch(
    backend: str, precision: str, streaming: bool, generator: Generator, graphs: Graphs
) -> None:
    latents = _latents(generator, MAX_BATCH)
    reference = generator.synthesis(torch.from_numpy(latents)).numpy()
    # What is compared is no flat picture, nor the same one for all latents.
    assert np.ptp(reference, axis=0).mean() > 0.1
    session = _open(backend, precision, graphs, streaming)
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
def test_says_what_runs(backend: str, precision: str, generator: Generator, graphs: Graphs) -> None:
    session = _open(backend, precision, graphs)
    assert session.precision == precision
    assert session.provider
    assert session.num_parallel >= 1
    session.close()
    assert session.precision == precision, "what was in effect can still be read when it is closed"


@every_pair
def test_inputs_are_left_alone_and_results_are_independent(
    backend: str, precision: str, generator: Generator, graphs: Graphs
) -> None:
    latents = _latents(generator, 4)
    first, second = latents[:2].copy(), latents[2:].copy()
    session = _open(backend, precision, graphs)
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
def test_concurrent_calls_do_not_mix(
    backend: str, precision: str, generator: Generator, graphs: Graphs
) -> None:
    batches = [_latents(generator, 3 * turn + 3)[-3:] for turn in range(8)]
    session = _open(backend, precision, graphs)
    alone = [session.run([batch]) for batch in batches]
    with ThreadPoolExecutor(max(2, session.num_parallel)) as pool:
        together = list(pool.map(lambda batch: session.run([batch]), batches * 3))
    session.close()
    for found, wanted in zip(together, alone * 3, strict=True):
        assert compare(found, wanted).max < 0.01


@every_pair
def test_closes_twice(backend: str, precision: str, generator: Generator, graphs: Graphs) -> None:
    session = _open(backend, precision, graphs)
    session.run([_latents(generator, 1)])
    session.close()
    session.close()
    # Not a wrong result, nor waiting for ever.
    with pytest.raises(AssertionError):
        session.run([_latents(generator, 1)])


@every_pair
def test_what_was_kept_is_an_input(backend: str, precision: str, several: Path) -> None:
    plugin = BACKENDS.load(backend)
    session = plugin.open(several if plugin.runs == "graph" else _SumAndDifference(), precision, False)
    x = np.arange(24, dtype=np.float32).reshape(2, 1, 3, 4) / 4
    y = np.ones_like(x)
    kept = session.run_kept([x, y])
    assert len(kept) == 3
    assert isinstance(kept[0], np.ndarray) == (session.device == "cpu")
    np.testing.assert_allclose(session.run([kept[0], y]), x + 2 * y, rtol=0.01)
    np.testing.assert_allclose(session.run([kept[0], kept[0]]), 2 * (x + y), rtol=0.01)
    session.close()


@every_graph_pair
def test_pixels_of_a_graph_are_uint8(
    backend: str, precision: str, generator: Generator, graphs: Graphs, tmp_path: Path
) -> None:
    plugin, path = BACKENDS.load(backend), tmp_path / "pixels.onnx"
    onnx.save(part(onnx.load(graphs[plugin.graph_of(precision)]), pixels=True), path)
    latents = _latents(generator, 3)
    session = plugin.open(path, precision, False)
    pixels = session.run([latents])
    session.close()
    wanted = to_uint8(generator.synthesis(torch.from_numpy(latents)).numpy())
    assert pixels.dtype == np.uint8
    assert pixels.shape == wanted.shape
    difference = np.abs(pixels.astype(int) - wanted)
    assert difference.mean() < DEFAULT_ACCEPT[precision].mean + 0.1


@pytest.mark.parametrize(
    "content", [b"no graph", b"", _unknown_operator(), None], ids=["text", "empty", "operator", "missing"]
)
@every_graph_pair
def test_a_file_that_is_no_graph(backend: str, precision: str, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    # Only what is refused like this is left out where there are others.
    with pytest.raises(BackendError, match=r"broken\.onnx.*: .+\. "):
        BACKENDS.load(backend).open(path, precision, False)


@pytest.mark.parametrize(
    ("said", "memory"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", True),
        ("CUDA failure 2: out of memory ; GPU=0", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("Failed to allocate memory for requested buffer of size 3377699720527872", True),
        ("std::bad_alloc", True),
        ("mat1 and mat2 must have the same dtype", False),
    ],
)
def test_too_little_memory_is_known_by_what_is_said(said: str, memory: bool) -> None:
    refused = pytest.raises(BackendError if memory else RuntimeError, match=re.escape(said.rstrip(".")))
    with refused, enough_memory():
        raise RuntimeError(said)


@pytest.mark.parametrize("backend", BACKENDS.names())
def test_what_lacks_something_says_what_and_runs_nothing(backend: str, toy_graphs: Graphs) -> None:
    plugin = BACKENDS.load(backend)
    missing = plugin.lacks()
    assert bool(missing) == (plugin.precisions() == ())
    if missing:
        for precision in ("f32", "f16", "bf16"):
            source = toy_graphs["f32"] if plugin.runs == "graph" else SynthesisGraph(toy_graphs.generator)
            with pytest.raises(BackendError, match=re.escape(missing)):
                plugin.open(source, precision, False)


@pytest.mark.parametrize("backend", BACKENDS.names())
def test_unknown_precision(backend: str, toy_graphs: Graphs) -> None:
    plugin = BACKENDS.load(backend)
    source = toy_graphs["f32"] if plugin.runs == "graph" else SynthesisGraph(toy_graphs.generator)
    with pytest.raises(BackendError, match=f"{backend} has no precision 'f8'"):
        plugin.open(source, "f8", False)


@pytest.mark.parametrize("backend", BACKENDS.names())
def test_describes_itself(backend: str) -> None:
    plugin = BACKENDS.load(backend)
    assert plugin.summary
    assert plugin.runs in ("graph", "module")
    precisions = plugin.precisions()
    # First where it is there at all: a GPU's library may not be able to compute in it.
    assert "f32" not in precisions[1:]
    assert set(precisions) <= set(DEFAULT_ACCEPT), "a precision without a usual tolerance"
    assert precisions or plugin.lacks()
