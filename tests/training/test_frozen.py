"""The copy of a generator that training renders with."""

import pytest
import torch

from fastdirs.generators import Generator
from fastdirs.training.frozen import FrozenGenerator

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["small_dcgan", "layered", "conditional", "classes"])
def test_same_pictures_and_gradients_to_the_latents_alone(name: str, request: pytest.FixtureRequest) -> None:
    generator: Generator = request.getfixturevalue(name)
    frozen = FrozenGenerator(generator, CPU, "f32")
    seeds = range(4)
    z, classes = generator.sample(seeds), generator.sample_classes(seeds)
    latents, c = frozen.latents(z, classes)
    torch.testing.assert_close(latents, generator.mapping(z, classes))
    shift = torch.zeros_like(latents, requires_grad=True)
    images = frozen(latents + shift, c)
    wanted = generator.run_stages(
        latents, generator.class_weights(classes, 4, "synthesis") if c is not None else None
    )
    torch.testing.assert_close(images, wanted, rtol=0, atol=1e-4)
    images.square().sum().backward()
    assert shift.grad is not None
    assert shift.grad.any()
    assert not any(parameter.requires_grad for parameter in frozen.generator.parameters())


def test_bf16_is_close_and_leaves_the_original_alone(small_dcgan: Generator) -> None:
    latents = small_dcgan.mapping(small_dcgan.sample(range(4)))
    before = small_dcgan.synthesis(latents)
    fast = FrozenGenerator(small_dcgan, CPU, "bf16")(latents, None)
    assert fast.dtype == torch.bfloat16
    assert 0 < (fast.float() - before).abs().mean() < 0.02
    assert torch.equal(small_dcgan.synthesis(latents), before)
