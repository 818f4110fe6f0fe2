"""Evaluation of the toy's bank, whose directions are known, by a reconstructor that was trained on it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastdirs.artifact import Artifact
from fastdirs.directions import DirectionBank
from fastdirs.discovery import discover
from fastdirs.errors import BankError, CheckpointError, FastdirsError, SelectionError, ShapeError
from fastdirs.evaluation import RECONSTRUCTOR_FILE, STEPS, Evaluation, EvaluationSettings, evaluate
from fastdirs.generators import Generator
from fastdirs.images import decode, to_uint8
from fastdirs.manifest import Json
from fastdirs.pairs import ShiftDistribution, draw_pairs
from fastdirs.reconstructor_export import export_reconstructor
from fastdirs.reconstructors import build_reconstructor, load_reconstructor, save_reconstructor
from fastdirs.registry import install_hint

SMALL = EvaluationSettings(seeds=4, batches=10)


@pytest.fixture(scope="session")
def evaluation(
    toy: Generator, toy_bank: DirectionBank, toy_reconstructor: Path, tmp_path_factory: pytest.TempPathFactory
) -> Evaluation:
    """Read only."""
    folder = tmp_path_factory.mktemp("evaluation")
    return evaluate(toy, toy_bank, folder, SMALL, reconstructor=toy_reconstructor)


def saved(path: Path, reconstructor: Path, **changes: object) -> Path:
    """A reconstructor whose file records something else."""
    network, content = load_reconstructor(reconstructor)
    recorded = {name: content[name] for name in ("generator", "bank_sha256", "shifts", "training")}
    save_reconstructor(network, path, {**recorded, **changes})
    return path


def test_rca_is_the_share_of_pairs_that_the_reconstructor_recognises(
    evaluation: Evaluation, toy: Generator, toy_bank: DirectionBank, toy_reconstructor: Path
) -> None:
    network, _ = load_reconstructor(toy_reconstructor)
    for key, first_seed in (("rca", 0), ("rca_training", 2**31)):
        hits, errors = [], []
        for step in range(SMALL.batches):
            pairs = draw_pairs(toy, 5, ShiftDistribution("uniform", 3.0), 32, step, first_seed=first_seed)
            latents = toy.mapping(pairs.z)
            shifted = latents + toy_bank.directions[pairs.directions] * pairs.epsilons[:, None, None]
            logits, epsilon, _ = network(toy.synthesis(latents), toy.synthesis(shifted))
            hits += (logits.argmax(dim=1) == pairs.directions).tolist()
            errors += (epsilon - pairs.epsilons).abs().tolist()
        found = evaluation.content[key]
        assert found["pairs"] == 320
        assert found["accuracy"] == pytest.approx(np.mean(hits), abs=1 / 320)
        assert found["epsilon_error"] == pytest.approx(np.mean(errors), rel=1e-3)
        assert found["interval"][0] < found["accuracy"] < found["interval"][1]
    assert evaluation.content["rca"]["accuracy"] > 0.5


def test_signs_and_lengths_that_the_bank_changed_are_undone(
    evaluation: Evaluation, toy: Generator, toy_bank: DirectionBank, toy_reconstructor: Path, tmp_path: Path
) -> None:
    turned = replace(toy_bank, directions=-toy_bank.directions)
    path = saved(
        tmp_path / "turned.safetensors", toy_reconstructor, bank_sha256=turned.sha256, lengths=[-1.0] * 5
    )
    found = evaluate(toy, turned, tmp_path, SMALL, reconstructor=path).content
    assert found["rca"] == evaluation.content["rca"]
    for row, before in zip(found["directions"], evaluation.content["directions"], strict=True):
        assert row["monotonicity"] == pytest.approx(before["monotonicity"])


def test_confusions_add_up(evaluation: Evaluation) -> None:
    content = evaluation.content
    confusion = np.array(content["confusion"])
    assert confusion.sum() == 320
    assert confusion.trace() / 320 == pytest.approx(content["rca"]["accuracy"])
    for row in content["directions"]:
        shares = [row["accuracy"], *[each["share"] for each in row["confusions"]]]
        assert sum(shares) == pytest.approx(1, abs=1e-4)


def test_the_background_is_what_scores_tell_it_is(
    evaluation: Evaluation, toy: Generator, toy_bank: DirectionBank
) -> None:
    background = int((toy_bank.directions[:, 0] @ toy.true_directions()[4, 0]).abs().argmax())
    rows = evaluation.content["directions"]
    for figure in ("score", "effect", "effect_slope", "separation", "change_consistency"):
        assert max(range(5), key=lambda index: rows[index][figure]) == background, figure
    assert evaluation.content["order"][0] == background


def test_figures_are_in_their_ranges(evaluation: Evaluation) -> None:
    for row in evaluation.content["directions"]:
        for figure in ("score", "accuracy", "smoothness", "separation", "overlap", "visibility"):
            assert 0 <= row[figure] <= 1, figure
        for figure in ("consistency", "change_consistency", "monotonicity"):
            assert -1 <= row[figure] <= 1, figure
        assert row["consistency"] > evaluation.content["likeness"]
        assert len(row["effects"]) == STEPS
        assert row["effects"][STEPS // 2] == 0
        assert row["dvn"] is None
    assert evaluation.content["dvn"] is None


def test_effects_are_measured_on_the_strips(
    evaluation: Evaluation, toy: Generator, toy_bank: DirectionBank
) -> None:
    latents = toy.mapping(toy.sample(range(4)))
    unshifted = toy.synthesis(latents)
    epsilons = evaluation.content["settings"]["epsilons"]
    assert (epsilons[0], epsilons[-1]) == (-3, 3)
    for index, row in enumerate(evaluation.content["directions"]):
        for epsilon, effect in zip(epsilons, row["effects"], strict=True):
            shifted = toy.synthesis(latents + toy_bank.shift(index, epsilon))
            expected = float((shifted - unshifted).abs().mean() * 127.5)
            assert effect == pytest.approx(expected, abs=1e-3)


def test_strips_are_those_of_the_first_seeds(
    evaluation: Evaluation, toy: Generator, toy_bank: DirectionBank
) -> None:
    assert [len(of_direction) for of_direction in evaluation.strips] == [4] * 5
    latents = toy.mapping(toy.sample([2]))
    images = toy.synthesis(latents + toy_bank.shifts(3, evaluation.content["settings"]["epsilons"]))
    expected = np.concatenate(list(to_uint8(images)), axis=1)
    found = decode(evaluation.strips[3][2])
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 3


def test_the_same_call_gives_the_same_json(
    evaluation: Evaluation, toy: Generator, toy_bank: DirectionBank, toy_reconstructor: Path, tmp_path: Path
) -> None:
    again = evaluate(toy, toy_bank, tmp_path, SMALL, reconstructor=toy_reconstructor)
    assert json.dumps(again.content, allow_nan=False) == json.dumps(evaluation.content)
    assert again.strips == evaluation.strips
    assert not list(tmp_path.iterdir())


def test_the_compiled_pair_of_graphs_gives_nearly_the_same(
    evaluation: Evaluation, toy_artifact: Artifact, toy_bank: DirectionBank, toy_reconstructor: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    network, content = load_reconstructor(toy_reconstructor)
    recorded = {name: content[name] for name in ("generator", "bank_sha256", "shifts", "training")}
    export_reconstructor(network, recorded, tmp_path / "judge")
    settings = replace(SMALL, backend="ort")
    opened = []
    found = evaluate(
        toy_artifact, toy_bank, tmp_path, settings, reconstructor=tmp_path / "judge", opened=opened.append
    )
    assert [runtime.backend for runtime in opened] == ["ort"]
    assert found.content["runtime"]["backend"] == found.content["reconstructor"]["backend"] == "ort"
    assert found.content["rca"]["accuracy"] == pytest.approx(
        evaluation.content["rca"]["accuracy"], abs=2 / 320
    )
    for row, other in zip(found.content["directions"], evaluation.content["directions"], strict=True):
        for figure in ("consistency", "smoothness", "effect", "separation"):
            assert row[figure] == pytest.approx(other[figure], rel=0.02, abs=0.01), figure


def test_curved_directions(toy: Generator, toy_bank: DirectionBank, tmp_path: Path) -> None:
    knots = torch.tensor([-3.0, 0.0, 3.0])
    paths = toy_bank.directions[:, None] * knots[:, None, None]
    bent = paths.clone()
    bent[0, 2] = 3 * toy_bank.directions[4]
    curved = replace(toy_bank, directions=bent, knots=knots)
    settings = EvaluationSettings(seeds=3, steps=0)
    rows = evaluate(toy, curved, tmp_path, settings).content["directions"]
    straight = evaluate(toy, toy_bank, tmp_path, settings).content["directions"]
    assert rows[1]["smoothness"] == pytest.approx(straight[1]["smoothness"])
    # One half of the path is the position, the other the background.
    assert rows[0]["overlap"] == pytest.approx(2**-0.5, abs=1e-5)
    assert rows[0]["overlap_with"] == 4
    # Beyond the last knot, 3 units along the other direction are the same as there.
    assert rows[0]["effects"][-1] == pytest.approx(straight[4]["effects"][-1], abs=1e-3)


def test_without_a_reconstructor_its_figures_are_not_measured(
    toy: Generator, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    found = evaluate(toy, toy_bank, tmp_path, EvaluationSettings(seeds=3, steps=0)).content
    assert (found["rca"], found["rca_training"], found["confusion"], found["likeness"]) == (None,) * 4
    assert found["reconstructor"] is None
    for row in found["directions"]:
        assert row["accuracy"] is row["consistency"] is row["monotonicity"] is None
        figures = [max(row[name], 0) for name in ("change_consistency", "smoothness", "visibility")]
        assert row["score"] == pytest.approx(np.prod(figures) ** (1 / 3), abs=1e-4)
    assert found["settings"]["epsilons"][-1] == 6


def test_one_is_trained_on_the_bank_as_it_is_and_kept(
    toy: Generator, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    found = evaluate(toy, toy_bank, tmp_path, replace(SMALL, steps=100))
    assert found.content["reconstructor"]["trained_here"]
    assert found.content["rca"]["accuracy"] > 0.35
    network, content = load_reconstructor(tmp_path / RECONSTRUCTOR_FILE)
    assert network.num_directions == 5
    assert content["bank_sha256"] == toy_bank.sha256
    # The folder of the run, or of an evaluation, may be named too.
    again = evaluate(toy, toy_bank, tmp_path / "none", SMALL, reconstructor=tmp_path)
    assert again.content["rca"] == found.content["rca"]
    assert not again.content["reconstructor"]["trained_here"]


def test_dvn_falls_where_real_pictures_do_not_vary(
    toy: Generator, toy_bank: DirectionBank, toy_reconstructor: Path, tmp_path: Path
) -> None:
    latents = toy.mapping(toy.sample(range(5000, 6600)))
    x = toy_bank.directions[0, 0]
    still = latents - (latents @ x)[..., None] * x
    bank = replace(
        toy_bank, **{
            name: getattr(toy_bank, name)[:1] for name in
            ("directions", "scales", "scores", "ranges", "labels", "tags", "judges")
        },
    )  # fmt: skip
    settings, found = EvaluationSettings(seeds=2, steps=0), {}
    for name, real in (("moves", latents), ("still", still)):
        np.savez(tmp_path / f"{name}.npz", x=to_uint8(toy.synthesis(real)))
        content = evaluate(toy, bank, tmp_path, settings, real=tmp_path / f"{name}.npz").content
        assert content["dvn"] == content["directions"][0]["dvn"]
        found[name] = content["dvn"]
    assert found["moves"] > 0.9
    assert found["still"] < 0.75


@pytest.mark.parametrize("fixture", ["conditional", "classes", "layered"])
def test_every_kind_of_generator(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    generator: Generator = request.getfixturevalue(fixture)
    bank = discover(generator, "random", num_directions=3)
    network = build_reconstructor("small", 3, 3, 16).eval()
    save_reconstructor(network, tmp_path / "judge.safetensors", {})
    found = evaluate(
        generator, bank, tmp_path, EvaluationSettings(seeds=2, batches=1),
        reconstructor=tmp_path / "judge.safetensors",
    ).content  # fmt: skip
    assert len(found["directions"]) == 3
    assert found["settings"]["shifts"] == {"name": "uniform", "scale": 6.0, "minimum": 0.5}


def test_progress_is_told_by_phase(
    toy: Generator, toy_bank: DirectionBank, toy_reconstructor: Path, tmp_path: Path
) -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    evaluate(
        toy, toy_bank, tmp_path, EvaluationSettings(seeds=2, batches=2), reconstructor=toy_reconstructor,
        progress=lambda phase, done, total: told.setdefault(phase, []).append((done, total)),
    )  # fmt: skip
    assert told == {
        "held-out pairs": [(1, 2), (2, 2)],
        "training pairs": [(1, 2), (2, 2)],
        "strips": [(n, 10) for n in range(1, 11)],
    }


def test_a_bank_of_another_generator(small_dcgan: Generator, toy_bank: DirectionBank, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="made for toy"):
        evaluate(small_dcgan, toy_bank, tmp_path, SMALL)


def test_an_artefact_cannot_train(toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=r"Pass --reconstructor .* or --steps 0"):
        evaluate(toy_artifact, toy_bank, tmp_path, SMALL)


def test_whoever_has_a_reconstructor_needs_nothing_that_trains_one(
    toy_bank: DirectionBank, toy_reconstructor: Path, python_without: Callable[..., str], tmp_path: Path
) -> None:
    toy_bank.save(tmp_path / "bank.safetensors")
    code = """
