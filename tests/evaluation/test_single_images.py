from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastdirs.artifact import Artifact
from fastdirs.errors import BackendError
from fastdirs.evaluation.single_images import SingleImages
from fastdirs.generators import Generator
from fastdirs.loading import load_generator
from fastdirs.runtime import open_runtime


@pytest.mark.parametrize("count", [1, 4, 10])
def test_images_come_in_the_order_of_the_rows(count: int, toy: Generator, toy_artifact: Artifact) -> None:
    expected = toy.synthesis(toy.mapping(toy.sample(range(count)))).numpy()
    with open_runtime(toy_artifact, "ort") as runtime:
        images = SingleImages(runtime)
        found = list(images.render(images.rows_of_seeds(range(count))))
    assert len(found) == count
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-4)


def test_every_batch_has_the_same_shape(toy_artifact: Artifact) -> None:
    with open_runtime(toy_artifact, "ort") as runtime:
        sizes, run = [], runtime.session.run_all
        runtime.session.run_all = lambda inputs: sizes.append(len(inputs[0])) or run(inputs)
        images = SingleImages(runtime)
        assert len(list(images.render(images.rows_of_seeds(range(9))))) == 9
        assert sizes == [runtime.usual_batch] * 3


def test_rows_are_taken_as_they_are_needed(toy: Generator) -> None:
    taken = []
    with open_runtime(toy) as runtime:
        images = SingleImages(runtime)
        (row,) = images.rows_of_seeds([0])

        def rows():
            for number in range(10_000):
                taken.append(number)
                yield row

        next(images.render(rows()))
    assert len(taken) <= 3 * runtime.usual_batch


@pytest.mark.parametrize("fixture", ["conditional", "classes"])
def test_each_row_has_its_class(fixture: str, request: pytest.FixtureRequest) -> None:
    generator: Generator = request.getfixturevalue(fixture)
    seeds = range(6)
    classes = generator.sample_classes(seeds)
    assert len(set(classes.tolist())) > 1
    expected = generator.synthesis(generator.mapping(generator.sample(seeds), classes), classes)
    with open_runtime(generator) as runtime:
        images = SingleImages(runtime)
        found = np.stack(list(images.render(images.rows_of_seeds(seeds))))
    np.testing.assert_allclose(found, expected.clamp(-1, 1).numpy(), atol=1e-5)


def test_pictures_are_clipped_and_must_be_finite(
    random_dcgan: Callable[..., nn.Sequential], tmp_path: Path
) -> None:
    module = random_dcgan((8, 12, 10))
    torch.save(module.state_dict(), tmp_path / "generator.pt")
    generator = load_generator(tmp_path / "generator.pt")
    with open_runtime(generator) as runtime:
        images = SingleImages(runtime)
        rows = images.rows_of_seeds([0])
        assert all(np.abs(image).max() <= 1 for image in images.render(rows))
        broken = [(np.full_like(rows[0][0], np.nan), None)]
        with pytest.raises(BackendError, match="eager f32 makes images that are not finite"):
            list(images.render(broken))
