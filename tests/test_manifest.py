import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastdirs
from fastdirs.errors import ArtifactError, OutputError
from fastdirs.manifest import (
    SCHEMA,
    atomic_file,
    atomic_folder,
    cache_dir,
    environment,
    manifest,
    read_json,
    sha256_file,
    sha256_json,
    sha256_tensors,
    write_bytes,
    write_json,
)

MARKER = "made.json"


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fill(folder: Path, text: str) -> None:
    with atomic_folder(folder, MARKER, "made", force=True) as temporary:
        write_json(temporary / MARKER, manifest("made", {"text": text}))


def text_in(folder: Path) -> str:
    return str(read_json(folder / MARKER, "made")["text"])


def test_atomic_file_appears_at_the_end_and_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"abc")
        assert not path.exists()
    assert path.read_bytes() == b"abc"
    assert below(tmp_path) == ["new", "new/file.bin"]


def test_atomic_file_keeps_the_old_content_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert below(tmp_path) == ["file.bin"]


def test_atomic_file_leaves_nothing_behind_when_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "file.bin") as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert below(tmp_path) == []


@pytest.mark.parametrize("name", ["plain/file.bin", "plain/deeper/file.bin"])
def test_a_file_where_a_folder_should_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "plain").write_bytes(b"a file")
    with pytest.raises(OutputError, match="could not be written"):
        write_bytes(tmp_path / name, b"abc")
    assert below(tmp_path) == ["plain"]


def test_a_folder_where_the_file_should_be(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="could not be written"):
        write_bytes(tmp_path / "taken", b"abc")
    assert below(tmp_path) == ["taken"]


def test_a_name_too_long_for_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="could not be written"):
        write_bytes(tmp_path / ("x" * 300), b"abc")
    assert below(tmp_path) == []


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


