"""The folder of a dataset of images and masks: which shards it holds, whether they are what was written."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdirs.errors import ArtifactError, DatasetError
from fastdirs.manifest import Json, read_json, sha256_file
from fastdirs.shards import Pair, read_shard

KIND, SHARD_KIND = "mask-dataset", "mask-shard"
DATASET_FILE, SHARDS_FOLDER = "dataset.json", "shards"


@dataclass(frozen=True)
class Shard:
    """A tar file of pairs.

    Attributes:
        name: Of the file.
        count: Pairs in it.
        sha256: Of its bytes.
    """

    name: str
    count: int
    sha256: str


@dataclass(frozen=True)
class MaskDataset:
    """A folder of shards that is complete.

    Attributes:
        folder: The folder.
        content: Its manifest: generator, bank, direction, epsilon, rule, filters, count, shards, ...
    """

    folder: Path
    content: Json

    @property
    def shards(self) -> list[Shard]:
        """The shards, in order."""
        return [Shard(each["name"], each["count"], each["sha256"]) for each in self.content["shards"]]

    def __len__(self) -> int:
        """Pairs in all."""
        return sum(shard.count for shard in self.shards)

    @property
    def img_resolution(self) -> int:
        """Height and width of images and masks, in pixels."""
        return int(self.content["generator"]["img_resolution"])

    @property
    def img_channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return int(self.content["generator"]["img_channels"])

    def path(self, shard: Shard) -> Path:
        """The file of a shard."""
        return self.folder / SHARDS_FOLDER / shard.name

    def pairs(self) -> Iterator[Pair]:
        """All pairs, in order.

        Raises:
            DatasetError: A shard is missing, torn, or holds something else.
        """
        for shard in self.shards:
            yield from read_shard(self.path(shard))

    def check(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compare every shard with its hash.

        Args:
            progress: Called with shards done and in all.

        Raises:
            DatasetError: Shards are missing, changed, or lie there without belonging to it.
        """
        shards, wrong = self.shards, []
        for done, shard in enumerate(shards, 1):
            path = self.path(shard)
            if not path.is_file():
                wrong.append(f"{shard.name} is missing")
            elif sha256_file(path) != shard.sha256:
                wrong.append(f"{shard.name} changed")
            progress(done, len(shards))
        known = {shard.name for shard in shards}
        strange = sorted(p.name for p in (self.folder / SHARDS_FOLDER).glob("*.tar") if p.name not in known)
        wrong += [f"{name} is no part of it" for name in strange]
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise DatasetError(
                f"{self.folder} is not what was written: {'; '.join(wrong[:5])}{more}. Remove them and "
                "give the command that made it again: it writes what is missing, with the same bytes."
            )


def open_mask_dataset(path: str | Path, unfinished: bool = False) -> MaskDataset:
    """Open a dataset that is complete; its shards are not hashed.

    Args:
        path: The folder, or its manifest.
        unfinished: Open one that is not complete, too: the shards that are there.

    Raises:
        DatasetError: There is none, it is unfinished, or its manifest is damaged.
    """
    folder = Path(path)
    if folder.name == DATASET_FILE:
        folder = folder.parent
    if not folder.is_dir():
        raise DatasetError(f"{folder} does not exist. Make it with: fastdirs masks MODEL BANK --out {folder}")
    try:
        content: dict[str, Any] = read_json(folder / DATASET_FILE, KIND)
        if not content["complete"] and unfinished:
            sidecars = sorted((folder / SHARDS_FOLDER).glob("*.json"))
            content["shards"] = [read_json(sidecar, SHARD_KIND) for sidecar in sidecars]
        dataset = MaskDataset(folder, content)
        if not content["complete"] and not unfinished:
            raise DatasetError(
                f"{folder} is unfinished. Give the command that makes it again, which continues it."
            )
        _ = (dataset.shards, dataset.img_resolution, dataset.img_channels)
    except ArtifactError as error:
        raise DatasetError(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{folder / DATASET_FILE} is damaged. Make the dataset again.") from error
    return dataset
