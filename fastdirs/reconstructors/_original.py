"""Reconstructors that the authors' code of Voynov & Babenko 2020 saved, under our names."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from fastdirs.checkpoints import FORMATS, read_checkpoint, recognise
from fastdirs.errors import CheckpointError
from fastdirs.manifest import Json

# How the names of each network begin: there, and here.
_LAYOUTS = {
    "lenet": {
        "convnet.": "body.",
        "fc_logits.3.": "classifier.",
        "fc_logits.": "for_classifier.",
        "fc_shift.3.": "meter.",
        "fc_shift.": "for_meter.",
    },
    "resnet18": {
        "features_extractor.": "body.",
        "type_estimator.": "classifier.",
        "shift_estimator.": "meter.",
    },
}
_FIRST = {"lenet": "convnet.0.weight", "resnet18": "features_extractor.conv1.weight"}
_LAST = {"lenet": "fc_logits.3.weight", "resnet18": "type_estimator.weight"}
# ResNet-18 as its library makes it ends in a classifier; the reconstructor reads what comes before.
_UNUSED = "features_extractor.fc."
# What a checkpoint of a run that can be continued calls the reconstructor.
_PART = "shift_predictor"
_ARGUMENTS = "args.json"
_RESOLUTIONS = {"SN_MNIST": 32, "SN_Anime": 64, "BigGAN": 128, "ProgGAN": 1024}
# What the run's arguments call each length, what it is called here, and its published default.
_LENGTHS = (("shift_scale", "scale", 6.0), ("min_shift", "minimum", 0.5))


@dataclass(frozen=True, kw_only=True)
class Original:
    """What a file of the authors' code holds.

    Attributes:
        config: kind, num_directions, img_channels, img_resolution.
        tensors: By our names, any shape `[...]`.
        recorded: Where the run's arguments lie beside it: the shifts it was trained on.
    """

    config: Json
    tensors: Mapping[str, Tensor]
    recorded: Json = field(default_factory=dict)


def is_original(path: Path) -> bool:
    """Whether a file holds a reconstructor of the authors' code, by the names of its tensors.

    Raises:
        CheckpointError: Not readable.
    """
    parts = _parts(path)
    return any(_kind_of(parts.get(name, ())) for name in (_PART, ""))


def read_original(path: Path, img_resolution: int | None) -> Original:
    """Read shift_predictor_STEP.pt, or the reconstructor in checkpoint.pt.

    Args:
        path: The file.
        img_resolution: Height and width of the images, which the file does not say; None takes what the run's
            args.json says.

    Raises:
        CheckpointError: Unreadable, no reconstructor, or images of unknown size.
    """
    checkpoint = read_checkpoint(path, _PART if _PART in _parts(path) else None)
    tensors = {name: each for name, each in checkpoint.tensors.items() if not name.startswith(_UNUSED)}
    kind = _kind_of(tensors)
    if kind is None:
        raise CheckpointError(
            f"{path} is no reconstructor. Discovery by a method that trains writes one into its run folder; "
            "of the authors' code it is models/shift_predictor_STEP.pt."
        )
    first, last = tensors[_FIRST[kind]], tensors[_LAST[kind]]
    if first.ndim != 4 or first.shape[1] not in (2, 6) or last.ndim != 2:
        raise CheckpointError(
            f"{path} has a first layer of shape {list(first.shape)} and a last one of {list(last.shape)}. "
            "Expected 2 or 6 input channels, and a row for each direction: the file is damaged."
        )
    arguments = _arguments(path)
    resolution = img_resolution or _resolution(arguments)
    if resolution is None:
        raise CheckpointError(
            f"{path} does not say how large its images are, and no {_ARGUMENTS} of its run lies beside it. "
            "Keep the run folder together, or pass img_resolution."
        )
    config = {
        "kind": kind,
        "num_directions": int(last.shape[0]),
        "img_channels": int(first.shape[1]) // 2,
        "img_resolution": resolution,
    }
    renamed = {_renamed(name, _LAYOUTS[kind]): tensor for name, tensor in tensors.items()}
    recorded = {"shifts": _shifts(arguments)} if arguments else {}
    return Original(config=config, tensors=renamed, recorded={"source": path.name, **recorded})


def _parts(path: Path) -> Mapping[str, Iterable[str]]:
    """Names of the tensors in each part of a file; nothing for formats without parts."""
    survey = FORMATS.load(recognise(path)).survey
    return {} if survey is None else survey(path).parts


def _kind_of(names: Iterable[str]) -> str | None:
    """The network whose first and last layers are there."""
    known = set(names)
    return next((kind for kind in _LAYOUTS if {_FIRST[kind], _LAST[kind]} <= known), None)


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    there = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return prefixes.get(there, "") + name.removeprefix(there)


def _arguments(path: Path) -> Json:
    """The arguments of the run that a file belongs to; empty where they are not beside it."""
    for folder in (path.absolute().parent, path.absolute().parent.parent):
        try:
            content = json.loads((folder / _ARGUMENTS).read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            return content
    return {}


def _resolution(arguments: Json) -> int | None:
    """Height and width of what the network reads: the generator's images, unless the run shrank them."""
    name = arguments.get("gan_type")
    # The shipped run of StyleGAN2 calls it differently from the code that reads it.
    keys = ("gan_resolution", "resolution") if name == "StyleGAN2" else ()
    given = [arguments.get(key) for key in ("shift_predictor_size", *keys)]
    of_generator = _RESOLUTIONS.get(name) if isinstance(name, str) else None
    return next((value for value in given if type(value) is int and value > 0), of_generator)


def _shifts(arguments: Json) -> Json:
    """What the run's pairs were shifted by; an argument that was not given has its published default."""
    shifts: Json = {"name": "normal" if arguments.get("shift_distribution_key") == "normal" else "uniform"}
    for there, here, usual in _LENGTHS:
        said = arguments.get(there)
        shifts[here] = float(said) if isinstance(said, int | float) else usual
    return shifts
