import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastdirs.errors import CheckpointError, FastdirsError, UnknownNameError
from fastdirs.generators import GENERATORS, Generator
from fastdirs.latents import sample_z
from fastdirs.loading import load_generator

Build = Callable[..., nn.Sequential]
State = dict[str, Tensor]


def saved(folder: Path, state: Mapping[str, Tensor]) -> Path:
    torch.save(dict(state), folder / "model.pt")
    return folder / "model.pt"


def load(folder: Path, state: Mapping[str, Tensor], **options: str) -> Generator:
    return load_generator(saved(folder, state), family="dcgan", options=options)


def assert_same_images(generator: Generator, original: nn.Module) -> None:
    z = sample_z(range(3), generator.z_dim)
    expected = original(z[:, :, None, None])
    torch.testing.assert_close(generator.synthesis(generator.mapping(z)), expected, rtol=0, atol=1e-6)


# Naming schemes: the state dict of an nn.Sequential -> the same tensors under other keys.
def _as_it_is(original: nn.Sequential) -> State:
    return original.state_dict()


def _in_a_module(original: nn.Sequential) -> State:
    return {f"module.main.{name}": tensor for name, tensor in original.state_dict().items()}


def _by_attribute(original: nn.Sequential) -> State:
    """`convTr1`, `batchNorm1`, ...: all convolutions first, as in a class whose attributes are listed so."""
    named: State = {}
    for kind, prefix in ((nn.ConvTranspose2d, "convTr"), (nn.BatchNorm2d, "batchNorm")):
        layers = [layer for layer in original if isinstance(layer, kind)]
        for number, layer in enumerate(layers, start=1):
            named |= {f"{prefix}{number}.{name}": tensor for name, tensor in layer.state_dict().items()}
    return named


def _norms_first(original: nn.Sequential) -> State:
    named = _by_attribute(original)
    return dict(sorted(named.items(), key=lambda item: item[0].startswith("conv")))


def _underscores(original: nn.Sequential) -> State:
    return {"g_" + name.replace(".", "_"): tensor for name, tensor in original.state_dict().items()}


def _without_counters(original: nn.Sequential) -> State:
    """As torch before 0.4.1 wrote it."""
    return {k: v for k, v in original.state_dict().items() if not k.endswith("num_batches_tracked")}


def _without_meaning(original: nn.Sequential) -> State:
    return {f"p{number}": tensor for number, tensor in enumerate(original.state_dict().values())}


def _without_meaning_norms_last(original: nn.Sequential) -> State:
    return {f"p{number}": tensor for number, tensor in enumerate(_by_attribute(original).values())}


SCHEMES = [
    _as_it_is, _in_a_module, _by_attribute, _norms_first, _underscores, _without_counters, _without_meaning,
    _without_meaning_norms_last,
]  # fmt: skip
ARCHITECTURES: dict[str, dict[str, object]] = {
    "small": {},
    "grey": {"channels": 1},
    "deep": {"widths": (16, 24, 20, 12, 8, 6)},
    "shallow": {"widths": (5, 4)},
    "with bias": {"bias": True},
    "without norms": {"norm_after": ()},
    "norm after all but first and last": {"widths": (8, 12, 10, 6), "norm_after": (1, 2)},
    "norm after every layer": {"norm_after": (0, 1, 2)},
    "other kernels": {"kernels": (7, 2, 6)},
    "wide first kernel": {"kernels": (3, 4, 4)},
}


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.__name__.strip("_"))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_inferred_whatever_the_keys_are_called(
    random_dcgan: Build, tmp_path: Path, scheme: Callable[[nn.Sequential], State], architecture: str
) -> None:
    original = random_dcgan(**ARCHITECTURES[architecture])
    assert_same_images(load(tmp_path, scheme(original)), original)


def test_equal_widths_as_usual(random_dcgan: Build, tmp_path: Path) -> None:
    original = random_dcgan(widths=(8, 8, 8, 8))
    assert_same_images(load(tmp_path, _by_attribute(original)), original)


def test_the_family_is_found_without_being_named(random_dcgan: Build, tmp_path: Path) -> None:
    original = random_dcgan()
    assert_same_images(load_generator(saved(tmp_path, original.state_dict())), original)


