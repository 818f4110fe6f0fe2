"""Tensors between the host and where a session computes."""

import numpy as np
import torch
from torch import Tensor

from fastdirs.backends import Array, Kept

_HALF = (torch.bfloat16, torch.float16)


def placed(value: Kept, device: str, dtype: torch.dtype) -> Tensor:
    """An input where a session computes, contiguous; a tensor that is there already is not copied.

    Work on a GPU is only begun, in the current stream.

    Args:
        value: Any array, or tensor, `[...]`.
        device: "cpu" or "cuda".
        dtype: What to convert it to.
    """
    if isinstance(value, Tensor):
        if value.is_cuda:
            # Its memory must not be used again before the current stream has read it.
            value.record_stream(torch.cuda.current_stream(value.device))
        return value.to(device, dtype).contiguous()
    if device == "cpu":
        # A copy: arrays that are read-only make no tensors.
        return torch.tensor(np.ascontiguousarray(value)).to(dtype)
    # A copy from pinned memory does not hold up the caller.
    numbers = torch.from_numpy(np.empty(0, value.dtype)).dtype
    pinned = torch.empty(value.shape, dtype=numbers, pin_memory=True)
    pinned.numpy()[...] = value
    return pinned.to(device, non_blocking=True).to(dtype)


def on_host(tensor: Tensor) -> Array:
    """The values as an array, once they are there; 16-bit floats as float32.

    Args:
        tensor: Any, `[...]`.
    """
    wide = (tensor.float() if tensor.dtype in _HALF else tensor).contiguous()
    if wide.is_cuda:
        host = torch.empty(wide.shape, dtype=wide.dtype, pin_memory=True).copy_(wide, non_blocking=True)
        torch.cuda.current_stream(wide.device).synchronize()
        wide = host
    array: Array = wide.numpy()
    return array
