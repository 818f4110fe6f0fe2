"""The atlas: one HTML page with every direction, to look at, filter and name, without network or server."""

import base64
import hashlib
import html
import json
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from string import Template

from fastdirs.images import MIME_TYPES
from fastdirs.manifest import atomic_file
from fastdirs.writers import INDEX_FILE, Gallery, View

MAX_SEEDS = 6
PAGE_WIDTH, SIZES = 1152, (48, 128)
"""Pixels: a strip is shown this wide unless its images would leave the range of sizes."""
RANGE_MARGIN = 0.05
"""Of a suggested range's width: ranges are estimates, an epsilon of 6 is at home in one that ends at 5.9."""


def build(gallery: Gallery, progress: Callable[[int, int], None]) -> list[Path]:
    """Write `index.html`, section by section, so that memory stays flat however many directions there are.

    Args:
        gallery: A gallery whose strips are all there.
        progress: Called with (done, total) after each direction.

    Returns:
        The page.

    Raises:
        OutputError: The page cannot be written.
    """
    # Beside this file: a page with five parts, of which the middle three are repeated.
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8").split("<!-- split -->\n")
    head, section, strip, section_end, tail = template
    script = tail.partition("<script>")[2].partition("</script>")[0]
    path, mime = gallery.folder / INDEX_FILE, MIME_TYPES[gallery.image_format]
    # A label read from a file may hold half a surrogate pair, which UTF-8 has no bytes for.
    with (
        atomic_file(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="xmlcharrefreplace", newline="\n") as page,
    ):
        page.write(_fill(head, **_head(gallery), script_hash=_sha256_base64(script), facts=_facts(gallery)))
        for done, direction in enumerate(gallery.directions, start=1):
            page.write(_fill(section, **_section(gallery, direction), axis=_axis(gallery, direction)))
            for seed in gallery.seeds[:MAX_SEEDS]:
                data = base64.b64encode(gallery.strip_path(seed, direction).read_bytes()).decode()
                page.write(_fill(strip, seed=seed, direction=direction, mime=mime, data=data))
            page.write(section_end)
            progress(done, len(gallery.directions))
        page.write(tail)
    return [path]


class _Html(str):
    """Text that is HTML already."""


def _fill(template: str, **values: object) -> str:
    """The template with its placeholders replaced; everything that is not `_Html` is escaped."""
    texts = {k: v if isinstance(v, _Html) else html.escape(str(v)) for k, v in values.items()}
    return Template(template).substitute(texts)


def _head(gallery: Gallery) -> dict[str, object]:
    generator, bank = gallery.content["generator"], gallery.content["bank"]
    # Two banks of one generator must not share the names given to their directions.
    made_by = json.dumps([generator["weights_sha256"], bank["method"], bank["settings"], bank["layers"]])
    wide = PAGE_WIDTH // len(gallery.epsilons) // 8 * 8
    size = min(max(wide, SIZES[0]), SIZES[1])
    return {
        "name": generator["name"],
        "method": bank["method"],
        "generator_sha256": generator["weights_sha256"],
        "storage_key": f"fastdirs-names-{hashlib.sha256(made_by.encode()).hexdigest()}",
        "resolution": generator["img_resolution"],
        "count": len(gallery.directions),
        "shown": min(MAX_SEEDS, len(gallery.seeds)),
        "steps": len(gallery.epsilons),
        "zero": gallery.epsilons.index(0.0) if 0.0 in gallery.epsilons else "none",
        "size": size,
        "enlarged": "enlarged" if size > generator["img_resolution"] else "",
    }


def _facts(gallery: Gallery) -> _Html:
    """What was rendered, by what and how, as a list of terms."""
    content = gallery.content
    generator, bank, runtime = content["generator"], content["bank"], content["runtime"]
    cutoff = "" if content["cutoff"] is None else f", first {content['cutoff']} layers"
    more = f" (first {MAX_SEEDS} shown)" if len(gallery.seeds) > MAX_SEEDS else ""
    opened = [str(runtime[key]) for key in ("backend", "precision", "provider") if runtime[key]]
    facts = {
        "Family": generator["family"],
        "Licence": generator["licence"],
        "Source": generator["source"],
        "Weights": generator["weights_sha256"][:12],
        "Images": f"{generator['img_resolution']} px, {'RGB' if generator['img_channels'] == 3 else 'grey'}",
        "Latents": f"{generator['space']}, {generator['num_layers']} × {generator['dim']}",
        "Method": bank["method"],
        "Settings": ", ".join(f"{key} = {value}" for key, value in bank["settings"].items()) or "none",
        "Layers": "all" if len(bank["layers"]) == generator["num_layers"] else _spans(bank["layers"]),
        "ψ": f"{content['psi']:g}{cutoff}",
        "Seeds": _spans(gallery.seeds) + more,
        "Runtime": " · ".join(opened),
    }
    fact = "<div><dt>$term</dt><dd>$value</dd></div>\n"
    return _Html("".join(_fill(fact, term=term, value=value) for term, value in facts.items()))


def _section(gallery: Gallery, direction: int) -> dict[str, object]:
    bank = gallery.content["bank"]
    low, high = bank["ranges"][direction]
    return {
        "direction": direction,
        "label": gallery.label(direction),
        "score": f"{bank['scores'][direction]:.4g}".replace("-", "−"),
        "low": _signed(low, digits=3),
        "high": _signed(high, digits=3),
    }


def _axis(gallery: Gallery, direction: int) -> _Html:
    """Epsilon above each column; 0 stands out, values well outside the suggested range stand back."""
    low, high = gallery.content["bank"]["ranges"][direction]
    margin = RANGE_MARGIN * (high - low)
    ticks = []
    for epsilon in gallery.epsilons:
        kind = (
            "origin" if epsilon == 0 else "inside" if low - margin <= epsilon <= high + margin else "outside"
        )
        ticks.append(_fill('<span class="$kind">$epsilon</span>', kind=kind, epsilon=_signed(epsilon)))
    return _Html("".join(ticks))


def _signed(number: float, digits: int = 4) -> str:
    return f"{number:+.{digits}g}".replace("-", "−") if number else "0"


def _spans(numbers: Sequence[int]) -> str:
    """Numbers with runs written as spans: [0, 1, 2, 5] -> "0–2, 5"."""
    spans = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        spans.append(f"{members[0]}–{members[-1]}" if len(members) > 1 else f"{members[0]}")
    return ", ".join(spans)


def _sha256_base64(text: str) -> str:
    """How a content security policy names the one script that may run."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


WRITER = View(summary="index.html: every direction on one page, names editable", build=build)
