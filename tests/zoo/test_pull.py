"""`pull` of entries that are downloads, and of those that the user brings."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import fastdirs
from fastdirs.download import pull
from fastdirs.errors import DownloadError
from fastdirs.manifest import read_json, sha256_file
from fastdirs.zoo import Download, Zoo, pulled_path

PAGE = "https://example.org/models"


def _given(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


@pytest.fixture
def zoo(described: Callable[..., Zoo], download: Download) -> Zoo:
    """A zoo of one download, which is served well."""
    return described("download", **_given(**asdict(download)))


@pytest.fixture
def brought(described: Callable[..., Zoo]) -> Zoo:
    """A zoo of one entry that nobody serves and whose hash nobody knows."""
    return described("bring", address=PAGE, file="tiny.pt")


@pytest.fixture
def file(tmp_path: Path, weights: bytes) -> Path:
    """What the user fetched by hand."""
    (tmp_path / "tiny.pt").write_bytes(weights)
    return tmp_path / "tiny.pt"


def _tar(data: bytes, name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_a_download(
    zoo: Zoo, download: Download, weights: bytes, part: Path, left: Callable[[], list[str]]
) -> None:
    steps: list[str] = []
    seen: list[tuple[int, int]] = []
    path = pull(
        "tiny", progress=steps.append, zoo=zoo, advance=lambda done, total: seen.append((done, total))
    )
    assert path == pulled_path("tiny")
    assert left() == ["tiny.json", "tiny.safetensors"]
    assert steps == [
        f"downloading 1 MiB from {download.address} to {part}",
        f"checked: SHA-256 {download.sha256}",
        f"converting to {path}",
    ]
    assert seen[-1] == (len(weights), len(weights))
    provenance = fastdirs.load_generator(path).provenance
    assert (provenance.name, provenance.licence, provenance.source) == ("tiny", "CC0", download.address)
    assert read_json(path.with_suffix(".json"), "generator")["source_sha256"] == download.sha256


def test_what_is_there_is_not_fetched_again(zoo: Zoo, server: Any) -> None:
    path = pull("tiny", zoo=zoo)
    server.requests.clear()
    assert pull("tiny", zoo=zoo) == path
    assert not server.requests
    pull("tiny", zoo=zoo, force=True)
    assert len(server.requests) == 1


def test_a_broken_download_continues(
    zoo: Zoo, server: Any, part: Path, left: Callable[[], list[str]], tmp_path: Path
) -> None:
    server.replies["/tiny.pt"].cut_after = 7000
    with pytest.raises(
        DownloadError, match=r"^tiny was not pulled: the connection broke .* kept in .*tiny\.part: the same"
    ):
        pull("tiny", zoo=zoo)
    assert left() == ["tiny.part"]
    # Also into another place.
    out = tmp_path / "mine.safetensors"
    assert fastdirs.load_generator(pull("tiny", zoo=zoo, out=out)).z_dim == 8
    assert [wanted for _, wanted in server.requests] == [None, "bytes=7000-"]
    assert left() == []


def test_a_wrong_hash_leaves_nothing(
    zoo: Zoo, server: Any, weights: bytes, left: Callable[[], list[str]]
) -> None:
    server.replies["/tiny.pt"].data = bytes(len(weights))
    with pytest.raises(DownloadError, match=r"tiny was not pulled: .* but the zoo says"):
        pull("tiny", zoo=zoo)
    assert left() == []


def test_an_archive_with_a_member(
    described: Callable[..., Zoo], server: Any, weights: bytes, tmp_path: Path, left: Callable[[], list[str]]
) -> None:
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(_tar(weights, "gan/tiny.pt"))
    address = server.serve("packed", packed.read_bytes())
    zoo = described("download", address=address, sha256=sha256_file(packed), size_mib=1, member="gan/tiny.pt")
    path = pull("tiny", zoo=zoo)
    assert fastdirs.load_generator(path).provenance.source == f"{address}, gan/tiny.pt"
    assert left() == ["tiny.json", "tiny.safetensors"]
    # The archive that the user fetched does as well.
    server.requests.clear()
    pull("tiny", zoo=zoo, force=True, file=packed)
    assert not server.requests


def test_a_hostile_archive(
    described: Callable[..., Zoo], server: Any, weights: bytes, tmp_path: Path, left: Callable[[], list[str]]
) -> None:
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(_tar(weights, "../../tiny.pt"))
    address = server.serve("packed", packed.read_bytes())
    zoo = described("download", address=address, sha256=sha256_file(packed), size_mib=1, member="tiny.pt")
    with pytest.raises(DownloadError, match=r"'../../tiny.pt', which leads out of it"):
        pull("tiny", zoo=zoo)
    assert left() == ["tiny.part"]


def test_a_download_that_cannot_be_converted_is_kept(
    described: Callable[..., Zoo], download: Download, server: Any, left: Callable[[], list[str]]
) -> None:
    fields = _given(**asdict(download))
    with pytest.raises(DownloadError, match=r"but the zoo says 16 .* kept in .*tiny\.part"):
        pull("tiny", zoo=described("download", resolution=16, **fields))
    server.requests.clear()
    pull("tiny", zoo=described("download", **fields))
    assert not server.requests
    assert left() == ["tiny.json", "tiny.safetensors"]


@pytest.mark.parametrize("step", ["downloading", "converting"])
def test_interrupted(step: str, zoo: Zoo, weights: bytes, part: Path, left: Callable[[], list[str]]) -> None:
    part.parent.mkdir(parents=True)
    part.write_bytes(weights[:7000])

    def interrupt(line: str) -> None:
        if line.startswith(step):
            raise KeyboardInterrupt

    with pytest.raises(DownloadError, match=r"interrupted\. Run it again\. What has arrived is kept"):
        pull("tiny", zoo=zoo, progress=interrupt)
    assert left() == ["tiny.part"]
    assert fastdirs.load_generator(pull("tiny", zoo=zoo)).z_dim == 8
    assert left() == ["tiny.json", "tiny.safetensors"]


def test_a_place_that_cannot_be_written(zoo: Zoo, server: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(DownloadError, match="could not be written"):
        pull("tiny", zoo=zoo)
    assert not server.requests


def test_another_generator_than_described(described: Callable[..., Zoo], file: Path) -> None:
    zoo = described("bring", resolution=16, address=PAGE, file="tiny.pt")
    with pytest.raises(DownloadError, match="images of 8 pixels of 0 classes, but the zoo says 16"):
        pull("tiny", zoo=zoo, file=file)
    assert not pulled_path("tiny").exists()


def test_what_has_to_be_brought_says_where_it_is(brought: Zoo, left: Callable[[], list[str]]) -> None:
    with pytest.raises(DownloadError) as caught:
        pull("tiny", zoo=brought)
    assert str(caught.value) == (
        f"tiny was not pulled: fastdirs does not fetch it. Download tiny.pt from {PAGE} (licence: CC0) "
        "yourself, then: fastdirs pull tiny --from tiny.pt (or keep it elsewhere: "
        "fastdirs convert tiny.pt --out tiny.safetensors)"
    )
    assert left() == []


def test_brought(brought: Zoo, file: Path) -> None:
    path = pull("tiny", zoo=brought, file=file)
    provenance = fastdirs.load_generator(path).provenance
    assert (provenance.name, provenance.licence) == ("tiny", "CC0")
    assert provenance.source == f"tiny.pt from {PAGE}"
    assert read_json(path.with_suffix(".json"), "generator")["source_sha256"] == sha256_file(file)
    assert file.exists()
    # From now on it is there, with the file and without.
    made = path.stat().st_mtime_ns
    assert pull("tiny", zoo=brought) == pull("tiny", zoo=brought, file=file) == path
    assert path.stat().st_mtime_ns == made


def test_brought_twice(brought: Zoo, file: Path, tmp_path: Path, weights: bytes) -> None:
    pull("tiny", zoo=brought, file=file)
    another = tmp_path / "another.pt"
    another.write_bytes(weights + b"\0")
    with pytest.raises(
        DownloadError, match=r"exists already, made of another file than .*another\.pt.*--force"
    ):
        pull("tiny", zoo=brought, file=another)


def test_brought_with_a_known_hash(described: Callable[..., Zoo], file: Path, tmp_path: Path) -> None:
    zoo = described("bring", address=PAGE, file="tiny.pt", sha256=sha256_file(file))
    (tmp_path / "other.pt").write_bytes(b"other")
    with pytest.raises(DownloadError, match=r"other\.pt has SHA-256 .*another file, or damaged.*convert"):
        pull("tiny", zoo=zoo, file=tmp_path / "other.pt")
    with pytest.raises(DownloadError, match="is a folder, but the zoo says"):
        pull("tiny", zoo=zoo, file=tmp_path)
    with pytest.raises(DownloadError, match=r"absent\.pt does not exist"):
        pull("tiny", zoo=zoo, file=tmp_path / "absent.pt")
    assert fastdirs.load_generator(pull("tiny", zoo=zoo, file=file)).z_dim == 8


def test_a_file_that_is_no_generator(brought: Zoo, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html>log in</html>")
    with pytest.raises(DownloadError, match="web page"):
        pull("tiny", zoo=brought, file=tmp_path / "page.html")
    assert not pulled_path("tiny").exists()
