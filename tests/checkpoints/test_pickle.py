"""The pickle machine: every opcode gives what Python gives, broken opcodes are clear errors, nothing acts."""

import io
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from fastdirs.checkpoints._inert import Fields, Key, Reading, Record
from fastdirs.checkpoints._names import acts, shown
from fastdirs.checkpoints._pickle import read_pickle
from fastdirs.errors import CheckpointError


def follow(data: bytes) -> Any:
    return read_pickle(Reading(Path("file.pkl"), len(data)), io.BytesIO(data))


VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    255,
    256,
    65536,
    -(2**31),
    2**31,
    2**80,
    -(2**200),
    0.0,
    -1.5,
    1e300,
    "",
    "text",
    "ü€𝄞",
    "a\nb\\c",
    "x" * 300,
    "long" * 20_000,
    b"",
    b"bytes\x00\xff",
    b"y" * 300,
    bytearray(b"abc"),
    [],
    [1, [2]],
    (),
    (1,),
    (1, 2),
    (1, 2, 3),
    (1, 2, 3, 4),
    {},
    {"a": 1, 2: "b", 2.5: None, b"k": True},
    list(range(2000)),
    {str(n): n for n in range(2000)},
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", VALUES, ids=lambda value: ascii(value)[:20])
def test_plain_values_come_out_as_they_went_in(value: object, protocol: int) -> None:
    got = follow(pickle.dumps(value, protocol))
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("protocol", range(6))
def test_shared_and_circular_values_stay_so(protocol: int) -> None:
    shared: list[object] = [1]
    content = {"a": shared, "b": shared}
    shared.append(content)
    got = follow(pickle.dumps(content, protocol))
    assert got["a"] is got["b"]
    assert got["a"][1] is got


@pytest.mark.parametrize("protocol", range(6))
def test_sets_and_ordered_dictionaries(protocol: int) -> None:
    content = [{"a", "b"}, frozenset({"c"}), OrderedDict(x=1, y=2)]
    both, frozen, ordered = follow(pickle.dumps(content, protocol))
    assert {both.name, frozen.name} == {"builtins.set", "builtins.frozenset"}
    assert isinstance(ordered, Fields)
    assert list(ordered.items()) == [("x", 1), ("y", 2)]


def test_python_2() -> None:
    assert follow(b"\x80\x02U\x03abcq\x00.") == "abc"
    assert follow(b"(dp0\nS'a'\np1\nI1\nsV\\u20ac\np2\nL5L\nsS'f'\nF1.5\ns.") == {"a": 1, "€": 5, "f": 1.5}
    assert follow(b"c__builtin__\nset\n((lp0\nI1\natR.").name == "builtins.set"


@pytest.mark.parametrize(
    "data",
    [
        b"cposix\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
        b"(S'true'\niposix\nsystem\n.",
        b"(cposix\nsystem\nS'true'\no.",
        b"\x80\x02cposix\nsystem\n(S'true'\nt\x81.",
        b"\x80\x04cposix\nsystem\n(S'true'\nt}\x92.",
    ],
    ids=["REDUCE", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"],
)
def test_every_way_to_call_is_only_written_down(data: bytes) -> None:
    got = follow(data)
    assert isinstance(got, Record)
    assert (got.name, got.args) == ("posix.system", ("true",))


def test_what_is_built_is_only_written_down() -> None:
    got = follow(b"ca\nB\n)R(dS'x'\nI1\nsb(dS'y'\nI2\nsb(lI3\na" + b"b.")
    assert got.state == [3]
    assert got.items == [{"x": 1}, {"y": 2}]
    assert follow(b"(S'a'\nI1\nd(dS'x'\nI1\ns0.") == {"a": 1}


def test_keys_that_cannot_be_hashed_cheaply_are_only_remembered() -> None:
    got = follow(b"}(I1\nI2\ntI3\ns]I4\ns\x8a\x09" + b"\xff" * 8 + b"\x7fI5\ns.")
    assert [type(key) for key in got] == [Key, Key, Key]
    assert [key.value for key in got][:2] == [(1, 2), []]


BROKEN = {
    "nothing": b"",
    "no end": b"\x80\x04",
    "empty stack": b".",
    "pop": b"0.",
    "dup": b"2.",
    "reduce": b"R.",
    "tuple2 of one": b"K\x01\x86.",
    "no mark": b"t.",
    "no such memo": b"h\x07.",
    "memo of nothing": b"\x94.",
    "appends to none": b"N(K\x01e.",
    "append to text": b"X\x01\x00\x00\x00aK\x01a.",
    "odd items": b"}(K\x01u.",
    "sets items of a list": b"](K\x01K\x02u.",
    "builds a number": b"K\x01}b.",
    "name is a number": b"K\x01K\x02\x93.",
    "extension": b"\x82\x01.",
    "buffer": b"\x97.",
    "persistent": b"Pabc\n.",
    "protocol": b"\x80\x09N.",
    "opcode": b"\xff.",
    "text": b"X\x02\x00\x00\x00\xff\xfe.",
    "half character": b"X\x03\x00\x00\x00\xed\xa0\x80.",
    "half in old text": b"V\\ud800\n.",
    "short bytes": b"B\xff\xff\xff\x7fabc.",
    "negative": b"T\xff\xff\xff\xffabc.",
    "huge bytes": b"\x8e" + struct.pack("<Q", 2**62) + b".",
    "decimal": b"Iabc\n.",
    "digits": b"L" + b"9" * 9000 + b"L\n.",
    "bits": b"\x8b" + struct.pack("<i", 10_000) + b"\x7f" * 10_000 + b".",
    "float": b"Fx\n.",
    "quotes": b"Sabc\n.",
    "doubtful escape": b"S'\\z'\nI.",
    "put": b"NPx\n.",
    "stop inside a mark": b"(.",
    "not ascii": b"c\xffa\nb\n.",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_broken_opcodes_are_clear_errors(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^file.pkl is truncated or broken \(.*\)\. Download it"):
        follow(data)


def test_only_so_much_work_and_memory() -> None:
    reading = Reading(Path("file.pkl"), 1000)
    with pytest.raises(CheckpointError, match="more work than any checkpoint needs"):
        reading.spend(10**9)
    with pytest.raises(CheckpointError, match="more data than it holds"):
        reading.claim(10**6)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "posix.popen",
        "nt.system",
        "builtins.eval",
        "builtins.map",
        "subprocess.Popen",
        "sys.exit",
        "importlib.import_module",
        "torch.serialization.os.system",
        "torch.load",
        "numpy.load",
        "pickle.loads",
        "a.b.eval",
        "webbrowser.open",
        "torch.hub.load",
        "os.path.join",
        "numpy.f2py.subprocess.run",
    ],
)
def test_what_would_act(name: str) -> None:
    assert acts(name)


@pytest.mark.parametrize(
    "name",
    [
        "torch._utils._rebuild_tensor_v2",
        "collections.OrderedDict",
        "timm.models.layers.Conv2d",
        "pathlib.PosixPath",
        "torch.nn.modules.activation.ReLU",
        "numpy.core.multiarray.scalar",
        "mylab.os_utils.System",
        "scipy.signal.x",
        "functools.partial",
        "training.networks.Generator",
    ],
)
def test_what_would_not(name: str) -> None:
    assert not acts(name)


def test_names_are_shown_without_harm() -> None:
    assert shown("a\x1b[31mb\nc") == "a\\x1b[31mb\\nc"
    assert len(shown("x" * 10_000)) < 300
