"""What is special to ONNX Runtime."""

import pytest

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS
from fastdirs.errors import BackendError

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'fastdirs[cpu]'")


def test_bf16_is_refused_and_not_emulated(toy_artifact: Artifact) -> None:
    assert BACKENDS.load("ort").precisions() == ("f32",)
    with pytest.raises(BackendError, match=r"ort has no precision 'bf16' on CPUs.* Use f32"):
        BACKENDS.load("ort").open(toy_artifact.synthesis_path, "bf16", False)


def test_provider_is_read_back(toy_artifact: Artifact) -> None:
    session = BACKENDS.load("ort").open(toy_artifact.synthesis_path, "f32", False)
    assert session.provider == f"ONNX Runtime {onnxruntime.__version__}, CPUExecutionProvider"
