"""Torch, compiled: the module is one kernel graph made when it is first run, which takes a while."""

import importlib.util
import inspect
import os
import shutil
import warnings
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from fastdirs.backends import Backend, Session
from fastdirs.backends._memory import lacks_memory
from fastdirs.backends._torch_session import TorchSession, torch_device, torch_precisions
from fastdirs.errors import BackendError
from fastdirs.recipe import Batch

_COMPILERS = ("g++", "clang++", "cl")


class _Compiled:
    """A module that is compiled once for a batch of one and once for all others, whole or not at all.

    Otherwise torch compiles for every size that it meets, and after eight of them runs uncompiled without a
    word. Sizes that are not fixed cost nothing: 365 images/s against 359 (f32), 692 against 704 (bf16), which
    is less than their spread.
    """

    def __init__(self, module: nn.Module) -> None:
        settings: dict[str, Any] = {"fullgraph": True, "dynamic": True}
        # The limit of eight holds for a function, and sessions of equal modules share it.
        if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
            settings["isolate_recompiles"] = True
        self._call = torch.compile(module, **settings)
        self._known: set[tuple[torch.Size, ...]] = set()
        self._lock = Lock()

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        shapes = tuple(each.shape for each in inputs)
        with self._lock:
            if shapes in self._known:
                return self._run(inputs)
            # The compiler warns of its own internals, which a user cannot act on.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outputs = self._run(inputs)
            self._known.add(shapes)
        return outputs

    def _run(self, inputs: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        try:
            outputs: Tensor | tuple[Tensor, ...] = self._call(*inputs)
        except RuntimeError as error:
            if lacks_memory(error):
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = lines[0] if lines else type(error).__name__
            raise BackendError(
                f"torch cannot compile or run the model as one graph: {reason}. "
                "Use eager, which runs anything."
            ) from error
        return outputs


def _open(source: nn.Module, precision: str, streaming: bool = False, batch: Batch | None = None) -> Session:
    session = TorchSession("compiled", source, precision, _Compiled)
    if missing := _lacks():
        raise BackendError(missing)
    session.provider += ", compiled"
    return session


def _lacks() -> str:
    if torch_device() == "cuda":
        found = importlib.util.find_spec("triton") is not None
        return (
            "" if found else "torch compiles for GPUs with Triton, which is not installed. pip install triton"
        )
    compilers = (os.environ.get("CXX", ""), *_COMPILERS)
    if any(shutil.which(name) for name in compilers if name):
        return ""
    return (
        "torch compiles for CPUs with a C++ compiler, and there is none here. Install one (apt install g++), "
        "or name it in CXX."
    )


BACKEND = Backend(
    summary="torch, compiled",
    runs="module",
    precisions=lambda: () if _lacks() else torch_precisions(),
    open=_open,
    lacks=_lacks,
)
