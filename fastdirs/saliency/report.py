"""The report of a saliency evaluation: figures as JSON, a page to sort and look at, and a picture sheet."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from fastdirs.errors import OutputError
from fastdirs.images import MIME_TYPES, Pixels, caption, encode, grid
from fastdirs.manifest import Json, atomic_folder, check_replaceable, manifest, write_bytes, write_json
from fastdirs.saliency.evaluation import TILE, SaliencyResults, Shown, table
from fastdirs.saliency.metrics import FIGURES, IMAGE_FIGURES

KIND = "saliency-evaluation"
FIGURES_FILE, PAGE_FILE, SHEET_FILE = "evaluation.json", "index.html", "sheet.png"
TABLE_ROWS = 2000
"""Images in the table of the page, beyond which a browser becomes slow; all are in the JSON."""

# Told apart by people who see red and green alike.
HIT, EXTRA, MISSED = (0, 158, 115), (213, 94, 0), (64, 120, 220)
_TINT = 0.6
_COLUMNS = ("image", "mask", "saliency", "overlay")
_GAP, _CAPTION, _GROUND = 6, 22, 236


def check_report_folder(folder: Path, force: bool = False) -> None:
    """Before the work, not after it: whether `write_report` could make a folder.

    Args:
        folder: The folder to make.
        force: Replace the folder of an earlier evaluation.

    Raises:
        OutputError: The folder exists and `force` is off, holds something else, or cannot be written.
    """
    try:
        check_replaceable(folder, FIGURES_FILE, KIND, force)
        parent = next(each for each in folder.resolve().parents if each.exists())
        with TemporaryDirectory(dir=parent):
            pass
    except OSError as error:
        raise OutputError.from_os(folder, error) from error


def write_report(
    folder: Path, results: SaliencyResults, *, facts: Mapping[str, str] | None = None, force: bool = False
) -> None:
    """Write `evaluation.json`, `index.html` and `sheet.png`; nothing is left behind where it fails.

    Args:
        folder: The folder to make.
        results: What `evaluate` or `evaluate_folder` found.
        facts: What was evaluated on what, such as {"Model": "cars.safetensors", "Masks": "SOD/masks"}.
        force: Replace the folder of an earlier evaluation.

    Raises:
        OutputError: The folder exists and `force` is off, holds something else, or cannot be written.
    """
    facts = facts or {}
    with atomic_folder(folder, FIGURES_FILE, KIND, force) as temporary:
        write_bytes(temporary / PAGE_FILE, page(results, facts))
        if results.best or results.worst:
            write_bytes(temporary / SHEET_FILE, encode(sheet(results), "png"))
        write_json(temporary / FIGURES_FILE, figures_json(results, facts))


def figures_json(results: SaliencyResults, facts: Mapping[str, str]) -> Json:
    """All figures, over all images and of each, with what they mean and how they were computed."""
    content = {
        "facts": dict(facts),
        "settings": asdict(results.settings),
        "count": len(results.images),
        "empty": results.empty,
        "overall": results.overall,
        "meanings": {figure.key: figure.meaning for figure in FIGURES},
        "curves": {
            "thresholds": [level / 255 for level in range(255, -1, -1)],
            **{name: curve.tolist() for name, curve in results.curves.items()},
        },
        "rank_by": results.rank_by,
        "best": [shown.name for shown in results.best],
        "worst": [shown.name for shown in results.worst],
        "images": results.images,
    }
    made = manifest(KIND, content)
    made["environment"]["pysodmetrics"] = version("pysodmetrics")
    return made


def overlay(shown: Shown) -> Pixels:
    """The image in grey with the prediction's hits, extras and misses in colours.

    Returns:
        `[height, width, 3]`, uint8; of the saliency map where there is no image.
    """
    ground = shown.saliency if shown.image is None else shown.image
    # Paler than it is, so that colours stand out on dark pictures too.
    grey = 70 + ground.mean(axis=-1, keepdims=True) * 0.65
    predicted, mask = shown.predicted[..., 0] > 127, shown.mask[..., 0] > 127
    mixed = np.repeat(grey, 3, axis=-1)
    for where, colour in (
        (predicted & mask, HIT),
        (predicted & ~mask, EXTRA),
        (~predicted & mask, MISSED),
    ):
        mixed[where] = (1 - _TINT) * mixed[where] + _TINT * np.array(colour)
    pixels: Pixels = np.rint(mixed).astype(np.uint8)
    return pixels


def sheet(results: SaliencyResults) -> Pixels:
    """One picture of the best and the worst cases: image, mask, saliency and overlay in each row.

    Returns:
        `[height, width, 3]`, uint8.
    """
    figure = next(figure for figure in IMAGE_FIGURES if figure.key == results.rank_by)
    rows = [_headings()]
    for word, cases in (("best", results.best), ("worst", results.worst)):
        for number, shown in enumerate(cases, start=1):
            value = shown.figures[results.rank_by]
            rows.append(_row(f"{word} {number}    {figure.heading} {value:.3f}    {shown.name}", shown))
    return grid(rows)


def _headings() -> Pixels:
    names = [caption(name, TILE + _GAP, _CAPTION, _GROUND, ink=100) for name in _COLUMNS]
    edge = np.full((_CAPTION, _GAP, 3), _GROUND, np.uint8)
    return np.concatenate([*names, edge], axis=1)


def _row(text: str, shown: Shown) -> Pixels:
    tiles = _tiles(shown)
    height, width, _ = tiles["mask"].shape
    # Small pictures are enlarged by whole pixels, so that edges stay sharp.
    factor = max(1, TILE // max(height, width))
    band = np.full(
        (height * factor + _CAPTION + _GAP, len(_COLUMNS) * (TILE + _GAP) + _GAP, 3), _GROUND, np.uint8
    )
    band[:_CAPTION] = caption(text, band.shape[1], _CAPTION, _GROUND)
    for column, name in enumerate(_COLUMNS):
        if name in tiles:
            left = _GAP + column * (TILE + _GAP)
            tile = tiles[name].repeat(factor, axis=0).repeat(factor, axis=1)
            band[_CAPTION : _CAPTION + height * factor, left : left + width * factor] = tile
    return band


def _tiles(shown: Shown) -> dict[str, Pixels]:
    """The pictures of a case by column."""
    tiles = {"mask": shown.mask, "saliency": shown.saliency, "overlay": overlay(shown)}
    return tiles if shown.image is None else {"image": shown.image, **tiles}


def page(results: SaliencyResults, facts: Mapping[str, str]) -> bytes:
    """The page: needs no network, no server and no other file."""
    # Beside this file. Everything that is filled in is escaped.
    source = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    script = source.partition("<script>")[2].partition("</script>")[0]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    ranking = next(figure for figure in IMAGE_FIGURES if figure.key == results.rank_by)
    ranked = _ranked(results, ranking.falls)
    precision, recall = results.curves["precision"], results.curves["recall"]
    text = environment.from_string(source).render(
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        facts={**facts, **_facts(results)},
        rows=table(results),
        figures=IMAGE_FIGURES,
        ranking=ranking,
        images=ranked[:TABLE_ROWS],
        left_out=len(ranked[TABLE_ROWS:]),
        groups=[(word, _cases(cases)) for word, cases in (("Best", results.best), ("Worst", results.worst))],
        columns=_COLUMNS,
        colours={"hit": _css(HIT), "extra": _css(EXTRA), "missed": _css(MISSED)},
        curve=" ".join(f"{100 * r:.2f},{100 * (1 - p):.2f}" for p, r in zip(precision, recall, strict=True)),
        number=lambda value: "–" if value is None else f"{value:.3f}",
    )
    # A file name may hold half a surrogate pair, which UTF-8 has no bytes for.
    return text.encode("utf-8", errors="xmlcharrefreplace")


def _ranked(results: SaliencyResults, falls: bool) -> list[Json]:
    """Images, worst first; those without the figure last."""
    sign = -1 if falls else 1

    def place(image: Json) -> tuple[bool, float, str]:
        value = image[results.rank_by]
        return value is None, sign * (value or 0.0), image["name"]

    return sorted(results.images, key=place)


def _cases(cases: Sequence[Shown]) -> list[dict[str, Any]]:
    """What the page shows of each case."""
    return [
        {
            "name": shown.name,
            "figures": shown.figures,
            "small": max(shown.mask.shape) < TILE // 2,
            "tiles": {name: _data(tile) for name, tile in _tiles(shown).items()},
        }
        for shown in cases
    ]


def _data(tile: Pixels) -> str:
    """A picture as an address that holds it. Masks are small as PNG, photographs are not."""
    image_format = "png" if tile.shape[-1] == 1 or max(tile.shape) < TILE // 2 else "webp"
    data = base64.b64encode(encode(tile, image_format)).decode()
    return f"data:{MIME_TYPES[image_format]};base64,{data}"


def _facts(results: SaliencyResults) -> dict[str, str]:
    settings, count, empty = results.settings, len(results.images), len(results.empty)
    heights, widths = ([image[key] for image in results.images] for key in ("height", "width"))
    sizes = {(image["height"], image["width"]) for image in results.images}
    facts = {
        "Images": f"{count:,}",
        "Sizes": f"{_span(widths)} × {_span(heights)}{', mixed' if len(sizes) > 1 else ''}",
        "Threshold": f"{settings.threshold:g}",
        "β² of F": f"{settings.beta_squared:g} (weighted: {settings.weighted_beta_squared:g})",
        "α of S": f"{settings.alpha:g}",
        "Maps": "stretched to 0–1, but for the first three figures" if settings.stretch else "as they are",
    }
    if empty:
        facts["Empty masks"] = f"{empty:,}, left out of all but MAE and accuracy"
    return facts


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low}–{high}"


def _css(colour: tuple[int, int, int]) -> str:
    return "rgb({} {} {})".format(*colour)
