"""The TensorRT backend refuses cleanly where there is no GPU. What it does on one: `test_tensorrt_run.py`."""

from pathlib import Path

import pytest

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS
from fastdirs.backends.trt import _usual
from fastdirs.engines import build_engines
from fastdirs.errors import BackendError
from fastdirs.recipe import Batch, Engine, usual_batch

BACKEND = BACKENDS.load("trt")
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
    assert _usual(toy_artifact.synthesis_path) == usual_batch(size)
    # Latents have no size.
    assert layered_artifact.mapping_path is not None
    assert _usual(layered_artifact.mapping_path) == Batch()
