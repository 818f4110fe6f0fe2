"""Components that GANSpace keeps in its cache (Härkönen et al. 2020): an .npz of principal components."""

from collections.abc import Mapping
from pathlib import Path

import torch

from fastdirs.errors import BankError
from fastdirs.interchange import BankFormat, Imported
from fastdirs.interchange._files import container, npz_names, numbers, read_npz
from fastdirs.interchange._run_folder import check_space
from fastdirs.shift_space import ShiftSpace


def _recognises(path: Path) -> bool:
    return container(path) == "npz" and {"lat_comp", "lat_stdev"} <= npz_names(path)


def _read(path: Path, space: ShiftSpace, options: Mapping[str, str]) -> Imported:
    """Rows of `lat_comp`, best first; `lat_stdev` becomes a setting: one sigma of GANSpace in latent units.

    Source:
        harskish/ganspace, decomposition.py and notebook_utils.py: an edit adds `sigma * lat_stdev * lat_comp`
        to the latents of some layers, which is our epsilon = sigma * lat_stdev.
    """
    arrays = read_npz(path, "lat_comp", "lat_stdev", "var_ratio")
    found = {name: numbers(array, path) for name, array in arrays.items()}
    vectors, deviations, ratios = found["lat_comp"], found["lat_stdev"].flatten(), found.get("var_ratio")
    if (
        vectors.ndim < 2
        or len(deviations) != len(vectors)
        or (ratios is not None and ratios.shape != deviations.shape)
    ):
        raise BankError(f"{path} holds components and deviations that do not belong together. Make it again.")
    if not bool(torch.isfinite(deviations).all()):
        raise BankError(f"{path} has NaN or infinite values in 'lat_stdev'. Make it again.")
    # GANSpace measures deviations in w alone, and writes ones for z.
    check_space(path, "z" if bool((deviations == 1).all()) else "w", space.generator)
    return Imported(
        vectors=vectors.flatten(1),
        scores=ratios,
        labels=[f"component {index}" for index in range(len(vectors))],
        settings={"lat_stdev": deviations.tolist()},
    )


BANK_FORMAT = BankFormat(
    summary="GANSpace: cached components (.npz with lat_comp)",
    suffix=".npz",
    recognises=_recognises,
    read=_read,
)
