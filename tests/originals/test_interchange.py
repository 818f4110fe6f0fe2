"""Directions in files of the originals move latents and images as the originals' own code did."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdirs.deformators import Fc
from fastdirs.directions import DirectionBank
from fastdirs.errors import BankError
from fastdirs.interchange import export_bank, import_bank
from tests.originals.conftest import FIXTURES, Original, loaded

RUNS = FIXTURES / "gld_runs"
COMPONENTS = FIXTURES / "ganspace_stylegan2"
FACTOR = FIXTURES / "ros_converted_r64_mlp8" / "factor.pt"
BAD = FIXTURES / "bad"
_TABLED = (
    [run["run"] for run in json.loads((RUNS / "meta.json").read_text())["runs"]] if RUNS.is_dir() else []
)

every_run = pytest.mark.parametrize("run", _TABLED)
needs_runs = pytest.mark.skipif(not RUNS.is_dir(), reason=f"needs the originals' runs in {RUNS}")
needs_components = pytest.mark.skipif(
    not COMPONENTS.is_dir(), reason=f"needs GANSpace's components in {COMPONENTS}"
)
needs_bad = pytest.mark.skipif(not BAD.is_dir(), reason=f"needs the broken files in {BAD}")


@cache
def _arrays(folder: Path, name: str) -> Mapping[str, Tensor]:
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return {key: torch.from_numpy(array) for key, array in arrays.items() if array.dtype.kind != "U"}


@cache
def _original(run: str) -> Original:
    (gan,) = (
        each["gan"] for each in json.loads((RUNS / "meta.json").read_text())["runs"] if each["run"] == run
    )
    return Original(FIXTURES / gan)


def _imported(run: str, **options: str) -> DirectionBank:
    return import_bank(RUNS / run, loaded(_original(run)), options=options)


def _bias(run: str, bank: DirectionBank) -> Tensor:
    """What the original adds to every shift and a bank does not: what it shifts by at epsilon 0."""
    size, kind = bank.directions.shape[-1], bank.settings["deformator"]
    if kind not in ("linear", "fc"):
        return torch.zeros(size)
    file = RUNS / run / "models" / f"deformator_{bank.settings['step']}.pt"
    state = torch.load(file, weights_only=True, map_location="cpu")
    if kind == "fc":
        network = Fc(len(bank), size, len(state["fc1.bias"]), anchored=False).eval()
        network.load_state_dict(state)
        return network(torch.tensor([0]), torch.zeros(1))[0].detach()
    return torch.nn.functional.pad(state["linear.bias"][:size], (0, max(0, size - len(state["linear.bias"]))))


def _singles(run: str) -> tuple[list[tuple[int, float]], Tensor]:
    """Direction and epsilon of the rows with one alone, and the original's shifts of them."""
    basis = _arrays(RUNS, "inputs")[f"{run}/basis"]
    shifts = _arrays(RUNS, "expected")[f"{run}/shift_vectors"].flatten(1)
    rows = [row for row in range(len(basis)) if (basis[row] != 0).sum() == 1]
    indices = [int(basis[row].abs().argmax()) for row in rows]
    return [(i, float(basis[row, i])) for i, row in zip(indices, rows, strict=True)], shifts[rows]


@needs_runs
@every_run
def test_shifts_are_those_of_the_original(run: str) -> None:
    """Exactly, for an epsilon at a knot; without the bias that the original adds to all of them."""
    singles, expected = _singles(run)
    epsilons = ",".join(str(epsilon) for _, epsilon in singles)
    bank = _imported(run, epsilons=epsilons)
    bias = _bias(run, bank)
    assert len(singles) >= 3
    for (index, epsilon), wanted in zip(singles, expected, strict=True):
        unit = 1.0 if bank.curved else bank.settings["lengths"][index]
        found = bank.shift(index, epsilon * unit)[0] + bias
        # The rotation of ortho comes from another algorithm, in float32 there too.
        torch.testing.assert_close(found, wanted, rtol=0, atol=3e-6 * max(1.0, abs(epsilon)))


@needs_runs
@every_run
def test_shifts_along_several_directions_add_up(run: str) -> None:
    bank = _imported(run)
    if bank.curved:
        pytest.skip("paths do not add up, in the original either")
    basis = _arrays(RUNS, "inputs")[f"{run}/basis"]
    vectors = bank.directions[:, 0] * torch.tensor(bank.settings["lengths"])[:, None]
    expected = _arrays(RUNS, "expected")[f"{run}/shift_vectors"].flatten(1)
    torch.testing.assert_close(basis @ vectors + _bias(run, bank), expected, rtol=0, atol=5e-5)


@needs_runs
@every_run
def test_images_are_those_of_the_original(run: str) -> None:
    generator, bank = loaded(_original(run)), _imported(run)
    index = int(_arrays(RUNS, "inputs")[f"{run}/dim"])
    unit = 1.0 if bank.curved else bank.settings["lengths"][index]
    shifts = bank.shifts(index, [epsilon * unit for epsilon in (-6, -3, 0, 3, 6)])
    expected = _arrays(RUNS, "expected")[f"img_interp/{run}"]
    latents = generator.mapping(_arrays(RUNS, "inputs")[f"{run}/z"])
    # In the original it moves the image at epsilon 0 too.
    bias = _bias(run, bank)
    images = generator.synthesis(latents + shifts + bias)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)


