"""The atlas page, read back with a parser."""

import base64
import dataclasses
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from fastdirs.writers import Gallery
from fastdirs.writers.atlas import WRITER, _spans

Attributes = dict[str, str | None]


class Page(HTMLParser):
    """Elements and texts of a page.

    Attributes:
        elements: (tag, attributes), in order.
        texts: (innermost tag, text), in order, without blank ones.
    """

    def __init__(self, gallery: Gallery) -> None:
        super().__init__()
        self.elements: list[tuple[str, Attributes]] = []
        self.texts: list[tuple[str, str]] = []
        (path,) = WRITER.build(gallery, lambda done, total: None)
        assert path == gallery.folder / "index.html"
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.elements[-1][0], data))

    def all(self, tag: str) -> list[Attributes]:
        return [attributes for name, attributes in self.elements if name == tag]

    def texts_of(self, tag: str) -> list[str]:
        return [text.strip() for name, text in self.texts if name == tag]

    def bold(self) -> list[str]:
        return re.findall("<b>(.*?)</b>", self.source)

    @property
    def names(self) -> list[str | None]:
        return [field["value"] for field in self.all("input") if "placeholder" in field and "id" not in field]


def with_bank(gallery: Gallery, **changes: object) -> Gallery:
    return dataclasses.replace(
        gallery, content={**gallery.content, "bank": {**gallery.content["bank"], **changes}}
    )


def test_images_are_the_strip_files_themselves(gallery: Gallery) -> None:
    images = [str(image["src"]) for image in Page(gallery).all("img")]
    expected = [
        gallery.strip_path(seed, direction).read_bytes()
        for direction in gallery.directions
        for seed in gallery.seeds
    ]
    assert [base64.b64decode(image.removeprefix("data:image/png;base64,")) for image in images] == expected


def test_first_six_seeds_are_shown(make_gallery: Callable[..., Gallery]) -> None:
    page = Page(make_gallery(seeds=range(10, 18), directions=(4,)))
    assert [text for text in page.texts_of("span") if text.startswith("seed")] == [
        f"seed {n}" for n in range(10, 16)
    ]
    assert "10–17 (first 6 shown)" in page.texts_of("dd")


def test_nothing_is_fetched(gallery: Gallery) -> None:
    page = Page(gallery)
    addresses = [
        str(a[name]) for _, a in page.elements for name in ("src", "href", "action", "data") if name in a
    ]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "url(" not in page.source
    assert "@import" not in page.source


def test_only_its_own_script_may_run(gallery: Gallery) -> None:
    page = Page(gallery)
    (policy,) = [str(meta["content"]) for meta in page.all("meta") if "http-equiv" in meta]
    script = page.source.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert len(page.all("script")) == 1


def test_each_direction_has_its_facts(gallery: Gallery) -> None:
    page = Page(
        with_bank(gallery, scores=[1234.5678, 0, 0, -0.25, 0], ranges=[[-2, 2], [], [], [-0.5, 12], []])
    )
    assert [section["data-index"] for section in page.all("section")] == ["0", "3"]
    assert page.names == ["x", "hue"]
    assert page.bold() == ["1235", "−2", "+2", "−0.25", "−0.5", "+12"]


def test_axis_marks_zero_and_what_lies_outside_the_range(gallery: Gallery) -> None:
    page = Page(with_bank(gallery, ranges=[[-1.4, 2.0]] * 5))
    kinds = [span["class"] for span in page.all("span") if "class" in span][:5]
    assert kinds == ["outside", "inside", "origin", "inside", "outside"]
    ticks = [text for text in page.texts_of("span") if text[0] in "−+0"][:5]
    assert ticks == ["−3", "−1.5", "0", "+1.5", "+3"]


def test_axis_without_zero_marks_nothing(make_gallery: Callable[..., Gallery]) -> None:
    kinds = [span.get("class") for span in Page(make_gallery(epsilons=(1.0, 2.0))).all("span")]
    assert "inside" in kinds
    assert "origin" not in kinds


def test_header_tells_what_was_rendered_and_how(gallery: Gallery) -> None:
    page = Page(gallery)
    sha256 = gallery.content["generator"]["weights_sha256"]
    facts = dict(zip(page.texts_of("dt"), page.texts_of("dd"), strict=True))
    assert page.texts_of("h1") == ["toy"]
    assert facts == {
        "Family": "toy", "Licence": "Apache-2.0", "Source": "built into fastdirs", "Weights": sha256[:12],
        "Images": "16 px, RGB", "Latents": "z, 1 × 16", "Method": "sefa", "Settings": "normalize = rows",
        "Layers": "all", "ψ": "0.75", "Seeds": "0–2", "Runtime": "eager · fp32 · torch CPU",
    }  # fmt: skip


HOSTILE = """"><script>alert('$name')</script>&amp;</input>"""


def test_text_from_files_is_never_markup(gallery: Gallery) -> None:
    gallery = with_bank(gallery, labels=[HOSTILE] * 5, method=HOSTILE, settings={HOSTILE: HOSTILE})
    strings = {key: HOSTILE for key, value in gallery.content["generator"].items() if isinstance(value, str)}
    gallery.content["generator"].update(strings)
    gallery.content["runtime"].update(dict.fromkeys(gallery.content["runtime"], HOSTILE))
    page = Page(gallery)
    assert len(page.all("script")) == 1
    assert page.names == [HOSTILE] * 2
    assert page.all("body")[0]["data-generator-sha256"] == HOSTILE
    assert page.texts_of("h1") == [HOSTILE]


def test_half_a_surrogate_pair_does_not_stop_the_page(gallery: Gallery) -> None:
    assert Page(with_bank(gallery, labels=["smile \ud83d"] * 5)).names == ["smile \ufffd"] * 2


def test_names_are_kept_apart_by_generator_and_bank(gallery: Gallery) -> None:
    def key(gallery: Gallery) -> str:
        return str(Page(gallery).all("body")[0]["data-storage-key"])

    banks = [
        gallery,
        with_bank(gallery, method="voynov"),
        with_bank(gallery, settings={}),
        with_bank(gallery, layers=[1]),
    ]
    other_weights = {**gallery.content["generator"], "weights_sha256": "0" * 64}
    banks.append(dataclasses.replace(gallery, content={**gallery.content, "generator": other_weights}))
    assert len({key(bank) for bank in banks}) == len(banks)
    assert key(gallery) == key(with_bank(gallery, labels=["renamed"] * 5))


@pytest.mark.parametrize(
    ("numbers", "expected"), [([0], "0"), ([0, 1, 2, 5], "0–2, 5"), ([3, 2, 7, 8], "3, 2, 7–8"), ([], "")]
)
def test_runs_of_numbers_are_spans(numbers: list[int], expected: str) -> None:
    assert _spans(numbers) == expected
