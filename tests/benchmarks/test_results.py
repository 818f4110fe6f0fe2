"""Committed results are complete: no figure without its machine, commit, spread and error."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from fastdirs.discovery import METHODS

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
RESULTS = SCRIPTS / "results"
FILES = sorted(RESULTS.glob("*.json"))
KEYS = {"schema", "suite", "machine", "environment", "commit", "dirty", "settings", "rows"}
MACHINE = {"processor", "cores", "memory_gib", "bf16_unit", "system", "gpu"}
ROW = {
    "name", "precision", "images_per_second", "low", "high", "error_mean", "error_max", "matrix_share",
    "failure", "extra",
}  # fmt: skip
TRAINING_ROW = {
    "name", "precision", "reconstructor", "steps_per_second", "low", "high", "first_loss_error", "accuracy",
}  # fmt: skip
DIRECTIONS_ROW = {"name", "directions", "trains", "cosines", "seconds"}
SETTINGS = {
    "traverse-raw": {
        "generator", "batch", "rounds", "gflop_per_image", "matrix_tflops", "best", "ratios", "best_int8",
        "ratios_int8",
    },
    "traverse-files": {"generator", "batch", "rounds", "images", "backend", "share_of_raw"},
    "traverse-memory": {"generator", "batch", "images", "resident_mib", "growth_mib", "curve"},
    "layers": {
        "generator", "batch", "rounds", "backend", "edited_layers", "seeds", "directions", "steps",
        "rendered", "evaluations", "difference", "ratio",
    },
    "int8": {
        "generator", "batch", "rounds", "gflop_per_image", "matrix_tflops", "calibration_images", "quantised",
    },
    "families": {"rounds", "networks", "matrix_tflops"},
    "families-chosen": {"rounds", "networks", "matrix_tflops"},
    "toy-directions": {
        "generator", "img_resolution", "attributes", "seeds", "steps", "threads", "chance",
    },
    "discover": {
        "generator", "batch", "directions", "steps", "rounds", "held_out_pairs", "ratio",
    },
    "centroid": {"steps", "seeds", "weights", "batch"},
    "masks-speed": {"generator", "rounds", "pairs", "batch", "best", "ratios", "share_of_raw", "acceptance"},
    "masks-memory": {"generator", "backend", "batch", "growth_mib"},
    "saliency-chain": {"pairs", "steps", "seeds", "batch", "agreement", "seconds"},
    "reconstructor": {
        "batch", "rounds", "img_resolution", "num_directions", "gflop_per_pair", "matrix_tflops",
    },
}  # fmt: skip

OTHER_ROWS = ("toy-directions", "discover", "centroid", "masks-memory", "saliency-chain")
every_result = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(), parse_constant=_refuse)
    return content


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("suite", SETTINGS)
def test_every_suite_has_a_result(suite: str) -> None:
    found = [path for path in FILES if path.name.startswith(f"{suite}--")]
    script = suite.replace("-", "_")
    command = f"{script}.py" if (SCRIPTS / f"{script}.py").is_file() else "{}.py {}".format(*suite.split("-"))
    assert found, f"run: python benchmarks/{command}"


@every_result
def test_it_says_where_and_of_what_it_holds(path: Path) -> None:
    content = read(path)
    assert set(content) == KEYS
    assert content["schema"] == 1
    assert path.name.startswith(f"{content['suite']}--")
    assert set(content["machine"]) == MACHINE
    assert content["machine"]["cores"] >= 1
    assert content["machine"]["processor"]
    assert {"fastdirs", "python", "numpy", "torch", "onnx"} <= set(content["environment"])
    assert re.fullmatch(r"[0-9a-f]{7,40}", content["commit"])
    assert content["dirty"] is False, "measured on code that was not committed"


@every_result
def test_settings(path: Path) -> None:
    content = read(path)
    settings = content["settings"]
    assert SETTINGS[content["suite"]] == set(settings)
    # The toy's suite searches in many ways, each with a batch of its own.
    if content["suite"] != "toy-directions":
        assert all(each["batch"] >= 1 for each in settings.get("networks", {"": settings}).values())
    if content["suite"] == "traverse-raw":
        assert f"{settings['best']}" in {f"{row['name']}, {row['precision']}" for row in content["rows"]}
        assert all(ratio > 0 for name in ("ratios", "ratios_int8") for ratio in settings[name].values())
    if content["suite"] == "traverse-memory":
        images, seconds, mib = zip(*settings["curve"], strict=True)
        # Linear in images: no part of the way is slower than half the mean rate; and flat in memory.
        rates = [
            (b - a) / (t - s) for a, b, s, t in zip(images, images[1:], seconds, seconds[1:], strict=False)
        ]
        assert min(rates) > 0.5 * images[-1] / seconds[-1]
        assert max(mib) - min(mib[len(mib) // 4 :]) < 64
    if content["suite"] == "masks-memory":
        assert content["rows"][-1]["pairs"] >= 200_000
        assert settings["growth_mib"] < 64, "flat"
    if content["suite"] == "layers":
        assert settings["ratio"] > 1
        assert settings["evaluations"][0] < settings["evaluations"][1]


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem.startswith("toy-directions")], ids=lambda path: path.stem
)
def test_rows_of_directions(path: Path) -> None:
    content = read(path)
    settings, rows = content["settings"], content["rows"]
    named = [(row["name"], row["directions"]) for row in rows]
    assert len(named) == len(set(named))
    general = {name for name in METHODS.names() if not METHODS.load(name).seeks}
    assert {row["name"].partition(",")[0] for row in rows} == general
    for row in rows:
        assert set(row) == DIRECTIONS_ROW
        assert len(row["cosines"]) == len(row["seconds"]) == settings["seeds"] >= 3
        assert {len(cosines) for cosines in row["cosines"]} == {len(settings["attributes"])}
        assert all(0 <= cosine <= 1 for cosines in row["cosines"] for cosine in cosines)
        assert all(0 < seconds < math.inf for seconds in row["seconds"])


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if not path.stem.startswith(OTHER_ROWS)],
    ids=lambda path: path.stem,
)
def test_rows(path: Path) -> None:
    rows = read(path)["rows"]
    assert rows
    networks = read(path)["settings"].get("networks", {})
    pairs = [(row["name"], row["precision"]) for row in rows]
    assert len(pairs) == len(set(pairs))
    for row in rows:
        assert set(row) == ROW
        if row["failure"] is not None:
            assert row["failure"].strip()
            continue
        assert row["precision"] in ("f32", "bf16", "f16", "int8")
        assert 0 < row["low"] <= row["images_per_second"] <= row["high"] < math.inf
        assert 0 <= row["error_mean"] <= row["error_max"] <= 255
        # Operations are counted in the network as it was published; graphs of this form need 4 of 9 of them.
        form = networks.get(row["name"].partition(":")[0], {}).get("lowering")
        fewer = form == "subpixel" and "eager" not in row["name"]
        assert row["matrix_share"] is None or 0 < row["matrix_share"] < (1.5 * 9 / 4 if fewer else 1.5)
        assert all(value > 0 for value in row["extra"].values())


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem.startswith("discover")], ids=lambda path: path.stem
)
def test_rows_of_training(path: Path) -> None:
    content = read(path)
    rows, steps = content["rows"], content["settings"]["steps"]
    assert [row["name"] for row in rows][:2] == ["straightforward loop", "fastdirs"]
    for row in rows:
        assert set(row) == TRAINING_ROW
        assert 0 < row["low"] <= row["steps_per_second"] <= row["high"]
        assert row["first_loss_error"] < 0.02 or row["reconstructor"] != rows[0]["reconstructor"]
        assert list(row["accuracy"])[-1] == str(steps)
        assert all(0 <= share <= 1 for share in row["accuracy"].values())


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem.startswith("centroid")], ids=lambda path: path.stem
)
def test_rows_of_the_centroid_loss(path: Path) -> None:
    content = read(path)
    settings, rows = content["settings"], content["rows"]
    assert {row["weight"] for row in rows} == set(settings["weights"]) > {0.0}
    assert len({row["generator"] for row in rows}) >= 2
    for row in rows:
        assert 0 <= row["rca"] <= 1
        assert -1 <= row["consistency"] <= 1
        assert 0 <= row["smoothness"] <= 1


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem.startswith("saliency-chain")], ids=lambda path: path.stem
)
def test_rows_of_the_chain(path: Path) -> None:
    rows = {row["name"]: row for row in read(path)["rows"]}
    assert all(0 <= row["iou"] <= 1 and row["images"] > 0 for row in rows.values())
    kept = rows["masks, sought direction, refined, filtered"]
    assert kept["iou"] >= 0.75, "of the synthesised masks, on images that were not used to choose anything"
    # What one mask for all images reaches is no merit of a direction.
    constant = rows["one mask for all images (the judge's mean)"]["iou"]
    assert rows["saliency model"]["iou"] > constant
    assert rows["toy: masks"]["iou"] > 0.9
    assert rows["toy: saliency model on unseen scenes"]["iou"] > 0.9
