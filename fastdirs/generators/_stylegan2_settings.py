"""What a StyleGAN2's architecture follows from, and where a file says it: in names, shapes and settings."""

import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError
from fastdirs.generators._layout import Source, check_channels, chosen, number, shape_of
from fastdirs.generators._stylegan2_layouts import GENFORCE, NVIDIA, TENSORFLOW, Layout, Outline
from fastdirs.manifest import Json

UNSAID = object()
SAMPLES = 4096
OF_SAMPLES = f"of {SAMPLES} samples"
_POSITIONAL = (
    "z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs", "synthesis_kwargs"
)  # fmt: skip
_NESTED = ("mapping_kwargs", "synthesis_kwargs")
_USUAL_CLAMP = 256.0
_MAX_CLAMP = 1e6
_MAX_TAPS = 16
_PUBLISHED_KERNEL = [1.0, 3.0, 3.0, 1.0]
_ELSEWHERE = "Use its authors' code for it by --generator, or take another file."
_DAMAGED = "The file is damaged: download or save it again."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the architecture follows from.

    Attributes:
        z_dim: Size of z.
        w_dim: Size of one w.
        channels: Channels at 4x4, 8x8, ... pixels; as many as there are resolutions.
        mapping_widths: Outputs of each layer of the mapping network; the last one is `w_dim`, or as many w as
            there are latent layers.
        c_dim: Number of classes, 0 if unconditional.
        embed_dim: Size of the embedded class.
        img_channels: 1 or 3.
        architecture: "skip" (an image at every resolution, summed), "resnet" (shortcuts) or "orig" (neither).
        conv_clamp: Activations stay within plus or minus this; None: everywhere.
        style_offset: Added to every style, besides its bias.
        eps: Epsilon of the demodulation.
        eps_by_fan_in: Whether that epsilon counts for weights scaled by one over the root of their fan-in.
        resample_kernel: Weights of the resampling filter, a row of them.
        filter_gain: Factor of that filter where it doubles the size: 4, or 1 where the stored taps hold it.
        use_noise: Whether the convolutions have noise.
        noise: What noise: "const", "none" or "random".
        output: Last activation, "linear" or "tanh".
        latent_mean: "stored" with the weights, or `OF_SAMPLES`.
    """

    z_dim: int
    w_dim: int
    channels: list[int]
    mapping_widths: list[int]
    c_dim: int = 0
    embed_dim: int = 0
    img_channels: int = 3
    architecture: str = "skip"
    conv_clamp: float | None = None
    style_offset: float = 0.0
    eps: float = 1e-8
    eps_by_fan_in: bool = False
    resample_kernel: list[float] = field(default_factory=lambda: list(_PUBLISHED_KERNEL))
    filter_gain: float = 4.0
    use_noise: bool = True
    noise: str = "const"
    output: str = "linear"
    latent_mean: str = "stored"


def refuse_variants(layout: Layout, checkpoint: Checkpoint, outline: Outline) -> None:
    """Raise where a file's names or settings ask for what fastdirs does not compute.

    Args:
        layout: The layout of its names.
        checkpoint: The file.
        outline: What its names say.

    Raises:
        CheckpointError: A setting has a value, or a tensor a meaning, that is not supported.
    """
    path = checkpoint.path
    for name in checkpoint.tensors:
        for pattern, what in layout.refused.items():
            if re.fullmatch(pattern, name):
                raise CheckpointError(
                    f"{path} holds {name!r}: a StyleGAN2 with {what}, which fastdirs does not support. "
                    + _ELSEWHERE
                )
    for name, value in _said(layout, checkpoint):
        wanted = layout.required.get(name, UNSAID)
        if wanted is UNSAID and name not in layout.harmless:
            raise CheckpointError(
                f"{path} was made with {name}={value!r}, a variant of StyleGAN2 that fastdirs does not know. "
                + _ELSEWHERE
            )
        if name == "architecture":
            wanted = outline.architecture
        if wanted is not UNSAID and value != wanted:
            raise CheckpointError(
                f"{path} was made with {name}={value!r}, which fastdirs does not support. Expected {wanted!r}"
                + (f", as its tensors say. {_DAMAGED}" if name == "architecture" else f". {_ELSEWHERE}")
            )


def settings_of(
    layout: Layout,
    checkpoint: Checkpoint,
    outline: Outline,
    sources: Mapping[str, Source],
    options: Mapping[str, str],
    assumed: list[str],
) -> Json:
    """The settings of `StyleGan2` that a file asks for.

    Args:
        layout: The layout of its names.
        checkpoint: The file.
        outline: What its names say.
        sources: Where each tensor of the generator stands in it.
        options: What the user settled.
        assumed: Where to note what the file cannot know.

    Raises:
        CheckpointError: A tensor that the architecture is read from is missing, or an option is wrong.
    """
    shapes = _shapes(checkpoint, sources)

    def vote(*places: tuple[str, int]) -> int:
        """The size that most tensors agree on, so that a single damaged one is found out afterwards."""
        sizes = [
            shapes[t][axis] for t, axis in places if t in shapes and -len(shapes[t]) <= axis < len(shapes[t])
        ]
        if not sizes:
            source = sources[places[0][0]]
            shape_of(checkpoint, source if isinstance(source, str) else source[0], 1)
        return statistics.mode(sizes)

    def channels(block: int) -> int:
        refining, doubling = f"stages.{2 * block}.convolution", f"stages.{2 * block - 1}.convolution"
        return vote(
            (f"{refining}.bias", 0), (f"{refining}.affine.bias", 0), (f"{refining}.weight", 0),
            (f"{doubling}.bias", 0), (f"{doubling}.weight", 1),
            (f"stages.{2 * block + 1}.rgb.affine.bias", 0),
        )  # fmt: skip

    def width(index: int) -> int:
        layer = f"mapping_network.layers.{index}"
        return vote(
            (f"{layer}.bias", 0), (f"{layer}.weight", 0), (f"mapping_network.layers.{index + 1}.weight", 1)
        )

    if not outline.mapping:
        shape_of(checkpoint, f"{layout.mapping.format(layout.first_mapping)}weight", 2)
    layers = range(2 * outline.blocks - 1)
    embed_dim = (
        vote(("mapping_network.embed.bias", 0), ("mapping_network.embed.weight", 0)) if outline.classes else 0
    )
    last = f"stages.{2 * outline.blocks - 1}.rgb"
    taps = [(f"stages.{layer}.convolution.blur.taps", 0) for layer in layers if layer % 2]
    size = vote(*taps) if layout.blur and outline.filters and taps else 4
    kernel = _kernel(layout, checkpoint, outline)
    found = {
        **layout.facts,
        "z_dim": vote(("mapping_network.layers.0.weight", 1)) - embed_dim,
        "w_dim": vote(*((f"stages.{layer}.convolution.affine.weight", 1) for layer in layers)),
        "channels": [channels(block) for block in range(outline.blocks)],
        "mapping_widths": [width(index) for index in range(outline.mapping)],
        "c_dim": vote(("mapping_network.embed.weight", 1)) if outline.classes else 0,
        "embed_dim": embed_dim,
        "img_channels": vote((f"{last}.bias", 0), (f"{last}.weight", 0)),
        "architecture": outline.architecture,
        "conv_clamp": _conv_clamp(layout, checkpoint, options, assumed),
        "resample_kernel": kernel or (list(_PUBLISHED_KERNEL) if size == 4 else [1.0] * size),
        "use_noise": outline.use_noise,
        "output": _output(layout, checkpoint, options, assumed),
        "latent_mean": "stored" if outline.mean else OF_SAMPLES,
    }
    if not outline.mean:
        assumed.append(f"latent_mean={OF_SAMPLES}")
    if outline.use_noise and not outline.noises:
        assumed.append("noises=of seed 0")
    if layout.blur and outline.blocks > 1 and not outline.filters:
        # Stored taps may hold the gain; those that are made do not.
        found["filter_gain"] = 4.0
        if kernel is None:
            assumed.append("resample_kernel=1,3,3,1")
    if not _said(layout, checkpoint):
        # Of what is required, shapes tell the size of the kernels.
        required = {name: value for name, value in layout.required.items() if name != "kernel_size"}
        assumed.extend(f"{name}={value}" for name, value in required.items())
    if layout is TENSORFLOW:
        assumed.append("tensorflow=not checked against an original file")
    _check_sizes(checkpoint, found)
    return found


def _shapes(checkpoint: Checkpoint, sources: Mapping[str, Source]) -> dict[str, tuple[int, ...]]:
    """Shapes of a file's tensors as they would stand in the generator, for those that can be laid out."""
    shapes: dict[str, tuple[int, ...]] = {}
    for target, source in sources.items():
        name, lay_out = (source, None) if isinstance(source, str) else source
        tensor = checkpoint.tensors.get(name)
        if tensor is None:
            continue
        empty = torch.empty(tensor.shape, device="meta")
        try:
            laid_out: Tensor = empty if lay_out is None else lay_out(empty)
        except (RuntimeError, IndexError):
            continue  # The other tensors decide; this one is refused when it is copied.
        shapes[target] = tuple(laid_out.shape)
    return shapes


