"""Four ways to name and lay out the tensors of a StyleGAN2."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fastdirs.checkpoints import Checkpoint
from fastdirs.generators._layout import Source
from fastdirs.manifest import Json

LayOut = Callable[[Tensor], Tensor]
_MAX_BLOCKS = 11  # 4096 pixels: nobody has trained more, and no damaged file shall make us ask for it.


def _same(t: Tensor) -> Tensor:
    return t


def _plane(t: Tensor) -> Tensor:
    return t.reshape(t.shape[-2:])


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one code base names and lays out a StyleGAN2.

    Names hold `{r}` (pixels), `{b}` (block, 0 at 4x4), `{a}` (one less), `{n}` (latent layer), `{m}` (one
    less) and `{c}` (0 for doubling convolutions, else 1). They end where those of leaves begin, unless a
    single tensor is meant.

    Attributes:
        title: What to call it.
        mark: Regular expression of names that no other layout and no other family has.
        mapping: A layer of the mapping network, with its number for `{}`.
        first_mapping: Number of the first such layer.
        embed: The embedding of classes; "" if the code base has none.
        mean: The average w, a tensor.
        const: The learned constant, a tensor.
        convolutions: The first convolution, the doubling ones, and the others.
        leaves: Below a convolution: the name of each leaf of `StyledConvolution` and `ToRgb`.
        noise: The noise of a convolution, a tensor.
        blur: The filter of a doubling convolution, a tensor; "" if files hold none.
        rgb: The first convolution to an image, and the others.
        upsample: The filter that doubles images, a tensor; "" if files hold none.
        shortcut: The branch of a resnet; "" if the code base has none.
        weights: Lays a weight out as `[out, in, 3, 3]`, and a doubling one as `[in, out, 3, 3]`.
        rgb_weight: Lays a weight out as `[img_channels, in]`.
        matrix: Lays a matrix out as `[out, in]`.
        taps: Lays a filter out as `[k, k]`.
        facts: Settings that all its networks share.
        required: Settings in the file that must have these values.
        harmless: Settings that tensors say better, or that change no picture in float32.
        unused: Regular expressions of tensors that no picture depends on.
        refused: Regular expressions of tensors that give away what is not supported, and what that is.
    """

    title: str
    mark: str
    mapping: str
    first_mapping: int = 0
    embed: str = ""
    mean: str
    const: str
    convolutions: tuple[str, str, str]
    leaves: Mapping[str, str]
    noise: str
    blur: str = ""
    rgb: tuple[str, str]
    upsample: str = ""
    shortcut: str = ""
    weights: tuple[LayOut, LayOut] = (_same, lambda t: t.transpose(0, 1))
    rgb_weight: LayOut = lambda t: t.flatten(1)
    matrix: LayOut = _same
    taps: LayOut = _plane
    facts: Json
    required: Json = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    unused: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def convolution(self, layer: int) -> str:
        """What the names of a latent layer's convolution begin with."""
        return _at(self.convolutions[0 if layer == 0 else 2 - layer % 2], layer)

    def to_rgb(self, block: int) -> str:
        """What the names of a block's convolution to an image begin with."""
        return _at(self.rgb[min(block, 1)], 2 * block)


def _at(name: str, layer: int) -> str:
    block = (layer + 1) // 2
    return name.format(r=4 << block, b=block, a=block - 1, n=layer, m=layer - 1, c=1 - layer % 2)


