import numpy as np
import pytest

from fastdirs.evaluation import direction_scores
from fastdirs.evaluation.strip_figures import StripFigures, cells

EPSILONS = (-2.0, -1.0, 0.0, 1.0, 2.0)


def brighter(seed: int) -> np.ndarray:
    """A random picture that becomes lighter by 5 grey levels for each unit of epsilon, both ways."""
    picture = np.random.default_rng(seed).uniform(-0.5, 0.5, (1, 3, 32, 32))
    return (picture + 5 / 127.5 * np.abs(np.array(EPSILONS))[:, None, None, None]).astype(np.float32)


@pytest.fixture
def figures() -> StripFigures:
    found = StripFigures(EPSILONS)
    for seed in range(3):
        found.add(brighter(seed))
    return found


def test_effects_are_in_grey_levels(figures: StripFigures) -> None:
    scores = figures.scores()
    assert scores["effects"] == pytest.approx([10, 5, 0, 5, 10], abs=1e-3)
    assert scores["effect"] == pytest.approx(10, abs=1e-3)
    assert scores["effect_slope"] == pytest.approx(5, abs=1e-3)
    assert scores["visibility"] == pytest.approx(10 / 18, abs=1e-4)


def test_a_change_that_is_the_same_everywhere(figures: StripFigures) -> None:
    scores = figures.scores()
    assert scores["change_consistency"] == pytest.approx(1, abs=1e-4)
    assert scores["separation"] == pytest.approx(0, abs=1e-3)
    # It turns round in the middle of five pictures: one bend of two steps' length among six.
    assert scores["smoothness"] == pytest.approx(1 - 2 / 6, abs=1e-4)


def test_without_answers_nothing_is_said_of_them(figures: StripFigures) -> None:
    scores = figures.scores()
    assert scores["consistency"] is None
    assert scores["monotonicity"] is None


def test_answers(figures: StripFigures) -> None:
    features = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
    for seed in range(3):
        figures.add_answers(np.array([-2, -1, 1, 2], dtype=np.float32), features[seed])
    scores = figures.scores()
    assert scores["monotonicity"] == 1
    assert scores["consistency"] == direction_scores.consistency(features)
    assert figures.centroids().shape == (4, 6)


def test_the_better_end_counts_for_separation() -> None:
    found = StripFigures((-1.0, 0.0, 1.0))
    for seed in range(3):
        strip = np.repeat(brighter(seed)[2:3], 3, axis=0)
        strip[2, :, 8:24, 8:24] = 0.9
        found.add(strip)
    assert found.scores()["separation"] > 0.9


@pytest.mark.parametrize(("size", "expected"), [(8, 8), (16, 16), (28, 16), (64, 16)])
def test_cells_are_means(size: int, expected: int) -> None:
    images = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    small = cells(images, 16)
    assert small.shape == (2, 3, expected, expected)
    if size % expected == 0:
        factor = size // expected
        means = images.reshape(2, 3, expected, factor, expected, factor).mean(axis=(3, 5))
        np.testing.assert_allclose(small, means, atol=1e-6)
