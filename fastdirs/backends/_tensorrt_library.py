"""Which NVIDIA GPU and which TensorRT library this machine has, what it lacks, and what TensorRT says."""

import ctypes
import importlib
import importlib.util
import os
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from fastdirs.errors import BackendError, MissingDependencyError
from fastdirs.registry import install_hint

# In the order of preference where both run.
LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
_MAJOR, _MINOR = 75, 76
_TAIL = 3


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU.

    Attributes:
        name: As its driver calls it.
        compute_capability: Such as "8.9".
    """

    name: str
    compute_capability: str

    @property
    def major(self) -> int:
        """The generation: 7 for Turing, 8 for Ampere and Ada, 9 for Hopper, 10 and 12 for Blackwell."""
        return int(self.compute_capability.partition(".")[0])


@cache
def find_gpu() -> Gpu | str:
    """The first NVIDIA GPU that this process sees, or why there is none.

    The driver itself is asked, since TensorRT without a driver ends the process in some releases.

    Source: the CUDA driver API; 75 and 76 are the two halves of the compute capability there.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is installed"
    if code := driver.cuInit(0):
        return f"the NVIDIA driver does not start (cuInit returns {code})"
    count, device, value = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver finds no GPU"
    codes = [driver.cuDeviceGet(ctypes.byref(device), 0), driver.cuDeviceGetName(name, len(name), device)]
    halves = []
    for attribute in (_MAJOR, _MINOR):
        codes.append(driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
        halves.append(str(value.value))
    return "the NVIDIA driver does not describe its GPU" if any(codes) else Gpu(
        name.value.decode(errors="replace"), ".".join(halves)
    )  # fmt: skip


def runnable(
    gpu: Gpu | str, installed: Collection[str], torch_cuda: bool, rtx: Collection[str]
) -> tuple[tuple[str, ...], str]:
    """The libraries that run on a machine, best first, and what it lacks ("" if it runs one).

    Args:
        gpu: Its GPU, or why there is none.
        installed: Libraries that are installed.
        torch_cuda: Whether torch computes on the GPU.
        rtx: Compute capabilities that TensorRT for RTX builds for.
    """
    if isinstance(gpu, str):
        return (), f"{gpu}. Install NVIDIA's driver, or use a backend for CPUs."
    fitting = tuple(
        name for name in LIBRARIES if name in installed and (name != "tensorrt-rtx" or _fits(gpu, rtx))
    )
    full, light = (install_hint(module) for module in LIBRARIES.values())
    if not installed:
        return (), f"TensorRT is not installed. {full}, or for GeForce and RTX cards {light}."
    if not fitting:
        return (), (
            f"TensorRT for RTX has nothing for the {gpu.name} (compute capability {gpu.compute_capability}; "
            f"it has {', '.join(rtx)}). Use TensorRT: {full}."
        )
    if not torch_cuda:
        return (), (
            f"torch {torch.__version__} does not compute on the GPU. "
            "Install a build of it for CUDA: https://pytorch.org/get-started."
        )
    return fitting, ""


def here() -> tuple[tuple[str, ...], str]:
    """`runnable` of this machine. Nothing of TensorRT is touched before the driver is known to work."""
    gpu = find_gpu()
    if isinstance(gpu, str):
        return runnable(gpu, (), False, ())
    found, broken = [], ""
    for library in installed():
        try:
            load(library)
            found.append(library)
        except MissingDependencyError as error:
            broken = str(error)
    if broken and not found:
        return (), broken
    rtx = tuple(rtx_targets(load("tensorrt-rtx"))) if "tensorrt-rtx" in found else ()
    return runnable(gpu, found, torch.cuda.is_available(), rtx)


def installed() -> tuple[str, ...]:
    """Libraries that are installed, without importing them."""

    def exists(module: str) -> bool:
        try:
            return importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            return False

    return tuple(name for name, module in LIBRARIES.items() if exists(module))


@cache
def load(library: str) -> Any:
    """The module of a library.

    Raises:
        BackendError: TensorRT on a machine without a driver, where it may end the process.
        MissingDependencyError: It is not installed, or not completely.
    """
    gpu = find_gpu()
    if library == "tensorrt" and isinstance(gpu, str):
        raise BackendError(
            f"TensorRT cannot be used here: {gpu}. Build on the machine with the GPU, or build for "
            "tensorrt-rtx, which needs none."
        )
    module = LIBRARIES[library]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{TITLES[library]} cannot be loaded: {error}. Install it: {install_hint(module)}"
        ) from error


def rtx_targets(trt: Any) -> dict[str, Any]:
    """Compute capabilities that TensorRT for RTX builds for, such as "8.9", as its enumeration has them."""
    members = trt.ComputeCapability.__members__
    numbers = sorted(int(name.removeprefix("SM")) for name in members if name.startswith("SM"))
    return {f"{number // 10}.{number % 10}": members[f"SM{number}"] for number in numbers}


@cache
def logger(library: str) -> Any:
    """The logger of a library, one for the process: TensorRT keeps the first that it is given.

    Its `lines` hold severity ("WARNING", "ERROR", ...) and text of the last messages that matter.
    """
    base: Any = load(library).ILogger
    least = int(base.Severity.WARNING)

    class Log(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.lines: deque[tuple[str, str]] = deque(maxlen=100)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= least:
                self.lines.append((severity.name, message.strip()))

    return Log()


def tail(log: Any) -> str:
    """The last errors that a logger heard, in one line."""
    said = [" ".join(text.split()) for severity, text in log.lines if severity != "WARNING"]
    return " | ".join(said[-_TAIL:]) or "it does not say why"


def _fits(gpu: Gpu, rtx: Collection[str]) -> bool:
    return gpu.compute_capability in rtx
