import re
from pathlib import Path

import pytest

from fastdirs.errors import UnknownNameError
from fastdirs.generators import GENERATORS
from fastdirs.zoo import ZOO, Zoo, pulled_path

TOML = """
summary = "one line"
family = "dcgan"
licence = "MIT"

[package]
name = "some-package"
version = "1.0"
member = "some/file.pt"
member_sha256 = "00"
size_mib = 1
"""


def test_the_first_entries_are_there() -> None:
    assert {"celeba-faces-64", "digiface-64"} <= set(ZOO.names())


@pytest.mark.parametrize("name", ZOO.names())
def test_every_entry_is_complete(name: str) -> None:
    entry = ZOO.load(name)
    package = entry.package
    assert entry.name == name
    assert entry.family in GENERATORS.names()
    assert GENERATORS.load(entry.family).infer is not None, "the family reads no files"
    assert re.fullmatch(r"[0-9a-f]{64}", package.member_sha256)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", package.name)
    assert re.fullmatch(r"[0-9][0-9a-z.]*", package.version)
    assert 0 < package.size_mib < 10_000
    assert not package.member.startswith("/")
    assert ".." not in package.member


@pytest.mark.parametrize("name", ZOO.names())
def test_every_field_is_one_plain_line(name: str) -> None:
    # Packages are fetched by the package index's own client: an address would not be checked by it.
    entry = ZOO.load(name)
    for text in (
        entry.summary,
        entry.licence,
        entry.package.name,
        entry.package.version,
        entry.package.member,
    ):
        assert text.strip() == text != ""
        assert "\n" not in text
        assert "://" not in text


def test_unknown_entry_gets_the_nearest_spelling() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'digiface-64'"):
        ZOO.load("digifaces-64")


def test_a_new_file_is_a_new_entry(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TOML)
    zoo = Zoo(tmp_path)
    assert zoo.names() == ["mine"]
    assert zoo.load("mine").package.size_mib == 1


@pytest.mark.parametrize("text", [TOML + "colour = 3\n", TOML.replace('licence = "MIT"', "")])
def test_unknown_and_missing_fields_are_not_let_through(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(TypeError):
        Zoo(tmp_path).load("mine")


def test_pulled_weights_lie_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert pulled_path("mine") == tmp_path / "fastdirs" / "zoo" / "mine.safetensors"
