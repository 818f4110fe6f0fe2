"""DVN: whether what a direction changes in generated pictures is a property that real ones have too."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.errors import check_shape

STEPS = 50
BATCH = 32
NUM_TRAINING = STEPS * BATCH
"""Pictures that one classifier is trained on, each once."""
NUM_FRESH = 10 * BATCH
"""Fakes that the second classifier is judged on."""
_SMALLEST, _LARGEST = 32, 64

Fakes = Callable[[int, int], tuple[Tensor, Tensor]]
"""(first seed, count) -> pictures `[count, channels, side, side]`, float32, and which way each was shifted,
0 or 1, `[count]`, int64."""


def side_of(resolution: int) -> int:
    """Height and width, in pixels, of the pictures that the classifiers see: 32 to 64."""
    return min(max(resolution, _SMALLEST), _LARGEST)


def resize(images: Tensor) -> Tensor:
    """Pictures in the size that the classifiers see.

    Args:
        images: `[batch, channels, height, width]`, float32.

    Returns:
        `[batch, channels, side, side]`, float32.

    Raises:
        ShapeError: Another number of axes.
    """
    check_shape(images, "batch channels height width", "images")
    side = side_of(images.shape[-1])
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def naturalness(fakes: Fakes, real: Tensor, seed: int = 0) -> float:
    """Direction variation naturalness of one direction.

    A classifier learns from fakes which way they were shifted, then says so of real pictures; a second one
    learns from these alone, and is asked about fresh fakes. Its accuracy is high only if what the direction
    changes varies among real pictures too.

    Args:
        fakes: Shifted pictures and their signs; seeds 0 to `NUM_TRAINING + NUM_FRESH - 1` are asked for.
        real: Real pictures. `[NUM_TRAINING, channels, side, side]`, float32 in [-1, 1].
        seed: Of the classifiers' weights.

    Returns:
        0 to 1; 0.5 = chance.

    Raises:
        ShapeError: Another number of real pictures.

    Source:
        Voynov & Babenko 2020, section 4.1; the classifier, its 50 steps of Adam at 1e-3 and the 10 batches of
        fakes to judge by are those of the authors' code. Differs: batches of 32 in both trainings, as many
        fakes of either sign, and pictures of 32 to 64 pixels, whatever the generator's.
    """
    check_shape(real, "pictures channels height width", "real", pictures=NUM_TRAINING)
    first = _trained(*fakes(0, NUM_TRAINING), seed)
    second = _trained(real, _labels(first, real), seed + 1)
    fresh, signs = fakes(NUM_TRAINING, NUM_FRESH)
    return float((_labels(second, fresh) == signs).float().mean())


def _classifier(channels: int) -> nn.Sequential:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 5), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(channels, 6), nn.MaxPool2d(2), *block(6, 16), nn.MaxPool2d(2), *block(16, 120),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(120, 84), nn.BatchNorm1d(84), nn.ReLU(),
        nn.Linear(84, 2),
    )  # fmt: skip


def _trained(images: Tensor, labels: Tensor, seed: int) -> nn.Sequential:
    """A classifier that saw each picture once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = _classifier(images.shape[1])
    optimizer = torch.optim.Adam(classifier.parameters(), 1e-3)
    for batch, wanted in zip(_batches(images), _batches(labels), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(classifier(batch), wanted).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return classifier.eval()


@torch.no_grad()
def _labels(classifier: nn.Sequential, images: Tensor) -> Tensor:
    return torch.cat([classifier(batch).argmax(dim=1) for batch in _batches(images)])


def _batches(rows: Tensor) -> tuple[Tensor, ...]:
    return torch.split(rows, BATCH)
