"""Files that want to act: refused by name, nothing run, nothing imported; and good generators beside them."""

import os
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdirs.checkpoints import read_checkpoint
from fastdirs.errors import CheckpointError, FastdirsError

FIXTURES = Path(
    os.environ.get("FASTDIRS_FIXTURES") or Path(__file__).parents[2].parent / "shared" / "fixtures"
)
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(),
    reason=f"needs the checkpoints of the original projects in {FIXTURES} (FASTDIRS_FIXTURES)",
)
WITNESS = "PWNED_fastdirs"
WEIGHT = torch.arange(6.0).reshape(2, 3)
RUN = r"asks to run posix\.system when it is read, so it was refused; nothing was run"

# What is wrong with each hostile file, or what is said of it.
HOSTILE = {
    "evil_plain.pkl": RUN,
    "evil_in_dict.pkl": RUN,
    "evil_torch_zip.pt": RUN,
    "evil_torch_legacy.pt": r"asks to run builtins\.eval",
    "evil_genforce.pth": RUN,
    "evil_deformator_nested_storage.pt": RUN,
    "evil_ada_augment_pipe.pkl": RUN,
    "evil_ada_in_module_state.pkl": RUN,
    "evil_ada_nested_storage.pkl": RUN,
    "evil_biggan_dir": RUN,
    "evil_ada_module_src.pkl": r"asks to run os\.system in the source text embedded in it",
    "evil_components.npz": "is a numpy archive that holds no torch checkpoint",
}
READABLE = ("missing", "shape", "nan", "extra", "classifier", "inf")


def _bad() -> list[Path]:
    folder = FIXTURES / "bad"
    return sorted(path for path in folder.glob("*") if path.name not in ("README.txt", "manifest.json"))


def witnesses() -> list[Path]:
    folders = {tempfile.gettempdir(), "/tmp", "."}
    return [path for path in (Path(folder) / WITNESS for folder in folders) if path.exists()]


