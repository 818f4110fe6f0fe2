"""Torch, executed as it is: the reference, and the fallback that always works."""

from torch import nn

from fastdirs.backends import Backend, Session
from fastdirs.backends._torch_session import TorchSession, torch_precisions
from fastdirs.recipe import Batch


def _open(source: nn.Module, precision: str, streaming: bool = False, batch: Batch | None = None) -> Session:
    return TorchSession("eager", source, precision)


BACKEND = Backend(summary="torch, uncompiled", runs="module", precisions=torch_precisions, open=_open)
