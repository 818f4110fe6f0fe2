"""Models of LatentCLR (Yüksel et al. 2021): global directions, and affine ones that depend on the latent."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastdirs.errors import BankError
from fastdirs.interchange import BankFormat, Imported
from fastdirs.interchange._files import container
from fastdirs.interchange._inert_file import inert_file
from fastdirs.interchange._paths import AT_HELP, EPSILONS_HELP, knots_of, start_of, unit, walk
from fastdirs.shift_space import ShiftSpace

_EPSILONS = "-8:8:33"
_LAYER = re.compile(r"nets\.(\d+)\.linear_1\.(weight|bias)")


def _recognises(path: Path) -> bool:
    if container(path) != "torch":
        return False
    with inert_file(path) as file:
        state = file.fields.get("model")
        names = [name for name in state if isinstance(name, str)] if isinstance(state, dict) else []
        return {"projector", "iteration"} <= file.fields.keys() and (
            "params" in names or any(name.startswith("nets.") for name in names)
        )


def _read(path: Path, space: ShiftSpace, options: Mapping[str, str]) -> Imported:
    """Directions of a global model, or the paths of an affine one from the latent that the option `at` names.

    Source:
        catlab-team/latentclr, colat/models and colat/visualizer.py (iterative): latents go by alpha along
        W_k z + b_k at unit length, evaluated anew after each step. Here a step leads from knot to knot.
    """
    with inert_file(path) as file:
        state = file.state(file.fields.get("model"))
        settings = file.settings("iteration")
    if "params" in state:
        return Imported(vectors=state["params"], settings={**settings, "model": "global"})
    weights, biases = _affine(path, state)
    if weights.shape[1:] != (space.size, space.size):
        raise BankError(
            f"{path} was trained on latents of {weights.shape[-1]} numbers, but those of "
            f"{space.generator.provenance.name} have {space.size} ({space.generator.space}). "
            "Name the generator that it was trained on."
        )
    knots, start = knots_of(options, _EPSILONS), start_of(path, space, options)

    def heading(latents: Tensor) -> Tensor:
        ahead: Tensor = torch.einsum("kij,kj->ki", weights, latents) + biases
        return unit(ahead)

    return Imported(
        vectors=walk(path, start, knots, heading, len(weights)),
        knots=knots,
        settings={**settings, "model": "linear", "at": options["at"]},
    )


def _affine(path: Path, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Matrices `[K, size, size]` and biases `[K, size]` of a model whose networks are one layer each."""
    layers = {name: match for name in state if (match := _LAYER.fullmatch(name))}
    if not state:
        raise BankError(f"{path} lacks tensors of its model. Get it again.")
    if len(layers) != len(state):
        raise BankError(
            f"{path} is a nonlinear model of LatentCLR: a network for each direction, whose output depends "
            "on the latent, so it holds no directions to import. Train a global one there, or use: "
            "fastdirs discover MODEL --method manifolds"
        )
    count = 1 + max(int(match[1]) for match in layers.values())
    try:
        weights = torch.stack([state[f"nets.{index}.linear_1.weight"] for index in range(count)]).float()
        zeros = torch.zeros(weights.shape[1])
        biases = torch.stack([state.get(f"nets.{index}.linear_1.bias", zeros) for index in range(count)])
    except (KeyError, IndexError, RuntimeError) as error:
        raise BankError(f"{path} lacks tensors of its model ({error}). Get it again.") from error
    if weights.ndim != 3 or biases.shape != weights.shape[:2]:
        raise BankError(f"{path} holds weights and biases that do not belong together. Get it again.")
    return weights, biases.float()


BANK_FORMAT = BankFormat(
    summary="LatentCLR: best_model.pt of a global model, or of a linear one along its path from one latent",
    suffix=".pt",
    recognises=_recognises,
    read=_read,
    options={"at": f"{AT_HELP} (linear)", "epsilons": f"{EPSILONS_HELP}; {_EPSILONS} if left out (linear)"},
)
