import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdirs.artifact import Artifact
from fastdirs.directions import DirectionBank
from fastdirs.discovery import discover
from fastdirs.errors import (
    BackendError,
    BankError,
    OutputError,
    SelectionError,
    UnknownNameError,
)
from fastdirs.gallery import traverse
from fastdirs.generators import Generator
from fastdirs.images import Pixels, decode, to_uint8
from fastdirs.latents import sample_z
from fastdirs.runtime import Runtime
from fastdirs.traversal import Portion
from fastdirs.writers import PLAN_FILE, Gallery

SMALL: dict[str, Any] = {
    "seeds": (0, 5, 9),
    "directions": (0, 3),
    "epsilons": (-2.0, 0.0, 1.5, 3.0),
    "image_format": "png",
    "writers": ("strips", "npy"),
    "backend": "ort",
    "precision": "f32",
    "batch_size": 4,
}


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _arrays(gallery: Gallery) -> Pixels:
    """All strips: `[strips, steps, height, width, channels]`."""
    paths = [
        gallery.strip_path(seed, direction, "npy", "npy")
        for seed in gallery.seeds
        for direction in gallery.directions
    ]
    return np.stack([np.load(path) for path in paths])


def test_files_are_the_images_themselves(toy: Generator, toy_bank: DirectionBank, tmp_path: Path) -> None:
    settings = {**SMALL, "backend": "eager", "batch_size": 1}
    gallery = traverse(toy, toy_bank, tmp_path / "out", psi=0.8, **settings)
    for seed in settings["seeds"]:
        latents = toy.mapping(sample_z([seed], toy.z_dim), psi=0.8)
        for direction in settings["directions"]:
            wanted = [
                to_uint8(toy.synthesis(latents + toy_bank.shift(direction, epsilon)))[0]
                for epsilon in settings["epsilons"]
            ]
            path = tmp_path / "out" / "strips" / f"direction-{direction:04d}" / f"seed-{seed:06d}.png"
            np.testing.assert_array_equal(decode(path.read_bytes()), np.concatenate(wanted, axis=1))
            np.testing.assert_array_equal(gallery.read_strip(seed, direction), np.stack(wanted))
            array = np.load(gallery.strip_path(seed, direction, "npy", "npy"), allow_pickle=False)
            np.testing.assert_array_equal(array, np.stack(wanted))
    # Directions do something, or the comparison would say nothing.
    assert np.ptp(_arrays(gallery).astype(int), axis=1).max() > 100