def test_safetensors_keeps_no_order(random_dcgan: Build, tmp_path: Path) -> None:
    original = random_dcgan(widths=(16, 24, 20, 12, 8, 6))
    assert "10.weight" in original.state_dict(), (
        "numbers with two digits sort after 2 only when they are counted"
    )
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    assert_same_images(load_generator(tmp_path / "model.safetensors"), original)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_other_precisions_become_float32(random_dcgan: Build, tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in random_dcgan().state_dict().items()}
    generator = load(tmp_path, state)
    assert {p.dtype for p in generator.parameters()} == {torch.float32}
    assert generator.synthesis(torch.zeros(1, 1, 8)).dtype == torch.float32


def test_the_original_layout_of_the_paper(random_dcgan: Build, tmp_path: Path) -> None:
    generator = load(tmp_path, random_dcgan(widths=(10, 16, 8, 4, 4)).state_dict())
    assert (generator.z_dim, generator.num_layers, generator.dim) == (10, 1, 10)
    assert (generator.img_resolution, generator.img_channels) == (64, 3)
    assert len(generator.stages) == 5


def test_what_was_taken_as_usual_is_recorded(random_dcgan: Build, tmp_path: Path) -> None:
    state = random_dcgan().state_dict()
    assert load(tmp_path, state).provenance.assumed == ("activation=relu", "output=tanh", "eps=1e-5")
    settled = load(tmp_path, state, activation="relu", output="tanh", eps="1e-5")
    assert settled.provenance.assumed == ()
    by_order = load(tmp_path, _without_meaning(random_dcgan())).provenance.assumed
    assert "order=weight,bias,running_mean,running_var" in by_order


def test_options_change_the_images(random_dcgan: Build, tmp_path: Path) -> None:
    original = random_dcgan()
    layers = [nn.LeakyReLU(0.2) if isinstance(layer, nn.ReLU) else layer for layer in original]
    assert_same_images(load(tmp_path, original.state_dict(), activation="leaky_relu"), nn.Sequential(*layers))

    class ToRange(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.sigmoid() * 2 - 1

    sigmoid = nn.Sequential(*original[:-1], ToRange())
    assert_same_images(load(tmp_path, original.state_dict(), output="sigmoid"), sigmoid)


def test_eps_is_that_of_the_batch_norms(random_dcgan: Build, tmp_path: Path) -> None:
    original = random_dcgan()
    generator = load(tmp_path, original.state_dict(), eps="0.001")
    for layer in original:
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.001
    assert_same_images(generator, original)


@pytest.mark.parametrize("strides", [(1, 2, 1), (1, 1, 2), (1, 2, 2)])
def test_odd_kernels_leave_a_doubt_that_strides_settle(
    random_dcgan: Build, tmp_path: Path, strides: tuple[int, ...]
) -> None:
    original = random_dcgan(kernels=(4, 5, 3), strides=strides)
    with pytest.raises(
        CheckpointError, match=r"5x5 kernel, which may keep or double the size.*strides=1,2,2"
    ):
        load(tmp_path, original.state_dict())
    text = ",".join(map(str, strides))
    assert_same_images(load(tmp_path, original.state_dict(), strides=text), original)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": "1,2"}, "names 2 layers, but .* has 3"),
        ({"strides": "1,3,2"}, "stride 3 with a 4x4 kernel"),
        ({"strides": "1,1,2"}, "stride 1 with a 4x4 kernel"),
        ({"strides": "1,2,two"}, "is not a list of whole numbers"),
        ({"strides": "1,2,2.5"}, "is not a list of whole numbers"),
        ({"norm_after": "0"}, "norm_after=0 does not fit"),
        ({"norm_after": "0,2"}, "norm_after=0,2 does not fit"),
        ({"norm_after": "1,0"}, "norm_after=1,0 does not fit"),
        ({"norm_after": "0,7"}, "norm_after=0,7 does not fit"),
        ({"norm_after": "first"}, "is not a list of whole numbers"),
        ({"eps": "small"}, "eps='small'"),
        ({"eps": "nan"}, "eps='nan'"),
        ({"eps": "-1"}, "eps='-1'"),
        ({"eps": "0"}, "eps='0' is out of range. Expected a number from 1e-12"),
        ({"eps": "1e-13"}, "eps='1e-13' is out of range"),
    ],
)
def test_bad_option_values(
    random_dcgan: Build, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, random_dcgan().state_dict(), **options)


