import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fastdirs
from fastdirs.checkpoints.safetensors_file import HEADER, read_safetensors
from fastdirs.directions import DirectionBank
from fastdirs.errors import CheckpointError, ContractError, OutputError, SelectionError, UnknownNameError
from fastdirs.generators import GENERATORS, Generator, Provenance
from fastdirs.latents import sample_z
from fastdirs.loading import load_generator, save_generator
from fastdirs.manifest import Json
from fastdirs.module_generator import ModuleGenerator
from fastdirs.zoo import ZOO

STYLEGAN2: Json = {"z_dim": 12, "w_dim": 12, "channels": [8, 8, 6], "mapping_widths": [12, 12]}
BIGGAN: Json = {
    "widths": [24, 24, 16, 16], "bottom": 4, "channels": 3, "attention": [1], "classes": 5, "shared_dim": 8,
    "dim": 4, "hier": True, "sn_eps": 1e-6, "bn_eps": 1e-5,
}  # fmt: skip
OWN = """
import torch
from pathlib import Path
from torch import nn
from fastdirs.generators.toy import Toy

class Net(nn.Module):
    def __init__(self, path=None, z_dim=6):
        super().__init__()
        self.z_dim = z_dim
        self.layer = nn.Linear(z_dim, 3 * 64)
        if path is not None:
            assert isinstance(path, Path)
            self.load_state_dict(torch.load(path, weights_only=True))

    def forward(self, z):
        return self.layer(z).tanh().unflatten(1, (3, 8, 8))

def make():
    return Net()

def from_path(path):
    return Net(path)

def toy():
    return Toy(16).train()

def number():
    return 3

def discriminator():
    return nn.Conv2d(3, 1, 4)

def poisoned():
    net = Net()
    net.layer.weight.data[0] = float("nan")
    return net

constant = 5
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's own, in the folder where the command is run."""
    name = "fastdirs_test_own_generator"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    path = list(sys.path)
    yield name
    assert sys.path == path, "the search path is left as it was"
    sys.modules.pop(name, None)


@pytest.fixture
def saved(toy: Generator, tmp_path: Path) -> Path:
    save_generator(toy, tmp_path / "saved.safetensors")
    return tmp_path / "saved.safetensors"


