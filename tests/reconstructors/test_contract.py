"""What every reconstructor promises. A new network is tested the moment its file exists."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastdirs.errors import CheckpointError, SelectionError, ShapeError, UnknownNameError
from fastdirs.reconstructors import (
    RECONSTRUCTORS,
    Reconstructor,
    build_reconstructor,
    is_reconstructor,
    load_reconstructor,
    save_reconstructor,
)

RESOLUTION = 32
DIRECTIONS = 5
CONTENT = {"shifts": {"name": "uniform", "scale": 6.0, "minimum": 0.5}, "bank_sha256": "ab"}

every_kind = pytest.mark.parametrize("kind", RECONSTRUCTORS.names())


def _build(kind: str, img_channels: int = 3, img_resolution: int = RESOLUTION) -> Reconstructor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_reconstructor(kind, DIRECTIONS, img_channels, img_resolution)


def _pairs(reconstructor: Reconstructor, batch: int) -> tuple[Tensor, Tensor]:
    size = reconstructor.img_resolution
    random = torch.Generator().manual_seed(1)
    images, noise = torch.randn(2, batch, reconstructor.img_channels, size, size, generator=random)
    return images.clamp(-1, 1), (images + 0.5 * noise).clamp(-1, 1)


def _saved(kind: str, path: Path) -> Path:
    save_reconstructor(_build(kind), path, CONTENT)
    return path


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("img_channels", [1, 3])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@every_kind
def test_shapes(kind: str, training: bool, img_channels: int, batch: int) -> None:
    reconstructor = _build(kind, img_channels)
    assert reconstructor.training, "built to be trained"
    logits, epsilon, features = reconstructor.train(training)(*_pairs(reconstructor, batch))
    assert logits.shape == (batch, DIRECTIONS)
    assert epsilon.shape == (batch,)
    assert features.shape == (batch, reconstructor.width)
    assert all(each.isfinite().all() for each in (logits, epsilon, features))


@every_kind
def test_attributes(kind: str) -> None:
    reconstructor = _build(kind, 1, 40)
    assert RECONSTRUCTORS.load(kind).summary
    assert (reconstructor.kind, reconstructor.num_directions) == (kind, DIRECTIONS)
    assert (reconstructor.img_channels, reconstructor.img_resolution) == (1, 40)


@every_kind
def test_rows_of_a_batch_do_not_mix_in_evaluation(kind: str) -> None:
    reconstructor = _build(kind).eval()
    images, shifted = _pairs(reconstructor, 3)
    together = reconstructor(images, shifted)
    alone = [reconstructor(images[i : i + 1], shifted[i : i + 1]) for i in range(3)]
    for whole, *parts in zip(together, *alone, strict=True):
        torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-4, atol=1e-5)
    logits, epsilon, _ = together
    assert logits.std(0).min() > 1e-4
    assert epsilon.std() > 1e-4


@every_kind
def test_the_order_of_the_pair_matters(kind: str) -> None:
    reconstructor = _build(kind).eval()
    images, shifted = _pairs(reconstructor, 2)
    assert not torch.allclose(reconstructor(images, shifted)[0], reconstructor(shifted, images)[0], atol=1e-4)


@every_kind
def test_heads_read_the_features(kind: str) -> None:
    reconstructor = _build(kind).eval()
    logits, epsilon, features = reconstructor(*_pairs(reconstructor, 2))
    for found, wanted in zip(reconstructor.heads(features), (logits, epsilon), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@every_kind
def test_gradients_reach_every_parameter(kind: str) -> None:
    # In evaluation: what batch norm takes out of a batch, such as a bias before it, has no gradient.
    reconstructor = _build(kind).eval()
    logits, epsilon, _ = reconstructor(*_pairs(reconstructor, 3))
    (logits[:, 0] - logits[:, 1] + epsilon).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in reconstructor.named_parameters()}
    still = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    assert still == []


@every_kind
def test_learns_which_direction(kind: str) -> None:
    """Two directions that anybody can tell apart: brighter on the left, or on the right."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reconstructor = build_reconstructor(kind, 2, 1, RESOLUTION)
        optimiser = torch.optim.Adam(reconstructor.parameters(), lr=1e-3)
        for _ in range(12):
            images, sides = torch.rand(16, 1, RESOLUTION, RESOLUTION) - 1, torch.arange(16) % 2
            shifted = images.clone()
            shifted[0::2, :, :, : RESOLUTION // 2] += 0.8
            shifted[1::2, :, :, RESOLUTION // 2 :] += 0.8
            logits, epsilon, _ = reconstructor(images, shifted)
            loss = torch.nn.functional.cross_entropy(logits, sides) + 0.25 * (epsilon - 0.8).abs().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert (logits.argmax(1) == sides).float().mean() > 0.9


@every_kind
def test_directions_are_renumbered(kind: str) -> None:
    reconstructor = _build(kind).eval()
    pairs, order = _pairs(reconstructor, 2), torch.tensor([3, 1, 4, 0, 2])
    logits, epsilon, _ = reconstructor(*pairs)
    reconstructor.reorder(order)
    torch.testing.assert_close(reconstructor(*pairs)[0], logits[:, order], rtol=1e-5, atol=1e-6)
    assert torch.equal(reconstructor(*pairs)[1], epsilon)


@every_kind
def test_larger_images_are_averaged_down(kind: str) -> None:
    reconstructor = _build(kind).eval()
    images, shifted = _pairs(_build(kind, 3, 3 * RESOLUTION), 2)
    means = [each.reshape(2, 3, RESOLUTION, 3, RESOLUTION, 3).mean((3, 5)) for each in (images, shifted)]
    for found, wanted in zip(reconstructor(images, shifted), reconstructor(*means), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(48, 48), (16, 16), (64, 32), (0, 0)])
def test_images_that_do_not_average_down(height: int, width: int) -> None:
    images = torch.zeros(1, 3, height, width)
    with pytest.raises(ShapeError, match=f"Images of {height} x {width} pixels .* the 32 that"):
        _build("lenet")(images, images)


@every_kind
def test_the_smallest_images(kind: str) -> None:
    smallest = next(size for size in range(1, RESOLUTION + 1) if _accepts(kind, size))
    reconstructor = _build(kind, 3, smallest).eval()
    assert reconstructor(*_pairs(reconstructor, 2))[0].shape == (2, DIRECTIONS)
    if smallest > 1:
        with pytest.raises(SelectionError, match=rf"\b{smallest}\b"):
            _build(kind, 3, smallest - 1)


def _accepts(kind: str, size: int) -> bool:
    try:
        _build(kind, 3, size)
    except SelectionError:
        return False
    return True


@every_kind
def test_sizes_that_make_no_sense(kind: str) -> None:
    with pytest.raises(SelectionError, match="0 is too few"):
        build_reconstructor(kind, 0, 3, 64)
    with pytest.raises(SelectionError, match="2 channels"):
        build_reconstructor(kind, 4, 2, 64)


@every_kind
def test_comes_back_from_a_file_with_equal_bytes(kind: str, tmp_path: Path) -> None:
    reconstructor = _build(kind)
    reconstructor(*_pairs(reconstructor, 3))  # statistics that are not the initial ones
    save_reconstructor(reconstructor, tmp_path / "one.safetensors", CONTENT)
    state = torch.random.get_rng_state()
    loaded, recorded = load_reconstructor(tmp_path / "one.safetensors")
    assert torch.equal(torch.random.get_rng_state(), state), "reading draws no random numbers"
    assert is_reconstructor(tmp_path / "one.safetensors")
    assert recorded["shifts"] == CONTENT["shifts"]
    assert recorded["bank_sha256"] == "ab"
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    pairs = _pairs(reconstructor, 3)
    for found, wanted in zip(loaded(*pairs), reconstructor.eval()(*pairs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    save_reconstructor(loaded, tmp_path / "two.safetensors", CONTENT)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


@every_kind
def test_a_value_that_is_not_finite(kind: str, tmp_path: Path) -> None:
    reconstructor = _build(kind)
    name, weight = next(iter(reconstructor.named_parameters()))
    weight.data.view(-1)[-1] = float("nan")
    save_reconstructor(reconstructor, tmp_path / "r.safetensors", CONTENT)
    with pytest.raises(CheckpointError, match=f"NaN or infinite values in '{name}'"):
        load_reconstructor(tmp_path / "r.safetensors")


@every_kind
@pytest.mark.parametrize("keep", [0, 7, 0.5, 0.99])
def test_a_file_cut_short(kind: str, keep: float, tmp_path: Path) -> None:
    path = _saved(kind, tmp_path / "r.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(CheckpointError, match=r"r\.safetensors"):
        load_reconstructor(path)
    assert not is_reconstructor(path)


@every_kind
@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("kind", "alexnet", "There is no reconstructor 'alexnet'"),
        ("kind", 3, "what its header says"),
        ("num_directions", DIRECTIONS + 1, "has shape"),
        ("num_directions", 10**9, "has shape"),
        ("num_directions", -1, "too few"),
        ("num_directions", "many", "what its header says"),
        ("img_channels", 1, "has shape"),
        ("img_channels", 4, "4 channels"),
        ("img_resolution", None, "what its header says"),
        ("img_resolution", 2, "2"),
    ],
)
def test_a_header_that_does_not_fit(
    kind: str, setting: str, value: object, reason: str, tmp_path: Path
) -> None:
    path = _saved(kind, tmp_path / "r.safetensors")
    header = load_reconstructor(path)[1]
    header["reconstructor"][setting] = value
    save_file(load_file(path), path, {"fastdirs": json.dumps(header)})
    with pytest.raises(CheckpointError, match=reason):
        load_reconstructor(path)


@pytest.mark.parametrize("content", [[], "lenet", None, {}])
def test_a_header_without_settings(content: object, tmp_path: Path) -> None:
    path = _saved("lenet", tmp_path / "r.safetensors")
    header = {**load_reconstructor(path)[1], "reconstructor": content}
    save_file(load_file(path), path, {"fastdirs": json.dumps(header)})
    with pytest.raises(CheckpointError, match="what its header says"):
        load_reconstructor(path)


@every_kind
def test_tensors_that_are_missing_or_too_many(kind: str, tmp_path: Path) -> None:
    path = _saved(kind, tmp_path / "r.safetensors")
    metadata = {"fastdirs": json.dumps(load_reconstructor(path)[1])}
    tensors = load_file(path)
    name = min(tensors)
    save_file({n: each for n, each in tensors.items() if n != name}, path, metadata)
    with pytest.raises(CheckpointError, match=f"'{name}' is missing"):
        load_reconstructor(path)
    save_file({**tensors, "a.third.head": torch.zeros(3)}, path, metadata)
    with pytest.raises(CheckpointError, match=r"'a\.third\.head' is no part of it"):
        load_reconstructor(path)
    save_file({**tensors, name: torch.zeros(tensors[name].shape, dtype=torch.int64)}, path, metadata)
    with pytest.raises(CheckpointError, match=f"'{name}' has shape .* and type int64"):
        load_reconstructor(path)


def test_other_files_are_no_reconstructors(toy_bank: object, tmp_path: Path) -> None:
    toy_bank.save(tmp_path / "bank.safetensors")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    (tmp_path / "note.txt").write_text("no network")
    for name in ("bank.safetensors", "other.pt", "note.txt", "missing.safetensors"):
        assert not is_reconstructor(tmp_path / name)
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            load_reconstructor(tmp_path / name)


def test_unknown_kind() -> None:
    with pytest.raises(UnknownNameError, match=r"'lenett'\. Did you mean 'lenet'"):
        build_reconstructor("lenett", 4, 3, 64)
