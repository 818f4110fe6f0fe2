"""What a machine lacks to run TensorRT, and which of the two libraries it runs, from facts of any machine."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdirs.backends import engine_path
from fastdirs.backends._tensorrt_library import (
    Gpu,
    find_gpu,
    here,
    installed,
    load,
    rtx_targets,
    runnable,
)
from fastdirs.errors import BackendError

ADA = Gpu("NVIDIA GeForce RTX 4090", "8.9")
HOPPER = Gpu("NVIDIA H100", "9.0")
RTX = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
BOTH = ("tensorrt", "tensorrt-rtx")


@pytest.mark.parametrize(
    ("gpu", "found", "libraries"),
    [
        (ADA, BOTH, BOTH),
        (ADA, ("tensorrt-rtx", "tensorrt"), BOTH),
        (ADA, ("tensorrt",), ("tensorrt",)),
        (ADA, ("tensorrt-rtx",), ("tensorrt-rtx",)),
        (HOPPER, BOTH, ("tensorrt",)),
    ],
)
def test_what_runs_in_order_of_preference(
    gpu: Gpu, found: tuple[str, ...], libraries: tuple[str, ...]
) -> None:
    assert runnable(gpu, found, True, RTX) == (libraries, "")


@pytest.mark.parametrize(
    ("gpu", "found", "torch_cuda", "said"),
    [
        ("no NVIDIA driver is installed", BOTH, True, r"no NVIDIA driver.* Install NVIDIA's driver"),
        (ADA, (), True, r"not installed\. pip install 'fastdirs\[gpu\]'.*pip install 'fastdirs\[rtx\]'"),
        (HOPPER, ("tensorrt-rtx",), True, r"nothing for the NVIDIA H100 \(.*9\.0.*8\.9.*fastdirs\[gpu\]"),
        (ADA, BOTH, False, r"torch .* does not compute on the GPU\. Install a build of it for CUDA"),
        # The first thing to do is named first.
        ("no NVIDIA driver is installed", (), False, "no NVIDIA driver"),
        (ADA, (), False, "TensorRT is not installed"),
    ],
)
def test_what_lacks(gpu: Gpu | str, found: tuple[str, ...], torch_cuda: bool, said: str) -> None:
    libraries, lacking = runnable(gpu, found, torch_cuda, RTX)
    assert libraries == ()
    assert re.search(said, lacking), lacking


def test_generations() -> None:
    assert [Gpu("", each).major for each in ("7.5", "8.9", "12.0")] == [7, 8, 12]


def test_this_machine() -> None:
    gpu, (libraries, lacking) = find_gpu(), here()
    assert bool(libraries) != bool(lacking)
    if isinstance(gpu, str):
        assert lacking.startswith(gpu)
        assert "driver" in lacking


def test_targets_of_the_library() -> None:
    # What its enumeration holds beside GPUs, such as the current one, is none.
    trt = pytest.importorskip("tensorrt_rtx")
    targets = rtx_targets(trt)
    assert {"7.5", "8.0", "8.6", "8.9", "12.0"} <= set(targets)
    assert list(targets) == sorted(targets, key=float)
    assert targets["12.0"] == trt.ComputeCapability.SM120


def test_tensorrt_is_not_touched_without_a_driver() -> None:
    # It may end the process.
    if not isinstance(find_gpu(), str):
        pytest.skip("there is a driver")
    with pytest.raises(BackendError, match=r"TensorRT cannot be used here: .*driver.*build for tensorrt-rtx"):
        load("tensorrt")


def test_not_installed(python_without: Callable[..., str]) -> None:
    code = """
from fastdirs.backends._tensorrt_library import installed, load
from fastdirs.backends import BACKENDS
from fastdirs.errors import MissingDependencyError
backend = BACKENDS.load("trt")
try:
    load("tensorrt-rtx")
except MissingDependencyError as error:
    print(installed(), backend.precisions(), error)
"""
    said = python_without(["tensorrt", "tensorrt_rtx"], code)
    assert said.startswith("() () TensorRT for RTX cannot be loaded: ")
    assert "pip install 'fastdirs[rtx]'" in said


def test_installed_here() -> None:
    pytest.importorskip("tensorrt_rtx")
    assert "tensorrt-rtx" in installed()


def test_the_process_ends_well_after_a_build(python_without: Callable[..., str], tmp_path: Path) -> None:
    # The library logs to an object of Python until its very end.
    pytest.importorskip("tensorrt_rtx")
    code = """
from fastdirs.backends._tensorrt_library import load, logger
trt = load("tensorrt-rtx")
builder, runtime = trt.Builder(logger("tensorrt-rtx")), trt.Runtime(logger("tensorrt-rtx"))
print(runtime.deserialize_cuda_engine(b"no engine"), len(logger("tensorrt-rtx").lines) > 0)
"""
    assert python_without([], code) == "None True\n"


@pytest.mark.parametrize(
    ("graph", "engine"),
    [
        ("synthesis.onnx", "synthesis.tensorrt-rtx.engine"),
        ("synthesis.f16.onnx", "synthesis.f16.tensorrt-rtx.engine"),
    ],
)
def test_where_engines_lie(graph: str, engine: str) -> None:
    assert engine_path(Path("folder") / graph, "tensorrt-rtx") == Path("folder") / engine
