"""Settings of a StyleGAN3: what a file says of it, and what the paper's formulas make of that."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError
from fastdirs.generators._layout import Source, check_channels, check_positive, count_of, number, shape_of
from fastdirs.generators._mapping import LR_MULTIPLIER
from fastdirs.manifest import Json

USUAL: Json = {
    "num_layers": 14,
    "num_critical": 2,
    "first_cutoff": 2.0,
    "first_stopband": 2.0**2.1,
    "last_stopband_rel": 2.0**0.3,
    "margin_size": 10,
    "output_scale": 0.25,
    "conv_kernel": 3,
    "filter_size": 6,
    "lrelu_upsampling": 2,
    "use_radial_filters": False,
    "conv_clamp": 256.0,
}
"""What NVIDIA's files leave out where it has the usual value."""

# Lowest and highest value that makes sense.
_RANGES = {
    "num_layers": (2, 100), "num_critical": (0, 99), "first_cutoff": (1e-3, 1e6),
    "first_stopband": (1e-3, 1e6), "last_stopband_rel": (1e-3, 1e3), "margin_size": (0, 1000),
    "output_scale": (1e-6, 1e6), "conv_kernel": (1, 31), "filter_size": (1, 64), "lrelu_upsampling": (1, 16),
    "use_radial_filters": (0, 1), "conv_clamp": (1e-6, 1e9),
}  # fmt: skip
_WHOLE = ("num_layers", "num_critical", "margin_size", "conv_kernel", "filter_size", "lrelu_upsampling")
_POSITIONS = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")
# No picture depends on them, or the names and shapes of the tensors tell.
_UNUSED = ("channel_base", "channel_max", "num_fp16_res", "magnitude_ema_beta", "class_name", "init_args")
_SETTLED = ("output_scale", "conv_clamp", "first_cutoff")
_ELSEWHERE = "Use its authors' code for it by --generator, or take another file."
_LAYER = r"synthesis\.(L(\d+)_(\d+)_(\d+))\..+"


@dataclass(frozen=True)
class Sampling:
    """How features are sampled.

    Attributes:
        size: Pixels per side, with the margin.
        rate: Pixels per picture, without it.
        cutoff: Frequency up to which they carry signals, in cycles per picture.
        half_width: Half of the transition from pass band to stop band, in cycles per picture.
    """

    size: int
    rate: int
    cutoff: float
    half_width: float


def samplings(config: Json) -> list[Sampling]:
    """How the outputs of the layers are sampled, first to last; the Fourier features as the first.

    Args:
        config: Settings by NVIDIA's names.

    Raises:
        CheckpointError: They leave no room between a cutoff and half of the sampling rate.

    Source:
        Karras et al. 2021, section 3.2 and appendix C: cutoff and stop band grow geometrically up to the
        critically sampled layers; the sampling rate is the power of two that holds the stop band.
    """
    resolution, layers = config["img_resolution"], config["num_layers"]
    progress = np.minimum(np.arange(layers + 1) / (layers - config["num_critical"]), 1)
    last_cutoff = resolution / 2
    last_stopband = last_cutoff * config["last_stopband_rel"]
    cutoffs = config["first_cutoff"] * (last_cutoff / config["first_cutoff"]) ** progress
    stopbands = config["first_stopband"] * (last_stopband / config["first_stopband"]) ** progress
    rates = np.exp2(np.ceil(np.log2(np.minimum(stopbands * 2, resolution))))
    half_widths = np.maximum(stopbands, rates / 2) - cutoffs
    sizes = rates + 2 * config["margin_size"]
    sizes[-2:] = resolution
    if rates.min() < 1 or half_widths.min() <= 0 or rates[0] / 2 <= cutoffs[0]:
        raise CheckpointError(
            f"first_cutoff={config['first_cutoff']:g}, first_stopband={config['first_stopband']:g} and "
            f"last_stopband_rel={config['last_stopband_rel']:g} leave no transition band at {resolution} "
            "pixels. Expected a first stop band above the first cutoff, as in the published 4.29 and 2."
        )
    return [
        Sampling(int(size), int(rate), float(cutoff), float(half_width))
        for size, rate, cutoff, half_width in zip(sizes, rates, cutoffs, half_widths, strict=True)
    ]


