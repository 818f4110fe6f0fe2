"""factor.pt of rosinality/stylegan2-pytorch: eigenvectors of the modulation weights, as columns."""

import io
from collections.abc import Mapping
from pathlib import Path

import torch

from fastdirs.directions import DirectionBank
from fastdirs.errors import BankError
from fastdirs.interchange import BankFormat, Imported
from fastdirs.interchange._files import container
from fastdirs.interchange._inert_file import inert_file
from fastdirs.interchange._run_folder import check_space
from fastdirs.manifest import write_bytes
from fastdirs.shift_space import ShiftSpace


def _recognises(path: Path) -> bool:
    if container(path) != "torch":
        return False
    with inert_file(path) as file:
        return "eigvec" in file.fields


def _read(path: Path, space: ShiftSpace, options: Mapping[str, str]) -> Imported:
    check_space(path, "w", space.generator)
    with inert_file(path) as file:
        columns = file.tensor(file.fields.get("eigvec"))
        checkpoint = file.fields.get("ckpt")
    if columns is None or columns.ndim != 2:
        raise BankError(f"{path} has no matrix 'eigvec' whose columns are directions. Name a factor.pt.")
    settings = {"checkpoint": Path(checkpoint).name} if isinstance(checkpoint, str) else {}
    return Imported(vectors=columns.T, settings=settings)


def _write(bank: DirectionBank, path: Path) -> None:
    if bank.curved:
        raise BankError("factor.pt holds straight directions, and these are curved. Export them as .npz.")
    if bank.generator["space"] == "z":
        raise BankError(
            f"factor.pt holds directions in w, but the latents of {bank.generator['name']} are z. "
            "Export the bank as .npz or .npy."
        )
    directions = bank.directions[:, 0]
    if not torch.equal(bank.directions, directions[:, None].expand_as(bank.directions)):
        raise BankError(
            "factor.pt holds one vector for all layers, but this bank's directions are not the same in all "
            f"of them (it edits layers {', '.join(map(str, bank.layers))}). Export it as .npz or .npy."
        )
    buffer = io.BytesIO()
    torch.save({"ckpt": str(bank.generator["source"]), "eigvec": directions.T.contiguous()}, buffer)
    write_bytes(path, buffer.getvalue())


BANK_FORMAT = BankFormat(
    summary="rosinality/stylegan2-pytorch: factor.pt, straight directions in w, the same in all layers",
    suffix=".pt",
    recognises=_recognises,
    read=_read,
    write=_write,
)