@needs_fixtures
@pytest.mark.parametrize("path", _bad(), ids=lambda path: path.name)
def test_bad_fixtures(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    modules = set(sys.modules)
    if path.name in HOSTILE:
        with pytest.raises(CheckpointError, match=HOSTILE[path.name]):
            read_checkpoint(path)
    elif any(word in path.name for word in READABLE) and path.stem != "ada_without_G_ema":
        # Damaged weights are for the family to refuse, which knows what they should be.
        assert read_checkpoint(path).tensors
    else:
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert path.name in str(caught.value)
    assert not witnesses()
    assert not list(tmp_path.iterdir())
    # Our own readers are imported on first use, and Python's codecs for text opcodes.
    ours = ("fastdirs.", "encodings.", "onnx", "google")
    assert not {name for name in set(sys.modules) - modules if not name.startswith(ours)}


@needs_fixtures
def test_every_hostile_fixture_is_known_here() -> None:
    evil = {path.name for path in _bad() if path.name.startswith("evil")}
    assert evil == set(HOSTILE)


def payload(pickles: Any, module: str = "posix", name: str = "system") -> Any:
    return pickles.named(module, name)(f"touch {tempfile.gettempdir()}/{WITNESS}")


def good(pickles: Any, **extra: object) -> Any:
    return pickles.network({"weight": WEIGHT}, **extra)


def refused(path: Path, culprit: str) -> None:
    with pytest.raises(CheckpointError, match=culprit):
        read_checkpoint(path)
    assert not witnesses()


@pytest.mark.parametrize("name", ["D", "d", "discriminator", "netD", "optimizer", "g_optim"])
def test_a_hostile_discriminator_beside_a_good_generator(pickles: Any, name: str) -> None:
    entries = [
        payload(pickles),
        {"state": payload(pickles)},
        pickles.network({"weight": WEIGHT}, x=payload(pickles)),
    ]
    for entry in entries:
        read = read_checkpoint(pickles.write({name: entry, "G_ema": good(pickles)}))
        assert torch.equal(read.tensors["weight"], WEIGHT)
        assert read.foreign == ("posix.system",)
        nested = {"models": {name: entry, "generator_smooth": OrderedDict(weight=WEIGHT)}}
        assert read_checkpoint(pickles.write(nested)).part == "models.generator_smooth"
    assert not witnesses()


def test_a_hostile_discriminator_in_torch_files(pickles: Any) -> None:
    content = {"g_ema": good(pickles), "d": payload(pickles)}
    for path in (pickles.zipped(content), pickles.legacy(content)):
        assert read_checkpoint(path).foreign == ("posix.system",)
        refused(pickles.zipped({"g_ema": payload(pickles), "d": 1}), RUN)


def test_a_discriminator_that_is_asked_for_is_looked_at(pickles: Any) -> None:
    path = pickles.write(
        {"D": pickles.network({"weight": WEIGHT}, x=payload(pickles)), "G_ema": good(pickles)}
    )
    with pytest.raises(CheckpointError, match=RUN):
        read_checkpoint(path, key="D")


def test_a_payload_that_generator_and_discriminator_share(pickles: Any) -> None:
    shared = payload(pickles)
    refused(pickles.write({"D": [shared], "G_ema": good(pickles, note=shared)}), RUN)
    refused(pickles.write({"D": [shared], "G_ema": good(pickles), "augment_pipe": shared}), RUN)


def test_a_payload_anywhere_else(pickles: Any) -> None:
    evil = payload(pickles)
    for content in (
        {"G_ema": good(pickles), "args": evil},
        {"G_ema": good(pickles), "list": [[{"x": (evil,)}]]},
        {"G_ema": good(pickles), evil: 1},
        {"G_ema": good(pickles, _init_kwargs={"z_dim": evil})},
        {"G_ema": pickles.network({"weight": WEIGHT}, {"inner": evil})},
        OrderedDict(weight=WEIGHT, bias=evil),
        [evil],
        evil,
    ):
        refused(pickles.write(content), RUN)


def test_a_payload_that_is_thrown_away_or_written_over(pickles: Any) -> None:
    call = pickles.dumps(payload(pickles), 2)[2:-1]
    rest = pickles.dumps({"weight": WEIGHT}, 2)[2:]
    refused(pickles.raw(b"\x80\x02" + call + b"0" + rest), RUN)
    refused(pickles.raw(b"\x80\x02}(K\x01" + call + b"K\x01Nu0" + rest), RUN)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("nt", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("__builtin__", "exec"),
        ("builtins", "__import__"),
        ("importlib", "import_module"),
        ("shutil", "rmtree"),
        ("runpy", "run_path"),
        ("ctypes", "CDLL"),
        ("socket", "socket"),
        ("pickle", "loads"),
        ("sys", "exit"),
        ("builtins", "open"),
        ("torch", "load"),
        ("torch.serialization", "os.system"),
        ("numpy", "load"),
    ],
)
def test_every_way_to_act(pickles: Any, module: str, name: str) -> None:
    culprit = f"{'builtins' if module == '__builtin__' else module}.{name}"
    for protocol in (2, 4):
        path = pickles.write({"weight": WEIGHT, "other": payload(pickles, module, name)}, protocol)
        refused(path, f"asks to run {culprit} when it is read")


