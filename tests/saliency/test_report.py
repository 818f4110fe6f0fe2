"""What an evaluation leaves behind: figures, a page that needs nothing else, and a picture of the cases."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fastdirs.errors import OutputError
from fastdirs.images import decode
from fastdirs.manifest import read_json
from fastdirs.saliency.evaluation import Case, SaliencyResults, evaluate
from fastdirs.saliency.metrics import FIGURES, IMAGE_FIGURES, MetricSettings
from fastdirs.saliency.report import (
    EXTRA,
    HIT,
    KIND,
    MISSED,
    figures_json,
    overlay,
    page,
    sheet,
    write_report,
)


def results(count: int = 5, size: int = 48, **settings: object) -> SaliencyResults:
    """Squares that are found more or less; the last mask is empty, the first image is missing."""
    random = np.random.RandomState(0)
    made = []
    for number in range(count):
        height, width = size, size + 16 * number
        mask = np.zeros((height, width), bool)
        mask[8:30, 5:25] = number < count - 1
        saliency = np.roll(mask, number, axis=1) * 0.8 + random.rand(height, width) * 0.2
        image = random.randint(0, 256, (height, width, 3), dtype=np.uint8) if number else None
        made.append(Case(f"<b>{number}</b> & “name” \udcff", image, saliency, mask))
    return evaluate(made, MetricSettings(**settings), shown=2)


class Page(HTMLParser):
    """Elements with their attributes, and all text."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(data.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_folder(tmp_path: Path) -> None:
    found = results()
    write_report(tmp_path / "out", found, facts={"Masks": "SOD"})
    names = ["evaluation.json", "index.html", "sheet.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    content = read_json(tmp_path / "out" / "evaluation.json", KIND)
    assert content == json.loads(json.dumps(figures_json(found, {"Masks": "SOD"})))
    assert (tmp_path / "out" / "index.html").read_bytes() == page(found, {"Masks": "SOD"})
    np.testing.assert_array_equal(decode((tmp_path / "out" / "sheet.png").read_bytes()), sheet(found))


def test_equal_evaluations_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(tmp_path / name, results())
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_figures() -> None:
    content = figures_json(results(), {})
    assert set(content["overall"]) == set(content["meanings"]) == {figure.key for figure in FIGURES}
    assert content["count"] == len(content["images"]) == 5
    assert len(content["empty"]) == 1
    assert content["images"][0]["iou"] > content["images"][3]["iou"]
    assert content["images"][4]["iou"] is None
    assert content["settings"]["beta_squared"] == 0.3
    assert content["curves"]["thresholds"][0] == 1
    assert {len(curve) for curve in content["curves"].values()} == {256}
    assert "pysodmetrics" in content["environment"]
    json.dumps(content, allow_nan=False)


def test_earlier_reports_are_replaced_only_if_asked(tmp_path: Path) -> None:
    write_report(tmp_path / "out", results())
    with pytest.raises(OutputError, match="exists already"):
        write_report(tmp_path / "out", results(3))
    write_report(tmp_path / "out", results(3), force=True)
    assert read_json(tmp_path / "out" / "evaluation.json", KIND)["count"] == 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    with pytest.raises(OutputError, match="left alone"):
        write_report(tmp_path / "other", results(3), force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_the_page_needs_nothing_else() -> None:
    parsed = Page(page(results(), {}))
    sources = [image["src"] for image in parsed.all("img")]
    # Four shown cases, one of them without image.
    assert len(sources) == 15
    assert all(source and source.startswith("data:image/") for source in sources)
    assert all(link["href"] == "data:," for link in parsed.all("link"))
    policy = parsed.all("meta")[1]["content"]
    assert policy is not None
    assert "default-src 'none'" in policy


def test_the_page_says_what_there_is() -> None:
    found = results()
    parsed = Page(page(found, {"Model": "cars.safetensors"}))
    for figure in FIGURES:
        assert f"{found.overall[figure.key]:.3f}" in parsed.text
        assert figure.meaning in parsed.text
    for text in (
        "cars.safetensors",
        "Best by IoU",
        "Worst by IoU",
        "no image",
        "1, left out of all but MAE",
        "48–112 × 48, mixed",
    ):
        assert text in parsed.text
    cells = [cell for cell in parsed.all("td") if "data-value" in cell]
    assert len(cells) == 5 * (1 + len(IMAGE_FIGURES))
    assert "nan" not in parsed.text


def test_names_are_escaped() -> None:
    text = page(results(), {"<i>": "</script>"}).decode()
    assert "<b>0</b>" not in text
    assert "<i>" not in text
    assert text.count("</script>") == 1


def test_the_table_starts_with_the_worst_and_ends_with_what_has_no_figure() -> None:
    text = page(results(), {}).decode().partition('id="images"')[2]
    name = "&lt;b&gt;{}&lt;/b&gt; &amp; “name” &#56575;</td>"
    places = [text.index(name.format(number)) for number in (3, 2, 1, 0, 4)]
    assert places == sorted(places)


def test_long_tables_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdirs.saliency.report.TABLE_ROWS", 2)
    parsed = Page(page(results(), {}))
    assert "The 3 images that are best by IoU" in parsed.text
    assert len([cell for cell in parsed.all("td") if "data-value" in cell]) == 2 * (1 + len(IMAGE_FIGURES))


def test_the_overlay_tells_hits_extras_and_misses_apart() -> None:
    mask, saliency = np.zeros((4, 4), bool), np.zeros((4, 4))
    mask[:, :2], saliency[:, 1:3] = True, 1
    black = np.zeros((4, 4, 3), np.uint8)
    shown = evaluate([Case("a", black, saliency, mask)]).best[0]
    row = overlay(shown)[0].astype(int)
    for column, colour in enumerate((MISSED, HIT, EXTRA)):
        assert row[column].tolist() == [round(28 + 0.6 * channel) for channel in colour]
    assert row[3].tolist() == [70] * 3


def test_the_sheet_has_a_row_for_each_case() -> None:
    few, many = results(3), results(8)
    heights = [sheet(found).shape[0] for found in (few, many)]
    assert heights[0] < heights[1]
    assert sheet(few).shape[1] == sheet(many).shape[1]
    # 48 pixels are enlarged five times.
    assert heights[0] == 22 + 22 + 48 * 5 + 6 + 22 + 48 * 3 + 6


def test_without_cases_there_is_no_sheet(tmp_path: Path) -> None:
    mask = np.eye(8, dtype=bool)
    write_report(tmp_path / "out", evaluate([Case("a", None, mask * 0.9, mask)], shown=0))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["evaluation.json", "index.html"]


def test_a_wide_picture_fits(tmp_path: Path) -> None:
    mask = np.zeros((3, 900), bool)
    mask[1, 100:400] = True
    write_report(tmp_path / "out", evaluate([Case("a" * 300, None, mask * 0.9, mask)], rank_by="s_measure"))
