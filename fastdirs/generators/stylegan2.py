"""StyleGAN2, from NVIDIA's files (PyTorch, TensorFlow), rosinality's and genforce's: one network for all."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError
from fastdirs.generators import Factor, Family, Generator, State, built
from fastdirs.generators._layout import check_known, chosen, fill, provenance_of
from fastdirs.generators._mapping import SLOPE, EqualLinear, MappingNetwork
from fastdirs.generators._resample import Resample
from fastdirs.generators._stylegan2_layouts import layout_of, mean_of, outline_of, sources_of
from fastdirs.generators._stylegan2_settings import SAMPLES, Settings, refuse_variants, settings_of
from fastdirs.manifest import Json

NOISE = ("const", "none", "random")
_OPTIONS = {
    "noise": "const (default: the stored noise), none, or random (drawn anew in every call, so that the same "
    "seed gives different pictures; cannot be exported)",
    "conv_clamp": "where activations are clipped, or none; for files that do not say, of NVIDIA in PyTorch "
    "(default 256) or TensorFlow (default none)",
    "output": "last activation of a genforce file: linear (default) or tanh",
}


def _resample(settings: Settings, *, doubling: bool) -> Resample:
    """The filter that doubles a picture, or that follows a transposed convolution of three taps."""
    row = torch.tensor(settings.resample_kernel)
    size = len(row)
    # The result stays centred: what the size lacks is shared by two sides, the odd rest on the left.
    left, right = ((size + 1) // 2, (size - 2) // 2) if doubling else ((size - 1) // 2, (size - 2) // 2)
    taps = torch.outer(row, row) / row.sum() ** 2
    return Resample(
        taps, up=2 if doubling else 1, padding=(left, right, left, right), gain=settings.filter_gain
    )


class StyledConvolution(nn.Module):
    """A 3x3 convolution whose input channels w scales, with noise, bias and activation.

    The weights stay constant: channels are scaled before by the style, and after by the demodulation.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        resolution: Height and width of the result, in pixels.
        up: Whether it doubles the size.
        settings: Of the network.

    Source:
        Karras et al. 2020 (StyleGAN2), section 2.2 and appendix B. Differs: equations 1 and 3 scale
        activations instead of weights, which is equal up to rounding.
    """

    noise: Tensor

    def __init__(self, inputs: int, outputs: int, resolution: int, up: bool, settings: Settings) -> None:
        super().__init__()
        self.affine = EqualLinear(settings.w_dim, inputs)
        nn.init.constant_(self.affine.bias, 1.0 - settings.style_offset)
        # Laid out as the two convolutions of torch take them.
        self.weight = nn.Parameter(torch.randn(*((inputs, outputs) if up else (outputs, inputs)), 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        if settings.use_noise:
            self.noise_strength = nn.Parameter(torch.tensor(0.1))
            self.register_buffer("noise", torch.randn(resolution, resolution))
        self.blur = _resample(settings, doubling=False) if up else None
        self.noise_kind = settings.noise if settings.use_noise else "none"
        self.style_offset = settings.style_offset
        self.eps = settings.eps * (9 * inputs if settings.eps_by_fan_in else 1)
        self.clamp = settings.conv_clamp

    def forward(self, x: Tensor, w: Tensor, gain: float = 1.0) -> Tensor:
        """Features `[batch or 1, inputs, height, width]`, w `[batch, w_dim]` -> `[batch, outputs, ...]`."""
        style = self.affine(w) + self.style_offset
        # A product with ones is the fastest sum over nine taps.
        power = self.weight.square().flatten(2) @ self.weight.new_ones(9)
        scaled = x * style[:, :, None, None]
        if self.blur is not None:
            y = self.blur(F.conv_transpose2d(scaled, self.weight, stride=2))
            norm = style.square() @ power
        else:
            y = F.conv2d(scaled, self.weight, padding=1)
            norm = F.linear(style.square(), power)
        # The activation is positively homogeneous: its gain is moved into what it is applied to. What follows
        # works in place on a fresh tensor, since it waits for memory alone.
        scale = gain * math.sqrt(2)
        y = y.mul_(((norm + self.eps).rsqrt() * scale)[:, :, None, None])
        if self.noise_kind != "none":
            noise = self.noise if self.noise_kind == "const" else torch.randn_like(y[:, :1])
            y = y.add_(noise * (self.noise_strength * scale))
        y = y.add_((self.bias * scale)[:, None, None])
        if self.clamp is not None:
            # Before the activation, at what it takes to the bound, so that this too can be done in place.
            y = y.clamp_(-self.clamp * gain / SLOPE, self.clamp * gain)
        return F.leaky_relu_(y, SLOPE)


class ToRgb(nn.Module):
    """A 1x1 convolution, modulated but not demodulated, to an image.

    Args:
        inputs: Input channels.
        settings: Of the network.
    """

    def __init__(self, inputs: int, settings: Settings) -> None:
        super().__init__()
        self.affine = EqualLinear(settings.w_dim, inputs)
        nn.init.constant_(self.affine.bias, 1.0 - settings.style_offset)
        # Unlike in training, so small that the sum over all resolutions mostly stays in [-1, 1].
        scale = 0.25 / math.sqrt(len(settings.channels) if settings.architecture == "skip" else 1)
        self.weight = nn.Parameter(torch.randn(settings.img_channels, inputs) * scale)
        self.bias = nn.Parameter(torch.zeros(settings.img_channels))
        self.gain = 1 / math.sqrt(inputs)
        self.style_offset = settings.style_offset
        self.clamp = settings.conv_clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Features `[batch, inputs, height, width]`, w `[batch, w_dim]` -> `[batch, img_channels, ...]`."""
        style = (self.affine(w) + self.style_offset) * self.gain
        # A product for each image: three rows are scaled here, and not a whole picture of features.
        image = (self.weight * style[:, None]) @ x.flatten(2) + self.bias[:, None]
        if self.clamp is not None:
            image = image.clamp(-self.clamp, self.clamp)
        images: Tensor = image.unflatten(2, x.shape[2:])
        return images