@pytest.mark.parametrize(
    ("options", "nearest"),
    [({"stride": "1,2,2"}, "strides"), ({"activation": "leaky"}, "leaky_relu"), ({"output": "tahn"}, "tanh")],
)
def test_unknown_options_get_the_nearest_spelling(
    random_dcgan: Build, tmp_path: Path, options: dict[str, str], nearest: str
) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean '{nearest}'"):
        load(tmp_path, random_dcgan().state_dict(), **options)


def test_norms_that_fit_in_several_places_are_asked_about(random_dcgan: Build, tmp_path: Path) -> None:
    original = random_dcgan(widths=(8, 6, 6, 6), norm_after=(0, 2))
    with pytest.raises(
        CheckpointError, match=r"leaves open which layers its 2 batch norms follow.*norm_after=0,1"
    ):
        load(tmp_path, _by_attribute(original))
    assert_same_images(load(tmp_path, _by_attribute(original), norm_after="0,2"), original)


def test_the_order_of_the_file_places_norms_that_widths_do_not(random_dcgan: Build, tmp_path: Path) -> None:
    original = random_dcgan(widths=(8, 6, 6, 6), norm_after=(0, 2))
    generator = load(tmp_path, original.state_dict())
    assert_same_images(generator, original)
    assert "norm_after=0,2" in generator.provenance.assumed


def test_many_equal_layers_do_not_take_for_ever(random_dcgan: Build, tmp_path: Path) -> None:
    strides = [1, 2, *[1] * 28]
    original = random_dcgan(
        widths=[2] * 30, kernels=[3] * 30, strides=strides, norm_after=range(1, 29, 2), channels=3
    )
    with pytest.raises(CheckpointError, match="leaves open"):
        load(tmp_path, _by_attribute(original), strides=",".join(map(str, strides)))


def discriminator() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(6, 12, 4, 2, 1), nn.BatchNorm2d(12),
        nn.LeakyReLU(0.2), nn.Conv2d(12, 1, 4),
    )  # fmt: skip


def classifier() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 10))


def residual() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 3))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (discriminator, "a discriminator or classifier, not a generator"),
        (classifier, "a discriminator or classifier, not a generator"),
        (residual, "is not a DCGAN generator: its kernels"),
        (lambda: nn.Linear(3, 3), "0 convolution weights, too few"),
        (lambda: nn.ConvTranspose2d(3, 3, 4), "1 convolution weights, too few"),
        (
            lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 4), nn.ConvTranspose2d(6, 5, 4)),
            "not a DCGAN generator",
        ),
        (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, (4, 2)), nn.ConvTranspose2d(6, 3, 4)), "not square"),
    ],
)
def test_other_networks_are_refused(tmp_path: Path, network: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, network().state_dict())
    with pytest.raises(CheckpointError, match=message):
        load_generator(saved(tmp_path, network().state_dict()))


def without(state: State, pattern: str) -> State:
    return {name: tensor for name, tensor in state.items() if not re.search(pattern, name)}


@pytest.mark.parametrize("part", ["running_var", "weight", "bias"])
def test_incomplete_batch_norm(random_dcgan: Build, tmp_path: Path, part: str) -> None:
    with pytest.raises(CheckpointError, match=f"incomplete: the batch norm '1' has no '{part}'"):
        load(tmp_path, without(random_dcgan().state_dict(), rf"^1\.{part}"))


