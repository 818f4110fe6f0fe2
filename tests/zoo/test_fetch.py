"""Downloads from a real server: whole, continued, and all that goes wrong."""

import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from fastdirs.errors import DownloadError
from fastdirs.zoo import Download
from fastdirs.zoo.fetch import fetch

Server = Any


@pytest.fixture
def reply(server: Server, download: Download) -> Any:
    """How the server answers; tests spoil it."""
    return server.replies["/tiny.pt"]


def test_whole(server: Server, download: Download, weights: bytes, part: Path) -> None:
    seen: list[tuple[int, int]] = []
    fetch(download, part, lambda done, total: seen.append((done, total)))
    assert part.read_bytes() == weights
    assert seen[-1] == (len(weights), len(weights))
    assert seen == sorted(seen)
    assert server.requests == [("/tiny.pt", None)]
    assert [path.name for path in part.parent.iterdir()] == ["tiny.part"]


def test_continued_after_the_connection_broke(
    server: Server, reply: Any, download: Download, weights: bytes, part: Path
) -> None:
    reply.cut_after = 7000
    with pytest.raises(DownloadError, match=r"connection broke after 0\.0 of 0\.0 MiB"):
        fetch(download, part)
    assert part.read_bytes() == weights[:7000]
    fetch(download, part)
    assert part.read_bytes() == weights
    assert server.requests[1:] == [("/tiny.pt", "bytes=7000-")]


def test_a_complete_part_is_not_fetched_again(
    server: Server, download: Download, weights: bytes, part: Path
) -> None:
    part.parent.mkdir(parents=True)
    part.write_bytes(weights)
    fetch(download, part)
    # Where the zoo does not know the exact size, the hash says that it is complete.
    fetch(replace(download, size=None), part)
    assert server.requests == []
    assert part.read_bytes() == weights
    # As long, but another file: there is nothing after it, so it is fetched from the beginning.
    part.write_bytes(weights[:-1] + b"?")
    fetch(replace(download, size=None), part)
    assert [wanted for _, wanted in server.requests] == [f"bytes={len(weights)}-", None]
    assert part.read_bytes() == weights


def test_a_part_that_nobody_asked_for(server: Server, reply: Any, download: Download, part: Path) -> None:
    # Whatever is asked for, the server answers with a part, and with the wrong one.
    reply.status, reply.ranges = 206, False
    with pytest.raises(
        DownloadError, match=r"sends a part of the file though all of it was asked for.*later"
    ):
        fetch(download, part)
    assert len(server.requests) == 1
    part.write_bytes(b"begun")
    with pytest.raises(DownloadError, match="sends a part of the file"):
        fetch(download, part)
    assert [wanted for _, wanted in server.requests[1:]] == ["bytes=5-", None]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("begun", [b"another file" * 100, b"x" * 50_000])
def test_what_does_not_belong_together_is_fetched_from_the_beginning(
    begun: bytes, ranges: bool, reply: Any, download: Download, weights: bytes, part: Path
) -> None:
    reply.ranges = ranges
    part.parent.mkdir(parents=True)
    part.write_bytes(begun)
    fetch(download, part)
    assert part.read_bytes() == weights


def test_a_server_without_ranges(
    server: Server, reply: Any, download: Download, weights: bytes, part: Path
) -> None:
    reply.ranges = False
    part.parent.mkdir(parents=True)
    part.write_bytes(weights[:7000])
    fetch(download, part)
    assert part.read_bytes() == weights
    assert server.requests == [("/tiny.pt", "bytes=7000-")]


def test_a_server_that_does_not_say_how_long_it_is(
    reply: Any, download: Download, weights: bytes, part: Path
) -> None:
    reply.length = False
    fetch(replace(download, size=None), part)
    assert part.read_bytes() == weights
    part.unlink()
    reply.cut_after = 7000
    with pytest.raises(DownloadError, match="connection broke"):
        fetch(download, part)
    assert part.stat().st_size == 7000


def test_redirects(server: Server, download: Download, weights: bytes, part: Path) -> None:
    address = server.serve("old", status=302, location=download.address)
    part.parent.mkdir(parents=True)
    part.write_bytes(weights[:7000])
    fetch(replace(download, address=address), part)
    assert part.read_bytes() == weights
    assert server.requests[-1] == ("/tiny.pt", "bytes=7000-")


def test_wrong_hash(reply: Any, download: Download, weights: bytes, part: Path) -> None:
    reply.data = weights[:-1] + b"?"
    with pytest.raises(DownloadError, match=r"SHA-256 .* but the zoo says .* was removed"):
        fetch(download, part)
    assert not part.exists()


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page(content_type: str, server: Server, reply: Any, download: Download, part: Path) -> None:
    reply.data, reply.content_type = b"\n<!DOCTYPE html><title>Log in</title>", content_type
    with pytest.raises(DownloadError, match=r"answered with a web page.*--from FILE"):
        fetch(replace(download, size=None), part)
    assert not part.exists()


