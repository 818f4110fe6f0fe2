"""Engines run on torch's CUDA tensors. All but the first test need a GPU."""

import ast
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS, Array, Session, _tensorrt_run, engine_path
from fastdirs.engines import build_engines
from fastdirs.errors import ArtifactError, BackendError, SelectionError
from fastdirs.generators import Generator
from fastdirs.graph_parts import boundaries, part
from fastdirs.latents import sample_z
from fastdirs.parity import compare, measure
from fastdirs.recipe import DEFAULT_ACCEPT, Batch, Engine

BACKEND = BACKENDS.load("trt")
BATCH = Batch(opt=4, max=8)


def on_a_gpu(test: object) -> object:
    return pytest.mark.gpu(pytest.mark.skipif(bool(BACKEND.lacks()), reason=BACKEND.lacks())(test))


def test_every_name_that_running_needs_exists() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    owners = {
        "context": trt.IExecutionContext, "config": trt.IRuntimeConfig,
        "self._engine": trt.ICudaEngine, "self._runtime": trt.Runtime, "trt": trt,
    }  # fmt: skip
    used = {
        (ast.unparse(node.value), node.attr)
        for node in ast.walk(ast.parse(Path(_tensorrt_run.__file__).read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in owners
    }
    assert {owner for owner, _ in used} == set(owners)
    assert {name for owner, name in used if not hasattr(owners[owner], name)} == set()
    assert set(_tensorrt_run._DTYPES) <= set(trt.DataType.__members__)
    # Asked for by name, since one of the libraries has them.
    assert hasattr(trt.IExecutionContext, "is_stream_capturable")
    assert "USER_MANAGED" in trt.ExecutionContextAllocationStrategy.__members__
    assert "EAGER" in trt.DynamicShapesKernelSpecializationStrategy.__members__


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fastdirs" / "engines"


def latents_of(generator: Generator, count: int) -> Array:
    latents: Array = generator.mapping(sample_z(range(count), generator.z_dim)).numpy()
    return latents


def opened(artifact: Artifact, streaming: bool = False) -> Session:
    return BACKEND.open(artifact.synthesis_path, "f32", streaming, BATCH)


@on_a_gpu
@pytest.mark.parametrize("graphs", [True, False])
def test_parity(graphs: bool, small_dcgan: Generator, dcgan_artifact: Artifact) -> None:
    latents = latents_of(small_dcgan, 8)
    reference = small_dcgan.synthesis(torch.from_numpy(latents)).numpy()
    session = opened(dcgan_artifact)
    if not graphs:
        session.stop_recording("asked for")
    # Each size twice and once more: launched, recorded, replayed.
    parity = measure(session, [latents], reference, (1, 1, 1, 8, 8, 8, 3))
    assert parity.within(DEFAULT_ACCEPT["f32"]), parity
    assert session.precision == "f32"
    assert session.provider.startswith("TensorRT")
    assert torch.cuda.get_device_name(0) in session.provider
    assert ("CUDA graphs" in session.provider) == session.cuda_graphs
    assert ("no CUDA graphs" in session.detail) != session.cuda_graphs
    assert "heavy layers in f32" in session.detail
    session.close()


@on_a_gpu
def test_sizes_in_turns_keep_their_cuda_graphs_apart(
    small_dcgan: Generator, dcgan_artifact: Artifact
) -> None:
    latents = latents_of(small_dcgan, 8)
    reference = small_dcgan.synthesis(torch.from_numpy(latents)).numpy()
    session = opened(dcgan_artifact)
    # More of them than are kept, each recorded, and then in turns: replayed, launched and recorded anew.
    sizes = [size for size in range(1, 8) for _ in range(3)] + [7, 5, 7, 6, 1, 1, 1, 7, 4, 8] * 2
    parity = measure(session, [latents], reference, sizes)
    assert parity.within(DEFAULT_ACCEPT["f32"]), parity
    session.close()


@on_a_gpu
def test_results_are_the_callers_own(small_dcgan: Generator, dcgan_artifact: Artifact) -> None:
    latents = latents_of(small_dcgan, 8)
    session = opened(dcgan_artifact)
    for start in (0, 2, 4, 6):
        kept = session.run_kept([latents[start : start + 2]])[0]
        assert isinstance(kept, torch.Tensor)
        assert kept.is_cuda
        alone = session.run([latents[start : start + 2]])
        session.run([latents[:2]])
        assert compare(kept.cpu().numpy(), alone).max < 0.01
    session.close()


@on_a_gpu
def test_tensors_of_the_gpu_that_lie_oddly(small_dcgan: Generator, dcgan_artifact: Artifact) -> None:
    latents = latents_of(small_dcgan, 8)
    session = opened(dcgan_artifact)
    wanted = session.run([latents[1:4]])
    on_gpu = torch.from_numpy(latents).cuda()
    odd = [
        on_gpu[1:4],
        on_gpu[1:4].double(),
        on_gpu[1:4].transpose(0, -1).contiguous().transpose(0, -1),
        torch.from_numpy(latents[1:4]),
    ]
    for given in odd:
        assert compare(session.run([given]), wanted).max < 0.01
    session.close()


@on_a_gpu
def test_parts_hand_on_what_stays_on_the_gpu(
    small_dcgan: Generator, dcgan_artifact: Artifact, tmp_path: Path
) -> None:
    model = onnx.load(str(dcgan_artifact.synthesis_path))
    whole = opened(dcgan_artifact)
    latents = latents_of(small_dcgan, 4)
    sessions = []
    for name, piece in (("prefix", part(model, 0, 2)), ("suffix", part(model, 2))):
        onnx.save(piece, str(tmp_path / f"{name}.onnx"))
        sessions.append(BACKEND.open(tmp_path / f"{name}.onnx", "f32", False, BATCH))
    state = sessions[0].run_kept([latents])
    assert len(state) == len(boundaries(model)[1])
    read = len(onnx.load(str(tmp_path / "suffix.onnx")).graph.input) - len(state)
    for _ in range(3):
        assert compare(sessions[1].run([*[latents][:read], *state]), whole.run([latents])).max < 0.5
    for session in (whole, *sessions):
        session.close()


@on_a_gpu
def test_two_at_a_time(small_dcgan: Generator, dcgan_artifact: Artifact) -> None:
    batches = [latents_of(small_dcgan, 3 * turn + 3)[-(turn % 3 + 1) :] for turn in range(8)]
    session = opened(dcgan_artifact, streaming=True)
    assert session.num_parallel == 2
    alone = [session.run([batch]) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: session.run([batch]), batches * 5))
    for found, wanted in zip(together, alone * 5, strict=True):
        assert compare(found, wanted).max < 0.01
    session.close()
    session.close()


@on_a_gpu
def test_batches_outside_the_profile(small_dcgan: Generator, dcgan_artifact: Artifact) -> None:
    session = opened(dcgan_artifact)
    with pytest.raises(SelectionError, match=r"The batch has 9 images\. This engine serves 1 to 8"):
        session.run([latents_of(small_dcgan, 9)])
    with pytest.raises(BackendError, match=r"latents has shape .*Expected \[batch, "):
        session.run([latents_of(small_dcgan, 4)[..., :-1]])
    # And goes on.
    assert len(session.run([latents_of(small_dcgan, 8)])) == 8
    session.close()


@on_a_gpu
def test_engines_in_the_cache_are_built_once(dcgan_artifact: Artifact, cache: Path) -> None:
    opened(dcgan_artifact).close()
    (engine,) = cache.glob("*.engine")
    first = engine.stat().st_mtime_ns
    opened(dcgan_artifact).close()
    assert engine.stat().st_mtime_ns == first
    engine.write_bytes(b"damaged")
    session = opened(dcgan_artifact)
    assert session.run([np.zeros_like(dcgan_artifact.reference().latents[:1])]).shape[0] == 1
    session.close()


@on_a_gpu
def test_an_engine_beside_the_graph_is_used_or_refused(
    small_dcgan: Generator, dcgan_artifact: Artifact, tmp_path: Path, cache: Path
) -> None:
    graph = tmp_path / "synthesis.onnx"
    graph.write_bytes(dcgan_artifact.synthesis_path.read_bytes())
    (library,) = [name for name in ("tensorrt", "tensorrt-rtx") if name in _libraries()][:1]
    build_engines(tmp_path, {"f32": graph}, BATCH, Engine(to=library))
    session = BACKEND.open(graph, "f32", False, BATCH)
    assert len(session.run([latents_of(small_dcgan, 2)])) == 2
    session.close()
    assert not cache.exists()
    with pytest.raises(BackendError, match="serves batches of 1 to 8 images, and 16 are asked for"):
        BACKEND.open(graph, "f32", False, Batch(opt=16, max=16))
    engine_path(graph, library).write_bytes(b"changed")
    with pytest.raises(ArtifactError, match="not what was built"):
        BACKEND.open(graph, "f32", False, BATCH)


def _libraries() -> tuple[str, ...]:
    from fastdirs.backends._tensorrt_library import here

    return here()[0]
