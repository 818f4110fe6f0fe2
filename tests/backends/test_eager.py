"""What is special to torch as a backend."""

import numpy as np
import pytest
import torch
from torch import nn

from fastdirs.backends import BACKENDS
from fastdirs.errors import BackendError
from fastdirs.generators import Generator
from fastdirs.graphs import PartGraph, SynthesisGraph
from fastdirs.latents import sample_z


def test_f32_is_the_reference_itself(small_dcgan: Generator) -> None:
    latents = small_dcgan.mapping(sample_z(range(2), small_dcgan.z_dim))
    session = BACKENDS.load("eager").open(SynthesisGraph(small_dcgan), "f32", False)
    np.testing.assert_array_equal(session.run([latents.numpy()]), small_dcgan.synthesis(latents).numpy())


def test_bf16_leaves_the_callers_module_alone(small_dcgan: Generator) -> None:
    latents = small_dcgan.mapping(sample_z(range(2), small_dcgan.z_dim))
    before = small_dcgan.synthesis(latents)
    module = SynthesisGraph(small_dcgan)
    session = BACKENDS.load("eager").open(module, "bf16", False)
    images = session.run([latents.numpy()])
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    torch.testing.assert_close(small_dcgan.synthesis(latents), before, rtol=0, atol=0)
    # It does compute in bf16.
    assert 1e-4 < np.abs(images - before.numpy()).max() < 0.2


def test_a_module_that_writes_to_its_input() -> None:
    latents = np.ones((2, 1, 3), dtype=np.float32)
    session = BACKENDS.load("eager").open(nn.ReLU(inplace=True), "f32", False)
    negative = -latents
    assert session.run([negative]).max() == 0.0
    np.testing.assert_array_equal(negative, -latents)


def test_keeps_no_gradients(toy: Generator) -> None:
    module = SynthesisGraph(toy)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    try:
        session = BACKENDS.load("eager").open(module, "f32", False)
        assert session.run([sample_z([0], toy.z_dim)[:, None].numpy()]).shape[0] == 1
    finally:
        module.requires_grad_(False)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_names_version_and_threads(toy: Generator, precision: str) -> None:
    session = BACKENDS.load("eager").open(SynthesisGraph(toy), precision, False)
    version = torch.__version__.partition("+")[0]
    assert session.provider == f"torch {version} on cpu, {torch.get_num_threads()} threads"


class _OnlyFloat32(nn.Module):
    """A user's module that casts in the middle, so that its weights meet another type."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        images: torch.Tensor = self.layer(latents.float())
        return images


def test_a_module_that_does_not_run_in_bf16_says_so() -> None:
    session = BACKENDS.load("eager").open(_OnlyFloat32(), "bf16", False)
    with pytest.raises(BackendError, match=r"does not run in bf16 in torch: .*Use f32"):
        session.run([np.zeros((1, 4), dtype=np.float32)])


class _Large(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat(1, 2**48)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_too_little_memory_says_what_helps(precision: str) -> None:
    session = BACKENDS.load("eager").open(_Large(), precision, False)
    with pytest.raises(BackendError, match=r"too little memory .*Use a smaller --batch"):
        session.run([np.ones((3, 1), np.float32)])


def test_states_between_stages_are_kept_and_taken_up(layered: Generator) -> None:
    latents = layered.mapping(sample_z(range(3), layered.z_dim)).numpy()
    backend = BACKENDS.load("eager")
    whole = backend.open(SynthesisGraph(layered), "f32", False).run([latents])
    first, second = (
        backend.open(PartGraph(layered, begin, end), "f32", False) for begin, end in ((0, 2), (2, None))
    )
    np.testing.assert_array_equal(second.run([latents, *first.run_kept([latents])]), whole)


class _Pixels(nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images.to(torch.uint8), images[:, :1].expand(-1, 3)


def test_outputs_keep_their_types_and_are_arrays_of_their_own() -> None:
    session = BACKENDS.load("eager").open(_Pixels(), "f32", False)
    pixels, row = session.run_all([np.array([[3.7, 200.0]], np.float32)])
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, [[3, 200]])
    row[0, 0] = 1.0
    np.testing.assert_array_equal(row, [[1.0, np.float32(3.7), np.float32(3.7)]])


def test_inputs_may_be_read_only() -> None:
    latents = np.ones((1, 3), np.float32)
    latents.flags.writeable = False
    session = BACKENDS.load("eager").open(nn.ReLU(inplace=True), "f32", False)
    np.testing.assert_array_equal(session.run([latents]), latents)


def test_f16_is_not_offered_on_cpus() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match="eager has no precision 'f16' on cpu"):
        BACKENDS.load("eager").open(nn.ReLU(), "f16", False)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "error"), [("f32", 1e-4), ("bf16", 0.2), ("f16", 0.05)])
def test_runs_on_the_gpu_and_leaves_the_callers_module(
    small_dcgan: Generator, precision: str, error: float
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    latents = small_dcgan.mapping(sample_z(range(4), small_dcgan.z_dim))
    module = SynthesisGraph(small_dcgan)
    session = BACKENDS.load("eager").open(module, precision, False)
    places = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [place.fp32_precision for place in places]
    (kept,) = session.run_kept([latents.to("cuda")])
    assert isinstance(kept, torch.Tensor)
    assert kept.is_cuda
    wanted = small_dcgan.synthesis(latents)
    assert (kept.cpu().float() - wanted).abs().max() < error
    assert np.abs(session.run([latents.numpy()]) - wanted.numpy()).max() < error
    assert [place.fp32_precision for place in places] == before
    assert {each.device.type for each in module.parameters()} == {"cpu"}
