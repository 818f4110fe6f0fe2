"""Small files that ask for much: time and memory stay bounded, and the error says so."""

import io
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdirs.checkpoints import read_checkpoint
from fastdirs.errors import CheckpointError

WEIGHT = torch.arange(8.0)


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def repeated(before: bytes, each: bytes, count: int) -> bytes:
    return b"\x80\x04" + before + b"(" + each * count + b"t."


BOMBS = {
    "nested tuples": b"\x80\x04)" + b"\x85" * 200_000 + b".",
    "nested lists": b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "nested dictionaries": b"\x80\x04}" + (text("a") + b"}") * 100_000 + b"s" * 100_000 + b".",
    "nested calls": b"\x80\x04ca\nb\n)R" + b"ca\nb\n)R" * 50_000 + b"b" * 50_000 + b".",
    "a deep tuple as a key": b"\x80\x04})" + b"\x85" * 200_000 + b"K\x01s.",
    "a deep tuple as a member": b"\x80\x04\x8f()" + b"\x85" * 200_000 + b"\x90.",
    "an absurd place to remember": b"\x80\x04Nr\xff\xff\xff\xff.",
    "a long number": b"\x80\x04\x8b" + struct.pack("<i", 10_000_000) + b"\x7f" * 10_000_000 + b".",
    "many digits": b"\x80\x04L" + b"9" * 1_000_000 + b"L\n.",
    "numbers that collide": b"\x80\x04}("
    + b"".join(b"\x8a\x08%sN" % struct.pack("<q", number << 40) for number in range(1, 9**5))
    + b"u.",
    "a billion laughs": b"\x80\x04]\x94" + b"".join(b"]((h%ch%ct\x94e" % (n, n) for n in range(100)) + b".",
    "pairs again and again": repeated(
        b"ccollections\nOrderedDict\n\x94](" + b"(K\x01Nt" * 20_000 + b"e\x94", b"h\x00h\x01\x85R", 300
    ),
    "text again and again": repeated(
        b"c_codecs\nencode\n\x94" + text("a" * 1_000_000) + b"\x94", b"h\x00h\x01\x85R", 99
    ),
    "bytes again and again": repeated(
        b"cbuiltins\nbytearray\n\x94B" + struct.pack("<I", 10**6) + bytes(10**6) + b"\x94",
        b"h\x00h\x01\x85R",
        99,
    ),
    "marks": b"\x80\x04" + b"(" * 500_000 + b".",
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS.keys())
def test_pickle_bombs(pickles: Any, data: bytes) -> None:
    begun = time.perf_counter()
    with pytest.raises(CheckpointError):
        read_checkpoint(pickles.raw(data))
    assert time.perf_counter() - begun < 20


def test_calls_inside_the_arguments_of_calls(pickles: Any) -> None:
    # Deep enough for Python's own stack, if each were followed by a call of ours.
    from_type = b"ctorch._tensor\n_rebuild_from_type_v2\n\x94"
    deep = b"(h\x00N" * 50_000 + b")" + b"Nt" * 50_000
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_checkpoint(pickles.raw(b"\x80\x04" + from_type + deep + b"R."))
    created = b"cdill._dill\n_create_array\n\x94"
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_checkpoint(
            pickles.raw(b"\x80\x04" + created + b"(h\x00" * 50_000 + b")" + b"NNt" * 50_000 + b"R.")
        )


def test_long_names(pickles: Any) -> None:
    module = text("a" * 1_000_000)
    with pytest.raises(CheckpointError, match="name has 1000001 characters"):
        read_checkpoint(pickles.raw(b"\x80\x04" + module + text("b") + b"\x93."))
    chain = b"cbuiltins\ngetattr\n\x940" + b"h\x00" * 2000 + b"ctorch\nA\n" + (text("b") + b"\x86R") * 2000
    with pytest.raises(CheckpointError, match=r"name has \d+ characters"):
        read_checkpoint(pickles.raw(b"\x80\x04" + chain + b"."))


