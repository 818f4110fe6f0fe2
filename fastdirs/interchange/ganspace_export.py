"""Directions that people named and exported in GANSpace's window: a pickle, read without being unpickled."""

from collections.abc import Mapping
from pathlib import Path

import torch

from fastdirs.errors import BankError
from fastdirs.interchange import BankFormat, Imported
from fastdirs.interchange._files import container
from fastdirs.interchange._inert_file import inert_file
from fastdirs.interchange._run_folder import check_space
from fastdirs.shift_space import ShiftSpace

_FACTS = (
    "name", "sigma_range", "component_index", "latent_space", "lat_stdev", "model_name", "output_class",
    "decomposition", "edit_type", "truncation", "edit_start", "edit_end", "example_seed",
)  # fmt: skip


def _recognises(path: Path) -> bool:
    if container(path) != "pickle":
        return False
    with inert_file(path) as file:
        return {"lat_comp", "lat_stdev", "edit_end"} <= file.fields.keys()


def _read(path: Path, space: ShiftSpace, options: Mapping[str, str]) -> Imported:
    """One direction, the layers that it was made for, and how far it was meant to go.

    Source:
        harskish/ganspace, interactive.py: `edit_end` is not among the layers; `sigma_range` counts standard
        deviations `lat_stdev`, whose sign only says from which end the strip was drawn.
    """
    with inert_file(path) as file:
        vector = file.tensor(file.fields.get("lat_comp"))
        facts = file.settings(*_FACTS)
    start, end, deviation = facts.get("edit_start"), facts.get("edit_end"), facts.get("lat_stdev")
    if (
        vector is None
        or not isinstance(start, int)
        or not isinstance(end, int)
        or not isinstance(deviation, int | float)
    ):
        raise BankError(
            f"{path} lacks lat_comp, lat_stdev, edit_start or edit_end. Export it from GANSpace again."
        )
    if facts.get("edit_type", "latent") != "latent":
        raise BankError(
            f"{path} edits activations (edit_type {facts['edit_type']!r}), not latents alone, so it is no "
            "direction. Export it in GANSpace in latent mode."
        )
    check_space(path, str(facts.get("latent_space", "w")).lower(), space.generator)
    if not 0 <= start < end <= space.generator.num_layers:
        raise BankError(
            f"{path} edits layers {start} to {end - 1}, but {space.generator.provenance.name} has "
            f"{space.generator.num_layers}. Name the generator that it was made for."
        )
    sigmas = facts.get("sigma_range")
    reach = abs(sigmas) * deviation if isinstance(sigmas, int | float) else 0.0
    return Imported(
        vectors=vector.reshape(1, -1),
        labels=[str(facts["name"])] if facts.get("name") else None,
        layers=[layer for layer in range(start, end) if layer in space.layers],
        ranges=torch.tensor([[-reach, reach]]) if reach > 0 else None,
        settings=facts,
    )


BANK_FORMAT = BankFormat(
    summary="GANSpace: a direction exported from its window (.pkl)",
    suffix=".pkl",
    recognises=_recognises,
    read=_read,
)
