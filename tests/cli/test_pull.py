import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from fastdirs.generators import Generator
from fastdirs.loading import save_generator
from fastdirs.zoo import ZOO, Bring, pulled_path

NAME = "celeba-faces-64"
BRING = "ffhq-1024-stylegan3-r"
_OTHER_ZOO = """
import functools, hashlib, http.server, os, sys, threading
from pathlib import Path

folder = Path(sys.argv[1])
os.environ["XDG_CACHE_HOME"], os.environ["no_proxy"] = str(folder / "cache"), "*"
os.chdir(folder)
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
(folder / "zoo").mkdir()
sha256 = hashlib.sha256((folder / "weights.pt").read_bytes()).hexdigest()
(folder / "zoo" / "tiny.toml").write_text(f'''
summary = "tiny"
family = "dcgan"
resolution = 8
licence = "CC0"

[download]
address = "http://127.0.0.1:{server.server_port}/weights.pt"
sha256 = "{sha256}"
size_mib = 3
''')

import fastdirs.download
import fastdirs.zoo
from fastdirs.cli import main

fastdirs.zoo.ZOO.folder = folder / "zoo"
main(["pull", "tiny"])
"""


@pytest.fixture
def pulled(small_dcgan: Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A generator that lies where an earlier pull would have put it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = pulled_path(NAME)
    path.parent.mkdir(parents=True)
    save_generator(small_dcgan, path, extra={"source_sha256": ZOO.load(NAME).sha256})
    return path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_what_is_there_is_not_fetched_again(run: Callable[..., Result], pulled: Path) -> None:
    result = run("pull", NAME)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{NAME}: {pulled} (licence: {ZOO.load(NAME).licence})\n"
    assert not result.stderr


def test_json(run_json: Callable[..., Any], pulled: Path) -> None:
    assert run_json("pull", NAME) == {"name": NAME, "path": str(pulled), "licence": ZOO.load(NAME).licence}


def test_unknown_name(run: Callable[..., Result]) -> None:
    result = run("pull", "celeba-face-64")
    assert result.exit_code == 1
    assert "'celeba-face-64'. Did you mean 'celeba-faces-64'?" in result.stderr


@pytest.mark.usefixtures("no_network")
def test_without_a_network_nothing_is_left(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("pull", NAME, "--out", "faces.safetensors")
    assert result.exit_code == 1
    assert f"{NAME} was not pulled" in result.stderr
    assert "Check the network" in result.stderr
    assert "download" in result.stderr
    assert not result.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_has_to_be_brought(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = run("pull", BRING)
    assert result.exit_code == 1
    way = ZOO.load(BRING).way
    assert isinstance(way, Bring)
    assert way.address in result.stderr
    assert f"fastdirs pull {BRING} --from {way.file}" in result.stderr
    assert f"fastdirs convert {way.file} --out" in result.stderr


def test_a_file_that_was_fetched_by_hand(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "mine.pt").write_bytes(b"something")
    result = run("pull", NAME, "--from", "mine.pt")
    assert result.exit_code == 1
    assert "checking mine.pt" in result.stderr
    assert "mine.pt has SHA-256 3fc9b689459d..., but the zoo says 9837db49baa6" in result.stderr
    assert "--from" in run("pull", "-h").stdout


def test_bytes_are_counted_in_a_bar(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(bytes(3 * 2**20))
    # The real command, with the one entry of another zoo.
    done = subprocess.run(
        [sys.executable, "-c", _OTHER_ZOO, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "MiB" in done.stderr
    assert "3/3" in done.stderr
    assert "was not pulled" in done.stderr
