"""Ways to damage a checkpoint: anywhere in its bytes, or in the opcodes of its pickle, which stays one.

Run as a script it damages files, loads each with fastdirs and reports what went wrong; see test_readers.py.
"""

import io
import json
import pickletools
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

SECONDS_PER_CASE = 20
# Beyond what Python and torch hold after reading every file once.
EXTRA_BYTES = 2 * 2**30
WITNESS = "PWNED_fastdirs"

_INTERESTING = (0, 1, -1, 2, 7, 127, 128, 255, 256, 65535, 2**31 - 1, -(2**31))
_NAMES = (
    b"cposix\nsystem\n", b"cbuiltins\neval\n", b"ctorch.storage\n_load_from_bytes\n", b"cbuiltins\nset\n",
    b"cnumpy.core.multiarray\nscalar\n", b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"cbuiltins\ndict\n",
    b"c_codecs\nencode\n", b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n", b"cbuiltins\nbytes\n",
)  # fmt: skip
_SNIPPETS = (
    b"0", b"1", b"2", b"(", b"t", b"l", b"d", b"R", b"b", b"e", b"u", b"s", b"a", b")", b"]", b"}", b"N",
    b"o", b"Q", b"\x81", b"\x85", b"\x86", b"\x87", b"\x8f", b"\x90", b"\x91", b"\x92", b"\x93", b"\x94",
    b"h\x00", b"K\xff", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"r\xff\xff\xff\xff",
    b"\x8b\xff\xff\xff\x7f",
    b"G" + b"\xff" * 8,
    b"I01\n", b"P9\n", b"B\xff\xff\xff\x7f", b"X\x02\x00\x00\x00\xff\xff", *_NAMES,
)  # fmt: skip


def damage_bytes(data: bytes, chance: random.Random) -> bytes:
    """Flip, cut, repeat or move bytes, most often near the ends, where containers keep their structure."""
    broken = bytearray(data)
    size = len(broken)

    def place() -> int:
        near = chance.random()
        reach = min(size, 3000)
        if near < 0.4:
            return chance.randrange(reach)
        return size - 1 - chance.randrange(reach) if near < 0.7 else chance.randrange(size)

    kind = chance.randrange(5)
    if kind <= 1:
        for _ in range(chance.choice((1, 1, 2, 8, 40))):
            broken[place()] = chance.choice((0, 255, chance.randrange(256)))
    elif kind == 2:
        del broken[place() :]
    elif kind == 3:
        start = place()
        del broken[start : start + chance.choice((1, 2, 8, 100, 5000))]
    else:
        start, length, target = place(), chance.choice((1, 4, 30, 1000)), place()
        broken[target:target] = broken[start : start + length]
    return bytes(broken)


def damage_pickle(data: bytes, chance: random.Random) -> bytes:
    """Remove, repeat, exchange or replace opcodes of the first pickle in some bytes."""
    try:
        starts = [position or 0 for _, _, position in pickletools.genops(data)]
    except ValueError:
        return damage_bytes(data, chance)
    ends = [*starts[1:], starts[-1] + 1]
    pieces = [data[start:end] for start, end in zip(starts, ends, strict=True)]
    for _ in range(chance.choice((1, 1, 2, 5))):
        index = chance.randrange(len(pieces))
        kind = chance.randrange(6)
        if kind == 0:
            pieces[index] = b""
        elif kind == 1:
            pieces[index] *= chance.choice((2, 3, 50))
        elif kind == 2:
            other = chance.randrange(len(pieces))
            pieces[index], pieces[other] = pieces[other], pieces[index]
        elif kind == 3:
            pieces[index] = chance.choice(_SNIPPETS)
        elif kind == 4:
            pieces[index] += chance.choice(_SNIPPETS)
        else:
            number = chance.choice(_INTERESTING) & 0xFFFFFFFF
            pieces[index] = b"J" + number.to_bytes(4, "little")
    return b"".join(pieces) + data[ends[-1] :]


def damage_zip(data: bytes, chance: random.Random) -> bytes:
    """Damage the pickle inside a zip and put a sound zip around it again, or the list of its files."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    members[name] = damage_pickle(members[name], chance)
    if chance.random() < 0.2:
        other = chance.choice(list(members))
        members[other] = damage_bytes(members[other] or b"\0", chance)
    stream = io.BytesIO()
    packing = zipfile.ZIP_DEFLATED if chance.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", packing) as archive:
        for key, content in members.items():
            archive.writestr(key, content)
    return stream.getvalue()


def damage_stream(data: bytes, chance: random.Random) -> bytes:
    """Damage one of the pickles of torch's older container, most often the one with the tensors."""
    stream = io.BytesIO(data)
    places = [0]
    with suppress(ValueError):
        for _ in range(5):
            for _ in pickletools.genops(stream):
                pass
            places.append(stream.tell())
    bounds = list(pairwise(places))
    start, end = bounds[3] if len(bounds) > 3 and chance.random() < 0.7 else chance.choice(bounds)
    return data[:start] + damage_pickle(data[start:end], chance) + data[end:]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """One damaged form of a file."""
    if not data or chance.random() < 0.4:
        return damage_bytes(data or b"\0", chance)
    by_content: Callable[[bytes, random.Random], bytes] = damage_pickle
    if data.startswith(b"PK\x03\x04"):
        by_content = damage_zip
    elif b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." in data[:32]:
        by_content = damage_stream
    try:
        return by_content(data, chance)
    except (zipfile.BadZipFile, StopIteration, NotImplementedError):
        return damage_bytes(data, chance)


class TooLongError(BaseException):
    """A file that is being read for too long; no `except Exception` catches it."""


def _alarm(number: int, frame: object) -> None:
    raise TooLongError


def main(seed: int, rounds: int, paths: list[Path]) -> None:
    """Damage every file `rounds` times, load each, and print what went wrong as JSON."""
    from fastdirs.checkpoints import read_checkpoint
    from fastdirs.errors import FastdirsError
    from fastdirs.inspection import inspect_file
    from fastdirs.loading import load_generator

    for path in paths:
        with suppress(FastdirsError):
            inspect_file(path)
            load_generator(path)
    modules = set(sys.modules)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + EXTRA_BYTES, in_use + EXTRA_BYTES))
    signal.signal(signal.SIGALRM, _alarm)
    failures, read, slowest = [], 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for index, path in enumerate(paths):
                case = f"{seed}/{number}/{index}"
                target = Path(folder) / "damaged"
                target.write_bytes(damaged(path.read_bytes(), random.Random(case)))
                begun = time.perf_counter()
                signal.alarm(SECONDS_PER_CASE)
                try:
                    read_checkpoint(target)
                    read += 1
                    # What can be read goes the whole way: the family, the architecture, the weights.
                    inspect_file(target)
                    load_generator(target)
                except FastdirsError as error:
                    str(error).encode()
                except (Exception, TooLongError):
                    failures.append({"file": path.name, "case": case, "error": traceback.format_exc()})
                finally:
                    signal.alarm(0)
                slowest = max(slowest, time.perf_counter() - begun)
    imported = sorted(set(sys.modules) - modules)
    witness = (Path(tempfile.gettempdir()) / WITNESS).exists()
    print(json.dumps({
        "cases": rounds * len(paths), "read": read, "failures": failures[:5],
        "number_of_failures": len(failures), "imported": imported, "witness": witness,
        "slowest_s": round(slowest, 2),
    }))  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