def test_a_family_without_weights_is_loaded_by_name() -> None:
    toy = load_generator("toy", options={"resolution": "16", "z_dim": "9"})
    assert (toy.family, toy.img_resolution, toy.z_dim) == ("toy", 16, 9)
    assert fastdirs.load_generator("toy").img_resolution == 64


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"resolutoin": "16"}, UnknownNameError, "Did you mean 'resolution'"),
        ({"resolution": "big"}, CheckpointError, "Expected whole numbers"),
        ({"resolution": "0"}, SelectionError, "out of range"),
        ({"z_dim": "4"}, SelectionError, "out of range"),
        ({"z_dim": "100000000"}, SelectionError, "out of range"),
    ],
)
def test_bad_options_of_the_toy(options: dict[str, str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_generator("toy", options=options)


@pytest.mark.parametrize("name", ZOO.names())
def test_a_zoo_generator_that_was_not_pulled_names_the_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"fastdirs pull {name}"):
        load_generator(name)


def test_a_zoo_generator_that_was_pulled(
    toy: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save_generator(toy, tmp_path / "fastdirs" / "zoo" / "celeba-faces-64.safetensors")
    assert load_generator("celeba-faces-64").weights_sha256 == toy.weights_sha256


@pytest.mark.parametrize(("name", "nearest"), [("celeba-face-64", "celeba-faces-64"), ("tyo", "toy")])
def test_a_misspelt_name_gets_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean '{nearest}'"):
        load_generator(name)


@pytest.mark.parametrize("source", ["absent.pt", "some/where", "./absent", "/absent:x"])
def test_a_path_that_does_not_exist(source: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_generator(source)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        load_generator(tmp_path)


def test_a_bank_is_no_generator(toy_bank: DirectionBank, tmp_path: Path) -> None:
    toy_bank.save(tmp_path / "bank.safetensors")
    with pytest.raises(CheckpointError, match="is a fastdirs direction-bank, not a generator"):
        load_generator(tmp_path / "bank.safetensors")


@pytest.mark.parametrize(("family", "options"), [("dcgan", None), (None, {"eps": "1"})])
def test_own_file_has_its_settings_already(
    family: str | None, options: dict[str, str] | None, saved: Path
) -> None:
    with pytest.raises(CheckpointError, match="holds a toy with all its settings"):
        load_generator(saved, family, options)


def test_unknown_family_gets_the_nearest(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(UnknownNameError, match="Did you mean 'dcgan'"):
        load_generator(tmp_path / "model.pt", family="dcgna")


def test_a_family_that_reads_no_files(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="Family toy reads no files"):
        load_generator(tmp_path / "model.pt", family="toy")


def test_a_format_that_the_family_is_not_read_from(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="is a torch_file, which family onnx_graph is not read from"):
        load_generator(tmp_path / "model.pt", family="onnx_graph")


def test_save_writes_the_manifest_beside_it(toy: Generator, tmp_path: Path) -> None:
    content = save_generator(toy, tmp_path / "toy.safetensors", extra={"note": "x"})
    beside = json.loads((tmp_path / "toy.json").read_text())
    assert content["note"] == "x"
    assert beside["generator"] == toy.identity() == content["generator"]
    assert beside["kind"] == "generator"
    assert len(beside["sha256"]) == 64


def test_equal_generators_give_equal_files(toy: Generator, saved: Path, tmp_path: Path) -> None:
    save_generator(load_generator(saved), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_a_changed_weight_is_noticed(saved: Path) -> None:
    tensors, header = read_safetensors(saved)
    tensors["stages.0.hidden.weight"][0, 0] += 1e-6
    save_file(tensors, saved, {HEADER: json.dumps(header)})
    with pytest.raises(CheckpointError, match="was changed after it was written"):
        load_generator(saved)


@pytest.mark.parametrize(
    "change", ["tensor missing", "tensor too many", "config", "no generator", "no provenance"]
)
def test_a_header_that_is_not_true(saved: Path, change: str) -> None:
    tensors, header = read_safetensors(saved)
    if change == "tensor missing":
        del tensors["stages.0.hidden.weight"]
    elif change == "tensor too many":
        tensors["surplus"] = torch.zeros(1)
    elif change == "config":
        header["config"] = {"wings": 2}
    else:
        del header[change.removeprefix("no ")]
    save_file(tensors, saved, {HEADER: json.dumps(header)})
    with pytest.raises(CheckpointError, match="does not hold what its header says") as caught:
        load_generator(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "config", "header"),
    [
        ("sngan", {"z_dim": 8, "widths": [8, 8, 6], "img_channels": 3, "eps": 1e-5}, {"widths": []}),
        (
            "sngan",
            {"z_dim": 8, "widths": [8, 8, 6], "img_channels": 3, "eps": 1e-5},
            {"widths": [10**7, 10**7]},
        ),
        ("stylegan2", STYLEGAN2, {"channels": [0]}),
        ("stylegan2", STYLEGAN2, {"mapping_widths": "x"}),
        ("stylegan2", STYLEGAN2, {"channels": [30_000] * 3}),
        ("biggan", BIGGAN, {"widths": [1]}),
        ("biggan", BIGGAN, {"classes": 2**40}),
    ],
)
def test_a_config_that_was_changed_costs_nothing(
    name: str, config: Json, header: Json, tmp_path: Path
) -> None:
    save_generator(GENERATORS.load(name).build(config), tmp_path / "saved.safetensors")
    tensors, content = read_safetensors(tmp_path / "saved.safetensors")
    content["config"] |= header
    save_file(tensors, tmp_path / "saved.safetensors", {HEADER: json.dumps(content)})
    with pytest.raises(CheckpointError, match=r"not hold what its header says|shapes of its tensors ask"):
        load_generator(tmp_path / "saved.safetensors")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_elements_that_no_generator_is_made_of(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save({"main.0.weight": torch.zeros(8, 4, 4, 4).to(dtype)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"holds 'main.0.weight' as .*Save it as float32"):
        load_generator(tmp_path / "model.pt")


def test_an_address_is_no_file() -> None:
    with pytest.raises(CheckpointError, match=r"is an address, not a file. Download it first"):
        load_generator("https://example.org/network.pkl")


def test_a_name_that_is_too_long_for_a_file() -> None:
    with pytest.raises((CheckpointError, UnknownNameError)):
        load_generator("x" * 3000)


def test_a_prefix_before_all_names_is_pointed_out(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    state = {f"module.generator.{name}": tensor for name, tensor in module.state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"All of them begin with 'module.generator.'"):
        load_generator(tmp_path / "model.pt")


def test_a_family_that_this_version_does_not_know(saved: Path) -> None:
    tensors, header = read_safetensors(saved)
    header["generator"]["family"] = "future"
    save_file(tensors, saved, {HEADER: json.dumps(header)})
    with pytest.raises(UnknownNameError, match="no generator family 'future'"):
        load_generator(saved)


def test_save_into_a_file(toy: Generator, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        save_generator(toy, tmp_path / "file" / "toy.safetensors")


def test_a_factory_by_name(own_module: str) -> None:
    generator = load_generator(f"{own_module}:make")
    assert isinstance(generator, ModuleGenerator)
    assert generator.provenance.name == f"{own_module}:make"
    assert generator.synthesis(generator.mapping(sample_z([0], 6))).shape == (1, 3, 8, 8)


def test_a_class_is_a_factory(own_module: str) -> None:
    assert load_generator(f"{own_module}:Net").z_dim == 6


def test_a_factory_with_a_path(own_module: str, tmp_path: Path) -> None:
    weights = nn.Linear(6, 192).state_dict()
    torch.save({f"layer.{name}": tensor for name, tensor in weights.items()}, tmp_path / "own.pt")
    generator = load_generator(tmp_path / "own.pt", factory=f"{own_module}:from_path")
    assert torch.equal(generator.factors()[0].weight, weights["weight"])


def test_a_factory_may_return_a_generator(own_module: str) -> None:
    generator = load_generator(f"{own_module}:toy")
    assert generator.family == "toy"
    assert not generator.training
    assert not [parameter for parameter in generator.parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("attribute", "error", "message"),
    [
        ("number", ContractError, "returned a int. Expected a torch module"),
        ("discriminator", ContractError, "does not say how long its z is"),
        ("constant", ContractError, "has no function 'constant'"),
        ("absent", ContractError, "has no function 'absent'"),
        ("", ContractError, "names no factory. Expected package.module:function"),
        ("from_path", ContractError, "wants the path of a checkpoint. Pass MODEL too"),
        ("poisoned", CheckpointError, "NaN or infinite values"),
    ],
)
def test_wrong_factories(own_module: str, attribute: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_generator(f"{own_module}:{attribute}")


def test_a_factory_that_takes_no_path(own_module: str) -> None:
    with pytest.raises(ContractError, match=r"takes no path. Leave MODEL out"):
        load_generator("model.pt", factory=f"{own_module}:make")


def test_a_factory_in_a_module_that_does_not_exist() -> None:
    with pytest.raises(UnknownNameError, match=r"cannot be imported.*Run from the folder that holds it"):
        load_generator("module_that_nobody_wrote:make")


def test_code_of_the_user_cannot_be_saved(own_module: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="is code, not a file"):
        save_generator(load_generator(f"{own_module}:make"), tmp_path / "own.safetensors")
    assert not (tmp_path / "own.safetensors").exists()


def test_a_factory_may_import_when_it_is_called(own_module: str, tmp_path: Path) -> None:
    (tmp_path / "fastdirs_test_late.py").write_text(
        f"def make():\n    import {own_module} as late\n    return late"
    )
    with pytest.raises(ContractError, match="returned a module"):
        load_generator("fastdirs_test_late:make")
    sys.modules.pop("fastdirs_test_late", None)


@pytest.mark.parametrize(
    ("text", "message"), [("import (", "cannot be imported"), ("from math import nothing", "nothing")]
)
def test_a_module_that_does_not_import(text: str, message: str, own_module: str, tmp_path: Path) -> None:
    (tmp_path / "fastdirs_test_broken.py").write_text(text)
    with pytest.raises(ContractError, match=message):
        load_generator("fastdirs_test_broken:make")


def test_family_and_options_do_not_apply_to_code(own_module: str) -> None:
    with pytest.raises(ContractError, match="is code: family and options do not apply"):
        load_generator(f"{own_module}:make", "dcgan")
    with pytest.raises(CheckpointError, match="toy is a family itself, not dcgan"):
        load_generator("toy", "dcgan")


def test_an_option_that_may_change_is_no_longer_assumed(tmp_path: Path) -> None:
    generator = GENERATORS.load("biggan").build(BIGGAN)
    generator.provenance = Provenance(name="x", assumed=("z_bound=none", "sn_eps=1e-06"))
    save_generator(generator, tmp_path / "saved.safetensors")
    loaded = load_generator(tmp_path / "saved.safetensors", options={"z_bound": "2"})
    assert loaded.z_bound == 2
    assert loaded.provenance.assumed == ("sn_eps=1e-06",)
    assert loaded.weights_sha256 == generator.weights_sha256
