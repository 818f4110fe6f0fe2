"""Small galleries of the toy generator, as a traversal leaves them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import fastdirs
from fastdirs.generators.toy import ATTRIBUTES, Toy
from fastdirs.images import to_uint8
from fastdirs.latents import sample_z
from fastdirs.writers import WRITERS, Gallery

MakeGallery = Callable[..., Gallery]


@pytest.fixture
def make_gallery(tmp_path: Path) -> MakeGallery:
    """Render seeds x directions x epsilons of the toy and write the strips."""

    def make(
        seeds: Sequence[int] = (0, 1, 2),
        directions: Sequence[int] = (0, 3),
        epsilons: Sequence[float] = (-3.0, -1.5, 0.0, 1.5, 3.0),
        image_format: str = "png",
        resolution: int = 16,
        grey: bool = False,
    ) -> Gallery:
        generator = fastdirs.load_generator("toy", options={"resolution": str(resolution)})
        assert isinstance(generator, Toy)
        bank = {
            "labels": list(ATTRIBUTES),
            "scores": [9.0, 8.0, 7.0, 6.0, 5.0],
            "ranges": [[-2.0, 2.0]] * len(ATTRIBUTES),
            "method": "sefa",
            "settings": {"normalize": "rows"},
            "layers": [0],
        }
        content = {
            "generator": generator.identity() | {"img_channels": 1 if grey else 3},
            "bank": bank,
            "seeds": list(seeds),
            "directions": list(directions),
            "epsilons": list(epsilons),
            "psi": 0.75,
            "cutoff": None,
            "image_format": image_format,
            "batch_size": 4,
            "runtime": {"backend": "eager", "precision": "fp32", "provider": "torch CPU"},
        }
        gallery = Gallery(tmp_path / "gallery", content)
        shifts = torch.tensor(epsilons)[:, None, None]
        for seed in seeds:
            for direction in directions:
                with torch.inference_mode():
                    latents = generator.mapping(sample_z([seed], generator.z_dim), psi=0.75)
                    images = to_uint8(
                        generator.synthesis(latents + shifts * generator.true_directions()[direction])
                    )
                path = gallery.strip_path(seed, direction)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(
                    WRITERS.load("strips").encode(images[..., :1] if grey else images, image_format)
                )
        return gallery

    return make


@pytest.fixture
def gallery(make_gallery: MakeGallery) -> Gallery:
    """Three seeds, two directions, five epsilons, 16 pixels, PNG."""
    return make_gallery()