class Shortcut(nn.Module):
    """The branch around the two convolutions of a resolution: 1x1, then doubled in size."""

    def __init__(self, inputs: int, outputs: int, settings: Settings) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.gain = math.sqrt(0.5 / inputs)
        self.upsample = _resample(settings, doubling=True)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, inputs, height, width]` -> `[batch, outputs, 2 * height, 2 * width]`."""
        doubled: Tensor = self.upsample(F.conv2d(x, self.weight * self.gain))
        return doubled


class FirstStage(nn.Module):
    """Latent layer 0: the learned constant and its convolution at 4x4 pixels."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        channels = settings.channels[0]
        self.const = nn.Parameter(torch.randn(1, channels, 4, 4))
        self.convolution = StyledConvolution(channels, channels, 4, False, settings)

    def forward(self, state: State, latents: Tensor) -> State:
        """Latents `[batch, layers, dim]` -> features `[batch, channels, 4, 4]`; no state yet."""
        return (self.convolution(self.const, latents[:, 0]),)


class DoublingStage(nn.Module):
    """An odd latent layer: the image of one resolution, and the first convolution of the next."""

    def __init__(self, layer: int, settings: Settings) -> None:
        super().__init__()
        block = layer // 2
        inputs, outputs = settings.channels[block : block + 2]
        self.layer = layer
        skip = settings.architecture == "skip"
        self.rgb = ToRgb(inputs, settings) if skip else None
        self.upsample = _resample(settings, doubling=True) if skip and block else None
        self.shortcut = Shortcut(inputs, outputs, settings) if settings.architecture == "resnet" else None
        self.convolution = StyledConvolution(inputs, outputs, 8 << block, True, settings)

    def forward(self, state: tuple[Tensor, ...], latents: Tensor) -> State:
        """Features, and the image so far -> features of twice the size, with the image or the shortcut.

        Each `[batch, channels, height, width]`; latents `[batch, layers, dim]`.
        """
        x, w = state[0], latents[:, self.layer]
        doubled = self.convolution(x, w)
        if self.shortcut is not None:
            return doubled, self.shortcut(x)
        if self.rgb is None:
            return (doubled,)
        image = self.rgb(x, w)
        return doubled, image if self.upsample is None else image + self.upsample(state[1])


class RefiningStage(nn.Module):
    """An even latent layer: the second convolution of a resolution."""

    def __init__(self, layer: int, settings: Settings) -> None:
        super().__init__()
        channels = settings.channels[layer // 2]
        self.layer = layer
        self.residual = settings.architecture == "resnet"
        self.convolution = StyledConvolution(channels, channels, 4 << layer // 2, False, settings)

    def forward(self, state: tuple[Tensor, ...], latents: Tensor) -> State:
        """Features, and the image or shortcut -> features, and the image if there was one.

        Each `[batch, channels, height, width]`; latents `[batch, layers, dim]`.
        """
        x, w = state[0], latents[:, self.layer]
        if self.residual:
            return (self.convolution(x, w, math.sqrt(0.5)) + state[1],)
        return (self.convolution(x, w), *state[1:])


class LastStage(nn.Module):
    """The last latent layer: the image of the full resolution, on top of those before."""

    def __init__(self, layer: int, settings: Settings) -> None:
        super().__init__()
        self.layer = layer
        self.rgb = ToRgb(settings.channels[-1], settings)
        adds = settings.architecture == "skip" and len(settings.channels) > 1
        self.upsample = _resample(settings, doubling=True) if adds else None
        self.tanh = settings.output == "tanh"

    def forward(self, state: tuple[Tensor, ...], latents: Tensor) -> Tensor:
        """Features and image so far, each `[batch, channels, ...]` -> images `[batch, channels, ...]`."""
        image: Tensor = self.rgb(state[0], latents[:, self.layer])
        if self.upsample is not None:
            image = image + self.upsample(state[1])
        return torch.tanh(image) if self.tanh else image


class StyleGan2(Generator):
    """Karras et al. 2020, in its three architectures, with or without classes.

    Args:
        settings: What the architecture follows from.

    Source:
        "Analyzing and Improving the Image Quality of StyleGAN"; NVlabs/stylegan2, stylegan2-ada-pytorch and
        stylegan3, rosinality/stylegan2-pytorch, genforce/genforce. Their float32 path: half precision that
        NVIDIA's networks use for the last resolutions on a GPU is left out, its clamping is kept.
    """

    # GANLatentDiscovery's defaults, in W.
    discovery_defaults: ClassVar[Mapping[str, int | float | str]] = {
        "reconstructor": "resnet18", "deformator": "ortho", "batch": 8, "steps": 100_000,
        "directions_lr": 1e-4, "reconstructor_lr": 1e-4,
    }  # fmt: skip

    def __init__(self, settings: Settings) -> None:
        blocks = len(settings.channels)
        layers = 2 * blocks
        later = (RefiningStage, DoublingStage)
        stages = [later[layer % 2](layer, settings) for layer in range(1, layers - 1)]
        super().__init__(
            family="stylegan2", space="w+", z_dim=settings.z_dim, num_layers=layers, dim=settings.w_dim,
            img_resolution=2 << blocks, img_channels=settings.img_channels,
            stages=[FirstStage(settings), *stages, LastStage(layers - 1, settings)],
            reads=[(layer,) for layer in range(layers)], config=asdict(settings), c_dim=settings.c_dim,
            class_in="mapping" if settings.c_dim else "",
        )  # fmt: skip
        self.exportable = settings.noise != "random" or not settings.use_noise
        self.mapping_network = MappingNetwork(
            settings.z_dim, settings.c_dim, settings.embed_dim, settings.mapping_widths
        )
        if settings.latent_mean != "stored":
            # It follows from the weights, so it is none of them, and is made anew whenever these are loaded.
            self.register_buffer("latent_mean", torch.zeros(layers, settings.w_dim), persistent=False)
            self.register_load_state_dict_post_hook(_take_mean_of_samples)  # type: ignore[no-untyped-call]

    @property
    def has_mapping(self) -> bool:
        """True: z becomes w."""
        return True

    def map_z(self, z: Tensor, c: Tensor | None) -> Tensor:
        """z `[batch, z_dim]`, weights of the classes `[batch, c_dim]` -> `[batch, layers, dim]`, float32."""
        w: Tensor = self.mapping_network(z, c)
        w = w.reshape(-1, w.shape[1] // self.dim, self.dim)
        # One w for all layers; rare networks make one for each.
        return w.repeat(1, self.num_layers // w.shape[1], 1)

    def factors(self) -> list[Factor]:
        """The weights from w to the styles of every convolution and of every image, in order of layers.

        The image of a lower resolution reads the same latent layer as the convolution beside it.
        """
        found = []
        for layer, stage in enumerate(self.stages):
            if getattr(stage, "convolution", None) is not None:
                name = f"stages.{layer}.convolution.affine"
                found.append(Factor(name, layer, self.get_parameter(f"{name}.weight").detach()))
            if getattr(stage, "rgb", None) is not None:
                name = f"stages.{layer}.rgb.affine"
                found.append(Factor(name, layer, self.get_parameter(f"{name}.weight").detach(), "image"))
        return found


@torch.no_grad()
def _take_mean_of_samples(generator: nn.Module, _: object = None) -> None:
    """The mean w of a fixed set of z, and of classes drawn evenly, for files that hold none."""
    assert isinstance(generator, StyleGan2)
    random, mean = np.random.RandomState(0), generator.latent_mean
    z = torch.from_numpy(random.randn(SAMPLES, generator.z_dim))
    classes = torch.from_numpy(random.randint(max(generator.c_dim, 1), size=SAMPLES))
    # A few at a time where each holds a weight for every class.
    latents, count = [], 64 if generator.c_dim else SAMPLES
    for start in range(0, SAMPLES, count):
        rows = slice(start, start + count)
        c = F.one_hot(classes[rows], generator.c_dim).to(mean) if generator.c_dim else None
        latents.append(generator.map_z(z[rows].to(mean), c))
    mean.copy_(torch.cat(latents).mean(dim=0))


def _draw_noise(generator: Generator) -> None:
    """Noise of a fixed seed, for files that hold none."""
    random = np.random.RandomState(0)
    for name, noise in generator.named_buffers():
        if name.endswith(".noise"):
            noise.copy_(torch.from_numpy(random.randn(*noise.shape)))


def published(
    resolution: int,
    channel_base: int = 32768,
    channel_max: int = 512,
    mapping_layers: int = 8,
    w_dim: int = 512,
    conv_clamp: float | None = None,
) -> Json:
    """The config of a network as it was published, for random weights.

    Args:
        resolution: Height and width of the images, a power of two from 8 on.
        channel_base: Channels times pixels of a row; 32768 is configuration F, 16384 configuration E.
        channel_max: Largest number of channels.
        mapping_layers: Depth of the mapping network.
        w_dim: Size of z and w.
        conv_clamp: Where activations are clipped.
    """
    channels = [
        min(channel_base // (4 << block), channel_max) for block in range(resolution.bit_length() - 2)
    ]
    widths = [w_dim] * mapping_layers
    return asdict(
        Settings(z_dim=w_dim, w_dim=w_dim, channels=channels, mapping_widths=widths, conv_clamp=conv_clamp)
    )


def _build(config: Json) -> Generator:
    settings = Settings(**config)
    check_known("noise", settings.noise, NOISE)
    generator = StyleGan2(settings)
    if settings.latent_mean != "stored":
        _take_mean_of_samples(generator)
    return generator.eval().requires_grad_(False)


def _infer(checkpoint: Checkpoint, options: Mapping[str, str]) -> Generator:
    layout = layout_of(checkpoint)
    if layout is None:
        raise CheckpointError(
            f"{checkpoint.path} holds none of the tensors that mark a StyleGAN2 of NVIDIA, rosinality or "
            "genforce. Leave --family out, or name another."
        )
    outline = outline_of(layout, checkpoint)
    refuse_variants(layout, checkpoint, outline)
    assumed: list[str] = []
    sources = sources_of(layout, outline)
    found = settings_of(layout, checkpoint, outline, sources, options, assumed)
    config = {**found, "noise": chosen(options, "noise", "const", NOISE)}
    generator = built(lambda config: StyleGan2(Settings(**config)), config, checkpoint)
    if outline.mean:
        sources |= mean_of(layout, generator.num_layers, generator.dim)
    if not outline.noises:
        _draw_noise(generator)
    fill(generator, checkpoint, sources, layout.unused)
    generator.provenance = provenance_of(checkpoint, assumed)
    return generator.eval().requires_grad_(False)


def _recognises(checkpoint: Checkpoint) -> bool:
    return layout_of(checkpoint) is not None


GENERATOR = Family(
    summary="StyleGAN2 of NVIDIA (ada, stylegan3 repository, TensorFlow), rosinality and genforce",
    build=_build,
    infer=_infer,
    recognises=_recognises,
    options=_OPTIONS,
    adjustable=("noise",),
    formats=("safetensors_file", "torch_file", "pickle_file", "tensorflow_file", "folder"),
)