@dataclass(frozen=True)
class Factors:
    """Up- and downsampling in a layer, and the taps of the filters for it: 1 where there is none."""

    up: int
    down: int
    up_taps: int
    down_taps: int


def factors_between(before: Sampling, after: Sampling, config: Json) -> Factors:
    """How a layer goes from one sampling, over the higher rate of its activation, to the next."""
    rate = max(before.rate, after.rate) * config["lrelu_upsampling"]
    up, down = rate // before.rate, rate // after.rate
    up_taps, down_taps = (config["filter_size"] * factor if factor > 1 else 1 for factor in (up, down))
    return Factors(up, down, up_taps, down_taps)


def config_of(checkpoint: Checkpoint, options: Mapping[str, str], assumed: list[str]) -> Json:
    """The config of the generator in a checkpoint.

    Args:
        checkpoint: A StyleGAN3 in NVIDIA's layout.
        options: What the user settled.
        assumed: Where to note what nobody said.

    Raises:
        CheckpointError: A layer is missing, a variant that is not supported, settings that are unknown or do
            not agree with the tensors.
    """
    _refuse_xl(checkpoint)
    layers = _layers(checkpoint)
    said = _said(checkpoint)
    told = _told(checkpoint, layers)
    for name in told:
        if name in said and said[name] != told[name]:
            raise CheckpointError(
                f"{checkpoint.path} says {name}={said[name]}, but its tensors say {told[name]}. The file is "
                "damaged or of another variant."
            )
    config = {**USUAL, **said, **told, "channels": [channels for _, _, channels in layers]}
    complete = "class_name" in checkpoint.settings
    for name in _SETTLED:
        config[name] = _settled(name, config[name], name in said or complete, checkpoint, options, assumed)
    if not complete:
        assumed.append(f"lr_multiplier={LR_MULTIPLIER:g}")
        unsaid = [name for name in USUAL if name not in said and name not in told and name not in _SETTLED]
        assumed.extend(f"{name}={USUAL[name]:g}" for name in unsaid)
    config |= {"translate": options.get("translate", "0,0"), "rotate": options.get("rotate", "0")}
    check_channels(checkpoint, config["img_channels"])
    _check_sizes(checkpoint, config, layers)
    _check_shapes(checkpoint, config, layers)
    check_positive(checkpoint, r"synthesis\..+\.magnitude_ema")
    return config


def _settled(
    name: str,
    value: float | None,
    known: bool,
    checkpoint: Checkpoint,
    options: Mapping[str, str],
    assumed: list[str],
) -> float | None:
    """A setting that no tensor tells: the file's value if it says one, else the user's, else usual."""
    if known:
        if name in options:
            raise CheckpointError(
                f"{checkpoint.path} says itself that {name} is {value}. Leave the option out."
            )
        return value
    if name == "conv_clamp" and options.get(name) == "none":
        return None
    return number(options, name, USUAL[name], *_RANGES[name], assumed)


def sources(checkpoint: Checkpoint, targets: Mapping[str, Tensor]) -> dict[str, Source]:
    """Where each tensor of the generator's state dict stands in the checkpoint.

    Args:
        checkpoint: A StyleGAN3 in NVIDIA's layout.
        targets: The generator's state dict, of any shapes `[...]`.
    """
    stages = ["input", *(name for name, _, _ in _layers(checkpoint))]
    found: dict[str, Source] = {}
    for target in targets:
        kind, _, rest = target.partition(".")
        if kind == "stages":
            number, _, name = rest.partition(".")
            name = {"up.taps": "up_filter", "down.taps": "down_filter"}.get(name, name)
            found[target] = f"synthesis.{stages[int(number)]}.{name}"
        elif kind == "network":
            found[target] = "mapping." + re.sub(r"^layers\.(\d+)", r"fc\1", rest)
    count = len(stages)
    found["latent_mean"] = ("mapping.w_avg", lambda mean: mean[None].expand(count, -1))
    return found