AS_NOBODY = """
import os, sys
from pathlib import Path
from fastdirs.errors import OutputError
from fastdirs.manifest import atomic_folder, write_bytes
os.chdir(Path(sys.argv[1]).parent)
folder = Path(Path(sys.argv[1]).name)
if os.getuid() == 0:
    os.setuid(65534)
made = atomic_folder(folder / "made", "marker", "made")
for write in (lambda: write_bytes(folder / "file", b"abc"), made.__enter__):
    try:
        write()
    except OutputError as error:
        print(error)
"""


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read-only", "closed"])
def test_a_folder_without_permission(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    # Root may write anywhere, so the code becomes another user first, who can look into the folder above.
    tmp_path.chmod(0o755)
    folder.chmod(mode)
    try:
        done = run(AS_NOBODY, folder)
    finally:
        folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("could not be written: Permission denied") == 2
    assert below(folder) == []


ON_A_FULL_DISK = """
import errno, resource, signal, sys
from pathlib import Path
from fastdirs.errors import OutputError
from fastdirs.manifest import atomic_folder, write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
folder = Path(sys.argv[1])
for name in ("old", "new"):
    try:
        write_bytes(folder / name, bytes(100_000))
    except OutputError as error:
        print(error)
try:
    with atomic_folder(folder / "made", "marker", "made", force=True) as temporary:
        (temporary / "marker").write_bytes(bytes(100_000))
except OutputError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more_bytes_leaves_nothing_and_keeps_the_old(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    write_json(tmp_path / "made" / "marker", manifest("made", {}))
    old = (tmp_path / "made" / "marker").read_bytes()
    done = run(ON_A_FULL_DISK, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("could not be written: File too large") == 3
    assert below(tmp_path) == ["made", "made/marker", "old"]
    assert (tmp_path / "old").read_bytes() == b"old"
    assert (tmp_path / "made" / "marker").read_bytes() == old


def test_atomic_folder_appears_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "made"
    with atomic_folder(folder, MARKER, "made") as temporary:
        (temporary / MARKER).write_text("{}")
        assert not folder.exists()
    assert below(tmp_path) == ["deep", "deep/made", f"deep/made/{MARKER}"]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_atomic_folder_is_not_replaced_without_force(tmp_path: Path) -> None:
    fill(tmp_path / "made", "old")
    with (
        pytest.raises(OutputError, match=r"exists already.*--force"),
        atomic_folder(tmp_path / "made", MARKER, "made"),
    ):
        pytest.fail("the block must not run")
    assert text_in(tmp_path / "made") == "old"


def test_force_replaces_the_whole_folder(tmp_path: Path) -> None:
    fill(tmp_path / "made", "old")
    (tmp_path / "made" / "leftover").touch()
    fill(tmp_path / "made", "new")
    assert below(tmp_path) == ["made", f"made/{MARKER}"]
    assert text_in(tmp_path / "made") == "new"


def test_force_replaces_no_folder_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").touch()
    with pytest.raises(OutputError, match="left alone"):
        fill(tmp_path / "photos", "new")
    assert below(tmp_path) == ["photos", "photos/holiday.jpg"]


def test_force_replaces_no_folder_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "webapp").mkdir()
    (tmp_path / "webapp" / MARKER).write_text('{"name": "an app", "kind": "made"}')
    with pytest.raises(OutputError, match="another program's"):
        fill(tmp_path / "webapp", "new")
    assert below(tmp_path) == ["webapp", f"webapp/{MARKER}"]


def test_what_came_in_the_meantime_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputError), atomic_folder(tmp_path / "made", MARKER, "made"):
        write_bytes(tmp_path / "made" / "thesis.txt", b"")
    assert below(tmp_path) == ["made", "made/thesis.txt"]


def test_the_folder_one_is_in_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(OutputError, match="the folder that you are in"),
        atomic_folder(Path(), MARKER, "made"),
    ):
        pytest.fail("the block must not run")


def test_force_fills_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "empty", "new")
    assert below(tmp_path) == ["empty", f"empty/{MARKER}"]


def test_atomic_folder_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(OutputError):
        fill(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert below(tmp_path) == ["file"]


def test_an_interrupted_folder_keeps_the_old_one(tmp_path: Path) -> None:
    fill(tmp_path / "made", "old")

    def fill_half() -> None:
        with atomic_folder(tmp_path / "made", MARKER, "made", force=True) as temporary:
            (temporary / MARKER).write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_half()
    assert below(tmp_path) == ["made", f"made/{MARKER}"]
    assert text_in(tmp_path / "made") == "old"


def test_an_interrupted_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "made", MARKER, "made") as temporary:  # noqa: PT012
        (temporary / "part").touch()
        raise ZeroDivisionError
    assert below(tmp_path) == []


def test_manifest_round_trip(tmp_path: Path) -> None:
    content = manifest("direction-bank", {"labels": ["age", "größe"]})
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json", "direction-bank") == content
    assert content["schema"] == SCHEMA


def test_equal_work_gives_equal_manifests() -> None:
    assert json.dumps(manifest("x", {"a": 1})) == json.dumps(manifest("x", {"a": 1}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "missing or unreadable"),
        ("", "missing or unreadable"),
        ('{"kind": "x", "sche', "missing or unreadable"),
        ("[" * 100_000, "missing or unreadable"),
        ("[1, 2]", "not the manifest of a fastdirs x"),
        ('{"kind": "y", "schema": 1}', "not the manifest of a fastdirs x"),
        ('{"kind": "x", "schema": 99}', "has schema 99"),
        ('{"kind": "x"}', "has schema None"),
    ],
)
def test_bad_manifests(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(ArtifactError, match=message):
        read_json(tmp_path / "a.json", "x")


def test_a_manifest_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ArtifactError, match="missing or unreadable"):
        read_json(tmp_path / "a.json", "x")


def test_environment_names_versions() -> None:
    versions = environment()
    assert versions["fastdirs"] == fastdirs.__version__
    assert versions["torch"] == torch.__version__


def test_cache_dir_follows_the_convention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "fastdirs"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "fastdirs"


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sha256_of_json_does_not_depend_on_the_order_of_keys() -> None:
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})


def tensors() -> dict[str, Tensor]:
    return {
        "weight": torch.arange(6.0).reshape(2, 3),
        "count": torch.tensor(7),
        "half": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
        "flag": torch.tensor([True, False, True]),
        "none": torch.zeros(0, 3),
    }


def test_sha256_of_tensors_does_not_depend_on_order_or_layout() -> None:
    expected = sha256_tensors(tensors())
    assert sha256_tensors(dict(reversed(tensors().items()))) == expected
    strided = torch.arange(6.0).reshape(2, 3).T.contiguous().T
    assert not strided.is_contiguous()
    assert sha256_tensors({**tensors(), "weight": strided}) == expected
    assert sha256_tensors({**tensors(), "weight": tensors()["weight"].requires_grad_()}) == expected


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("weight", torch.arange(6.0).reshape(3, 2)),
        ("weight", torch.arange(6.0).reshape(2, 3).nextafter(torch.tensor(9.0))),
        ("weight", torch.arange(6).reshape(2, 3)),
        ("weight", torch.arange(6.0, dtype=torch.float64).reshape(2, 3)),
        ("count", torch.tensor(8)),
        ("count", torch.tensor([7])),
        ("half", torch.tensor([1.0, 2.0], dtype=torch.float16)),
        ("half", torch.tensor([1.0, 2.015625], dtype=torch.bfloat16)),
        ("flag", torch.tensor([True, True, True])),
        ("flag", torch.tensor([1, 0, 1], dtype=torch.uint8)),
        ("none", torch.zeros(3, 0)),
        ("another", torch.zeros(1)),
    ],
)
def test_sha256_of_tensors_sees_every_change(name: str, other: Tensor) -> None:
    assert sha256_tensors({**tensors(), name: other}) != sha256_tensors(tensors())


def test_sha256_of_tensors_sees_names() -> None:
    a, b = torch.zeros(2), torch.ones(2)
    assert sha256_tensors({"a": a, "b": b}) != sha256_tensors({"a": b, "b": a})


def test_temporary_names_differ_between_processes(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file") as temporary:
        assert str(os.getpid()) in temporary.name
        temporary.touch()
