from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastdirs.discovery import Found, Search, discover, ganspace
from fastdirs.errors import SelectionError
from fastdirs.generators import Generator
from fastdirs.generators.toy import ATTRIBUTES, Toy
from fastdirs.module_generator import ModuleGenerator
from fastdirs.shift_space import ShiftSpace

RandomGenerator = Callable[[str], Generator]


def by_hand(values: np.ndarray, latents: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of the latents on the coordinates along principal components; shares of variance."""
    values = values.astype(np.float64) - values.mean(axis=0)
    _, lengths, components = np.linalg.svd(values, full_matrices=False)
    coordinates = np.column_stack([values @ components[:count].T, np.ones(len(values))])
    rows = np.linalg.lstsq(coordinates, latents.astype(np.float64), rcond=None)[0][:count]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), lengths[:count] ** 2 / (lengths**2).sum()


def require_equal(bank_directions: Tensor, scores: Tensor, wanted: tuple[np.ndarray, np.ndarray]) -> None:
    cosines = np.abs((bank_directions.double().numpy() * wanted[0]).sum(axis=1))
    np.testing.assert_allclose(cosines, 1, atol=1e-4)
    np.testing.assert_allclose(scores.numpy(), wanted[1], rtol=1e-3)


def test_components_of_w(layered: Generator) -> None:
    settings = {"samples": "200", "seed": "2"}
    bank = discover(layered, "ganspace", 4, [0, 2], settings)
    w = layered.mapping(layered.sample(range(400, 600)))[:, [0, 2]].mean(dim=1).numpy()
    # Along its own components, w is led back to them.
    require_equal(bank.directions[:, 2], bank.scores, by_hand(w, w, 4))
    assert torch.equal(bank.directions[:, 0], bank.directions[:, 2])
    assert not bank.directions[:, 1].any()
    assert bank.settings == {"stage": -1, "samples": 200, "seed": 2, "c": 0, "decomposed": "w"}


# More features than samples, and fewer.
@pytest.mark.parametrize("samples", [60, 300])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_components_of_a_stage(layered: Generator, stage: int, samples: int) -> None:
    bank = discover(layered, "ganspace", 3, settings={"samples": str(samples), "stage": str(stage)})
    w = layered.mapping(layered.sample(range(samples)))
    state = None
    for module in layered.stages[: stage + 1]:
        state = module(state, w)
    wanted = by_hand(state.flatten(1).numpy(), w.mean(dim=1).numpy(), 3)
    require_equal(bank.directions[:, 0], bank.scores, wanted)
    assert bank.settings["decomposed"] == f"stage {stage}"


def test_the_features_and_not_what_is_handed_on(classes: Generator) -> None:
    bank = discover(classes, "ganspace", 3, settings={"samples": "90", "stage": "1", "c": "2"})
    latents = classes.mapping(classes.sample(range(90)))
    state = classes.class_weights(2, 90, "synthesis")
    for module in classes.stages[:2]:
        state = module(state, latents)
    features, handed_on = state
    assert handed_on.shape == (90, classes.c_dim)
    wanted = by_hand(features.flatten(1).numpy(), latents[:, 0].numpy(), 3)
    require_equal(bank.directions[:, 0], bank.scores, wanted)
    assert not bank.directions[:, 3].any()


def test_all_samples_are_of_one_class(conditional: Generator) -> None:
    banks = {c: discover(conditional, "ganspace", 3, settings={"samples": "80", "c": c}) for c in "01"}
    for c, bank in banks.items():
        w = conditional.mapping(conditional.sample(range(80)), int(c)).mean(dim=1).numpy()
        require_equal(bank.directions[:, 0], bank.scores, by_hand(w, w, 3))
    assert banks["0"].sha256 != banks["1"].sha256


@pytest.mark.parametrize("name", ["classes", "conditional"])
def test_a_class_that_does_not_exist(name: str, request: pytest.FixtureRequest) -> None:
    generator = request.getfixturevalue(name)
    with pytest.raises(SelectionError, match="There is no class 9"):
        discover(generator, "ganspace", 2, settings={"samples": "50", "c": "9"})


def test_parts_of_z_that_the_stage_has_not_read_take_no_part(random_generator: RandomGenerator) -> None:
    biggan = random_generator("biggan")
    assert biggan.chunked
    for stage, read in ((0, {0}), (1, {0, 1}), (2, {0, 1, 2})):
        bank = discover(biggan, "ganspace", 2, settings={"samples": "60", "stage": str(stage)})
        assert set(bank.directions.any(dim=2).nonzero()[:, 1].tolist()) == read
    bank = discover(biggan, "ganspace", 2, [2, 3], settings={"samples": "60"})
    assert bank.settings["decomposed"] == "stage 2"
    with pytest.raises(
        SelectionError, match=r"No stage up to 1 of biggan reads layers \[2, 3\].*from 2 to 3"
    ):
        discover(biggan, "ganspace", 2, [2, 3], settings={"samples": "60", "stage": "1"})


def test_the_usual_stage_has_room_for_the_directions(toy: Generator) -> None:
    assert isinstance(toy, Toy)
    for count, stage in ((5, 0), (6, 1)):
        bank = discover(toy, "ganspace", count, settings={"samples": "200"})
        assert bank.settings["decomposed"] == f"stage {stage}"


@pytest.mark.slow
def test_the_usual_number_of_samples(toy: Generator, layered: Generator) -> None:
    for generator, samples in ((toy, 4_000), (layered, 10_000)):
        usual = discover(generator, "ganspace", 5)
        assert usual.settings["samples"] == samples
        asked = discover(generator, "ganspace", 5, settings={"samples": str(samples)})
        assert asked.sha256 == usual.sha256


def test_what_outweighs_the_rest_in_the_picture_comes_first(toy: Generator) -> None:
    assert isinstance(toy, Toy)
    bank = discover(toy, "ganspace", 8, settings={"samples": "1500", "stage": "1"})
    cosines = (toy.true_directions().flatten(1) @ bank.directions.flatten(1).T).abs()
    assert cosines[ATTRIBUTES.index("background"), 0] > 0.98
    assert bank.scores[0] > 0.7
    assert cosines[ATTRIBUTES.index("size")].max() > 0.9
    # Position and hue weigh the same, so each of three components holds something of all of them.
    rest = cosines[[ATTRIBUTES.index(name) for name in ("x", "y", "hue")], 1:4]
    assert (rest.square().sum(dim=0) > 0.9).all()


def test_one_stage_is_enough(own_module: Generator, onnx_only: Generator) -> None:
    for generator in (own_module, onnx_only):
        bank = discover(generator, "ganspace", 4, settings={"samples": "100"})
        latents = generator.mapping(generator.sample(range(100)))
        images = generator.synthesis(latents).flatten(1)
        require_equal(bank.directions[:, 0], bank.scores, by_hand(images.numpy(), latents[:, 0].numpy(), 4))


@pytest.mark.parametrize("stage", [2, 99])
def test_a_stage_that_does_not_exist(toy: Generator, stage: int) -> None:
    with pytest.raises(SelectionError, match=rf"There is no stage {stage}\. toy has stages 0 to 1\."):
        discover(toy, "ganspace", 2, settings={"stage": str(stage)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": "1"}, "samples=1 is out of range. Expected 2 or more, or 0"),
        ({"samples": "-5"}, "samples=-5 is out of range"),
        ({"seed": "-1"}, "seed=-1 is out of range"),
        ({"stage": "-2"}, "stage=-2 is out of range"),
        ({"seed": str(2**63)}, "Seed .* is out of range. Seeds run from 0 to"),
    ],
)
def test_bad_settings(toy: Generator, settings: dict[str, str], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        discover(toy, "ganspace", 2, settings=settings)


def test_what_does_not_fit_into_memory_is_not_begun(toy: Generator) -> None:
    calls: list[int] = []
    message = (
        r"50,000 samples of stage 1 of toy are 3,072 numbers each, 0\.6 GiB in all, and 0\.5 GiB are "
        r"allowed\. Choose samples=43690 or fewer"
    )
    with pytest.raises(SelectionError, match=message):
        discover(
            toy, "ganspace", 2, settings={"samples": "50000", "stage": "1"},
            progress=lambda done, total: calls.append(done),
        )  # fmt: skip
    assert not calls


@pytest.mark.parametrize(("samples", "stage", "axes"), [(4, 1, 3), (100, 0, 5)])
def test_variance_along_fewer_axes_than_directions(
    toy: Generator, samples: int, stage: int, axes: int
) -> None:
    settings = {"samples": str(samples), "stage": str(stage)}
    assert len(discover(toy, "ganspace", axes, settings=settings)) == axes
    with pytest.raises(SelectionError, match=rf"vary along {axes} axes.*not {axes + 1}\. Ask for fewer, or"):
        discover(toy, "ganspace", axes + 1, settings=settings)


def test_a_picture_that_never_changes() -> None:
    class Still(nn.Module):
        z_dim = 4

        def forward(self, z: Tensor) -> Tensor:
            return torch.full((len(z), 3, 8, 8), -0.5)

    with pytest.raises(SelectionError, match="vary along 0 axes"):
        discover(ModuleGenerator(Still()), "ganspace", 1, settings={"samples": "20"})


def test_scores_are_shares_of_the_variance(toy: Generator) -> None:
    search = Search(generator=toy, space=ShiftSpace(toy, (0,)), num_directions=5)
    found: Found = ganspace.find(search, ganspace.Settings(samples=500))
    assert float(found.scores.sum()) == pytest.approx(1)
    assert (found.scores > 0.1).all()
