"""What `inspect_file` says of everything that fastdirs reads or writes, and of what is broken or hostile."""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from fastdirs.bank_editing import label
from fastdirs.directions import DirectionBank
from fastdirs.errors import ArtifactError, BankError, CheckpointError, FastdirsError, RecipeError
from fastdirs.export import export_generator
from fastdirs.generators import Generator
from fastdirs.inspection import inspect_file
from fastdirs.loading import save_generator
from fastdirs.manifest import Json, manifest, sha256_file, write_json
from fastdirs.recipe import Batch, Graph, Recipe
from fastdirs.reconstructor_export import export_reconstructor
from fastdirs.reconstructors import build_reconstructor, save_reconstructor
from fastdirs.saliency.export import export_segmenter
from fastdirs.segmenters import build_segmenter

ROOT = Path(__file__).parents[1]
FIXTURES = Path(os.environ.get("FASTDIRS_FIXTURES") or ROOT.parent / "shared" / "fixtures")
# What the hostile fixtures make when their code runs.
WITNESS = "PWNED_fastdirs"
_BAD = sorted(FIXTURES.glob("bad/*"))
_FOLDERS = [path for path in sorted(FIXTURES.glob("*")) if path.is_dir() and path.name != "bad"]

needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(),
    reason=f"needs the checkpoints of the original projects in {FIXTURES} (FASTDIRS_FIXTURES)",
)


def _inspect(path: Path) -> Json:
    """Inspect, and check what holds for every kind."""
    info = inspect_file(path)
    assert list(info)[:2] == ["kind", "path"]
    assert json.loads(json.dumps(info, allow_nan=False))["path"] == str(path)
    return info


def test_generator(toy: Generator, tmp_path: Path) -> None:
    save_generator(toy, tmp_path / "toy.safetensors", extra={"source_sha256": "abc"})
    info = _inspect(tmp_path / "toy.safetensors")
    assert info["kind"] == "generator"
    assert info["sha256"] == sha256_file(tmp_path / "toy.safetensors")
    assert info["generator"]["weights_sha256"] == toy.weights_sha256
    assert info["provenance"]["licence"] == "Apache-2.0"
    assert info["source_sha256"] == "abc"
    assert info["tensors"] == len(toy.state_dict())
    assert info["parameters"] == sum(tensor.numel() for tensor in toy.state_dict().values())
    assert "problem" not in info
    # The JSON beside it tells the same, and the folder is not mistaken for what one file in it is.
    assert _inspect(tmp_path / "toy.json")["kind"] == "generator"
    with pytest.raises(CheckpointError, match="folder without a manifest"):
        inspect_file(tmp_path)


