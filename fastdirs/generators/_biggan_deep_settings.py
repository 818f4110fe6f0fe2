"""BigGAN-deep's config.json: which blocks double the size, and whether the rest is true of the tensors."""

from itertools import pairwise

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError
from fastdirs.generators._layout import check_settings
from fastdirs.manifest import Json

# The networks published with the paper, by their widths in units of the narrowest. In each of them every
# second block doubles the size, and attention comes before block 8.
_PUBLISHED_WIDTHS = {
    "biggan-deep-128": [16, 16, 16, 16, 8, 8, 4, 4, 2, 2, 1],
    "biggan-deep-256": [16, 16, 16, 16, 8, 8, 8, 8, 4, 4, 2, 2, 1],
    "biggan-deep-512": [16, 16, 16, 16, 8, 8, 8, 8, 4, 4, 2, 2, 1, 1, 1],
}
_PUBLISHED_ATTENTION = 8


def doubling_blocks(
    checkpoint: Checkpoint, widths: list[int], attention: int | None, assumed: list[str]
) -> list[bool]:
    """Which blocks double the size: by config.json, else as in the published network of these widths.

    Args:
        checkpoint: With its settings.
        widths: Channels of the first features and after each block, by the tensors.
        attention: The block that self-attention comes before.
        assumed: Where to note the published network, if the settings say nothing.

    Raises:
        CheckpointError: The settings are of another network, or there are none and it is no published one.
    """
    published = _published(widths, attention)
    if "layers" in checkpoint.settings:
        return _said(checkpoint, widths, published)
    if not published:
        raise CheckpointError(
            f"{checkpoint.path} does not say which of its {len(widths) - 1} blocks double the size, and it "
            f"is none of {', '.join(_PUBLISHED_WIDTHS)}. Name the folder, which holds config.json."
        )
    assumed.append(f"layers={published}")
    return _every_second(len(widths) - 1)


def _published(widths: list[int], attention: int | None) -> str:
    """Name of the published network of these widths, whatever its narrowest; empty if there is none."""
    units = [width / widths[-1] for width in widths]
    names = [name for name, published in _PUBLISHED_WIDTHS.items() if units == published]
    return names[0] if names and attention == _PUBLISHED_ATTENTION else ""


def _every_second(blocks: int) -> list[bool]:
    return [index % 2 == 1 for index in range(blocks)]


def _said(checkpoint: Checkpoint, widths: list[int], published: str) -> list[bool]:
    """Which blocks double the size, out of the settings."""
    path, blocks = checkpoint.path, len(widths) - 1
    layers = checkpoint.settings["layers"]
    entries = layers if isinstance(layers, list) else []
    found = [entry for entry in entries if isinstance(entry, list | tuple) and len(entry) == 3]
    doubles = [entry[0] for entry in found]
    if len(found) != blocks or any(not isinstance(flag, bool) for flag in doubles):
        raise CheckpointError(
            f"{path} has {blocks} blocks, but 'layers' in its config.json names {len(found)} as "
            "[doubles, in, out]. They belong to different networks: put the right ones together."
        )
    last = found[-1][2]
    unit = max(1, widths[-1] // last) if isinstance(last, int) and last > 0 else widths[-1]
    steps = zip(doubles, pairwise(widths), strict=True)
    wanted = [[flag, before // unit, after // unit] for flag, (before, after) in steps]
    check_settings(checkpoint, {"layers": wanted, "channel_width": unit})
    # Flags leave no trace in shapes. But blocks drop channels where they double, in every network known.
    drops = [after < before for before, after in pairwise(widths)]
    pairs = set(zip(drops, doubles, strict=True))
    inverted = {(True, False), (False, True)} <= pairs
    if inverted or (published and doubles != _every_second(blocks)):
        rule = f"every second one does, as in {published}" if published else "those that drop channels do"
        raise CheckpointError(
            f"{path} says layers={layers!r}, whose flags are not those of its blocks. Expected that {rule}: "
            "take config.json from where the weights come from."
        )
    return doubles


def check_architecture(checkpoint: Checkpoint, config: Json, resolution: int) -> None:
    """Refuse settings that are not those of the tensors beside them.

    Args:
        checkpoint: With its settings.
        config: What the tensors say, as in the family's `Architecture`.
        resolution: Of the images, in pixels.

    Raises:
        CheckpointError: A setting has another value.
    """
    attention = config["attention"]
    said = checkpoint.settings.get("attention_layer_position")
    # The original puts no attention anywhere if no block has this number.
    if attention is None and isinstance(said, int) and not 0 <= said < len(config["doubles"]):
        attention = said
    check_settings(checkpoint, {
        "output_dim": resolution, "z_dim": config["z_dim"], "num_classes": config["classes"],
        "n_stats": config["rows"], "attention_layer_position": attention,
    })  # fmt: skip
