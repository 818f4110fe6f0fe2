"""Classes, bounded z and statistics chosen by psi through an opened backend."""

import numpy as np
import pytest
import torch

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS
from fastdirs.errors import ContractError, SelectionError, ShapeError
from fastdirs.generators import Generator
from fastdirs.latents import check_class
from fastdirs.parity import compare
from fastdirs.recipe import DEFAULT_ACCEPT, usual_batch
from fastdirs.runtime import Runtime, open_runtime

# torch.compile is torch: what it takes is tested beside it.
RUN = [name for name in BACKENDS.names() if BACKENDS.load(name).precisions() and name != "compiled"]
every_backend = pytest.mark.parametrize("backend", RUN)


def _open(backend: str, generator: Generator, artifact: Artifact) -> Runtime:
    return open_runtime(generator if BACKENDS.load(backend).runs == "module" else artifact, backend, "f32")


@every_backend
def test_the_synthesis_takes_a_class(backend: str, classes: Generator, classes_artifact: Artifact) -> None:
    latents = classes.mapping(classes.sample((4, 2, 9)), psi=0.8)
    with _open(backend, classes, classes_artifact) as runtime:
        for c in (3, np.array([0, 2, 1]), torch.rand(3, 4)):
            wanted = classes.synthesis(latents, c).numpy()
            images = runtime.synthesize(latents.numpy(), c)
            assert compare(images, wanted).within(DEFAULT_ACCEPT["f32"])
            np.testing.assert_array_equal(next(runtime.stream([latents.numpy()], c)), images)
        mixture = torch.rand(1, 4)
        wanted = classes.synthesis(latents, mixture.expand(3, -1)).numpy()
        (images,) = runtime.stream([latents.numpy()], mixture)
        assert compare(images, wanted).within(DEFAULT_ACCEPT["f32"]), "one mixture for all images"


@every_backend
def test_the_mapping_takes_a_class(
    backend: str, conditional: Generator, conditional_artifact: Artifact
) -> None:
    z = conditional.sample((4, 2))
    with _open(backend, conditional, conditional_artifact) as runtime:
        for c in (1, torch.tensor([0, 2]), np.eye(3, dtype=np.float32)[:2]):
            wanted = conditional.mapping(z, c, psi=0.7, cutoff=1)
            found = runtime.mapping(z.numpy(), c, 0.7, 1)
            np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
        wanted = conditional.mapping(z, 2)
        torch.testing.assert_close(runtime.latents_of(c=2)((4, 2)), wanted, rtol=0, atol=1e-5)
        mixture = np.array([[0.0, 0.0, 1.0]])
        torch.testing.assert_close(runtime.latents_of(c=mixture)((4, 2)), wanted, rtol=0, atol=1e-5)
        # The images take none, but one may be said.
        images = runtime.synthesize(wanted.numpy())
        np.testing.assert_array_equal(runtime.synthesize(wanted.numpy(), 2), images)


@every_backend
def test_z_is_bounded_and_psi_chooses_statistics(
    backend: str, classes: Generator, classes_artifact: Artifact
) -> None:
    with _open(backend, classes, classes_artifact) as runtime:
        for psi in (1.0, 0.6, 0.0):
            wanted = classes.mapping(classes.sample((4, 2)), psi=psi)
            torch.testing.assert_close(runtime.latents_of(psi)((4, 2)), wanted, rtol=0, atol=1e-6)
        assert runtime.latents_of()(range(300))[:, :3].abs().max() <= 2
        with pytest.raises(SelectionError, match="statistics cover 0 to 1"):
            runtime.latents_of(1.5)


@every_backend
def test_classes_that_are_missing_or_wrong(
    backend: str, classes: Generator, classes_artifact: Artifact, conditional: Generator,
    conditional_artifact: Artifact,
) -> None:  # fmt: skip
    latents = classes.mapping(classes.sample((4, 2))).numpy()
    with _open(backend, classes, classes_artifact) as runtime:
        with pytest.raises(ContractError, match="classes needs a class from 0 to 3"):
            runtime.synthesize(latents)
        with pytest.raises(ContractError, match="classes needs a class from 0 to 3"):
            next(runtime.stream([latents]))
        with pytest.raises(SelectionError, match=r"no class 4\. Classes run from 0 to 3"):
            runtime.synthesize(latents, 4)
        with pytest.raises(ShapeError, match=r"c has shape \[3\]"):
            runtime.synthesize(latents, np.array([0, 1, 2]))
        with pytest.raises(SelectionError, match="no class 9"):
            runtime.latents_of(c=9)
    with _open(backend, conditional, conditional_artifact) as runtime:
        with pytest.raises(ContractError, match="layered needs a class from 0 to 2"):
            runtime.latents_of()
        with pytest.raises(ContractError, match="layered needs a class from 0 to 2"):
            runtime.mapping(conditional.sample([0]).numpy())
        with pytest.raises(SelectionError, match="no class 3"):
            runtime.synthesize(np.zeros((1, 3, 5), dtype=np.float32), 3)


def test_an_unconditional_generator_takes_none(toy: Generator) -> None:
    with open_runtime(toy) as runtime:
        for call in (
            lambda: runtime.synthesize(np.zeros((1, 1, 16), dtype=np.float32), 0),
            lambda: runtime.latents_of(c=0),
            lambda: runtime.mapping(np.zeros((1, 16), dtype=np.float32), 0),
        ):
            with pytest.raises(ContractError, match="toy takes no class"):
                call()
        with pytest.raises(ShapeError, match=r"z has shape \[1, 15\]"):
            runtime.mapping(np.zeros((1, 15), dtype=np.float32))


def test_the_class_of_all_images(toy: Generator, classes: Generator) -> None:
    check_class(toy.identity(), None)
    check_class(classes.identity(), 3)
    with pytest.raises(ContractError, match=r"toy takes no class\. Leave it out"):
        check_class(toy.identity(), 0)
    with pytest.raises(ContractError, match=r"classes needs a class\. Name one from 0 to 3"):
        check_class(classes.identity(), None)
    with pytest.raises(SelectionError, match=r"no class 4\. Classes run from 0 to 3"):
        check_class(classes.identity(), 4)


def test_the_usual_batch_of_torch_follows_the_image_size(toy: Generator, layered: Generator) -> None:
    with open_runtime(toy) as runtime:
        assert runtime.usual_batch == 16
    layered.img_resolution = 1024
    try:
        with open_runtime(layered) as runtime:
            assert runtime.usual_batch == usual_batch(1024).opt == 2
    finally:
        layered.img_resolution = 16
