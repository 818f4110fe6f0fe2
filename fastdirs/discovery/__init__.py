"""The discovery contract, and one file per method."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fastdirs.directions import DirectionBank, fix_signs
from fastdirs.errors import SelectionError
from fastdirs.generators import Generator
from fastdirs.registry import Registry, unknown_name

_SCALE_SAMPLES = 1024
_SIGMAS_EACH_WAY = 6.0


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a method hands back.

    Attributes:
        directions: Best first, unit length in each layer they touch.
            `[num_directions, layers, dim]`, float32.
        scores: Higher = stronger. `[num_directions]`, float32.
    """

    directions: Tensor
    scores: Tensor


@dataclass(frozen=True, kw_only=True)
class Method:
    """One discovery method.

    Attributes:
        summary: One line, with the paper.
        settings: A frozen dataclass; its fields are the method's options, `metadata={"help": ...}` the help.
        find: (generator, num_directions, layers, settings, progress) -> Found. `progress(done, total)` may be
            called.
    """

    summary: str
    settings: type[Any]
    find: Callable[[Generator, int, Sequence[int], Any, Callable[[int, int], None]], Found]


METHODS: Registry[Method] = Registry("fastdirs.discovery", "METHOD", "discovery method")


def discover(
    generator: Generator,
    method: str = "sefa",
    num_directions: int = 10,
    layers: Sequence[int] | None = None,
    settings: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DirectionBank:
    """Find directions without labels.

    Args:
        generator: Any generator that the method applies to.
        method: Registered name.
        num_directions: How many, best first.
        layers: Latent layers to edit; None = all that are editable.
        settings: The method's options by name, as text; see `fastdirs list methods`.
        progress: Called with steps done and steps in all.

    Raises:
        UnknownNameError: No such method or option.
        SelectionError: A layer or a number of directions that the generator does not have, or an option value
            out of range, or a method that does not apply to the family.
    """
    plugin = METHODS.load(method)
    chosen = generator.editable if layers is None else tuple(sorted(set(layers)))
    _check_layers(generator, chosen)
    if not 1 <= num_directions <= generator.dim:
        raise SelectionError(
            f"{num_directions} directions are out of range. "
            f"The latent space of {generator.provenance.name} has room for 1 to {generator.dim}."
        )
    parsed = parse_settings(method, plugin.settings, settings or {})
    found = plugin.find(generator, num_directions, chosen, parsed, progress)
    directions = fix_signs(found.directions).float().contiguous()
    scales = _scales(generator, directions, chosen)
    return DirectionBank(
        directions=directions, scales=scales, scores=found.scores.float().contiguous(),
        ranges=torch.stack([-_SIGMAS_EACH_WAY * scales, _SIGMAS_EACH_WAY * scales], dim=1),
        labels=tuple(f"direction {index}" for index in range(len(directions))), layers=chosen,
        generator=generator.identity(), method=method, settings=asdict(parsed),
    )  # fmt: skip


def _check_layers(generator: Generator, layers: Sequence[int]) -> None:
    name, last = generator.provenance.name, max(generator.editable)
    if not layers:
        raise SelectionError("No layer to edit. Name at least one.")
    for layer in layers:
        if not 0 <= layer < generator.num_layers:
            raise SelectionError(
                f"There is no layer {layer}. {name} has layers 0 to {generator.num_layers - 1}."
            )
        if layer not in generator.editable:
            raise SelectionError(
                f"Layer {layer} of {name} is no latent to edit: it carries the place among its batch norm "
                f"statistics, which psi chooses. Layers 0 to {last} can be edited."
            )


def parse_settings(method: str, settings: type[Any], values: Mapping[str, str]) -> Any:
    """A method's settings from text, each value read as the type of the field's default.

    Raises:
        UnknownNameError: No such option; the nearest spelling is named.
        SelectionError: A value of another type.
    """
    known = {f.name: f for f in fields(settings)}
    parsed = {}
    for name, value in values.items():
        if name not in known:
            raise unknown_name(f"option of {method}", name, known)
        default = known[name].default
        assert default is not MISSING
        try:
            parsed[name] = _BOOLEANS[value] if isinstance(default, bool) else type(default)(value)
        except (ValueError, KeyError) as error:
            raise SelectionError(
                f"{name}={value!r} is not a {type(default).__name__}. The default is {default!r}."
            ) from error
    return settings(**parsed)


_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _scales(generator: Generator, directions: Tensor, layers: Sequence[int]) -> Tensor:
    """Standard deviation of latents along directions, averaged over the layers edited: `[directions]`."""
    seeds, chosen = range(_SCALE_SAMPLES), list(layers)
    with torch.inference_mode():
        latents = generator.mapping(generator.sample(seeds), generator.sample_classes(seeds))
        along = torch.einsum("bld,kld->bkl", latents[:, chosen], directions[:, chosen])
        edited = directions[:, chosen].any(dim=2)
        # Zero where a direction does not edit a layer.
        return along.std(dim=0).sum(dim=1) / edited.sum(dim=1).clamp(min=1)
