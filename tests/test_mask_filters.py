import os
from pathlib import Path

import numpy as np
import pytest

from fastdirs.errors import SelectionError
from fastdirs.mask_filters import REASONS, Filters, apply_filters

ROOT = Path(__file__).parents[1]
FIXTURE = Path(os.environ.get("FASTDIRS_FIXTURES", ROOT.parent / "shared" / "fixtures")) / "gld_masks"
ANY = Filters(min_area=0.0, max_area=1.0)


def mask(*boxes: tuple[int, int, int, int], size: int = 10) -> np.ndarray:
    """A mask of boxes: top, left, height, width."""
    made = np.zeros((size, size), dtype=bool)
    for top, left, height, width in boxes:
        made[top : top + height, left : left + width] = True
    return made


def no_histogram(batch: int) -> np.ndarray:
    return np.zeros((batch, 12), dtype=np.int32)


def test_each_reason_and_its_order() -> None:
    masks = np.stack([mask(), mask((0, 0, 1, 5)), mask((0, 0, 5, 10)), mask((2, 2, 4, 4))])
    _, areas, reasons = apply_filters(masks, no_histogram(4), Filters())
    assert [each[:1] for each in reasons] == [("empty",), ("too small",), ("too large",), ()]
    assert reasons[0] == ("empty", "too small"), "all that hold are told"
    assert areas.tolist() == [0.0, 0.05, 0.5, 0.16]
    assert {each for failing in reasons for each in failing} < set(REASONS)


def test_an_empty_mask_never_makes_a_pair_and_a_full_one_may() -> None:
    masks = np.stack([mask(), mask((0, 0, 10, 10))])
    assert apply_filters(masks, no_histogram(2), ANY)[2] == [("empty", "too small"), ()]


def test_small_parts_are_dropped_before_the_area_counts() -> None:
    # The single pixel touches the large part at a corner; the two others are parts of their own.
    given = mask((0, 0, 5, 4), (5, 4, 1, 1), (8, 8, 2, 2), (0, 9, 1, 1))
    filters = Filters(min_component=0.2, max_area=0.22)
    kept, areas, reasons = apply_filters(given[None], no_histogram(1), filters)
    assert np.array_equal(kept[0], mask((0, 0, 5, 4), (5, 4, 1, 1)))
    assert areas[0] == 0.21
    assert reasons == [()]
    # As large as the share is not larger than it: 4 of 20 pixels.
    kept, *_ = apply_filters(
        mask((0, 0, 5, 4), (8, 8, 2, 2))[None], no_histogram(1), Filters(min_component=0.2)
    )
    assert kept.sum() == 20


def test_parts_of_neighbouring_images_are_not_joined() -> None:
    masks = np.stack([mask((0, 0, 6, 6)), mask((0, 0, 1, 1)), mask()])
    kept, _, reasons = apply_filters(masks, no_histogram(3), Filters(min_component=0.5, min_area=0.0))
    assert kept.sum(axis=(1, 2)).tolist() == [36, 1, 0]
    assert [bool(each) for each in reasons] == [False, False, True]


@pytest.mark.parametrize(
    ("values", "peaks"),
    [
        ([0, 0, 9, 0, 0, 0, 0, 0, 0, 9, 0, 0], 2),
        # Two bins apart they are one, after smoothing.
        ([0, 0, 9, 0, 9, 0, 0, 0, 0, 0, 0, 0], 1),
        ([9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9], 2),
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], 1),
        ([9, 1, 1, 1, 1, 9, 1, 1, 1, 1, 1, 9], 3),
        ([0] * 12, 0),
    ],
)
def test_peaks_of_a_histogram(values: list[int], peaks: int) -> None:
    histograms = np.array([values], dtype=np.int32)
    masks = mask((0, 0, 4, 4))[None]
    for wanted in range(1, 5):
        reasons = apply_filters(masks, histograms, Filters(min_peaks=wanted))[2]
        assert reasons == [() if peaks >= wanted else ("few peaks",)]


def test_what_the_original_code_keeps() -> None:
    if not FIXTURE.is_dir():
        pytest.skip(f"needs the original code's masks in {FIXTURE}")
    with np.load(FIXTURE / "expected.npz", allow_pickle=False) as arrays:
        for name in ("intensity_thr0.95", "intensity_thr0.6", "diff_thr0.6", "diff_thr0.45"):
            masks = arrays[f"mask_{name}"].astype(bool)
            _, areas, reasons = apply_filters(masks, no_histogram(len(masks)), Filters())
            assert areas == pytest.approx(arrays[f"fraction_{name}"], abs=1e-6)
            assert [row for row, reason in enumerate(reasons) if not reason] == arrays[
                f"kept_{name}"
            ].tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_area": 0.5, "max_area": 0.5}, "area range 0.5 to 0.5 is empty"),
        ({"max_area": 1.5}, "out of range. Expected two ascending numbers from 0 to 1"),
        ({"min_area": float("nan")}, "area range nan to 0.5"),
        ({"min_peaks": 7}, "7 peaks are out of range"),
        ({"min_component": 1.0}, "smallest component of 1 is out of range"),
    ],
)
def test_values_out_of_range(values: dict[str, float], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        Filters(**values)
