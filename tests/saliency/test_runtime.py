"""An opened saliency model, in torch and exported."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastdirs.backends import BACKENDS, Array, Session, graph_backends
from fastdirs.errors import (
    ArtifactError,
    BackendError,
    CheckpointError,
    ParityError,
    SelectionError,
    ShapeError,
    UnknownNameError,
)
from fastdirs.images import Pixels
from fastdirs.recipe import Batch
from fastdirs.saliency.export import SegmenterArtifact, export_segmenter, make_scenes
from fastdirs.saliency.fitting import fit, unfit
from fastdirs.saliency.parity import ACCEPT
from fastdirs.saliency.runtime import SaliencyRuntime, open_saliency
from fastdirs.segmenters import Segmenter, build_segmenter, save_segmenter

BATCH = Batch(opt=3, max=4)
CONTENT = {"dataset": {"sha256": "ab"}}
SOURCES = ("network", "file", "folder", "artifact")
PAIRS = graph_backends(tuple(ACCEPT))[0]
SIZES = ((32, 32), (1, 1), (50, 20), (7, 90), (120, 160), (33, 31), (64, 64))


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    """A network that was shown what is bright, so that its masks have clear edges."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_segmenter("unet", 3, 32, 4)
        scenes = make_scenes(3, 32, 8)
        bright = (scenes.mean(dim=1) > scenes.mean()).float()
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(60):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(network(scenes), bright).backward()
            optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def file(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "segmenter.safetensors"
    save_segmenter(segmenter, path, CONTENT)
    return path


@pytest.fixture(scope="module")
def artifact(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> SegmenterArtifact:
    pytest.importorskip("onnxruntime", reason="pip install 'fastdirs[cpu]'")
    out = tmp_path_factory.mktemp("exported") / "artifact"
    return export_segmenter(segmenter, out, content=CONTENT, batch=BATCH)


@pytest.fixture(params=SOURCES)
def opened(
    request: pytest.FixtureRequest, segmenter: Segmenter, file: Path, artifact: SegmenterArtifact
) -> SaliencyRuntime:
    sources = {"network": segmenter, "file": str(file), "folder": artifact.folder, "artifact": artifact}
    return open_saliency(sources[request.param], precision="f32")


def _pictures(sizes: Sequence[tuple[int, int]] = SIZES) -> list[Pixels]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 1 if size[0] == 33 else 3), dtype=np.uint8) for size in sizes]


def _torch(segmenter: Segmenter, picture: Pixels) -> Array:
    with torch.inference_mode():
        logits = segmenter(torch.from_numpy(fit(picture, 3, 32))[None])
    return unfit(torch.sigmoid(logits)[0].numpy(), *picture.shape[:2])


def test_pictures_of_mixed_sizes(opened: SaliencyRuntime, segmenter: Segmenter) -> None:
    pictures = _pictures()
    with opened:
        found = opened.saliency(pictures)
    assert [each.shape for each in found] == list(SIZES)
    for mine, picture in zip(found, pictures, strict=True):
        assert mine.dtype == np.float32
        assert 0 <= mine.min() <= mine.max() <= 1
        np.testing.assert_allclose(mine, _torch(segmenter, picture), atol=1e-4)


def test_one_picture_nothing_and_grey_without_channels(opened: SaliencyRuntime, segmenter: Segmenter) -> None:
    (grey,) = _pictures([(33, 31)])
    with opened:
        assert opened.saliency([]) == []
        (found,) = opened.saliency([grey[..., 0]])
    np.testing.assert_allclose(found, _torch(segmenter, grey), atol=1e-4)


def test_says_what_it_is(opened: SaliencyRuntime, request: pytest.FixtureRequest) -> None:
    assert (opened.img_channels, opened.img_resolution) == (3, 32)
    assert opened.content == ({} if "[network]" in request.node.name else CONTENT)
    assert opened.precision == "f32"
    assert opened.provider
    assert opened.describe()["backend"] == opened.backend
    if opened.backend == "eager":
        assert opened.parity is None
        assert "torch runs the weights" in opened.reason
        assert opened.batch_size == 16
    else:
        assert opened.parity is not None
        assert opened.parity.within(ACCEPT["f32"])
        assert opened.batch_size == 3
        assert opened.reason == "the only candidate" or "images/s at batch 3" in opened.reason
    assert len(opened.segmenter["weights_sha256"]) == 64
    opened.close()


