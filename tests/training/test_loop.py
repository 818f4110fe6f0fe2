"""One loop for every method that trains."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastdirs.deformators import Fixed, build_deformator
from fastdirs.errors import SelectionError, TrainingError
from fastdirs.generators import Generator
from fastdirs.loading import load_generator
from fastdirs.reconstructors import build_reconstructor, load_reconstructor
from fastdirs.shift_space import ShiftSpace
from fastdirs.training.log import read_log
from fastdirs.training.loop import train, train_reconstructor
from fastdirs.training.settings import TrainingSettings
from fastdirs.training.state import STATE_FILE

QUICK = TrainingSettings(
    steps=12, batch=8, log_every=2, save_every=4, picture_every=12, held_out=16, precision="f32",
    reconstructor="small", directions_lr=1e-2, reconstructor_lr=1e-3,
)  # fmt: skip


@pytest.fixture(scope="module")
def toy() -> Generator:
    """Of 16 pixels: what these tests look at is the loop."""
    return load_generator("toy", options={"resolution": "16"})


class StopError(Exception):
    """What a test stops a run with."""


def run(
    generator: Generator, settings: TrainingSettings, stop: int = 0, **more: object
) -> dict[str, torch.Tensor]:
    """Train from the beginning, or from what the folder holds; returns all weights and the accuracy."""
    settings = settings.resolved(generator)
    space = ShiftSpace(generator, generator.editable)
    torch.manual_seed(settings.seed)
    deformator = build_deformator("proj", 4, space.size)
    reconstructor = build_reconstructor("small", 4, generator.img_channels, generator.img_resolution)

    def progress(done: int, total: int) -> None:
        assert total == settings.steps
        if done == stop:
            raise StopError

    held_out = train(space, deformator, reconstructor, settings, progress=progress, **more)
    return {
        "accuracy": held_out.accuracies,
        **{f"d.{k}": v.clone() for k, v in deformator.state_dict().items()},
        **{f"r.{k}": v.clone() for k, v in reconstructor.state_dict().items()},
    }


def test_both_are_trained_and_the_loss_falls(toy: Generator, tmp_path: Path) -> None:
    settings = replace(QUICK, steps=60, log_every=20, save_every=60)
    trained = run(toy, settings, folder=tmp_path / "run")
    log = read_log(tmp_path / "run")
    assert [line["step"] for line in log] == [20, 40, 60]
    assert log[-1]["loss"] < log[0]["loss"]
    assert "held_out_accuracy" in log[-1]
    assert "centroid_loss" not in log[-1]
    assert trained["accuracy"].shape == (4,)
    assert ((trained["accuracy"] >= 0) & (trained["accuracy"] <= 1)).all()
    pictures = sorted(path.name for path in (tmp_path / "run" / "strips").iterdir())
    assert pictures[-1] == "step-0000060.png"


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_run_that_was_stopped_ends_with_the_same_bytes(toy: Generator, stop: int, tmp_path: Path) -> None:
    whole = run(toy, QUICK, folder=tmp_path / "whole")
    with pytest.raises(StopError):
        run(toy, QUICK, stop=stop, folder=tmp_path / "parts")
    parts = run(toy, QUICK, folder=tmp_path / "parts")
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
    for name in (STATE_FILE, "log.jsonl", "run.json", "strips/step-0000012.png"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


def test_a_finished_run_goes_on_with_more_steps(toy: Generator, tmp_path: Path) -> None:
    whole = run(toy, QUICK, folder=tmp_path / "whole")
    run(toy, replace(QUICK, steps=8), folder=tmp_path / "parts")
    parts = run(toy, QUICK, folder=tmp_path / "parts")
    assert torch.equal(whole["d.linear.weight"], parts["d.linear.weight"])
    with pytest.raises(SelectionError, match=r"steps=8 is below the 12 that .* has done"):
        run(toy, replace(QUICK, steps=8), folder=tmp_path / "parts")


def test_the_folder_changes_nothing(toy: Generator, tmp_path: Path) -> None:
    with_folder, without = run(toy, QUICK, folder=tmp_path / "run"), run(toy, QUICK)
    for name, tensor in with_folder.items():
        assert torch.equal(tensor, without[name]), name


def test_a_loss_that_is_no_number_keeps_the_last_good_state(toy: Generator, tmp_path: Path) -> None:
    run(toy, replace(QUICK, steps=4), folder=tmp_path / "run")
    before = (tmp_path / "run" / STATE_FILE).read_bytes()
    # The same run with a rate that cannot go well.
    wild = replace(QUICK, steps=40, reconstructor_lr=1e9, directions_lr=1e9)
    with pytest.raises(TrainingError, match=r"not finite.*at step \d+.*is kept.*Lower directions_lr"):
        run(toy, wild, folder=tmp_path / "run")
    assert (tmp_path / "run" / STATE_FILE).read_bytes() == before
    assert all(math.isfinite(value) for line in read_log(tmp_path / "run") for value in line.values())


def test_no_checkpoint_is_promised_where_there_is_none(toy: Generator, tmp_path: Path) -> None:
    wild = replace(QUICK, log_every=4, reconstructor_lr=1e9, directions_lr=1e9)
    with pytest.raises(TrainingError, match="not finite") as caught:
        run(toy, wild, folder=tmp_path / "run")
    assert ("is kept" in str(caught.value)) == (tmp_path / "run" / STATE_FILE).exists()


def test_weights_that_are_spoiled_in_the_end(toy: Generator) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        run(toy, replace(QUICK, steps=2, reconstructor_lr=2e9, directions_lr=2e9))


def test_directions_that_are_there_already_are_left_alone(toy: Generator) -> None:
    space = ShiftSpace(toy, (0,))
    paths = torch.randn(3, 1, toy.dim) * torch.tensor([-1.0, 0.0, 1.0])[:, None]
    fixed = Fixed(paths, torch.tensor([-1.0, 0.0, 1.0]))
    reconstructor = build_reconstructor("small", 3, 3, toy.img_resolution)
    before = [parameter.clone() for parameter in reconstructor.parameters()]
    train(space, fixed, reconstructor, QUICK.resolved(toy))
    assert torch.equal(fixed.at_knots, paths)
    assert all(not torch.equal(a, b) for a, b in zip(before, reconstructor.parameters(), strict=True))


class Nothing(torch.nn.Module):
    def forward(self, features: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        return features.sum() * 0


@pytest.mark.parametrize("name", ["conditional", "classes"])
def test_classes_are_the_same_within_a_pair(name: str, request: pytest.FixtureRequest) -> None:
    generator, seen = request.getfixturevalue(name), []
    space = ShiftSpace(generator, generator.editable)
    # Shifts of nothing: the two images of a pair are equal unless their classes differ.
    fixed = Fixed(torch.zeros(2, 3, space.size), torch.tensor([-1.0, 0.0, 1.0]))
    reconstructor = build_reconstructor("small", 2, 3, generator.img_resolution)
    reconstructor.register_forward_pre_hook(lambda module, images: seen.append(images))
    train(space, fixed, reconstructor, replace(QUICK, steps=2).resolved(generator), centroid=Nothing())
    assert seen
    for images, shifted in seen:
        assert torch.equal(images, shifted)
    assert (seen[0][0].std(dim=0) > 0).any()


def test_bf16_trains_with_losses_in_float32(small_dcgan: Generator) -> None:
    weights = run(small_dcgan, replace(QUICK, precision="bf16"))
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in weights.values())
    slow = run(small_dcgan, QUICK)
    assert not torch.equal(weights["d.linear.weight"], slow["d.linear.weight"])
    torch.testing.assert_close(weights["d.linear.weight"], slow["d.linear.weight"], rtol=0, atol=0.1)


def test_images_are_made_smaller_for_the_reconstructor() -> None:
    toy = load_generator("toy", options={"resolution": "32"})
    settings = replace(QUICK, resize=16).resolved(toy)
    reconstructor = build_reconstructor("small", 3, 3, settings.resize)
    space = ShiftSpace(toy, (0,))
    train(space, build_deformator("proj", 3, space.size), reconstructor, settings)
    assert reconstructor.img_resolution == 16


def test_what_does_not_fit_the_generator(toy: Generator) -> None:
    with pytest.raises(SelectionError, match=r"A batch of 8 cannot be shared by 1 processes with 3 pairs"):
        run(toy, QUICK, per_direction=3)


def test_the_reconstructor_that_was_trained_can_be_read(toy: Generator, tmp_path: Path) -> None:
    from fastdirs.discovery import discover

    settings = {"steps": "4", "batch": "8", "log_every": "2", "save_every": "4", "precision": "f32"}
    bank = discover(toy, "voynov", 3, settings=settings, folder=tmp_path / "run")
    reconstructor, content = load_reconstructor(tmp_path / "run" / "reconstructor.safetensors")
    assert reconstructor.num_directions == 3
    assert content["bank_sha256"] == bank.sha256
    assert content["shifts"] == {"name": "uniform", "scale": 6.0, "minimum": 0.5}


@pytest.mark.parametrize("name", ["toy", "layered", "classes"])
def test_a_reconstructor_for_a_bank(name: str, request: pytest.FixtureRequest) -> None:
    generator = request.getfixturevalue(name)
    bank = ShiftSpace(generator, generator.editable[:1]).bank(
        torch.eye(3, generator.dim), torch.ones(3), "coordinate", {}
    )
    reconstructor, content = train_reconstructor(generator, bank, steps=2, batch=4)
    assert (reconstructor.num_directions, reconstructor.training) == (3, False)
    assert content["bank_sha256"] == bank.sha256
    again, _ = train_reconstructor(generator, bank, steps=2, batch=4)
    other, _ = train_reconstructor(generator, bank, steps=2, batch=4, seed=1)
    assert torch.equal(reconstructor.classifier.weight, again.classifier.weight)
    assert not torch.equal(reconstructor.classifier.weight, other.classifier.weight)


def test_a_reconstructor_learns_directions_that_differ_from_layer_to_layer(layered: Generator) -> None:
    space = ShiftSpace(layered, layered.editable, per_layer=True)
    assert space.size == layered.num_layers * layered.dim
    vectors = torch.eye(2, space.size)
    shifts = space.spread(vectors)
    assert (shifts[0, 0, 0], shifts[1, 0, 1], shifts[:, 1:].any()) == (1, 1, False)