def test_a_web_page_costs_nothing_that_has_arrived(
    reply: Any, download: Download, weights: bytes, part: Path
) -> None:
    part.parent.mkdir(parents=True)
    part.write_bytes(weights[:7000])
    reply.data, reply.content_type, reply.ranges = b"<html>later</html>", "text/html", False
    with pytest.raises(DownloadError, match="web page"):
        fetch(download, part)
    assert part.read_bytes() == weights[:7000]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"does not exist any more \(HTTP 404\).*--from FILE"),
        (410, "does not exist any more"),
        (403, "not given to everyone"),
        (429, "out of order or busy.*Try again later"),
        (503, "out of order or busy"),
        (400, r"was refused \(HTTP 400\)"),
    ],
)
def test_http_errors(status: int, message: str, reply: Any, download: Download, part: Path) -> None:
    reply.status = status
    with pytest.raises(DownloadError, match=message):
        fetch(download, part)
    assert not part.exists()


def test_too_large(reply: Any, download: Download, weights: bytes, part: Path) -> None:
    reply.data = weights + b"?"
    with pytest.raises(
        DownloadError, match=f"sends {len(reply.data)} bytes, but the zoo says {len(weights)}"
    ):
        fetch(download, part)
    reply.data = bytes(3 * 2**20)
    with pytest.raises(DownloadError, match="but the zoo says about 1 MiB"):
        fetch(replace(download, size=None), part)
    # One that does not say so is stopped on the way.
    reply.length = False
    with pytest.raises(DownloadError, match="sends more, but the zoo says about 1 MiB"):
        fetch(replace(download, size=None), part)
    assert not part.exists()


def test_too_small(reply: Any, download: Download, weights: bytes, part: Path) -> None:
    reply.data = weights[:-1]
    with pytest.raises(DownloadError, match="it is another file"):
        fetch(download, part)
    assert not part.exists()


def test_a_server_that_falls_silent(reply: Any, download: Download, weights: bytes, part: Path) -> None:
    reply.silent_after = 7000
    with pytest.raises(DownloadError, match=r"connection broke \(no answer in time\)"):
        fetch(download, part, timeout_s=0.2)
    assert part.read_bytes() == weights[:7000]
    reply.silent_after = None
    fetch(download, part)
    assert part.read_bytes() == weights


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/tiny.pt", "http://nowhere.invalid/tiny.pt"])
def test_no_connection(address: str, server: Server, download: Download, part: Path) -> None:
    with pytest.raises(DownloadError, match=r"cannot be reached .*Check the network"):
        fetch(replace(download, address=address), part, timeout_s=2)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/x", "tiny.pt"])
def test_other_addresses_are_not_opened(address: str, download: Download, part: Path) -> None:
    with pytest.raises(DownloadError, match="no address that begins with"):
        fetch(replace(download, address=address), part)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/tiny.pt", "data:,tiny"])
def test_redirects_to_what_is_not_the_web(
    location: str, server: Server, reply: Any, download: Download, part: Path
) -> None:
    reply.status, reply.location = 302, location
    with pytest.raises(DownloadError, match=r"was refused|unknown url type"):
        fetch(download, part)
    assert not part.exists()


def test_disk_that_fills_up(server: Server, download: Download, part: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(DownloadError, match=r"tiny\.part could not be written \(File too large\)"):
            fetch(download, part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_two_at_once(download: Download, part: Path) -> None:
    part.parent.mkdir(parents=True)
    with (
        FileLock(part.with_name("tiny.part.lock")),
        pytest.raises(DownloadError, match="another fastdirs is fetching it"),
    ):
        fetch(download, part)
    fetch(download, part)
    assert part.exists()


def test_interrupted(server: Server, reply: Any, download: Download, weights: bytes, part: Path) -> None:
    reply.silent_after = 7000
    program = f"""
import signal
from pathlib import Path
from fastdirs.zoo import Download
from fastdirs.zoo.fetch import fetch

signal.signal(signal.SIGINT, signal.default_int_handler)
fetch({download!r}, Path({str(part)!r}), lambda done, total: print(done, flush=True))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "7000\n"
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=30)[1]
    assert "KeyboardInterrupt" in errors
    assert part.read_bytes() == weights[:7000]
    reply.silent_after = None
    fetch(download, part)
    assert part.read_bytes() == weights
    assert server.requests[-1] == ("/tiny.pt", "bytes=7000-")