def _check_sizes(checkpoint: Checkpoint, found: Json) -> None:
    """Raises CheckpointError where shapes do not fit together, before memory is asked for."""
    sizes = [found[name] for name in ("z_dim", "w_dim", "img_channels")]
    check_channels(checkpoint, found["img_channels"])
    layers = 2 * len(found["channels"])
    widths = [found["z_dim"] + found["embed_dim"], *found["mapping_widths"]]
    if min(sizes) < 1 or widths[-1] not in (found["w_dim"], layers * found["w_dim"]):
        raise CheckpointError(
            f"{checkpoint.path} has a mapping network from {widths[0]} to {widths[-1]} values. Expected one "
            f"to {found['w_dim']}, the size of w: the file is damaged or of another variant. Download it "
            "again, or take another."
        )


def _said(layout: Layout, checkpoint: Checkpoint) -> list[tuple[str, Any]]:
    """Names and values of a file's settings, those of its two networks included."""
    settings = checkpoint.settings
    if layout is TENSORFLOW:
        return [(name, value) for name, value in settings.items() if name != "class_name"]
    if layout is not NVIDIA or "class_name" not in settings:
        return []
    given = _named(settings)
    nested = [given.pop(name) for name in _NESTED if isinstance(given.get(name), dict)]
    return [item for part in (given, *nested) for item in part.items()]


