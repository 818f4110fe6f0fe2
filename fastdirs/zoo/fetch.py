"""One file over HTTP: streamed, continued where it broke off, checked before anyone reads it."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

from filelock import FileLock, Timeout

from fastdirs import __version__
from fastdirs.errors import DownloadError
from fastdirs.manifest import sha256_file
from fastdirs.zoo import Download

_CHUNK_BYTES = 2**18
_MIB = 2**20
_LOST = (OSError, http.client.HTTPException)


def fetch(
    download: Download,
    part: Path,
    advance: Callable[[int, int], None] = lambda done, total: None,
    timeout_s: float = 30,
) -> None:
    """Bring a file to `part`, whose content is then what the hash says.

    Args:
        download: What to fetch.
        part: Where it goes; what an earlier attempt left there is continued. Kept when the connection breaks,
            removed when the content is wrong.
        advance: Called with the bytes that are there and those there will be.
        timeout_s: How long the server may be silent.

    Raises:
        DownloadError: The server cannot be reached, refuses, sends something else, breaks off, or sends what
            has another size or hash; the file cannot be written; or another process is fetching it too.
        KeyboardInterrupt: The user interrupted it; what has arrived is kept.
    """
    lock = part.with_name(f"{part.name}.lock")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=0):
            try:
                _fetch(download, part, advance, timeout_s)
            finally:
                # Nobody waits for it, so nobody holds a lock on what is removed; Windows keeps open files.
                with suppress(OSError):
                    lock.unlink()
    except Timeout as error:
        raise DownloadError("another fastdirs is fetching it just now. Wait for that one.") from error
    except OSError as error:
        # Those of the network have become our own by now.
        raise DownloadError(
            f"{part} could not be written ({_reason(error)}). Free some space, or set XDG_CACHE_HOME to a "
            "folder on another disk."
        ) from error


def _fetch(download: Download, part: Path, advance: Callable[[int, int], None], timeout_s: float) -> None:
    continued = part.exists()
    if continued and download.size is None and _check(download, part) is None:
        # Where the zoo does not know the size, only the hash tells a whole file from half of one.
        return
    if not (continued and part.stat().st_size == download.size):
        _stream(download, part, advance, timeout_s)
    problem = _check(download, part)
    if problem and continued:
        # The halves may be of two files: what an older fastdirs left, or a server that changed its mind.
        part.unlink()
        _stream(download, part, advance, timeout_s)
        problem = _check(download, part)
    if problem:
        part.unlink()
        raise DownloadError(problem)


def _check(download: Download, part: Path) -> str | None:
    """What is wrong with a complete file, if anything."""
    sha256 = sha256_file(part)
    if sha256 == download.sha256:
        return None
    return (
        f"{download.address} sent a file with SHA-256 {sha256[:12]}..., but the zoo says "
        f"{download.sha256[:12]}...: it was changed or damaged, and was removed. Try again, and do not trust "
        "it if that stays so."
    )


def _stream(download: Download, part: Path, advance: Callable[[int, int], None], timeout_s: float) -> None:
    start = part.stat().st_size if part.exists() else 0
    with _open(download, start, timeout_s) as response:
        if start and response.status != HTTPStatus.PARTIAL_CONTENT:
            # The server begins at the beginning, whatever it was asked for.
            start = 0
        rest = response.headers.get("Content-Length")
        total = start + int(rest) if rest and rest.isdigit() else None
        _check_offer(download, response, total)
        done = start
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            for chunk in _chunks(response):
                done += len(chunk)
                if done > _most(download):
                    part.unlink()
                    raise DownloadError(_another(download, "more"))
                if done == len(chunk) and chunk.lstrip()[:1] == b"<":
                    part.unlink()
                    raise DownloadError(_web_page(download))
                file.write(chunk)
                advance(done, total or download.size or max(download.size_mib * _MIB, done))
    whole = total or download.size or done
    if done != whole:
        raise DownloadError(f"the connection broke after {done / _MIB:.1f} of {whole / _MIB:.1f} MiB.")


def _open(download: Download, start: int, timeout_s: float) -> http.client.HTTPResponse:
    """The answer to a request for the bytes from `start` on."""
    if not download.address.startswith(("https://", "http://")):
        raise DownloadError(f"{download.address} is no address that begins with https:// or http://.")
    # Packed on the way, the file would have another length than the server says.
    headers = {"User-Agent": f"fastdirs/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(download.address, headers=headers)
    try:
        response: http.client.HTTPResponse = _web().open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            # There is nothing after what we hold, and it is not the whole file: it is of another.
            return _open(download, 0, timeout_s)
        raise DownloadError(_refusal(download, error.code)) from error
    except urllib.error.URLError as error:
        raise DownloadError(_unreachable(download, error.reason)) from error
    except _LOST as error:
        raise DownloadError(_unreachable(download, error)) from error
    offset = response.headers.get("Content-Range", "").partition("-")[0]
    if response.status == HTTPStatus.PARTIAL_CONTENT and offset != f"bytes {start}":
        response.close()
        if not start:
            raise DownloadError(
                f"{download.address} sends a part of the file though all of it was asked for. "
                "Try again later, or download it in a browser and pass it as --from FILE."
            )
        return _open(download, 0, timeout_s)
    return response


def _web() -> urllib.request.OpenerDirector:
    """What follows redirects to http and https, and opens nothing else: no files of this machine, no FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.UnknownHandler, urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler, urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """What arrives; errors of the network, and only those, become one of ours."""
    while True:
        try:
            # As it comes: `read` would wait for a whole chunk, and lose what it holds if that never comes.
            chunk = response.read1(_CHUNK_BYTES)
        except _LOST as error:
            raise DownloadError(f"the connection broke ({_reason(error)}).") from error
        if not chunk:
            return
        yield chunk


def _check_offer(download: Download, response: http.client.HTTPResponse, total: int | None) -> None:
    """Before anything is written: is this the file at all?"""
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise DownloadError(_web_page(download))
    if total is not None and (total > _most(download) or total != (download.size or total)):
        raise DownloadError(_another(download, f"{total} bytes"))


def _most(download: Download) -> int:
    return download.size or 2 * download.size_mib * _MIB


def _another(download: Download, got: str) -> str:
    want = f"{download.size} bytes" if download.size else f"about {download.size_mib} MiB"
    return (
        f"{download.address} sends {got}, but the zoo says {want}: it is another file. "
        "Update fastdirs, and do not trust it if that stays so."
    )


def _web_page(download: Download) -> str:
    return (
        f"{download.address} answered with a web page, not the file: a log-in, a warning or an error. "
        "Open it in a browser, download the file, and pass it as --from FILE."
    )


def _refusal(download: Download, code: int) -> str:
    """What an HTTP error means to the user."""
    by_hand = "Look for the file in a browser, and pass it as --from FILE."
    if code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return f"{download.address} does not exist any more (HTTP {code}). {by_hand}"
    if code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"{download.address} is not given to everyone (HTTP {code}). {by_hand}"
    if code == HTTPStatus.TOO_MANY_REQUESTS or code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return f"{download.address} is out of order or busy (HTTP {code}). Try again later."
    return f"{download.address} was refused (HTTP {code}). {by_hand}"


def _unreachable(download: Download, reason: object) -> str:
    return f"{download.address} cannot be reached ({_reason(reason)}). Check the network, and try again."


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