def _refuse_xl(checkpoint: Checkpoint) -> None:
    tensors = checkpoint.tensors
    mean = tensors.get("mapping.w_avg")
    unsupported = ""
    if "Superres" in str(checkpoint.settings.get("class_name", "")):
        unsupported = "superresolution stages are"
    elif any(name.startswith("mapping.embed_proj.") for name in tensors):
        unsupported = "class embedding from a classifier is"
    elif "mapping.embed.weight" in tensors and "mapping.embed.bias" not in tensors:
        unsupported = "stem, with an embedding (mapping.embed.weight) that has no bias, is"
    elif mean is not None and mean.ndim == 2:
        unsupported = "class-wise w_avg is"
    if unsupported:
        raise CheckpointError(
            f"{checkpoint.path} is a StyleGAN-XL generator, whose {unsupported} not supported. Use its "
            "authors' code for it by --generator, or take a StyleGAN3 in NVIDIA's layout."
        )


def _layers(checkpoint: Checkpoint) -> list[tuple[str, int, int]]:
    """Name, size and channels of each layer, ToRGB the last."""
    matches = [match for match in (re.fullmatch(_LAYER, name) for name in checkpoint.tensors) if match]
    named = {match[1]: (int(match[2]), int(match[3]), int(match[4])) for match in matches}
    ordered = sorted((index, size, channels, name) for name, (index, size, channels) in named.items())
    for place, (index, _, _, name) in enumerate(ordered):
        if index != place:
            what = (
                f"layer L{place} is missing"
                if index > place
                else f"there are two layers L{index}, one {name!r}"
            )
            raise CheckpointError(f"{checkpoint.path} is incomplete: {what}. Download or save it again.")
    if len(ordered) < 3:
        raise CheckpointError(
            f"{checkpoint.path} holds {len(ordered)} synthesis layers, too few for a StyleGAN3. Download or "
            "save it again."
        )
    return [(name, size, channels) for _, size, channels, name in ordered]


def _said(checkpoint: Checkpoint) -> Json:
    """What the file's settings say, by name; the mapping's layers as `mapping_layers`."""
    path, settings = checkpoint.path, dict(checkpoint.settings)
    for name, kind in (("init_args", list), ("mapping_kwargs", dict)):
        if not isinstance(settings.get(name, kind()), kind):
            raise CheckpointError(
                f"{path} says {name}={settings[name]!r}. Expected a {kind.__name__}: the file is damaged."
            )
    positional = settings.get("init_args", [])
    settings |= dict(zip(_POSITIONS, positional, strict=False))
    mapping = settings.pop("mapping_kwargs", {})
    known = {*USUAL, *_POSITIONS, *_UNUSED}
    unknown = [name for name in settings if name not in known] if "class_name" in settings else []
    unknown += [
        f"mapping_kwargs.{name}"
        for name in mapping
        if name not in ("num_layers", "lr_multiplier", "w_avg_beta")
    ]
    if len(positional) > len(_POSITIONS):
        unknown.append("init_args")
    if unknown:
        raise CheckpointError(
            f"{path} has the setting {unknown[0]!r}, which no StyleGAN3 that fastdirs knows has. It is a "
            f"variant that is not supported. {_ELSEWHERE}"
        )
    if mapping.get("lr_multiplier", LR_MULTIPLIER) != LR_MULTIPLIER:
        raise CheckpointError(
            f"{path} says lr_multiplier={mapping['lr_multiplier']}. Only the published "
            f"{LR_MULTIPLIER} is supported. {_ELSEWHERE}"
        )
    said = {name: settings[name] for name in (*USUAL, *_POSITIONS) if name in settings}
    if "num_layers" in mapping:
        said["mapping_layers"] = mapping["num_layers"]
    for name, (low, high) in _RANGES.items():
        value = said.get(name, low)
        if name == "conv_clamp" and value is None:
            continue
        right = isinstance(value, int) or (name not in _WHOLE and isinstance(value, float))
        if not right or not low <= value <= high:
            raise CheckpointError(
                f"{path} says {name}={value!r}. Expected a number from {low:g} to {high:g}: the file is "
                "damaged."
            )
    return said