def test_the_unshifted_image_is_rendered_once_for_each_seed(
    toy: Generator, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    rendered: list[int] = []
    plans: list[Portion] = []
    handle = toy.stages[0].register_forward_hook(lambda stage, inputs, output: rendered.append(len(output)))
    try:
        settings = {**SMALL, "backend": "eager"}
        gallery = traverse(
            toy, toy_bank, tmp_path / "out", opened=lambda runtime, planned: plans.extend(planned), **settings
        )
    finally:
        handle.remove()
    (portion,) = plans
    plan = portion.plan
    assert portion.stage == 0, "the first stage of the toy reads its only layer"
    # Three seeds, two directions: 3 shifted images in each of 6 strips, and 3 unshifted ones.
    assert (plan.num_images, plan.num_rendered) == (24, 21)
    # One constant batch shape, the last one filled up.
    assert rendered == [4] * 6
    zero = _arrays(gallery)[:, 1]
    np.testing.assert_array_equal(zero[0::2], zero[1::2])


def test_the_manifest_says_what_was_asked_and_what_ran(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    opened: list[tuple[Runtime, Sequence[Portion]]] = []
    seen: list[tuple[str, int, int]] = []
    gallery = traverse(
        toy_artifact.folder,
        toy_bank,
        tmp_path / "out",
        **{
            **SMALL,
            "seeds": (9, 0, 9, 5),
            "epsilons": (3, -0.0, 0.0, -2, 1.5),
            "writers": ("atlas", "grids"),
        },
        psi=0.5,
        cutoff=1,
        progress=lambda *step: seen.append(step),
        opened=lambda runtime, planned: opened.append((runtime, planned)),
    )
    text = (tmp_path / "out" / PLAN_FILE).read_text()
    content = json.loads(text)
    assert content == gallery.content
    assert content["complete"] is True
    assert content["generator"] == toy_artifact.generator
    assert content["artifact"] == toy_artifact.sha256
    assert content["seeds"] == [9, 0, 5], "in the order asked for, repeats dropped"
    assert content["epsilons"] == [-2.0, 0.0, 1.5, 3.0], "ascending, -0 and 0 are one"
    assert "-0.0" not in text, "equal work gives equal bytes"
    assert (content["psi"], content["cutoff"], content["batch_size"]) == (0.5, 1, 4)
    assert content["bank"]["labels"] == list(toy_bank.labels)
    assert content["writers"] == ["strips", "atlas", "grids"], "views are made from strips"
    ((runtime, _),) = opened
    assert content["runtime"] == runtime.describe()
    assert content["runtime"]["backend"] == "ort"
    assert (tmp_path / "out" / "index.html").is_file()
    assert len(list((tmp_path / "out" / "strips").rglob("*.png"))) == 6
    # Progress only grows, and ends where all is done, phase by phase.
    assert list(dict.fromkeys(phase for phase, _, _ in seen)) == ["rendering", "atlas", "grids"]
    rendering = [done for phase, done, _ in seen if phase == "rendering"]
    assert rendering == sorted(rendering)
    assert ("rendering", 24, 24) in seen


def test_batch_size_changes_nothing_but_rounding(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    arrays = [
        _arrays(
            traverse(toy_artifact, toy_bank, tmp_path / str(size), **{**SMALL, "batch_size": size})
        ).astype(int)
        for size in (1, 3, 8)
    ]
    for other in arrays[1:]:
        assert np.abs(other - arrays[0]).max() <= 1


def test_batch_sizes(toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path) -> None:
    measured = traverse(toy_artifact, toy_bank, tmp_path / "measured", **{**SMALL, "batch_size": 0})
    assert measured.content["batch_size"] == 8, "the only candidate up to the largest that was verified"
    usual = traverse(toy_artifact, toy_bank, tmp_path / "usual", **{**SMALL, "batch_size": None})
    assert usual.content["batch_size"] == 4, "what the artefact was measured at"
    few = traverse(toy_artifact, toy_bank, tmp_path / "few", **{**SMALL, "seeds": (0,), "batch_size": 8})
    assert few.content["batch_size"] == 7, "no more than there are images"
    again = traverse(toy_artifact, toy_bank, tmp_path / "few", **{**SMALL, "seeds": (0,), "batch_size": 8})
    assert again.content == few.content


def test_a_generator_is_rendered_in_torch(toy: Generator, toy_bank: DirectionBank, tmp_path: Path) -> None:
    settings = {**SMALL, "backend": "auto", "precision": None, "batch_size": 0}
    gallery = traverse(toy, toy_bank, tmp_path / "out", **settings)
    assert gallery.content["runtime"]["backend"] == "eager"
    assert gallery.content["artifact"] is None
    assert 1 <= gallery.content["batch_size"] <= 21


def test_a_complete_folder_stays_as_it_is(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = {**SMALL, "writers": ("strips", "atlas")}
    traverse(toy_artifact, toy_bank, out, **settings)
    before = _contents(out)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    seen: list[tuple[str, int, int]] = []
    traverse(toy_artifact, toy_bank, out, progress=lambda *step: seen.append(step), **settings)
    assert _contents(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == times
    assert not any(phase == "rendering" for phase, _, _ in seen)
    # What was not asked for is chosen as before.
    assert traverse(
        toy_artifact, toy_bank, out, **{**settings, "backend": "auto", "precision": None, "batch_size": 0}
    )
    assert _contents(out) == before


def test_only_what_is_missing_is_made(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    gallery = traverse(toy_artifact, toy_bank, tmp_path / "out", **SMALL)
    before = _contents(gallery.folder)
    lost = gallery.strip_path(5, 3)
    kept = {path: path.stat().st_mtime_ns for path in gallery.folder.rglob("*.png") if path != lost}
    lost.unlink()
    leftover = lost.with_name(f".{lost.name}.12345.tmp")
    leftover.write_bytes(b"of a run that was killed")
    traverse(toy_artifact, toy_bank, tmp_path / "out", **SMALL)
    assert _contents(gallery.folder) == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("seeds", {"seeds": (0, 5)}),
        ("directions", {"directions": (0, 4)}),
        ("epsilons", {"epsilons": (-2.0, 0.0, 2.0)}),
        ("psi", {"psi": 0.9}),
        ("cutoff", {"cutoff": 0}),
        ("image_format", {"image_format": "webp"}),
        ("backend", {"backend": "openvino_cpu"}),
        ("precision", {"precision": "bf16"}),
        ("batch_size", {"batch_size": 3}),
    ],
)
def test_other_settings_are_named(
    toy_artifact: Artifact, toy_bank: DirectionBank, rendered: Gallery, name: str, change: dict[str, Any]
) -> None:
    before = _contents(rendered.folder)
    with pytest.raises(
        OutputError, match=rf"holds a traversal with other {name}\. Choose another --out, or pass --force"
    ):
        traverse(toy_artifact, toy_bank, rendered.folder, **{**SMALL, **change})
    assert _contents(rendered.folder) == before


@pytest.fixture(scope="module")
def rendered(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path_factory: pytest.TempPathFactory
) -> Gallery:
    """The small traversal, complete. Read only."""
    return traverse(toy_artifact, toy_bank, tmp_path_factory.mktemp("rendered") / "out", **SMALL)


def test_another_bank_source_or_library_is_named(
    toy_artifact: Artifact, toy: Generator, toy_bank: DirectionBank, rendered: Gallery, tmp_path: Path
) -> None:
    turned = replace(toy_bank, directions=-toy_bank.directions)
    with pytest.raises(OutputError, match="other bank"):
        traverse(toy_artifact, turned, rendered.folder, **SMALL)
    with pytest.raises(OutputError, match="other artifact"):
        traverse(toy, toy_bank, rendered.folder, **SMALL)
    content = json.loads((rendered.folder / PLAN_FILE).read_text())
    content["runtime"]["provider"] = "ONNX Runtime 0.1"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / PLAN_FILE).write_text(json.dumps(content))
    with pytest.raises(OutputError, match=r"was begun with ONNX Runtime 0\.1, but here is .*--force"):
        traverse(toy_artifact, toy_bank, tmp_path / "out", **SMALL)
    (tmp_path / "out" / PLAN_FILE).write_text("{")
    with pytest.raises(OutputError, match="holds no traversal"):
        traverse(toy_artifact, toy_bank, tmp_path / "out", **SMALL)


def test_names_and_outputs_change_without_rendering_again(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    settings = {**SMALL, "writers": ("strips",)}
    gallery = traverse(toy_artifact, toy_bank, tmp_path / "out", **settings)
    strips = {path: path.stat().st_mtime_ns for path in (gallery.folder / "strips").rglob("*.png")}
    named = replace(toy_bank, labels=("to the left", *toy_bank.labels[1:]))
    traverse(toy_artifact, named, tmp_path / "out", **{**settings, "writers": ("atlas", "grids")})
    assert strips == {path: path.stat().st_mtime_ns for path in strips}
    assert "to the left" in (gallery.folder / "index.html").read_text()
    assert list((gallery.folder / "grids").iterdir())


def test_only_the_traversal_is_replaced(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    settings = {**SMALL, "writers": ("strips",)}
    traverse(toy_artifact, toy_bank, tmp_path / "out", **settings)
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    traverse(toy_artifact, toy_bank, tmp_path / "out", **{**settings, "seeds": (9,)}, force=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    (tmp_path / "trips").mkdir()
    (tmp_path / "trips" / PLAN_FILE).write_text('{"my": "trip"}')
    with pytest.raises(OutputError, match="holds no traversal"):
        traverse(toy_artifact, toy_bank, tmp_path / "trips", **settings, force=True)
    assert [path.name for path in (tmp_path / "trips").iterdir()] == [PLAN_FILE]


def test_force_begins_again(toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path) -> None:
    out = tmp_path / "out"
    traverse(toy_artifact, toy_bank, out, **SMALL)
    fewer = {**SMALL, "seeds": (7,), "writers": ("strips",)}
    gallery = traverse(toy_artifact, toy_bank, out, force=True, **fewer)
    assert set(_contents(out)) == {
        PLAN_FILE,
        *(str(gallery.strip_path(7, direction).relative_to(out)) for direction in (0, 3)),
    }


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (SelectionError, {"psi": float("nan")}),
        (SelectionError, {"batch_size": 9}),
        (SelectionError, {"seeds": (0, 2**63)}),
        (BackendError, {"backend": "eager"}),
        (UnknownNameError, {"backend": "tpu"}),
    ],
)
def test_a_mistake_with_force_costs_nothing(
    toy_artifact: Artifact,
    toy_bank: DirectionBank,
    rendered: Gallery,
    error: type[Exception],
    change: dict[str, Any],
) -> None:
    before = _contents(rendered.folder)
    with pytest.raises(error):
        traverse(toy_artifact, toy_bank, rendered.folder, force=True, **{**SMALL, **change})
    assert _contents(rendered.folder) == before


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_traversal_is_left_alone(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path, force: bool
) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    for out in (folder, folder / "chapter.txt"):
        with pytest.raises(
            OutputError, match=r"holds no traversal, so it is left alone \(even with --force\)"
        ):
            traverse(toy_artifact, toy_bank, out, force=force, **SMALL)
    with pytest.raises(OutputError, match="could not be written"):
        traverse(toy_artifact, toy_bank, folder / "chapter.txt" / "out", force=force, **SMALL)
    assert _contents(folder) == {"chapter.txt": b"years of work"}


def test_an_empty_folder_is_filled(toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path) -> None:
    traverse(toy_artifact, toy_bank, tmp_path, **{**SMALL, "seeds": (1,)})
    assert (tmp_path / PLAN_FILE).is_file()


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (UnknownNameError, r"no writer 'strip'. Did you mean 'strips'\?", {"writers": ("strip",)}),
        (UnknownNameError, r"no image format 'jpeg'. Did you mean 'jpg'\?", {"image_format": "jpeg"}),
        (UnknownNameError, "no backend 'tpu'", {"backend": "tpu"}),
        (SelectionError, "There is no direction 5. The bank has 5: 0 to 4", {"directions": (0, 5)}),
        (SelectionError, "There is no direction -1", {"directions": (-1,)}),
        (SelectionError, r"Epsilon 1001 is out of range", {"epsilons": (0.0, 1001.0)}),
        (SelectionError, r"Epsilon nan is out of range", {"epsilons": (float("nan"),)}),
        (SelectionError, r"Seed 9223372036854775808 is out of range", {"seeds": (0, 2**63)}),
        (SelectionError, r"Seed -1 is out of range", {"seeds": (3, -1)}),
        (SelectionError, "The plan has no seed", {"seeds": ()}),
        (SelectionError, "The plan has no direction", {"directions": ()}),
        (SelectionError, "The plan has no epsilon", {"epsilons": ()}),
        (SelectionError, "psi is nan", {"psi": float("nan")}),
        (SelectionError, "Cutoff 2 is out of range", {"cutoff": 2}),
        (SelectionError, "Batch size -1 is out of range", {"batch_size": -1}),
        (SelectionError, r"A batch of 9 is out of range.*verified for 1 to 8", {"batch_size": 9}),
    ],
)
def test_what_does_not_exist_is_named_and_nothing_is_written(
    toy_artifact: Artifact,
    toy_bank: DirectionBank,
    tmp_path: Path,
    error: type[Exception],
    message: str,
    change: dict[str, Any],
) -> None:
    with pytest.raises(error, match=message):
        traverse(toy_artifact, toy_bank, tmp_path / "out", **{**SMALL, **change})
    assert list(tmp_path.iterdir()) == []


def test_a_bank_of_another_generator(toy_artifact: Artifact, small_dcgan: Generator, tmp_path: Path) -> None:
    other = discover(small_dcgan, "sefa", num_directions=2)
    with pytest.raises(BankError, match=r"The bank was made for small-dcgan .* but this is toy"):
        traverse(toy_artifact, other, tmp_path / "out", seeds=(0,))
    assert list(tmp_path.iterdir()) == []
