"""A web server on this machine that can misbehave, and a small DCGAN for it to serve."""

import hashlib
import io
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdirs.zoo import Download, Zoo


@dataclass
class Reply:
    """What the server answers to one path."""

    data: bytes = b""
    status: int = 200
    content_type: str = "application/octet-stream"
    ranges: bool = True
    length: bool = True
    location: str = ""
    cut_after: int | None = None
    silent_after: int | None = None


@dataclass
class Server:
    address: str
    replies: dict[str, Reply] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)

    def serve(self, name: str, data: bytes = b"", **how: Any) -> str:
        self.replies[f"/{name}"] = Reply(data, **how)
        return f"{self.address}/{name}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            served.requests.append((self.path, wanted))
            reply = served.replies.get(self.path, Reply(b"not here", 404))
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and reply.ranges else 0
            if start >= len(reply.data) > 0:
                self.send_error(416)
                return
            body = reply.data[start:]
            self.send_response(206 if start and reply.data else reply.status)
            if reply.location:
                self.send_header("Location", reply.location)
            if start and reply.data:
                self.send_header("Content-Range", f"bytes {start}-{len(reply.data) - 1}/{len(reply.data)}")
            if reply.length:
                self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", reply.content_type)
            self.end_headers()
            self.close_connection = True
            if reply.cut_after is not None:
                body, reply.cut_after = body[: reply.cut_after], None
            if reply.silent_after is not None:
                self.wfile.write(body[: reply.silent_after])
                served.go_on.wait(30)
                return
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Server(f"http://127.0.0.1:{web.server_port}")
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.go_on.set()
    web.shutdown()
    thread.join()
    web.server_close()


@pytest.fixture(scope="session")
def weights() -> bytes:
    """From z = 8 to 8x8 RGB, as torch saves it: 14 KB."""
    random = torch.Generator().manual_seed(0)
    state = {
        "a.weight": torch.randn(8, 16, 4, 4, generator=random),
        "b.weight": torch.randn(16, 3, 4, 4, generator=random),
    }
    state |= {f"n.{part}": torch.ones(16) for part in ("weight", "bias", "running_mean", "running_var")}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache and temporary folder of the test's own."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """Where the download of "tiny" grows."""
    return tmp_path / "cache" / "fastdirs" / "zoo" / "tiny.part"


@pytest.fixture
def left(tmp_path: Path) -> Callable[[], list[str]]:
    """Names of the files that lie in the cache and in temporary folders; other libraries have theirs."""
    return lambda: sorted(
        path.name
        for pattern in ("cache/fastdirs/**/*", "temporary/fastdirs-*/**/*")
        for path in tmp_path.glob(pattern)
        if path.is_file()
    )


@pytest.fixture
def described(tmp_path: Path) -> Callable[..., Zoo]:
    """A zoo of one entry, "tiny": `described("download", address=..., sha256=...)`."""

    def write(way: str, resolution: int = 8, **fields: str | int) -> Zoo:
        folder = tmp_path / "described"
        folder.mkdir(exist_ok=True)
        lines = [f"{key} = {value!r}" for key, value in fields.items()]
        (folder / "tiny.toml").write_text(
            f'summary = "tiny"\nfamily = "dcgan"\nresolution = {resolution}\nlicence = "CC0"\n\n[{way}]\n'
            + "\n".join(lines)
        )
        return Zoo(folder)

    return write


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def download(server: Server, weights: bytes) -> Download:
    """The weights, served well."""
    address = server.serve("tiny.pt", weights)
    return Download(address=address, sha256=sha256(weights), size=len(weights), size_mib=1)
