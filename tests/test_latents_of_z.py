import numpy as np
import pytest
import torch

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS
from fastdirs.generators import Generator
from fastdirs.latents_of_z import LatentsOfZ


@pytest.mark.parametrize("name", ["layered", "conditional", "classes"])
def test_a_graph_and_a_generator_agree(name: str, request: pytest.FixtureRequest) -> None:
    generator: Generator = request.getfixturevalue(name)
    artifact: Artifact = request.getfixturevalue(f"{name}_artifact")
    assert artifact.mapping_path is not None
    z = generator.sample(range(3)).numpy()
    c = np.eye(generator.c_dim, dtype=np.float32)[:3] if generator.class_in == "mapping" else None
    psi = np.full(generator.num_layers, 0.7, dtype=np.float32)
    from_graph = LatentsOfZ(BACKENDS.load("ort").open(artifact.mapping_path, "f32"))
    found, wanted = from_graph(z, c, psi), LatentsOfZ(generator)(z, c, psi)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    weights = None if c is None else torch.from_numpy(c)
    unshifted = generator.map_z(torch.from_numpy(z), weights)
    mean = generator.latent_mean
    np.testing.assert_allclose(wanted[:, 0], (mean + 0.7 * (unshifted - mean))[:, 0].detach(), atol=1e-5)
    from_graph.close()
    from_graph.close()


def test_without_a_mapping_z_is_shaped(toy: Generator) -> None:
    z = toy.sample(range(2)).numpy()
    found = LatentsOfZ(toy.identity())(z, None, np.full(1, 0.5, dtype=np.float32))
    np.testing.assert_array_equal(found, 0.5 * z[:, None])
    assert found.dtype == np.float32
