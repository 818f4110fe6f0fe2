"""Scores on strips whose answer is known, and on the toy, whose directions are."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from fastdirs.errors import ShapeError
from fastdirs.evaluation import direction_scores as scores
from fastdirs.generators import Generator
from fastdirs.generators.toy import ATTRIBUTES, Toy

Array = NDArray[np.float32]


def pictures(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def fade(shares: Array) -> Array:
    """Strips of three seeds that go from one random picture to another: `[3, steps, 3, 8, 8]`."""
    first, last = pictures(0, 3, 1, 3, 8, 8), pictures(1, 3, 1, 3, 8, 8)
    return first + shares[None, :, None, None, None].astype(np.float32) * (last - first)


def test_effect_slope_is_that_of_the_nearest_line_through_zero() -> None:
    assert scores.effect_slope([-2, 0, 2], [6, 0, 6]) == pytest.approx(3)
    assert scores.effect_slope([-2, -1, 0, 1, 2], [4, 4, 0, 4, 4]) == pytest.approx(24 / 10)
    assert scores.effect_slope([-1, 0, 1], [0, 0, 0]) == 0


def test_consistency_of_equal_opposite_and_unrelated_features() -> None:
    same = np.repeat(pictures(0, 1, 4, 7), 5, axis=0) * np.arange(1, 6, dtype=np.float32)[:, None, None]
    assert scores.consistency(same) == pytest.approx(1)
    assert scores.consistency(np.stack([same[0], -same[0]])) == pytest.approx(-1)
    unrelated = np.eye(6, dtype=np.float32)[:, None]
    assert scores.consistency(unrelated) == pytest.approx(0)
    assert scores.consistency(np.zeros((3, 2, 4), dtype=np.float32)) == 0


def test_consistency_is_the_leave_one_out_form_of_ge2e() -> None:
    features = pictures(3, 4, 2, 5)
    unit = features / np.linalg.norm(features, axis=2, keepdims=True)
    cosines = []
    for seed in range(4):
        centroid = np.delete(unit, seed, axis=0).mean(axis=0)
        cosines.append((unit[seed] * centroid).sum(axis=1) / np.linalg.norm(centroid, axis=1))
    assert scores.consistency(features) == pytest.approx(np.mean(cosines), abs=1e-6)


def test_likeness_is_the_mean_cosine_between_different_centroids() -> None:
    features = [pictures(seed, 6, 2, 5) for seed in range(3)]
    centroids = [scores.centroids(each) for each in features]
    cosines = [
        np.mean(
            (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        )
        for i, a in enumerate(centroids) for b in centroids[:i]
    ]  # fmt: skip
    assert scores.likeness(centroids) == pytest.approx(np.mean(cosines))
    assert scores.likeness(centroids[:1]) is None


def test_a_linear_fade_is_perfectly_smooth() -> None:
    assert scores.smoothness(fade(np.linspace(0, 1, 7))) == pytest.approx(1, abs=1e-6)
    assert scores.smoothness(fade(np.zeros(7))) == 1


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0, 0, 0, 1, 1, 1], 0.0),  # one jump
        ([0, 1, 0, 1, 0], 0.0),  # back and forth
        ([0, 0.5, 1, 1, 1], 1 - 0.5 / 1.5),  # nothing left to change in the second half
        ([0, 1, 3, 6], 1 - 2 / 8),
    ],
)
def test_smoothness_of_uneven_fades(shares: list[float], expected: float) -> None:
    assert scores.smoothness(fade(np.array(shares))) == pytest.approx(expected, abs=1e-6)


def test_unrelated_pictures_are_not_smooth() -> None:
    # Consecutive changes have the angle 120 degrees: 1 - sqrt(3) / 2.
    assert scores.smoothness(pictures(0, 4, 9, 3, 16, 16)) == pytest.approx(1 - math.sqrt(3) / 2, abs=0.02)


def test_monotonicity_is_kendalls_rank_correlation() -> None:
    assert scores.monotonicity(np.array([[-3, -1, 0, 5]], dtype=np.float32)) == 1
    assert scores.monotonicity(np.array([[5, 0, -1, -3]], dtype=np.float32)) == -1
    assert scores.monotonicity(np.array([[1, 3, 2]], dtype=np.float32)) == pytest.approx(1 / 3)
    assert scores.monotonicity(np.ones((2, 5), dtype=np.float32)) == 0


def test_overlaps() -> None:
    chords = np.zeros((3, 2, 3), dtype=np.float32)
    chords[0, 0, 0], chords[1, 1, 2] = 1, 1
    chords[2, 0, 0], chords[2, 1, 1] = -0.6, 0.8
    expected = [[0, 0, 0.6], [0, 0, 0], [0.6, 0, 0]]
    np.testing.assert_allclose(scores.overlaps(chords), expected, atol=1e-6)


def test_combined_is_a_geometric_mean_of_what_is_known() -> None:
    assert scores.combined([0.5, None, 0.5]) == pytest.approx(0.5)
    assert scores.combined([1, 0.25]) == pytest.approx(0.5)
    assert scores.combined([0.9, -0.1, 0.9]) == 0
    assert scores.combined([None]) == 0


def test_separation_of_two_parts_that_change_each_in_its_own_way() -> None:
    images = pictures(0, 4, 3, 16, 16)
    shifted = images.copy()
    shifted[:, :, :, 8:] = 0.9
    assert scores.separation(images, shifted) > 0.95


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images,
        lambda images: 0.5 * images + 0.3,
        lambda images: images[:, [1, 2, 0]],
        lambda images: images + 0.1 * pictures(9, *images.shape) / 127.5,
    ],
    ids=["nothing", "contrast", "hue", "noise below a grey level"],
)
def test_what_one_map_explains_is_no_separation(change: Callable[[Array], Array]) -> None:
    images = pictures(0, 4, 3, 16, 16)
    assert scores.separation(images, change(images)) < 0.01


def test_unrelated_pictures_are_no_separation() -> None:
    assert scores.separation(pictures(0, 8, 3, 32, 32), pictures(1, 8, 3, 32, 32)) < 0.05


def test_separation_of_grey_pictures() -> None:
    images = pictures(0, 4, 1, 16, 16)
    shifted = images.copy()
    shifted[:, :, 4:12, 4:12] *= -0.5
    assert scores.separation(images, shifted) > 0.6
    assert scores.separation(images, -0.5 * images) == pytest.approx(0, abs=1e-6)


def test_on_the_toy_the_background_separates_best_and_hue_not_at_all(toy: Generator) -> None:
    assert isinstance(toy, Toy)
    latents = toy.mapping(toy.sample(range(24)))
    images = toy.synthesis(latents).numpy()
    found = {
        name: scores.separation(images, toy.synthesis(latents + 3 * direction).numpy())
        for name, direction in zip(ATTRIBUTES, toy.true_directions(), strict=True)
    }
    assert found["background"] > 0.8
    # A disc that moves or grows uncovers what no map of colours can know; a second map explains a part of it.
    assert max(found["x"], found["y"], found["size"]) < 0.72
    assert found["hue"] < 0.01


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: scores.consistency(pictures(0, 3, 4)), "features"),
        (lambda: scores.smoothness(pictures(0, 3, 4)), "strips"),
        (lambda: scores.monotonicity(pictures(0, 3)), "predicted"),
        (lambda: scores.separation(pictures(0, 2, 3, 8, 8), pictures(0, 2, 3, 8, 4)), "shifted"),
    ],
)
def test_wrong_shapes(call: Callable[[], float], name: str) -> None:
    with pytest.raises(ShapeError, match=name):
        call()