def test_weights_are_known_by_what_they_are(
    segmenter: Segmenter, file: Path, artifact: SegmenterArtifact
) -> None:
    settings = [open_saliency(each).segmenter for each in (segmenter, file, artifact)]
    assert settings[0] == settings[1] == settings[2]


class _Counted(Session):
    """Says how many pictures it was given, and gives back their first channel."""

    precision, provider, detail, num_parallel = "f32", "counting", "", 2

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def run_all(self, inputs: Sequence[Array]) -> list[Array]:
        self.sizes.append(len(inputs[0]))
        return [inputs[0][:, 0] * np.float32(1.5)]

    def close(self) -> None:
        pass


def _counted() -> tuple[_Counted, SaliencyRuntime]:
    session = _Counted()
    settings = {"img_channels": 3, "img_resolution": 4}
    runtime = SaliencyRuntime(
        session, segmenter=settings, content={}, backend="counted", reason="", batch_size=4
    )
    return session, runtime


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (3, [3]), (4, [4]), (10, [4, 4, 4])])
def test_batches_are_of_one_size(count: int, sizes: list[int]) -> None:
    session, runtime = _counted()
    levels = np.linspace(128, 255, 11).astype(np.uint8)[:count]
    found = runtime.saliency([np.full((4, 4, 3), level, np.uint8) for level in levels])
    assert session.sizes == sizes
    wanted = [min(1.0, 1.5 * (level / 127.5 - 1)) for level in levels]
    np.testing.assert_allclose([each[0, 0] for each in found], wanted, atol=1e-6)


