"""The TensorRT backend refuses cleanly where there is no GPU. What it does on one: `test_tensorrt_run.py`."""

from pathlib import Path

import pytest

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS, engine_path
from fastdirs.backends._tensorrt_batch import batch_of
from fastdirs.backends._tensorrt_fit import manifest_path
from fastdirs.backends._tensorrt_library import Gpu
from fastdirs.backends.trt import _beside, _cached
from fastdirs.engines import build_engines
from fastdirs.errors import BackendError, PrecisionError
from fastdirs.manifest import write_bytes
from fastdirs.recipe import Batch, Engine, usual_batch

BACKEND = BACKENDS.load("trt")
ADA = Gpu("NVIDIA GeForce RTX 4090", "8.9")
BATCH = Batch(opt=2, max=4)
without_gpu = pytest.mark.skipif(not BACKEND.lacks(), reason="there is a GPU")


@without_gpu
def test_says_what_lacks_and_offers_nothing() -> None:
    assert "driver" in BACKEND.lacks()
    assert BACKEND.precisions() == ()


@without_gpu
@pytest.mark.parametrize("built", [False, True])
def test_opening_is_refused(
    built: bool, toy_artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    graph = tmp_path / "synthesis.onnx"
    graph.write_bytes(toy_artifact.synthesis_path.read_bytes())
    if built:
        pytest.importorskip("tensorrt_rtx")
        build_engines(tmp_path, {"f32": graph}, Batch(opt=2, max=4), Engine(to="tensorrt-rtx"))
    with pytest.raises(BackendError, match=r"TensorRT cannot run here: .*driver"):
        BACKEND.open(graph, "f32")
    assert not (tmp_path / "cache").exists()


def test_precisions_that_do_not_exist(toy_artifact: Artifact) -> None:
    with pytest.raises(
        BackendError, match=r"trt has no precision 'f64'\. Expected one of: f32, f16, bf16, int8"
    ):
        BACKEND.open(toy_artifact.synthesis_path, "f64")


def test_usual_batches(toy_artifact: Artifact, layered_artifact: Artifact) -> None:
    size = int(toy_artifact.generator["img_resolution"])
    assert batch_of(toy_artifact.synthesis_path) == usual_batch(size)
    # Latents have no size.
    assert layered_artifact.mapping_path is not None
    assert batch_of(layered_artifact.mapping_path) == Batch()


@pytest.fixture
def graph(toy_artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A graph of its own, and an empty cache. Engines for RTX are built and found without a GPU."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "synthesis.onnx"
    path.write_bytes(toy_artifact.synthesis_path.read_bytes())
    return path


def test_the_cache_keeps_what_fits_and_replaces_what_is_damaged(graph: Path) -> None:
    engine, content = _cached(graph, "tensorrt-rtx", ADA, "f32", BATCH)
    assert content["compute_capabilities"] == ["8.9"]
    first = engine.stat().st_mtime_ns
    assert _cached(graph, "tensorrt-rtx", ADA, "f32", BATCH) == (engine, content)
    # Another precision is a mistake of the caller, and no reason to build the same again.
    with pytest.raises(PrecisionError, match=r"computes in f32, not in f16\..*give it the graph in f16"):
        _cached(graph, "tensorrt-rtx", ADA, "f16", BATCH)
    assert engine.stat().st_mtime_ns == first
    for damaged in (engine, manifest_path(engine)):
        damaged.write_bytes(b"damaged")
        assert _cached(graph, "tensorrt-rtx", ADA, "f32", BATCH)[0] == engine
        assert engine.read_bytes() != b"damaged"


@pytest.mark.parametrize("blocked", ["folder", "lock", "engine"])
def test_a_cache_that_cannot_be_written(blocked: str, graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "fastdirs" / "engines"
    if blocked == "folder":
        folder.parent.mkdir(parents=True)
        folder.write_bytes(b"")
    else:
        engine, _ = _cached(graph, "tensorrt-rtx", ADA, "f32", BATCH)
        for path in folder.iterdir():
            path.unlink()
        (folder / f"{engine.name}{'.lock' if blocked == 'lock' else ''}").mkdir()
    with pytest.raises(BackendError, match=r"engines cannot be written: .*Set XDG_CACHE_HOME") as caught:
        _cached(graph, "tensorrt-rtx", ADA, "f32", BATCH)
    assert "--out" not in str(caught.value)


@without_gpu
def test_an_engine_of_no_use_hides_none_that_fits(graph: Path, tmp_path: Path) -> None:
    both = ("tensorrt", "tensorrt-rtx")
    assert _beside(graph, both, ADA, "f32", BATCH) is None
    # Without a driver TensorRT is of no use, whatever it built.
    write_bytes(engine_path(graph, "tensorrt"), b"an engine")
    with pytest.raises(BackendError, match="TensorRT cannot be used here"):
        _beside(graph, both, ADA, "f32", BATCH)
    rtx = Engine(to="tensorrt-rtx", compute_capability=("8.9",))
    build_engines(tmp_path, {"f32": graph}, BATCH, rtx)
    found = _beside(graph, both, ADA, "f32", BATCH)
    assert found is not None
    assert found[0] == engine_path(graph, "tensorrt-rtx")
    # Of several that do not fit the first is named.
    with pytest.raises(BackendError, match="TensorRT cannot be used here"):
        _beside(graph, both, ADA, "f32", Batch(opt=8, max=8))
