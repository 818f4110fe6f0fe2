"""DCGAN: transposed convolutions and batch norms, inferred from a state dict whatever its keys are called."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise

import torch
from torch import Tensor, nn

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError
from fastdirs.generators import Factor, Family, FeatureStage, Generator, LatentStage, ZGenerator
from fastdirs.generators._layout import check_positive, chosen, number, provenance_of
from fastdirs.manifest import Json

_HIDDEN: Mapping[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "leaky_relu": lambda: nn.LeakyReLU(0.2)}
_OUTPUT: Mapping[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "sigmoid": lambda: _SigmoidToRange()}
_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
_OPTIONS = {
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


class Dcgan(ZGenerator):
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
            family="dcgan", space="z", z_dim=z_dim, num_layers=1, dim=z_dim,
            img_resolution=size, img_channels=layers[-1].out_channels,
            stages=stages, reads=[(0,)] + [()] * (len(layers) - 1), config=config,
        )  # fmt: skip

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
    _check_chain(checkpoint)
    assumed = []
    if not any(name.endswith(("weight", "running_mean")) for name in checkpoint.tensors):
        checkpoint = _named_by_order(checkpoint)
        assumed.append(f"order={','.join(_NORM_PARTS)}")
    tensors = checkpoint.tensors
    kernels = _kernels(checkpoint)
    _check_order(checkpoint, [*kernels, *(name for name in tensors if name.endswith("running_mean"))])
    norms = _norms(checkpoint, kernels, options)
    if norms and "norm_after" not in options and list(norms) != list(range(len(kernels) - 1)):
        assumed.append(f"norm_after={','.join(map(str, norms))}")
    strides = _strides(checkpoint, kernels, options)
    activation = chosen(options, "activation", "relu", list(_HIDDEN), assumed)
    output = chosen(options, "output", "tanh", list(_OUTPUT), assumed)
    eps = number(options, "eps", 1e-5, 1e-12, 1.0)
    if "eps" not in options and norms:
        assumed.append("eps=1e-5")

    # Which tensor of the file stands where in the generator.
    layers, sources = [], {}
    for index, name in enumerate(kernels):
        inputs, outputs, size, _ = tensors[name].shape
        bias = name.removesuffix("weight") + "bias"
        layers.append(Layer(inputs, outputs, size, *strides[index], bias in tensors, index in norms))
        sources[f"stages.{index}.body.0.weight"] = name
        if bias in tensors:
            sources[f"stages.{index}.body.0.bias"] = bias
        if index in norms:
            sources |= {f"stages.{index}.body.1.{part}": norms[index] + part for part in _NORM_PARTS}
    used = set(sources.values())
    extra = [name for name in tensors if name not in used and not name.endswith("num_batches_tracked")]
    if extra:
        raise CheckpointError(
            f"{path} holds {extra[0]!r}, which is no part of a DCGAN ({len(extra)} such tensors): it may be "
            "a variant that fastdirs does not know. Report it with this name, or choose another --family."
        )

    generator = Dcgan(layers, activation, output, eps)
    state = generator.state_dict()
    for target, source in sources.items():
        if tensors[source].shape != state[target].shape:
            raise CheckpointError(
                f"{path} holds {source!r} of shape {list(tensors[source].shape)}, but its convolution asks "
                f"for {list(state[target].shape)}. The file is damaged or no DCGAN."
            )
        state[target] = tensors[source].float()
    generator.load_state_dict(state)
    check_positive(checkpoint, r".*running_var", zero=True)
    generator.provenance = provenance_of(checkpoint, assumed)
    return generator.eval().requires_grad_(False)


def _kernels(checkpoint: Checkpoint) -> list[str]:
    return [name for name, tensor in checkpoint.tensors.items() if tensor.ndim == 4]


def _named_by_order(checkpoint: Checkpoint) -> Checkpoint:
    """The same tensors under torch's names, for keys that say nothing.

    After a kernel stand its bias, if it has one, and four vectors for each batch norm.
    """
    named: dict[str, Tensor] = {}
    vectors: dict[str, list[Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        if tensor.ndim == 4:
            vectors[name] = []
        elif tensor.ndim == 1 and vectors:
            vectors[next(reversed(vectors))].append(tensor)
        elif tensor.ndim > 0:
            named[name] = tensor
    norms = 0
    for kernel, after in vectors.items():
        named[f"{kernel}.weight"] = checkpoint.tensors[kernel]
        if len(after) % 4 == 1:
            named[f"{kernel}.bias"] = after.pop(0)
        if len(after) % 4 or any(bool((variance < 0).any()) for variance in after[3::4]):
            raise CheckpointError(
                f"{checkpoint.path} has {len(after)} vectors after the kernel {kernel!r}, which do not read "
                "as a bias and the weight, bias, mean and variance of batch norms. "
                "Name the tensors as torch does."
            )
        for position, vector in enumerate(after):
            named[f"norm{norms + position // 4}.{_NORM_PARTS[position % 4]}"] = vector
        norms += len(after) // 4
    return replace(checkpoint, tensors=named)


def _check_order(checkpoint: Checkpoint, names: list[str]) -> None:
    """Raises CheckpointError where neither the format nor numbers in the names tell the order of layers."""
    if checkpoint.format != "safetensors_file":
        return
    for index, name in enumerate(names):
        for other in names[index + 1 :]:
            alike = checkpoint.tensors[name].shape == checkpoint.tensors[other].shape
            if alike and re.sub(r"\d+", "#", name) != re.sub(r"\d+", "#", other):
                raise CheckpointError(
                    f"{checkpoint.path} does not say which of {name!r} and {other!r} comes first: "
                    "safetensors keeps no order and the names have no numbers. Save it with torch.save, "
                    "or number the names."
                )


def _check_chain(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError unless the kernels read as transposed convolutions from z to an image."""
    path, tensors, kernels = checkpoint.path, checkpoint.tensors, _kernels(checkpoint)
    if len(kernels) < 2:
        raise CheckpointError(
            f"{path} holds {len(kernels)} convolution weights, too few for a DCGAN. "
            "It is not a DCGAN generator."
        )
    shapes = [tuple(tensors[name].shape) for name in kernels]
    if any(shape[2] != shape[3] for shape in shapes):
        raise CheckpointError(f"{path} holds kernels that are not square, so it is not a DCGAN generator.")
    forwards = all(a[1] == b[0] for a, b in pairwise(shapes))
    backwards = all(a[0] == b[1] for a, b in pairwise(shapes))
    if not forwards or shapes[-1][1] not in (1, 3):
        if backwards and shapes[0][1] in (1, 3):
            raise CheckpointError(
                f"{path} reads from an image to {shapes[-1][0]} channels: "
                "a discriminator or classifier, not a generator."
            )
        raise CheckpointError(
            f"{path} is not a DCGAN generator: its kernels {', '.join(str(list(s)) for s in shapes[:4])} "
            "do not lead, input channels first, from z to an image of 1 or 3 channels."
        )