@needs_runs
@every_run
def test_what_else_a_run_says(run: str) -> None:
    bank = _imported(run)
    assert bank.settings["step"] in (None, int(_arrays(RUNS, "expected")[f"{run}/model_index"]))
    assert bank.curved == (bank.settings["deformator"] in ("proj", "fc"))
    # Both directions called hair keep their name; the original's own reader loses one.
    named = {index: name for index, name in enumerate(bank.labels) if name != f"direction {index}"}
    assert named == {1: "hair", 3: "zoom", 5: "hair", 7: "background removal"}
    assert bank.method == "ganlatentdiscovery"
    assert not any("/data/exp" in str(value) for value in bank.settings.values())


@needs_runs
def test_an_earlier_step_can_be_chosen() -> None:
    last, earlier = _imported("linear_snmnist_K20"), _imported("linear_snmnist_K20", step="90000")
    assert (last.settings["step"], earlier.settings["step"]) == (100000, 90000)
    assert not torch.equal(last.directions, earlier.directions)


@needs_runs
def test_the_checkpoint_of_a_run_is_read_too() -> None:
    generator = loaded(_original("linear_snmnist_K20"))
    bank = import_bank(RUNS / "linear_snmnist_K20" / "checkpoint.pt", generator)
    assert (len(bank), bank.settings["deformator"], bank.labels[3]) == (20, "linear", "zoom")


@needs_runs
def test_a_narrow_deformator_touches_the_first_numbers_alone() -> None:
    assert not _imported("ortho_snanime_K32_pad").directions[..., 32:].any()


@needs_components
def test_strips_of_ganspace() -> None:
    inputs, expected = _arrays(COMPONENTS, "inputs"), _arrays(COMPONENTS, "expected")
    generator = loaded(Original(FIXTURES / "ros_converted_r64_mlp8"))
    layers = range(int(inputs["layer_start"]), int(inputs["layer_end"]))
    (path,) = COMPONENTS.glob("*_style_*.npz")
    bank = import_bank(path, generator, layers=layers)
    assert bank.layers == tuple(layers)
    latents = generator.mapping(inputs["z"])
    sigma, frames = float(inputs["sigma"]), int(inputs["num_frames"])
    for place, index in enumerate(inputs["component_index"].tolist()):
        deviation = bank.settings["lat_stdev"][index]
        shifts = bank.shifts(index, (torch.linspace(-sigma, sigma, frames) * deviation).tolist())
        for sample in range(len(latents)):
            images = generator.synthesis(latents[sample] + shifts)
            found = (0.5 * (images + 1)).clamp(0, 1)
            torch.testing.assert_close(found, expected["img_strip"][place, sample], rtol=0, atol=1e-4)


@needs_components
def test_deviations_of_ganspace_are_those_that_we_measure() -> None:
    generator = loaded(Original(FIXTURES / "ros_converted_r64_mlp8"))
    for path in sorted(COMPONENTS.glob("stylegan2-*.npz")):
        bank = import_bank(path, generator)
        torch.testing.assert_close(bank.scales, torch.tensor(bank.settings["lat_stdev"]), rtol=0.1, atol=0)
        assert (bank.scores.diff() <= 0).all()


@pytest.mark.skipif(not FACTOR.is_file(), reason=f"needs rosinality's {FACTOR}")
def test_factor_there_and_back(tmp_path: Path) -> None:
    generator = loaded(Original(FACTOR.parent))
    bank = import_bank(FACTOR, generator)
    columns = torch.load(FACTOR, weights_only=True, map_location="cpu")["eigvec"]
    torch.testing.assert_close(bank.directions[:, 4], columns.T, rtol=0, atol=1e-6)
    export_bank(bank, tmp_path / "factor.pt")
    again = torch.load(tmp_path / "factor.pt", weights_only=True)
    torch.testing.assert_close(again["eigvec"], columns, rtol=0, atol=1e-6)
    assert again.keys() == {"ckpt", "eigvec"}


@needs_bad
@pytest.mark.parametrize("path", sorted(BAD.glob("*")), ids=lambda path: path.name)
def test_no_bad_file_becomes_a_bank(path: Path) -> None:
    with pytest.raises(BankError) as caught:
        import_bank(path, loaded(Original(FIXTURES / "sngan_mnist_r32_1ch")))
    if path.name.startswith("evil") and path.suffix != ".npz" and path.is_file():
        assert "so it was refused; nothing was run" in str(caught.value)


@needs_bad
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deformator_nan.pt", "has NaN or infinite values"),
        ("deformator_missing_key.pt", r"lacks tensors of a deformator linear"),
        (
            "deformator_wrong_shape.pt",
            r"directions of 129 numbers, but .* sngan_mnist_r32_1ch have 128 \(z\)",
        ),
        ("evil_deformator_nested_storage.pt", r"asks to run posix\.system"),
    ],
)
def test_what_is_wrong_with_a_deformator(name: str, message: str) -> None:
    generator = loaded(Original(FIXTURES / "sngan_mnist_r32_1ch"))
    with pytest.raises(BankError, match=message):
        import_bank(BAD / name, generator, options={"deformator": "linear"})


@needs_runs
def test_a_run_of_another_generator() -> None:
    with pytest.raises(
        BankError, match=r"directions of 64 numbers, but the latents of sngan_mnist\w* have 128"
    ):
        import_bank(RUNS / "linear_proggan_K12", loaded(_original("linear_snmnist_K20")))