def test_more_globals_than_any(pickles: Any) -> None:
    names = b"".join(b"cmodule%s\nname%06d\n0" % (b"a" * 200, number) for number in range(150_000))
    path = pickles.raw(b"\x80\x04" + names + b"N.")
    with (
        memory_below(150 * 2**20),
        pytest.raises(CheckpointError, match=r"names more than 100000 globals.*Ask its author"),
    ):
        read_checkpoint(path)


def zip_of(count: int, name_length: int) -> bytes:
    """A zip container that only lists files."""
    entry = b"PK\x01\x02" + struct.pack("<4B4HL2L5H2L", 20, 3, 20, *[0] * 8, name_length, *[0] * 6)
    directory = b"".join(entry + b"%0*d" % (name_length, number) for number in range(count))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count % 2**16, count % 2**16, len(directory), 4, 0)
    return b"PK\x03\x04" + directory + end


@pytest.mark.parametrize(("count", "name_length"), [(150_000, 6), (20_000, 1000)])
def test_zip_containers_that_list_more_than_any(tmp_path: Path, count: int, name_length: int) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(zip_of(count, name_length))
    with memory_below(50 * 2**20), pytest.raises(CheckpointError, match="lists more files than any"):
        read_checkpoint(path)
    path.write_bytes(zip_of(100, name_length))
    with pytest.raises(CheckpointError, match="holds no torch checkpoint"):
        read_checkpoint(path)


def test_bytes_that_are_read_as_a_file_again_and_again(pickles: Any) -> None:
    inner = pickles.dumps(bytes(3_000_000), 3)
    load = b"ctorch.storage\n_load_from_bytes\n\x94B" + struct.pack("<I", len(inner)) + inner + b"\x94"
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_checkpoint(pickles.raw(repeated(load, b"h\x00h\x01\x85R", 5)))
    with pytest.raises(CheckpointError, match="more work than any"):
        read_checkpoint(pickles.raw(repeated(load, b"h\x00h\x01\x85R", 3000)))


def test_dictionaries_that_are_gone_through_again_and_again(pickles: Any) -> None:
    inner = dict.fromkeys(range(30000))
    content = {str(number): inner for number in range(20_000)}
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_checkpoint(pickles.write(content))
    evil = pickles.named("os", "system")
    with pytest.raises(CheckpointError, match="asks to run"):
        read_checkpoint(pickles.write({**content, "evil": evil}))
    assert read_checkpoint(pickles.write({"weight": WEIGHT, "args": content})).settings == {}