def test_a_batch_norm_without_its_mean_is_not_left_out_silently(random_dcgan: Build, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds '1\.\w+', which is no part of a DCGAN"):
        load(tmp_path, without(random_dcgan().state_dict(), r"^1\.running_mean"))


def test_norms_of_a_width_that_no_layer_has(random_dcgan: Build, tmp_path: Path) -> None:
    state = random_dcgan().state_dict()
    state |= {f"1.{part}": torch.ones(77) for part in ("weight", "bias", "running_mean", "running_var")}
    with pytest.raises(CheckpointError, match=r"batch norms of \[77, 10\] channels, which do not fit"):
        load(tmp_path, state)


@pytest.mark.parametrize("name", ["0.bias", "4.running_var", "4.bias"])
def test_vectors_of_the_wrong_length(random_dcgan: Build, tmp_path: Path, name: str) -> None:
    state = {**random_dcgan(bias=True).state_dict(), name: torch.ones(5)}
    with pytest.raises(
        CheckpointError, match=rf"'{name}' of shape \[5\], but its convolution asks for \[1\d\]"
    ):
        load(tmp_path, state)


def test_vectors_without_names_must_read_as_batch_norms(random_dcgan: Build, tmp_path: Path) -> None:
    state = without(_without_meaning(random_dcgan()), "p3")
    with pytest.raises(CheckpointError, match="3 vectors after the kernel 'p0'"):
        load(tmp_path, state)
    negative = _without_meaning(random_dcgan())
    negative["p4"] = -negative["p4"]
    with pytest.raises(CheckpointError, match="do not read as"):
        load(tmp_path, negative)


@pytest.mark.parametrize("extra", ["attention.gamma", "fc.weight", "0.weight_u"])
def test_tensors_that_a_dcgan_does_not_have(random_dcgan: Build, tmp_path: Path, extra: str) -> None:
    with pytest.raises(CheckpointError, match=f"holds '{extra}', which is no part of a DCGAN"):
        load(tmp_path, {**random_dcgan().state_dict(), extra: torch.zeros(7)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "6.weight"])
def test_values_that_are_not_finite(random_dcgan: Build, tmp_path: Path, name: str, value: float) -> None:
    state = {key: tensor.clone() for key, tensor in random_dcgan().state_dict().items()}
    state[name].view(-1)[3] = value
    with pytest.raises(CheckpointError, match=r"NaN or infinite values|such as -inf"):
        load(tmp_path, state)


def test_a_negative_variance(random_dcgan: Build, tmp_path: Path) -> None:
    state = {key: tensor.clone() for key, tensor in random_dcgan().state_dict().items()}
    state["1.running_var"][2] = -1
    with pytest.raises(CheckpointError, match=r"negative values in '1.running_var', such as -1"):
        load(tmp_path, state)


def test_the_part_to_take_is_no_option_of_the_family() -> None:
    """Loading takes "key" before any family sees it."""
    assert "key" not in GENERATORS.load("dcgan").options


def test_spectral_norm_is_not_mistaken_for_something_else(tmp_path: Path) -> None:
    layers = [nn.ConvTranspose2d(6, 5, 4), nn.ReLU(), nn.ConvTranspose2d(5, 3, 4, 2, 1)]
    network = nn.Sequential(*[nn.utils.spectral_norm(x) if hasattr(x, "weight") else x for x in layers])
    with pytest.raises(FastdirsError):
        load(tmp_path, network.state_dict())


def test_the_first_layer_is_what_multiplies_z(random_dcgan: Build, tmp_path: Path) -> None:
    original = random_dcgan()
    (factor,) = load(tmp_path, original.state_dict()).factors()
    z = sample_z([0], 8)
    expected = original[0](z[:, :, None, None]).flatten(1)
    torch.testing.assert_close(z @ factor.weight.T, expected, rtol=0, atol=1e-5)


def test_names_without_numbers_in_a_format_without_order_leave_a_doubt(tmp_path: Path) -> None:
    names = ("a_in", "b_one", "b_two", "c_out")
    sizes = ((8, 16), (16, 16), (16, 16), (16, 3))
    state = {f"{name}.weight": torch.randn(*size, 4, 4) for name, size in zip(names, sizes, strict=True)}
    assert load(tmp_path, state).img_resolution == 32
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"'b_one\.weight' and 'b_two\.weight' comes first"):
        load_generator(tmp_path / "weights.safetensors", "dcgan")


def test_the_identity_covers_what_the_weights_do_not(random_dcgan: Build, tmp_path: Path) -> None:
    state = random_dcgan().state_dict()
    one, other = load(tmp_path, state), load(tmp_path, state, activation="leaky_relu")
    assert one.identity()["weights_sha256"] == other.identity()["weights_sha256"]
    assert one.identity()["config_sha256"] != other.identity()["config_sha256"]
