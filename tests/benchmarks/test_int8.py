"""The int8 suite measures every form on every runtime of CPUs, with an error beside each figure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastdirs.machine import bf16_unit

ROOT = Path(__file__).parents[2]
_RUN = """
import contextlib, json, sys
from dataclasses import asdict
sys.path.insert(0, "benchmarks")
import int8, torch
from fastdirs.generators import GENERATORS
torch.manual_seed(0)
config = json.load(open("tests/generators/configs.json"))["sngan"]
with contextlib.redirect_stdout(sys.stderr):
    settings, rows = int8.int8(GENERATORS.load("sngan").build(config), 2, 1)
print(json.dumps([settings, [asdict(row) for row in rows]]))
"""


@pytest.mark.slow
def test_every_form_in_every_precision() -> None:
    done = subprocess.run([sys.executable, "-c", _RUN], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    settings, rows = json.loads(done.stdout)
    floats = ["f32", "bf16"] if bf16_unit() else ["f32"]
    assert sorted((row["name"], row["precision"]) for row in rows) == sorted(
        (f"{form}, {runtime}{kind}", precision)
        for form in ("subpixel", "folded")
        for runtime, precisions in (("openvino_cpu", floats), ("ort", ["f32"]))
        for kind, names in (("", [*precisions, "int8"]), (", symmetric", ["int8"]))
        for precision in names
    )
    for row in rows:
        assert row["failure"] is None
        assert 0 < row["low"] <= row["images_per_second"] <= row["high"]
        assert row["error_mean"] <= row["error_max"]
        assert (row["matrix_share"] is None) is (row["precision"] == "int8")
        assert (row["error_mean"] > 0.05) is (row["precision"] == "int8") or row["precision"] == "bf16"
        assert row["error_mean"] < (0.01 if row["precision"] == "f32" else 3)
    assert settings["batch"] == 2
    assert settings["calibration_images"] == 128
    for layers in settings["quantised"].values():
        assert layers["quantised"]
        assert layers["left_in_float"]