def _told(checkpoint: Checkpoint, layers: list[tuple[str, int, int]]) -> Json:
    """What names and shapes tell."""
    (w_dim,) = shape_of(checkpoint, "mapping.w_avg", 1)
    c_dim = (
        shape_of(checkpoint, "mapping.embed.weight", 2)[1]
        if "mapping.embed.weight" in checkpoint.tensors
        else 0
    )
    inputs = shape_of(checkpoint, "mapping.fc0.weight", 2)[1]
    told = {
        "z_dim": inputs - (w_dim if c_dim else 0),
        "c_dim": c_dim,
        "w_dim": w_dim,
        "mapping_layers": count_of(checkpoint, r"mapping\.fc(\d+)\..*"),
        "img_resolution": layers[-1][1],
        "img_channels": layers[-1][2],
        "num_layers": len(layers) - 1,
        "conv_kernel": shape_of(checkpoint, f"synthesis.{layers[0][0]}.weight", 4)[3],
    }
    down = checkpoint.tensors.get(f"synthesis.{layers[0][0]}.down_filter")
    if down is not None:
        told["use_radial_filters"] = down.ndim == 2
    return told


def _check_sizes(checkpoint: Checkpoint, config: Json, layers: list[tuple[str, int, int]]) -> None:
    """Raises CheckpointError unless the formulas make the sizes that the names say."""
    resolution, last = config["img_resolution"], config["num_layers"]
    if resolution < 4 or config["num_critical"] >= last:
        raise CheckpointError(
            f"{checkpoint.path} says {resolution} pixels, {last} layers and "
            f"num_critical={config['num_critical']}. Expected 4 pixels at least, and more layers than those "
            "that are critically sampled: the file is damaged."
        )
    for (name, size, _), sampling in zip(layers, samplings(config), strict=True):
        if size != sampling.size:
            causes = ("num_critical", "first_stopband", "last_stopband_rel", "margin_size")
            listed = ", ".join(f"{cause}={config[cause]:g}" for cause in causes)
            raise CheckpointError(
                f"{checkpoint.path} holds a layer {name!r} of {size} pixels, where its settings ({listed}) "
                f"make {sampling.size}. One of them is not what the file was trained with."
            )


def _check_shapes(checkpoint: Checkpoint, config: Json, layers: list[tuple[str, int, int]]) -> None:
    """Raises CheckpointError unless the large tensors have the shapes that the config asks for.

    Before anything is built: names alone must not decide how much memory is taken.
    """
    steps, w_dim, last = samplings(config), config["w_dim"], config["num_layers"]
    channels = config["channels"]
    wanted: dict[str, tuple[tuple[int, ...], str]] = {
        "synthesis.input.weight": ((channels[0], channels[0]), "the name of the first layer"),
        "synthesis.input.affine.weight": ((4, w_dim), "w_avg"),
    }
    for index, (name, _, outputs) in enumerate(layers):
        place, before = f"synthesis.{name}.", max(index - 1, 0)
        kernel = 1 if index == last else config["conv_kernel"]
        wanted[place + "weight"] = (
            (outputs, channels[before], kernel, kernel),
            "names of layers and conv_kernel",
        )
        wanted[place + "affine.weight"] = ((channels[before], w_dim), "names of layers and w_avg")
        if index == last:
            continue
        factors = factors_between(steps[before], steps[index], config)
        radial = config["use_radial_filters"] and index < last - config["num_critical"]
        by = "filter_size, lrelu_upsampling and use_radial_filters"
        if factors.up > 1:
            wanted[place + "up_filter"] = ((factors.up_taps,), by)
        if factors.down > 1:
            wanted[place + "down_filter"] = ((factors.down_taps,) * (2 if radial else 1), by)
    for index in range(config["mapping_layers"]):
        inputs = w_dim if index or config["c_dim"] else 0
        inputs += config["z_dim"] if index == 0 else 0
        wanted[f"mapping.fc{index}.weight"] = ((w_dim, inputs), "w_avg")
    for name, (shape, by) in wanted.items():
        found = (
            tuple(checkpoint.tensors[name].shape)
            if name in checkpoint.tensors
            else shape_of(checkpoint, name, 1)
        )
        if found != shape:
            raise CheckpointError(
                f"{checkpoint.path} holds {name!r} of shape {list(found)}, where {by} ask for "
                f"{list(shape)}. The file is damaged or of another variant."
            )
