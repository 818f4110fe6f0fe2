"""Directions and a reconstructor, trained together."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdirs.deformators import DEFORMATORS, Deformator
from fastdirs.discovery import Search, discover
from fastdirs.discovery._learned import learn
from fastdirs.discovery.voynov import Settings
from fastdirs.errors import OutputError, SelectionError, UnknownNameError
from fastdirs.generators import Generator
from fastdirs.loading import load_generator
from fastdirs.pairs import ShiftDistribution, draw_pairs
from fastdirs.reconstructors import load_reconstructor
from fastdirs.shift_space import ShiftSpace
from fastdirs.training.frozen import FrozenGenerator

QUICK = {
    "steps": "6",
    "batch": "8",
    "log_every": "2",
    "save_every": "2",
    "precision": "f32",
    "held_out": "16",
    "picture_every": "0",
}


@pytest.mark.parametrize("deformator", DEFORMATORS)
def test_every_deformator_becomes_a_bank(toy: Generator, deformator: str, tmp_path: Path) -> None:
    bank = discover(toy, "voynov", 4, settings={**QUICK, "deformator": deformator}, folder=tmp_path / "run")
    assert bank.curved == (deformator == "fc")
    assert bank.settings["deformator"] == deformator
    assert bank.settings["reconstructor"] == "small"
    assert (bank.scores.diff() <= 0).all()
    if not bank.curved:
        torch.testing.assert_close(bank.directions.flatten(1).norm(dim=1), torch.ones(4))


@pytest.mark.parametrize(
    "deformator",
    ["proj", pytest.param("linear", marks=pytest.mark.slow), pytest.param("fc", marks=pytest.mark.slow)],
)
def test_bank_and_reconstructor_agree_on_order_sign_and_length(deformator: str, tmp_path: Path) -> None:
    toy = load_generator("toy", options={"resolution": "16"})
    settings = {**QUICK, "steps": "200", "batch": "16", "log_every": "200", "save_every": "200"}
    settings["deformator"] = deformator
    bank = discover(toy, "voynov", 4, settings=settings, folder=tmp_path / "run")
    reconstructor, content = load_reconstructor(tmp_path / "run" / "reconstructor.safetensors")
    synthesis = FrozenGenerator(toy, torch.device("cpu"), "f32")
    pairs = draw_pairs(toy, 4, ShiftDistribution(**content["shifts"]), 256, 0, first_seed=0)
    latents, _ = synthesis.latents(pairs.z, None)
    lengths = torch.tensor(content["lengths"])[pairs.directions]
    shifts = [
        bank.shift(int(k), float(e * length))
        for k, e, length in zip(pairs.directions, pairs.epsilons, lengths, strict=True)
    ]
    with torch.no_grad():
        logits, epsilon, _ = reconstructor(
            synthesis(latents, None), synthesis(latents + torch.stack(shifts), None)
        )
    accuracy = (logits.argmax(dim=1) == pairs.directions).float().mean()
    assert accuracy > 0.5
    for direction in range(4):
        mine = pairs.directions == direction
        together = torch.corrcoef(torch.stack([epsilon[mine], pairs.epsilons[mine]]))[0, 1]
        # Negative where a sign was lost. Some shifts look the same either way.
        assert together > -0.2, direction
    assert torch.corrcoef(torch.stack([epsilon, pairs.epsilons]))[0, 1] > 0.4


def test_directions_of_parts_of_z_span_all_of_them(tmp_path: Path) -> None:
    from fastdirs.generators.biggan import GENERATOR

    config = _small_biggan()
    torch.manual_seed(0)
    generator = GENERATOR.build(config)
    bank = discover(generator, "voynov", generator.dim + 1, settings={**QUICK, "reconstructor": "small"})
    assert generator.chunked
    assert bank.directions.abs().amax(dim=(0, 2)).min() > 0
    torch.testing.assert_close(bank.directions.flatten(1).norm(dim=1), torch.ones(len(bank)))


def _small_biggan() -> dict[str, object]:
    from tests.generators.test_contract import CONFIGS

    return dict(CONFIGS["biggan"])


def test_layers(layered: Generator) -> None:
    bank = discover(layered, "voynov", 3, layers=[1], settings=QUICK)
    assert not bank.directions[:, [0, 2]].any()
    assert bank.directions[:, 1].norm(dim=1).allclose(torch.ones(3))


def test_conditional_generators(conditional: Generator, classes: Generator) -> None:
    for generator in (conditional, classes):
        bank = discover(generator, "voynov", 2, settings=QUICK)
        assert bank.layers == generator.editable


def test_a_run_with_other_settings_is_not_continued(toy: Generator, tmp_path: Path) -> None:
    discover(toy, "voynov", 3, settings=QUICK, folder=tmp_path / "run")
    for changed, message in (
        ({"batch": "16"}, "batch=8, not batch=16"),
        ({"deformator": "ortho"}, "deformator=proj"),
    ):
        with pytest.raises(OutputError, match=message):
            discover(toy, "voynov", 3, settings={**QUICK, **changed}, folder=tmp_path / "run")
    with pytest.raises(OutputError, match="directions=3, not directions=4"):
        discover(toy, "voynov", 4, settings=QUICK, folder=tmp_path / "run")


def test_mistakes(toy: Generator) -> None:
    with pytest.raises(UnknownNameError, match=r"no deformator 'orto'.*'ortho'"):
        discover(toy, "voynov", 3, settings={"deformator": "orto"})
    with pytest.raises(UnknownNameError, match=r"no reconstructor 'resnet'.*'resnet18'"):
        discover(toy, "voynov", 3, settings={**QUICK, "reconstructor": "resnet"})
    with pytest.raises(SelectionError, match="17 directions are out of range"):
        discover(toy, "voynov", 17, settings=QUICK)
    assert asdict(Settings())["shift_weight"] == 0.25


class Lopsided(Deformator):
    """A path whose two ends point the same way, the longer one at the far left."""

    straight = False

    def deform(self, basis: Tensor) -> Tensor:
        """`[batch, num_directions]` -> `[batch, size]`."""
        epsilon = basis.sum(dim=1, keepdim=True)
        return torch.where(epsilon < 0, -2 * epsilon, epsilon) * torch.eye(1, self.size)


def test_a_path_is_recorded_as_turned_where_the_bank_turned_it(toy: Generator, tmp_path: Path) -> None:
    space = ShiftSpace(toy, (0,))
    search = Search(generator=toy, space=space, num_directions=1, folder=tmp_path / "run")
    settings = Settings(steps=1, batch=4, held_out=4, save_every=50, precision="f32").resolved(toy)
    found = learn(search, "voynov", settings, lambda: Lopsided(1, space.size))
    bank = space.bank(found.vectors, found.scores, "voynov", {}, found.knots)
    _, content = load_reconstructor(tmp_path / "run" / "reconstructor.safetensors")
    (length,) = content["lengths"]
    shift = bank.shift(0, 6.0 * length)
    torch.testing.assert_close(shift[0], 6 * torch.eye(1, space.size)[0])
    assert length == -1
