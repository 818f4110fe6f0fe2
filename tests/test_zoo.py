import re
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fastdirs.errors import ContractError, UnknownNameError
from fastdirs.generators import GENERATORS
from fastdirs.zoo import ZOO, Bring, Download, Package, Zoo, pulled_path

TOML = """
summary = "one line"
family = "dcgan"
resolution = 64
licence = "MIT"

[package]
name = "some-package"
version = "1.0"
member = "some/file.pt"
member_sha256 = "00"
size_mib = 1
"""
BRING = '\n[bring]\naddress = "https://example.org"\nfile = "file.pt"\n'
_SHA256 = re.compile(r"[0-9a-f]{64}")


def test_the_first_entries_are_there() -> None:
    assert {"celeba-faces-64", "digiface-64"} <= set(ZOO.names())


@pytest.mark.parametrize("name", ZOO.names())
def test_every_entry_is_complete(name: str) -> None:
    entry = ZOO.load(name)
    assert entry.name == name
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert str(entry.resolution) in name.split("-"), "the name says the resolution"
    assert entry.resolution in (32, 64, 128, 256, 512, 1024)
    assert entry.classes in (0, 10, 1000)
    for text in (entry.summary, entry.licence):
        assert text.strip() == text != ""
        assert "\n" not in text
        assert "://" not in text
    assert len(entry.summary) <= 70


@pytest.mark.parametrize("name", ZOO.names())
def test_every_family_is_there_and_reads_files(name: str) -> None:
    family = ZOO.load(name).family
    assert family in GENERATORS.names()
    assert GENERATORS.load(family).infer is not None, "the family reads no files"


@pytest.mark.parametrize("name", ZOO.names())
def test_every_way_is_well_described(name: str) -> None:
    way = ZOO.load(name).way
    if isinstance(way, Package):
        # Packages are fetched by the package index's own client: an address would not be checked by it.
        assert re.fullmatch(r"[A-Za-z0-9._-]+", way.name)
        assert re.fullmatch(r"[0-9][0-9a-z.]*", way.version)
        _check_member(way.member)
    else:
        parts = urlsplit(way.address)
        assert (parts.scheme, parts.fragment, parts.username) == ("https", "", None)
        assert parts.hostname
        assert re.fullmatch(r"[!-~]+", way.address)
    if isinstance(way, Package | Download):
        assert 0 < way.size_mib < 2_000
    if isinstance(way, Download):
        assert way.size is None or round(way.size / 2**20) == way.size_mib
        if way.member is not None:
            _check_member(way.member)
    if isinstance(way, Bring):
        assert re.fullmatch(r"[A-Za-z0-9._-]+", way.file)


@pytest.mark.parametrize("name", ZOO.names())
def test_what_is_fetched_has_a_hash_and_a_source_for_it(name: str) -> None:
    entry = ZOO.load(name)
    assert entry.sha256 is None or _SHA256.fullmatch(entry.sha256)
    if isinstance(entry.way, Download):
        assert entry.sha256
        notes = re.findall(r"^# (.+)", (ZOO.folder / f"{name}.toml").read_text(), re.MULTILINE)
        assert "hash" in " ".join(notes).lower()


def test_no_two_entries_are_the_same_file() -> None:
    counts = Counter(entry.sha256 for entry in map(ZOO.load, ZOO.names()) if entry.sha256)
    assert set(counts.values()) == {1}
    assert len({entry.source for entry in map(ZOO.load, ZOO.names())}) == len(ZOO.names())


@pytest.mark.parametrize("name", ZOO.names())
def test_every_entry_says_what_to_do(name: str) -> None:
    entry = ZOO.load(name)
    text = entry.how_to_get()
    assert f"fastdirs pull {name}" in text
    if isinstance(entry.way, Bring):
        assert f"Download {entry.way.file} from {entry.way.address} (licence: {entry.licence})" in text
        assert f"--from {entry.way.file}" in text


def _check_member(member: str) -> None:
    assert not member.startswith("/")
    assert ".." not in member
    assert "://" not in member


def test_unknown_entry_gets_the_nearest_spelling() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'digiface-64'"):
        ZOO.load("digifaces-64")


def test_a_new_file_is_a_new_entry(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TOML)
    zoo = Zoo(tmp_path)
    assert zoo.names() == ["mine"]
    entry = zoo.load("mine")
    assert isinstance(entry.way, Package)
    assert (entry.way.size_mib, entry.classes, entry.sha256) == (1, 0, "00")
    assert entry.source == "pypi package some-package 1.0, some/file.pt"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TOML + "colour = 3\n", "'colour'"),
        ("colour = 3\n" + TOML, "'colour'"),
        (TOML.replace('licence = "MIT"', ""), "'licence'"),
        (TOML + BRING, r"has the tables \['package', 'bring'\]. Expected exactly one"),
        (TOML.partition("[package]")[0], r"has the tables \[\]"),
    ],
)
def test_what_is_wrong_in_a_file_is_not_let_through(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ContractError, match=rf"mine\.toml .*{message}"):
        Zoo(tmp_path).load("mine")


def test_pulled_weights_lie_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert pulled_path("mine") == tmp_path / "fastdirs" / "zoo" / "mine.safetensors"