def _named(settings: Json) -> Json:
    """The arguments of a constructor, all by name; what is no mapping of names stays where it is."""
    given = {name: value for name, value in settings.items() if name not in ("class_name", "init_args")}
    positional = settings.get("init_args")
    return {
        **dict(zip(_POSITIONAL, positional if isinstance(positional, list) else [], strict=False)),
        **given,
    }


def _conv_clamp(
    layout: Layout, checkpoint: Checkpoint, options: Mapping[str, str], assumed: list[str]
) -> float | None:
    """Where activations are clipped, as the file says; by the option where it does not."""
    path, said = checkpoint.path, _clamp_in(layout, checkpoint)
    if layout not in (NVIDIA, TENSORFLOW):
        _refuse_option("conv_clamp", "whose activations are never clipped", layout, checkpoint, options)
        return None
    if said is not UNSAID:
        if "conv_clamp" in options:
            raise CheckpointError(f"{path} says itself that conv_clamp is {said}. Leave the option out.")
        if said is None:
            return None
        if isinstance(said, bool) or not isinstance(said, int | float) or not 0 < said <= _MAX_CLAMP:
            raise CheckpointError(
                f"{path} was made with conv_clamp={said!r}. Expected a number above 0, or none. {_DAMAGED}"
            )
        return float(said)
    if options.get("conv_clamp") == "none":
        return None
    if layout is TENSORFLOW and "conv_clamp" not in options:
        assumed.append("conv_clamp=none")
        return None
    return number(options, "conv_clamp", _USUAL_CLAMP, 1e-6, _MAX_CLAMP, assumed)


def _output(layout: Layout, checkpoint: Checkpoint, options: Mapping[str, str], assumed: list[str]) -> str:
    """The last activation, which only genforce lets its users choose."""
    if layout is GENFORCE:
        return chosen(options, "output", "linear", ("linear", "tanh"), assumed)
    _refuse_option("output", "whose last layer is always linear", layout, checkpoint, options)
    return "linear"


def _refuse_option(
    option: str, why: str, layout: Layout, checkpoint: Checkpoint, options: Mapping[str, str]
) -> None:
    """Raises CheckpointError for an option that a code base has no use for."""
    if option in options:
        raise CheckpointError(
            f"{checkpoint.path} is a {layout.title} file, {why}. Leave the option {option} out."
        )


def _clamp_in(layout: Layout, checkpoint: Checkpoint) -> Any:
    """The value that a file's settings give or imply, `UNSAID` if they leave it open."""
    settings = dict(_said(layout, checkpoint))
    if "conv_clamp" in settings:
        return settings["conv_clamp"]
    if layout is TENSORFLOW and settings:
        return None
    if layout is NVIDIA and "synthesis_kwargs" in _named(checkpoint.settings):
        return None  # The networks of stylegan2-ada-pytorch clip nothing unless told.
    if layout is NVIDIA and "channel_base" in settings:
        return _USUAL_CLAMP  # The StyleGAN2 of the stylegan3 repository always does.
    return UNSAID


def _kernel(layout: Layout, checkpoint: Checkpoint, outline: Outline) -> list[float] | None:
    """The resampling filter that a file of NVIDIA's names, unless it stores the taps."""
    name = "resample_kernel" if layout is TENSORFLOW else "resample_filter"
    kernel = None if outline.filters else dict(_said(layout, checkpoint)).get(name)
    if kernel is None:
        return None
    numbers = [value for value in kernel if type(value) in (int, float)] if isinstance(kernel, list) else []
    if not 0 < len(numbers) <= _MAX_TAPS or numbers != kernel or not 0 < abs(sum(numbers)) < math.inf:
        raise CheckpointError(
            f"{checkpoint.path} was made with {name}={kernel!r}. Expected a row of numbers such as "
            f"[1, 3, 3, 1]. {_DAMAGED}"
        )
    return [float(value) for value in kernel]
