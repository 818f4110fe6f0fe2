"""Saliency metrics: known values, published ones, and masks and maps at which measures break down."""

import math
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import py_sod_metrics as library
import pytest

from fastdirs.errors import DatasetError, SelectionError
from fastdirs.images import read_levels
from fastdirs.saliency.folders import pair_folders, read_mask, read_saliency
from fastdirs.saliency.metrics import FIGURES, IMAGE_FIGURES, MetricSettings, Scores

DATA = Path(__file__).parents[3] / "shared" / "data"
GOLDEN = {
    "DSS": {"mae": 0.121322, "max_f": 0.843922, "s_measure": 0.751368},
    "Amulet": {"mae": 0.140742, "max_f": 0.806060, "s_measure": 0.757920},
    "PiCANet": {"mae": 0.102085, "max_f": 0.853421, "s_measure": 0.790477},
}
RANDOM = np.random.RandomState(0)
MASK = np.zeros((24, 32), bool)
MASK[6:15, 8:20] = True


def score(saliency: np.ndarray, mask: np.ndarray, **settings: object) -> dict[str, float]:
    """The figures of one image, with every number in range."""
    scores = Scores(MetricSettings(**settings))
    found = scores.add("a", saliency, mask)
    overall = scores.overall()
    assert all(math.isfinite(value) and 0 <= value <= 1.01 for value in overall.values()), overall
    for figure in IMAGE_FIGURES:
        assert found[figure.key] == pytest.approx(overall[figure.key], abs=1e-12)
    return overall


def test_a_perfect_map() -> None:
    found = score(MASK.astype(np.float32), MASK)
    perfect = {key: value for key, value in found.items() if key not in ("mae", "mean_f", "mean_e")}
    assert found["mae"] == 0
    # The lowest of 256 thresholds calls everything salient.
    assert 0.99 < found["mean_f"] < 1
    # Benchmarks divide E by one pixel less than there are.
    assert perfect == pytest.approx(dict.fromkeys(perfect, 1.0), abs=2e-3)


def test_the_opposite_of_a_perfect_map() -> None:
    found = score((~MASK).astype(np.float32), MASK)
    assert found["mae"] == 1
    assert found["iou"] == found["accuracy"] == found["adaptive_f"] == 0
    assert found["weighted_f"] == pytest.approx(0, abs=1e-9)


def test_known_values() -> None:
    mask = np.zeros((10, 10), bool)
    mask[:, :4] = True
    saliency = np.zeros((10, 10))
    saliency[:, 2:6] = 1
    found = score(saliency, mask)
    assert found["iou"] == pytest.approx(20 / 60)
    assert found["accuracy"] == pytest.approx(0.6)
    assert found["mae"] == pytest.approx(0.4)
    # Precision and recall are a half each, at all thresholds but the lowest: there .4 and 1.
    lowest = 1.3 * 0.4 / (0.3 * 0.4 + 1)
    assert found["adaptive_f"] == pytest.approx(0.5)
    assert found["max_f"] == pytest.approx(0.5)
    assert found["mean_f"] == pytest.approx((255 * 0.5 + lowest) / 256)


def test_which_average_each_f_takes() -> None:
    """One image is right above a half, the other is right only above nine tenths."""
    first, second = np.full(MASK.shape, 0.2), np.full(MASK.shape, 0.8)
    first[MASK], second[MASK] = 0.8, 1.0
    scores = Scores(MetricSettings(stretch=False))
    scores.add("first", first, MASK)
    scores.add("second", second, MASK)
    share = MASK.mean()
    overall = scores.overall()
    f_of_all = 1.3 * share / (0.3 * share + 1)
    # Right for the first at .5, while everything of the second is called salient.
    assert overall["max_f_of_images"] == pytest.approx((1 + f_of_all) / 2)
    precision = (1 + share) / 2
    # Above .8 the first has neither precision nor recall, which the averages halve.
    assert overall["max_f"] == pytest.approx(max(1.3 * precision / (0.3 * precision + 1), 0.5))
    assert overall["max_f"] != pytest.approx(overall["max_f_of_images"], abs=0.01)


def test_only_some_figures_are_of_the_stretched_map() -> None:
    faint = 0.3 + 0.1 * MASK
    stretched, as_is = score(faint, MASK), score(faint, MASK, stretch=False)
    assert stretched["mae"] == pytest.approx(0)
    assert as_is["mae"] == pytest.approx((0.6 * MASK + 0.3 * ~MASK).mean(), abs=1e-3)
    for key in ("iou", "accuracy", "max_f_of_images"):
        assert stretched[key] == as_is[key]
    assert stretched["iou"] == 0
    assert score(faint, MASK, threshold=0.35)["iou"] == 1