def _norms(checkpoint: Checkpoint, kernels: list[str], options: Mapping[str, str]) -> dict[int, str]:
    """How the keys of the batch norm after each layer begin, for the layers that have one."""
    tensors, path = checkpoint.tensors, checkpoint.path
    prefixes = [name.removesuffix("running_mean") for name in tensors if name.endswith("running_mean")]
    for prefix in prefixes:
        missing = [part for part in _NORM_PARTS if prefix + part not in tensors]
        if missing:
            raise CheckpointError(
                f"{path} is incomplete: the batch norm {prefix.rstrip('._')!r} has no {missing[0]!r}."
            )
    widths = [tensors[name].shape[1] for name in kernels]
    sizes = [tensors[f"{prefix}running_mean"].numel() for prefix in prefixes]
    if "norm_after" in options:
        places = _whole_numbers(options, "norm_after")
        if not _fits(places, sizes, widths):
            raise CheckpointError(
                f"norm_after={options['norm_after']} does not fit batch norms of {sizes} channels "
                f"on layers of {widths} channels."
            )
        return dict(zip(places, prefixes, strict=True))

    # As usual after each layer but the last; else where they stand in the file; else the one way that fits.
    usual = list(range(len(kernels) - 1))
    order = list(tensors)
    found_after = [
        sum(order.index(kernel) < order.index(f"{prefix}running_mean") for kernel in kernels) - 1
        for prefix in prefixes
    ]
    for places in (usual, found_after):
        if _fits(places, sizes, widths):
            return dict(zip(places, prefixes, strict=True))
    ways = list(islice(_matches(sizes, widths), 2))
    if not ways:
        raise CheckpointError(
            f"{path} has batch norms of {sizes} channels, which do not fit layers of {widths} channels."
        )
    if len(ways) > 1:
        raise CheckpointError(
            f"{path} leaves open which layers its {len(sizes)} batch norms follow ({ways[0]} or {ways[1]}). "
            f"Settle it with norm_after={','.join(map(str, ways[0]))} or what the author used."
        )
    return dict(zip(ways[0], prefixes, strict=True))


