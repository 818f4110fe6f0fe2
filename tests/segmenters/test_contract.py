"""What every segmenter promises. A new network is tested the moment its file exists."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastdirs.errors import CheckpointError, SelectionError, UnknownNameError
from fastdirs.segmenters import (
    SEGMENTERS,
    Segmenter,
    build_segmenter,
    is_segmenter,
    load_segmenter,
    save_segmenter,
)
from fastdirs.tracing import trace

RESOLUTION = 32
WIDTH = 4
CONTENT = {"dataset": {"sha256": "ab"}, "held_out": {"iou": 0.5}}

every_kind = pytest.mark.parametrize("kind", SEGMENTERS.names())


def _build(
    kind: str, img_channels: int = 3, img_resolution: int = RESOLUTION, width: int = WIDTH
) -> Segmenter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_segmenter(kind, img_channels, img_resolution, width)


def _images(segmenter: Segmenter, batch: int) -> Tensor:
    size = segmenter.img_resolution
    random = torch.Generator().manual_seed(1)
    return torch.randn(batch, segmenter.img_channels, size, size, generator=random).clamp(-1, 1)


def _saved(kind: str, path: Path) -> Path:
    save_segmenter(_build(kind), path, CONTENT)
    return path


@pytest.mark.parametrize("size", [32, 45, 64])
@pytest.mark.parametrize("img_channels", [1, 3])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@every_kind
def test_shapes(kind: str, training: bool, img_channels: int, size: int) -> None:
    segmenter = _build(kind, img_channels, size)
    assert segmenter.training, "built to be trained"
    logits = segmenter.train(training)(_images(segmenter, 3))
    assert logits.shape == (3, size, size)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@every_kind
def test_attributes(kind: str) -> None:
    segmenter = _build(kind, 1, 40)
    assert SEGMENTERS.load(kind).summary
    assert (segmenter.kind, segmenter.img_channels, segmenter.img_resolution) == (kind, 1, 40)
    assert segmenter.width == WIDTH
    with torch.device("meta"):
        assert build_segmenter(kind, 3, 64).width == SEGMENTERS.load(kind).usual_width


@every_kind
def test_images_of_a_batch_do_not_mix_in_evaluation(kind: str) -> None:
    segmenter = _build(kind).eval()
    images = _images(segmenter, 3)
    together = segmenter(images)
    alone = torch.cat([segmenter(images[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert together.std(0).max() > 1e-4


@every_kind
def test_pixels_stay_where_they_are(kind: str) -> None:
    """What changes in one corner changes the logits there most."""
    segmenter = _build(kind, 3, 64).eval()
    images = _images(segmenter, 1)
    changed = images.clone()
    changed[:, :, 4:8, 50:54] *= -1
    difference = (segmenter(changed) - segmenter(images)).abs()[0]
    row, column = divmod(int(difference.argmax()), 64)
    assert row < 16
    assert column >= 42


@every_kind
def test_gradients_reach_every_parameter(kind: str) -> None:
    # In evaluation: what batch norm takes out of a batch, such as a bias before it, has no gradient.
    segmenter = _build(kind).eval()
    segmenter(_images(segmenter, 3)).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in segmenter.named_parameters()}
    still = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    assert still == []


@every_kind
def test_learns_what_is_bright(kind: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        segmenter = build_segmenter(kind, 1, RESOLUTION, 8)
        optimiser = torch.optim.Adam(segmenter.parameters(), lr=3e-3)
        for _ in range(25):
            masks = torch.nn.functional.interpolate(torch.rand(8, 1, 4, 4), RESOLUTION, mode="nearest") > 0.6
            images = (masks.float() - 0.5 + 0.2 * torch.randn(8, 1, RESOLUTION, RESOLUTION)).clamp(-1, 1)
            logits = segmenter(images)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, masks[:, 0].float())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert ((logits > 0) == masks[:, 0]).float().mean() > 0.9


@every_kind
def test_becomes_a_graph_for_every_batch(kind: str, tmp_path: Path) -> None:
    segmenter = _build(kind, 3, 48).eval().requires_grad_(False)
    trace(
        segmenter, (_images(segmenter, 2),), tmp_path / "s.onnx", ["images"], "logits", 18, {"name": kind},
        kind="segmenter",
    )  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "s.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        images = _images(segmenter, batch)
        (found,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(found, segmenter(images).numpy(), rtol=1e-3, atol=1e-4)


@every_kind
def test_the_smallest_images(kind: str) -> None:
    smallest = _build(kind).smallest
    segmenter = _build(kind, 3, smallest).eval()
    assert segmenter(_images(segmenter, 1)).shape == (1, smallest, smallest)
    with pytest.raises(SelectionError, match=rf"{kind} takes images of {smallest} pixels or more"):
        _build(kind, 3, smallest - 1)


@every_kind
def test_sizes_that_make_no_sense(kind: str) -> None:
    with pytest.raises(SelectionError, match="2 channels"):
        build_segmenter(kind, 2, 64)
    for width in (-1, 1025):
        with pytest.raises(SelectionError, match=f"width={width} is out of range"):
            build_segmenter(kind, 3, 64, width)


@every_kind
def test_comes_back_from_a_file_with_equal_bytes(kind: str, tmp_path: Path) -> None:
    segmenter = _build(kind)
    segmenter(_images(segmenter, 3))  # statistics that are not the initial ones
    save_segmenter(segmenter, tmp_path / "one.safetensors", CONTENT)
    state = torch.random.get_rng_state()
    loaded, recorded = load_segmenter(tmp_path / "one.safetensors")
    assert torch.equal(torch.random.get_rng_state(), state), "reading draws no random numbers"
    assert is_segmenter(tmp_path / "one.safetensors")
    assert recorded["dataset"] == CONTENT["dataset"]
    assert recorded["held_out"] == CONTENT["held_out"]
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    images = _images(segmenter, 3)
    torch.testing.assert_close(loaded(images), segmenter.eval()(images), rtol=0, atol=0)
    save_segmenter(loaded, tmp_path / "two.safetensors", CONTENT)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


@every_kind
def test_a_value_that_is_not_finite(kind: str, tmp_path: Path) -> None:
    segmenter = _build(kind)
    name, weight = next(iter(segmenter.named_parameters()))
    weight.data.view(-1)[-1] = float("nan")
    save_segmenter(segmenter, tmp_path / "s.safetensors", CONTENT)
    with pytest.raises(CheckpointError, match=f"NaN or infinite values in '{name}'"):
        load_segmenter(tmp_path / "s.safetensors")


@every_kind
@pytest.mark.parametrize("keep", [0, 7, 0.5, 0.99])
def test_a_file_cut_short(kind: str, keep: float, tmp_path: Path) -> None:
    path = _saved(kind, tmp_path / "s.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(CheckpointError, match=r"s\.safetensors"):
        load_segmenter(path)
    assert not is_segmenter(path)


@every_kind
@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("kind", "unnet", "There is no saliency network 'unnet'"),
        ("kind", 3, "what its header says"),
        ("width", 10**9, "what its header says"),
        ("width", 2, "has shape"),
        ("width", "wide", "what its header says"),
        ("img_channels", 1, "has shape"),
        ("img_channels", 4, "4 channels"),
        ("img_resolution", None, "what its header says"),
        ("img_resolution", 2, "2"),
    ],
)
def test_a_header_that_does_not_fit(
    kind: str, setting: str, value: object, reason: str, tmp_path: Path
) -> None:
    path = _saved(kind, tmp_path / "s.safetensors")
    header = load_segmenter(path)[1]
    header["segmenter"][setting] = value
    save_file(load_file(path), path, {"fastdirs": json.dumps(header)})
    with pytest.raises(CheckpointError, match=reason):
        load_segmenter(path)


@pytest.mark.parametrize("content", [[], "unet", None, {}])
def test_a_header_without_settings(content: object, tmp_path: Path) -> None:
    path = _saved("unet", tmp_path / "s.safetensors")
    header = {**load_segmenter(path)[1], "segmenter": content}
    save_file(load_file(path), path, {"fastdirs": json.dumps(header)})
    with pytest.raises(CheckpointError, match="what its header says"):
        load_segmenter(path)


@every_kind
def test_tensors_that_are_missing_or_too_many(kind: str, tmp_path: Path) -> None:
    path = _saved(kind, tmp_path / "s.safetensors")
    metadata = {"fastdirs": json.dumps(load_segmenter(path)[1])}
    tensors = load_file(path)
    name = min(tensors)
    save_file({n: each for n, each in tensors.items() if n != name}, path, metadata)
    with pytest.raises(CheckpointError, match=f"'{name}' is missing"):
        load_segmenter(path)
    save_file({**tensors, "a.third.head": torch.zeros(3)}, path, metadata)
    with pytest.raises(CheckpointError, match=r"'a\.third\.head' is no part of it"):
        load_segmenter(path)
    save_file({**tensors, name: torch.zeros(tensors[name].shape, dtype=torch.int64)}, path, metadata)
    with pytest.raises(CheckpointError, match=f"'{name}' has shape .* and type int64"):
        load_segmenter(path)


def test_other_files_are_no_segmenters(toy_bank: object, tmp_path: Path) -> None:
    toy_bank.save(tmp_path / "bank.safetensors")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    (tmp_path / "note.txt").write_text("no network")
    for name in ("bank.safetensors", "other.pt", "note.txt", "missing.safetensors"):
        assert not is_segmenter(tmp_path / name)
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            load_segmenter(tmp_path / name)


def test_unknown_kind() -> None:
    with pytest.raises(UnknownNameError, match=r"'unnet'\. Did you mean 'unet'"):
        build_segmenter("unnet", 3, 64)
