"""HiGAN's boundaries with the layers to edit: a pickled dictionary in an .npy, not unpickled."""

from collections.abc import Mapping
from pathlib import Path

from fastdirs.errors import BankError
from fastdirs.interchange import BankFormat, Imported
from fastdirs.interchange._files import container, npy_dtype
from fastdirs.interchange._inert_file import inert_file
from fastdirs.latents import parse_indices
from fastdirs.shift_space import ShiftSpace


def _recognises(path: Path) -> bool:
    return container(path) == "npy" and npy_dtype(path).hasobject


def _read(path: Path, space: ShiftSpace, options: Mapping[str, str]) -> Imported:
    """One direction and the layers that it is meant for.

    Source:
        genforce/higan, simple_manipulate.py: {"boundary": `[1, dim]`, "meta_data": {"manipulate_layers":
        "6-11"}}.
    """
    with inert_file(path) as file:
        vector = file.tensor(file.fields.get("boundary"))
        facts = file.settings("meta_data").get("meta_data")
    if vector is None:
        raise BankError(
            f"{path} holds a pickle, which was not run, and that is no HiGAN boundary (a dictionary with "
            "'boundary'). Save the vectors alone, with numpy.save of a float32 array."
        )
    said = facts.get("manipulate_layers") if isinstance(facts, dict) else None
    layers: tuple[int, ...] | None = None
    if isinstance(said, str) and said:
        layers = parse_indices(said, space.generator.num_layers, "layer")
    elif isinstance(said, list) and said and all(isinstance(layer, int) for layer in said):
        layers = tuple(said)
    return Imported(
        vectors=vector.reshape(1, -1),
        labels=[path.stem],
        layers=layers,
        settings={"meta_data": facts} if isinstance(facts, dict) else {},
    )


BANK_FORMAT = BankFormat(
    summary="HiGAN: a boundary with the layers to edit (.npy that holds a dictionary)",
    suffix=".npy",
    recognises=_recognises,
    read=_read,
)
