"""An opened reconstructor, in torch and exported."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdirs.backends import Array, Session, graph_backends
from fastdirs.errors import (
    ArtifactError,
    BackendError,
    CheckpointError,
    ParityError,
    SelectionError,
    ShapeError,
    UnknownNameError,
)
from fastdirs.manifest import manifest, write_json
from fastdirs.reconstructor_export import ReconstructorArtifact, export_reconstructor, make_pairs
from fastdirs.reconstructor_runtime import ReconstructorRuntime, open_reconstructor
from fastdirs.reconstructors import Reconstructor, build_reconstructor, save_reconstructor

MAX_BATCH = 4
CONTENT = {"shifts": {"name": "normal", "scale": 4.0, "minimum": 0.25}, "bank_sha256": "ab"}
SOURCES = ("network", "file", "folder", "artifact")


@pytest.fixture(scope="module")
def reconstructor() -> Reconstructor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_reconstructor("lenet", 6, 3, 32)
        for _ in range(5):
            network(*make_pairs(3, 32, 6))
    return network.eval()


@pytest.fixture(scope="module")
def file(reconstructor: Reconstructor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "reconstructor.safetensors"
    save_reconstructor(reconstructor, path, CONTENT)
    return path


@pytest.fixture(scope="module")
def artifact(reconstructor: Reconstructor, tmp_path_factory: pytest.TempPathFactory) -> ReconstructorArtifact:
    pytest.importorskip("onnxruntime", reason="pip install 'fastdirs[cpu]'")
    out = tmp_path_factory.mktemp("exported") / "artifact"
    return export_reconstructor(reconstructor, CONTENT, out, max_batch=MAX_BATCH)


@pytest.fixture(params=SOURCES)
def opened(
    request: pytest.FixtureRequest, reconstructor: Reconstructor, file: Path, artifact: ReconstructorArtifact
) -> ReconstructorRuntime:
    sources = {"network": reconstructor, "file": str(file), "folder": artifact.folder, "artifact": artifact}
    return open_reconstructor(sources[request.param])


def _pairs(count: int, size: int = 32) -> tuple[Array, Array]:
    images, shifted = make_pairs(3, size, count)
    return images.numpy(), shifted.numpy()


def _torch(reconstructor: Reconstructor, images: Array, shifted: Array) -> list[Array]:
    with torch.inference_mode():
        return [each.numpy() for each in reconstructor(torch.tensor(images), torch.tensor(shifted))]


@pytest.mark.parametrize("batch", [1, MAX_BATCH, 2 * MAX_BATCH + 1])
def test_answers_as_torch(opened: ReconstructorRuntime, reconstructor: Reconstructor, batch: int) -> None:
    images, shifted = _pairs(batch)
    with opened:
        found = opened.predict(images, shifted)
    for mine, theirs in zip(found, _torch(reconstructor, images, shifted), strict=True):
        assert mine.dtype == np.float32
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


class _Counted(Session):
    """Says how many pairs it was given, and gives each back as its epsilon."""

    precision, provider, detail, num_parallel = "f32", "counting", "", 1

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def run_all(self, inputs: Sequence[Array]) -> list[Array]:
        self.sizes.append(len(inputs[0]))
        first, second = (each[:, :, 0, 0] for each in inputs)
        return [first[:, :2], second[:, 0], first]

    def close(self) -> None:
        pass


def test_no_batch_is_larger_than_was_verified() -> None:
    session, settings = _Counted(), {"num_directions": 2, "img_channels": 3, "img_resolution": 4}
    numbers = np.arange(10, dtype=np.float32)[:, None, None, None]
    images, shifted = np.tile(numbers, (1, 3, 4, 4)), np.tile(numbers + 0.5, (1, 3, 4, 4))
    runtime = ReconstructorRuntime(
        session, settings=settings, content={}, backend="counted", reason="", max_batch=4
    )
    logits, epsilon, features = runtime.predict(images, shifted)
    assert session.sizes == [4, 4, 2]
    assert epsilon.tolist() == [index + 0.5 for index in range(10)]
    assert logits[:, 0].tolist() == features[:, 0].tolist() == list(range(10))


def test_says_what_it_is(opened: ReconstructorRuntime, request: pytest.FixtureRequest) -> None:
    assert (opened.num_directions, opened.img_channels, opened.img_resolution) == (6, 3, 32)
    assert opened.content == ({} if "[network]" in request.node.name else CONTENT)
    assert opened.precision == "f32"
    assert opened.provider
    if opened.backend == "eager":
        assert opened.max_batch is None
        assert "torch runs the weights" in opened.reason
    else:
        assert opened.max_batch == MAX_BATCH
        assert opened.reason == "the only candidate" or "pairs/s at batch 4" in opened.reason
    opened.close()


def test_auto_names_every_candidate(artifact: ReconstructorArtifact) -> None:
    names = [name for name, _ in graph_backends(("f32",))[0]]
    with open_reconstructor(artifact) as runtime:
        assert runtime.backend in names
        assert len(names) == 1 or all(f"{name} " in runtime.reason for name in names)


@pytest.mark.parametrize("backend", [name for name, _ in graph_backends(("f32",))[0]])
def test_the_backend_that_is_asked_for(backend: str, artifact: ReconstructorArtifact) -> None:
    with open_reconstructor(artifact.folder, backend) as runtime:
        assert (runtime.backend, runtime.reason) == (backend, "the only candidate")


def test_a_file_of_the_folder_may_be_named(artifact: ReconstructorArtifact) -> None:
    with open_reconstructor(artifact.graph_path, "ort") as runtime:
        assert runtime.backend == "ort"


def test_larger_images_are_averaged_down(opened: ReconstructorRuntime, reconstructor: Reconstructor) -> None:
    images, shifted = _pairs(3, 96)
    with opened:
        found = opened.predict(images, shifted)
    for mine, theirs in zip(found, _torch(reconstructor, images, shifted), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def test_arrays_of_any_kind_are_left_alone(opened: ReconstructorRuntime) -> None:
    images, shifted = _pairs(2)
    with opened:
        wanted = opened.predict(images, shifted)
        read_only = images.copy()
        read_only.flags.writeable = False
        turned = np.asfortranarray(shifted.astype(np.float64))
        before = turned.copy()
        found = opened.predict(read_only, turned)
        for mine, theirs in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(turned, before)
        # Results do not change with the next call.
        kept = found[0].copy()
        opened.predict(shifted, images)
        np.testing.assert_array_equal(found[0], kept)


@pytest.mark.parametrize(
    ("images", "shifted", "message"),
    [
        ((2, 3, 32), (2, 3, 32), r"images has shape \[2, 3, 32\], expected \[batch, channels=3"),
        ((2, 1, 32, 32), (2, 1, 32, 32), r"images has shape \[2, 1, 32, 32\]"),
        ((2, 32, 32, 3), (2, 32, 32, 3), r"images has shape \[2, 32, 32, 3\]"),
        ((2, 3, 32, 32), (3, 3, 32, 32), r"shifted has shape .* expected \[batch=2"),
        ((2, 3, 32, 32), (2, 3, 64, 64), r"shifted has shape .* height=32"),
        ((2, 3, 48, 48), (2, 3, 48, 48), "48 x 48 pixels do not average down to the 32"),
        ((2, 3, 16, 16), (2, 3, 16, 16), "16 x 16 pixels"),
    ],
)
def test_wrong_shapes(
    images: tuple[int, ...], shifted: tuple[int, ...], message: str, opened: ReconstructorRuntime
) -> None:
    with opened, pytest.raises(ShapeError, match=message):
        opened.predict(np.zeros(images, np.float32), np.zeros(shifted, np.float32))


def test_an_empty_batch(opened: ReconstructorRuntime) -> None:
    with opened, pytest.raises(SelectionError, match="batch is empty"):
        opened.predict(np.zeros((0, 3, 32, 32), np.float32), np.zeros((0, 3, 32, 32), np.float32))


def test_closes_twice(opened: ReconstructorRuntime) -> None:
    opened.close()
    opened.close()
    with pytest.raises(BackendError, match="was closed"):
        opened.predict(*_pairs(1))


def test_the_callers_network_is_left_alone(reconstructor: Reconstructor) -> None:
    reconstructor.train()
    try:
        before = {name: each.clone() for name, each in reconstructor.state_dict().items()}
        with open_reconstructor(reconstructor) as runtime:
            runtime.predict(*_pairs(3))
        assert reconstructor.training
        assert all(torch.equal(each, before[name]) for name, each in reconstructor.state_dict().items())
    finally:
        reconstructor.eval()


@pytest.mark.parametrize("backend", ["ort", "openvino_cpu"])
def test_weights_need_an_export_for_a_graph_backend(backend: str, file: Path) -> None:
    with pytest.raises(BackendError, match=f"{backend} runs exported graphs.*fastdirs export RECONSTRUCTOR"):
        open_reconstructor(file, backend)


def test_a_graph_does_not_run_in_torch(artifact: ReconstructorArtifact) -> None:
    with pytest.raises(BackendError, match="eager runs weights"):
        open_reconstructor(artifact, "eager")


def test_unknown_backend(file: Path, artifact: ReconstructorArtifact) -> None:
    for source in (file, artifact):
        with pytest.raises(UnknownNameError, match=r"'orr'\. Did you mean 'ort'"):
            open_reconstructor(source, "orr")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing\.safetensors cannot be read"):
        open_reconstructor(tmp_path / "missing.safetensors")
    with pytest.raises(ArtifactError, match="missing or unreadable"):
        open_reconstructor(tmp_path)


def test_the_folder_of_a_run(reconstructor: Reconstructor, tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", manifest("training-run", {"asked": {}}))
    with pytest.raises(CheckpointError, match=r"has not finished: .* Give its discover command again"):
        open_reconstructor(tmp_path)
    save_reconstructor(reconstructor, tmp_path / "reconstructor.safetensors", CONTENT)
    with open_reconstructor(tmp_path) as runtime:
        assert (runtime.backend, runtime.content) == ("eager", CONTENT)


def test_a_machine_on_which_the_answers_differ(
    reconstructor: Reconstructor, artifact: ReconstructorArtifact
) -> None:
    class Other(ReconstructorArtifact):
        """Its answers were made by other weights than its graph holds."""

        def reference(self) -> dict[str, Array]:
            reference = super().reference()
            return {**reference, "epsilon": reference["epsilon"] * 2}

    with pytest.raises(ParityError, match="On this machine ort: largest error of logits"):
        open_reconstructor(Other(artifact.folder, artifact.content), "ort")
    with pytest.raises(ParityError, match="Export again"):
        open_reconstructor(Other(artifact.folder, artifact.content))