def test_settings_matter() -> None:
    saliency = MASK * 0.3 + RANDOM.rand(*MASK.shape) * 0.7
    plain = score(saliency, MASK)
    for key, settings in (
        ("max_f", {"beta_squared": 1.0}),
        ("weighted_f", {"weighted_beta_squared": 0.3}),
        ("s_measure", {"alpha": 0.9}),
    ):
        changed = score(saliency, MASK, **settings)
        assert changed[key] != plain[key]
        others = {figure.key for figure in FIGURES} - {
            "max_f",
            "mean_f",
            "adaptive_f",
            "max_f_of_images",
            key,
        }
        assert all(changed[other] == plain[other] for other in others - {key})


@pytest.mark.parametrize("setting", ["threshold", "alpha", "beta_squared", "weighted_beta_squared"])
@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_settings_out_of_range(setting: str, value: float) -> None:
    with pytest.raises(SelectionError, match=f"{setting} is "):
        MetricSettings(**{setting: value})


def test_float32_falls_into_the_same_levels() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    mask = levels % 3 == 0
    exact, rounded = score(levels / 255, mask), score((levels / 255).astype(np.float32), mask)
    assert exact == rounded


@pytest.mark.parametrize(
    "place",
    [np.s_[-1:, :], np.s_[:, -1:], np.s_[-1, -1], np.s_[0, 0], np.s_[:, :], np.s_[:1, :], np.s_[3, 5]],
    ids=["last row", "last column", "last pixel", "first pixel", "all", "first row", "one pixel"],
)
@pytest.mark.parametrize("saliency", ["zeros", "ones", "constant", "noise"])
def test_odd_masks_and_maps_give_numbers(place: object, saliency: str) -> None:
    mask = np.zeros((12, 9), bool)
    mask[place] = True
    maps = {
        "zeros": np.zeros(mask.shape), "ones": np.ones(mask.shape), "constant": np.full(mask.shape, 0.4),
        "noise": RANDOM.rand(*mask.shape),
    }  # fmt: skip
    score(maps[saliency], mask)


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (2, 2), (1, 40)])
def test_tiny_pictures(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, bool)
    mask[0, 0] = True
    scores = Scores()
    found = scores.add("a", RANDOM.rand(*shape), mask)
    assert all(value is not None and math.isfinite(value) for value in found.values())


def test_an_empty_mask_counts_only_where_it_means_something() -> None:
    scores = Scores()
    first = scores.add("a", MASK.astype(np.float32), MASK)
    empty = scores.add("b", np.zeros(MASK.shape), np.zeros(MASK.shape, bool))
    assert empty == {**dict.fromkeys(first), "mae": 0.0, "accuracy": 1.0}
    full = scores.add("c", np.ones(MASK.shape), np.zeros(MASK.shape, bool))
    assert full["mae"] == 1
    assert (scores.count, scores.empty) == (3, 2)
    overall = scores.overall()
    assert overall["iou"] == overall["max_f"] == 1
    assert overall["mae"] == pytest.approx(1 / 3)
    assert overall["accuracy"] == pytest.approx(2 / 3)


def test_nothing_to_score() -> None:
    scores = Scores()
    with pytest.raises(DatasetError, match="there are no images"):
        scores.overall()
    scores.add("a", np.zeros((4, 4)), np.zeros((4, 4), bool))
    with pytest.raises(DatasetError, match="masks of all 1 images are empty"):
        scores.overall()


@pytest.mark.parametrize(
    ("saliency", "mask", "message"),
    [
        (np.zeros((4, 5)), np.ones((5, 4), bool), r"\[4, 5\], its mask \[5, 4\]"),
        (np.full((4, 4), np.nan), np.ones((4, 4), bool), "no NaN"),
        (np.full((4, 4), 255.0), np.ones((4, 4), bool), "between 255 and 255, expected 0 to 1"),
        (np.full((4, 4), -0.5), np.ones((4, 4), bool), "between -0.5"),
        (np.zeros((4, 4)), np.ones((4, 4), np.uint8), "of bool"),
        (np.zeros((1, 1)), np.ones((1, 1), bool), "two pixels or more"),
        (np.zeros((0, 4)), np.ones((0, 4), bool), "two pixels or more"),
        (np.zeros((2, 4, 3)), np.ones((2, 4, 3), bool), "two pixels or more"),
    ],
)
def test_what_is_no_pair_is_named(saliency: np.ndarray, mask: np.ndarray, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        Scores().add("duck", saliency, mask)
    assert "duck" in str(caught.value)


def test_rounding_beyond_the_range_is_forgiven() -> None:
    assert score(MASK * np.float32(1.0000002), MASK)["mae"] == 0


def test_what_is_kept_does_not_grow() -> None:
    scores = Scores()
    for _ in range(20):
        scores.add("a", MASK.astype(np.float32), MASK)
    held = [value for kept in (scores, scores._weighted) for value in vars(kept).values()]
    assert not any(isinstance(value, list) and value for value in held)


def test_every_figure_says_what_it_means() -> None:
    assert len({figure.key for figure in FIGURES}) == len(FIGURES)
    assert all(figure.meaning.endswith(".") for figure in FIGURES)
    assert [figure.key for figure in FIGURES if figure.falls] == ["mae"]


def test_a_missing_library_is_named() -> None:
    code = "import sys; sys.modules['py_sod_metrics'] = None; import fastdirs.saliency.metrics"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        "MissingDependencyError: Saliency metrics need py_sod_metrics, which is not installed" in done.stderr
    )


