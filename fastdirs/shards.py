"""Pairs of an image and its mask as WebDataset shards: tar files that any reader of them streams."""

import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastdirs.errors import DatasetError, MissingDependencyError
from fastdirs.images import Pixels, decode, encode
from fastdirs.manifest import Json, atomic_file
from fastdirs.registry import install_hint

try:
    from webdataset import TarWriter
    from webdataset.tariterators import group_by_keys, tar_file_iterator
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        f"Datasets of masks need {error.name}, which is not installed: {install_hint('webdataset')}"
    ) from error

MASK, FACTS = "mask.png", "json"
_HALF = 127


@dataclass(frozen=True)
class Pair:
    """One sample.

    Attributes:
        seed: Of the image; also its name in the shard.
        image: `[height, width, channels]`, uint8.
        mask: `[height, width]`, bool, True = salient object.
        facts: What else is known: class, direction, epsilon, area, rule.
    """

    seed: int
    image: Pixels
    mask: NDArray[np.bool_]
    facts: Json


def encode_pair(pair: Pair, image_format: str) -> dict[str, str | bytes]:
    """A sample as a shard holds it: image, mask (PNG, 0 or 255) and JSON, as bytes.

    Args:
        pair: The sample.
        image_format: "jpg", "png" or "webp".
    """
    facts = {"seed": pair.seed, **pair.facts}
    return {
        "__key__": f"{pair.seed:012d}",
        image_format: encode(pair.image, image_format),
        MASK: encode(pair.mask[..., None].view(np.uint8) * np.uint8(255), "png"),
        FACTS: json.dumps(facts).encode(),
    }


def write_shard(path: Path, samples: Iterable[dict[str, str | bytes]]) -> None:
    """Write a whole shard, or none; equal samples give equal bytes.

    Args:
        path: The tar file.
        samples: What `encode_pair` gives, in order.

    Raises:
        OutputError: The file cannot be written.
    """
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        # No time and no user: a resumed run ends with the same bytes.
        writer = TarWriter(file, user="", group="", mode=0o644, encoder=False, mtime=0)
        try:
            for sample in samples:
                writer.write(sample)
        finally:
            writer.close()


def read_shard(path: Path) -> Iterator[Pair]:
    """The samples of a shard, in order.

    Args:
        path: The tar file.

    Raises:
        DatasetError: It is missing, torn, or holds something else.
    """
    try:
        # Opened here: a stream that webdataset opens by itself stays open.
        with path.open("rb") as file:
            members = ({**member, "__url__": str(path)} for member in tar_file_iterator(file))
            for sample in group_by_keys(members):
                yield _decoded(sample)
    except (tarfile.TarError, OSError, ValueError, KeyError, AttributeError) as error:
        raise DatasetError(
            f"{path} cannot be read ({type(error).__name__}: {error}). "
            f"Find every file that changed with: fastdirs dataset check {path.parent.parent}"
        ) from error


def _decoded(sample: dict[str, bytes]) -> Pair:
    (suffix,) = (name for name in sample if name not in (MASK, FACTS) and not name.startswith("__"))
    facts = json.loads(sample[FACTS])
    mask = decode(sample[MASK])[..., 0] > _HALF
    return Pair(int(facts.pop("seed")), decode(sample[suffix]), mask, facts)
