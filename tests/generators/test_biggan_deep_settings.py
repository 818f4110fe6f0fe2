"""What config.json says beside BigGAN-deep's weights, and what is known of them without it."""

from itertools import pairwise
from pathlib import Path

import pytest

from fastdirs.errors import CheckpointError
from fastdirs.loading import load_generator
from tests.generators.test_biggan_deep import PUBLISHED, Net, loaded, saved, state_of


def test_settings_and_options(tmp_path: Path) -> None:
    generator = loaded(tmp_path, Net())
    assert (generator.provenance.name, generator.provenance.assumed) == (tmp_path.name, ())
    assert load_generator(tmp_path, options={"eps": "0.5"}).config["eps"] == 0.5
    for eps in ("2", "0", "1e-13"):
        with pytest.raises(CheckpointError, match=f"eps='{eps}' is out of range"):
            load_generator(tmp_path, options={"eps": eps})


def test_no_epsilon_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"eps='0' is out of range. Expected a number from 1e-12 to 1"):
        load_generator(saved(tmp_path, state_of(Net()), {**Net().config(), "eps": 0}))


def test_weights_alone_of_an_unpublished_network(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"which of its 4 blocks double.*Name the folder, which holds conf"
    ):
        load_generator(saved(tmp_path, state_of(Net())))


@pytest.mark.parametrize("layers", [5, [[True, 4, 4]], [[1, 4, 4]] * 4, [[]] * 4, "4444"])
def test_settings_of_another_network(layers: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has 4 blocks, but 'layers' in its"):
        load_generator(saved(tmp_path, state_of(Net()), {**Net().config(), "layers": layers}))


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("output_dim", 32, 16), ("z_dim", 128, 6), ("num_classes", 1000, 5), ("n_stats", 51, 11),
        ("channel_width", 128, 16), ("attention_layer_position", 8, 2), ("attention_layer_position", None, 2),
        ("layers", [[False, 4, 4], [True, 4, 4], [True, 4, 1], [False, 1, 1]], ".*4, 2.*2, 1.*"),
    ],
)  # fmt: skip
def test_settings_of_other_weights_are_refused(
    setting: str, value: object, told: object, tmp_path: Path
) -> None:
    path = saved(tmp_path, state_of(Net()), {**Net().config(), setting: value})
    with pytest.raises(CheckpointError) as caught:
        load_generator(path)
    assert f"says {setting}={value!r}, but its tensors are those of {setting}=" in str(caught.value)
    assert f"{setting}={told}." in str(caught.value) or setting == "layers"


def test_attention_at_a_block_that_there_is_not_is_none(tmp_path: Path) -> None:
    net = Net(attention=None)
    path = saved(tmp_path, state_of(net), {**net.config(), "attention_layer_position": 4})
    assert load_generator(path).config["attention"] is None


def test_another_number_of_doublings_than_the_size_says(tmp_path: Path) -> None:
    layers = [[False, 4, 4], [True, 4, 2], [True, 2, 1], [True, 1, 1]]
    path = saved(tmp_path, state_of(Net()), {**Net().config(), "layers": layers})
    with pytest.raises(
        CheckpointError, match="says output_dim=16, but its tensors are those of output_dim=32"
    ):
        load_generator(path)


@pytest.mark.parametrize("flags", [(True, False, False, True), (True, True, False, False)])
def test_inverted_flags(flags: tuple[bool, ...], tmp_path: Path) -> None:
    """As many doublings as output_dim asks for, but of other blocks than those that drop channels."""
    layers = [[flag, *layer[1:]] for flag, layer in zip(flags, Net().layers, strict=True)]
    path = saved(tmp_path, state_of(Net()), {**Net().config(), "layers": layers})
    with pytest.raises(CheckpointError, match="Expected that those that drop channels do"):
        load_generator(path)


def test_flags_of_a_published_network(tmp_path: Path) -> None:
    """Blocks 0 and 1 both keep their channels: nothing but the publication says which of them doubles."""
    widths = PUBLISHED["biggan-deep-128"]
    steps = [[i % 2 == 1, *pair] for i, pair in enumerate(pairwise(widths))]
    net = Net(layers=tuple(map(tuple, steps)), width=4, attention=8, rows=2)
    assert load_generator(saved(tmp_path, state_of(net), net.config())).img_resolution == 128
    steps[0][0], steps[1][0] = True, False
    with pytest.raises(CheckpointError, match="every second one does, as in biggan-deep-128"):
        load_generator(saved(tmp_path, state_of(net), {**net.config(), "layers": steps}))
