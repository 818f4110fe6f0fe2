import numpy as np
import pytest
import torch

from fastdirs.generators import Generator
from fastdirs.graphs import MappingGraph, SynthesisGraph, synthesis_inputs


def test_synthesis_is_the_generators(toy: Generator) -> None:
    graph = SynthesisGraph(toy)
    assert graph.inputs == ("latents",)
    (example,) = graph.example()
    assert example.shape == (2, toy.num_layers, toy.dim)
    latents = toy.mapping(toy.sample(range(3)))
    torch.testing.assert_close(graph(latents), toy.synthesis(latents), rtol=0, atol=0)


def test_synthesis_takes_the_weights_of_classes(classes: Generator) -> None:
    graph = SynthesisGraph(classes)
    assert graph.inputs == ("latents", "c")
    assert [each.shape for each in graph.example()] == [
        (2, classes.num_layers, classes.dim),
        (2, classes.c_dim),
    ]
    latents = classes.mapping(classes.sample(range(3)))
    c = torch.rand(3, classes.c_dim)
    torch.testing.assert_close(graph(latents, c), classes.synthesis(latents, c), rtol=0, atol=0)
    assert MappingGraph(classes).inputs == ("z", "psi"), "its mapping reads none"


def test_mapping_takes_the_truncation_of_each_layer(layered: Generator) -> None:
    graph = MappingGraph(layered)
    assert graph.inputs == ("z", "psi")
    z_example, psi_example = graph.example()
    assert z_example.shape == (2, layered.z_dim)
    # Without truncation, so that what is traced is not a constant.
    assert psi_example.tolist() == [1.0] * layered.num_layers
    z = layered.sample(range(3))
    for psi, cutoff in ((1.0, None), (0.0, None), (0.7, None), (0.7, 1)):
        psi_of_layers = torch.full((layered.num_layers,), psi)
        psi_of_layers[layered.num_layers if cutoff is None else cutoff :] = 1.0
        torch.testing.assert_close(graph(z, psi_of_layers), layered.mapping(z, psi=psi, cutoff=cutoff))
    torch.testing.assert_close(
        graph(z, torch.zeros(layered.num_layers)), layered.latent_mean.expand(3, -1, -1)
    )


def test_mapping_takes_the_weights_of_classes(conditional: Generator) -> None:
    graph = MappingGraph(conditional)
    assert graph.inputs == ("z", "c", "psi")
    layers, c_dim = conditional.num_layers, conditional.c_dim
    assert [each.shape for each in graph.example()] == [(2, conditional.z_dim), (2, c_dim), (layers,)]
    z, c = conditional.sample(range(3)), torch.rand(3, c_dim)
    found = graph(z, c, torch.full((layers,), 0.6))
    torch.testing.assert_close(found, conditional.mapping(z, c, psi=0.6))
    assert SynthesisGraph(conditional).inputs == ("latents",), "its synthesis reads none"


@pytest.mark.parametrize("name", ["toy", "layered", "conditional", "classes"])
def test_inputs_of_seeds(name: str, request: pytest.FixtureRequest) -> None:
    generator: Generator = request.getfixturevalue(name)
    seeds = (5, 0, 7)
    inputs = synthesis_inputs(generator, seeds)
    c = generator.sample_classes(seeds)
    wanted = generator.synthesis(generator.mapping(generator.sample(seeds), c), c)
    assert all(each.dtype == np.float32 and each.flags.c_contiguous for each in inputs)
    found = SynthesisGraph(generator)(*map(torch.from_numpy, inputs))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
