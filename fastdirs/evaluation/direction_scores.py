"""Figures that help a person choose among directions, each computed from what its strips show.

Pictures are `[..., channels, height, width]`, float in [-1, 1]; a strip has epsilon ascending along `steps`.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastdirs.errors import check_shape

Array = NDArray[np.float32]
Floats = NDArray[np.float64]

_GREY_LEVEL = 1 / 127.5
_MAX_ROUNDS = 25
_REACH = 2
_ROUNDING = 1e-6


def effect_slope(epsilons: Sequence[float], effects: Sequence[float]) -> float:
    """How fast pictures change: the straight line through zero that is nearest to the effects.

    Args:
        epsilons: Signed lengths, not all 0.
        effects: Mean absolute change at each, in grey levels (of 255).

    Returns:
        Grey levels for one unit of |epsilon|, 0 or more; 0 = nothing changes.
    """
    lengths = np.abs(np.asarray(epsilons, dtype=np.float64))
    return float(lengths @ np.asarray(effects, dtype=np.float64) / (lengths @ lengths))


def consistency(features: Array) -> float:
    """Whether a direction does the same to every seed: mean cosine to the centroid of the other seeds.

    Features are scaled to unit length; at each epsilon, those of a seed are compared with the mean over the
    other seeds.

    Args:
        features: What was done to the unshifted image. `[seeds, steps, width]`, float32, at least two seeds.

    Returns:
        -1 to 1; 1 = the same for every seed, 0 = nothing in common, or nothing at all.

    Raises:
        ShapeError: Another number of axes.

    Source:
        The leave-one-out centroid of GE2E, Wan et al. 2018, equation 8.
    """
    check_shape(features, "seeds steps width", "features")
    unit = _unit(features.astype(np.float64))
    others = _unit(unit.sum(axis=0, keepdims=True) - unit)
    return float((unit * others).sum(axis=-1).mean())


def centroids(features: Array) -> Floats:
    """What a direction looks like to the reconstructor: mean over seeds of features scaled to unit length.

    Args:
        features: `[seeds, steps, width]`, float32.

    Returns:
        `[steps, width]`, float64.
    """
    mean: Floats = _unit(features.astype(np.float64)).mean(axis=0)
    return mean


def likeness(of_directions: Sequence[Floats]) -> float | None:
    """What to set consistency against: mean cosine between centroids of different directions.

    Args:
        of_directions: Centroids of each direction. `[steps, width]`, float64.

    Returns:
        -1 to 1; None for fewer than two directions.
    """
    count = len(of_directions)
    if count < 2:
        return None
    unit = _unit(np.stack(of_directions))
    together = np.square(np.linalg.norm(unit.sum(axis=0), axis=1)) - np.square(unit).sum(axis=(0, 2))
    return float(together.mean() / (count * (count - 1)))


def smoothness(strips: Array) -> float:
    """How evenly, straight and without jumps pictures change along epsilon.

    With the change from one picture to the next as a vector, 1 minus how much consecutive changes differ:
    `sum |d[i+1] - d[i]| / sum (|d[i]| + |d[i+1]|)` over the steps of a strip; the mean over seeds.

    Args:
        strips: `[seeds, steps, channels, height, width]`, float, at least three steps, epsilon evenly spaced.
            Averaged over cells first: edges that move on by less than a cell then count as a smooth change.

    Returns:
        0 to 1; 1 = a linear fade, 0 = one jump, or back and forth; 1 where nothing changes.

    Raises:
        ShapeError: Another number of axes.
    """
    check_shape(strips, "seeds steps channels height width", "strips")
    changes = np.diff(strips.astype(np.float64), axis=1).reshape(len(strips), strips.shape[1] - 1, -1)
    lengths = np.linalg.norm(changes, axis=2)
    bends = np.linalg.norm(np.diff(changes, axis=1), axis=2).sum(axis=1)
    at_most = (lengths[:, :-1] + lengths[:, 1:]).sum(axis=1)
    return float(1 - np.divide(bends, at_most, out=np.zeros_like(bends), where=at_most > 0).mean())


def monotonicity(predicted: Array) -> float:
    """Whether a reconstructor sees epsilon grow along the strip: Kendall's rank correlation, mean over seeds.

    Args:
        predicted: Epsilon as the reconstructor sees it, epsilon ascending. `[seeds, steps]`, float32.

    Returns:
        -1 to 1: the share of pairs of pictures in the right order minus the share in the wrong one.

    Raises:
        ShapeError: Another number of axes.
    """
    check_shape(predicted, "seeds steps", "predicted")
    first, second = np.triu_indices(predicted.shape[1], k=1)
    return float(np.sign(predicted[:, second] - predicted[:, first]).mean())


def overlaps(chords: Array) -> Floats:
    """How far directions point the same way in the latent space.

    Args:
        chords: Each direction as one vector. `[num_directions, layers, dim]`, float32.

    Returns:
        Absolute cosine of each with each, 0 to 1; 0 with itself, and where only rounding keeps it from 0.
        `[num_directions, num_directions]`.
    """
    unit = _unit(chords.reshape(len(chords), -1).astype(np.float64))
    cosines = np.minimum(np.abs(unit @ unit.T), 1)
    np.fill_diagonal(cosines, 0)
    return np.where(cosines < _ROUNDING, 0.0, cosines)


def separation(images: Array, shifted: Array) -> float:
    """Whether a direction does one thing to the foreground and another to the background.

    One affine map of colours, the same for all seeds, explains some of the change. Two maps explain more,
    where each pixel takes the one that fits its neighbourhood of 5 x 5 better. The score is the share of what
    the one map leaves unexplained that the second one explains: `1 - r2 / r1`, squared errors, to which one
    grey level for each value is added. Neighbourhood and grey level keep noise from passing for structure.

    Args:
        images: Unshifted. `[seeds, channels, height, width]`, float32.
        shifted: The same seeds, shifted as far in one direction. `[seeds, channels, height, width]`, float32.

    Returns:
        0 to 1; high = the picture falls into two parts, and each changes in its own way, the same for all
        seeds, such as a background that becomes white behind an object that stays. 0 = one map does for all
        pixels, such as a change of light or hue.

    Raises:
        ShapeError: The two differ in shape.

    Source:
        Voynov et al. 2021 ("Big GANs are watching you"), script directions_scoring, which trains two colour
        maps over batches of images by Adam, lets each pixel choose for itself, and reports the error. Here
        they are found by alternating least squares from several beginnings, with offsets; pixels choose with
        their neighbours, since two maps at will explain a quarter of pure noise; and the error is set against
        that of one map: alone, it is low for every direction that changes little.
    """
    seeds, channels, height, width = images.shape
    sizes = {"seeds": seeds, "channels": channels, "height": height, "width": width}
    check_shape(shifted, "seeds channels height width", "shifted", **sizes)
    colours, wanted = _pixels(images), _pixels(shifted)
    inputs = np.concatenate([colours, np.ones((len(colours), 1))], axis=1)
    floor = wanted.size * _GREY_LEVEL**2
    one = _errors(inputs, wanted, _fit(inputs, wanted)).sum()
    if one <= floor:
        return 0.0
    change = np.linalg.norm(wanted - colours, axis=1)
    light = wanted.mean(axis=1)
    y, x = np.indices((height, width))
    near = np.hypot(y + 0.5 - height / 2, x + 0.5 - width / 2) < min(height, width) / 3
    beginnings = (change > change.mean(), light > light.mean(), np.tile(near.ravel(), seeds))
    two = min(_two_maps(inputs, wanted, second, (seeds, height, width)) for second in beginnings)
    return float(max(0.0, 1 - (two + floor) / (one + floor)))


def combined(figures: Sequence[float | None]) -> float:
    """One figure to sort by: the geometric mean, so that a direction that fails in one respect comes last.

    Args:
        figures: Each 0 to 1; below counts as 0. None is left out.

    Returns:
        0 to 1, higher = better; 0 if there are none.
    """
    known = [min(max(figure, 0.0), 1.0) for figure in figures if figure is not None]
    return math.prod(known) ** (1 / len(known)) if known else 0.0


def _unit(vectors: Floats) -> Floats:
    """Vectors `[..., width]` scaled to length 1; zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Floats = vectors / np.where(lengths > 1e-12, lengths, np.inf)
    return unit


