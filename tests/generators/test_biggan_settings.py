"""What stands beside BigGAN's weights, or follows from them unsaid: settings, epsilons, where z is cut."""

from pathlib import Path

import pytest
import torch

from fastdirs.errors import CheckpointError, UnknownNameError
from fastdirs.loading import load_generator, save_generator
from tests.generators.test_biggan import NETS, Net, State, assert_same, saved, state_of

# What the original would have written beside the weights of `Net()`.
SETTINGS: dict[str, object] = {
    "resolution": 32, "n_classes": 5, "hier": True, "G_shared": True, "shared_dim": 6, "dim_z": 16, "G_ch": 4,
    "z_var": 1.0,
}  # fmt: skip


def test_settings_beside_the_weights_are_used(tmp_path: Path) -> None:
    net, settings = Net(), {**SETTINGS, "SN_eps": 0.5, "BN_eps": 0.01, "G_nl": "inplace_relu"}
    state = state_of(net)
    generator = load_generator(saved(tmp_path, state, settings))
    assert generator.provenance.assumed == ("z_bound=none",)
    assert generator.provenance.name == tmp_path.name
    assert_same(generator, net, state, 0.5, 0.01)
    assert_same(load_generator(tmp_path, options={"bn_eps": "0.1"}), net, state, 0.5, 0.1)


def _bigbigan(state: State, sign: str) -> State:
    if sign == "no sv0":
        return {name: tensor for name, tensor in state.items() if not name.endswith("sv0")}
    if sign == "sv0 of ones":
        return {name: torch.ones(1) if name.endswith("sv0") else t for name, t in state.items()}
    return {**state, "shared.weight": state["shared.weight"][:1].repeat(5, 1)}


@pytest.mark.parametrize("sign", ["no sv0", "sv0 of ones", "classes all alike"])
def test_bigbigan_is_told_by_what_it_lacks(sign: str, tmp_path: Path) -> None:
    net = Net()
    state = _bigbigan(state_of(net), sign)
    generator = load_generator(saved(tmp_path, state))
    assert generator.provenance.assumed == ("sn_eps=0.0001", "bn_eps=0.0001", "z_bound=none")
    assert_same(generator, net, state, 1e-4, 1e-4)


def test_one_class_is_not_alike_to_others(tmp_path: Path) -> None:
    generator = load_generator(saved(tmp_path, state_of(NETS["one class"])))
    assert generator.config["bn_eps"] == 1e-5


def test_where_z_is_cut_is_an_option_also_of_saved_files(tmp_path: Path) -> None:
    path = saved(tmp_path, state_of(Net()))
    generator = load_generator(path)
    assert generator.z_bound is None
    assert "z_bound=none" in generator.provenance.assumed
    cut = load_generator(path, options={"z_bound": "2"})
    assert cut.provenance.assumed == ("sn_eps=1e-06", "bn_eps=1e-05")
    assert cut.z_bound == 2.0
    assert cut.sample(range(64)).abs().max() <= 2
    save_generator(generator, tmp_path / "copy.safetensors")
    again = load_generator(tmp_path / "copy.safetensors", options={"z_bound": "2"})
    assert again.identity() == {**cut.identity(), "config_sha256": again.identity()["config_sha256"]}
    with pytest.raises(UnknownNameError, match="z_bound"):
        load_generator(path, options={"z_bound": "3"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"G_param": "none"}, "G_param=none.*Expected SN"),
        ({"norm_style": "in"}, "norm_style=in"),
        ({"G_nl": "leaky_relu"}, "G_nl=leaky_relu.*relu or inplace_relu"),
        ({"model": "BigGANdeep"}, "model=BigGANdeep"),
        ({"SN_eps": "much"}, "sn_eps='much' is out of range"),
        ({"BN_eps": [1]}, "bn_eps"),
        ({"z_var": 0.5}, "z_var=0.5, which fastdirs does not build.*Expected 1.0"),
        (
            {"cross_replica": True},
            "cross_replica=True.* adds the gain .* --generator package.module:function",
        ),
        ({"SN_eps": 0}, "sn_eps='0' is out of range. Expected a number from 1e-12"),
        ({"BN_eps": 0.0}, "bn_eps='0.0' is out of range"),
    ],
)
def test_settings_of_other_variants_are_refused(settings: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_generator(saved(tmp_path, state_of(Net()), settings))


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("resolution", 64, 32), ("n_classes", 1000, 5), ("hier", False, True), ("G_shared", False, True),
        ("shared_dim", 128, 6), ("shared_dim", 0, 6), ("dim_z", 120, 16), ("dim_z", "16", 16),
        ("G_ch", 96, 4),
    ],
)  # fmt: skip
def test_settings_of_other_weights_are_refused(
    setting: str, value: object, told: object, tmp_path: Path
) -> None:
    path = saved(tmp_path, state_of(Net()), {**SETTINGS, setting: value})
    with pytest.raises(CheckpointError, match=f"says {setting}={value!r}, .* those of {setting}={told!r}"):
        load_generator(path)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        # The original uses 4 * (19 // 4) of it.
        ("usual", {"dim_z": 19}),
        ("z only at the start", {"hier": False, "dim_z": 9}),
        # 0 stands for the size of z; where nothing is shared, no size of it is looked at.
        ("as wide as z", {"shared_dim": 0, "dim_z": 16}),
        ("table per norm", {"G_shared": False, "shared_dim": 128, "hier": False, "dim_z": 9}),
    ],
)
def test_settings_mean_what_the_original_makes_of_them(
    name: str, settings: dict[str, object], tmp_path: Path
) -> None:
    nets = {**NETS, "as wide as z": Net(shared_dim=16)}
    generator = load_generator(saved(tmp_path, state_of(nets[name]), {**SETTINGS, **settings}))
    assert generator.config["dim"] == nets[name].dim
