import json
import shutil
from pathlib import Path

import pytest

from fastdirs.artifact import Artifact
from fastdirs.directions import DirectionBank
from fastdirs.errors import DatasetError
from fastdirs.mask_dataset import DATASET_FILE, open_mask_dataset
from fastdirs.mask_settings import MaskSettings
from fastdirs.masks import make_masks


@pytest.fixture(scope="module")
def made(toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("datasets") / "pairs"
    settings = MaskSettings(direction=0, epsilon=4.0)
    make_masks(toy_artifact, toy_bank, out, settings, 10, per_shard=4, backend="ort", precision="f32")
    return out


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "pairs"))


def test_a_dataset_that_is_whole(folder: Path) -> None:
    for path in (folder, folder / DATASET_FILE, str(folder)):
        dataset = open_mask_dataset(path)
        assert [shard.count for shard in dataset.shards] == [4, 4, 2]
        assert len(dataset) == len(list(dataset.pairs())) == 10
        assert (dataset.img_resolution, dataset.img_channels) == (32, 3)
    seen: list[tuple[int, int]] = []
    dataset.check(lambda *step: seen.append(step))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_every_shard_that_differs_is_named(folder: Path) -> None:
    shards = folder / "shards"
    data = bytearray((shards / "000000.tar").read_bytes())
    data[700] ^= 1
    (shards / "000000.tar").write_bytes(data)
    (shards / "000001.tar").unlink()
    (shards / "000009.tar").write_bytes(b"mine")
    with pytest.raises(DatasetError) as caught:
        open_mask_dataset(folder).check()
    message = str(caught.value)
    for found in ("000000.tar changed", "000001.tar is missing", "000009.tar is no part of it"):
        assert found in message
    assert "000002" not in message


def test_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="Make it with: fastdirs masks"):
        open_mask_dataset(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="missing or unreadable"):
        open_mask_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"complete": False}, "is unfinished. Give the command"),
        ({"shards": [{"name": "000000.tar"}]}, "is damaged"),
        ({"shards": 3}, "is damaged"),
        ({"generator": {}}, "is damaged"),
        ({"kind": "artifact"}, "not the manifest of a fastdirs mask-dataset"),
        ({"schema": 99}, "has schema 99"),
    ],
)
def test_manifests_that_are_damaged(change: dict[str, object], message: str, folder: Path) -> None:
    path = folder / DATASET_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DatasetError, match=message):
        open_mask_dataset(folder)


def test_shards_of_an_unfinished_dataset_are_checked(folder: Path) -> None:
    path = folder / DATASET_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "complete": False, "shards": []}))
    for suffix in ("tar", "json"):
        (folder / "shards" / f"000001.{suffix}").unlink()
    dataset = open_mask_dataset(folder, unfinished=True)
    assert [shard.name for shard in dataset.shards] == ["000000.tar", "000002.tar"]
    dataset.check()
    (folder / "shards" / "000002.tar").write_bytes(b"torn")
    with pytest.raises(DatasetError, match=r"000002\.tar changed"):
        dataset.check()
