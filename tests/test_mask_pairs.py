from collections.abc import Sequence

import numpy as np
import pytest
import torch

from fastdirs.artifact import Artifact
from fastdirs.directions import DirectionBank
from fastdirs.discovery import discover
from fastdirs.errors import BankError, ContractError, SelectionError
from fastdirs.generators import Generator
from fastdirs.images import to_uint8
from fastdirs.mask_filters import Filters
from fastdirs.mask_pairs import Candidates, PairSource
from fastdirs.mask_rules import MASK_RULES
from fastdirs.mask_settings import MaskSettings
from fastdirs.runtime import open_runtime

SEEDS = (5, 2**33)
ANY = Filters(min_area=0.0, max_area=1.0)


def rendered(
    source: Artifact | Generator, bank: DirectionBank, settings: MaskSettings, seeds: Sequence[int] = SEEDS,
    backend: str = "auto",
) -> Candidates:  # fmt: skip
    with (
        open_runtime(source, backend, "f32") as runtime,
        PairSource(runtime, bank, settings, len(seeds)) as pairs,
    ):
        return pairs.candidates(seeds, pairs.session.run_all(pairs.inputs(seeds)))


@pytest.mark.parametrize("rule", MASK_RULES.names())
@pytest.mark.parametrize("backend", ["eager", "ort", pytest.param("openvino_cpu", marks=pytest.mark.slow)])
def test_a_pair_is_what_the_rule_makes_of_two_images(
    rule: str, backend: str, toy: Generator, toy_artifact: Artifact, toy_bank: DirectionBank
) -> None:
    settings = MaskSettings(direction=1, epsilon=-3.0, rule=rule, filters=ANY)
    source = toy if backend == "eager" else toy_artifact
    found = rendered(source, toy_bank, settings, backend=backend)
    latents = toy.mapping(toy.sample(SEEDS))
    plugin = MASK_RULES.load(rule)
    unshifted, *shifted = (
        toy.synthesis(latents + toy_bank.shifts(1, [sign * -3.0])[0]) for sign in (0, *plugin.signs)
    )
    wanted = plugin.mask(unshifted, shifted, plugin.threshold)
    assert np.abs(found.pixels.astype(int) - to_uint8(unshifted)).max() <= 1
    assert (found.masks != wanted.numpy()).mean() < 0.001
    assert found.areas == pytest.approx(wanted.float().mean(dim=(1, 2)).numpy(), abs=0.002)


def test_only_those_that_pass_make_pairs(toy: Generator, toy_bank: DirectionBank) -> None:
    seeds = range(12)
    settings = MaskSettings(direction=4, epsilon=2.0, filters=Filters(max_area=0.2), rule="mean")
    found = rendered(toy, toy_bank, settings, seeds)
    pairs = found.pairs()
    assert 0 < len(pairs) < len(seeds), "some are rejected, some are not"
    assert [pair.seed for pair in pairs] == [
        seed for seed, failing in zip(seeds, found.failing, strict=True) if not failing
    ]
    for pair in pairs:
        assert pair.facts == {
            "class": None, "direction": 4, "epsilon": 2.0, "rule": "mean",
            "area": round(float(pair.mask.mean()), 6),
        }  # fmt: skip
        assert np.array_equal(pair.image, found.pixels[pair.seed])


def test_a_pair_depends_on_its_seed_alone(toy_artifact: Artifact, toy_bank: DirectionBank) -> None:
    settings = MaskSettings(direction=0, epsilon=4.0, filters=ANY)
    together = rendered(toy_artifact, toy_bank, settings, backend="ort")
    for row, seed in enumerate(SEEDS):
        alone = rendered(toy_artifact, toy_bank, settings, (seed, seed), backend="ort")
        assert np.abs(alone.pixels[0].astype(int) - together.pixels[row]).max() <= 1
        assert (alone.masks[0] != together.masks[row]).mean() < 0.002


@pytest.mark.parametrize("name", ["classes", "conditional"])
@pytest.mark.parametrize("chosen", [2, (0, 2), "random"])
def test_classes(name: str, chosen: object, request: pytest.FixtureRequest) -> None:
    generator: Generator = request.getfixturevalue(name)
    bank = discover(generator, "random", num_directions=2)
    settings = MaskSettings(direction=0, epsilon=2.0, filters=ANY, classes=chosen)
    seeds = tuple(range(8))
    found = rendered(generator, bank, settings, seeds)
    if chosen == 2:
        assert found.classes == [2] * 8
    elif chosen == (0, 2):
        assert set(found.classes) == {0, 2}
    else:
        assert found.classes == generator.sample_classes(seeds).tolist()
    drawn = torch.tensor(found.classes)
    latents = generator.mapping(generator.sample(seeds), drawn if name == "conditional" else None)
    images = generator.synthesis(latents, drawn if name == "classes" else None)
    assert np.abs(found.pixels.astype(int) - to_uint8(images)).max() <= 1
    assert found.pairs()[0].facts["class"] == found.classes[int(found.pairs()[0].seed)]


def test_what_is_behind_a_mask(toy: Generator, toy_bank: DirectionBank) -> None:
    settings = MaskSettings(direction=2, epsilon=3.0, rule="difference")
    with open_runtime(toy, "eager") as runtime, PairSource(runtime, toy_bank, settings, 2) as pairs:
        unshifted, shifted = pairs.shifted((4, 5))
    latents = toy.mapping(toy.sample((4, 5)))
    assert np.allclose(unshifted, toy.synthesis(latents), atol=1e-5)
    for image, epsilon in zip(shifted, (3.0, -3.0), strict=True):
        assert np.allclose(image, toy.synthesis(latents + toy_bank.shift(2, epsilon)), atol=1e-5)


@pytest.mark.parametrize(
    ("values", "batch_size", "error", "message"),
    [
        ({"direction": 5}, 1, SelectionError, "direction 5"),
        ({"classes": 0}, 1, ContractError, "takes no class"),
        ({"classes": "random"}, 1, ContractError, "takes no class"),
        ({"classes": (1, 2)}, 1, ContractError, "takes no class"),
        ({"psi": 2000.0}, 1, SelectionError, "psi is 2000"),
        ({}, 0, SelectionError, "A batch of 0 pairs is out of range"),
        (
            {},
            100,
            SelectionError,
            r"A batch of 100 .* Expected 1 to \d+: each takes 2 images",
        ),
    ],
)
def test_what_cannot_be_made(
    values: dict[str, object], batch_size: int, error: type[Exception], message: str,
    toy_artifact: Artifact, toy_bank: DirectionBank,
) -> None:  # fmt: skip
    settings = MaskSettings(**{"direction": 0, "epsilon": 4.0, **values})
    with open_runtime(toy_artifact, "ort", "f32") as runtime, pytest.raises(error, match=message):
        PairSource(runtime, toy_bank, settings, batch_size)


def test_a_bank_of_another_generator(toy: Generator, small_dcgan: Generator, toy_bank: DirectionBank) -> None:
    with open_runtime(small_dcgan, "eager") as runtime, pytest.raises(BankError):
        PairSource(runtime, toy_bank, MaskSettings(direction=0, epsilon=1.0))


def test_classes_that_are_not_there(classes: Generator) -> None:
    bank = discover(classes, "random", num_directions=1)
    with open_runtime(classes, "eager") as runtime:
        for chosen, error in ((99, SelectionError), ((0, 99), SelectionError), (None, ContractError)):
            with pytest.raises(error):
                PairSource(runtime, bank, MaskSettings(direction=0, epsilon=1.0, classes=chosen))