def test_attributes_are_judged_by_their_names(pickles: Any) -> None:
    getattr_ = pickles.named("builtins", "getattr")
    path = pickles.write(
        {"weight": WEIGHT, "tanh": getattr_(pickles.named("torch._C", "_Functions"), "tanh")}
    )
    assert read_checkpoint(path).settings == {"tanh": "torch._C._Functions.tanh"}
    for owner, name in (("torch.serialization", "os"), ("torch", "load"), ("os", "system")):
        content = {"weight": WEIGHT, "x": getattr_(pickles.named(owner, "x"), name)}
        refused(pickles.write(content), "asks to run")
    chained = getattr_(getattr_(pickles.named("torch", "serialization"), "x"), "y")
    read_checkpoint(pickles.write({"weight": WEIGHT, "x": chained}))
    method = pickles.named("mylab.data", "Loader")
    for owner in (method, method()):
        read = read_checkpoint(pickles.write({"weight": WEIGHT, "args": {"x": getattr_(owner, "collate")}}))
        assert "mylab.data.Loader.collate" in read.foreign
        for name in ("system", "eval", "__globals__", "__subclasses__"):
            content = {"weight": WEIGHT, "args": {"x": getattr_(owner, name)}}
            refused(pickles.write(content), rf"asks to run mylab\.data\.Loader\.{name}")
    refused(
        pickles.write({"G_ema": good(pickles, x=getattr_(method(), "y"))}), "an attribute of something that"
    )
    assert read_checkpoint(pickles.write({"weight": WEIGHT, "x": getattr_("text")})).tensors


@pytest.mark.parametrize("kind", ["bare pickle", "torch zip", "legacy with payload", "twice"])
def test_a_payload_inside_the_bytes_of_a_storage(pickles: Any, kind: str) -> None:
    load = pickles.named("torch.storage", "_load_from_bytes")
    inner = {
        "bare pickle": lambda: pickles.dumps(payload(pickles), 2),
        "torch zip": lambda: pickles.zipped(payload(pickles)).read_bytes(),
        "legacy with payload": lambda: pickles.legacy(payload(pickles)).read_bytes(),
        "twice": lambda: pickles.legacy(load(pickles.dumps(payload(pickles), 2))).read_bytes(),
    }[kind]()
    rebuild = pickles.named("torch._utils", "_rebuild_tensor_v2")
    tensor = rebuild(load(inner), 0, (2,), (1,), False, OrderedDict())
    with pytest.raises(CheckpointError, match=r"nothing was run|truncated or broken"):
        read_checkpoint(pickles.write({"weight": WEIGHT, "bias": tensor}))
    assert not witnesses()


SOURCES = {
    "import os\nos.system('x')": "os.system",
    "from os import system as s\ns('x')": "os.system",
    "import subprocess as p\nclass A:\n    p.run(['x'])": "subprocess.run",
    "eval('1')": "builtins.eval",
    "def f(x=__import__('os').system('y')): pass": "builtins.__import__",
    "@exec\ndef f(): pass\nexec('')": "builtins.exec",
    "import os as o, sys\nif True:\n    x = [o.popen(c) for c in 'ab']": "os.popen",
}


@pytest.mark.parametrize("source", SOURCES)
def test_source_text_that_would_act_when_imported(pickles: Any, source: str) -> None:
    path = pickles.write({"G_ema": pickles.network({"weight": WEIGHT}, source=source)})
    refused(path, f"asks to run {SOURCES[source]} in the source text embedded in it".replace(".", r"\."))
    path = pickles.write({"D": pickles.network({}, source=source), "G_ema": good(pickles)})
    assert read_checkpoint(path).tensors


@pytest.mark.parametrize(
    "source",
    [
        "import os\nhere = os.path.dirname(__file__)\nthreads = os.cpu_count()",
        "def f():\n    import os\n    os.system('x')",
        "import re\nname = re.compile('x')",
        "not python (",
        "\0",
        "x = '\\z'",
        "(" * 10_000,
        "x = " + "-" * 200_000 + "1",
        "import os\n" + "x = 1\n" * 100_000,
        "f = lambda: open('x')",
    ],
    ids=range(10),
)
def test_source_text_that_does_no_harm(pickles: Any, source: str) -> None:
    path = pickles.write({"G_ema": pickles.network({"weight": WEIGHT}, source=source)})
    assert torch.equal(read_checkpoint(path).tensors["weight"], WEIGHT)


def test_names_of_the_file_cannot_upset_a_terminal(pickles: Any) -> None:
    evil = pickles.named("os", "sys\x1b]0;title\x07\u202etem" + "x" * 900)
    with pytest.raises(FastdirsError) as caught:
        read_checkpoint(pickles.write({"weight": WEIGHT, "x": evil("")}))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