def _leaves(
    affine: str, weight: str = "weight", bias: str = "bias", strength: str = "noise_strength"
) -> Json:
    """Names of leaves; the affine layer's weight and bias end alike everywhere."""
    return {
        "affine.weight": f"{affine}weight", "affine.bias": f"{affine}bias",
        "weight": weight, "bias": bias, "noise_strength": strength,
    }  # fmt: skip


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NVIDIA = Layout(
    title="NVIDIA",
    mark=r"synthesis\.b\d+\.(conv[01]|torgb)\.",
    mapping="mapping.fc{}.",
    embed="mapping.embed.",
    mean="mapping.w_avg",
    const="synthesis.b4.const",
    convolutions=("synthesis.b{r}.conv{c}.",) * 3,
    leaves=_leaves("affine."),
    noise="synthesis.b{r}.conv{c}.noise_const",
    blur="synthesis.b{r}.conv0.resample_filter",
    rgb=("synthesis.b{r}.torgb.",) * 2,
    upsample="synthesis.b{r}.resample_filter",
    shortcut="synthesis.b{r}.skip.",
    facts={"style_offset": 0.0, "eps_by_fan_in": False, "filter_gain": 4.0},
    required={"activation": "lrelu", "lr_multiplier": 0.01, "kernel_size": 3},
    harmless=_words(
        "z_dim c_dim w_dim img_resolution img_channels channel_base channel_max num_fp16_res use_fp16 "
        "fp16_channels_last channels_last fused_modconv_default resample_filter conv_clamp use_noise "
        "w_avg_beta num_layers embed_features layer_features num_ws architecture"
    ),
    unused=(r"synthesis\.b\d+\.(conv1\.)?resample_filter",),
)
ROSINALITY = Layout(
    title="rosinality",
    mark=r"(convs\.\d+|conv1|to_rgbs\.\d+|to_rgb1)\.conv\.modulation\.",
    mapping="style.{}.",
    first_mapping=1,
    mean="latent_avg",
    const="input.input",
    convolutions=("conv1.", "convs.{m}.", "convs.{m}."),
    leaves=_leaves("conv.modulation.", "conv.weight", "activate.bias", "noise.weight"),
    noise="noises.noise_{n}",
    blur="convs.{m}.conv.blur.kernel",
    rgb=("to_rgb1.", "to_rgbs.{a}."),
    upsample="to_rgbs.{a}.upsample.kernel",
    weights=(lambda t: t.squeeze(0), lambda t: t.squeeze(0).transpose(0, 1)),
    rgb_weight=lambda t: t.squeeze(0).flatten(1),
    facts={"style_offset": 0.0, "eps_by_fan_in": True, "filter_gain": 1.0},
)
GENFORCE = Layout(
    title="genforce",
    mark=r"synthesis\.(output\d+\.style\.|early_layer\.|layer\d+\.noise_strength)",
    mapping="mapping.dense{}.",
    embed="mapping.LabelEmbed.",
    mean="truncation.w_avg",
    const="synthesis.early_layer.const",
    convolutions=("synthesis.layer{n}.",) * 3,
    leaves=_leaves("style."),
    noise="synthesis.layer{n}.noise",
    blur="synthesis.layer{n}.filter.kernel",
    rgb=("synthesis.output{b}.",) * 2,
    upsample="synthesis.upsample.kernel",
    weights=(_same, lambda t: t.flip(2, 3).transpose(0, 1)),
    taps=lambda t: _plane(t).flip(0, 1),
    facts={"style_offset": 1.0, "eps_by_fan_in": True, "filter_gain": 1.0},
    refused={
        r"mapping\.label_weight": "classes (label_size)",
        r"synthesis\.early_layer\.(weight|bias)": "a first layer that reads w (const_input=False)",
    },
)
TENSORFLOW = Layout(
    title="TensorFlow",
    mark=r"G_synthesis/(\d+x\d+/(Conv|Conv0_up|Conv1|ToRGB)|ToRGB_lod\d+)/mod_(weight|bias)",
    mapping="G_mapping/Dense{}/",
    embed="G_mapping/LabelEmbed/",
    mean="dlatent_avg",
    const="G_synthesis/4x4/Const/const",
    convolutions=("G_synthesis/4x4/Conv/", "G_synthesis/{r}x{r}/Conv0_up/", "G_synthesis/{r}x{r}/Conv1/"),
    leaves=_leaves("mod_"),
    noise="G_synthesis/noise{n}",
    rgb=("G_synthesis/{r}x{r}/ToRGB/",) * 2,
    shortcut="G_synthesis/{r}x{r}/Skip/",
    weights=(lambda t: t.permute(3, 2, 0, 1), lambda t: t.flip(0, 1).permute(2, 3, 0, 1)),
    rgb_weight=lambda t: t.permute(3, 2, 0, 1).flatten(1),
    matrix=lambda t: t.permute(1, 0),
    facts={"style_offset": 1.0, "eps_by_fan_in": True, "filter_gain": 4.0},
    required={
        "nonlinearity": "lrelu", "mapping_nonlinearity": "lrelu", "mapping_lrmul": 0.01,
        "normalize_latents": True,
    },
    harmless=_words(
        "unchecked latent_size label_size dlatent_size resolution num_channels fmap_base fmap_decay fmap_min "
        "fmap_max num_fp16_res conv_clamp resample_kernel use_noise mapping_layers mapping_fmaps label_fmaps "
        "w_avg_beta dlatent_avg_beta truncation_psi truncation_cutoff style_mixing_prob randomize_noise "
        "structure conditioning fused_modconv dtype architecture"
    ),
    refused={
        r"G_mapping/LabelConcat/.*": "classes that are joined to z before it is normalised (LabelConcat)",
        r"G_synthesis/ToRGB_lod\d+/.*": "the progressively grown synthesis network (ToRGB_lod)",
        r"G_synthesis/4x4/Dense/.*": "a first layer that reads w (4x4/Dense)",
    },
)  # fmt: skip
LAYOUTS = (NVIDIA, ROSINALITY, GENFORCE, TENSORFLOW)


