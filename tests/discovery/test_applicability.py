"""Every method on every kind of generator: it finds directions, or says why not and which methods do."""

import re
from collections.abc import Callable

import pytest
import torch

from fastdirs.discovery import METHODS, discover
from fastdirs.errors import SelectionError
from fastdirs.generators import Generator
from tests.discovery.conftest import CONFIGS

KINDS = ("onnx_only", "own_module", *CONFIGS)
# Of these alone nobody can say what multiplies the latents, or through what gradients would come.
REFUSED = {
    *((method, "onnx_only") for method in ("background", "manifolds", "sefa", "voynov")),
    ("sefa", "own_module"),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def generator(
    kind: str, request: pytest.FixtureRequest, random_generator: Callable[[str], Generator]
) -> Generator:
    return random_generator(kind) if kind in CONFIGS else request.getfixturevalue(kind)


# `manifolds` trains as `voynov` does: every family of it takes a while.
METHODS_HERE = [
    pytest.param(name, marks=[pytest.mark.slow] if name == "manifolds" else []) for name in METHODS.names()
]


@pytest.mark.parametrize("method", METHODS_HERE)
def test_it_applies_or_says_which_methods_do(
    method: str, kind: str, generator: Generator, small_settings: Callable[[str], dict[str, str]]
) -> None:
    if (method, kind) not in REFUSED:
        if METHODS.load(method).trains and generator.img_resolution < 16:
            pytest.skip("a reconstructor would see too little of it")
        bank = discover(generator, method, 3, settings=small_settings(method))
        assert len(bank) == 3
        assert bank.layers == generator.editable
        assert torch.isfinite(bank.directions).all()
        assert (bank.chords().flatten(1).norm(dim=1) > 0.01).all()
        return
    others = [name for name in METHODS.names() if (name, kind) not in REFUSED]
    family, name = generator.family, generator.provenance.name
    start = f"{method} does not apply to {name} (family {family}): "
    with pytest.raises(
        SelectionError, match=rf"^{re.escape(start)}\w.*\. Methods that do: {', '.join(others)}\.$"
    ):
        discover(generator, method, 3, settings=small_settings(method))


def test_a_refusal_comes_before_any_work(onnx_only: Generator) -> None:
    calls: list[int] = []
    with pytest.raises(SelectionError):
        discover(onnx_only, "sefa", 3, progress=lambda done, total: calls.append(done))
    assert not calls


def test_wrong_options_are_said_first(onnx_only: Generator) -> None:
    with pytest.raises(SelectionError, match="normalize='columns' is unknown"):
        discover(onnx_only, "sefa", 3, settings={"normalize": "columns"})
