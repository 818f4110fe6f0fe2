"""Streams of saliency maps against masks in memory and in folders; which cases are kept to be looked at."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdirs.errors import DatasetError, SelectionError, UnknownNameError
from fastdirs.images import encode
from fastdirs.saliency.evaluation import (
    TILE,
    Case,
    Prediction,
    evaluate,
    evaluate_folder,
    predict_pairs,
    read_predictions,
    table,
)
from fastdirs.saliency.folders import pair_folders, read_photo
from fastdirs.saliency.metrics import FIGURES, MetricSettings
from fastdirs.saliency.runtime import SaliencyRuntime, open_saliency
from fastdirs.segmenters import Segmenter


def square(height: int = 24, width: int = 32, side: int = 10) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[4 : 4 + side, 6 : 6 + side] = True
    return mask


def cases(count: int) -> list[Case]:
    """Squares, of which the prediction covers more and more rows."""
    made = []
    for number in range(count):
        saliency = square().astype(np.float32)
        saliency[4 : 4 + count - number - 1] = 0
        made.append(Case(f"case {number}", None, saliency, square()))
    return made


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(pixels, "png"))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three pictures of mixed sizes; the mask of "c" is empty, the photograph of "b" is missing."""
    for name, (height, width) in {"a": (24, 32), "b": (40, 30), "c": (24, 32)}.items():
        mask = square(height, width).view(np.uint8)[..., None] * np.uint8(255)
        write(tmp_path / "saliency" / f"{name}.png", mask)
        write(tmp_path / "masks" / f"{name}.png", mask * np.uint8(name != "c"))
        if name != "b":
            write(tmp_path / "images" / f"{name}.png", np.repeat(mask // 2 + 60, 3, axis=-1))
    return tmp_path


def test_masks_in_memory() -> None:
    seen: list[tuple[int, int]] = []
    results = evaluate(cases(4), total=4, progress=lambda done, total: seen.append((done, total)))
    assert [image["name"] for image in results.images] == ["case 0", "case 1", "case 2", "case 3"]
    assert [image["iou"] for image in results.images] == pytest.approx([0.7, 0.8, 0.9, 1.0])
    assert results.overall["iou"] == pytest.approx(0.85)
    assert results.images[0]["area"] == pytest.approx(100 / (24 * 32))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert results.empty == []


def test_a_stream_is_read_once_and_one_by_one() -> None:
    alive = 0

    def stream() -> Iterator[Case]:
        nonlocal alive
        for case in cases(6):
            alive += 1
            yield case

    evaluate(stream(), progress=lambda done, total: None if alive == done else pytest.fail("read ahead"))


@pytest.mark.parametrize(
    ("count", "best", "worst"),
    [
        (1, [0], []),
        (2, [1], [0]),
        (3, [2, 1], [0]),
        (4, [3, 2], [0, 1]),
        (5, [4, 3], [0, 1]),
        (9, [8, 7], [0, 1]),
    ],
)
def test_best_and_worst(count: int, best: list[int], worst: list[int]) -> None:
    results = evaluate(cases(count), shown=2)
    assert [shown.name for shown in results.best] == [f"case {number}" for number in best]
    assert [shown.name for shown in results.worst] == [f"case {number}" for number in worst]


def test_ranked_by_a_figure_that_falls() -> None:
    results = evaluate(cases(5), shown=1, rank_by="mae")
    assert (results.best[0].name, results.worst[0].name) == ("case 4", "case 0")
    with pytest.raises(UnknownNameError, match="max_f_of_images"):
        evaluate(cases(2), rank_by="max_f_of_images")
    with pytest.raises(UnknownNameError, match="Did you mean 'iou'"):
        evaluate(cases(2), rank_by="iuo")


def test_equals_are_told_apart_by_name() -> None:
    same = [case._replace(saliency=square().astype(np.float32)) for case in cases(6)]
    first, second = evaluate(same, shown=2), evaluate(same[::-1], shown=2)
    assert [shown.name for shown in first.best] == [shown.name for shown in second.best]


def test_nothing_is_shown_if_asked() -> None:
    results = evaluate(cases(3), shown=0)
    assert results.best == results.worst == []
    with pytest.raises(SelectionError, match="-1 cases"):
        evaluate(cases(3), shown=-1)


def test_what_is_shown_is_small() -> None:
    mask = square(600, 500, 300)
    image = np.random.RandomState(0).randint(0, 256, (600, 500, 1), dtype=np.uint8)
    shown = evaluate([Case("a", image, mask * 0.4, mask)]).best[0]
    assert shown.image is not None
    assert shown.image.shape == (TILE, TILE * 5 // 6, 3)
    assert shown.mask.shape == shown.saliency.shape == shown.predicted.shape == (TILE, TILE * 5 // 6, 1)
    assert shown.mask.max() == 255
    assert shown.saliency.max() == 102
    assert shown.predicted.max() == 0


def test_bad_cases_are_named() -> None:
    good = cases(1)[0]
    with pytest.raises(DatasetError, match="there are no images"):
        evaluate([])
    with pytest.raises(DatasetError, match="case 0 comes twice"):
        evaluate([good, good])
    with pytest.raises(DatasetError, match="saliency of case 0"):
        evaluate([good._replace(mask=square(10, 10, 3))])
    for image in (np.zeros((5, 5, 3), np.uint8), np.zeros((24, 32), np.uint8), np.zeros((24, 32, 3))):
        with pytest.raises(DatasetError, match="image of case 0"):
            evaluate([good._replace(image=image)])


def test_folders(folders: Path) -> None:
    predictions = read_predictions(folders / "saliency", folders / "masks", folders / "images")
    results = evaluate_folder(predictions, folders / "masks")
    assert results.empty == ["c"]
    assert results.overall["iou"] == results.overall["max_f"] == 1
    # Only the picture without salient object counts, and only here.
    assert results.overall["mae"] == pytest.approx(100 / (24 * 32) / 3)
    assert {shown.name: shown.image is None for shown in results.best + results.worst} == {
        "a": False,
        "b": True,
    }
    assert [(image["height"], image["width"]) for image in results.images] == [(24, 32), (40, 30), (24, 32)]
    assert results.images[2]["iou"] is None


def test_what_does_not_pair_is_known_before_anything_is_read(folders: Path) -> None:
    (folders / "masks" / "b.png").unlink()
    with pytest.raises(DatasetError, match=r"1 in .*saliency has no mask .*: b\."):
        read_predictions(folders / "saliency", folders / "masks")
    predictions = read_predictions(folders / "saliency", folders / "masks", ignore_unpaired=True)
    assert len(evaluate_folder(predictions, folders / "masks", ignore_unpaired=True).images) == 2


def test_predictions_of_a_model_that_do_not_pair(folders: Path) -> None:
    made = [Prediction(name, None, square().astype(np.float32)) for name in ("a", "z")]
    with pytest.raises(DatasetError, match="z has no mask"):
        evaluate_folder(made, folders / "masks")
    with pytest.raises(DatasetError, match=r"2 in .*masks have no prediction of the same name: b, c\."):
        evaluate_folder(made[:1], folders / "masks")
    results = evaluate_folder(made, folders / "masks", ignore_unpaired=True)
    assert [image["name"] for image in results.images] == ["a"]


def test_all_masks_are_empty(folders: Path) -> None:
    for name in "ab":
        (folders / "masks" / f"{name}.png").unlink()
    predictions = read_predictions(folders / "saliency", folders / "masks", ignore_unpaired=True)
    with pytest.raises(DatasetError, match="masks of all 1 images are empty"):
        evaluate_folder(predictions, folders / "masks", ignore_unpaired=True)


def test_the_threshold_of_masks(folders: Path) -> None:
    write(folders / "masks" / "c.png", np.full((24, 32, 1), 100, np.uint8))
    for threshold, empty in ((0.1, []), (0.5, ["c"])):
        predictions = read_predictions(folders / "saliency", folders / "masks")
        assert evaluate_folder(predictions, folders / "masks", mask_threshold=threshold).empty == empty
    with pytest.raises(SelectionError, match="threshold of masks is 0"):
        evaluate_folder([], folders / "masks", mask_threshold=0)


class _Bright(Segmenter):
    """Saliency by brightness."""

    kind = "bright"

    def __init__(self) -> None:
        super().__init__(3, 16, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 8 * images.mean(dim=1)


def test_predictions_of_a_model(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folders / "images" / "b.png", np.full((40, 30, 3), 9, np.uint8))
    pairs = pair_folders(folders / "images", folders / "masks")
    with open_saliency(_Bright(), batch_size=2) as runtime:
        photos = [read_photo(pair.picture) for pair in pairs]
        wanted = runtime.saliency(photos)
        sizes, run = [], SaliencyRuntime.stream
        monkeypatch.setattr(
            SaliencyRuntime, "stream",
            lambda self, batches: run(self, (sizes.append(len(each)) or each for each in batches)),
        )  # fmt: skip
        found = list(predict_pairs(runtime, pairs))
    assert sizes == [2, 1]
    assert [each.name for each in found] == ["a", "b", "c"]
    for prediction, photo, saliency in zip(found, photos, wanted, strict=True):
        np.testing.assert_array_equal(prediction.image, photo)
        np.testing.assert_array_equal(prediction.saliency, saliency)


def test_the_photographs_of_a_batch_are_not_kept(folders: Path) -> None:
    for number in range(8):
        for kind, channels in (("images", 3), ("masks", 1)):
            write(folders / kind / f"large{number}.png", np.full((1500, 1500, channels), 90, np.uint8))
    pairs = [
        pair
        for pair in pair_folders(folders / "images", folders / "masks", ignore_unpaired=True)
        if pair.stem.startswith("large")
    ]
    with open_saliency(_Bright(), batch_size=8) as runtime:
        tracemalloc.start()
        for prediction in predict_pairs(runtime, pairs):
            assert prediction.saliency.shape == (1500, 1500)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # A photograph and its saliency are 16 MB, and may be there twice; eight of them are 126 MB.
    assert peak < 60e6


def test_subfolders(folders: Path) -> None:
    for kind in ("saliency", "masks"):
        (folders / kind / "below").mkdir()
        (folders / kind / "a.png").rename(folders / kind / "below" / "a.png")
    predictions = read_predictions(folders / "saliency", folders / "masks", recursive=True)
    results = evaluate_folder(predictions, folders / "masks", recursive=True)
    assert [image["name"] for image in results.images] == ["b", "below/a", "c"]


def test_the_table_has_every_figure() -> None:
    rows = table(evaluate(cases(3), MetricSettings(threshold=0.2)))
    assert [row.name for row in rows] == [figure.heading for figure in FIGURES]
    assert rows[0].value == "0.900"
