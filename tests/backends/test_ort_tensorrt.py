"""ONNX Runtime with TensorRT: batch sizes that the engine serves, and what it does on a GPU."""

import re

import numpy as np
import pytest

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS
from fastdirs.errors import SelectionError
from fastdirs.generators import Generator
from fastdirs.latents import sample_z
from fastdirs.manifest import cache_dir
from fastdirs.parity import compare
from fastdirs.recipe import DEFAULT_ACCEPT, Batch

pytest.importorskip("onnxruntime", reason="pip install 'fastdirs[cpu]'")

from fastdirs.backends._ort_gpu import TENSORRT, needs
from fastdirs.backends._ort_session import graph_inputs
from fastdirs.backends.ort_tensorrt import check_batch, profile


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