@pytest.fixture(scope="module")
def sod(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SOD set and three methods' published saliency maps for it."""
    if not (DATA / "sod_predictions.tar").is_file():
        pytest.skip(f"published saliency maps are not in {DATA}")
    folder = tmp_path_factory.mktemp("sod")
    for name in ("sod.tar", "sod_predictions.tar"):
        with tarfile.open(DATA / name) as archive:
            archive.extractall(folder, filter="data")
    return folder


def pictures_of_sod(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = pair_folders(folder / "SaliencyMaps" / "SOD" / "Amulet", folder / "SOD" / "masks")
    return [(read_levels(saliency)[..., 0], read_levels(mask)[..., 0]) for _, saliency, mask in pairs[::60]]


def drawn_pictures() -> list[tuple[np.ndarray, np.ndarray]]:
    """Discs, and maps of them that are blurred, faint and noisy; sizes are mixed."""
    pictures = []
    for height, width in ((40, 50), (33, 64), (64, 31)):
        rows, columns = np.mgrid[:height, :width]
        distance = np.hypot(rows - height * RANDOM.rand(), columns - width * RANDOM.rand())
        noisy = np.exp(-((distance / 15) ** 2)) * 160 + RANDOM.rand(height, width) * 60 + 10
        pictures.append((noisy.astype(np.uint8), (distance < 12).view(np.uint8) * np.uint8(255)))
    return pictures


@pytest.mark.parametrize("source", ["drawn", "sod"])
def test_sums_are_those_of_the_library(request: pytest.FixtureRequest, source: str) -> None:
    pictures = drawn_pictures() if source == "drawn" else pictures_of_sod(request.getfixturevalue("sod"))
    scores = Scores()
    f = library.FmeasureV2(
        {
            "f": library.FmeasureHandler(True, True, beta=0.3),
            "p": library.PrecisionHandler(True, False),
            "r": library.RecallHandler(True, False),
        }
    )
    measures = [f, library.Emeasure(), library.Smeasure(), library.MAE(), library.WeightedFmeasure()]
    for saliency, mask in pictures:
        scores.add("a", saliency / np.float32(255), mask > 128)
        for measure in measures:
            measure.step(saliency, mask)
    of_f, e, s, mae, weighted = (measure.get_results() for measure in measures)
    precision, recall = of_f["p"]["dynamic"], of_f["r"]["dynamic"]
    expected = {
        "mae": mae["mae"],
        "max_f": np.nanmax(1.3 * precision * recall / (0.3 * precision + recall + 1e-12)),
        "mean_f": of_f["f"]["dynamic"].mean(),
        "adaptive_f": of_f["f"]["adaptive"],
        "weighted_f": weighted["wfm"],
        "s_measure": s["sm"],
        "max_e": e["em"]["curve"].max(),
        "mean_e": e["em"]["curve"].mean(),
        "adaptive_e": e["em"]["adp"],
    }
    overall = scores.overall()
    assert {key: overall[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    curves = scores.curves()
    np.testing.assert_allclose(curves["precision"], precision)
    np.testing.assert_allclose(curves["recall"], recall)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(GOLDEN))
def test_published_values_of_all_images(sod: Path, method: str) -> None:
    scores = Scores()
    for name, saliency, mask in pair_folders(sod / "SaliencyMaps" / "SOD" / method, sod / "SOD" / "masks"):
        scores.add(name, read_saliency(saliency), read_mask(mask))
    overall = scores.overall()
    assert (scores.count, scores.empty) == (300, 0)
    assert {key: round(overall[key], 6) for key in GOLDEN[method]} == GOLDEN[method]