def test_generator_that_was_changed(toy: Generator, tmp_path: Path) -> None:
    path = tmp_path / "toy.safetensors"
    save_generator(toy, path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert "was changed after it was written" in _inspect(path)["problem"]


def test_bank(toy_bank: DirectionBank, tmp_path: Path) -> None:
    toy_bank.save(tmp_path / "bank.safetensors")
    info = _inspect(tmp_path / "bank.safetensors")
    assert (info["kind"], info["method"]) == ("direction-bank", "sefa")
    assert info["generator"]["name"] == "toy"
    assert [row["label"] for row in info["directions"]] == list(toy_bank.labels)
    assert info["directions"][2]["range"] == toy_bank.ranges[2].tolist()
    assert info["knots"] is None


def test_what_people_said_of_a_curved_bank(toy_bank: DirectionBank, tmp_path: Path) -> None:
    knots = torch.tensor([-2.0, 0.0, 4.0])
    paths = toy_bank.directions[:, None] * knots[:, None, None]
    bank = replace(toy_bank, directions=paths, knots=knots)
    label(bank, 1, "smile", ["face", "mouth"], "Ada").save(tmp_path / "bank.safetensors")
    info = _inspect(tmp_path / "bank.safetensors")
    assert info["knots"] == [-2.0, 0.0, 4.0]
    row = info["directions"][1]
    assert (row["label"], row["tags"], row["judge"]) == ("smile", ["face", "mouth"], "Ada")
    assert (info["directions"][0]["tags"], info["directions"][0]["judge"]) == ([], "")


def test_truncated_bank(toy_bank: DirectionBank, tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    toy_bank.save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FastdirsError, match="broken safetensors file"):
        inspect_file(path)


def test_bank_without_its_tensors(tmp_path: Path) -> None:
    header = json.dumps(manifest("direction-bank", {"generator": {}, "bank": {}}))
    save_file(
        {"directions": torch.zeros(1, 1, 2)}, tmp_path / "bank.safetensors", metadata={"fastdirs": header}
    )
    with pytest.raises(BankError, match="does not hold what its header says"):
        inspect_file(tmp_path / "bank.safetensors")


def test_reconstructor(tmp_path: Path) -> None:
    path, network = tmp_path / "r.safetensors", build_reconstructor("lenet", 4, 1, 32)
    save_reconstructor(network, path, {"bank_sha256": "ab"})
    info = _inspect(path)
    assert (info["kind"], info["reconstructor"]["kind"], info["bank_sha256"]) == (
        "reconstructor",
        "lenet",
        "ab",
    )
    assert info["tensors"] == len(network.state_dict())
    assert "problem" not in info
    network.classifier.weight.data[0, 0] = float("nan")
    save_reconstructor(network, path, {})
    assert "NaN or infinite values in 'classifier.weight'" in _inspect(path)["problem"]


def test_exported_segmenter(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    export_segmenter(build_segmenter("unet", 3, 32, 4), folder, batch=Batch(opt=1, max=1))
    info = _inspect(folder)
    assert (info["kind"], info["segmenter"]["kind"]) == ("segmenter-artifact", "unet")
    assert "problem" not in info
    with (folder / "saliency.onnx").open("ab") as file:
        file.write(b"1")
    assert "saliency.onnx changed since its manifest was written" in _inspect(folder)["problem"]


def test_segmenter_of_the_authors_code(tmp_path: Path) -> None:
    network = build_segmenter("unet", 3, 32, 4)
    torch.save(network.state_dict(), tmp_path / "segmentation.pth")
    info = _inspect(tmp_path / "segmentation.pth")
    assert (info["kind"], info["loads_as"], info["assumed"]) == (
        "checkpoint", "unet segmenter", ["img_resolution=128"]
    )  # fmt: skip
    assert "problem" not in info
    network.outc.conv.bias.data[0] = float("nan")
    torch.save(network.state_dict(), tmp_path / "segmentation.pth")
    assert "NaN or infinite values in 'outc.conv.bias'" in _inspect(tmp_path / "segmentation.pth")["problem"]


def test_exported_reconstructor(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    export_reconstructor(build_reconstructor("lenet", 4, 1, 32), {"bank_sha256": "ab"}, folder, max_batch=2)
    info = _inspect(folder)
    assert (info["kind"], info["files_in_all"]) == ("reconstructor-artifact", 3)
    assert info["recorded"] == {"bank_sha256": "ab"}
    assert "problem" not in info
    (folder / "reconstructor.onnx").write_bytes(b"another")
    assert "changed since its manifest was written" in _inspect(folder)["problem"]


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_checkpoint_of_another_program(
    suffix: str, random_dcgan: Callable[..., nn.Sequential], tmp_path: Path
) -> None:
    state = random_dcgan().state_dict()
    path = tmp_path / f"faces.{suffix}"
    if suffix == "pt":
        torch.save({"netG": state, "netD": {"weight": torch.zeros(2)}, "epoch": 3}, path)
    else:
        save_file(state, path)
    info = _inspect(path)
    assert (info["kind"], info["loads_as"]) == ("checkpoint", "dcgan")
    assert "output=tanh" in info["assumed"]
    names = ["netG", "netD"] if suffix == "pt" else [""]
    assert [row["name"] for row in info["state_dicts"]] == names
    assert info["state_dicts"][0]["tensors"] == len(state)
    weights = {row["name"]: row for row in info["first_tensors"]}[
        "netG.0.weight" if suffix == "pt" else "0.weight"
    ]
    assert weights == {"name": weights["name"], "shape": [8, 12, 4, 4], "dtype": "float32"}


def test_long_checkpoint_is_cut(tmp_path: Path) -> None:
    torch.save({f"layer{index}": torch.zeros(1) for index in range(60)}, tmp_path / "many.pt")
    info = _inspect(tmp_path / "many.pt")
    assert len(info["first_tensors"]) == 40
    assert info["state_dicts"] == [{"name": "", "tensors": 60, "parameters": 60}]
    assert "problem" in info


def test_dictionary_that_contains_itself(tmp_path: Path) -> None:
    state: dict[str, Any] = {"weight": torch.zeros(2)}
    state["again"] = state
    torch.save(state, tmp_path / "loop.pt")
    assert _inspect(tmp_path / "loop.pt")["state_dicts"] == [
        {"name": "", "tensors": 1, "parameters": 2},
        {"name": "again", "tensors": 1, "parameters": 2},
    ]
    assert _inspect(tmp_path / "loop.pt")["taken"] == ""


def test_json_that_is_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match="is no manifest of fastdirs"):
        inspect_file(tmp_path / "deep.json")


def _graph() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["z", "weight"], ["rows"]),
        helper.make_node("Relu", ["rows"], ["kept"]),
        helper.make_node("Relu", ["kept"], ["images"]),
    ]
    weight = numpy_helper.from_array(torch.zeros(512, 512).numpy(), "weight")
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 512])],
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, None)], [weight],
    )  # fmt: skip
    model = helper.make_model(graph, producer_name="someone", opset_imports=[helper.make_opsetid("", 18)])
    model.metadata_props.add(key="licence", value="CC0")
    return model


