import os
import pickle
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastdirs.checkpoints import read_checkpoint
from fastdirs.errors import CheckpointError, UnknownNameError

G = {"weight": torch.ones(2, 2)}
D = {"weight": torch.zeros(2, 2)}
CONJUGATE = torch.tensor([1 + 2j]).conj()


class Touch:
    """A pickle of this creates a file when it is loaded without protection."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def saved(tmp_path: Path, content: object) -> Path:
    torch.save(content, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize(
    "kind", ["plain pickle", "torch zip", "torch legacy", "in a state dict", "protocol 4"]
)
def test_a_file_that_wants_to_run_code_is_refused_unrun(tmp_path: Path, kind: str) -> None:
    witness, path = tmp_path / "witness", tmp_path / "model.pt"
    evil = Touch(witness)
    if kind in ("plain pickle", "protocol 4"):
        path.write_bytes(pickle.dumps(evil, protocol=2 if kind == "plain pickle" else 4))
    elif kind == "torch legacy":
        torch.save(evil, path, _use_new_zipfile_serialization=False)
    else:
        torch.save({**G, "extra": evil} if kind == "in a state dict" else evil, path)
    with pytest.raises(CheckpointError, match="so it was refused; nothing was run") as caught:
        read_checkpoint(path)
    assert "weights_only" not in str(caught.value), "torch's own advice is to switch the protection off"
    assert not witness.exists()


def test_the_witness_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Touch(tmp_path / "witness")))
    assert (tmp_path / "witness").exists()


def test_the_refusal_names_what_the_file_asks_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"asks to run \w+\.system when it is read"):
        read_checkpoint(saved(tmp_path, Touch(tmp_path / "witness")))


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_a_whole_pickled_module_is_its_state_dict(tmp_path: Path, new_format: bool) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Sequential(nn.ReLU(), nn.Linear(3, 1)))
    module.register_buffer("kept", torch.ones(2))
    module.register_buffer("dropped", torch.ones(2), persistent=False)
    torch.save(module, tmp_path / "model.pt", _use_new_zipfile_serialization=new_format)
    read, state = read_checkpoint(tmp_path / "model.pt"), module.state_dict()
    assert list(read.tensors) == list(state)
    assert all(torch.equal(read.tensors[key], state[key]) for key in state)
    assert read.settings == {"class_name": "torch.nn.modules.container.Sequential"}
    assert read.foreign == ()


def test_a_module_with_spectral_norm(tmp_path: Path) -> None:
    module = nn.utils.spectral_norm(nn.Linear(2, 3))
    read = read_checkpoint(saved(tmp_path, {"netG": module})).tensors
    assert list(read) == ["bias", "weight_orig", "weight_u", "weight_v"]


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_views_and_shared_storages_stay_so(tmp_path: Path, new_format: bool) -> None:
    base = torch.arange(24.0)
    state = {
        "all": base,
        "turned": base[:12].reshape(3, 4).T,
        "tail": base[20:],
        "empty": base[:0],
        "one": base[5],
    }
    torch.save(state, tmp_path / "model.pt", _use_new_zipfile_serialization=new_format)
    read = read_checkpoint(tmp_path / "model.pt").tensors
    assert all(torch.equal(read[key], state[key]) for key in state)
    assert read["turned"].stride() == (1, 4)
    read["all"][20] = -1
    assert read["tail"][0] == -1


@pytest.mark.parametrize(
    "dtype",
    ["float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64",
     "uint16", "float8_e4m3fn"],
)  # fmt: skip
def test_types_of_elements(tmp_path: Path, dtype: str) -> None:
    tensor = torch.tensor([0, 1, 1, 0, 1]).to(getattr(torch, dtype))
    read = read_checkpoint(saved(tmp_path, {"weight": tensor})).tensors["weight"]
    assert (read.dtype, read.tolist()) == (tensor.dtype, tensor.tolist())


def test_negated_and_conjugated_views_are_refused(tmp_path: Path) -> None:
    # Their storage holds other values than torch.load gives.
    for name, view in (("negated", torch.ones(3, dtype=torch.cfloat).conj().imag), ("conjugated", CONJUGATE)):
        torch.save({**G, name: view}, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match="_rebuild_tensor_v2 is a negated or conjugated view"):
            read_checkpoint(tmp_path / "model.pt")


def test_expanded_tensors_alone(tmp_path: Path) -> None:
    path = saved(tmp_path, {"weight": torch.ones(1).expand(4)})
    with pytest.raises(CheckpointError, match=r"no tensors by name.*is larger than its storage.*contiguous"):
        read_checkpoint(path)


def test_a_state_dict_with_a_default(tmp_path: Path) -> None:
    state: dict[str, torch.Tensor] = defaultdict(list, G)  # type: ignore[arg-type]
    read = read_checkpoint(saved(tmp_path, state))
    assert (list(read.tensors), read.foreign) == (["weight"], ())


def test_genuine_names_are_not_foreign(tmp_path: Path, pickles: Any) -> None:
    read = read_checkpoint(saved(tmp_path, {**G, "classes": [nn.Linear, nn.Conv2d, torch.FloatStorage]}))
    assert read.foreign == ()
    names = [("torch.cuda", "FloatStorage"), ("torch.nn.modules.linear", "Linear"), ("torch.nn.os", "x")]
    content = {"D": [pickles.named(*name) for name in names], "G_ema": G}
    # One that would act is told, whatever it begins with.
    assert read_checkpoint(pickles.write(content)).foreign == ("torch.nn.os.x",)


def test_checksums_that_torch_was_told_not_to_write(tmp_path: Path) -> None:
    program = (
        "import sys, torch; torch.serialization.set_crc32_options(False); "
        "torch.save({'weight': torch.ones(2, 2)}, sys.argv[1])"
    )
    # In a process of its own: torch keeps to it whatever it is told afterwards.
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "model.pt")], check=True)
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        assert {info.CRC for info in archive.infolist()} == {0}
    assert torch.equal(read_checkpoint(tmp_path / "model.pt").tensors["weight"], G["weight"])


def test_only_what_is_taken_is_read_from_the_disk(tmp_path: Path) -> None:
    # The discriminator's bytes are damaged, which nobody notices who does not take it.
    discriminator = {"weight": torch.full((1000,), 7.25)}
    path = saved(tmp_path, {"g_ema": G, "d": discriminator})
    data = path.read_bytes()
    place = data.index(discriminator["weight"].numpy().tobytes())
    path.write_bytes(data[:place] + b"\xff" + data[place + 1 :])
    assert torch.equal(read_checkpoint(path).tensors["weight"], G["weight"])
    with pytest.raises(CheckpointError, match="checksum differs"):
        read_checkpoint(path, key="d")


def test_the_mean_latent_beside_the_averaged_generator(tmp_path: Path) -> None:
    path = saved(tmp_path, {"g": D, "g_ema": G, "latent_avg": torch.ones(4), "args": Namespace(size=64)})
    read = read_checkpoint(path)
    assert (read.part, read.parts, read.settings) == ("g_ema", ("", "g", "g_ema"), {"args": {"size": 64}})
    assert list(read.tensors) == ["weight", "latent_avg"]
    assert list(read_checkpoint(path, key="g").tensors) == ["weight"]


def test_a_file_of_a_discriminator_alone(tmp_path: Path) -> None:
    path = saved(tmp_path, {"netD": D, "optimizer": {"x": D}})
    with pytest.raises(CheckpointError, match="holds only netD, which is no generator"):
        read_checkpoint(path)
    assert torch.equal(read_checkpoint(path, key="netD").tensors["weight"], D["weight"])


def test_a_discriminator_is_never_taken_unasked(tmp_path: Path) -> None:
    path = saved(tmp_path, {"models": {"discriminator": D, "my_net": G}, "optimizers": {"x": {"y": D}}})
    read = read_checkpoint(path)
    assert (read.part, read.parts) == ("models.my_net", ("models.discriminator", "models.my_net"))
    assert torch.equal(read_checkpoint(path, key="models.discriminator").tensors["weight"], D["weight"])


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_tensors_keep_names_order_values_and_types(tmp_path: Path, new_format: bool) -> None:
    state = {"z.last": torch.ones(2), "a.first": torch.arange(3), "half": torch.ones(1, dtype=torch.bfloat16)}
    torch.save(state, tmp_path / "model.pt", _use_new_zipfile_serialization=new_format)
    read = read_checkpoint(tmp_path / "model.pt").tensors
    assert list(read) == list(state)
    assert all(torch.equal(read[key], state[key]) and read[key].dtype == state[key].dtype for key in state)


def test_things_beside_the_tensors_are_left_out(tmp_path: Path) -> None:
    read = read_checkpoint(saved(tmp_path, {**G, "epoch": 3, "note": "x", "losses": [1.0]})).tensors
    assert list(read) == ["weight"]


@pytest.mark.parametrize(
    "key", ["G_ema", "g_ema", "generator_smooth", "netG_state_dict", "netG", "generator"]
)
def test_the_generator_is_preferred(tmp_path: Path, key: str) -> None:
    read = read_checkpoint(saved(tmp_path, {"discriminator": D, key: G, "optimizer": {"step": 1}}))
    assert torch.equal(read.tensors["weight"], G["weight"])


def test_the_averaged_generator_comes_before_the_raw_one(tmp_path: Path) -> None:
    read = read_checkpoint(saved(tmp_path, {"generator": D, "G_ema": G}))
    assert torch.equal(read.tensors["weight"], G["weight"])


def test_a_single_nested_state_dict_needs_no_name(tmp_path: Path) -> None:
    read = read_checkpoint(saved(tmp_path, {"whatever": {"inner": G}, "epoch": 1}))
    assert torch.equal(read.tensors["weight"], G["weight"])


def test_several_state_dicts_are_ambiguous_until_one_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, {"A": D, "B": {"inner": G}})
    with pytest.raises(CheckpointError, match=r"several state dicts: 'A', 'B.inner'. .*key=NAME"):
        read_checkpoint(path)
    assert torch.equal(read_checkpoint(path, key="B.inner").tensors["weight"], G["weight"])
    with pytest.raises(UnknownNameError, match=r"Did you mean 'B.inner'"):
        read_checkpoint(path, key="B.iner")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], "text", 5, [torch.ones(2)]])
def test_no_named_tensors(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_checkpoint(saved(tmp_path, content))


def test_a_dictionary_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, object] = dict(G)
    content["self"] = content
    assert list(read_checkpoint(saved(tmp_path, content)).tensors) == ["weight"]


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="is a zip file that holds no torch checkpoint"):
        read_checkpoint(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Tanh(), torch.zeros(1)), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"is a TorchScript program.*nothing was run"):
        read_checkpoint(tmp_path / "model.pt")
