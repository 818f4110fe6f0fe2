"""Bad input: a clear error that names the culprit, exit code 1 or 2, and nothing half-written.

Every case goes through the real command line.
"""

import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from fastdirs.artifact import Artifact
from fastdirs.cli import main
from fastdirs.directions import DirectionBank, load_bank

FASTDIRS = str(Path(sys.executable).with_name("fastdirs"))
SMALL = ("--generator-option", "resolution=32")
# Commands that write, as they are used on something good.
DISCOVER = ("discover", "toy", *SMALL, "--directions", "5", "--out", "out")
EXPORT = ("export", "toy", *SMALL, "--max-batch", "2", "--lowering", "folded", "--out", "out")
TRAVERSE = ("traverse", "artifact", "bank.safetensors", "--seeds", "0-3", "--out", "out")
WRITING = {"discover": DISCOVER, "export": EXPORT, "traverse": TRAVERSE}
_WITHOUT_RUNTIMES = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in ("onnxruntime", "openvino"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from fastdirs.cli import main
main()
"""
_CTRL_C_AFTER_SESSIONS = """
import os, signal
from pathlib import Path
from fastdirs.backends import BACKENDS

graphs = [BACKENDS.load(name) for name in BACKENDS.names()]
graphs = [backend for backend in graphs if backend.runs == "graph" and backend.precisions()]
sessions = [backend.open(Path("artifact/synthesis.onnx"), "f32", True) for backend in graphs * 2]
for session in sessions:
    session.close()
del session, sessions
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
_FULL_DISK_BYTES = {"discover": [100], "export": [12_000], "traverse": [100, 2_500, 20_000]}
# Amid the import of torch, at work, and where it ends; how far a command is by then depends on the machine.
_MOMENTS_S = {"discover": [0.3, 1.0, 1.4], "export": [0.5, 1.6, 2.4, 3.2], "traverse": [0.4, 1.2, 1.8, 2.4]}

Refused = Callable[..., str]


@pytest.fixture
def folder(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Where the commands run: `artifact` and `bank.safetensors` of the toy of 32 pixels."""
    shutil.copytree(toy_artifact.folder, tmp_path / "artifact")
    toy_bank.save(tmp_path / "bank.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


def check_refusal(exit_code: int, output: str, naming: Sequence[str]) -> None:
    assert exit_code in (1, 2), output
    assert "Traceback" not in output
    assert "Error: " in output
    for text in naming:
        assert text in output


@pytest.fixture
def refused(folder: Path) -> Refused:
    """Run a command that has to fail, naming some texts and changing nothing; returns what it said."""

    def run(arguments: Sequence[str], *naming: str) -> str:
        before = listing(folder)
        result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
        check_refusal(result.exit_code, result.output, naming)
        assert not result.stdout
        assert listing(folder) == before
        return result.stderr

    return run


def test_missing(refused: Refused) -> None:
    for command in ("discover", "export"):
        refused((command, "missing.pt", "--out", "out"), "missing.pt", "does not exist")
    refused(("traverse", "missing.pt", "bank.safetensors", "--out", "out"), "missing.pt", "does not exist")
    refused(("inspect", "missing.pt"), "missing.pt")
    refused(("bench", "missing.pt"), "missing.pt")
    refused(("traverse", "artifact", "no.safetensors", "--out", "out"), "no.safetensors", "fastdirs discover")


def _checkpoint(module: nn.Module, path: Path) -> None:
    torch.save(module.state_dict(), path)


def _damage(kind: str, module: nn.Module, path: Path) -> None:
    """Write a "checkpoint" as it is found in the wild."""
    _checkpoint(module, path)
    data = path.read_bytes()
    damaged = {
        "empty": b"",
        "html": b"<!DOCTYPE html>\n<html><body>Sign in to download</body></html>\n",
        "text": b"weights, to be uploaded soon\n",
        "truncated": data[: len(data) // 2],
        "truncated by few bytes": data[:-20],
    }
    path.write_bytes(damaged[kind])


@pytest.mark.parametrize("kind", ["empty", "html", "text", "truncated", "truncated by few bytes"])
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "model.onnx", "model"])
def test_broken_checkpoint(
    kind: str, name: str, refused: Refused, folder: Path, random_dcgan: Callable[..., nn.Module]
) -> None:
    path = folder / name
    _damage(kind, random_dcgan(), path)
    model = f"./{name}"
    for arguments in (
        ("discover", model, "--out", "out"),
        ("export", model, "--out", "out"),
        ("traverse", model, "bank.safetensors", "--out", "out"),
        ("inspect", model),
    ):
        message = refused(arguments, name)
        if kind == "html":
            assert "web page" in message
        if kind == "empty":
            assert "is empty" in message


def test_truncated_bank(refused: Refused, folder: Path) -> None:
    bank = folder / "bank.safetensors"
    bank.write_bytes(bank.read_bytes()[:-50])
    refused(TRAVERSE, "bank.safetensors")
    refused(("inspect", "bank.safetensors"), "bank.safetensors")


@pytest.mark.parametrize("kind", ["classifier", "discriminator", "tensors", "bank"])
def test_not_a_generator(kind: str, refused: Refused, folder: Path) -> None:
    modules = {
        "classifier": nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
        ),
        "discriminator": nn.Sequential(
            nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 16, 4, 2, 1), nn.Conv2d(16, 1, 8)
        ),
    }
    name = "bank.safetensors" if kind == "bank" else "model.pt"
    if kind in modules:
        _checkpoint(modules[kind], folder / name)
    elif kind == "tensors":
        torch.save([torch.zeros(3)], folder / name)
    for arguments in (
        ("discover", name, "--out", "out"),
        ("export", name, "--out", "out"),
        ("traverse", name, "bank.safetensors", "--out", "out"),
    ):
        refused(arguments, name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(
    value: float, refused: Refused, folder: Path, random_dcgan: Callable[..., nn.Module]
) -> None:
    state = random_dcgan().state_dict()
    name, tensor = list(state.items())[-1]
    state[name] = tensor.index_fill(0, torch.tensor([0]), value)
    torch.save(state, folder / "model.pt")
    for command in ("discover", "export"):
        refused((command, "model.pt", "--out", "out"), "model.pt", "NaN or infinite")


def test_artefact_that_is_none(refused: Refused, folder: Path) -> None:
    refused(("verify", "missing"), "missing")
    (folder / "artifact" / "manifest.json").unlink()
    refused(("verify", "artifact"), "manifest.json")
    refused(TRAVERSE, "manifest.json")


def test_bank_of_another_generator(refused: Refused, folder: Path) -> None:
    command = ("traverse", "toy", "bank.safetensors", "--out", "out")
    weights = load_bank(folder / "bank.safetensors").generator["weights_sha256"]
    refused(command, "The bank was made for toy", weights[:12], "Run discover")


@pytest.mark.parametrize(
    ("arguments", "naming"),
    [
        ((*TRAVERSE, "--directions", "0,5"), "There is no direction 5. Directions run from 0 to 4."),
        ((*TRAVERSE, "--directions", "2-99999999999"), "99999999999"),
        ((*TRAVERSE, "--directions", "-1"), "'-1' is not a list of directions"),
        ((*TRAVERSE, "--seeds", "9223372036854775808"), "There is no seed 9223372036854775808"),
        ((*DISCOVER, "--layers", "0-1"), "There is no layer 1. Layers run from 0 to 0."),
        ((*DISCOVER, "--directions", "33"), "33 directions are out of range"),
        ((*TRAVERSE, "--epsilons", "-6:1e6:9"), "Epsilon 1e+06 is out of range"),
        ((*TRAVERSE, "--epsilons", "0,inf"), "Epsilon inf is out of range"),
        ((*TRAVERSE, "--epsilons", "nan"), "Epsilon nan is out of range"),
        ((*TRAVERSE, "--epsilons", "-6:6:1"), "'-6:6:1' asks for 1 epsilons"),
        ((*TRAVERSE, "--batch", "9"), "A batch of 9 is out of range"),
    ],
)
def test_out_of_range(arguments: tuple[str, ...], naming: str, refused: Refused) -> None:
    refused(arguments, naming)


@pytest.mark.parametrize(
    ("arguments", "wrong", "right"),
    [
        (("travers",), "travers", "traverse"),
        (("list", "zooo"), "zooo", "zoo"),
        (("discover", "tyo", "--out", "out"), "tyo", "toy"),
        (("discover", "celeba-face-64", "--out", "out"), "celeba-face-64", "celeba-faces-64"),
        (("discover", "toy", "--method", "seffa", "--out", "out"), "seffa", "sefa"),
        (("discover", "toy", "-o", "normalise=none", "--out", "out"), "normalise", "normalize"),
        (("discover", "toy", "--generator-option", "zdim=9", "--out", "out"), "zdim", "z_dim"),
        (("export", "toy", "--lowering", "fold", "--out", "out"), "fold", "folded"),
        ((*TRAVERSE, "--backend", "orrt"), "orrt", "ort"),
        ((*TRAVERSE, "--write", "strip"), "strip", "strips"),
        ((*TRAVERSE, "--image-format", "jpe"), "jpe", "jpg"),
        ((*TRAVERSE, "--precision", "fp32"), "fp32", "f32"),
        ((*TRAVERSE, "--epsilon", "0,1"), "--epsilon", "--epsilons"),
        (("pull", "digiface"), "digiface", "digiface-64"),
    ],
)
def test_unknown_names(arguments: tuple[str, ...], wrong: str, right: str, refused: Refused) -> None:
    refused(arguments, wrong, right)


@pytest.mark.parametrize("command", WRITING)
def test_unwritable(command: str, refused: Refused, folder: Path) -> None:
    (folder / "file").write_text("not a folder")
    refused((*WRITING[command], "--out", "file/out"), "file/out", "Choose another --out")
    refused((*WRITING[command], "--out", "n" * 300), "n" * 300, "File name too long")


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_output_exists(command: str, force: tuple[str, ...], refused: Refused, folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.txt").write_text("years of work")
    refused((*WRITING[command], *force), "out", "Choose another --out")
    (folder / "file").write_text("more of it")
    refused((*WRITING[command], "--out", "file", *force), "file", "Choose another --out")


@pytest.mark.parametrize(
    ("command", "limit"), [(name, limit) for name, limits in _FULL_DISK_BYTES.items() for limit in limits]
)
def test_full_disk(command: str, limit: int, folder: Path) -> None:
    def fill_the_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    before = listing(folder)
    done = subprocess.run(
        [FASTDIRS, *WRITING[command]], capture_output=True, text=True, check=False, preexec_fn=fill_the_disk
    )
    check_refusal(done.returncode, done.stdout + done.stderr, ["out"])
    after = listing(folder)
    if command == "traverse":
        check_whole_files(folder / "out")
        after = {name: data for name, data in after.items() if not name.startswith("out")}
    assert after == before


def check_whole_files(out: Path) -> None:
    """What an unfinished traversal leaves can be continued: files as a whole run writes them, or none."""
    if not out.exists():
        return
    left = listing(out)
    assert not [name for name in left if name.endswith(".tmp")]
    result = CliRunner().invoke(main, list(TRAVERSE), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    whole = listing(out)
    for name, data in left.items():
        # The manifest changes from unfinished to complete.
        assert name == "traversal.json" or whole[name] == data
    assert "index.html" in whole


def test_graph_changed_since_its_manifest(refused: Refused, folder: Path) -> None:
    path = folder / "artifact" / "synthesis.onnx"
    model = onnx.load(path)
    model.doc_string = "improved"
    onnx.save(model, path)
    for arguments in (("verify", "artifact"), TRAVERSE):
        refused(arguments, "synthesis.onnx", "changed since its manifest was written", "Export again")


@pytest.mark.parametrize(
    "arguments",
    [
        (*TRAVERSE, "--backend", "ort"),
        (*TRAVERSE, "--backend", "openvino_cpu"),
        TRAVERSE,
        EXPORT,
        ("verify", "artifact"),
    ],
)
def test_backend_that_is_not_installed(arguments: tuple[str, ...], folder: Path) -> None:
    before = listing(folder)
    command = [sys.executable, "-c", _WITHOUT_RUNTIMES, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    check_refusal(done.returncode, done.stdout + done.stderr, ["pip install 'fastdirs[cpu]'"])
    assert listing(folder) == before


def _interrupt(arguments: Sequence[str], after_s: float, at_work: Path | None = None) -> tuple[int, str]:
    """Start a command, press Ctrl-C some time after `at_work` exists; its exit code and standard error."""
    command = [FASTDIRS, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while at_work is not None and not at_work.exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.parametrize(
    ("command", "after_s"), [(name, after_s) for name, moments in _MOMENTS_S.items() for after_s in moments]
)
def test_interrupted(command: str, after_s: float, folder: Path) -> None:
    before = listing(folder)
    # Long enough to be interrupted while it renders.
    more = ("--seeds", "0-2000") if command == "traverse" else ()
    exit_code, errors = _interrupt((*WRITING[command], *more), after_s)
    assert "Traceback" not in errors
    out = folder / "out"
    after = {name: data for name, data in listing(folder).items() if not name.startswith("out")}
    assert after == before, "only the output may be new"
    if exit_code == 1:
        assert "Interrupted" in errors
        assert not out.exists() or command == "traverse"
        assert not list(folder.rglob("*.tmp"))
    else:
        # The work was done already: the interpreter was on its way out, where it obeys SIGINT by dying of it.
        assert exit_code in (0, -signal.SIGINT)
        assert (
            CliRunner().invoke(main, ["verify" if command == "export" else "inspect", "out"]).exit_code == 0
        )


def test_interrupted_traversal_continues(folder: Path) -> None:
    command = (*TRAVERSE, "--seeds", "0-2000")
    exit_code, errors = _interrupt(command, 0.2, folder / "out" / "strips" / "direction-0004")
    assert exit_code == 1, errors
    left = listing(folder / "out")
    strips = [name for name in left if name.endswith(".jpg")]
    assert 5 <= len(strips) < 2001 * 5
    # What is there is what a run that was never interrupted writes.
    more = ("--seeds", "0-3", "--out", "whole")
    assert CliRunner().invoke(main, [*TRAVERSE, *more], catch_exceptions=False).exit_code == 0
    whole = listing(folder / "whole")
    shared = [name for name in strips if name in whole]
    assert shared
    assert all(left[name] == whole[name] for name in shared)


def test_interrupted_after_sessions_were_closed(folder: Path) -> None:
    # A runtime that leaves the signal stack in memory that it freed kills the process at the next signal.
    done = subprocess.run(
        [sys.executable, "-c", _CTRL_C_AFTER_SESSIONS], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
