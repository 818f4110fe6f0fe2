"""The two containers of `torch.save`: a zip, and the older stream; both around a pickle, data beside it."""

import io
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from fastdirs.checkpoints._calls import storage_type
from fastdirs.checkpoints._inert import Reading, Record
from fastdirs.checkpoints._names import Named
from fastdirs.checkpoints._pickle import read_pickle
from fastdirs.checkpoints._tensors import Misfit, Storage, copier
from fastdirs.errors import CheckpointError

# 0x1950a86a20f9469cfc6c, the number that begins the older stream, as protocols 2 and later write it.
MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LOCAL_HEADER = 30
_BYTES_PER_STEP = 256
# A zip's directory: entries, and bytes of all of them together.
_MAX_MEMBERS = 100_000
_MAX_DIRECTORY = 2**24
# How network pickles of the TensorFlow code differ from all others, near their beginning.
TENSORFLOW = b"dnnlib.tflib"
_BIG_ENDIAN = "it was written by a big-endian machine"
_ADVICE = "Ask its author for a plain state dict or safetensors."


@contextmanager
def opened(path: Path) -> Iterator[tuple[BufferedReader, Reading]]:
    """A file and its budget, for the time of the block.

    Raises:
        CheckpointError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            reading = Reading(path, file.seek(0, io.SEEK_END))
            reading.nested = lambda data: _storage_in_bytes(reading, data)
            file.seek(0)
            yield file, reading
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}. Try again.") from error


def read_torch(file: BufferedReader, reading: Reading) -> Any:
    """The content of a file of `torch.save` in either container.

    Raises:
        CheckpointError: Truncated or broken, or no torch file.
    """
    file.seek(0)
    return _zip(file, reading) if file.read(2) == b"PK" else _stream(file, reading)


def read_raw(file: BufferedReader, reading: Reading) -> Any:
    """The content of a file that is one plain pickle.

    Raises:
        CheckpointError: Truncated or broken.
    """
    with closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as stream:
        return read_pickle(reading, stream)  # type: ignore[arg-type]


def _stream(file: BufferedReader, reading: Reading) -> Any:
    """The content of a file in torch's older container; its tensors are read from the file when asked for."""
    with closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as stream:
        try:
            return _legacy(reading, stream, len(stream), lambda start: _from_file(file, reading, start))  # type: ignore[arg-type]
        except _NotLegacy as error:
            return error.content


def _from_file(file: BufferedReader, reading: Reading, start: int) -> Callable[[memoryview], None]:
    def fill(buffer: memoryview) -> None:
        file.seek(start)
        if file.readinto(buffer) != len(buffer):
            raise reading.broken("its data ends early")

    return fill


def _storage_in_bytes(reading: Reading, data: bytes) -> Any:
    """The one storage in a torch file inside a pickle, or what its bytes hold instead."""
    nested, reading.nested = reading.nested, None
    try:
        return _legacy(reading, io.BytesIO(data), len(data), lambda start: copier(data, start))
    except _NotLegacy as error:
        return error.content
    finally:
        reading.nested = nested


class _NotLegacy(Exception):  # noqa: N818 (never leaves this file)
    """A pickle where the magic number of the older container should be."""

    def __init__(self, content: object) -> None:
        super().__init__()
        self.content = content


def _legacy(
    reading: Reading, stream: IO[bytes], size: int, source: Callable[[int], Callable[[memoryview], None]]
) -> Any:
    magic = _paid(reading, stream)
    if not isinstance(magic, int) or magic != _MAGIC_NUMBER:
        raise _NotLegacy(magic)
    protocol, machine = _paid(reading, stream), _paid(reading, stream)
    if not isinstance(protocol, int) or protocol != _LEGACY_PROTOCOL:
        raise reading.unsupported("it is a torch file of an unknown protocol", _ADVICE)
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise reading.unsupported(_BIG_ENDIAN, _ADVICE)
    storages: dict[str, Storage] = {}
    content = _paid(reading, stream, lambda pid: _storage(storages, pid))
    keys = _paid(reading, stream)
    if not isinstance(keys, list) or len(keys) != len({key for key in keys if isinstance(key, str)}):
        raise reading.broken("its list of storages is none")
    start = stream.tell()
    for key in keys:
        stream.seek(start)
        length = stream.read(8)
        storage = storages.get(key)
        if storage is None:
            raise reading.broken("its list of storages names one that no tensor uses")
        start += 8
        if length != struct.pack("<q", storage.numel) or start + storage.nbytes > size:
            raise reading.broken("a tensor's data is missing or has another length")
        storage.fill = source(start)
        start += storage.nbytes
    return content


