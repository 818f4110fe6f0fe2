"""DCGAN: transposed convolutions and batch norms, the architecture inferred from a state dict whatever its keys are called."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError
from fastdirs.generators import Factor, Family, FeatureStage, Generator, LatentStage, Provenance
from fastdirs.manifest import Json
from fastdirs.registry import unknown_name

_HIDDEN = {"relu": lambda: nn.ReLU(), "leaky_relu": lambda: nn.LeakyReLU(0.2)}
_OUTPUT = {"tanh": lambda: nn.Tanh(), "sigmoid": lambda: _SigmoidToRange()}
_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
_OPTIONS = {
    "key": "which state dict of the file to take",
    "strides": "stride of each layer, such as 1,2,2,2,2",
    "norm_after": "layers followed by a batch norm, such as 0,1,2,3",
    "activation": "between the layers: relu (default) or leaky_relu (slope 0.2)",
    "output": "last activation: tanh (default) or sigmoid",
    "eps": "epsilon of the batch norms (default 1e-5)",
}


class _SigmoidToRange(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(features) * 2 - 1


@dataclass(frozen=True)
class Layer:
    """One transposed convolution, with what follows it: sizes in channels and pixels."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    padding: int
    output_padding: int
    bias: bool
    norm: bool


class Dcgan(Generator):
    """Radford et al. 2016, any depth and width.

    Args:
        layers: From z to the image; the first one turns a 1x1 picture into `kernel` pixels.
        activation: Between the layers, "relu" or "leaky_relu".
        output: After the last one, "tanh" or "sigmoid" (scaled to [-1, 1]).
        eps: Epsilon of the batch norms.
    """

    def __init__(self, layers: list[Layer], activation: str, output: str, eps: float) -> None:
        stages: list[nn.Module] = []
        size = 1
        for index, layer in enumerate(layers):
            last = index == len(layers) - 1
            convolution = nn.ConvTranspose2d(
                layer.in_channels, layer.out_channels, layer.kernel, layer.stride, layer.padding,
                layer.output_padding, bias=layer.bias,
            )  # fmt: skip
            norm = [nn.BatchNorm2d(layer.out_channels, eps=eps)] if layer.norm else []
            body = nn.Sequential(convolution, *norm, _OUTPUT[output]() if last else _HIDDEN[activation]())
            stages.append(LatentStage(body) if index == 0 else FeatureStage(body))
            size = (size - 1) * layer.stride - 2 * layer.padding + layer.kernel + layer.output_padding
        config = {
            "layers": [asdict(layer) for layer in layers],
            "activation": activation,
            "output": output,
            "eps": eps,
        }
        z_dim = layers[0].in_channels
        super().__init__(
            family="dcgan", space="z", z_dim=z_dim, num_layers=1, dim=z_dim, img_resolution=size,
            img_channels=layers[-1].out_channels, stages=stages, reads=[(0,)] + [()] * (len(layers) - 1), config=config,
        )  # fmt: skip

    @property
    def has_mapping(self) -> bool:
        """False: z is the latent space."""
        return False

    def map_z(self, z: Tensor, c: Tensor | None) -> Tensor:
        """z `[batch, z_dim]` -> `[batch, 1, z_dim]`."""
        return z[:, None]

    def factors(self) -> list[Factor]:
        """The first layer: each output unit of it is a dot product with z."""
        weight = self.get_parameter("stages.0.body.0.weight").detach()
        return [Factor("stages.0.body.0", 0, weight.flatten(1).T)]


def _build(config: Json) -> Generator:
    layers = [Layer(**layer) for layer in config["layers"]]
    generator = Dcgan(layers, config["activation"], config["output"], config["eps"])
    return generator.eval().requires_grad_(False)


def _infer(checkpoint: Checkpoint, options: Mapping[str, str]) -> Generator:
    path = checkpoint.path
    kernels = [name for name, tensor in checkpoint.tensors.items() if tensor.ndim == 4]
    _check_chain(checkpoint, kernels)
    norms = _norms(checkpoint, kernels, options)
    strides = _strides(checkpoint, kernels, options)
    assumed = []
    choices = {"activation": ("relu", _HIDDEN), "output": ("tanh", _OUTPUT)}
    chosen = {}
    for option, (usual, known) in choices.items():
        chosen[option] = options.get(option, usual)
        if chosen[option] not in known:
            raise unknown_name(option, chosen[option], known)
        if option not in options:
            assumed.append(f"{option}={usual}")
    eps = _number(options.get("eps", "1e-5"), "eps")
    if "eps" not in options and norms:
        assumed.append("eps=1e-5")

    layers, state = [], {}
    used = set(kernels)
    for index, name in enumerate(kernels):
        weight = checkpoint.tensors[name]
        stride, padding, output_padding = strides[index]
        bias = name.removesuffix("weight") + "bias"
        has_bias = bias in checkpoint.tensors
        layers.append(
            Layer(weight.shape[0], weight.shape[1], weight.shape[2], stride, padding, output_padding, has_bias, index in norms)
        )
        state[f"stages.{index}.body.0.weight"] = weight
        if has_bias:
            state[f"stages.{index}.body.0.bias"] = checkpoint.tensors[bias]
            used.add(bias)
        if index in norms:
            for part in _NORM_PARTS:
                source = f"{norms[index]}.{part}"
                state[f"stages.{index}.body.1.{part}"] = checkpoint.tensors[source]
                used.add(source)
            state[f"stages.{index}.body.1.num_batches_tracked"] = torch.tensor(0)
    extra = [name for name in checkpoint.tensors if name not in used and not name.endswith("num_batches_tracked")]
    if extra:
        raise CheckpointError(f"{path} holds {extra[0]!r}, which is no part of a DCGAN ({len(extra)} such tensors). Choose another --family.")
    generator = Dcgan(layers, chosen["activation"], chosen["output"], eps)
    state["latent_mean"] = generator.latent_mean
    generator.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    generator.provenance = Provenance(name=path.stem, source=path.name, assumed=tuple(assumed))
    return generator.eval().requires_grad_(False)