def test_more_work_than_any_checkpoint_needs(pickles: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdirs.checkpoints._inert.MAX_STEPS", 10_000)
    with pytest.raises(CheckpointError, match="more work than any checkpoint needs"):
        read_checkpoint(pickles.raw(b"\x80\x04(" + b"N" * 20_000 + b"t."))


def test_modules_that_hold_each_other_many_times(pickles: Any) -> None:
    module = pickles.network({"weight": WEIGHT})
    for _ in range(25):
        module = pickles.network({}, {"a": module, "b": module})
    with pytest.raises(CheckpointError, match="more work than any checkpoint needs"):
        read_checkpoint(pickles.write({"G_ema": module}))


def test_modules_deeper_than_any(pickles: Any) -> None:
    module = pickles.network({"weight": WEIGHT})
    for _ in range(40):
        module = pickles.network({}, {"a": module})
    with pytest.raises(CheckpointError, match="deeper than any"):
        read_checkpoint(pickles.write({"G_ema": module}))


def test_settings_that_repeat_themselves(pickles: Any) -> None:
    value: Any = [1, 2]
    for _ in range(60):
        value = {"a": value, "b": value}
    read = read_checkpoint(pickles.write({"weight": WEIGHT, "args": value, "last": 1}))
    assert len(str(read.settings)) < 1_000_000


def tensor(pickles: Any, offset: object, shape: object, stride: object) -> Any:
    """A tensor over the storage of eight numbers."""
    storage = torch.storage.TypedStorage(
        wrap_storage=WEIGHT.untyped_storage(), dtype=torch.float32, _internal=True
    )
    stream = io.BytesIO()
    torch.save(storage, stream, _use_new_zipfile_serialization=False)
    load = pickles.named("torch.storage", "_load_from_bytes")
    rebuild = pickles.named("torch._utils", "_rebuild_tensor_v2")
    return rebuild(load(stream.getvalue()), offset, shape, stride, False, OrderedDict())


FITTING: list[tuple[object, object, object]] = [
    (0, (8,), (1,)),
    (2, (2, 3), (3, 1)),
    (7, (), ()),
    (0, (0, 5), (5, 1)),
    (1, (2, 2), (1, 2)),
]
MISFIT: list[tuple[object, object, object]] = [
    (1, (8,), (1,)),
    (8, (1,), (1,)),
    (0, (9,), (1,)),
    (0, (100,), (0,)),
    (0, (2,), (8,)),
    (-1, (2,), (1,)),
    (0, (2,), (-1,)),
    (0, (-2,), (1,)),
    (0, (2, 2), (1,)),
    (0, (2**40,), (1,)),
    (0, (1,) * 70, (1,) * 70),
    (0, (0, 2**31, 2**31, 2**31), (1, 1, 1, 1)),
    (0, "8", "1"),
    (None, (2,), (1,)),
    (0, (2.0,), (1,)),
    (True, (2,), (1,)),
]


@pytest.mark.parametrize(("offset", "shape", "stride"), FITTING)
def test_tensors_that_fit(pickles: Any, offset: Any, shape: Any, stride: Any) -> None:
    path = pickles.write({"weight": tensor(pickles, offset, shape, stride)})
    assert torch.equal(read_checkpoint(path).tensors["weight"], WEIGHT.as_strided(shape, stride, offset))


@pytest.mark.parametrize(("offset", "shape", "stride"), MISFIT)
def test_tensors_that_do_not_fit_their_storage(pickles: Any, offset: Any, shape: Any, stride: Any) -> None:
    path = pickles.write({"good": WEIGHT, "weight": tensor(pickles, offset, shape, stride)})
    with pytest.raises(CheckpointError, match=r"_rebuild_tensor_v2 (does not|has|is)"):
        read_checkpoint(path)


def rewritten(path: Path, compression: int = zipfile.ZIP_STORED, **replaced: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, replaced.get(name.rpartition("/")[2].replace(".", "_"), data))


def test_zip_containers_that_are_none_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"

    def refused(reason: str) -> None:
        with pytest.raises(CheckpointError, match=reason):
            read_checkpoint(path)

    torch.save({"weight": torch.zeros(300_000)}, path)
    rewritten(path, zipfile.ZIP_DEFLATED)
    refused("compressed or encrypted")
    torch.save({"weight": WEIGHT}, path)
    rewritten(path, byteorder=b"big")
    refused("big-endian")
    torch.save({"weight": WEIGHT}, path)
    rewritten(path, **{"0": b"short"})
    refused("missing or has another length")


def test_zip_members_that_share_their_bytes(tmp_path: Path) -> None:
    # Each of the storages is given the same bytes of the file: much from little.
    path = tmp_path / "model.pt"
    torch.save({f"weight{n}": torch.zeros(200_000) for n in range(8)}, path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    first = next(info for info in infos if info.filename.endswith("/0"))
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
    place = directory
    for info in infos:
        if "/data/" in info.filename:
            data[place + 42 : place + 46] = struct.pack("<I", first.header_offset)
        place = data.index(b"PK\x01\x02", place + 46) if info is not infos[-1] else place
    # Only the first storage's bytes stay in the file.
    path.write_bytes(bytes(data))
    cut_from = first.header_offset + 900_000
    shorter = bytes(data[:cut_from]) + bytes(data[directory:])
    ending = shorter.rindex(b"PK\x05\x06")
    patched = bytearray(shorter)
    patched[ending + 16 : ending + 20] = struct.pack("<I", cut_from)
    path.write_bytes(bytes(patched))
    with pytest.raises(CheckpointError, match=r"names more data than it holds|truncated or broken"):
        read_checkpoint(path)
