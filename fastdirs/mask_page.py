"""How a dataset of masks looks: a page with figures and first pairs, and a sheet of what was rejected."""

import base64
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from fastdirs.images import Pixels, encode, grid, strip, to_uint8
from fastdirs.manifest import write_bytes
from fastdirs.mask_dataset import MaskDataset
from fastdirs.mask_filters import Masks
from fastdirs.mask_pairs import PairSource

PAGE_FILE = "index.html"
_SHOWN, _REJECTED = 48, 8
# Pixels; smaller images are enlarged by whole numbers.
_TILE = 96
_FADED = 0.8


def faded(images: Pixels, masks: Masks) -> Pixels:
    """Images whose background is nearly white, so that one sees what a mask holds.

    Args:
        images: `[batch, height, width, channels]`, uint8.
        masks: `[batch, height, width]`, bool, True = salient object.

    Returns:
        Like the images.
    """
    away = images + (255.0 - images) * _FADED
    return np.where(masks[..., None], images, away.astype(np.uint8))


def enlarged(images: Pixels, size: int = _TILE) -> Pixels:
    """Images `[batch, height, width, channels]`, each pixel repeated until they are about so large."""
    times = max(1, size // images.shape[1])
    return images.repeat(times, axis=1).repeat(times, axis=2)


def write_page(dataset: MaskDataset) -> Path:
    """Write the page of a dataset, and return it; equal datasets give equal bytes.

    Args:
        dataset: Its shards are all there.

    Raises:
        OutputError: The page cannot be written.
        DatasetError: A shard cannot be read.
    """
    content = dataset.content
    tiles = []
    for pair in islice(dataset.pairs(), _SHOWN):
        shown = enlarged(np.stack([pair.image, faded(pair.image[None], pair.mask[None])[0]]))
        title = f"seed {pair.seed}, area {pair.facts['area']:.0%}"
        if pair.facts["class"] is not None:
            title += f", class {pair.facts['class']}"
        tiles.append({"picture": data_url(strip(shown)), "title": title})
    most = max(content["areas"])
    bars = [
        {"height": round(100 * number / most), "title": f"{5 * place}–{5 * place + 5} %: {number:,}"}
        for place, number in enumerate(content["areas"])
    ]
    page = _template().render(content=content, facts=_facts(dataset), tiles=tiles, bars=bars)
    path = dataset.folder / PAGE_FILE
    write_bytes(path, page.encode())
    return path


def rejected_sheet(pairs: PairSource, seeds: Sequence[int], path: Path) -> None:
    """Write a sheet of the first candidates: unshifted, shifted, what the mask keeps; as many rows as fit.

    Args:
        pairs: What makes them.
        seeds: Candidates.
        path: The PNG file.

    Raises:
        OutputError: It cannot be written.
    """
    chosen = list(seeds[: pairs.batch_size])
    chosen += [chosen[-1]] * (pairs.batch_size - len(chosen))
    found = pairs.candidates(chosen, pairs.session.run_all(pairs.inputs(chosen)))
    unshifted, shifted = pairs.shifted(chosen[:_REJECTED])
    rows = []
    for row in range(len(unshifted)):
        masked = faded(found.pixels[row : row + 1], found.masks[row : row + 1])
        pictures = [to_uint8(each[row : row + 1]) for each in (unshifted, *shifted)]
        rows.append(strip(enlarged(np.concatenate([*pictures, masked]))))
    write_bytes(path, encode(grid(rows), "png"))


def data_url(picture: Pixels) -> str:
    """A picture `[height, width, channels]`, uint8, as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(encode(picture, "png")).decode()


def _facts(dataset: MaskDataset) -> dict[str, str]:
    content: dict[str, Any] = dataset.content
    filters, runtime = content["filters"], content["runtime"]
    refined = ", refined" if content["refine"] else ""
    wanted = [f"area {filters['min_area']:g} to {filters['max_area']:g}"]
    if filters["min_peaks"]:
        wanted.append(f"at least {filters['min_peaks']} peaks")
    if filters["min_component"]:
        wanted.append(f"no parts below {filters['min_component']:g} of the largest")
    if filters["min_agreement"]:
        wanted.append(f"refined and unrefined agree by more than {filters['min_agreement']:g}")
    rejected, failing = (
        ", ".join(f"{number:,} {reason}" for reason, number in content[name].items())
        for name in ("rejected", "failing")
    )
    return {
        "Generator": f"{content['generator']['name']} ({content['generator']['licence']})",
        "Direction": f"{content['direction']}: {content['bank']['label']}",
        "ε": f"{content['epsilon']:+g}",
        "Rule": f"{content['rule']}, threshold {content['threshold']:g}{refined}",
        "Filters": ", ".join(wanted),
        "Candidates": f"{content['tried']:,}, {content['acceptance']:.1%} make a pair",
        "Rejected": rejected or "none",
        "By each filter alone": failing or "none",
        "Shards": f"{len(dataset.shards):,} of {content['per_shard']:,} pairs, {content['image_format']}",
        "Runtime": f"{runtime['backend']} {runtime['precision']}, {runtime['provider']}",
    }


def _template() -> Any:
    # Beside this file.
    text = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined).from_string(text)
