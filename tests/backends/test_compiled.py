"""What is special to a compiled module."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastdirs.backends import BACKENDS
from fastdirs.errors import BackendError
from fastdirs.generators import Generator
from fastdirs.graphs import SynthesisGraph
from fastdirs.latents import sample_z


@pytest.fixture(autouse=True)
def _needs_a_compiler() -> None:
    if missing := BACKENDS.load("compiled").lacks():
        pytest.skip(missing)


class _Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.factor, (x.sum(1) > 0).to(torch.uint8)


def test_any_batch_size_and_many_sessions() -> None:
    # Left alone, torch stops to compile after the eighth, and runs the module as it is.
    torch._dynamo.utils.counters.clear()
    for number in range(1, 12):
        session = BACKENDS.load("compiled").open(_Scaled(float(number)), "f32", False)
        for size in (3, 1, 2, 7, 19):
            x = np.arange(2 * size, dtype=np.float32).reshape(size, 2) - 3
            scaled, positive = session.run_all([x])
            np.testing.assert_allclose(scaled, x * number)
            np.testing.assert_array_equal(positive, x.sum(1) > 0)
            assert positive.dtype == np.uint8
        session.close()
    # One graph for a batch of one and one for the others.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2 * 11


def test_names_what_it_is() -> None:
    session = BACKENDS.load("compiled").open(_Scaled(2.0), "f32", False)
    assert session.provider.endswith("compiled")


class _Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_module_that_is_no_single_graph_is_refused() -> None:
    session = BACKENDS.load("compiled").open(_Branching(), "f32", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BackendError, match=r"torch cannot compile or run .* as one graph: .*Use eager"):
            session.run([np.ones((2, 3), np.float32)])


class _Large(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(1, 2**48)


def test_too_little_memory_says_what_helps() -> None:
    session = BACKENDS.load("compiled").open(_Large(), "f32", False)
    with pytest.raises(BackendError, match=r"too little memory .*Use a smaller --batch"):
        session.run([np.ones((3, 1), np.float32)])


def test_a_machine_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, for which Triton compiles")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    backend = BACKENDS.load("compiled")
    assert backend.precisions() == ()
    with pytest.raises(BackendError, match=r"with a C\+\+ compiler, and there is none here. Install one"):
        backend.open(_Scaled(2.0), "f32", False)


@pytest.mark.slow
def test_gives_what_the_module_gives(toy: Generator) -> None:
    latents = toy.mapping(sample_z(range(4), toy.z_dim))
    session = BACKENDS.load("compiled").open(SynthesisGraph(toy), "f32", False)
    np.testing.assert_allclose(session.run([latents.numpy()]), toy.synthesis(latents).numpy(), atol=1e-4)
