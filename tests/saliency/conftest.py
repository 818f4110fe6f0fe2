"""A dataset of images and masks whose masks are exact: scenes of the toy."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fastdirs.generators.toy import Toy
from fastdirs.images import to_uint8
from fastdirs.loading import load_generator
from fastdirs.manifest import manifest, sha256_file, write_json
from fastdirs.mask_dataset import DATASET_FILE, KIND, SHARDS_FOLDER, MaskDataset, open_mask_dataset
from fastdirs.shards import Pair, encode_pair, write_shard


def _write_toy_dataset(
    folder: Path, counts: Sequence[int], size: int = 32, channels: int = 3, first_seed: int = 0
) -> MaskDataset:
    toy = load_generator("toy", options={"resolution": str(size)})
    assert isinstance(toy, Toy)
    shards, seed = [], first_seed
    for index, count in enumerate(counts):
        seeds = list(range(seed, seed + count))
        seed += count
        latents = toy.mapping(toy.sample(seeds))
        images, masks = to_uint8(toy.synthesis(latents)), toy.mask(latents).numpy()
        path = folder / SHARDS_FOLDER / f"pairs-{index:05d}.tar"
        pairs = zip(seeds, images[..., :channels], masks, strict=True)
        write_shard(path, (encode_pair(Pair(*each, {}), "png") for each in pairs))
        shards.append({"name": path.name, "count": count, "sha256": sha256_file(path)})
    generator = {**toy.identity(), "img_resolution": size, "img_channels": channels}
    content = {"generator": generator, "complete": True, "count": seed - first_seed, "shards": shards}
    write_json(folder / DATASET_FILE, manifest(KIND, content))
    return open_mask_dataset(folder)


@pytest.fixture(scope="session")
def write_toy_dataset() -> Callable[..., MaskDataset]:
    """`write_toy_dataset(folder, counts of the shards, size=32, channels=3, first_seed=0)`."""
    return _write_toy_dataset


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> MaskDataset:
    """100 pairs in shards of 30, 20, 30 and 20. Read only."""
    return _write_toy_dataset(tmp_path_factory.mktemp("pairs") / "toy", (30, 20, 30, 20))
