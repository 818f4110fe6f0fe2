"""StyleGAN3, configurations T and R: Fourier features through alias-free layers."""

import math
import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError
from fastdirs.generators import Factor, Family, Generator, State
from fastdirs.generators._layout import fill, provenance_of
from fastdirs.generators._mapping import SLOPE, EqualLinear, MappingNetwork
from fastdirs.generators._resample import Resample, lowpass
from fastdirs.generators._stylegan3_settings import (
    USUAL,
    Sampling,
    config_of,
    factors_between,
    samplings,
    sources,
)
from fastdirs.manifest import Json

_EPS = 1e-8
_OPTIONS = {
    "translate": "shift the picture by this part of its width and height, such as 0.13,-0.07 (default 0,0)",
    "rotate": "turn the picture by so many degrees (default 0)",
    "output_scale": "factor of the last layer, where the file does not say (default 0.25)",
    "conv_clamp": "largest value after a layer, or none, where the file does not say (default 256)",
    "first_cutoff": "highest frequency of the first layer, where the file does not say (default 2)",
}


def published(
    variant: Literal["T", "R"] = "T",
    resolution: int = 256,
    channel_base: int = 32768,
    channel_max: int = 512,
    c_dim: int = 0,
) -> Json:
    """The config of a published network, to build it with random weights and measure.

    Args:
        variant: "T" (translation) or "R" (rotation and translation).
        resolution: Pixels per side.
        channel_base: As given to the authors' training script; R doubles both.
        channel_max: The most channels of a layer.
        c_dim: Number of classes, 0 if unconditional.
    """
    config = {
        **USUAL, "z_dim": 512, "c_dim": c_dim, "w_dim": 512, "mapping_layers": 2,
        "img_resolution": resolution, "img_channels": 3, "translate": "0,0", "rotate": "0",
    }  # fmt: skip
    if variant == "R":
        channel_base, channel_max = 2 * channel_base, 2 * channel_max
        config |= {"conv_kernel": 1, "use_radial_filters": True}
    cutoffs = [sampling.cutoff for sampling in samplings(config)]
    channels = [round(min(channel_base / 2 / cutoff, channel_max)) for cutoff in cutoffs]
    return {**config, "channels": [*channels[:-1], config["img_channels"]]}


class FourierInput(nn.Module):
    """Fourier features of a plane that w turns and shifts.

    Args:
        channels: Number of features.
        w_dim: Size of w.
        sampling: Of the features.
        transform: What the user does with the picture, inverted. `[3, 3]`, float32.

    Source:
        Karras et al. 2021, appendix F. The authors' sampling grid is linear in constant coordinates, and is
        computed so, without the operator for it that most exporters lack.
    """

    transform: Tensor
    freqs: Tensor
    phases: Tensor
    user: Tensor

    def __init__(self, channels: int, w_dim: int, sampling: Sampling, transform: Tensor) -> None:
        super().__init__()
        self.sampling = sampling
        self.weight = nn.Parameter(torch.randn(channels, channels))
        self.affine = EqualLinear(w_dim, 4)
        # Cosine and sine of a small angle, and a small shift.
        nn.init.normal_(self.affine.weight, std=0.1)
        self.affine.bias.data = torch.tensor([1.0, 0.0, 0.0, 0.0])
        # Evenly over the disk of the frequencies that the first layer carries.
        angles = torch.rand(channels) * 2 * math.pi
        radii = torch.rand(channels).sqrt() * sampling.cutoff
        self.register_buffer("freqs", torch.stack([angles.cos(), angles.sin()], dim=1) * radii[:, None])
        self.register_buffer("phases", torch.rand(channels) - 0.5)
        self.register_buffer("transform", torch.eye(3))
        self.register_buffer("user", transform, persistent=False)

    def forward(self, state: State, latents: Tensor) -> Tensor:
        """Latents `[batch, layers, w_dim]` -> features `[batch, channels, size, size]`; no state yet."""
        # Coordinates need all of float32, whatever the rest runs in.
        pose = self.affine(latents[:, 0]).float()
        pose = pose * pose[:, :2].square().sum(dim=1, keepdim=True).rsqrt()
        cos, sin, right, down = pose.unbind(1)
        rotated = torch.stack(
            [cos, -sin, sin * down - cos * right, sin, cos, -sin * right - cos * down], dim=1
        )
        plane = rotated.reshape(-1, 2, 3) @ self.transform.float() @ self.user.float()
        horizontal, vertical, shift = (self.freqs.float() @ plane).unbind(2)

        size, rate = self.sampling.size, self.sampling.rate
        places = (torch.arange(size, device=latents.device, dtype=torch.float32) * 2 + 1 - size) / (2 * rate)
        across = horizontal[:, :, None] * places
        along = vertical[:, :, None] * places + (self.phases.float() + shift)[:, :, None]
        waves = torch.sin((along[:, :, :, None] + across[:, :, None]) * (2 * math.pi))
        # Features that the transformation moves beyond the pass band fade out.
        frequency = (horizontal.square() + vertical.square()).sqrt()
        beyond = (frequency - self.sampling.cutoff) / (rate / 2 - self.sampling.cutoff)
        amplitudes = (1 - beyond).clamp(0, 1) / math.sqrt(len(self.weight))
        waves = (waves * amplitudes[:, :, None, None]).to(self.weight.dtype)
        features: Tensor = F.conv2d(waves, self.weight[:, :, None, None])
        return features


