import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from fastdirs.errors import DatasetError, OutputError
from fastdirs.shards import Pair, encode_pair, read_shard, write_shard


def pair(seed: int, channels: int = 3, size: int = 16) -> Pair:
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (size, size, channels), dtype=np.uint8)
    return Pair(seed, image, image[..., 0] > 128, {"class": None, "epsilon": -4.0, "area": 0.5})


@pytest.mark.parametrize("image_format", ["png", "jpg", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read(image_format: str, channels: int, tmp_path: Path) -> None:
    path, pairs = tmp_path / "000000.tar", [pair(seed, channels) for seed in (3, 2**40, 7)]
    write_shard(path, [encode_pair(each, image_format) for each in pairs])
    found = list(read_shard(path))
    assert [each.seed for each in found] == [3, 2**40, 7]
    for mine, theirs in zip(found, pairs, strict=True):
        assert np.array_equal(mine.mask, theirs.mask)
        assert mine.facts == theirs.facts
        assert mine.image.shape[:2] == (16, 16)
        if image_format == "png":
            assert np.array_equal(mine.image, theirs.image)


def test_equal_pairs_give_equal_bytes(tmp_path: Path) -> None:
    hashes = set()
    for name in ("one.tar", "two.tar"):
        write_shard(tmp_path / name, [encode_pair(pair(seed), "jpg") for seed in range(3)])
        hashes.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_other_programs_read_it(tmp_path: Path) -> None:
    path = tmp_path / "000000.tar"
    write_shard(path, [encode_pair(pair(seed), "png") for seed in range(3)])
    with tarfile.open(path) as archive:
        assert archive.getnames()[:3] == ["000000000000.json", "000000000000.mask.png", "000000000000.png"]
    with path.open("rb") as stream:
        members = ({**each, "__url__": ""} for each in webdataset.tariterators.tar_file_iterator(stream))
        samples = list(webdataset.tariterators.group_by_keys(members))
    assert [sample["__key__"] for sample in samples] == [f"{seed:012d}" for seed in range(3)]


@pytest.mark.parametrize("damage", ["missing", "torn", "no tar", "another image", "no mask"])
def test_shards_that_cannot_be_read(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "shards" / "000000.tar"
    samples = [encode_pair(pair(seed), "png") for seed in range(3)]
    if damage == "another image":
        samples[1]["png"] = b"not a picture"
    if damage == "no mask":
        del samples[2]["mask.png"]
    if damage != "missing":
        write_shard(path, samples)
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:3000])
    if damage == "no tar":
        path.write_bytes(b"x" * 4000)
    with pytest.raises(DatasetError, match=r"000000\.tar cannot be read .* fastdirs dataset check"):
        list(read_shard(path))


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(OutputError):
        write_shard(tmp_path / "folder" / "000000.tar", [encode_pair(pair(0), "png")])

    def failing() -> object:
        yield encode_pair(pair(0), "png")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="The disk is full"):
        write_shard(tmp_path / "000000.tar", failing())
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