import sys
from pathlib import Path
from fastdirs.directions import load_bank
from fastdirs.errors import MissingDependencyError
from fastdirs.evaluation import EvaluationSettings, evaluate
from fastdirs.loading import load_generator

toy, bank = load_generator("toy", options={"resolution": "32"}), load_bank(sys.argv[1])
settings = EvaluationSettings(seeds=2, batches=1)
print(evaluate(toy, bank, Path(), settings, reconstructor=sys.argv[2]).content["rca"]["pairs"])
try:
    evaluate(toy, bank, Path(), settings)
except MissingDependencyError as error:
    print(error)
"""
    out = python_without(["lightning_fabric"], code, tmp_path / "bank.safetensors", toy_reconstructor)
    assert out.splitlines() == [
        "32",
        "Training a reconstructor needs lightning_fabric, which is not installed: "
        + install_hint("lightning_fabric"),
    ]


def other_bank(path: Path, given: Path, toy: Generator) -> Path:
    return saved(path, given, bank_sha256="0" * 64)


def other_generator(path: Path, given: Path, toy: Generator) -> Path:
    return saved(path, given, generator={**toy.identity(), "weights_sha256": "0" * 64})


def other_count(path: Path, given: Path, toy: Generator) -> Path:
    save_reconstructor(build_reconstructor("small", 4, 3, 32).eval(), path, {})
    return path


def damaged_shifts(path: Path, given: Path, toy: Generator) -> Path:
    return saved(path, given, shifts={"name": "uniform", "size": 3})


def larger_pictures(path: Path, given: Path, toy: Generator) -> Path:
    save_reconstructor(build_reconstructor("small", 5, 3, 64).eval(), path, {})
    return path


def no_file(path: Path, given: Path, toy: Generator) -> Path:
    return path


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (other_bank, BankError, "trained on other directions"),
        (other_generator, BankError, "made for toy"),
        (other_count, BankError, "tells 4 directions apart, but the bank has 5"),
        (damaged_shifts, CheckpointError, "is damaged"),
        (larger_pictures, ShapeError, "32 x 32 pixels do not average down to the 64"),
        (no_file, CheckpointError, "cannot be read: No such file"),
    ],
)
def test_reconstructors_that_do_not_belong_here(
    make: object, kind: type[FastdirsError], message: str, toy: Generator, toy_bank: DirectionBank,
    toy_reconstructor: Path, tmp_path: Path,
) -> None:  # fmt: skip
    path = make(tmp_path / "other.safetensors", toy_reconstructor, toy)
    with pytest.raises(kind, match=message):
        evaluate(toy, toy_bank, tmp_path, SMALL, reconstructor=path)


def test_answers_that_are_not_finite(
    toy: Generator, toy_bank: DirectionBank, toy_reconstructor: Path, tmp_path: Path
) -> None:
    network, _ = load_reconstructor(toy_reconstructor)
    (bias,) = (value for name, value in network.named_parameters() if name == "meter.bias")
    bias.fill_(3e38)
    network.meter.weight.fill_(3e38)
    save_reconstructor(network, tmp_path / "huge.safetensors", {})
    assert load_file(tmp_path / "huge.safetensors")["meter.bias"].isfinite().all()
    with pytest.raises(FastdirsError, match="answers on eager f32 are not finite"):
        evaluate(toy, toy_bank, tmp_path, SMALL, reconstructor=tmp_path / "huge.safetensors")


def test_unreadable_real_pictures_are_said_before_the_work(
    toy: Generator, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    started = []
    with pytest.raises(SelectionError, match="does not exist"):
        evaluate(
            toy, toy_bank, tmp_path, SMALL, real=tmp_path / "none",
            progress=lambda *told: started.append(told),
        )  # fmt: skip
    assert not started


@pytest.mark.parametrize("wrong", [{"seeds": 1}, {"batches": 0}, {"steps": -1}, {"seeds": 2_000_000}])
def test_settings_out_of_range(wrong: Json) -> None:
    with pytest.raises(SelectionError, match=f"{next(iter(wrong))}=.* is out of range"):
        EvaluationSettings(**wrong)


def test_a_folder_without_a_reconstructor(
    toy: Generator, toy_bank: DirectionBank, tmp_path: Path, toy_reconstructor: Path
) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(FastdirsError):
        evaluate(toy, toy_bank, tmp_path, SMALL, reconstructor=tmp_path / "run")
    shutil.copy(toy_reconstructor, tmp_path / "run" / RECONSTRUCTOR_FILE)
    found = evaluate(
        toy, toy_bank, tmp_path, EvaluationSettings(seeds=2, batches=1), reconstructor=tmp_path / "run"
    )
    assert found.content["rca"]["pairs"] == 32
