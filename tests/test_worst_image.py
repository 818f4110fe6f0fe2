from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS
from fastdirs.images import decode, to_uint8
from fastdirs.worst_image import save_worst_image, worst_image


@pytest.fixture
def rendered(layered_artifact: Artifact) -> tuple[object, Sequence[np.ndarray], np.ndarray]:
    reference = layered_artifact.reference()
    session = BACKENDS.load("ort").open(layered_artifact.synthesis_path, "f32")
    return session, reference.inputs, session.run(reference.inputs)


def test_the_image_that_changed_most(
    rendered: tuple[object, list[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    session, inputs, images = rendered
    reference = images.copy()
    reference[0, :, 0, 0] += 0.01
    reference[2, :, 3, 5] += 0.5
    picture = worst_image(session, inputs, reference, (1, 2, len(reference)))
    width = images.shape[3]
    assert picture.shape == (images.shape[2], 3 * width, 3)
    np.testing.assert_array_equal(picture[:, :width], to_uint8(reference)[2])
    np.testing.assert_array_equal(picture[:, width : 2 * width], to_uint8(images)[2])
    difference = picture[:, 2 * width :]
    assert (difference[3, 5] == 255).all()
    assert (difference > 0).sum() == 3, "equal pixels are black"
    said = save_worst_image(picture, tmp_path / "out.failed.png")
    assert str(tmp_path / "out.failed.png") in said
    np.testing.assert_array_equal(decode((tmp_path / "out.failed.png").read_bytes()), picture)


def test_values_that_are_no_number_are_worst(rendered: tuple[object, list[np.ndarray], np.ndarray]) -> None:
    session, inputs, images = rendered
    broken = [inputs[0].copy(), *inputs[1:]]
    broken[0][1] = np.nan
    picture = worst_image(session, broken, images, (1, len(images)))
    width = images.shape[3]
    np.testing.assert_array_equal(picture[:, :width], to_uint8(images)[1])
    assert (picture[:, width:] == 255).all()
