"""What is special to OpenVINO."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS, Array
from fastdirs.errors import BackendError
from fastdirs.export import export_generator
from fastdirs.generators import Generator
from fastdirs.latents import sample_z
from fastdirs.recipe import Batch, Graph, Recipe

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


def test_a_graph_that_would_run_in_f32_is_no_bf16(small_dcgan: Generator, tmp_path: Path) -> None:
    backend = BACKENDS.load("openvino_cpu")
    if "bf16" not in backend.precisions():
        pytest.skip("this processor has no bf16 units")
    # Transposed convolutions have no bf16 kernel in OpenVINO.
    recipe = Recipe(generator="any", graph=Graph(lowering="plain"), batch=Batch(opt=2, max=2))
    artifact = export_generator(small_dcgan, tmp_path / "plain", recipe)
    assert artifact.content["precisions"] == ["f32"]
    with pytest.raises(BackendError, match=r"none of the \d layers that cost time in bf16"):
        backend.open(artifact.synthesis_path, "bf16", False)


_TWO_FIRST_CALLS = """
import sys, threading
from pathlib import Path
import numpy as np
from fastdirs.backends import BACKENDS
sys.setswitchinterval(1e-6)
session = BACKENDS.load("openvino_cpu").open(Path(sys.argv[1]), "f32", True)
latents = np.zeros((4, 1, 16), dtype=np.float32)
together = threading.Barrier(2)
threads = [threading.Thread(target=lambda: (together.wait(), session.run([latents]))) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.mark.slow
def test_threads_that_make_the_first_call_do_not_wait_for_each_other(toy_artifact: Artifact) -> None:
    # A race: without the call in the constructor one process in ten hangs, so a dozen mostly catch it.
    for _ in range(12):
        command = [sys.executable, "-c", _TWO_FIRST_CALLS, str(toy_artifact.synthesis_path)]
        subprocess.run(command, check=True, timeout=60)
