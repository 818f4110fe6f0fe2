"""What is special to OpenVINO."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS, Array
from fastdirs.errors import BackendError
from fastdirs.export import export_generator
from fastdirs.generators import Generator
from fastdirs.latents import sample_z
from fastdirs.manifest import cache_dir
from fastdirs.parity import compare
from fastdirs.quantization import quantize
from fastdirs.recipe import DEFAULT_ACCEPT, Batch, Graph, Recipe

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


def test_int8_says_which_layers(dcgan_artifact: Artifact, small_dcgan: Generator, tmp_path: Path) -> None:
    backend, path = BACKENDS.load("openvino_cpu"), tmp_path / "int8.onnx"
    latents = small_dcgan.mapping(sample_z(range(64), small_dcgan.z_dim))
    quantize(dcgan_artifact.synthesis_path, path, [[latents.numpy()]])
    for _ in range(2):
        # The second one continues from what the first one kept.
        session = backend.open(path, "int8", False)
        images = session.run([latents[:4].numpy()])
        assert re.search(r"\d heavy layers in [ui]8", session.detail)
        parity = compare(images, small_dcgan.synthesis(latents[:4]).numpy())
        assert parity.within(DEFAULT_ACCEPT["int8"])
        assert parity.mean > 0.05, "nothing was rounded"
    with pytest.raises(BackendError, match=r"none of the \d+ layers that cost time in int8"):
        backend.open(dcgan_artifact.synthesis_path, "int8", False)


def test_inputs_that_do_not_fit_are_refused(toy_artifact: Artifact) -> None:
    session = BACKENDS.load("openvino_cpu").open(toy_artifact.synthesis_path, "f32", False)
    with pytest.raises(BackendError, match=r"OpenVINO refuses synthesis.*\.onnx: (?!Exception from)"):
        session.run([np.zeros((2, 1, 99), np.float32)])


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_dir() / "openvino"


def test_what_was_kept_gives_the_same_in_each_precision(
    dcgan_artifact: Artifact, small_dcgan: Generator, empty_cache: Path
) -> None:
    backend = BACKENDS.load("openvino_cpu")
    precisions = [each for each in backend.precisions() if each != "int8"]
    latents = small_dcgan.mapping(sample_z(range(4), small_dcgan.z_dim)).numpy()

    def images(precision: str) -> tuple[Array, str]:
        session = backend.open(dcgan_artifact.synthesis_path, precision, False)
        return session.run([latents]), session.detail

    fresh = {}
    for precision in precisions:
        shutil.rmtree(empty_cache, ignore_errors=True)
        fresh[precision] = images(precision)
        (kept,) = empty_cache.iterdir()
    before = kept.stat()
    os.utime(kept, (1000, 1000))
    for precision in [*precisions, precisions[-1]]:
        again, detail = images(precision)
        np.testing.assert_array_equal(again, fresh[precision][0])
        assert detail == fresh[precision][1]
    assert kept.stat().st_ino == before.st_ino, "it was made again"
    assert kept.stat().st_mtime > 1000, "what is used is forgotten last"
    assert len(list(empty_cache.iterdir())) == len(precisions), "each has its own"


def test_a_changed_graph_is_not_taken_for_the_old_one(toy_artifact: Artifact, empty_cache: Path) -> None:
    backend, path = BACKENDS.load("openvino_cpu"), empty_cache.parent / "graph.onnx"
    path.parent.mkdir(parents=True)
    shutil.copy(toy_artifact.synthesis_path, path)
    os.utime(path, (1000, 1000))
    model = onnx.load(path)
    latents = np.ones(
        (1, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])), np.float32
    )
    old = backend.open(path, "f32", False).run([latents])
    weights = [each for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT]
    largest = max(weights, key=lambda each: len(each.raw_data))
    largest.raw_data = (numpy_helper.to_array(largest) * 2).tobytes()
    # The same path, size and time.
    onnx.save(model, path)
    os.utime(path, (1000, 1000))
    assert path.stat().st_size == toy_artifact.synthesis_path.stat().st_size
    assert np.abs(backend.open(path, "f32", False).run([latents]) - old).max() > 1e-3


def test_a_damaged_cache_is_made_anew(toy_artifact: Artifact, toy: Generator, empty_cache: Path) -> None:
    backend = BACKENDS.load("openvino_cpu")
    latents = toy.mapping(sample_z(range(2), toy.z_dim)).numpy()
    wanted = backend.open(toy_artifact.synthesis_path, "f32", False).run([latents])
    (kept,) = empty_cache.iterdir()
    whole = kept.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"x" * 1000):
        kept.write_bytes(damaged)
        found = backend.open(toy_artifact.synthesis_path, "f32", False).run([latents])
        np.testing.assert_array_equal(found, wanted)
        assert kept.stat().st_size > 0.9 * len(whole)


def test_a_cache_that_cannot_be_written_is_done_without(toy_artifact: Artifact, empty_cache: Path) -> None:
    empty_cache.parent.parent.mkdir(parents=True)
    empty_cache.parent.write_text("a file where the folder would be")
    assert BACKENDS.load("openvino_cpu").open(toy_artifact.synthesis_path, "f32", False).precision == "f32"


def test_the_cache_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdirs.backends import openvino_cpu

    monkeypatch.setattr(openvino_cpu, "_CACHE_BYTES", 250)
    for age in range(4):
        path = tmp_path / f"{age}.blob"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    openvino_cpu._forget_old(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.blob", "1.blob"]
    (tmp_path / "0.blob").write_bytes(bytes(300))
    openvino_cpu._forget_old(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["0.blob"], "the newest stays, however large"


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