def layout_of(checkpoint: Checkpoint) -> Layout | None:
    """The layout that a checkpoint's names are in; None if they are those of no StyleGAN2."""
    for layout in LAYOUTS:
        if any(re.match(layout.mark, name) for name in checkpoint.tensors):
            return layout
    return None


@dataclass(frozen=True)
class Outline:
    """What the names of a file's tensors say, even where some are missing.

    Attributes:
        blocks: Number of resolutions, 4x4 being the first.
        mapping: Depth of the mapping network.
        classes: Whether it embeds classes.
        architecture: "skip", "resnet" or "orig".
        use_noise: Whether its convolutions have noise.
        mean: Whether there is an average w.
        noises: Whether the noise itself is there, if it has any.
        filters: Whether resampling filters are there.
    """

    blocks: int
    mapping: int
    classes: bool
    architecture: str
    use_noise: bool
    mean: bool
    noises: bool
    filters: bool


def outline_of(layout: Layout, checkpoint: Checkpoint) -> Outline:
    """Read the architecture from the names."""
    names = list(checkpoint.tensors)

    def holds(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    blocks = 1
    while blocks < _MAX_BLOCKS and any(
        holds(prefix)
        for prefix in (*map(layout.convolution, (2 * blocks - 1, 2 * blocks)), layout.to_rgb(blocks))
    ):
        blocks += 1
    mapping = 0
    while holds(layout.mapping.format(layout.first_mapping + mapping)):
        mapping += 1
    shortcuts = layout.shortcut and any(holds(_at(layout.shortcut, 2 * block)) for block in range(1, blocks))
    images = blocks == 1 or any(holds(layout.to_rgb(block)) for block in range(blocks - 1))
    return Outline(
        blocks=blocks,
        mapping=mapping,
        classes=bool(layout.embed) and holds(layout.embed),
        architecture="resnet" if shortcuts else "skip" if images else "orig",
        use_noise=any(name.endswith(layout.leaves["noise_strength"]) for name in names),
        mean=layout.mean in checkpoint.tensors,
        # The oldest files of rosinality's own are from before noise was a buffer.
        noises=layout is not ROSINALITY or holds("noises."),
        filters=any(name.endswith(("resample_filter", ".kernel")) for name in names),
    )


def sources_of(layout: Layout, outline: Outline) -> dict[str, Source]:
    """Where each tensor of a `StyleGan2` stands in a file, but for the average w.

    Noise and filters are no parameters, so some files lack them: what all of a file lacks is left out.
    """
    sources: dict[str, Source] = {"stages.0.const": (layout.const, lambda t: t.reshape(1, *t.shape[-3:]))}
    for index in range(outline.mapping):
        name = layout.mapping.format(layout.first_mapping + index)
        sources |= _linear(layout, f"mapping_network.layers.{index}", f"{name}weight", f"{name}bias")
    if outline.classes:
        name = layout.embed
        sources |= _linear(layout, "mapping_network.embed", f"{name}weight", f"{name}bias")
    for layer in range(2 * outline.blocks - 1):
        sources |= _convolution(layout, layer, outline.use_noise)
    for block in range(outline.blocks):
        stage = f"stages.{2 * block + 1}"
        if outline.architecture == "skip" or block == outline.blocks - 1:
            sources |= _rgb(layout, f"{stage}.rgb", layout.to_rgb(block))
        if outline.architecture == "skip" and block and layout.upsample:
            sources[f"{stage}.upsample.taps"] = (_at(layout.upsample, 2 * block), layout.taps)
        if outline.architecture == "resnet" and block:
            # The shortcut to a block starts in the stage that doubles the one before.
            name, shortcut = _at(layout.shortcut, 2 * block), f"stages.{2 * block - 1}.shortcut"
            sources[f"{shortcut}.weight"] = (f"{name}weight", layout.weights[0])
            if layout.upsample:
                sources[f"{shortcut}.upsample.taps"] = (f"{name}resample_filter", layout.taps)
    lacking = [leaf for leaf, held in ((".noise", outline.noises), (".taps", outline.filters)) if not held]
    return {target: source for target, source in sources.items() if not target.endswith(tuple(lacking))}


def mean_of(layout: Layout, layers: int, w_dim: int) -> dict[str, Source]:
    """Where the average w stands: one for all layers `[w_dim]`, or one for each `[layers * w_dim]`."""
    return {"latent_mean": (layout.mean, lambda t: t.reshape(-1, w_dim).expand(layers, -1))}


def _linear(layout: Layout, target: str, weight: str, bias: str) -> dict[str, Source]:
    return {f"{target}.weight": (weight, layout.matrix), f"{target}.bias": bias}


def _affine(layout: Layout, target: str, name: str) -> dict[str, Source]:
    weight, bias = (name + layout.leaves[leaf] for leaf in ("affine.weight", "affine.bias"))
    return _linear(layout, f"{target}.affine", weight, bias)


def _convolution(layout: Layout, layer: int, use_noise: bool) -> dict[str, Source]:
    target, name, doubling = f"stages.{layer}.convolution", layout.convolution(layer), layer % 2
    sources = _affine(layout, target, name)
    sources[f"{target}.weight"] = (name + layout.leaves["weight"], layout.weights[doubling])
    sources[f"{target}.bias"] = name + layout.leaves["bias"]
    if use_noise:
        sources[f"{target}.noise_strength"] = (
            name + layout.leaves["noise_strength"],
            lambda t: t.reshape(()),
        )
        sources[f"{target}.noise"] = (_at(layout.noise, layer), _plane)
    if doubling and layout.blur:
        sources[f"{target}.blur.taps"] = (_at(layout.blur, layer), layout.taps)
    return sources


def _rgb(layout: Layout, target: str, name: str) -> dict[str, Source]:
    return {
        **_affine(layout, target, name),
        f"{target}.weight": (name + layout.leaves["weight"], layout.rgb_weight),
        f"{target}.bias": (f"{name}bias", lambda t: t.flatten()),
    }
