import numpy as np
import pytest

from fastdirs.errors import ShapeError
from fastdirs.evaluation.recognition import Recognition, interval


def answers(taken_for: list[int]) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[taken_for]


@pytest.fixture
def counted() -> Recognition:
    """Directions 0 and 1 of three; 0 is right in two of four pairs."""
    found = Recognition.of(3)
    directions = np.array([0, 0, 0, 0, 1], dtype=np.int64)
    epsilons = np.array([1, -1, 2, -2, 3], dtype=np.float32)
    predicted = np.array([1, -2, 2, -3, 1], dtype=np.float32)
    found.add(directions[:3], epsilons[:3], answers([0, 2, 2]), predicted[:3])
    found.add(directions[3:], epsilons[3:], answers([0, 1]), predicted[3:])
    return found


def test_pairs_are_counted_by_direction_and_answer(counted: Recognition) -> None:
    assert counted.confusion.tolist() == [[2, 0, 2], [0, 1, 0], [0, 0, 0]]


def test_overall(counted: Recognition) -> None:
    overall = counted.overall()
    assert (overall["accuracy"], overall["pairs"]) == (0.6, 5)
    assert overall["epsilon_error"] == pytest.approx((0 + 1 + 0 + 1 + 2) / 5)
    assert overall["interval"] == interval(3, 5)


def test_of_a_direction(counted: Recognition) -> None:
    first = counted.of_direction(0)
    assert (first["accuracy"], first["pairs"], first["epsilon_error"]) == (0.5, 4, 0.5)
    assert first["confusions"] == [{"direction": 2, "share": 0.5}]
    assert counted.of_direction(1)["confusions"] == []


def test_a_direction_without_pairs_is_unknown_rather_than_guessed(counted: Recognition) -> None:
    assert counted.of_direction(2) == {
        "accuracy": None, "interval": None, "epsilon_error": None, "pairs": 0, "confusions": [],
    }  # fmt: skip


def test_confusions_are_in_order_of_frequency() -> None:
    confusion = np.array([[1, 2, 0, 5], *[[0] * 4] * 3])
    found = Recognition(confusion, np.zeros(4)).of_direction(0)
    assert [each["direction"] for each in found["confusions"]] == [3, 1]


def test_intervals_are_wilsons() -> None:
    # Newcombe 1998, table I: 81 of 263, and 0 of 20.
    assert interval(81, 263) == pytest.approx([0.2553, 0.3662], abs=1e-4)
    assert interval(0, 20) == pytest.approx([0, 0.1611], abs=1e-4)
    assert interval(20, 20)[1] == 1


def test_sums_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="confusion"):
        Recognition(np.zeros((3, 2), dtype=np.int64), np.zeros(3))
