import torch

from fastdirs.generators import Generator
from fastdirs.graphs import MappingGraph, SynthesisGraph
from fastdirs.latents import sample_z


def test_synthesis_is_the_generators(toy: Generator) -> None:
    graph = SynthesisGraph(toy)
    (example,) = graph.example()
    assert example.shape == (2, toy.num_layers, toy.dim)
    latents = toy.mapping(sample_z(range(3), toy.z_dim))
    torch.testing.assert_close(graph(latents), toy.synthesis(latents), rtol=0, atol=0)


def test_mapping_takes_the_truncation_of_each_layer(layered: Generator) -> None:
    graph = MappingGraph(layered)
    z_example, psi_example = graph.example()
    assert z_example.shape == (2, layered.z_dim)
    # Without truncation, so that what is traced is not a constant.
    assert psi_example.tolist() == [1.0] * layered.num_layers
    z = sample_z(range(3), layered.z_dim)
    for psi, cutoff in ((1.0, None), (0.0, None), (0.7, None), (0.7, 1)):
        psi_of_layers = torch.full((layered.num_layers,), psi)
        psi_of_layers[layered.num_layers if cutoff is None else cutoff :] = 1.0
        torch.testing.assert_close(graph(z, psi_of_layers), layered.mapping(z, psi=psi, cutoff=cutoff))
    torch.testing.assert_close(
        graph(z, torch.zeros(layered.num_layers)), layered.latent_mean.expand(3, -1, -1)
    )