def _fits(places: list[int], sizes: list[int], widths: list[int]) -> bool:
    """Whether norms of these sizes may follow the layers at these places, each layer at most one."""
    ascending = all(a < b for a, b in pairwise(places))
    return (
        ascending
        and len(places) == len(sizes)
        and all(
            0 <= place < len(widths) and widths[place] == size
            for place, size in zip(places, sizes, strict=True)
        )
    )


def _matches(sizes: list[int], widths: list[int], start: int = 0) -> Iterator[list[int]]:
    """All ways to hang norms, in order, on layers of the same width."""
    if not sizes:
        yield []
        return
    for place in range(start, len(widths)):
        if widths[place] == sizes[0]:
            yield from ([place, *rest] for rest in _matches(sizes[1:], widths, place + 1))


def _strides(
    checkpoint: Checkpoint, kernels: list[str], options: Mapping[str, str]
) -> list[tuple[int, int, int]]:
    """Stride, padding and output padding: the first opens a 1x1 picture, the others keep or double it."""
    sizes = [checkpoint.tensors[name].shape[2] for name in kernels]
    if "strides" in options:
        strides = _whole_numbers(options, "strides")
        if len(strides) != len(sizes):
            raise CheckpointError(
                f"strides={options['strides']} names {len(strides)} layers, "
                f"but {checkpoint.path} has {len(sizes)}."
            )
    else:
        # An even kernel can only double the size; an odd one may also keep it, and the shapes do not tell.
        doubtful = [size for size in sizes[1:] if size % 2]
        if doubtful:
            raise CheckpointError(
                f"{checkpoint.path} has a {doubtful[0]}x{doubtful[0]} kernel, which may keep or double the "
                f"size. Settle it with strides=1,{','.join('2' * (len(sizes) - 1))} or what the author used."
            )
        strides = [1] + [2] * (len(sizes) - 1)
    settled = [(strides[0], 0, 0)]
    for size, stride in zip(sizes[1:], strides[1:], strict=True):
        if stride not in (1, 2) or (stride == 1 and size % 2 == 0):
            raise CheckpointError(
                f"stride {stride} with a {size}x{size} kernel neither keeps nor doubles the size. "
                "Expected 1 (odd kernels) or 2."
            )
        # A transposed convolution makes (in - 1) * stride - 2 * padding + size + output_padding of in pixels;
        # stride * in are wanted.
        padding = (size - stride + 1) // 2
        settled.append((stride, padding, stride - size + 2 * padding))
    return settled


def _whole_numbers(options: Mapping[str, str], option: str) -> list[int]:
    try:
        return [int(part) for part in options[option].split(",")]
    except ValueError as error:
        raise CheckpointError(f"{option}={options[option]!r} is not a list of whole numbers.") from error


GENERATOR = Family(
    summary="transposed convolutions and batch norms, architecture inferred from the shapes",
    build=_build,
    infer=_infer,
    options=_OPTIONS,
)
