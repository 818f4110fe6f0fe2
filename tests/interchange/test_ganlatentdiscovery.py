import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdirs.deformators import Ortho, Proj
from fastdirs.directions import DirectionBank
from fastdirs.errors import BankError, SelectionError, UnknownNameError
from fastdirs.generators import Generator
from fastdirs.interchange import import_bank

SIZE = 5


def run(folder: Path, kind: str, state: dict[str, Tensor], step: int = 90000, **args: object) -> Path:
    """A run's folder; a second call adds another step."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(json.dumps({"deformator": kind, **args}))
    torch.save(state, folder / "models" / f"deformator_{step}.pt")
    return folder


def linear(vectors: Tensor, bias: float = 1.0) -> dict[str, Tensor]:
    return {"linear.weight": vectors.T.contiguous(), "linear.bias": torch.full((vectors.shape[1],), bias)}


def first_layer(bank: DirectionBank) -> Tensor:
    """Directions `[K, size]`, or paths `[K, knots, size]`."""
    return bank.directions[..., 0, :]


def test_the_bias_of_a_linear_one_is_left_out(layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    bank = import_bank(run(tmp_path, "linear", linear(vectors)), layered)
    torch.testing.assert_close(bank.shift(2, vectors[2].norm().item())[0], vectors[2])
    assert not bank.curved
    torch.testing.assert_close(bank.scores, vectors.norm(dim=1))


def test_a_projected_one_keeps_its_bias(layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    """Its path is curved near zero: far out it goes along the column."""
    bank = import_bank(
        run(tmp_path, "proj", linear(vectors)), layered, options={"epsilons": "-900,-1,0,0.5,900"}
    )
    assert bank.curved
    column = vectors[1] * 0.5 + 1
    torch.testing.assert_close(bank.shift(1, 0.5)[0], 0.5 * column / column.norm())
    assert torch.cosine_similarity(bank.shift(1, 900.0)[0], vectors[1], dim=0) > 0.9999


def test_a_projected_one_without_a_bias_is_straight(
    layered: Generator, vectors: Tensor, tmp_path: Path
) -> None:
    bank = import_bank(run(tmp_path, "proj", linear(vectors, bias=0.0)), layered)
    assert not bank.curved
    torch.testing.assert_close(first_layer(bank), vectors / vectors.norm(dim=1, keepdim=True))


def test_a_rotation(layered: Generator, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ortho = Ortho(SIZE, SIZE).eval()
    directions = first_layer(import_bank(run(tmp_path, "ortho", ortho.state_dict()), layered))
    torch.testing.assert_close(directions @ directions.T, torch.eye(SIZE))
    half = ortho.log_mat_half.detach().double()
    torch.testing.assert_close(directions, torch.linalg.matrix_exp(half - half.T).T.float())


def test_axes(layered: Generator, tmp_path: Path) -> None:
    bank = import_bank(run(tmp_path / "all", "id", {}), layered)
    assert torch.equal(first_layer(bank), torch.eye(SIZE))
    bank = import_bank(run(tmp_path / "some", "id", {}, directions_count=2), layered)
    assert torch.equal(first_layer(bank), torch.eye(SIZE)[:2])
    # As the files of the published BigGAN call it.
    assert len(import_bank(run(tmp_path / "old", "id", {}, max_latent_ind=3), layered)) == 3
    assert len(import_bank(tmp_path / "old" / "models" / "deformator_90000.pt", layered)) == 3


def test_random_directions_are_lost(layered: Generator, tmp_path: Path) -> None:
    with pytest.raises(BankError, match=r"are lost.*--method random"):
        import_bank(run(tmp_path, "random", {}), layered)


def test_the_last_step_is_the_highest_number(layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    run(tmp_path, "linear", linear(vectors), 100000)
    run(tmp_path, "linear", linear(-vectors), 90000)
    last, earlier = (import_bank(tmp_path, layered, options=options) for options in ({}, {"step": "90000"}))
    assert torch.equal(last.directions, -earlier.directions)
    with pytest.raises(SelectionError, match=r"no deformator of step 5. It has 90000, 100000"):
        import_bank(tmp_path, layered, options={"step": "5"})


def test_a_file_alone_does_not_say_whether_it_projects(
    layered: Generator, vectors: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(linear(vectors), path)
    with pytest.raises(BankError, match="may be a linear or a proj deformator"):
        import_bank(path, layered)
    assert not import_bank(path, layered, options={"deformator": "linear"}).curved
    assert import_bank(path, layered, options={"deformator": "proj"}).curved
    with pytest.raises(BankError, match="tensors of a deformator linear or proj, not of ortho"):
        import_bank(path, layered, options={"deformator": "ortho"})
    with pytest.raises(UnknownNameError, match=r"'orto'. Did you mean 'ortho'"):
        import_bank(path, layered, options={"deformator": "orto"})


def test_narrow_and_wide_ones_are_filled_up_and_cut_as_the_run_says(
    layered: Generator, vectors: Tensor, tmp_path: Path
) -> None:
    narrow, wide = vectors[:, :3], torch.cat([vectors, torch.ones(4, 2)], dim=1)
    for name, given in (("narrow", narrow), ("wide", wide)):
        with pytest.raises(BankError, match=rf"of {given.shape[1]} numbers, but .* have 5 \(w\+\)"):
            import_bank(run(tmp_path / name, "linear", linear(given)), layered)
        run(tmp_path / name, "linear", linear(given), max_latent_dim=given.shape[1])
    bank = import_bank(tmp_path / "narrow", layered)
    assert not first_layer(bank)[:, 3:].any()
    torch.testing.assert_close(torch.tensor(bank.settings["lengths"]), narrow.norm(dim=1))
    torch.testing.assert_close(
        first_layer(import_bank(tmp_path / "wide", layered)), vectors / vectors.norm(dim=1, keepdim=True)
    )


def test_names_that_people_gave(layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    path = run(tmp_path, "linear", linear(vectors))
    (path / "human_annotation.txt").write_text("3: zoom (in: out)\n1: hair\nnonsense\n0:hair\n\n77: beyond\n")
    assert import_bank(path, layered).labels == ("hair", "hair", "direction 2", "zoom (in: out)")
    assert import_bank(path / "models" / "deformator_90000.pt", layered).labels[1] == "hair"


def test_shifts_of_z_are_no_shifts_of_w(layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    path = run(tmp_path, "linear", linear(vectors), gan_type="StyleGAN2", w_shift=False)
    with pytest.raises(BankError, match=r"directions in z, but the latents of layered are w\+"):
        import_bank(path, layered)
    run(tmp_path, "linear", linear(vectors), gan_type="StyleGAN2", w_shift=True)
    assert len(import_bank(path, layered)) == 4


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\xff"], ids=["open", "deep", "latin"])
def test_arguments_that_are_no_json(text: str, layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    path = run(tmp_path, "linear", linear(vectors))
    (path / "args.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BankError, match=r"args\.json is no JSON"):
        import_bank(path, layered)


def test_tensors_of_other_shapes(layered: Generator, tmp_path: Path) -> None:
    state = {**Proj(4, SIZE, bias=True).state_dict(), "linear.bias": torch.ones(7)}
    with pytest.raises(BankError, match="in other shapes"):
        import_bank(run(tmp_path, "proj", state), layered)
    with pytest.raises(BankError, match="lacks tensors of a deformator fc"):
        import_bank(run(tmp_path, "fc", {"fc1.weight": torch.ones(3, SIZE)}), layered)
    for half in (torch.ones(SIZE, 2), torch.tensor(1.0), torch.ones(0)):
        with pytest.raises(BankError, match="in other shapes"):
            import_bank(run(tmp_path, "ortho", {"log_mat_half": half}), layered)


@pytest.mark.parametrize("count", ["x", -1, 6, float("nan"), float("inf"), [1], 10**30, True])
def test_axes_that_there_are_not(count: object, layered: Generator, tmp_path: Path) -> None:
    with pytest.raises(BankError, match=r"says .* directions\. Expected 1 to 5"):
        import_bank(run(tmp_path, "id", {}, directions_count=count), layered)
