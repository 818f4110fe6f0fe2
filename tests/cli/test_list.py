import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from fastdirs.backends import BACKENDS
from fastdirs.discovery import METHODS
from fastdirs.generators import GENERATORS
from fastdirs.interchange import BANK_FORMATS
from fastdirs.zoo import ZOO, pulled_path

NAMES = {
    "generators": GENERATORS.names,
    "methods": METHODS.names,
    "backends": BACKENDS.names,
    "formats": BANK_FORMATS.names,
    "zoo": ZOO.names,
}
_WITHOUT_RUNTIMES = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in ("onnxruntime", "openvino"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from fastdirs.cli import main
main(["list", "backends"])
"""


@pytest.mark.parametrize("what", NAMES)
def test_names_are_the_registered_ones(what: str, run_json: Callable[..., Any]) -> None:
    rows = run_json("list", what)
    names: Sequence[str] = NAMES[what]()
    assert [row["name"] for row in rows] == list(names)
    assert all(row["summary"] for row in rows)


@pytest.mark.parametrize("what", NAMES)
def test_a_table_without_json(what: str, run: Callable[..., Result]) -> None:
    result = run("list", what)
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines() if line[0] != " "] == [
        "name",
        *NAMES[what](),
    ]
    assert not result.stderr


def test_options_that_settle_a_checkpoint_are_shown(run: Callable[..., Result]) -> None:
    assert "strides: " in run("list", "generators").stdout
    assert "normalize=rows" in run("list", "methods").stdout


def test_a_pulled_generator_is_marked(
    run_json: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = pulled_path("celeba-faces-64")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    pulled = {row["name"]: row["pulled"] for row in run_json("list", "zoo")}
    assert pulled["celeba-faces-64"] == "yes"
    assert pulled["digiface-64"] == "no"


def test_the_zoo_says_how_things_are_got(run_json: Callable[..., Any]) -> None:
    rows = {row["name"]: row for row in run_json("list", "zoo")}
    assert rows["digiface-64"]["how"] == "package, 13 MiB"
    assert rows["digiface-64"]["address"] == ""
    fetched = rows["ffhq-1024-stylegan2-ada"]
    assert fetched["how"] == "download, 364 MiB"
    assert fetched["resolution"] == 1024
    assert fetched["address"].endswith("/ffhq.pkl")
    assert rows["ffhq-1024-stylegan3-r"]["how"] == "bring: api.ngc.nvidia.com"


@pytest.mark.parametrize(("what", "columns"), [("zoo", 80), ("zoo", 240), ("generators", 80)])
def test_every_name_stays_whole_in_a_window(what: str, columns: int) -> None:
    """In a real terminal, in which tables fold what does not fit."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    command = [Path(sys.executable).with_name("fastdirs"), "list", what]
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    with subprocess.Popen(command, stdout=theirs, env={**environment, "TERM": "dumb"}) as process:
        os.close(theirs)
        text = b""
        # Linux reports the other end's closing as an error.
        with suppress(OSError):
            while chunk := os.read(ours, 10_000):
                text += chunk
    os.close(ours)
    assert process.returncode == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text.decode()).splitlines()
    first = [line.split()[0] for line in lines if line[:1].strip()]
    assert [name for name in first if name != "name"] == list(NAMES[what]())


def test_what_is_not_known_is_a_wrong_use(run: Callable[..., Result]) -> None:
    result = run("list", "zo")
    assert result.exit_code == 2
    assert "'zo'" in result.stderr
    assert "zoo" in result.stderr


def test_a_backend_that_is_not_installed_names_the_pip_command() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_RUNTIMES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "not installed" not in rows["eager"]
    for name in ("ort", "openvino_cpu"):
        assert "not installed" in rows[name]
        assert "pip install 'fastdirs[cpu]'" in rows[name]