def _pixels(images: Array) -> Floats:
    """`[seeds, channels, height, width]` -> `[pixels, channels]`."""
    return images.transpose(0, 2, 3, 1).reshape(-1, images.shape[1]).astype(np.float64)


def _fit(inputs: Floats, wanted: Floats) -> Floats:
    """The least-squares map; a hair of regularisation where pixels have one colour only."""
    square = inputs.T @ inputs
    square += np.eye(len(square)) * (1e-9 * np.trace(square) + 1e-12)
    return np.asarray(np.linalg.solve(square, inputs.T @ wanted), dtype=np.float64)


def _errors(inputs: Floats, wanted: Floats, colour_map: Floats) -> Floats:
    """Squared error of each pixel."""
    errors: Floats = ((inputs @ colour_map - wanted) ** 2).sum(axis=1)
    return errors


def _around(errors: Floats, shape: tuple[int, int, int]) -> Floats:
    """Mean over the neighbourhood of each pixel, as often repeated at the border as needed."""
    padded = np.pad(errors.reshape(shape), ((0, 0), (_REACH, _REACH), (_REACH, _REACH)), mode="edge")
    size = 2 * _REACH + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (1, size, size))
    means: Floats = windows.mean(axis=(-2, -1)).ravel()
    return means


def _two_maps(
    inputs: Floats, wanted: Floats, second: NDArray[np.bool_], shape: tuple[int, int, int]
) -> float:
    """Squared error of two maps, from which pixels begin with the second one: fit both, choose, again."""
    least = math.inf
    for _ in range(_MAX_ROUNDS):
        if not second.any() or second.all():
            break
        maps = _fit(inputs[~second], wanted[~second]), _fit(inputs[second], wanted[second])
        first_error, second_error = (_errors(inputs, wanted, colour_map) for colour_map in maps)
        chosen = _around(second_error - first_error, shape) < 0
        least = min(least, float(np.where(chosen, second_error, first_error).sum()))
        if np.array_equal(chosen, second):
            break
        second = chosen
    return least
