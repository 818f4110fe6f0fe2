"""A direction that removes the background, sought for that: what becomes lighter is to be the object."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdirs.discovery import Found, Method, Search
from fastdirs.errors import SelectionError, TrainingError
from fastdirs.generators import Generator
from fastdirs.latents import MAX_EPSILON
from fastdirs.machine import bf16_unit
from fastdirs.mask_rules import grey
from fastdirs.pairs import FIRST_TRAINING_SEED
from fastdirs.separation import polarity, separation
from fastdirs.training.frozen import FrozenGenerator

# Of the response, in units of images in [-1, 1]: how sharp the mask is that the criterion sees.
_SOFTNESS = 0.1
# Relative spread of the lengths: a direction is to hold for more than one.
_SPREAD = 0.25
_JUDGED = 64
_SEEDS_APART = 10**9


@dataclass(frozen=True)
class Settings:
    """Options of the search.

    Attributes:
        epsilon: Length of the shift that is to remove the background.
        steps: Updates of each direction.
        batch: Images in a step.
        lr: Learning rate of Adam.
        seed: Another one begins elsewhere and sees other images.

    Raises:
        SelectionError: A value out of range.
    """

    epsilon: float = field(default=4.0, metadata={"help": "length of the shift that removes the background"})
    steps: int = field(default=300, metadata={"help": "updates of each direction"})
    batch: int = field(default=24, metadata={"help": "images in a step"})
    lr: float = field(default=0.02, metadata={"help": "learning rate of Adam"})
    seed: int = field(default=0, metadata={"help": "another one begins elsewhere"})

    def __post_init__(self) -> None:
        limits = {
            "epsilon": (1e-3, MAX_EPSILON), "steps": (1, 10**6), "batch": (2, 4096), "lr": (1e-6, 10),
            "seed": (0, 2**31),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise SelectionError(
                    f"{name}={getattr(self, name):g} is out of range. Expected {low:g} to {high:g}."
                )


def find(search: Search, settings: Settings) -> Found:
    """Directions along which the middle of the picture becomes lighter and its edge does not.

    Each is a unit vector, at right angles to those before it. The criterion is the separation of the change
    of grey by a soft mask of it, plus the polarity of that mask; see `separation`.

    Args:
        search: A generator with gradients, the latent layers and K.
        settings: Length, steps.

    Returns:
        Scores are the criterion on images that no step has seen, in [-1, 2].

    Raises:
        TrainingError: The criterion is no number any more.

    Source:
        Melas-Kyriazi et al. 2021 (arXiv:2105.08127): one unit vector, optimised with Adam over random images
        and lengths instead of picked from a bank. Differs: their losses (edges kept, values driven apart) are
        replaced by the two terms above, which say what a mask is to be.
    """
    generator = search.generator
    precision = "bf16" if bf16_unit() and "bf16" in generator.precisions else "f32"
    synthesis = FrozenGenerator(generator, torch.device("cpu"), precision)
    random = torch.Generator().manual_seed(settings.seed)
    found: list[Tensor] = []
    scores: list[Tensor] = []
    total = search.num_directions * settings.steps
    for _ in range(search.num_directions):
        vector = torch.randn(search.space.size, generator=random).requires_grad_()
        optimizer = torch.optim.Adam([vector], settings.lr)
        for step in range(settings.steps):
            done = (len(found) * settings.steps + step) * settings.batch
            first = FIRST_TRAINING_SEED + settings.seed * _SEEDS_APART + done
            lengths = 1 + _SPREAD * torch.randn(settings.batch, generator=random)
            seeds = range(first, first + settings.batch)
            value = _criterion(search, synthesis, _free(vector, found), settings.epsilon * lengths, seeds)
            if not torch.isfinite(value):
                raise TrainingError(f"The criterion is not finite any more at step {step}. Lower lr.")
            optimizer.zero_grad()
            (-value).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            search.progress(len(found) * settings.steps + step + 1, total)
        with torch.no_grad():
            found.append(_free(vector, found))
            lengths = torch.full((_JUDGED,), settings.epsilon)
            scores.append(_criterion(search, synthesis, found[-1], lengths, range(_JUDGED)))
    order = torch.stack(scores).argsort(descending=True)
    return Found(vectors=torch.stack(found)[order], scores=torch.stack(scores)[order])


def _free(vector: Tensor, found: list[Tensor]) -> Tensor:
    """Unit length, at right angles to those found."""
    for other in found:
        vector = vector - (vector @ other) * other
    unit: Tensor = vector / vector.norm()
    return unit


def _criterion(
    search: Search, synthesis: FrozenGenerator, vector: Tensor, lengths: Tensor, seeds: range
) -> Tensor:
    """Higher = the rather is what becomes lighter an object. A number."""
    generator = search.generator
    latents, c = synthesis.latents(generator.sample(seeds), generator.sample_classes(seeds))
    with torch.no_grad():
        before = grey(synthesis(latents, c).float())
    after = grey(synthesis(latents + search.space.spread(lengths[:, None] * vector), c).float())
    # Noise of single pixels is no object.
    response = F.avg_pool2d((after - before)[:, None], 3, 1, 1)[:, 0]
    mask = torch.sigmoid(response / _SOFTNESS)
    value: Tensor = separation(response, mask).mean() + polarity(mask).mean()
    return value


def _refuses(generator: Generator) -> str:
    return "" if generator.differentiable else "its images have no gradients with respect to latents."


METHOD = Method(
    summary="a direction along which the object, not the background, becomes lighter (after Melas-Kyriazi et "
    "al. 2021)",
    settings=Settings,
    find=find,
    refuses=_refuses,
    seeks="background removal",
)
