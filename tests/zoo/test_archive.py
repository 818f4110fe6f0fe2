"""Archives: the member comes out, and nothing that an archive says makes anything else happen."""

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdirs.errors import DownloadError
from fastdirs.zoo.archive import extract

Make = Callable[..., Path]


def _tar(path: Path, files: dict[str, bytes], *special: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in special:
            archive.addfile(info)
    return path


def _zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def _tar_gz(path: Path, files: dict[str, bytes]) -> Path:
    return _tar(path, files, mode="w:gz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where to unpack, with nothing around it that was not there before."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def _take(archive: Path, member: str, folder: Path, limit_mib: int = 1) -> Path:
    return extract(archive, member, folder, limit_mib, "the archive")


@pytest.mark.parametrize("make", [_tar, _tar_gz, _zip])
def test_a_file(make: Make, tmp_path: Path, folder: Path) -> None:
    # Its name says nothing: a download has none.
    archive = make(tmp_path / "x.part", {"./a/other.pt": b"no", "./a/weights.pt": b"yes", "b": b"no"})
    assert _take(archive, "a/weights.pt", folder) == folder / "weights.pt"
    assert (folder / "weights.pt").read_bytes() == b"yes"
    assert [path.name for path in folder.iterdir()] == ["weights.pt"]


@pytest.mark.parametrize("make", [_tar, _tar_gz, _zip])
def test_a_folder(make: Make, tmp_path: Path, folder: Path) -> None:
    files = {"a/gan/args.json": b"{}", "a/gan/deep/generator.pt": b"yes", "a/gantry": b"no"}
    assert _take(make(tmp_path / "x", files), "a/gan", folder) == folder / "gan"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "gan/args.json",
        "gan/deep/generator.pt",
    }


@pytest.mark.parametrize("make", [_tar, _tar_gz, _zip])
def test_no_such_member(make: Make, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DownloadError, match=r"holds no weights\.pt"):
        _take(make(tmp_path / "x", {"other.pt": b""}), "weights.pt", folder)


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "weights.pt/../../evil", "..\\evil", "C:\\evil", "C:evil"]
)
@pytest.mark.parametrize("make", [_tar, _zip])
def test_a_name_that_leads_out_of_it(make: Make, name: str, tmp_path: Path, folder: Path) -> None:
    archive = make(tmp_path / "x", {name: b"evil", "weights.pt": b"yes"})
    with pytest.raises(DownloadError, match=r"leads out of it: no honest archive"):
        _take(archive, "weights.pt", folder)
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices(kind: bytes, tmp_path: Path, folder: Path) -> None:
    info = tarfile.TarInfo("weights.pt")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(DownloadError, match="is a link or a device"):
        _take(_tar(tmp_path / "x", {}, info), "weights.pt", folder)
    assert not list(folder.iterdir())


def test_a_link_in_a_zip(tmp_path: Path, folder: Path) -> None:
    info = zipfile.ZipInfo("weights.pt")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DownloadError, match="is a link"):
        _take(tmp_path / "x", "weights.pt", folder)


@pytest.mark.parametrize("make", [_tar_gz, _zip])
def test_a_flood(make: Make, tmp_path: Path, folder: Path) -> None:
    archive = make(tmp_path / "x", {"a/1": bytes(2**19), "a/2": bytes(2**20)})
    assert archive.stat().st_size < 10_000
    with pytest.raises(DownloadError, match="unpacks to more than 1 MiB"):
        _take(archive, "a", folder)
    assert _take(archive, "a/1", folder).stat().st_size == 2**19


@pytest.mark.parametrize("make", [_tar, _tar_gz, _zip])
def test_a_damaged_one(make: Make, tmp_path: Path, folder: Path) -> None:
    archive = make(tmp_path / "x", {"weights.pt": bytes(range(256)) * 400})
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) // 2])
    with pytest.raises(DownloadError, match=r"is damaged|neither a tar nor a zip"):
        _take(archive, "weights.pt", folder)


def test_no_archive(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "x").write_bytes(b"<html>" * 1000)
    with pytest.raises(DownloadError, match="neither a tar nor a zip"):
        _take(tmp_path / "x", "weights.pt", folder)
