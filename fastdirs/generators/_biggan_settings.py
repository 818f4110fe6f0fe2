"""BigGAN-PyTorch's settings: which variant a file is of, and whether what is said beside it is true of it."""

import re
from collections.abc import Mapping

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError
from fastdirs.generators._layout import check_settings
from fastdirs.manifest import Json

# What generator_config.json may say of the architecture, and the values that are built here.
_SUPPORTED: Mapping[str, tuple[object, ...]] = {
    "model": ("BigGAN",), "G_param": ("SN",), "norm_style": ("bn",), "mybn": (False,),
    "cross_replica": (False,), "G_nl": ("relu", "inplace_relu"), "G_depth": (1,), "z_var": (1.0,),
}  # fmt: skip
# The same variants, where no settings are at hand, by tensors that only they have.
_SIGNS = {
    ("model", "BigGANdeep"): r"blocks\.\d+\.\d+\.(conv[34]|bn[34])\..*",
    ("mybn", True): r".*\.bn\d?\.bn\.stored_.*|.*\.bn\.accumulation_counter",
    ("cross_replica", True): r".*\.bn\d?\.bn\.running_.*",
}
_REASONS = {
    "cross_replica": "In the original's evaluation mode it adds the gain that training multiplies by. ",
    "z_var": "Its z is drawn with another spread than fastdirs draws. ",
}
# Channels after the last block in units of G_ch, for each resolution that the original knows.
_LAST_WIDTHS = {32: 4, 64: 2, 128: 1, 256: 1, 512: 1}


def check_variant(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError for variants whose pictures would not be the original's."""
    settings = checkpoint.settings
    found = [
        (k, settings[k]) for k, values in _SUPPORTED.items() if k in settings and settings[k] not in values
    ]
    for variant, pattern in _SIGNS.items():
        if any(re.fullmatch(pattern, name) for name in checkpoint.tensors):
            found.append(variant)
    if not any(name.endswith(".u0") for name in checkpoint.tensors):
        found.append(("G_param", "other than SN"))
    if found:
        name, value = found[0]
        raise CheckpointError(
            f"{checkpoint.path} is a BigGAN with {name}={value}, which fastdirs does not build. "
            f"{_REASONS.get(name, '')}Expected {' or '.join(map(str, _SUPPORTED[name]))}: take weights that "
            "were trained so, or wrap the original code with --generator package.module:function."
        )


def usual_eps(checkpoint: Checkpoint) -> dict[str, float]:
    """The epsilons that a file was made with if nobody said: of BigGAN-PyTorch, or of BigBiGAN."""
    # BigBiGAN's weights came from TensorFlow: nobody logged singular values, and its classes are all alike.
    logged = [tensor for name, tensor in checkpoint.tensors.items() if name.endswith(".sv0")]
    rows = checkpoint.tensors.get("shared.weight")
    alike = rows is not None and rows.ndim == 2 and len(rows) > 1 and bool((rows == rows[:1]).all())
    if alike or all(bool((value == 1).all()) for value in logged):
        return {"sn_eps": 1e-4, "bn_eps": 1e-4}
    return {"sn_eps": 1e-6, "bn_eps": 1e-5}


def check_architecture(checkpoint: Checkpoint, config: Json, resolution: int) -> None:
    """Refuse settings that are not those of the tensors beside them.

    Args:
        checkpoint: With its settings.
        config: What the tensors say, as in the family's `Architecture`.
        resolution: Of the images, in pixels.

    Raises:
        CheckpointError: A setting has another value.
    """
    widths, dim, shared_dim = config["widths"], config["dim"], config["shared_dim"]
    said = checkpoint.settings
    chunks = len(widths) if config["hier"] else 1
    told = {
        "resolution": resolution, "n_classes": config["classes"], "hier": config["hier"],
        "G_shared": shared_dim > 0, "dim_z": chunks * dim,
    }  # fmt: skip
    # The original leaves out what cannot be shared out evenly among the chunks.
    if isinstance(said.get("dim_z"), int) and said["dim_z"] // chunks == dim:
        told["dim_z"] = said["dim_z"]
    if resolution in _LAST_WIDTHS:
        told["G_ch"] = widths[-1] // _LAST_WIDTHS[resolution]
    # Without an embedding the original looks at no size of it; 0 stands for the size of z.
    if shared_dim and (said.get("shared_dim") != 0 or said.get("dim_z", shared_dim) != shared_dim):
        told["shared_dim"] = shared_dim
    check_settings(checkpoint, told)
