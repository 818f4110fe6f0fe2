"""Arrays of directions: boundaries of InterFaceGAN and HiGAN, edits in W+ with a row per layer."""

import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fastdirs.directions import DirectionBank
from fastdirs.errors import BankError, SelectionError
from fastdirs.interchange import BankFormat, Imported
from fastdirs.interchange._files import container, npy_dtype, read_npy
from fastdirs.interchange._run_folder import check_space
from fastdirs.manifest import write_bytes
from fastdirs.shift_space import ShiftSpace

# InterFaceGAN's names say when a boundary belongs to w, such as stylegan_ffhq_age_w_boundary.npy.
_IN_W = re.compile(r".*_w(_boundary)?")


def _recognises(path: Path) -> bool:
    return container(path) == "npy" and not npy_dtype(path).hasobject


def _read(path: Path, space: ShiftSpace, options: Mapping[str, str]) -> Imported:
    """`[dim]`, `[1, dim]`, `[layers, dim]`, `[K, dim]` or `[K, layers, dim]`, where `dim` may be all of z.

    As many rows as the generator has layers are one direction that differs between layers, unless `rows` says
    otherwise.
    """
    vectors, generator = read_npy(path), space.generator
    rows = options.get("rows", "auto")
    if rows not in ("auto", "layers", "directions"):
        raise SelectionError(f"rows={rows!r} is unknown. Expected layers or directions.")
    if not 1 <= vectors.ndim <= 3:
        raise BankError(
            f"{path} has shape {list(vectors.shape)}. "
            "Expected [dim], [layers, dim], [K, dim] or [K, layers, dim]."
        )
    if _IN_W.fullmatch(path.stem):
        check_space(path, "w", generator)
    if vectors.ndim == 1:
        vectors = vectors[None]
    layered = vectors.shape == (generator.num_layers, generator.dim) and generator.num_layers > 1
    if vectors.ndim == 2 and (rows == "layers" or (rows == "auto" and layered)):
        vectors = vectors[None]
    return Imported(vectors=vectors, labels=[path.stem] if len(vectors) == 1 else None)


def _write(bank: DirectionBank, path: Path) -> None:
    """`[K, layers, dim]`, or `[layers, dim]` of a bank with one direction; float32."""
    if bank.curved:
        raise BankError(".npy holds straight directions, and these are curved. Export them as .npz.")
    buffer = io.BytesIO()
    directions = bank.directions.numpy()
    np.save(buffer, directions[0] if len(bank) == 1 else directions, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


BANK_FORMAT = BankFormat(
    summary="arrays of InterFaceGAN, HiGAN, W+ editors, ... (.npy), straight directions without their names",
    suffix=".npy",
    recognises=_recognises,
    read=_read,
    write=_write,
    options={"rows": "layers or directions: what the rows of a matrix are, where it could be either"},
)
