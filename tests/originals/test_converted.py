"""A converted copy of an original's checkpoint is the same generator to the last bit."""

from pathlib import Path

import torch

from fastdirs.loading import convert, load_generator
from tests.originals.conftest import Original, every_original


@every_original()
def test_a_converted_copy_is_the_same_generator(original: Original, tmp_path: Path) -> None:
    generator = load_generator(original.source)
    convert(original.source, tmp_path / "copy.safetensors")
    copy = load_generator(tmp_path / "copy.safetensors")
    assert copy.identity() == generator.identity()
    z, c = original.z(), original.classes(generator)
    with torch.inference_mode():
        latents = generator.mapping(z, c, psi=0.7)
        assert torch.equal(copy.mapping(z, c, psi=0.7), latents)
        assert torch.equal(copy.synthesis(latents, c), generator.synthesis(latents, c))
