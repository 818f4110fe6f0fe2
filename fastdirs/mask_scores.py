"""Which direction of a bank removes the background: scores without labels, and a page that shows the best."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, StrictUndefined
from torch import Tensor

from fastdirs.directions import DirectionBank
from fastdirs.errors import SelectionError
from fastdirs.images import Pixels, encode, grid, strip, to_uint8
from fastdirs.manifest import Json, atomic_folder, manifest, write_bytes, write_json
from fastdirs.mask_filters import Filters, Masks
from fastdirs.mask_page import data_url, enlarged, faded
from fastdirs.mask_rules import MASK_RULES
from fastdirs.runtime import Runtime
from fastdirs.separation import polarity, separation
from fastdirs.throughput import stream

KIND, RANKING_FILE, PAGE_FILE, SHEET_FILE = "mask-ranking", "ranking.json", "index.html", "ranking.png"
_SEEDS, _SHOWN_SEEDS, _SHOWN = 32, 6, 20
# Of the suggested range of a direction: far enough to see what it does, and near enough to be a picture.
_REACHES = (1 / 2, 2 / 3)


@dataclass(frozen=True, kw_only=True)
class Remover:
    """A direction as a background remover, with the sign, length and rule at which it is best.

    Attributes:
        direction: Index in the bank.
        label: Its name.
        epsilon: Signed length.
        rule: Registered name of the rule.
        score: separation x polarity x stability, 0 to 1.
        separation: Share of the response's variance between object and background, less what the same mask
            separates without a shift; mean over seeds, 0 to 1.
        polarity: How much more of the mask lies in the middle than at the edge, mean over seeds, 0 to 1.
        stability: Share of seeds at which the mask is of an accepted area and lies in the middle, 0 to 1.
        area: Mean share of the image in the mask.
    """

    direction: int
    label: str
    epsilon: float
    rule: str
    score: float
    separation: float
    polarity: float
    stability: float
    area: float


@dataclass(frozen=True)
class Ranking:
    """All directions of a bank, best first.

    Attributes:
        removers: One for each direction.
        images: Unshifted images to show. `[seeds, height, width, channels]`, uint8.
        masks: Of the removers that are shown, on these images: `[removers, seeds, height, width]`, bool.
        content: What was ranked, and how.
    """

    removers: list[Remover]
    images: Pixels
    masks: Masks
    content: Json


def rank_removers(
    runtime: Runtime,
    bank: DirectionBank,
    *,
    epsilon: float | None = None,
    rules: Sequence[str] | None = None,
    filters: Filters | None = None,
    psi: float = 1.0,
    cutoff: int | None = None,
    c: int | None = None,
    num_seeds: int = _SEEDS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Ranking:
    """Score every direction of a bank, with both signs, as a background remover. No label is used.

    Args:
        runtime: The generator.
        bank: Its directions.
        epsilon: Length of the shifts; None tries a half and two thirds of each direction's suggested range.
        rules: Registered names of mask rules to try; None = all.
        filters: What areas are accepted.
        psi: Truncation, 1 = off.
        cutoff: How many of the first layers to truncate; None = all.
        c: Class of all images; None if unconditional.
        num_seeds: Images that the scores are means over: those of the seeds 0, 1, ...
        progress: Called with directions done and in all.

    Raises:
        BankError: The bank belongs to another generator.
        SelectionError: An epsilon, psi, class or number of seeds out of range.
        UnknownNameError: No such rule.

    Source:
        Otsu's criterion on the response, times where the mask lies (see `separation`). Voynov et al. 2021
        score by how well two colour maps explain the shifted image; a mask is not looked at there.
    """
    bank.check_generator(runtime.generator)
    if not 2 <= num_seeds <= 4096:
        raise SelectionError(f"{num_seeds} seeds are out of range. Expected 2 to 4096.")
    accepted = filters or Filters()
    named = MASK_RULES.names() if rules is None else list(dict.fromkeys(rules))
    plugins = {name: MASK_RULES.load(name) for name in named}
    latents = runtime.latents_of(psi, cutoff, c)(range(num_seeds))
    unshifted = _rendered(runtime, latents, c)
    best: list[tuple[Remover, Masks]] = []
    for direction in range(len(bank)):
        found: list[tuple[Remover, Masks]] = []
        for length in _lengths(bank, direction, epsilon):
            both = {
                sign: _rendered(runtime, latents + bank.shift(direction, sign * length), c)
                for sign in (1, -1)
            }
            for name, plugin in plugins.items():
                for sign in (1, -1):
                    shifted = [both[sign * each] for each in plugin.signs]
                    mask = plugin.mask(unshifted, shifted, plugin.threshold)
                    with_shift = plugin.response(unshifted, shifted)
                    without = plugin.response(unshifted, [unshifted] * len(shifted))
                    figures = _figures(with_shift, without, mask, accepted)
                    remover = Remover(
                        direction=direction, label=bank.labels[direction], epsilon=sign * length, rule=name,
                        **figures,
                    )  # fmt: skip
                    found.append((remover, mask[:_SHOWN_SEEDS].numpy()))
        # The first of equals: the shorter shift.
        best.append(max(found, key=lambda each: each[0].score))
        progress(direction + 1, len(bank))
    best.sort(key=lambda each: -each[0].score)
    content = {
        "generator": runtime.generator, "bank": {"method": bank.method, "sha256": bank.sha256},
        "rules": named, "filters": accepted.to_json(), "seeds": num_seeds, "psi": psi, "cutoff": cutoff,
        "class": c, "runtime": runtime.describe(),
    }  # fmt: skip
    return Ranking(
        [remover for remover, _ in best],
        to_uint8(unshifted[:_SHOWN_SEEDS]),
        np.stack([masks for _, masks in best[:_SHOWN]]),
        content,
    )


def save_ranking(ranking: Ranking, out: str | Path, command: str, force: bool = False) -> Path:
    """Write a ranking as a page, a picture sheet and JSON.

    Args:
        ranking: What was found.
        out: The folder.
        command: How masks are made with the best one, to be shown.
        force: Replace an earlier ranking.

    Returns:
        The page.

    Raises:
        OutputError: The folder exists or cannot be written.
    """
    rows = [_row(ranking.images, masks) for masks in ranking.masks]
    content = {**ranking.content, "removers": [asdict(remover) for remover in ranking.removers]}
    # Beside this file.
    text = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(text)
    shown = [
        {"picture": data_url(row), "remover": remover}
        for row, remover in zip(rows, ranking.removers, strict=False)
    ]
    with atomic_folder(Path(out), RANKING_FILE, KIND, force) as folder:
        write_bytes(folder / SHEET_FILE, encode(grid(rows), "png"))
        rest = ranking.removers[len(shown) :]
        page = template.render(content=content, shown=shown, rest=rest, command=command)
        write_bytes(folder / PAGE_FILE, page.encode())
        write_json(folder / RANKING_FILE, manifest(KIND, content))
    return Path(out) / PAGE_FILE


def _row(images: Pixels, masks: Masks) -> Pixels:
    """Images and what the masks keep of them, in turns: `[height, width, channels]`, uint8."""
    pairs = np.stack([images, faded(images, masks)], axis=1)
    return strip(enlarged(pairs.reshape(-1, *images.shape[1:])))


def _lengths(bank: DirectionBank, direction: int, epsilon: float | None) -> list[float]:
    if epsilon is not None:
        bank.shift(direction, epsilon)
        return [abs(epsilon)]
    low, high = bank.ranges[direction].tolist()
    return [round(reach * min(-low, high), 3) for reach in _REACHES]


def _figures(with_shift: Tensor, without: Tensor, mask: Tensor, filters: Filters) -> dict[str, float]:
    soft = mask.float()
    area = soft.mean(dim=(1, 2))
    # An image that is light in the middle is separated already: what counts is what the shift adds.
    apart = (separation(with_shift, soft) - separation(without, soft)).clamp(min=0)
    central = polarity(soft).clamp(min=0)
    fits = (area > filters.min_area) & ((area < filters.max_area) | (filters.max_area == 1)) & (central > 0)
    values: dict[str, Any] = {
        "separation": apart.mean(), "polarity": central.mean(), "stability": fits.float().mean(),
        "area": area.mean(),
    }  # fmt: skip
    figures = {name: round(float(value), 4) for name, value in values.items()}
    score = figures["separation"] * figures["polarity"] * figures["stability"]
    return {**figures, "score": round(score, 4)}


def _rendered(runtime: Runtime, latents: Tensor, c: int | None) -> Tensor:
    """Images of latents, in batches of the usual size: `[images, channels, height, width]`, float32."""
    size = runtime.usual_batch
    rows = np.minimum(np.arange(-(-len(latents) // size) * size), len(latents) - 1).reshape(-1, size)
    batches = (runtime.inputs(latents[chosen].numpy(), c) for chosen in rows)
    images = np.concatenate(list(stream(runtime.session, batches)))
    return torch.from_numpy(images[: len(latents)])
