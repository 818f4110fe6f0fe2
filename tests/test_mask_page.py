from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fastdirs.artifact import Artifact
from fastdirs.directions import DirectionBank
from fastdirs.images import decode
from fastdirs.mask_filters import Filters
from fastdirs.mask_page import data_url, enlarged, faded, rejected_sheet, write_page
from fastdirs.mask_pairs import PairSource
from fastdirs.mask_settings import MaskSettings
from fastdirs.masks import make_masks
from fastdirs.runtime import open_runtime


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_background_fades() -> None:
    images = np.full((1, 2, 2, 3), 100, dtype=np.uint8)
    masks = np.array([[[True, False], [False, False]]])
    shown = faded(images, masks)
    assert shown[0, 0, 0].tolist() == [100, 100, 100]
    assert (shown[0, 1] > 200).all()


@pytest.mark.parametrize(("size", "shown"), [(32, 96), (64, 64), (96, 96), (100, 100)])
def test_small_images_are_enlarged_by_whole_numbers(size: int, shown: int) -> None:
    assert enlarged(np.zeros((1, size, size, 3), np.uint8)).shape == (1, shown, shown, 3)


def test_the_page_shows_figures_and_pairs(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    filters = Filters(min_area=0.02, max_area=0.6, min_peaks=1, min_component=0.1, min_agreement=0.1)
    settings = MaskSettings(direction=4, epsilon=4.0, rule="mean", refine=True, filters=filters)
    dataset = make_masks(toy_artifact, toy_bank, tmp_path / "out", settings, 60, backend="ort")
    page = (tmp_path / "out" / "index.html").read_text()
    tags = Tags()
    tags.feed(page)
    pictures = [attributes for tag, attributes in tags.found if tag == "img"]
    assert len(pictures) == 48, "the first ones"
    assert len({picture["src"] for picture in pictures}) == 48
    assert all("area" in str(picture["title"]) for picture in pictures)
    assert sum(tag == "i" for tag, _ in tags.found) == 20, "a bar for each twentieth of the area"
    for said in ("60 images and masks of toy", "mean, threshold 0, refined", "at least 1 peaks",
                 "no parts below 0.1", "agree by more than 0.1", "ort f32"):  # fmt: skip
        assert said in page, said
    assert "<script" not in page
    assert write_page(dataset).read_text() == page, "equal datasets give equal pages"


def test_the_sheet_shows_what_became_of_candidates(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    settings = MaskSettings(direction=3, epsilon=4.0, rule="difference")
    with (
        open_runtime(toy_artifact, "ort", "f32") as runtime,
        PairSource(runtime, toy_bank, settings) as pairs,
    ):
        rejected_sheet(pairs, range(3), tmp_path / "sheet.png")
        found, expected = decode((tmp_path / "sheet.png").read_bytes()), pairs.shifted([0])
    assert found.shape[1] == 4 * 96, "unshifted, both shifted ones, what the mask keeps"
    assert found.shape[0] % 96 == 0
    first = found[1:96:3, 1:96:3].astype(int)
    assert np.abs(first - (expected[0][0].transpose(1, 2, 0) + 1) * 127.5).max() < 2


def test_an_address_that_holds_the_picture() -> None:
    assert data_url(np.zeros((2, 2, 1), np.uint8)).startswith("data:image/png;base64,iVBOR")