class Modulated(nn.Module):
    """A convolution whose input channels a latent layer scales.

    Args:
        layer: The latent layer.
        w_dim: Size of w.
        in_channels: Channels of the features.
        out_channels: Channels of the result.
        kernel: Pixels per side.
    """

    magnitude_ema: Tensor

    def __init__(self, layer: int, w_dim: int, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.layer = layer
        self.affine = EqualLinear(w_dim, in_channels)
        nn.init.ones_(self.affine.bias)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        # Mean square of the features while training; what comes in is divided by its root.
        self.register_buffer("magnitude_ema", torch.ones(()))

    def convolved(self, features: Tensor, scale: Tensor) -> Tensor:
        """Features `[batch, channels, size, size]` times scales `[batch, channels]`, filtered."""
        scale = scale * self.magnitude_ema.rsqrt()
        return F.conv2d(features * scale[:, :, None, None], self.weight, padding=self.weight.shape[2] - 1)


class SynthesisLayer(Modulated):
    """Convolution, and a leaky ReLU at a higher sampling rate, so that its edges do not alias.

    Source:
        Karras et al. 2021, figure 4. The authors scale the styles of a batch by their common mean square,
        and the filters to a mean square of one; the demodulation cancels both but for its epsilon. Here the
        styles are left as they are, so that no picture depends on its batch, and the epsilon is in
        proportion to the filters, so that they stay constant. The activation's gain comes before it: it is
        homogeneous.
    """

    def __init__(
        self,
        layer: int,
        channels: tuple[int, int],
        before: Sampling,
        after: Sampling,
        config: Json,
        critical: bool,
    ) -> None:
        super().__init__(layer, config["w_dim"], *channels, config["conv_kernel"])
        by = factors_between(before, after, config)
        rate = before.rate * by.up
        # What makes the output as large as the next layer wants it; an odd pixel goes to the right.
        wanted = (after.size - 1) * by.down + by.down_taps + by.up_taps - 1
        total = wanted - (before.size + config["conv_kernel"] - 1) * by.up
        low = (total + by.up) // 2
        ends = (low, total - low, low, total - low)
        self.up: nn.Module = nn.ZeroPad2d(ends)
        if by.up > 1:
            taps = lowpass(by.up_taps, before.cutoff, 2 * before.half_width, rate)
            size = before.size + config["conv_kernel"] - 1
            self.up = Resample(taps, up=by.up, padding=ends, gain=by.up**2, size=size)
        self.down: nn.Module = nn.Identity()
        if by.down > 1:
            radial = config["use_radial_filters"] and not critical
            taps = lowpass(by.down_taps, after.cutoff, 2 * after.half_width, rate, radial)
            self.down = Resample(taps, down=by.down, size=wanted - by.up_taps + 1)
        self.clamp = math.inf if config["conv_clamp"] is None else float(config["conv_clamp"])

    def forward(self, state: Tensor, latents: Tensor) -> Tensor:
        """Features `[batch, channels, size, size]`, latents `[batch, layers, w_dim]` -> the next features."""
        styles = self.affine(latents[:, self.layer])
        energy = self.weight.square().sum(dim=(2, 3))
        eps = _EPS / self.weight[0].numel() * energy.sum(dim=1)
        demodulation = (styles.square() @ energy.T + eps).rsqrt() * math.sqrt(2)
        features = self.convolved(state, styles) * demodulation[:, :, None, None]
        features = self.up(features + (self.bias * math.sqrt(2))[:, None, None])
        # Before the activation, where the negative side is as much longer. It makes a new tensor, which
        # may then be changed; `up` may give a view, and a graph copies the whole to change a view.
        features = features.clamp(-self.clamp / SLOPE, self.clamp)
        filtered: Tensor = self.down(F.leaky_relu(features, SLOPE, inplace=True))
        return filtered


class ToRgb(Modulated):
    """The last layer: a linear one, without demodulation."""

    def __init__(self, layer: int, channels: tuple[int, int], config: Json) -> None:
        super().__init__(layer, config["w_dim"], *channels, kernel=1)
        self.clamp = math.inf if config["conv_clamp"] is None else float(config["conv_clamp"])
        self.scale = config["output_scale"]

    def forward(self, state: Tensor, latents: Tensor) -> Tensor:
        """Features `[batch, channels, size, size]`, latents `[batch, layers, w_dim]` -> images."""
        styles = self.affine(latents[:, self.layer]) / math.sqrt(self.weight.shape[1])
        images = self.convolved(state, styles) + self.bias[:, None, None]
        scaled: Tensor = images.clamp(-self.clamp, self.clamp) * self.scale
        return scaled


class StyleGan3(Generator):
    """StyleGAN3: stage 0 makes Fourier features from w 0, stage i is the layer that reads w i.

    Args:
        config: As `published` makes it.

    Source:
        Karras et al. 2021, "Alias-Free Generative Adversarial Networks"; the layout of NVlabs/stylegan3.
    """

    def __init__(self, config: Json) -> None:
        steps, channels, last = samplings(config), config["channels"], config["num_layers"]
        stages: list[nn.Module] = [
            FourierInput(channels[0], config["w_dim"], steps[0], _user_transform(config))
        ]
        for index in range(last):
            before = max(index - 1, 0)
            stages.append(
                SynthesisLayer(
                    index + 1, (channels[before], channels[index]), steps[before], steps[index], config,
                    critical=index >= last - config["num_critical"],
                )
            )  # fmt: skip
        stages.append(ToRgb(last + 1, (channels[last - 1], channels[last]), config))
        super().__init__(
            family="stylegan3", space="w+", z_dim=config["z_dim"], num_layers=last + 2, dim=config["w_dim"],
            img_resolution=config["img_resolution"], img_channels=config["img_channels"],
            c_dim=config["c_dim"], class_in="mapping" if config["c_dim"] else "",
            stages=stages, reads=[(layer,) for layer in range(last + 2)], config=config,
        )  # fmt: skip
        widths = [config["w_dim"]] * config["mapping_layers"]
        self.network = MappingNetwork(config["z_dim"], config["c_dim"], config["w_dim"], widths)

    @property
    def has_mapping(self) -> bool:
        """True."""
        return True

    def map_z(self, z: Tensor, c: Tensor | None) -> Tensor:
        """z `[batch, z_dim]`, classes `[batch, c_dim]` -> w for all layers alike `[batch, layers, w_dim]`."""
        w: Tensor = self.network(z, c)
        return w[:, None].repeat(1, self.num_layers, 1)

    def factors(self) -> list[Factor]:
        """The styles of all convolutions, ToRGB's too: `[in_channels, w_dim]` each.

        The four rows that turn and shift the Fourier features are left out: they scale no features, and their
        effect, divided by its own length, is no product with w.
        """
        return [
            Factor(
                f"stages.{layer}.affine", layer, self.get_parameter(f"stages.{layer}.affine.weight").detach(),
                "image" if layer == self.num_layers - 1 else "features",
            )
            for layer in range(1, self.num_layers)
        ]  # fmt: skip


def _user_transform(config: Json) -> Tensor:
    """Where in the untouched picture each place of the moved one lies: `[3, 3]`, float32.

    Raises:
        CheckpointError: The options are no numbers.
    """
    try:
        right, down = (float(part) for part in str(config["translate"]).split(","))
        angle = math.radians(float(config["rotate"]))
        wrong = not all(map(math.isfinite, (right, down, angle)))
    except ValueError:
        wrong = True
    if wrong:
        raise CheckpointError(
            f"translate={config['translate']!r} and rotate={config['rotate']!r} move no picture. Expected "
            "two parts of the picture's size such as 0.13,-0.07, and degrees such as 15."
        )
    cos, sin = math.cos(angle), math.sin(angle)
    # As NVIDIA's scripts define translate and rotate, and inverted.
    moved = torch.tensor([[cos, sin, right], [-sin, cos, down], [0, 0, 1]], dtype=torch.float64)
    inverse: Tensor = torch.linalg.inv(moved)
    return inverse.float()


def _build(config: Json) -> Generator:
    return StyleGan3(config).eval().requires_grad_(False)


def _infer(checkpoint: Checkpoint, options: Mapping[str, str]) -> Generator:
    assumed: list[str] = []
    generator = _build(config_of(checkpoint, options, assumed))
    fill(generator, checkpoint, sources(checkpoint, generator.state_dict()))
    generator.provenance = provenance_of(checkpoint, assumed)
    return generator


def _recognises(checkpoint: Checkpoint) -> bool:
    return any(
        name.startswith("synthesis.input.") or re.match(r"synthesis\.L\d+_\d+_\d+\.", name)
        for name in checkpoint.tensors
    )


GENERATOR = Family(
    summary="StyleGAN3 of NVIDIA, configurations T and R; the picture can be moved and turned",
    build=_build,
    infer=_infer,
    recognises=_recognises,
    options=_OPTIONS,
    adjustable=("translate", "rotate"),
)
