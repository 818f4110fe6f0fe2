"""The page of an evaluation, read back with a parser, and the folder it lies in."""

import base64
import copy
import hashlib
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fastdirs.directions import DirectionBank
from fastdirs.errors import FastdirsError, OutputError, SelectionError
from fastdirs.evaluation import Evaluation, EvaluationSettings
from fastdirs.evaluation.report import FIGURES, page, report
from fastdirs.generators import Generator
from fastdirs.manifest import read_json

SMALL = EvaluationSettings(seeds=5, batches=2)
HOSTILE = """"><script>alert('{{ 7 * 7 }}')</script>&amp;"""


class Page(HTMLParser):
    """Elements and texts of a page.

    Attributes:
        elements: (tag, attributes), in order.
        texts: (innermost tag, text), in order, without blank ones.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.source = page(evaluation).decode()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.elements[-1][0], data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def texts_of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


@pytest.fixture(scope="session")
def evaluation(
    toy: Generator, toy_bank: DirectionBank, toy_reconstructor: Path, tmp_path_factory: pytest.TempPathFactory
) -> Evaluation:
    """Read only; with a direction that no pair was drawn of, and one with a DVN."""
    out = tmp_path_factory.mktemp("reports") / "report"
    found = report(toy, toy_bank, out, SMALL, reconstructor=toy_reconstructor)
    content = copy.deepcopy(found.content)
    rows = content["directions"]
    rows[0].update(accuracy=None, interval=None, epsilon_error=None, pairs=0, confusions=[])
    content["confusion"][0] = [0] * 5
    rows[1]["dvn"] = 0.75
    return replace(found, content=content)


@pytest.fixture
def changed(evaluation: Evaluation) -> Evaluation:
    """One whose content a test may change."""
    return replace(evaluation, content=copy.deepcopy(evaluation.content))


def columns(found: Page) -> list[str]:
    return found.texts_of("button")


def test_the_folder_holds_figures_and_page(
    toy: Generator, toy_bank: DirectionBank, toy_reconstructor: Path, tmp_path: Path
) -> None:
    found = report(toy, toy_bank, tmp_path / "out", SMALL, reconstructor=toy_reconstructor)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["evaluation.json", "index.html"]
    assert read_json(tmp_path / "out" / "evaluation.json", "evaluation") == found.content
    assert (tmp_path / "out" / "index.html").read_bytes() == page(found)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((tmp_path / "out" / "evaluation.json").read_text(), parse_constant=refuse)


def test_strips_and_rows_are_in_the_order_of_the_score(evaluation: Evaluation) -> None:
    found = Page(evaluation)
    order = [str(index) for index in evaluation.content["order"]]
    assert [row["data-index"] for row in found.all("tr")[1:]] == order
    assert [section["data-index"] for section in found.all("section")] == order
    images = [str(image["src"]).removeprefix("data:image/jpeg;base64,") for image in found.all("img")]
    expected = [data for index in evaluation.content["order"] for data in evaluation.strips[index]]
    assert [base64.b64decode(image) for image in images] == expected
    assert len(expected) == 5 * 4


def test_the_table_holds_every_figure(evaluation: Evaluation) -> None:
    found = Page(evaluation)
    assert columns(found) == ["#", "Direction", *[figure.heading for figure in FIGURES], "Taken for"]
    cells = [cell for cell in found.all("td") if "data-value" in cell]
    width = len(FIGURES) + 2
    assert len(cells) == 5 * width
    for place, index in enumerate(evaluation.content["order"]):
        row = evaluation.content["directions"][index]
        values = [cell["data-value"] for cell in cells[place * width : (place + 1) * width]]
        expected = [row["index"], *[row[figure.key] for figure in FIGURES]]
        assert values[:-1] == ["" if value is None else str(value) for value in expected]


def test_what_was_not_measured_is_said_to_be_so(evaluation: Evaluation) -> None:
    assert Page(evaluation).texts_of("td").count("–") == 2 + 4


def test_columns_that_nothing_was_measured_of_are_left_out(changed: Evaluation) -> None:
    for row in changed.content["directions"]:
        row.update(dvn=None, accuracy=None, epsilon_error=None, consistency=None, monotonicity=None)
    changed.content.update(
        rca=None, rca_training=None, confusion=None, reconstructor=None, likeness=None
    )  # fmt: skip
    found = Page(changed)
    headings = columns(found)
    assert "Accuracy" not in headings
    assert "DVN" not in headings
    assert "Taken for" not in headings
    assert "Score" in headings
    assert not found.all("svg")
    facts = dict(zip(found.texts_of("dt"), found.texts_of("dd"), strict=True))
    assert facts["Reconstructor"] == "none"
    assert facts["DVN"] == "not measured (no real pictures)"


def test_every_figure_is_explained(evaluation: Evaluation) -> None:
    found = Page(evaluation)
    meanings = dict(zip(found.texts_of("dt"), found.texts_of("dd"), strict=True))
    for figure in FIGURES:
        assert len(meanings[figure.heading]) > 40
    assert "1/K" in meanings["RCA"]


def test_the_header_tells_what_was_measured(evaluation: Evaluation) -> None:
    found = Page(evaluation)
    facts = dict(zip(found.texts_of("dt"), found.texts_of("dd"), strict=True))
    rca = evaluation.content["rca"]
    low, high = rca["interval"]
    expected = f"{rca['accuracy']:.3f} (95%: {low:.3f}–{high:.3f}, 64 pairs)"
    assert facts["RCA, held-out seeds"] == expected
    assert facts["Runtime"].startswith("eager · f32 · torch")
    assert facts["Shifts of pairs"] == "uniform, 0.5 to 3"
    assert facts["Bank"] == evaluation.content["bank"]["sha256"][:12]


def test_the_confusion_matrix_shows_every_cell_that_holds_something(evaluation: Evaluation) -> None:
    found = Page(evaluation)
    confusion = evaluation.content["confusion"]
    cells = {(int(str(r["y"])), int(str(r["x"]))): r for r in found.all("rect")}
    assert set(cells) == {(i, j) for i, row in enumerate(confusion) for j, n in enumerate(row) if n}
    for (row, column), cell in cells.items():
        share = confusion[row][column] / sum(confusion[row])
        assert float(str(cell["fill-opacity"])) == pytest.approx(share**0.5, abs=1e-3)
        assert (cell.get("class") == "right") == (row == column)


def test_nothing_is_fetched(evaluation: Evaluation) -> None:
    found = Page(evaluation)
    addresses = [str(a[name]) for _, a in found.elements for name in ("src", "href", "action") if name in a]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "url(" not in found.source
    assert "@import" not in found.source


def test_only_its_own_script_may_run(evaluation: Evaluation) -> None:
    found = Page(evaluation)
    (policy,) = [str(meta["content"]) for meta in found.all("meta") if "http-equiv" in meta]
    script = found.source.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert len(found.all("script")) == 1


def with_hostile_text(value: Any) -> Any:
    """The same content, with every text that a file could hold replaced."""
    if isinstance(value, dict):
        return {name: with_hostile_text(each) for name, each in value.items()}
    if isinstance(value, list):
        return [with_hostile_text(each) for each in value]
    return HOSTILE if isinstance(value, str) else value


def test_text_from_files_is_never_markup(changed: Evaluation) -> None:
    hostile = with_hostile_text(changed.content)
    hostile["bank"]["settings"] = {HOSTILE: HOSTILE}
    found = Page(replace(changed, content=hostile))
    assert len(found.all("script")) == 1
    assert found.texts_of("h3") == [HOSTILE] * 5
    assert found.texts_of("h1") == [HOSTILE]
    assert HOSTILE in [cell.get("title") for cell in found.all("td")]


def test_half_a_surrogate_pair_does_not_stop_the_page(changed: Evaluation) -> None:
    changed.content["directions"][3]["label"] = "smile \ud83d"
    assert "smile &#55357;" in page(changed).decode()


def test_a_folder_that_exists_is_replaced_only_by_force(
    toy: Generator, toy_bank: DirectionBank, toy_reconstructor: Path, tmp_path: Path
) -> None:
    settings = EvaluationSettings(seeds=2, batches=1)
    report(toy, toy_bank, tmp_path / "out", settings, reconstructor=toy_reconstructor)
    before = (tmp_path / "out" / "index.html").read_bytes()
    started = []
    with pytest.raises(OutputError, match="exists already"):
        report(toy, toy_bank, tmp_path / "out", settings, progress=lambda *told: started.append(told))
    assert not started
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="left alone"):
        report(toy, toy_bank, tmp_path / "thesis", settings, force=True)
    fewer = EvaluationSettings(seeds=3, batches=1)
    report(toy, toy_bank, tmp_path / "out", fewer, reconstructor=toy_reconstructor, force=True)
    assert (tmp_path / "out" / "index.html").read_bytes() != before


@pytest.mark.parametrize("wrong", [{"real": "none.npz"}, {"reconstructor": "none.safetensors"}])
def test_a_failure_leaves_nothing(
    wrong: dict[str, str], toy: Generator, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    with pytest.raises(FastdirsError):
        report(toy, toy_bank, tmp_path / "out", SMALL, **wrong)
    assert not list(tmp_path.iterdir())


def test_a_failure_amid_the_work_leaves_nothing(
    toy: Generator, toy_bank: DirectionBank, toy_reconstructor: Path, tmp_path: Path
) -> None:
    def fail(phase: str, done: int, total: int) -> None:
        if phase == "strips":
            raise SelectionError("enough")

    with pytest.raises(SelectionError, match="enough"):
        report(toy, toy_bank, tmp_path / "out", SMALL, reconstructor=toy_reconstructor, progress=fail)
    assert not list(tmp_path.iterdir())
