import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdirs.artifact import MANIFEST, MAPPING, REFERENCE, SYNTHESIS, Artifact, is_artifact, open_artifact
from fastdirs.errors import ArtifactError
from fastdirs.generators import Generator


@pytest.fixture
def copied(toy_artifact: Artifact, tmp_path: Path) -> Path:
    """An artefact that a test may damage."""
    return Path(shutil.copytree(toy_artifact.folder, tmp_path / "artifact"))


def _change_manifest(folder: Path, **values: object) -> None:
    path = folder / MANIFEST
    content = json.loads(path.read_text())
    for key, value in values.items():
        if value is None:
            del content[key]
        else:
            content[key] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["", SYNTHESIS, MANIFEST])
def test_opens_by_folder_or_file(copied: Path, toy: Generator, name: str) -> None:
    artifact = open_artifact(str(copied / name))
    assert artifact.folder == copied
    assert artifact.generator == toy.identity()
    assert artifact.synthesis_path == copied / SYNTHESIS
    assert artifact.mapping_path is None, "the toy's latents are z itself"
    assert artifact.content["precisions"][0] == "f32"
    assert len(artifact.sha256) == 64


def test_holds_reference_images_of_torch(toy_artifact: Artifact, toy: Generator) -> None:
    reference = toy_artifact.reference()
    assert reference.latents.shape == (8, toy.num_layers, toy.dim)
    assert reference.c is None
    assert [len(each) for each in reference.inputs] == [8]
    images = toy.synthesis(torch.from_numpy(reference.latents)).numpy()
    np.testing.assert_allclose(reference.images, images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [SYNTHESIS, REFERENCE])
def test_one_changed_byte(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{name} changed since its manifest was written"):
        open_artifact(copied)


@pytest.mark.parametrize("name", [SYNTHESIS, REFERENCE])
def test_a_missing_file(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing. Copy the whole folder"):
        open_artifact(copied)


def test_a_mapping_that_the_manifest_names(copied: Path) -> None:
    files = json.loads((copied / MANIFEST).read_text())["files"]
    _change_manifest(copied, files={**files, MAPPING: files[SYNTHESIS]})
    with pytest.raises(ArtifactError, match=f"{MAPPING} is missing"):
        open_artifact(copied)
    shutil.copy(copied / SYNTHESIS, copied / MAPPING)
    assert open_artifact(copied).mapping_path == copied / MAPPING


def test_a_missing_manifest_is_an_unfinished_export(copied: Path) -> None:
    (copied / MANIFEST).unlink()
    with pytest.raises(
        ArtifactError, match=r"is missing or unreadable, so what lies beside it is unfinished"
    ):
        open_artifact(copied)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"kind": "traversal", "schema": 1}', "\x00"])
def test_a_manifest_that_is_none(copied: Path, text: str) -> None:
    (copied / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=MANIFEST):
        open_artifact(copied)


def test_a_manifest_of_another_schema(copied: Path) -> None:
    _change_manifest(copied, schema=99)
    with pytest.raises(ArtifactError, match="has schema 99"):
        open_artifact(copied)


@pytest.mark.parametrize("key", ["generator", "batch", "accept", "required", "files"])
def test_a_manifest_that_lacks_something(copied: Path, key: str) -> None:
    _change_manifest(copied, **{key: None})
    with pytest.raises(ArtifactError, match=f"says nothing of {key}"):
        open_artifact(copied)


def test_a_manifest_without_the_graph(copied: Path) -> None:
    _change_manifest(copied, files={})
    with pytest.raises(ArtifactError, match=f"says nothing of {SYNTHESIS}"):
        open_artifact(copied)


def test_a_broken_reference(copied: Path, toy_artifact: Artifact) -> None:
    (copied / REFERENCE).write_bytes(b"no safetensors")
    with pytest.raises(ArtifactError, match=f"{REFERENCE} is broken"):
        Artifact(copied, toy_artifact.content).reference()


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"does not exist. Make it with: fastdirs export MODEL --out"):
        open_artifact(tmp_path / "nowhere" / "artifact")


def test_what_is_meant_as_an_artifact(copied: Path, tmp_path: Path) -> None:
    assert is_artifact(copied)
    assert is_artifact(copied / SYNTHESIS)
    assert is_artifact(copied / MANIFEST)
    assert not is_artifact(copied / REFERENCE), "a file that may be a generator"
    assert not is_artifact(tmp_path), "a folder with neither a manifest nor a graph"
    assert not is_artifact(tmp_path / "nowhere")
    assert not is_artifact(Path("toy"))
    # An unfinished one is meant as one too, so that the error is about what is missing.
    (copied / MANIFEST).unlink()
    assert is_artifact(copied)
    # The user's own graph of another name is a generator, not an artefact.
    own = tmp_path / "own.onnx"
    own.write_bytes(b"")
    assert not is_artifact(own)
