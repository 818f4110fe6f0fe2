"""What ONNX Runtime needs for NVIDIA GPUs: a driver, its GPU build, and libraries that it can load."""

import ctypes
import importlib.util
import io
from collections.abc import Iterable
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path

import onnxruntime
import torch
from onnx import TensorProto, helper

from fastdirs.backends._ort_session import open_graph
from fastdirs.backends._tensorrt_library import find_gpu
from fastdirs.backends._torch_session import NO_CUDA
from fastdirs.errors import BackendError

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
# In the order in which they need each other. The wheels of ONNX Runtime up to 1.31 are linked to these.
_TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")


def lacks(provider: str) -> str:
    """What this machine lacks to run a provider of NVIDIA GPUs, and what to do; "" if nothing.

    Args:
        provider: Its name in ONNX Runtime.
    """
    gpu = find_gpu()
    if isinstance(gpu, str):
        return f"{gpu}. Install NVIDIA's driver (580 or later for CUDA 13), or use a backend for CPUs."
    version = onnxruntime.__version__
    # What the GPU build names on every machine, so that it says nothing of this one.
    if provider not in onnxruntime.get_available_providers():
        return (
            f"ONNX Runtime {version} is a build without {provider}. pip uninstall onnxruntime, then "
            f"pip install 'fastdirs[gpu]'{_more(provider)}."
        )
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        return (
            f"ONNX Runtime {version} does not say what it leaves to the CPU. "
            "pip install --upgrade onnxruntime-gpu."
        )
    if not torch.cuda.is_available():
        return NO_CUDA
    return _refusal(provider)


@cache
def _refusal(provider: str) -> str:
    """Why the smallest graph does not run on a provider; "" if it does. Nothing else tells for sure."""
    load_libraries(provider)
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Exp", ["x"], ["y"])], "smallest", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    try:
        open_graph(model.SerializeToString(), provider, hint=needs(provider))
    except BackendError as error:
        return str(error)
    return ""


def needs(provider: str) -> str:
    """The libraries that a provider loads, and where they come from."""
    cuda = getattr(onnxruntime, "cuda_version", "") or "13"
    return (
        f"ONNX Runtime {onnxruntime.__version__} needs CUDA {cuda} and cuDNN 9, which a torch of that CUDA "
        f"brings{_more(provider)}."
    )


def _more(provider: str) -> str:
    """TensorRT 11, which the backend of TensorRT itself prefers, has other library names."""
    if provider != TENSORRT:
        return ""
    return (
        ", and TensorRT 10, not 11: pip install 'tensorrt-cu13<11', in an environment of its own if you use "
        "TensorRT 11 as well"
    )


def load_libraries(provider: str) -> None:
    """Load what pip has installed outside the system's search path; what is missing shows when it is used.

    Args:
        provider: Its name in ONNX Runtime.
    """
    # It prints what it does not find.
    with redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()
    if provider == TENSORRT:
        for path in tensorrt_libraries():
            with suppress(OSError):
                ctypes.CDLL(str(path))


def tensorrt_libraries() -> Iterable[Path]:
    """The libraries of TensorRT 10 that pip has installed, in the order in which they need each other."""
    spec = importlib.util.find_spec("tensorrt_libs")
    folders = [Path(each) for each in (spec.submodule_search_locations or [] if spec else [])]
    paths = [folder / name for name in _TENSORRT_LIBRARIES for folder in folders]
    return [path for path in paths if path.is_file()]
