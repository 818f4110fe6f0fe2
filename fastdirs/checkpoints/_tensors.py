"""Tensors that still lie in a file: where each begins, how it is laid out, nothing read until asked."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastdirs.checkpoints._inert import Reading, Record

_MAX_AXES = 16
_NO_AXIS_LONGER = 2**31

# torch's legacy names of element types, `torch.FloatStorage` and so on.
STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip
DTYPES = {
    name: getattr(torch, name)
    for name in (
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
        "complex64", "complex128", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2",
    )
}  # fmt: skip
# numpy's letters for the same; only little endian and single bytes, as on every machine that trains.
_NUMPY = {
    "f8": torch.float64, "f4": torch.float32, "f2": torch.float16, "i8": torch.int64, "i4": torch.int32,
    "i2": torch.int16, "i1": torch.int8, "u1": torch.uint8, "b1": torch.bool, "u2": torch.uint16,
    "u4": torch.uint32, "u8": torch.uint64,
}  # fmt: skip


class Misfit(Exception):  # noqa: N818 (not an error of the package: it never leaves the reader)
    """What a file says of a tensor cannot be true; the text completes "It ..."."""


class Storage:
    """A stretch of bytes that holds one or more tensors.

    Args:
        dtype: Type of its elements.
        numel: How many there are.
        fill: Writes exactly its bytes into a buffer; None until it is known where they lie.
    """

    __slots__ = ("_flat", "dtype", "fill", "numel")

    def __init__(
        self, dtype: torch.dtype, numel: object, fill: Callable[[memoryview], None] | None = None
    ) -> None:
        self.dtype = dtype
        self.numel = whole(numel, "storage length")
        self.fill = fill
        self._flat: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.numel * self.dtype.itemsize

    def flat(self, reading: Reading) -> Tensor:
        """Its bytes, uint8 `[nbytes]`, read on first use; the same memory every time."""
        if self._flat is None:
            reading.claim(self.nbytes)
            if self.fill is None:
                raise reading.broken("a tensor's data is missing")
            flat = torch.empty(self.nbytes, dtype=torch.uint8)
            if self.nbytes:
                self.fill(memoryview(flat.numpy().data))
            if self.dtype == torch.bool and self.nbytes and int(flat.max()) > 1:
                raise reading.broken("truth values that are neither 0 nor 1")
            self._flat = flat
        return self._flat


class StoredTensor:
    """A tensor that has not been read yet: as much as its file says of it.

    Args:
        storage: What it is a part of.
        offset: Its first element in the storage.
        shape: Its axes, any number.
        stride: Steps in the storage along each axis, in elements.
        dtype: Type of its elements where the storage only counts bytes.

    Raises:
        Misfit: It would not lie inside the storage, or be larger than it.
    """

    __slots__ = ("dtype", "offset", "shape", "storage", "stride")

    def __init__(
        self,
        storage: Storage,
        offset: object,
        shape: object,
        stride: object,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.storage = storage
        self.dtype = storage.dtype if dtype is None else dtype
        self.offset = whole(offset, "offset")
        self.shape = _axes(shape, "shape")
        self.stride = _axes(stride, "stride")
        if len(self.shape) != len(self.stride):
            raise Misfit(f"has {len(self.shape)} axes but strides for {len(self.stride)}")
        available = storage.nbytes // self.dtype.itemsize
        numel = math.prod(self.shape)
        if numel == 0:
            if math.prod(max(size, 1) for size in self.shape) > 2**62 or self.offset > available:
                raise Misfit("has an absurd shape")
            return
        last = self.offset + sum(
            (size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)
        )
        if last >= available:
            raise Misfit("does not lie inside its storage")
        if numel > available:
            raise Misfit("is larger than its storage, as expand() makes it: save it after contiguous()")

    def transposed(self, order: object) -> "StoredTensor":
        """The same elements with the axes in another order.

        Raises:
            Misfit: The order does not name every axis once.
        """
        axes = _axes(order, "list of axes")
        if sorted(axes) != list(range(len(self.shape))):
            raise Misfit("has a list of axes that does not name each once")
        shape, stride = (tuple(sizes[axis] for axis in axes) for sizes in (self.shape, self.stride))
        return StoredTensor(self.storage, self.offset, shape, stride, self.dtype)

    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def is_floating_point(self) -> bool:
        """Whether its elements are real numbers."""
        return self.dtype.is_floating_point

    def read(self, reading: Reading) -> Tensor:
        """The tensor, `[*shape]`, dtype and bits as in the file; tensors of one storage share memory.

        Raises:
            CheckpointError: Its data is missing or damaged.
        """
        if self.numel() == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        flat = self.storage.flat(reading)
        whole_elements = flat[: flat.numel() // self.dtype.itemsize * self.dtype.itemsize].view(self.dtype)
        return whole_elements.as_strided(self.shape, self.stride, self.offset)


class Array(Record):
    """A numpy array, as it is made empty and then given its state.

    Attributes:
        tensor: The same as a tensor; None while it has no state, or if its elements are no numbers.
    """

    __slots__ = ("reading", "tensor")

    def __init__(self, reading: Reading, maker: object, args: object) -> None:
        super().__init__(maker, args)
        self.reading = reading
        self.tensor: StoredTensor | None = None

    def build(self, state: object) -> None:
        """Remember the state, (version, shape, dtype, is Fortran order, data)."""
        super().build(state)
        # Two states are one too many: which of them counts is nobody's business here.
        known = isinstance(state, tuple) and len(state) in (4, 5) and not self.items
        if known and isinstance(state, tuple):
            shape, kind, fortran, data = state[-4:]
            try:
                self.tensor = array(self.reading, data, kind, shape, fortran in (True, 1))
            except Misfit as error:
                self.problem = str(error)
        else:
            self.tensor = None


def array(reading: Reading, data: object, kind: object, shape: object, fortran: bool) -> StoredTensor:
    """A numpy array's parts as a tensor.

    Raises:
        Misfit: No numbers, big endian, or not as many bytes as its shape asks for.
    """
    code = numpy_code(kind)
    dtype = _NUMPY.get(code[1:])
    if dtype is None or code[0] == ">":
        raise Misfit(f"is an array of {code[1:] or 'unknown things'}, not of little-endian numbers")
    if isinstance(data, str):
        # How Python 2 wrote bytes.
        reading.claim(len(data))
        data = _latin(data)
    if not isinstance(data, bytes | bytearray):
        raise Misfit("is an array without data")
    axes = _axes((shape,) if isinstance(shape, int) else shape, "shape")
    if math.prod(axes) * dtype.itemsize != len(data):
        raise Misfit(f"is an array of shape {list(axes)} with {len(data)} bytes")
    stride, step = [0] * len(axes), 1
    for axis in range(len(axes)) if fortran else reversed(range(len(axes))):
        stride[axis] = step
        step *= max(axes[axis], 1)
    return StoredTensor(Storage(dtype, math.prod(axes), copier(data)), 0, axes, tuple(stride))


def numpy_code(kind: object) -> str:
    """Byte order and code of a recorded `numpy.dtype`, such as "<f4"; " " if it is none."""
    if not isinstance(kind, Record) or kind.name != "numpy.dtype":
        return " "
    code = kind.args[0] if isinstance(kind.args, tuple) and kind.args else ""
    order = kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 else "|"
    if not isinstance(code, str) or not isinstance(order, str) or kind.items:
        return " "
    return f"{order[:1] or '|'}{code[:8]}"


def number(kind: object, data: object) -> float | int | bool:
    """A numpy scalar as a Python number.

    Raises:
        Misfit: No number, or not its length.
    """
    code = numpy_code(kind)
    if isinstance(data, str):
        data = _latin(data[:16])
    if code[1:] not in _NUMPY or not isinstance(data, bytes) or len(data) != _NUMPY[code[1:]].itemsize:
        raise Misfit("is no number")
    value: float | int | bool = np.frombuffer(data, ("<" if code[0] == "|" else code[0]) + code[1:])[0].item()
    return value


def copier(data: bytes | bytearray, start: int = 0) -> Callable[[memoryview], None]:
    """Fills a buffer from bytes that are in memory."""

    def fill(buffer: memoryview) -> None:
        buffer[:] = memoryview(data)[start : start + len(buffer)]

    return fill


def whole(value: object, what: str) -> int:
    """A whole number that is not negative.

    Raises:
        Misfit: Anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**48:
        raise Misfit(f"has a {what} that is no sensible whole number")
    return value


def _axes(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > _MAX_AXES:
        raise Misfit(f"has a {what} that is no short list")
    axes = tuple(whole(size, what) for size in value)
    if any(size > _NO_AXIS_LONGER for size in axes):
        raise Misfit(f"has an absurd {what}")
    return axes


def _latin(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise Misfit("is an array whose data is text") from error
