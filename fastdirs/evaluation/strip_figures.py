"""What is kept of the strips of one direction, seed by seed, and the scores that come of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from fastdirs.backends import Array
from fastdirs.evaluation import direction_scores
from fastdirs.images import GREY_LEVELS
from fastdirs.manifest import Json
from fastdirs.pairs import visibility

# Pictures are averaged over so many cells each way before colours and changes are compared.
_COLOUR_CELLS, _CHANGE_CELLS = 32, 16


@dataclass(frozen=True)
class StripFigures:
    """Collects the strips of one direction; the pictures themselves are not kept.

    Attributes:
        epsilons: Ascending, evenly spaced, an odd number with 0 in the middle.
    """

    epsilons: Sequence[float]
    _effects: list[Array] = field(default_factory=list)
    _colours: list[Array] = field(default_factory=list)
    _predicted: list[Array] = field(default_factory=list)
    _features: list[Array] = field(default_factory=list)

    def add(self, images: Array) -> None:
        """Take in the strip of one seed.

        Args:
            images: `[steps, channels, height, width]`, float32 in [-1, 1].
        """
        unshifted = images[self._origin]
        self._effects.append(np.abs(images - unshifted).mean(axis=(1, 2, 3)) * GREY_LEVELS)
        self._colours.append(cells(images, _COLOUR_CELLS))

    def add_answers(self, predicted: Array, features: Array) -> None:
        """Take in what a reconstructor says of the shifted images of one seed, against the unshifted one.

        Args:
            predicted: Epsilon as it sees it. `[steps - 1]`, float32.
            features: `[steps - 1, width]`, float32.
        """
        self._predicted.append(predicted)
        self._features.append(features)

    @property
    def _origin(self) -> int:
        return len(self.epsilons) // 2

    def centroids(self) -> direction_scores.Floats:
        """Of the features: `[steps - 1, width]`, float64."""
        return direction_scores.centroids(np.stack(self._features))

    def scores(self) -> Json:
        """Every score that needs no other direction; None where no reconstructor said anything."""
        effects = np.mean(self._effects, axis=0)
        colours = np.stack(self._colours)
        coarse = np.stack([cells(each, _CHANGE_CELLS) for each in self._colours])
        changes = np.delete(coarse - coarse[:, self._origin, None], self._origin, axis=1)
        effect = float(effects[0] + effects[-1]) / 2
        judged = bool(self._features)
        return {
            "effects": effects.tolist(),
            "effect": effect,
            "effect_slope": direction_scores.effect_slope(self.epsilons, effects.tolist()),
            "visibility": visibility(effect),
            "consistency": direction_scores.consistency(np.stack(self._features)) if judged else None,
            "change_consistency": direction_scores.consistency(changes.reshape(*changes.shape[:2], -1)),
            "smoothness": direction_scores.smoothness(coarse),
            "monotonicity": direction_scores.monotonicity(np.stack(self._predicted)) if judged else None,
            "separation": max(
                direction_scores.separation(colours[:, self._origin], colours[:, end]) for end in (0, -1)
            ),
        }


def cells(images: Array, at_most: int) -> Array:
    """Means over cells.

    Args:
        images: `[batch, channels, height, width]`, float32.
        at_most: Cells each way; smaller pictures stay as they are.

    Returns:
        `[batch, channels, cells, cells]`, float32.
    """
    size = min(at_most, images.shape[-1])
    means: Array = F.adaptive_avg_pool2d(torch.from_numpy(images), size).numpy()
    return means