def test_a_stream_keeps_its_order_and_fills_up() -> None:
    session, runtime = _counted()
    batches = [np.full((size, 3, 4, 4), size / 10, np.float64) for size in (4, 1, 3, 2, 4)]
    found = list(runtime.stream(iter(batches)))
    assert session.sizes == [4] * 5
    assert [len(each) for each in found] == [4, 1, 3, 2, 4]
    assert [round(float(each[0, 0, 0]), 4) for each in found] == [0.6, 0.15, 0.45, 0.3, 0.6]


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((5, 3, 4, 4), SelectionError, r"A batch of 5 pictures\. Expected 1 to 4"),
        ((0, 3, 4, 4), SelectionError, "A batch of 0 pictures"),
        ((2, 1, 4, 4), ShapeError, "channels=3"),
        ((2, 3, 8, 8), ShapeError, "height=4"),
    ],
)
def test_wrong_batches(shape: tuple[int, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(_counted()[1].stream([np.zeros(shape, np.float32)]))


def test_wrong_pictures(opened: SaliencyRuntime) -> None:
    with opened:
        with pytest.raises(ShapeError, match="channels=3"):
            opened.saliency([np.zeros((4, 4, 4), np.uint8)])
        with pytest.raises(SelectionError, match=r"of float64\. Expected uint8"):
            opened.saliency([np.zeros((4, 4, 3))])


def test_auto_names_every_candidate(artifact: SegmenterArtifact) -> None:
    with open_saliency(artifact) as runtime:
        assert (runtime.backend, runtime.precision) in PAIRS
        accepted = [
            (row["backend"], row["precision"]) for row in artifact.content["verified"] if row["accepted"]
        ]
        if len(accepted) > 1:
            assert all(" ".join(pair) in runtime.reason for pair in accepted)


@pytest.mark.parametrize(("backend", "precision"), PAIRS)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_asked_for(
    backend: str, precision: str, streaming: bool, artifact: SegmenterArtifact
) -> None:
    with open_saliency(artifact.folder, backend, precision, streaming=streaming) as runtime:
        assert (runtime.backend, runtime.precision) == (backend, precision)
        assert runtime.reason == "the only candidate"
        assert len(runtime.saliency(_pictures())) == len(SIZES)


@pytest.mark.parametrize("backend", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def test_weights_in_torch(backend: str, file: Path, segmenter: Segmenter) -> None:
    if lacks := BACKENDS.load(backend).lacks():
        pytest.skip(lacks)
    pictures = _pictures(SIZES[:3])
    with open_saliency(file, backend, batch_size=2) as runtime:
        assert (runtime.backend, runtime.reason, runtime.batch_size) == (backend, "as asked", 2)
        for mine, picture in zip(runtime.saliency(pictures), pictures, strict=True):
            np.testing.assert_allclose(mine, _torch(segmenter, picture), atol=1e-4)


@pytest.mark.skipif("bf16" not in BACKENDS.load("eager").precisions(), reason="no unit for bf16")
def test_bf16_in_torch(file: Path, segmenter: Segmenter) -> None:
    (picture,) = _pictures(SIZES[:1])
    with open_saliency(file, "eager", "bf16") as runtime:
        assert runtime.precision == "bf16"
        (found,) = runtime.saliency([picture])
    np.testing.assert_allclose(found, _torch(segmenter, picture), atol=0.05)


def test_a_file_of_the_folder_may_be_named(artifact: SegmenterArtifact) -> None:
    with open_saliency(artifact.graph_path, "ort") as runtime:
        assert runtime.backend == "ort"


def test_closes_twice(opened: SaliencyRuntime) -> None:
    opened.close()
    opened.close()
    with pytest.raises(BackendError, match="was closed"):
        opened.saliency(_pictures())


def test_the_callers_network_is_left_alone(segmenter: Segmenter) -> None:
    segmenter.train()
    try:
        before = {name: each.clone() for name, each in segmenter.state_dict().items()}
        with open_saliency(segmenter) as runtime:
            runtime.saliency(_pictures())
        assert segmenter.training
        assert all(each.requires_grad for each in segmenter.parameters())
        assert all(torch.equal(each, before[name]) for name, each in segmenter.state_dict().items())
    finally:
        segmenter.eval()


def test_backends_that_do_not_fit(file: Path, artifact: SegmenterArtifact) -> None:
    with pytest.raises(BackendError, match=r"ort runs exported graphs.*fastdirs saliency export MODEL"):
        open_saliency(file, "ort")
    with pytest.raises(BackendError, match="eager runs weights"):
        open_saliency(artifact, "eager")
    for source in (file, artifact):
        with pytest.raises(UnknownNameError, match=r"'orr'\. Did you mean 'ort'"):
            open_saliency(source, "orr")


def test_precisions_that_do_not_fit(file: Path, artifact: SegmenterArtifact) -> None:
    with pytest.raises(BackendError, match=r"accepts f32, bf16, not 'int8'\. Choose one of these"):
        open_saliency(artifact, precision="int8")
    with pytest.raises(BackendError, match="ort does not compute in 'bf16'"):
        open_saliency(artifact, "ort", "bf16")
    with pytest.raises(BackendError, match="eager does not compute in 'int8'"):
        open_saliency(file, precision="int8")


@pytest.mark.parametrize("size", [0, -1, 5])
def test_batch_sizes_that_were_not_verified(size: int, artifact: SegmenterArtifact) -> None:
    with pytest.raises(SelectionError, match=rf"A batch of {size} is out of range\. Expected 1 to 4, which"):
        open_saliency(artifact, batch_size=size)


def test_a_batch_of_nothing_in_torch(file: Path) -> None:
    with pytest.raises(SelectionError, match=r"A batch of 0 is out of range\. Expected 1 or more"):
        open_saliency(file, batch_size=0)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing\.safetensors"):
        open_saliency(tmp_path / "missing.safetensors")
    with pytest.raises(ArtifactError, match="missing or unreadable"):
        open_saliency(tmp_path)


def test_a_machine_on_which_the_saliency_differs(artifact: SegmenterArtifact) -> None:
    class Other(SegmenterArtifact):
        """Its saliency was made by other weights than its graph holds."""

        def reference(self) -> tuple[Array, Array]:
            images, saliency = super().reference()
            return images, 1 - saliency

    with pytest.raises(ParityError, match="On this machine ort f32: saliency error largest"):
        open_saliency(Other(artifact.folder, artifact.content), "ort")
    with pytest.raises(ParityError, match="Export again"):
        open_saliency(Other(artifact.folder, artifact.content))
