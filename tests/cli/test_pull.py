import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from fastdirs.generators import Generator
from fastdirs.loading import save_generator
from fastdirs.zoo import ZOO, pulled_path

NAME = "celeba-faces-64"


@pytest.fixture
def pulled(small_dcgan: Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A generator that lies where an earlier pull would have put it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = pulled_path(NAME)
    path.parent.mkdir(parents=True)
    save_generator(small_dcgan, path, extra={"source_sha256": ZOO.load(NAME).package.member_sha256})
    return path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_what_is_there_is_not_fetched_again(run: Callable[..., Result], pulled: Path) -> None:
    result = run("pull", NAME)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{NAME}: {pulled} (licence: {ZOO.load(NAME).licence})\n"
    assert not result.stderr


def test_json(run_json: Callable[..., Any], pulled: Path) -> None:
    assert run_json("pull", NAME) == {"name": NAME, "path": str(pulled), "licence": ZOO.load(NAME).licence}


def test_unknown_name(run: Callable[..., Result]) -> None:
    result = run("pull", "celeba-face-64")
    assert result.exit_code == 1
    assert "'celeba-face-64'. Did you mean 'celeba-faces-64'?" in result.stderr


@pytest.mark.usefixtures("no_network")
def test_without_a_network_nothing_is_left(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("pull", NAME, "--out", "faces.safetensors")
    assert result.exit_code == 1
    assert f"{NAME} was not pulled" in result.stderr
    assert "Check the network" in result.stderr
    assert "download" in result.stderr
    assert not result.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
