"""What methods that train have in common: settings -> a trained pair -> what was found."""

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor, nn

from fastdirs.deformators import Deformator
from fastdirs.discovery import Found, Search
from fastdirs.generators import Generator
from fastdirs.machine import process_rank
from fastdirs.pairs import visibility
from fastdirs.reconstructors import build_reconstructor, save_reconstructor
from fastdirs.training.loop import train
from fastdirs.training.settings import TrainingSettings
from fastdirs.training.state import RECONSTRUCTOR_FILE

NUM_KNOTS = 25


def learn(
    search: Search,
    method: str,
    settings: TrainingSettings,
    build: Callable[[], Deformator],
    centroid: Callable[[], nn.Module] | None = None,
    centroid_weight: float = 0.0,
    per_direction: int = 1,
) -> Found:
    """Train a deformator and a reconstructor; directions that are seen and recognised best come first.

    Args:
        search: What is asked for.
        method: Registered name.
        settings: Resolved.
        build: Makes the deformator; random numbers are seeded.
        centroid: Makes the centroid loss.
        centroid_weight: Its weight.
        per_direction: Pairs of each direction in a batch.

    Raises:
        TrainingError: The loss is no number any more.
        OutputError: The folder holds something else, or a run with other settings.
        SelectionError: A setting out of range.
        UnknownNameError: No such deformator or reconstructor.
    """
    generator, space, count = search.generator, search.space, search.num_directions
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        deformator = build()
        reconstructor = build_reconstructor(
            settings.reconstructor, count, generator.img_channels, settings.resize
        )
        loss = None if centroid is None else centroid()
    asked = {
        "method": method,
        "generator": {key: generator.identity()[key] for key in ("weights_sha256", "config_sha256")},
        "directions": count,
        "layers": list(space.layers),
        # A run may be continued to more steps than were asked for at first.
        "settings": {name: value for name, value in asdict(settings).items() if name != "steps"},
    }
    held_out = train(
        space, deformator, reconstructor, settings, folder=search.folder, asked=asked, centroid=loss,
        centroid_weight=centroid_weight, per_direction=per_direction, progress=search.progress,
        report=search.report,
    )  # fmt: skip
    # A direction that changes nothing is recognised by just that: accuracy alone would put it first.
    scores = held_out.accuracies * visibility(held_out.changes)
    order = scores.argsort(descending=True, stable=True)
    deformator, reconstructor = deformator.cpu(), reconstructor.cpu()
    reconstructor.reorder(order)
    vectors, knots, lengths = _vectors(deformator, settings.shift_scale)
    found = Found(vectors=vectors[order], knots=knots, scores=scores[order], settings=asdict(settings))
    bank = space.bank(found.vectors, found.scores, method, {}, knots)
    # The bank fixes signs; the reconstructor was taught the others.
    given = space.spread(found.vectors)
    turned = (bank.directions != given).flatten(1).any(dim=1)
    lengths = lengths[order] * torch.where(turned, -1.0, 1.0)
    if search.folder is not None and process_rank() == 0:
        content = {
            "generator": generator.identity(),
            "shifts": asdict(settings.shifts),
            "lengths": lengths.tolist(),
            "training": {"seed": settings.seed, "batch": settings.batch, "steps": settings.steps},
            "bank_sha256": bank.sha256,
        }
        save_reconstructor(reconstructor, search.folder / RECONSTRUCTOR_FILE, content)
    return found


def _vectors(deformator: Deformator, reach: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """Unit vectors and their lengths before, or paths, their knots and ones."""
    if deformator.straight:
        vectors = deformator.paths(torch.ones(1))[:, 0]
        lengths = vectors.norm(dim=1)
        return vectors / lengths[:, None], None, lengths
    # Half of them mirrored: a path is turned by reading it backwards, and 0 has to be exact.
    half = torch.linspace(0, reach, NUM_KNOTS // 2 + 1)
    knots = torch.cat([-half[1:].flip(0), half])
    paths = deformator.paths(knots)
    return paths, knots, torch.ones(len(paths))


def refuses(generator: Generator) -> str:
    """Why a method that trains does not apply to a generator; "" if it does."""
    if generator.differentiable:
        return ""
    return "it trains through the generator, which exists as a graph without gradients."
