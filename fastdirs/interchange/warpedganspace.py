"""Support sets of WarpedGANSpace (Tzelepis et al. 2021): paths along gradients of radial functions."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastdirs.errors import BankError
from fastdirs.interchange import BankFormat, Imported
from fastdirs.interchange._files import container
from fastdirs.interchange._inert_file import inert_file
from fastdirs.interchange._paths import AT_HELP, EPSILONS_HELP, knots_of, start_of, unit, walk
from fastdirs.interchange._run_folder import check_space, read_args, told
from fastdirs.shift_space import ShiftSpace

# As far and in such steps as the original goes.
_EPSILONS = "-8:8:33"
_SUPPORT = Path("models", "support_sets.pt")
_TOLD = ("gan_type", "biggan_target_classes", "z_truncation", "min_shift_magnitude", "max_shift_magnitude")
_KEYS = {"SUPPORT_SETS", "ALPHAS", "LOGGAMMA"}


def _recognises(path: Path) -> bool:
    if path.is_dir():
        return (path / _SUPPORT).is_file()
    if container(path) != "torch":
        return False
    with inert_file(path) as file:
        return file.fields.keys() >= _KEYS


def _read(path: Path, space: ShiftSpace, options: Mapping[str, str]) -> Imported:
    """The paths from the latent that the option `at` names.

    Source:
        chi0tzp/WarpedGANSpace, lib/support_sets.py and traverse_latent_space.py: latents go by epsilon along
        the gradient of f(z) = sum_i alpha_i exp(-gamma |z - s_i|^2) at unit length, evaluated anew after each
        step. Here a step leads from knot to knot; there it is 0.5 unless --eps says otherwise.
    """
    args = read_args(path)
    with inert_file(path / _SUPPORT if path.is_dir() else path) as file:
        state = file.state(file.root)
    if args.get("gan_type") == "StyleGAN2":
        in_w = args.get("shift_in_w_space", args.get("stylegan2_w_shift"))
        check_space(path, "w" if in_w else "z", space.generator)
    supports, alphas, gammas = _parts(path, state, space)
    knots, start = knots_of(options, _EPSILONS), start_of(path, space, options)

    def heading(latents: Tensor) -> Tensor:
        away = latents[:, None] - supports
        height: Tensor = alphas * gammas * torch.exp(-gammas * away.square().sum(dim=2))
        gradient: Tensor = -2 * (height[..., None] * away).sum(dim=1)
        return unit(gradient)

    return Imported(
        vectors=walk(path, start, knots, heading, len(supports)),
        knots=knots,
        settings={"at": options["at"], **told(args, *_TOLD)},
    )


def _parts(path: Path, state: Mapping[str, Tensor], space: ShiftSpace) -> tuple[Tensor, Tensor, Tensor]:
    """Support vectors `[K, vectors, size]`, their weights `[K, vectors]` and scales `[K, 1]`."""
    if not state.keys() >= _KEYS:
        raise BankError(f"{path} lacks tensors of its support sets. Get it again.")
    alphas = state["ALPHAS"].float()
    supports = state["SUPPORT_SETS"].float()
    gammas = state["LOGGAMMA"].float().exp()
    if (
        not alphas.ndim == supports.ndim == 2
        or not alphas.shape[:1] == supports.shape[:1] == gammas.shape[:1]
        or not all(tensor.numel() for tensor in (alphas, supports, gammas))
        or supports.shape[1] % alphas.shape[1]
    ):
        raise BankError(f"{path} holds support sets and weights that do not belong together. Get it again.")
    per_set = supports.shape[1] // alphas.shape[1]
    if per_set != space.size:
        raise BankError(
            f"{path} was trained on latents of {per_set} numbers, but those of "
            f"{space.generator.provenance.name} have {space.size} ({space.generator.space}). "
            "Name the generator that it was trained on."
        )
    return supports.reshape(*alphas.shape, per_set), alphas, gammas.reshape(len(alphas), -1)[:, :1]


BANK_FORMAT = BankFormat(
    summary="WarpedGANSpace: the folder of a run or its support_sets.pt, along the paths from one latent",
    suffix=".pt",
    recognises=_recognises,
    read=_read,
    options={"at": AT_HELP, "epsilons": f"{EPSILONS_HELP}; {_EPSILONS} if left out"},
)
