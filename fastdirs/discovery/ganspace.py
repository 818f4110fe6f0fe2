"""GANSpace: principal components of w, or of what a stage computes, led back to the latents."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from fastdirs.discovery import Found, Method, Search
from fastdirs.errors import SelectionError
from fastdirs.generators import Generator, State

_AUTO = -1
_OF_W, _OF_FEATURES = 10_000, 4_000
_BATCH = 64
# Half a GiB in float32; the square matrix of the smaller side takes at most twice as much.
_MAX_VALUES = 2**27
# Of the largest eigenvalue: below it is nothing but rounding.
_NO_VARIANCE = 1e-10


@dataclass(frozen=True)
class Settings:
    """Options of GANSpace.

    Attributes:
        stage: The stage whose output is decomposed; -1 = w itself where the latents are w, else the first
            stage that reads an edited layer and computes as many numbers as there are to be directions.
        samples: How many images' worth of w or features; 0 = 10,000 of w, 4,000 of features. The work grows
            with the cube of samples or of features, whichever are fewer: 2,000 take seconds, 8,000 minutes.
        seed: Samples are those of the seeds from `seed * samples` on.
        c: Class of all samples; means nothing for unconditional families.

    Raises:
        SelectionError: A single sample, a negative seed, or a stage below -1.
    """

    stage: int = field(default=_AUTO, metadata={"help": "output to decompose; -1 = w, or the first stage"})
    samples: int = field(default=0, metadata={"help": "how many (0 = 10,000 of w, 4,000 of features)"})
    seed: int = field(default=0, metadata={"help": "another one draws other samples"})
    c: int = field(default=0, metadata={"help": "class of all samples, if there are classes"})

    def __post_init__(self) -> None:
        if self.samples < 0 or self.samples == 1:
            raise SelectionError(
                f"samples={self.samples} is out of range. Expected 2 or more, or 0 for auto."
            )
        if self.seed < 0:
            raise SelectionError(f"seed={self.seed} is out of range. Expected 0 or more.")
        if self.stage < _AUTO:
            raise SelectionError(f"stage={self.stage} is out of range. Expected 0 or more, or -1 for auto.")


def find(search: Search, settings: Settings) -> Found:
    """Principal components, largest share of the variance first, as directions of the latents.

    A component of w is a direction as it is. Along one of a stage's features, the latents that go with it are
    found by least squares: coordinates along components of the same samples are uncorrelated, so that each
    direction is what its coordinate alone has in common with the latents. Components with equal shares are
    any rotation of each other, and components that a curved stage adds may lead back to one direction more
    than once.

    Args:
        search: A generator, the latent layers, and K.
        settings: Which stage, how many samples.

    Returns:
        Scores are shares of the variance that the components explain, in [0, 1].

    Raises:
        SelectionError: No such stage or class, a stage before any edited layer is read, samples that do not
            fit into memory, or variance along fewer axes than directions.

    Source:
        Haerkoenen et al., NeurIPS 2020 (arXiv:2004.02546), section 2.2. Differs: exact, where the authors'
        code runs an incremental PCA; the same samples are decomposed and led back; where layers are
        parts of z, those that the stage has not read take no part.
    """
    stage = _chosen_stage(search, settings)
    settings = replace(settings, samples=settings.samples or (_OF_W if stage is None else _OF_FEATURES))
    latents, values = _sample(search, settings, stage)
    wide = values.shape[1] > values.shape[0]
    shares, axes = _principal_axes(values.T if wide else values, search.num_directions)
    if len(shares) < search.num_directions:
        raise SelectionError(
            f"{settings.samples} samples of {_what(stage)} of {search.generator.provenance.name} vary along "
            f"{len(shares)} axes, so that ganspace finds no more than {len(shares)} directions there, not "
            f"{search.num_directions}. Ask for fewer, or choose a later stage or more samples."
        )
    # Up to their lengths, the coordinates of the samples along each component.
    along = axes if wide else torch.cat([rows.double() @ axes for rows in _blocks(values)])
    vectors = torch.nn.functional.normalize(along.T @ latents.double(), dim=1)
    return Found(vectors=vectors, scores=shares, settings={**asdict(settings), "decomposed": _what(stage)})


def _what(stage: int | None) -> str:
    return "w" if stage is None else f"stage {stage}"


def _chosen_stage(search: Search, settings: Settings) -> int | None:
    """The stage to decompose; None = w itself."""
    generator, last = search.generator, len(search.generator.stages) - 1
    if settings.stage > last:
        raise SelectionError(
            f"There is no stage {settings.stage}. {generator.provenance.name} has stages 0 to {last}."
        )
    if settings.stage == _AUTO and generator.space != "z":
        return None
    first = next(stage for stage in range(last + 1) if _seen(search, stage))
    if settings.stage == _AUTO:
        large = (s for s in range(first, last) if _width(search, settings, s) >= search.num_directions)
        return next(large, last)
    if settings.stage < first:
        raise SelectionError(
            f"No stage up to {settings.stage} of {generator.provenance.name} reads layers "
            f"{list(search.space.layers)}. Choose a stage from {first} to {last}, or other layers."
        )
    return settings.stage


def _seen(search: Search, stage: int) -> set[int]:
    """Edited layers whose content the output of a stage depends on."""
    generator, layers = search.generator, set(search.space.layers)
    # Elsewhere every layer holds the same.
    return layers.intersection(*[set().union(*generator.reads[: stage + 1])] if generator.chunked else [])


def _width(search: Search, settings: Settings, stage: int) -> int:
    """Numbers that a stage computes for one image."""
    latents = _latents(search, settings, range(1))
    return _features(search.generator, latents, settings, stage).shape[1]


def _latents(search: Search, settings: Settings, seeds: range) -> Tensor:
    generator = search.generator
    with torch.no_grad():
        return generator.mapping(generator.sample(seeds), settings.c if generator.c_dim else None).float()


def _features(generator: Generator, latents: Tensor, settings: Settings, stage: int) -> Tensor:
    """What a stage computes, without the image or class that it hands on: `[batch, features]`, float32."""
    c = settings.c if generator.c_dim else None
    state: State = generator.class_weights(c, len(latents), "synthesis")
    with torch.no_grad():
        for module in list(generator.stages)[: stage + 1]:
            state = module(state, latents)
    features = state[0] if isinstance(state, tuple) else state
    assert features is not None
    return features.flatten(1).float()


def _sample(search: Search, settings: Settings, stage: int | None) -> tuple[Tensor, Tensor]:
    """Latents `[samples, size]` and what is decomposed `[samples, features]`, both centred, float32."""
    count, first = settings.samples, settings.seed * settings.samples
    width = search.space.size if stage is None else _width(search, settings, stage)
    if count * width > _MAX_VALUES:
        fits = _MAX_VALUES // width
        raise SelectionError(
            f"{count:,} samples of {_what(stage)} of {search.generator.provenance.name} are {width:,} "
            f"numbers each, {count * width * 4 / 2**30:,.1f} GiB in all, and {_MAX_VALUES * 4 / 2**30:g} GiB "
            f"are allowed. Choose samples={fits} or fewer, or an earlier stage."
        )
    kept = sorted(_seen(search, len(search.generator.stages) if stage is None else stage))
    latents, values = (
        torch.empty(count, search.space.size),
        torch.empty(count, width if stage is not None else 0),
    )
    for start in range(0, count, _BATCH):
        rows = slice(start, min(start + _BATCH, count))
        drawn = _latents(search, settings, range(first + rows.start, first + rows.stop))
        if stage is not None:
            values[rows] = _features(search.generator, drawn, settings, stage)
        part = torch.zeros_like(drawn)
        part[:, kept] = drawn[:, kept]
        latents[rows] = search.space.gather(part)
        search.progress(rows.stop, count)
    latents -= latents.mean(dim=0)
    return latents, latents if stage is None else values.sub_(values.mean(dim=0))


def _principal_axes(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Shares of the variance `[found]` and axes `[columns, found]` of centred rows, at most `count`."""
    square = torch.zeros(values.shape[1], values.shape[1], dtype=torch.float64)
    for rows in _blocks(values):
        block = rows.double()
        square.addmm_(block.T, block)
    eigenvalues, eigenvectors = torch.linalg.eigh(square)
    found = min(count, int((eigenvalues > _NO_VARIANCE * eigenvalues[-1]).sum()))
    shares = eigenvalues / eigenvalues.sum()
    return shares.flip(0)[:found], eigenvectors.flip(1)[:, :found]


def _blocks(values: Tensor) -> Iterator[Tensor]:
    """Some rows at a time, so that only these are ever held in float64."""
    for start in range(0, len(values), 1024):
        yield values[start : start + 1024]


METHOD = Method(
    summary="principal components of w or of features (Härkönen et al. 2020)", settings=Settings, find=find
)
