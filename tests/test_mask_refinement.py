import threading

import numpy as np
import pytest

from fastdirs.mask_refinement import likely, refine


def scene(channels: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A red disc on blue, with noise, and its mask."""
    down, across = np.mgrid[:48, :48]
    disc = (down - 26) ** 2 + (across - 22) ** 2 < 13**2
    colours = np.where(disc[..., None], (190, 60, 50), (40, 70, 160))[..., :channels]
    noise = np.random.default_rng(seed).normal(0, 12, colours.shape)
    return np.clip(colours + noise, 0, 255).astype(np.uint8), disc


def rough(disc: np.ndarray) -> np.ndarray:
    """A saliency that is right on the whole, and six pixels off: `[1, 48, 48]`."""
    moved = np.roll(disc, (5, -4), axis=(0, 1)).astype(np.float32)
    return (0.15 + 0.7 * moved)[None]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_contour_goes_to_the_edge(channels: int) -> None:
    image, disc = scene(channels)
    masks, agreement = refine(image[None], rough(disc))
    before, after = rough(disc)[0] > 0.5, masks[0]
    iou = [(mask & disc).sum() / (mask | disc).sum() for mask in (before, after)]
    assert iou[0] < 0.65
    assert iou[1] > 0.95
    assert agreement[0] == pytest.approx(iou[0], abs=0.03)


def test_equal_pictures_give_equal_masks_on_any_thread_and_in_any_batch() -> None:
    image, disc = scene()
    other, _ = scene(seed=5)
    alone, _ = refine(image[None], rough(disc))
    found: list[np.ndarray] = []

    def work() -> None:
        masks, _ = refine(np.stack([other, image, other]), np.repeat(rough(disc), 3, axis=0))
        found.append(masks[1])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(mask, alone[0]) for mask in found)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.7, 1.0])
def test_where_there_is_one_side_only(value: float) -> None:
    image, _ = scene()
    masks, agreement = refine(image[None], np.full((1, 48, 48), value, np.float32))
    assert masks.mean() == (value > 0.5)
    assert agreement[0] == (value > 0.5)


def test_half_of_what_is_likely_is_the_place() -> None:
    saliency = np.array([[[0, 255]]], dtype=np.uint8)
    prior = np.array([[0.2, 0.8]], dtype=np.float32)
    assert likely(saliency, prior) == pytest.approx(np.array([[[0.1, 0.9]]]))
