import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fastdirs.artifact import MANIFEST, REFERENCE, Artifact, open_artifact
from fastdirs.errors import ParityError, SelectionError
from fastdirs.generators import Generator
from fastdirs.graphs import synthesis_inputs
from fastdirs.manifest import sha256_file
from fastdirs.mask_tail import MaskTail
from fastdirs.recipe import Batch
from fastdirs.synthesis_parts import GraphParts, ModuleParts

TAIL = MaskTail("lightening", 0.0, soft=True)


def parts_of(artifact: Artifact, backend: str = "ort", precision: str = "f32") -> GraphParts:
    return GraphParts(artifact, backend, precision, True, Batch(opt=4, max=8), False)


def pairs(generator: Generator, count: int) -> list[np.ndarray]:
    inputs = synthesis_inputs(generator, range(2 * count))
    return [each.reshape(count, 2, *each.shape[1:]) for each in inputs]


@pytest.mark.parametrize("name", ["dcgan", "layered", "classes"])
def test_a_followed_graph_gives_what_torch_gives(name: str, request: pytest.FixtureRequest) -> None:
    artifact: Artifact = request.getfixturevalue(f"{name}_artifact")
    generator: Generator = request.getfixturevalue("small_dcgan" if name == "dcgan" else name)
    given = pairs(generator, 3)
    wanted = ModuleParts(generator, "eager", "f32").followed(TAIL, 3).run_all(given)
    for backend in ("ort", "openvino_cpu"):
        session = parts_of(artifact, backend).followed(TAIL, 3)
        found = session.run_all(given)
        session.close()
        assert [each.shape for each in found] == [each.shape for each in wanted]
        assert [each.dtype for each in found] == [np.uint8, np.uint8, np.int32, np.uint8]
        assert np.abs(found[0].astype(int) - wanted[0]).max() <= 1
        assert (found[1] != wanted[1]).mean() < 0.002
        assert np.abs(found[3].astype(int) - wanted[3]).max() <= 1


def test_masks_that_are_not_torchs_are_refused(dcgan_artifact: Artifact, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dcgan_artifact.folder, tmp_path / "artifact"))
    tensors = load_file(folder / REFERENCE)
    # What another generator would have made of these latents.
    save_file({**tensors, "images": -tensors["images"]}, folder / REFERENCE)
    content = json.loads((folder / MANIFEST).read_text())
    content["files"][REFERENCE] = sha256_file(folder / REFERENCE)
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ParityError, match=r"on ort in f32 gives pixels of which .* differ from torch's"):
        parts_of(open_artifact(folder)).followed(TAIL, 2)
    with pytest.raises(ParityError, match="cut before stage 1 on ort differs from torch"):
        parts_of(open_artifact(folder)).halves(1, 2)


def test_halves_are_those_of_the_artefact(dcgan_artifact: Artifact, small_dcgan: Generator) -> None:
    given = synthesis_inputs(small_dcgan, range(4))
    with parts_of(dcgan_artifact).halves(1, 4) as halves:
        images = halves.joined().run(given)
    with ModuleParts(small_dcgan, "eager", "f32").halves(1, 4) as halves:
        assert np.allclose(images, halves.joined().run(given), atol=1e-4)
    with pytest.raises(SelectionError, match="cannot be cut before stage 99"):
        parts_of(dcgan_artifact).halves(99, 4)


def test_pixels_may_be_a_level_off(dcgan_artifact: Artifact) -> None:
    with replace(parts_of(dcgan_artifact), pixels=True).halves(1, 2) as halves:
        assert halves.joined().run(dcgan_artifact.reference().inputs).dtype == np.uint8
