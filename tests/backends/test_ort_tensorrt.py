"""ONNX Runtime with TensorRT: batch sizes that the engine serves, and what it does on a GPU."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from filelock import FileLock, Timeout

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS
from fastdirs.errors import BackendError, SelectionError
from fastdirs.generators import Generator
from fastdirs.latents import sample_z
from fastdirs.manifest import cache_dir
from fastdirs.parity import compare
from fastdirs.recipe import DEFAULT_ACCEPT, Batch, usual_batch

pytest.importorskip("onnxruntime", reason="pip install 'fastdirs[cpu]'")

from fastdirs.backends._ort_gpu import TENSORRT, needs
from fastdirs.backends._ort_session import CPU, graph_inputs, open_graph
from fastdirs.backends._tensorrt_batch import batch_of
from fastdirs.backends.ort_tensorrt import check_batch, open_kept, profile


def test_every_dynamic_input_has_a_profile(classes_artifact: Artifact, layered_artifact: Artifact) -> None:
    found = profile(graph_inputs(classes_artifact.synthesis_path), Batch(opt=4, max=8))
    assert found == {
        f"trt_profile_{kind}_shapes": f"latents:{size}x4x6,c:{size}x4"
        for kind, size in (("min", 1), ("opt", 4), ("max", 8))
    }
    assert layered_artifact.mapping_path is not None
    mapping = profile(graph_inputs(layered_artifact.mapping_path), Batch(opt=4, max=8))
    # psi has no batch.
    assert mapping["trt_profile_max_shapes"] == "z:8x6"


def test_a_batch_beyond_the_profile_is_refused() -> None:
    shapes: list[list[int | str]] = [["batch", 4], [3]]
    psi = np.zeros(3, np.float32)
    for size in (1, 8):
        check_batch([np.zeros((size, 4), np.float32), psi], shapes, Batch(opt=2, max=8))
    for size in (0, 9):
        with pytest.raises(SelectionError, match=rf"batch has {size} images. The engine serves 1 to 8"):
            check_batch([np.zeros((size, 4), np.float32), psi], shapes, Batch(opt=2, max=8))


def test_the_usual_batch_suits_the_pictures(
    layered_artifact: Artifact, layered: Generator, tmp_path: Path
) -> None:
    assert batch_of(layered_artifact.synthesis_path) == usual_batch(layered.img_resolution)
    model = onnx.load(layered_artifact.synthesis_path)
    for axis in model.graph.output[0].type.tensor_type.shape.dim[2:]:
        axis.dim_value = 1024
    path = tmp_path / "large.onnx"
    onnx.save(model, path)
    assert batch_of(path) == Batch(opt=2, max=4)
    assert layered_artifact.mapping_path is not None
    assert batch_of(layered_artifact.mapping_path) == Batch()
    path.write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"large\.onnx is no ONNX graph"):
        batch_of(path)


def test_half_an_engine_is_made_anew(toy_artifact: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    engine, whole = folder / "graph.engine", toy_artifact.synthesis_path.read_bytes()
    begun = []

    def opened() -> list[str]:
        begun.append(engine.exists())
        if not engine.exists():
            engine.write_bytes(whole)
        return list(open_graph(engine, CPU).get_providers())

    assert [open_kept(folder, opened), open_kept(folder, opened)] == [[CPU], [CPU]]
    assert begun == [False, True]
    engine.write_bytes(whole[: len(whole) // 2])
    assert open_kept(folder, opened) == [CPU]
    assert begun[2:] == [True, False]
    assert engine.read_bytes() == whole


def test_what_is_refused_is_not_opened_twice(tmp_path: Path) -> None:
    begun = []

    def opened() -> None:
        begun.append(True)
        open_graph(tmp_path / "missing.onnx", CPU)

    (tmp_path / "kept").mkdir()
    with pytest.raises(BackendError, match=r"missing\.onnx"):
        open_kept(tmp_path / "kept", opened)
    assert len(begun) == 1


def test_one_process_at_a_time_makes_an_engine(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()

    def opened() -> bool:
        with pytest.raises(Timeout):
            FileLock(tmp_path / "kept.lock").acquire(timeout=0)
        return True

    assert open_kept(folder, opened)


def test_says_which_tensorrt_it_needs() -> None:
    assert re.search(r"TensorRT 10, not 11: pip install 'tensorrt-cu13<11'", needs(TENSORRT))


@pytest.mark.gpu
def test_compiles_once_and_refuses_other_batches(dcgan_artifact: Artifact, small_dcgan: Generator) -> None:
    backend = BACKENDS.load("ort_tensorrt")
    if missing := backend.lacks():
        pytest.skip(missing)
    precision = backend.precisions()[0]
    if precision != "f32":
        pytest.skip("set NVIDIA_TF32_OVERRIDE=0")
    latents = small_dcgan.mapping(sample_z(range(9), small_dcgan.z_dim))
    session = backend.open(dcgan_artifact.synthesis_path, precision, False, Batch(opt=4, max=8))
    images = session.run([latents[:8].numpy()])
    assert compare(images, small_dcgan.synthesis(latents[:8]).numpy()).within(DEFAULT_ACCEPT["f32"])
    assert any((cache_dir() / "ort_tensorrt").rglob("*.engine"))
    with pytest.raises(SelectionError, match="serves 1 to 8"):
        session.run([latents.numpy()])
