"""Torch, executed as it is: the reference, and the fallback that always works."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from fastdirs.backends import Array, Backend, Kept, Session
from fastdirs.errors import BackendError
from fastdirs.machine import bf16_unit
from fastdirs.recipe import Batch

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class _Eager(Session):
    def __init__(
        self, source: nn.Module, precision: str, streaming: bool = False, batch: Batch | None = None
    ) -> None:
        if precision not in _DTYPES:
            raise BackendError(
                f"eager has no precision {precision!r}. Expected one of: {', '.join(_DTYPES)}."
            )
        self._dtype = _DTYPES[precision]
        # A copy: changing the precision of the caller's module would change the caller's pictures.
        self._module: nn.Module | None = (
            source if self._dtype == torch.float32 else copy.deepcopy(source).to(self._dtype)
        )
        self.precision = precision
        version = torch.__version__.partition("+")[0]
        self.provider = f"torch {version} on cpu, {torch.get_num_threads()} threads"
        self.detail = ""
        self.num_parallel = 1

    def run_all(self, inputs: Sequence[Kept]) -> list[Array]:
        assert self._module is not None
        with torch.inference_mode():
            # Copies: the module may write to its inputs, and the caller's arrays may be read-only.
            tensors = [torch.as_tensor(array).to(self._dtype, copy=True) for array in inputs]
            try:
                outputs: torch.Tensor | tuple[torch.Tensor, ...] = self._module(*tensors)
            except RuntimeError as error:
                if self._dtype == torch.float32:
                    raise
                reason = str(error).strip().splitlines()[0]
                raise BackendError(
                    f"The model does not run in {self.precision} in torch: {reason}. Use f32."
                ) from error
            several = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
            return [output.float().numpy() for output in several]

    def close(self) -> None:
        self._module = None


def _precisions() -> tuple[str, ...]:
    return ("f32", "bf16") if bf16_unit() else ("f32",)


BACKEND = Backend(summary="torch, uncompiled", runs="module", precisions=_precisions, open=_Eager)