def test_onnx(tmp_path: Path) -> None:
    onnx.save(_graph(), tmp_path / "net.onnx")
    info = _inspect(tmp_path / "net.onnx")
    assert info["kind"] == "onnx"
    assert info["inputs"] == [{"name": "z", "dtype": "float", "shape": ["batch", 512]}]
    assert info["outputs"] == [{"name": "images", "dtype": "float", "shape": []}]
    assert info["opset"] == {"ai.onnx": 18}
    assert info["producer"] == "someone"
    assert info["metadata"] == {"licence": "CC0"}
    assert info["nodes"] == {"Relu": 2, "MatMul": 1}
    assert info["initializer_mib"] == pytest.approx(1, abs=0.01)
    assert info["tensors_in_other_files"] == 0


def test_onnx_with_weights_beside_it_or_cut_off(tmp_path: Path) -> None:
    onnx.save(
        _graph(), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0
    )
    assert _inspect(tmp_path / "net.onnx")["tensors_in_other_files"] == 1
    path = tmp_path / "cut.onnx"
    path.write_bytes(_graph().SerializeToString()[:-9])
    with pytest.raises(CheckpointError, match="broken ONNX file"):
        inspect_file(path)


# The first 32 bytes of an engine that TensorRT for RTX 1.7.1.116 built.
_RTX_HEAD = bytes.fromhex("76747274000000000200000000000000345be700000000000107017476747274")


def test_engine(tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(b"ftrt" + bytes(20) + bytes([10, 7, 0, 23]) + bytes(100))
    info = _inspect(path)
    assert (info["kind"], info["recognised_by"]) == ("tensorrt-engine", "content")
    assert info["built_by"] == "TensorRT 10.7.0.23"
    assert "manifest beside it would say more" in info["note"]
    write_json(tmp_path / "model.engine.json", manifest("engine", {"gpu": "some"}))
    assert _inspect(path)["manifest"]["gpu"] == "some"

    renamed = tmp_path / "model.bin"
    renamed.write_bytes(_RTX_HEAD + bytes(100))
    assert _inspect(renamed)["built_by"] == "TensorRT for RTX 1.7.1.116"

    by_name = tmp_path / "other.plan"
    by_name.write_bytes(b"\1\0\2\0" * 30)
    assert _inspect(by_name)["recognised_by"] == "name"
    by_name.write_text("plan: none")
    with pytest.raises(CheckpointError, match="none of the formats"):
        inspect_file(by_name)


def test_recipe(tmp_path: Path) -> None:
    path = tmp_path / "faces.toml"
    path.write_text('generator = "digiface-64"\n[batch]\nmax = 80\n')
    info = _inspect(path)
    assert (info["kind"], info["generator"], info["batch"]["max"]) == ("recipe", "digiface-64", 80)
    path.write_text('generater = "digiface-64"\n')
    with pytest.raises(RecipeError, match="generator"):
        inspect_file(path)


def test_traversal_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "traversal.json", manifest("traversal", {"seeds": [0, 1], "complete": True}))
    (tmp_path / "strips").mkdir()
    (tmp_path / "strips" / "strip.jpg").write_bytes(b"12345")
    info = _inspect(tmp_path)
    assert (info["kind"], info["seeds"], info["files_in_all"]) == ("traversal", [0, 1], 2)