def _paid(reading: Reading, stream: IO[bytes], persistent: Callable[[object], object] | None = None) -> Any:
    """A pickle whose length is paid for too: bytes inside a pickle may be read again and again."""
    start = stream.tell()
    content = read_pickle(reading, stream, persistent)
    reading.spend((stream.tell() - start) // _BYTES_PER_STEP)
    return content


def _storage(storages: dict[str, Storage], pid: object) -> object:
    """The storage behind a persistent id, ("storage", type, key, place, length, ...)."""
    if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module" and isinstance(pid[1], Named):
        # A module's class, with the file and source text that it came from; torch too only compares them.
        return pid[1]
    if (
        not isinstance(pid, tuple)
        or len(pid) not in (5, 6)
        or pid[0] != "storage"
        or not isinstance(pid[2], str)
    ):
        return Record(None, (pid,), None, "is stored in an unknown way")
    dtype = storage_type(pid[1])
    if dtype is None or (len(pid) == 6 and pid[5] is not None):
        return Record(None, (pid,), None, "is stored in an unknown way")
    known = storages.get(pid[2])
    try:
        made = Storage(dtype, pid[4])
    except Misfit as error:
        return Record(None, (pid,), None, str(error))
    if known is None:
        storages[pid[2]] = known = made
    if (known.dtype, known.numel) != (made.dtype, made.numel):
        return Record(None, (pid,), None, "is one storage that is described in two ways")
    return known


class _Bounded:
    """A zip container, as long as its directory is no longer than any: of each entry an object is made."""

    def __init__(self, file: BufferedReader, reading: Reading) -> None:
        self.file = file
        self.reading = reading
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int = -1) -> bytes:
        """Some bytes, of which only the directory's are many."""
        data = self.file.read(count) if count <= _MAX_DIRECTORY else b""
        if count > _MAX_DIRECTORY or data.count(b"PK\x01\x02") > _MAX_MEMBERS:
            raise self.reading.unsupported(
                f"its zip container lists more files than any checkpoint has ({_MAX_MEMBERS})",
                "It is broken or made to do harm. " + _ADVICE,
            )
        return data


def _zip(file: BufferedReader, reading: Reading) -> Any:
    """The content of a file in torch's zip container; its tensors are read from the file when asked for."""
    path = reading.path
    try:
        with zipfile.ZipFile(_Bounded(file, reading)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, OverflowError) as error:
        raise reading.broken(f"its zip container: {str(error)[:100]}") from error
    members = {info.filename: info for info in infos}
    if len(members) != len(infos):
        raise reading.broken("its zip container holds two files of one name")
    roots = [
        name.removesuffix("data.pkl")
        for name in members
        if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if any(name.endswith("/constants.pkl") for name in members):
        raise CheckpointError(
            f"{path} is a TorchScript program, which cannot be read without running it, so it was refused; "
            "nothing was run. Ask its author for a plain state dict or safetensors."
        )
    if len(roots) != 1:
        what = (
            "a numpy archive" if members and all(name.endswith(".npy") for name in members) else "a zip file"
        )
        raise CheckpointError(
            f"{path} is {what} that holds no torch checkpoint. "
            "Name a checkpoint; unpack it if it lies inside."
        )
    root = roots[0]
    order = members.get(f"{root}byteorder")
    if order is not None and _member(file, reading, order, 16) != b"little":
        raise reading.unsupported(_BIG_ENDIAN, _ADVICE)
    storages: dict[str, Storage] = {}
    pickled = _member(file, reading, members[f"{root}data.pkl"], None)

    def persistent(pid: object) -> object:
        found = _storage(storages, pid)
        if isinstance(found, Storage) and found.fill is None:
            found.fill = _from_member(file, reading, members, f"{root}data/{_key(pid)}", found.nbytes)
        return found

    return read_pickle(reading, io.BytesIO(pickled), persistent)


def _key(pid: object) -> str:
    return pid[2] if isinstance(pid, tuple) else ""


def _from_member(
    file: BufferedReader, reading: Reading, members: Mapping[str, zipfile.ZipInfo], name: str, nbytes: int
) -> Callable[[memoryview], None]:
    info = members.get(name)
    if info is None or info.file_size != nbytes:
        raise reading.broken("a tensor's data is missing or has another length")

    def fill(buffer: memoryview) -> None:
        file.seek(_start(file, reading, info))
        if file.readinto(buffer) != len(buffer):
            raise reading.broken("its data ends early")
        if not _agrees(buffer, info):
            raise reading.broken("a tensor's data was changed after it was written: its checksum differs")

    return fill


def _member(file: BufferedReader, reading: Reading, info: zipfile.ZipInfo, limit: int | None) -> bytes:
    """A small file of a zip container, whole."""
    start = _start(file, reading, info)
    if limit is not None and info.file_size > limit:
        raise reading.broken("its zip container")
    reading.claim(info.file_size)
    file.seek(start)
    data = file.read(info.file_size)
    if len(data) != info.file_size or not _agrees(data, info):
        raise reading.broken("its zip container is damaged: a checksum differs")
    return data


def _agrees(data: bytes | memoryview, info: zipfile.ZipInfo) -> bool:
    """Whether bytes have the checksum that their zip container gives, if it gives one."""
    # Zero is what torch writes after torch.serialization.set_crc32_options(False).
    return info.CRC in (0, zlib.crc32(data))


def _start(file: BufferedReader, reading: Reading, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a file in a zip container begin."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise reading.unsupported(
            "its zip container is compressed or encrypted, as torch never writes it",
            "Name the file that torch.save wrote, unpacked if another program packed it.",
        )
    size = file.seek(0, io.SEEK_END)
    if info.header_offset < 0 or info.header_offset + _LOCAL_HEADER + info.file_size > size:
        raise reading.broken("its zip container points outside itself")
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER)
    if len(header) != _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise reading.broken("its zip container points to something else")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start: int = info.header_offset + _LOCAL_HEADER + name_length + extra_length
    if start + info.file_size > size:
        raise reading.broken("its zip container points outside itself")
    return start
