import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from fastdirs.checkpoints import read_checkpoint
from fastdirs.errors import CheckpointError, UnknownNameError

G = {"weight": torch.ones(2, 2)}
D = {"weight": torch.zeros(2, 2)}


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
    with pytest.raises(CheckpointError, match=r"asks to import and run .*system"):
        read_checkpoint(saved(tmp_path, Touch(tmp_path / "witness")))


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"asks to import and run torch.nn.modules.linear.Linear"):
        read_checkpoint(saved(tmp_path, nn.Linear(2, 2)))


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
    import zipfile

    with zipfile.ZipFile(tmp_path / "model.pt", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="truncated or no torch file"):
        read_checkpoint(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Tanh(), torch.zeros(1)), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"is a TorchScript program.*nothing was run"):
        read_checkpoint(tmp_path / "model.pt")
