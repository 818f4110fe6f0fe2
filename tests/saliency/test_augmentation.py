"""Images and masks changed at random, alike."""

from dataclasses import replace

import torch
from torch import Tensor

from fastdirs.saliency.augmentation import augment
from fastdirs.saliency.settings import SaliencySettings

ALL = slice(None)
OFF = SaliencySettings(batch=16)


def scenes() -> tuple[Tensor, Tensor]:
    """Bright boxes on dark noise, and where they are; none in the middle, so that a mirror image differs."""
    masks = torch.zeros(16, 32, 32)
    for row in range(16):
        masks[row, 4 + row // 2 : 14 + row // 2, 3:15] = 1
    noise = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return (masks[:, None] * 1.5 - 0.8 + 0.2 * (noise - 0.5)), masks


def test_nothing_changes_where_all_is_off() -> None:
    images, masks = scenes()
    found = augment(images, masks, ALL, 3, OFF)
    assert torch.equal(found[0], images)
    assert torch.equal(found[1], masks)


def test_about_half_are_mirrored() -> None:
    images, masks = scenes()
    found, found_masks = augment(images, masks, ALL, 3, replace(OFF, flip=True))
    mirrored = 0
    for row in range(16):
        same = torch.allclose(found[row], images[row], atol=1e-5)
        turned = torch.allclose(found[row], images[row].flip(-1), atol=1e-5)
        assert same != turned
        mirrored += turned
        assert torch.equal(found_masks[row], masks[row].flip(-1) if turned else masks[row])
    assert 3 <= mirrored <= 13


def test_masks_stay_with_their_objects() -> None:
    images, masks = scenes()
    found, found_masks = augment(images, masks, ALL, 3, replace(OFF, flip=True, zoom=1.5))
    assert found.shape == images.shape
    assert set(found_masks.unique().tolist()) == {0, 1}
    agreement = ((found.mean(1) > 0) == (found_masks > 0.5)).float().mean()
    assert agreement > 0.97
    # Some became larger, some smaller, about as often.
    change = found_masks.sum((1, 2)) / masks.sum((1, 2))
    assert change.max() > 1.2
    assert change.min() < 0.9
    # A factor near 1 is rare, and without a mirror changes no pixel.
    assert ((found_masks - masks).abs().sum((1, 2)) > 0).sum() >= 14


def test_colours_change_and_masks_do_not() -> None:
    images, masks = scenes()
    found, found_masks = augment(images, masks, ALL, 3, replace(OFF, jitter=0.3))
    assert torch.equal(found_masks, masks)
    changes = (found.mean((1, 2, 3)) - images.mean((1, 2, 3))).abs()
    assert changes.max() > 0.1
    assert changes.max() < 0.35
    assert found.abs().max() <= 1


def test_a_change_depends_on_seed_step_and_row_alone() -> None:
    images, masks = scenes()
    settings = replace(OFF, flip=True, zoom=1.5, jitter=0.3)
    whole, _ = augment(images, masks, ALL, 3, settings)
    torch.rand(3)
    again, _ = augment(images, masks, ALL, 3, settings)
    assert torch.equal(whole, again)
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        part, _ = augment(images[rows], masks[rows], rows, 3, settings)
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-6)
    assert not torch.allclose(augment(images, masks, ALL, 4, settings)[0], whole)
    assert not torch.allclose(augment(images, masks, ALL, 3, replace(settings, seed=9))[0], whole)


def test_grey_images() -> None:
    images, masks = scenes()
    settings = replace(OFF, flip=True, zoom=1.5, jitter=0.3)
    assert augment(images[:, :1], masks, ALL, 3, settings)[0].shape == (16, 1, 32, 32)
