"""Runs of GANLatentDiscovery (Voynov & Babenko 2020): deformators, and the names that people gave."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdirs.deformators import DEFORMATORS, Deformator, Fc, Id, Linear, Ortho, Proj
from fastdirs.errors import BankError, SelectionError
from fastdirs.interchange import BankFormat, Imported
from fastdirs.interchange._files import container
from fastdirs.interchange._inert_file import InertFile, inert_file
from fastdirs.interchange._paths import EPSILONS_HELP, knots_of
from fastdirs.interchange._run_folder import check_space, read_args, told
from fastdirs.manifest import Json
from fastdirs.registry import unknown_name
from fastdirs.shift_space import ShiftSpace

# Twice as far as it trains, and at whole numbers, where people look at its charts.
_EPSILONS = "-12:12:25"
_MODEL = re.compile(r"deformator_(\d+)\.pt")
_CHECKPOINT = "checkpoint.pt"
_ANNOTATION = "human_annotation.txt"
_NAMED = re.compile(r"\s*(\d+)\s*:\s*(\S.*?)\s*")
_TOLD = ("gan_type", "target_class", "w_shift", "shift_scale", "min_shift", "truncation", "max_latent_dim")
# The tensors of a deformator, and which kinds have them.
_KEYS = {
    re.compile(r"linear\.(weight|bias)"): ("linear", "proj"),
    re.compile(r"log_mat_half"): ("ortho",),
    re.compile(r"(fc[1-4]|bn[1-3])\.\w+"): ("fc",),
}


def _recognises(path: Path) -> bool:
    if path.is_dir():
        return bool(_steps(path)) or ((path / _CHECKPOINT).is_file() and "deformator" in read_args(path))
    if container(path) != "torch":
        return False
    with inert_file(path) as file:
        # Deformators without tensors are empty, and known by what lies beside them.
        return bool(_kinds(_entries(file))) or (file.root == {} and "deformator" in read_args(path))


def _entries(file: InertFile) -> Mapping[str, object]:
    """The state dict in a file of weights, or in a checkpoint."""
    inner = file.fields.get("deformator", file.fields)
    return inner if isinstance(inner, dict) else {}


def _kinds(state: Mapping[str, object]) -> tuple[str, ...]:
    """The deformators that have tensors of such names and no others."""
    for pattern, kinds in _KEYS.items():
        if state and all(isinstance(name, str) and pattern.fullmatch(name) for name in state):
            return kinds
    return ()


def _steps(run: Path) -> dict[int, Path]:
    """Deformators of a run by the step that they were saved at."""
    found = {match[1]: file for file in run.glob("models/*.pt") if (match := _MODEL.fullmatch(file.name))}
    return {int(step): found[step] for step in found}


def _read(path: Path, space: ShiftSpace, options: Mapping[str, str]) -> Imported:
    args = read_args(path)
    file = _model(path, options) if path.is_dir() else path
    with inert_file(file) as opened:
        state = opened.state(_entries(opened))
    kind = _kind(file, state, args, options)
    if args.get("gan_type") == "StyleGAN2":
        check_space(path, "w" if args.get("w_shift") else "z", space.generator)
    deformator = _deformator(file, kind, state, _axes(path, args, space.size) if kind == "id" else 0)
    settings = {"deformator": kind, "step": _step(file), **told(args, *_TOLD)}
    knots = None if deformator.straight else knots_of(options, _EPSILONS)
    # A straight one at length 1 is the direction itself.
    vectors = deformator.paths(torch.ones(1) if knots is None else knots)
    # Without this argument a deformator is as wide as the latents that it was made for.
    padded = kind == "id" or args.get("max_latent_dim") == vectors.shape[-1]
    vectors = _fitted(path, vectors, padded, space)
    return Imported(
        vectors=vectors[:, 0] if knots is None else vectors,
        knots=knots,
        labels=_labels(path, len(vectors)),
        settings=settings,
    )


def _model(run: Path, options: Mapping[str, str]) -> Path:
    """The file that the original would load: of the highest step, or of the one that is asked for."""
    steps = _steps(run)
    if "step" in options:
        if options["step"] not in map(str, steps):
            known = ", ".join(map(str, sorted(steps))) or "none"
            raise SelectionError(f"{run} has no deformator of step {options['step']}. It has {known}.")
        return steps[int(options["step"])]
    return steps[max(steps)] if steps else run / _CHECKPOINT


def _step(file: Path) -> int | None:
    match = _MODEL.fullmatch(file.name)
    return int(match[1]) if match else None


def _kind(file: Path, state: Mapping[str, Tensor], args: Json, options: Mapping[str, str]) -> str:
    """Which deformator it is: the file does not say, and two of them have the same tensors."""
    given = options.get("deformator") or args.get("deformator")
    if given is not None and given not in DEFORMATORS:
        raise unknown_name("deformator", str(given), DEFORMATORS)
    if given == "random":
        raise BankError(
            f"The directions of {file} are lost: GANLatentDiscovery draws those of a random deformator anew "
            "each time and never saves them. Make others with: fastdirs discover MODEL --method random"
        )
    possible = _kinds(state) or (() if state else ("id",))
    if not possible:
        names = ", ".join(list(state)[:5])
        raise BankError(f"{file} is no deformator of GANLatentDiscovery: it has the tensors {names}.")
    if given is None and len(possible) > 1:
        raise BankError(
            f"{file} may be a linear or a proj deformator, and only the args.json of its run says which. Put "
            "that beside it, or say so with the option deformator=linear or deformator=proj."
        )
    if given is not None and given not in possible:
        raise BankError(
            f"{file} has the tensors of a deformator {' or '.join(possible)}, not of {given}. "
            "Check the args.json beside it, or the option deformator."
        )
    return str(given or possible[0])


def _axes(path: Path, args: Json, size: int) -> int:
    """How many axes a run without a trained deformator took; all of them if it does not say."""
    count = args.get("directions_count") or args.get("max_latent_ind")
    if count is None:
        return size
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= size:
        raise BankError(
            f"The args.json of {path} says {str(count)[:40]} directions. Expected 1 to {size}, the numbers "
            "in a latent. Correct it, or name the generator of the run."
        )
    return count


def _deformator(file: Path, kind: str, state: Mapping[str, Tensor], count: int) -> Deformator:
    """The deformator with the weights of the file.

    Source:
        anvoynov/GANLatentDiscovery, latent_deformator.py. It adds a bias to every shift of `linear`, and its
        `fc` shifts by something at epsilon 0 too; both are left out here (the bias; the shift at 0), since a
        path begins where its latent is. `proj` scales its bias with epsilon, so that it stays: the path is
        curved near 0 and straight far out. The others are the same, but for the exponential of `ortho`, in
        float32 there with another algorithm (1e-6).
    """
    deformator: Deformator
    try:
        if kind == "id":
            return Id(count, count)
        if not all(tensor.numel() for tensor in state.values()):
            raise ValueError("one of them is empty")
        if kind == "ortho":
            deformator = Ortho(len(state["log_mat_half"]), len(state["log_mat_half"]))
        elif kind == "fc":
            inner, count = state["fc1.weight"].shape
            deformator = Fc(count, len(state["fc4.weight"]), inner)
        else:
            out, count = state["linear.weight"].shape
            bias = kind == "proj" and bool(state["linear.bias"].any())
            deformator = (Proj if kind == "proj" else Linear)(count, out, bias=bias)
            state = state if bias else {"linear.weight": state["linear.weight"]}
        deformator.load_state_dict(state)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise BankError(
            f"{file} lacks tensors of a deformator {kind}, or has them in other shapes "
            f"({str(error).splitlines()[0]}). Download it again."
        ) from error
    return deformator.eval()


def _fitted(path: Path, vectors: Tensor, padded: bool, space: ShiftSpace) -> Tensor:
    """`[num_directions, knots, out]` -> `[num_directions, knots, size]`: zeros on the right, or cut."""
    out = vectors.shape[-1]
    if out != space.size and not padded:
        raise BankError(
            f"{path} holds directions of {out} numbers, but the latents of {space.generator.provenance.name} "
            f"have {space.size} ({space.generator.space}). Name the generator of the run, or, if it was made "
            "with --max_latent_dim, its folder, whose args.json says so."
        )
    return F.pad(vectors[..., : space.size], (0, max(0, space.size - out)))


def _labels(path: Path, count: int) -> list[str] | None:
    """Names that people gave, which may occur twice; None if they gave none."""
    run = path if path.is_dir() else path.parent.parent if path.parent.name == "models" else path.parent
    try:
        lines = (run / _ANNOTATION).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    labels = [f"direction {index}" for index in range(count)]
    for match in filter(None, map(_NAMED.fullmatch, lines)):
        if int(match[1]) < count:
            labels[int(match[1])] = match[2]
    return labels


BANK_FORMAT = BankFormat(
    summary="GANLatentDiscovery: the folder of a run, deformator_STEP.pt, or checkpoint.pt",
    suffix="",
    recognises=_recognises,
    read=_read,
    options={
        "deformator": "linear, proj, ortho, fc or id, where no args.json says so",
        "step": "which of the run's deformators; the last if left out",
        "epsilons": f"{EPSILONS_HELP}; {_EPSILONS} if left out (proj and fc)",
    },
)
