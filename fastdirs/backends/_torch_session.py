"""A torch module as a session, on the GPU where torch has one: as it is, or compiled."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from fastdirs.backends import Array, Kept, Session
from fastdirs.backends._memory import enough_memory, lacks_memory
from fastdirs.backends._transfer import on_host, placed
from fastdirs.errors import BackendError
from fastdirs.machine import bf16_unit

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
NO_CUDA = (
    f"torch {torch.__version__} does not compute on the GPU. "
    "Install a build of it for CUDA: https://pytorch.org/get-started."
)
# The switch for TF32 is one for the process.
_SWITCH = Lock()
Call = Callable[..., Tensor | tuple[Tensor, ...]]


def torch_device() -> str:
    """Where torch computes here: "cuda" or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_precisions() -> tuple[str, ...]:
    """What torch executes here without emulation; half precision of IEEE only pays on GPUs."""
    if torch_device() == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("f32", "bf16", "f16") if native else ("f32", "f16")
    return ("f32", "bf16") if bf16_unit() else ("f32",)


class TorchSession(Session):
    """A module on torch.

    Args:
        name: The backend's, for messages.
        source: The module; it is left alone.
        precision: Arithmetic to compute in.
        prepare: Makes of the module what is called.
    """

    def __init__(
        self, name: str, source: nn.Module, precision: str, prepare: Callable[[nn.Module], Call] = lambda m: m
    ) -> None:
        self.device = torch_device()
        offered = [each for each in _DTYPES if each != "f16" or self.device == "cuda"]
        if precision not in offered:
            raise BackendError(
                f"{name} has no precision {precision!r} on {self.device}. "
                f"Expected one of: {', '.join(offered)}."
            )
        self._dtype = _DTYPES[precision]
        # A copy: another precision or place of the caller's module would change the caller's pictures.
        stays = self.device == "cpu" and self._dtype == torch.float32
        with enough_memory():
            module = source if stays else copy.deepcopy(source).to(self.device, self._dtype)
        self._call: Call | None = prepare(module)
        self.precision = precision
        version = torch.__version__.partition("+")[0]
        if self.device == "cuda":
            self.provider = f"torch {version} on {torch.cuda.get_device_name()}"
        else:
            self.provider = f"torch {version} on cpu, {torch.get_num_threads()} threads"
        self.detail = ""
        self.num_parallel = 1

    def run_kept(self, inputs: Sequence[Kept]) -> list[Kept]:
        """See `Session`: on a GPU tensors of the module's own type."""
        if self.device == "cpu":
            return super().run_kept(inputs)
        with enough_memory():
            return list(self._run(inputs))

    def run_all(self, inputs: Sequence[Kept]) -> list[Array]:
        """See `Session`."""
        with enough_memory():
            return [on_host(output) for output in self._run(inputs)]

    def close(self) -> None:
        """See `Session`."""
        self._call = None

    def _run(self, inputs: Sequence[Kept]) -> tuple[Tensor, ...]:
        assert self._call is not None
        exact = self.device == "cuda" and self._dtype == torch.float32
        with torch.inference_mode(), _no_tf32() if exact else nullcontext():
            # Copies: the module may write to its inputs.
            tensors = [
                placed(each, self.device, self._dtype).clone()
                if isinstance(each, Tensor)
                else placed(each, self.device, self._dtype)
                for each in inputs
            ]
            try:
                outputs = self._call(*tensors)
            except RuntimeError as error:
                if self._dtype == torch.float32 or lacks_memory(error):
                    raise
                reason = str(error).strip().splitlines()[0]
                raise BackendError(
                    f"The model does not run in {self.precision} in torch: {reason}. Use f32."
                ) from error
        return (outputs,) if isinstance(outputs, Tensor) else outputs


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Products of float32 keep their 23 bits; NVIDIA's default for convolutions are 10."""
    # The older switches cannot be read any more once somebody has used the newer ones.
    newer = hasattr(torch.backends.cuda.matmul, "fp32_precision")
    name, exact = ("fp32_precision", "ieee") if newer else ("allow_tf32", False)
    cudnn: Any = torch.backends.cudnn
    places = (torch.backends.cuda.matmul, cudnn.conv if newer else cudnn)
    with _SWITCH:
        before = [getattr(place, name) for place in places]
        try:
            for place in places:
                setattr(place, name, exact)
            yield
        finally:
            for place, value in zip(places, before, strict=True):
                setattr(place, name, value)
