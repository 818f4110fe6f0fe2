"""Which direction a reconstructor takes each shifted image for: accuracy, confusions, error of epsilon."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastdirs.errors import check_shape
from fastdirs.manifest import Json

_SIGMAS = 1.959964
"""A normal variable lies within so many standard deviations in 95% of all cases."""


@dataclass(frozen=True)
class Recognition:
    """What was said of pairs.

    Attributes:
        confusion: How many pairs of each direction (row) were taken for which (column).
            `[num_directions, num_directions]`, int64.
        epsilon_errors: Sum of |predicted - true epsilon| over the pairs of each direction, in latent units.
            `[num_directions]`, float64.

    Raises:
        ShapeError: The two do not fit each other.
    """

    confusion: NDArray[np.int64]
    epsilon_errors: NDArray[np.float64]

    def __post_init__(self) -> None:
        count = len(self.epsilon_errors)
        check_shape(self.confusion, "directions directions", "confusion", directions=count)

    @classmethod
    def of(cls, num_directions: int) -> "Recognition":
        """Nothing said yet."""
        return cls(np.zeros((num_directions, num_directions), dtype=np.int64), np.zeros(num_directions))

    def add(
        self,
        directions: NDArray[np.int64],
        epsilons: NDArray[np.float32],
        logits: NDArray[np.float32],
        predicted: NDArray[np.float32],
    ) -> None:
        """Count a batch of pairs in.

        Args:
            directions: True ones. `[batch]`, int64.
            epsilons: True ones, in latent units. `[batch]`, float32.
            logits: `[batch, num_directions]`, float32.
            predicted: Epsilon as the reconstructor sees it. `[batch]`, float32.
        """
        np.add.at(self.confusion, (directions, logits.argmax(axis=1)), 1)
        np.add.at(self.epsilon_errors, directions, np.abs(predicted.astype(np.float64) - epsilons))

    def overall(self) -> Json:
        """RCA: share of pairs whose direction was recognised, its 95% interval, and the error of epsilon.

        Source:
            Voynov & Babenko 2020, section 4.1 (reconstructor classification accuracy).
        """
        return _figures(int(self.confusion.trace()), int(self.confusion.sum()), self.epsilon_errors.sum())

    def of_direction(self, direction: int) -> Json:
        """The same for one direction, and what it was taken for otherwise, most frequent first.

        The share of a confusion is that of all pairs of this direction. Where no pair of it was drawn, its
        figures are None.
        """
        row = self.confusion[direction]
        pairs = int(row.sum())
        wrong = [other for other in np.argsort(-row, kind="stable") if other != direction and row[other]]
        confusions = [{"direction": int(other), "share": float(row[other] / pairs)} for other in wrong]
        return {
            **_figures(int(row[direction]), pairs, self.epsilon_errors[direction]),
            "confusions": confusions,
        }


def _figures(right: int, pairs: int, error: float) -> Json:
    known = pairs > 0
    return {
        "accuracy": right / pairs if known else None,
        "interval": interval(right, pairs) if known else None,
        "epsilon_error": float(error) / pairs if known else None,
        "pairs": pairs,
    }


def interval(right: int, total: int) -> list[float]:
    """The 95% interval of a share that was counted.

    Args:
        right: Cases that were right.
        total: Cases in all, 1 or more.

    Returns:
        Low and high, 0 to 1.

    Source:
        Wilson 1927: unlike the usual normal interval it stays within [0, 1] and is no point at 0 or 1.
    """
    share, weight = right / total, _SIGMAS**2 / total
    middle = (share + weight / 2) / (1 + weight)
    half = _SIGMAS * math.sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    return [max(0.0, middle - half), min(1.0, middle + half)]