def test_artifact(toy: Generator, tmp_path: Path) -> None:
    recipe = Recipe(generator="toy", graph=Graph(lowering="plain"), batch=Batch(opt=2, max=2))
    artifact = export_generator(toy, tmp_path / "out", recipe)
    info = _inspect(tmp_path / "out")
    assert (info["kind"], info["files"]) == ("artifact", artifact.content["files"])
    assert info["generator"]["name"] == "toy"
    assert "problem" not in info
    assert _inspect(artifact.synthesis_path)["kind"] == "onnx"
    artifact.synthesis_path.write_bytes(b"changed")
    assert "changed since its manifest was written" in _inspect(tmp_path / "out")["problem"]


def test_plain_failures(tmp_path: Path) -> None:
    cases = {
        "empty.pt": (b"", "is empty"),
        "page.pt": (b"<!DOCTYPE html>", "web page"),
        "pointer.pt": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        "notes.txt": (b"some notes", "none of the formats"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=reason):
            inspect_file(tmp_path / name)
    for name in ("missing.pt", "missing.engine", "missing.toml", "missing.json"):
        with pytest.raises(CheckpointError, match="cannot be read: No such file"):
            inspect_file(tmp_path / name)
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(ArtifactError, match="no manifest"):
        inspect_file(tmp_path / "other.json")


def _inspect_or_refuse(path: Path) -> Json:
    """What is said of a file, or why it was refused; any other exception is a failure."""
    try:
        return _inspect(path)
    except FastdirsError as error:
        return {"kind": "refused", "problem": str(error)}


@needs_fixtures
@pytest.mark.parametrize("path", _BAD, ids=lambda path: path.name)
def test_bad_file(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The hostile ones would leave a file in the working or the temporary folder.
    monkeypatch.chdir(tmp_path)
    witnesses = [Path(folder) / WITNESS for folder in {tempfile.gettempdir(), "/tmp", str(path.parent), "."}]
    assert not any(witness.exists() for witness in witnesses)
    info = _inspect_or_refuse(path)
    assert "loads_as" not in info
    assert "weights_only" not in info["problem"]
    assert not any(witness.exists() for witness in witnesses)
    assert not list(tmp_path.iterdir())


@needs_fixtures
@pytest.mark.parametrize(
    "name",
    [
        "evil_plain.pkl",
        "evil_torch_zip.pt",
        "evil_torch_legacy.pt",
        "evil_genforce.pth",
        "evil_in_dict.pkl",
        "evil_biggan_dir",
        "evil_ada_module_src.pkl",
    ],
)
def test_hostile_file_is_called_so(name: str) -> None:
    with pytest.raises(CheckpointError, match="refused; nothing was run"):
        inspect_file(FIXTURES / "bad" / name)


@needs_fixtures
@pytest.mark.parametrize("folder", _FOLDERS, ids=lambda folder: folder.name)
def test_good_fixture(folder: Path) -> None:
    arrays_only = folder.name in ("ganspace_stylegan2", "gld_masks")
    suffixes = (".npz",) if arrays_only else (".pt", ".pth", ".pkl", ".bin")
    files = [path for path in folder.rglob("*") if path.suffix in suffixes]
    info = _inspect_or_refuse(max(files, key=lambda path: path.stat().st_size))
    assert info["kind"] == "refused" or info["first_tensors"]
    # What no family reads is said to be so.
    assert "loads_as" in info or info["problem"]


@needs_fixtures
def test_network_pickle() -> None:
    info = _inspect(FIXTURES / "nv_ada_gray_r32_map4" / "network-snapshot.pkl")
    assert (info["kind"], info["format"], info["taken"]) == ("checkpoint", "pickle", "G_ema")
    assert [row["name"] for row in info["state_dicts"]] == ["G", "D", "G_ema"]
    assert info["settings"]["z_dim"] == 64
    assert info["unknown_globals"] == []


@needs_fixtures
def test_folder_of_another_program() -> None:
    info = _inspect(FIXTURES / "hf_biggan_deep32_cw8")
    assert (info["kind"], info["format"], info["taken"]) == ("checkpoint", "folder", "")
    assert info["settings"]["output_dim"] == 32
    assert info["state_dicts"] == [
        {"name": "", "tensors": 314, "parameters": info["state_dicts"][0]["parameters"]}
    ]
