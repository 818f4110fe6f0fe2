"""One training step, and what it needs."""

from dataclasses import replace

import pytest
import torch

from fastdirs.deformators import build_deformator
from fastdirs.errors import SelectionError
from fastdirs.generators import Generator
from fastdirs.generators.toy import Toy
from fastdirs.reconstructors import build_reconstructor
from fastdirs.shift_space import ShiftSpace
from fastdirs.training.settings import TrainingSettings
from fastdirs.training.trainer import FIGURES, Trainer

QUICK = TrainingSettings(steps=4, batch=8, precision="f32", reconstructor="small")


def trainer(generator: Generator, settings: TrainingSettings = QUICK, **more: int) -> Trainer:
    torch.manual_seed(0)
    space, settings = ShiftSpace(generator, generator.editable), settings.resolved(generator)
    reconstructor = build_reconstructor("small", 3, generator.img_channels, generator.img_resolution)
    return Trainer(space, build_deformator("proj", 3, space.size), reconstructor, settings, **more)


def test_a_step_is_the_published_one(toy: Generator) -> None:
    """Losses and gradients of a loop written as plainly as it can be."""
    one, settings = trainer(toy), QUICK.resolved(toy)
    pairs = one._pairs(0)
    deformator, reconstructor = one.module.deformator, one.module.reconstructor
    weights = [parameter.detach().clone() for parameter in one.module.parameters()]
    shifts = torch.stack([
        epsilon * deformator.linear.weight[:, direction] / deformator.linear.weight[:, direction].norm()
        for direction, epsilon in zip(pairs.directions, pairs.epsilons, strict=True)
    ])  # fmt: skip
    latents = toy.mapping(pairs.z)
    reconstructor.train()
    logits, epsilon, _ = reconstructor(toy.synthesis(latents), toy.synthesis(latents + shifts[:, None]))
    label_loss = torch.nn.functional.cross_entropy(logits, pairs.directions)
    shift_loss = (epsilon - pairs.epsilons).abs().mean()
    (label_loss + 0.25 * shift_loss).backward()
    wanted = [parameter.grad.clone() for parameter in one.module.parameters()]
    one.module.zero_grad()

    figures = dict(zip(FIGURES, one.step(0).tolist(), strict=True))
    assert figures["label_loss"] == pytest.approx(label_loss.item(), rel=1e-4)
    assert figures["shift_loss"] == pytest.approx(shift_loss.item(), rel=1e-4)
    assert figures["loss"] == pytest.approx(figures["label_loss"] + 0.25 * figures["shift_loss"], rel=1e-5)
    # Adam's first step goes by the learning rate against the sign of each gradient.
    rates = {"deformator": settings.directions_lr, "reconstructor": settings.reconstructor_lr}
    for (name, parameter), before, gradient in zip(
        one.module.named_parameters(), weights, wanted, strict=True
    ):
        clear = gradient.abs() > 1e-3
        moved = (before - parameter.detach())[clear]
        torch.testing.assert_close(
            moved, rates[name.split(".")[0]] * gradient[clear].sign(), rtol=1e-2, atol=1e-6
        )


def test_a_step_depends_on_its_number_and_the_state_alone(toy: Generator) -> None:
    one, other = trainer(toy), trainer(toy)
    one.warm_up()
    one.held_out(8)
    one.picture()
    torch.rand(3)
    assert torch.equal(one.step(5), other.step(5))
    for a, b in zip(one.module.state_dict().values(), other.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_held_out_accuracy(toy: Generator) -> None:
    found = trainer(toy).held_out(30)
    assert 0 <= found.accuracy <= 1
    assert found.accuracies.shape == found.changes.shape == (3,)
    assert (found.changes > 1).all()


def test_a_direction_that_changes_nothing_is_seen_to_do_so(toy: Generator) -> None:
    assert isinstance(toy, Toy)
    one = trainer(toy)
    kernel = torch.linalg.svd(toy.true_directions()[:, 0])[2][-1]
    with torch.no_grad():
        one.module.deformator.linear.weight[:, 1] = kernel
    changes = one.held_out(64).changes
    assert changes[1] < 0.1 < 1 < changes[0]


def test_the_picture_has_a_row_for_each_direction(toy: Generator, classes: Generator) -> None:
    assert trainer(toy).picture().shape == (3 * 32, 7 * 32, 3)
    assert trainer(classes).picture().shape == (3 * 16, 7 * 16, 3)


def test_the_generator_is_not_trained(small_dcgan: Generator) -> None:
    before = small_dcgan.weights_sha256
    one = trainer(small_dcgan)
    names = {name.split(".")[0] for name, _ in one.module.named_parameters()}
    assert names == {"deformator", "reconstructor"}
    one.step(0)
    assert not any(parameter.requires_grad for parameter in small_dcgan.parameters())
    small_dcgan._weights_sha256 = None
    assert small_dcgan.weights_sha256 == before


def test_a_batch_that_cannot_be_shared(toy: Generator) -> None:
    with pytest.raises(SelectionError, match=r"A batch of 8 cannot be shared by 1 processes with 3 pairs"):
        trainer(toy, per_direction=3)
    trainer(toy, replace(QUICK, batch=9), per_direction=3)