def _check_chain(checkpoint: Checkpoint, kernels: list[str]) -> None:
    """Raises CheckpointError unless the four-axis tensors read as transposed convolutions from z to an image."""
    path, tensors = checkpoint.path, checkpoint.tensors
    if len(kernels) < 2:
        raise CheckpointError(f"{path} holds {len(kernels)} convolution weights, too few for a DCGAN. It is not a DCGAN generator.")
    shapes = [tuple(tensors[name].shape) for name in kernels]
    if any(shape[2] != shape[3] for shape in shapes):
        raise CheckpointError(f"{path} holds kernels that are not square, so it is not a DCGAN generator.")
    forwards = all(a[1] == b[0] for a, b in zip(shapes, shapes[1:], strict=False))
    backwards = all(a[0] == b[1] for a, b in zip(shapes, shapes[1:], strict=False))
    if not forwards or shapes[-1][1] not in (1, 3):
        if backwards and shapes[0][1] in (1, 3):
            raise CheckpointError(f"{path} reads from an image to {shapes[-1][0]} channels: a discriminator or classifier, not a generator.")
        raise CheckpointError(
            f"{path} is not a DCGAN generator: its kernels {', '.join(str(list(s)) for s in shapes[:4])} do not lead, "
            "input channels first, from z to an image of 1 or 3 channels."
        )


def _norms(checkpoint: Checkpoint, kernels: list[str], options: Mapping[str, str]) -> dict[int, str]:
    """Key prefix of the batch norm after each layer that has one."""
    tensors, path = checkpoint.tensors, checkpoint.path
    prefixes = [name.removesuffix(".running_mean") for name in tensors if name.endswith("running_mean")]
    for prefix in prefixes:
        missing = [part for part in _NORM_PARTS if f"{prefix}.{part}" not in tensors]
        if missing:
            raise CheckpointError(f"{path} is incomplete: the batch norm {prefix!r} has no {missing[0]!r}.")
    width = [tensors[name].shape[1] for name in kernels]
    sizes = [tensors[f"{prefix}.running_mean"].shape[0] for prefix in prefixes]
    if "norm_after" in options:
        places = [int(_number(part, "norm_after")) for part in options["norm_after"].split(",")]
    else:
        # All ways to hang the norms, in order, on layers of the same width; a DCGAN leaves exactly one.
        ways = _matches(sizes, width)
        usual = list(range(len(kernels) - 1))
        if not ways:
            raise CheckpointError(f"{path} has batch norms of {sizes} channels, which do not fit layers of {width} channels.")
        if len(ways) > 1 and usual not in ways:
            raise CheckpointError(
                f"{path} leaves open which layers its {len(sizes)} batch norms follow ({ways[0]} or {ways[1]}). Settle it with norm_after=0,1,..."
            )
        places = usual if usual in ways else ways[0]
    if len(places) != len(sizes) or any(not 0 <= p < len(width) or width[p] != s for p, s in zip(places, sizes, strict=True)):
        raise CheckpointError(f"norm_after={places} does not fit batch norms of {sizes} channels on layers of {width} channels.")
    return dict(zip(places, prefixes, strict=True))


def _matches(sizes: list[int], width: list[int], start: int = 0) -> list[list[int]]:
    if not sizes:
        return [[]]
    found = []
    for place in range(start, len(width)):
        if width[place] == sizes[0]:
            found += [[place, *rest] for rest in _matches(sizes[1:], width, place + 1)]
    return found


def _strides(checkpoint: Checkpoint, kernels: list[str], options: Mapping[str, str]) -> list[tuple[int, int, int]]:
    """Stride, padding and output padding of each layer: the first opens a 1x1 picture, the others keep or double the size."""
    sizes = [checkpoint.tensors[name].shape[2] for name in kernels]
    if "strides" in options:
        strides = [int(_number(part, "strides")) for part in options["strides"].split(",")]
        if len(strides) != len(sizes):
            raise CheckpointError(f"strides={options['strides']} names {len(strides)} layers, but {checkpoint.path} has {len(sizes)}.")
    else:
        # An even kernel can only double the size; an odd one may also keep it, and the shapes do not tell.
        doubtful = [size for size in sizes[1:] if size % 2]
        if doubtful:
            raise CheckpointError(
                f"{checkpoint.path} has a {doubtful[0]}x{doubtful[0]} kernel, which may keep or double the size. "
                f"Settle it with strides=1,{','.join('2' * (len(sizes) - 1))} or what the author used."
            )
        strides = [1] + [2] * (len(sizes) - 1)
    settled = [(strides[0], 0, 0)]
    for size, stride in zip(sizes[1:], strides[1:], strict=True):
        if stride not in (1, 2) or (stride == 1 and size % 2 == 0):
            raise CheckpointError(f"stride {stride} with a {size}x{size} kernel neither keeps nor doubles the size. Expected 1 (odd kernels) or 2.")
        # Transposed convolution: out = (in - 1) * stride - 2 * padding + size + output_padding, wanted: stride * in.
        padding = (size - stride + 1) // 2
        settled.append((stride, padding, stride - size + 2 * padding))
    return settled


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise CheckpointError(f"{option}={text!r} is not a number.") from error


GENERATOR = Family(
    summary="transposed convolutions and batch norms, architecture inferred from the shapes",
    build=_build,
    infer=_infer,
    options=_OPTIONS,
)
