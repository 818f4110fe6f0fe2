"""The GPU suite keeps nothing where there is no GPU, and measures what opens: here on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
_RUN = """
import contextlib, json, sys
from dataclasses import asdict
sys.path.insert(0, "benchmarks")
import fastdirs, gpu
from fastdirs.errors import BackendError
from fastdirs.graphs import SynthesisGraph
from fastdirs.recipe import Batch
generator = fastdirs.load_generator("toy")
with contextlib.redirect_stdout(sys.stderr):
    settings, rows = gpu.measured(generator, 2, 3, ("ort", "eager", "trt"), "cpu", ("f32",))
    gpu.print_rows(rows)
try:
    gpu.opened(gpu.Candidate("eager", "f32"), SynthesisGraph(generator), Batch(opt=2, max=2), "cuda")
except BackendError as error:
    elsewhere = str(error)
print(json.dumps([settings, [asdict(row) for row in rows], elsewhere]))
"""


def _python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_kept() -> None:
    before = {path: path.stat().st_mtime_ns for path in (ROOT / "benchmarks" / "results").iterdir()}
    done = _python("benchmarks/gpu.py", "--generator", "toy", "--batch", "2", "--rounds", "1")
    assert done.returncode == 1
    assert done.stderr.startswith("not measured: ")
    assert "driver" in done.stderr or "torch" in done.stderr
    assert done.stdout == ""
    assert before == {path: path.stat().st_mtime_ns for path in (ROOT / "benchmarks" / "results").iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_opens_is_measured_and_what_does_not_is_a_row() -> None:
    done = _python("-c", _RUN)
    assert done.returncode == 0, done.stderr
    settings, rows, elsewhere = json.loads(done.stdout)
    found = {(row["name"], row["precision"]): row for row in rows}
    assert len(found) == len(rows)
    for name in ("ort", "ort, kept on the GPU", "eager"):
        row = found[name, "f32"]
        assert row["failure"] is None
        assert 0 < row["low"] <= row["images_per_second"] <= row["high"]
        assert 0 <= row["error_mean"] <= row["error_max"] < 0.5
        # Only the first of them compiles.
        assert list(row["extra"]) == ([] if "," in name else ["seconds_to_open"])
        assert f"{name} f32" in settings["providers"]
    # Ways that a backend does not have are no candidates.
    assert not {("ort, without CUDA graphs", "f32"), ("ort, streamed", "f32")} & set(found)
    assert "driver" in found["trt", ""]["failure"]
    assert settings["batch"] == 2
    # What computes elsewhere is not measured.
    assert elsewhere == "it computes on cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu() -> None:
    done = _python("benchmarks/gpu.py", "--generator", "toy", "--batch", "4", "--rounds", "2", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "eager" in done.stdout
    assert "kept in" not in done.stdout
