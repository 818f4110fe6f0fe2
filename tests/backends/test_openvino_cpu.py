"""What is special to OpenVINO."""

import re

import numpy as np
import pytest

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS, Array
from fastdirs.generators import Generator
from fastdirs.latents import sample_z

openvino = pytest.importorskip("openvino", reason="pip install 'fastdirs[cpu]'")


def _render(artifact: Artifact, generator: Generator, precision: str) -> tuple[Array, Array, str]:
    """Images, torch's images of the same latents, and what the session says of its layers."""
    latents = generator.mapping(sample_z(range(4), generator.z_dim))
    session = BACKENDS.load("openvino_cpu").open(artifact.synthesis_path, precision, False)
    images = session.run([latents.numpy()])
    session.close()
    return images, generator.synthesis(latents).numpy(), session.detail


def test_f32_is_truly_f32(dcgan_artifact: Artifact, small_dcgan: Generator) -> None:
    # Left alone, OpenVINO computes in bf16 on processors that have units for it.
    images, reference, detail = _render(dcgan_artifact, small_dcgan, "f32")
    assert np.abs(images - reference).max() < 1e-4
    assert re.fullmatch(r"\d heavy layers in f32", detail)


def test_bf16_differs_and_says_which_layers(dcgan_artifact: Artifact, small_dcgan: Generator) -> None:
    if "bf16" not in BACKENDS.load("openvino_cpu").precisions():
        pytest.skip("this processor has no bf16 units")
    images, reference, detail = _render(dcgan_artifact, small_dcgan, "bf16")
    assert np.abs(images - reference).max() > 1e-4
    assert re.search(r"\d heavy layers in bf16", detail)


def test_streaming_takes_as_many_requests_as_pay_off(toy_artifact: Artifact) -> None:
    backend = BACKENDS.load("openvino_cpu")
    alone = backend.open(toy_artifact.synthesis_path, "f32", False)
    assert alone.num_parallel == 1
    assert "CPU" in alone.provider
    assert backend.open(toy_artifact.synthesis_path, "f32", True).num_parallel >= 1
