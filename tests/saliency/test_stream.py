"""Batches of images and masks, streamed from shards."""

import copy
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdirs.errors import DatasetError
from fastdirs.images import to_uint8
from fastdirs.machine import resident_mib
from fastdirs.manifest import sha256_file
from fastdirs.mask_dataset import MaskDataset
from fastdirs.saliency import stream
from fastdirs.saliency.stream import PairStream
from fastdirs.shards import Pair, encode_pair, read_shard, write_shard


def numbers(dataset: MaskDataset) -> dict[bytes, int]:
    """The seed of each image by its pixels; every toy scene differs."""
    found = {pair.image.tobytes(): pair.seed for pair in dataset.pairs()}
    assert len(found) == len(dataset)
    return found


def seeds(dataset: MaskDataset, batches: Iterator[tuple[Tensor, Tensor]]) -> list[list[int]]:
    """The seeds of each batch."""
    known = numbers(dataset)
    return [[known[image.tobytes()] for image in to_uint8(images)] for images, _ in batches]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards of the toy dataset in a block."""
    monkeypatch.setattr(stream, "_BLOCK_BYTES", 2 * 30 * 32 * 32 * 4)


def test_pixels_and_masks_are_those_of_the_dataset(toy_dataset: MaskDataset) -> None:
    known = numbers(toy_dataset)
    pairs = {pair.seed: pair for pair in toy_dataset.pairs()}
    for images, masks in PairStream(toy_dataset, 32, 3, 10).batches(0, 3):
        assert images.shape == (10, 3, 32, 32)
        assert masks.shape == (10, 32, 32)
        assert images.dtype == masks.dtype == torch.float32
        assert images.min() >= -1
        assert images.max() <= 1
        for pixels, mask in zip(to_uint8(images), masks, strict=True):
            assert np.array_equal(mask.numpy() == 1, pairs[known[pixels.tobytes()]].mask)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("batch", [7, 25, 100, 230])
def test_an_epoch_holds_every_pair_once(toy_dataset: MaskDataset, batch: int) -> None:
    found = seeds(toy_dataset, PairStream(toy_dataset, 32, 3, batch).batches(0, -(-300 // batch)))
    assert all(len(each) == batch for each in found)
    flat = [seed for each in found for seed in each]
    epochs = [flat[i : i + 100] for i in (0, 100, 200)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(100))
        assert epoch != sorted(epoch)
    assert all(a != b for a, b in pairwise(epochs))


@pytest.mark.usefixtures("small_blocks")
def test_pairs_of_several_shards_mix(toy_dataset: MaskDataset) -> None:
    (first,) = seeds(toy_dataset, PairStream(toy_dataset, 32, 3, 16).batches(0, 1))
    shard_of = np.repeat(range(4), (30, 20, 30, 20))
    assert len(set(shard_of[first])) == 2


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("first", [1, 3, 9, 14, 50])
def test_a_batch_depends_on_its_number_alone(toy_dataset: MaskDataset, first: int) -> None:
    whole = list(PairStream(toy_dataset, 32, 3, 12, seed=4).batches(0, first + 2))
    part = list(PairStream(toy_dataset, 32, 3, 12, seed=4).batches(first, first + 2))
    assert len(part) == 2
    for (images, masks), (wanted, wanted_masks) in zip(part, whole[first:], strict=True):
        assert torch.equal(images, wanted)
        assert torch.equal(masks, wanted_masks)


def test_another_seed_is_another_order(toy_dataset: MaskDataset) -> None:
    one, other = (
        seeds(toy_dataset, PairStream(toy_dataset, 32, 3, 20, seed).batches(0, 1)) for seed in (0, 1)
    )
    assert one != other


@pytest.mark.usefixtures("small_blocks")
def test_processes_share_each_batch(toy_dataset: MaskDataset) -> None:
    pairs = PairStream(toy_dataset, 32, 3, 12)
    whole = seeds(toy_dataset, pairs.batches(0, 20))
    parts = [seeds(toy_dataset, pairs.batches(0, 20, slice(rank, None, 3))) for rank in range(3)]
    for step, batch in enumerate(whole):
        assert [part[step] for part in parts] == [batch[0::3], batch[1::3], batch[2::3]]


@pytest.mark.parametrize("held_out", [5, 20, 35, 50, 99])
def test_the_last_pairs_are_held_out(toy_dataset: MaskDataset, held_out: int) -> None:
    pairs = PairStream(toy_dataset, 32, 3, 8, held_out=held_out)
    assert (pairs.total, pairs.held_out) == (100 - held_out, held_out)
    kept = [seed for each in seeds(toy_dataset, pairs.held_out_batches()) for seed in each]
    assert kept == list(range(100 - held_out, 100))
    trained = {seed for each in seeds(toy_dataset, pairs.batches(0, 30)) for seed in each}
    assert trained == set(range(100 - held_out))
    halves = [seeds(toy_dataset, pairs.held_out_batches(slice(rank, None, 2))) for rank in (0, 1)]
    assert sorted(seed for half in halves for each in half for seed in each) == kept


def test_nothing_is_held_out(toy_dataset: MaskDataset) -> None:
    assert list(PairStream(toy_dataset, 32, 3, 8).held_out_batches()) == []


def test_nothing_is_left_to_train_on(toy_dataset: MaskDataset) -> None:
    with pytest.raises(DatasetError, match=r"holds 100 pairs, so none are left .* 100 held out"):
        PairStream(toy_dataset, 32, 3, 8, held_out=100)


@pytest.mark.parametrize("size", [16, 24, 48])
def test_other_sizes(toy_dataset: MaskDataset, size: int) -> None:
    (whole, masks), (images, resized) = (
        next(iter(PairStream(toy_dataset, each, 3, 10).batches(0, 1))) for each in (32, size)
    )
    assert images.shape == (10, 3, size, size)
    assert set(resized.unique().tolist()) == {0, 1}
    wanted = torch.nn.functional.interpolate(whole, (size, size), mode="bilinear", antialias=True)
    assert (images - wanted).abs().max() < 1 / 127
    assert (resized.mean((1, 2)) - masks.mean((1, 2))).abs().max() < 0.02


def test_grey_becomes_colour_and_back(
    toy_dataset: MaskDataset, write_toy_dataset: Callable[..., MaskDataset], tmp_path: Path
) -> None:
    grey = write_toy_dataset(tmp_path / "grey", (20,), channels=1)
    (images, _) = next(PairStream(grey, 32, 3, 10).batches(0, 1))
    assert images.shape == (10, 3, 32, 32)
    assert torch.equal(images[:, 0], images[:, 2])
    assert torch.equal(images[:, :1], next(PairStream(grey, 32, 1, 10).batches(0, 1))[0])
    colour, _ = next(PairStream(toy_dataset, 32, 3, 10).batches(0, 1))
    (images, _) = next(PairStream(toy_dataset, 32, 1, 10).batches(0, 1))
    wanted = (colour * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    assert images.shape == (10, 1, 32, 32)
    assert (images - wanted).abs().max() < 1 / 127


def copied(dataset: MaskDataset, folder: Path) -> MaskDataset:
    shutil.copytree(dataset.folder, folder)
    return replace(dataset, folder=folder, content=copy.deepcopy(dataset.content))


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "fewer", "other", "bit", "sizes"])
def test_a_damaged_shard_is_named(toy_dataset: MaskDataset, damage: str, tmp_path: Path) -> None:
    dataset = copied(toy_dataset, tmp_path / "pairs")
    path = dataset.path(dataset.shards[1])
    pairs = list(read_shard(path))
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "fewer":
        write_shard(path, (encode_pair(pair, "png") for pair in pairs[:-1]))
    elif damage == "other":
        path.write_bytes(b"no tar file" * 1000)
    elif damage == "bit":
        # In pixels, where nothing else would tell.
        data = bytearray(path.read_bytes())
        data[2000] ^= 1
        path.write_bytes(data)
    else:
        pairs[3] = Pair(pairs[3].seed, pairs[3].image[:16], pairs[3].mask, {})
        write_shard(path, (encode_pair(pair, "png") for pair in pairs))
        dataset.content["shards"][1]["sha256"] = sha256_file(path)
    named = "16 x 32 pixels .* 32 x 32" if damage == "sizes" else r"pairs-00001\.tar"
    with pytest.raises(DatasetError, match=named):
        list(PairStream(dataset, 32, 3, 10).batches(0, 20))


def test_shards_that_count_fewer_pairs_are_told_apart(toy_dataset: MaskDataset, tmp_path: Path) -> None:
    dataset = copied(toy_dataset, tmp_path / "pairs")
    dataset.content["shards"][1]["count"] += 1
    with pytest.raises(DatasetError, match=r"pairs-00001\.tar holds 20 pairs, not the 21"):
        list(PairStream(dataset, 32, 3, 10).batches(0, 20))


def test_each_shard_is_hashed_once(toy_dataset: MaskDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(stream, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(stream, "sha256_file", lambda path: hashed.append(path.name) or sha256_file(path))
    list(PairStream(toy_dataset, 32, 3, 10).batches(0, 30))
    assert sorted(hashed) == [shard.name for shard in toy_dataset.shards]


def test_no_thread_is_left_behind(toy_dataset: MaskDataset) -> None:
    before = threading.active_count()
    batches = PairStream(toy_dataset, 32, 3, 10).batches(0, 10_000)
    next(batches)
    assert threading.active_count() > before, "read ahead"
    batches.close()
    assert threading.active_count() == before
    assert list(PairStream(toy_dataset, 32, 3, 10).batches(5, 5)) == []


def test_what_was_begun_and_not_used_can_be_asked_for_again(toy_dataset: MaskDataset) -> None:
    pairs = PairStream(toy_dataset, 32, 3, 10)
    for _ in range(3):
        batches = pairs.batches(0, 10)
        first = next(batches)
        batches.close()
    assert torch.equal(first[0], next(pairs.batches(0, 10))[0])


def test_memory_does_not_grow_with_the_dataset(
    write_toy_dataset: Callable[..., MaskDataset], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = write_toy_dataset(tmp_path / "pairs", (200,), 64)
    # The same shard under many names: 200 MiB of pixels.
    for index in range(1, 64):
        shutil.copy(small.path(small.shards[0]), small.path(replace(small.shards[0], name=f"{index}.tar")))
    whole = small.shards[0].sha256
    shards = [{"name": f"{index}.tar", "count": 200, "sha256": whole} for index in range(1, 64)]
    many = replace(small, content={**small.content, "shards": shards})
    monkeypatch.setattr(stream, "_BLOCK_BYTES", 2**23)
    batches = PairStream(many, 64, 3, 50).batches(0, 200)
    for _ in range(20):
        next(batches)
    before = resident_mib()
    assert sum(1 for _ in batches) == 180
    assert resident_mib() - before < 40
