"""What every runtime says when memory is short, and what helps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastdirs.errors import BackendError

# Runtimes have no exception of their own for it. From torch and OpenVINO on CPUs, ONNX Runtime's arena, CUDA,
# cuDNN and cuBLAS, and C++.
_SAID = (
    "can't allocate memory", "failed to allocate", "out of memory", "status_alloc_failed",
    "allocation_failed", "bad_alloc",
)  # fmt: skip


def lacks_memory(error: Exception) -> bool:
    """Whether that is what an error of a runtime says.

    Args:
        error: What it raised.
    """
    said = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(each in said for each in _SAID)


@contextmanager
def enough_memory() -> Iterator[None]:
    """The block may need more memory than there is.

    Raises:
        BackendError: It does.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, BackendError) or not lacks_memory(error):
            raise
        lines = [*str(error).strip().splitlines(), type(error).__name__]
        reason = next((line for line in lines if any(each in line.lower() for each in _SAID)), lines[0])
        raise BackendError(
            f"There is too little memory for this batch: {reason.rstrip('.')}. Use a smaller --batch."
        ) from error
