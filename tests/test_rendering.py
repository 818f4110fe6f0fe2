"""Plain sampling into a folder, or into one array."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastdirs
from fastdirs.artifact import Artifact
from fastdirs.errors import OutputError, SelectionError, UnknownNameError
from fastdirs.generators import Generator
from fastdirs.images import to_uint8
from fastdirs.machine import resident_mib
from fastdirs.manifest import sha256_file
from fastdirs.rendering import MANIFEST, render
from fastdirs.runtime import Runtime
from fastdirs.samples import Sample


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def _images(generator: Generator, seeds: Any, c: Any = None, psi: float = 1.0) -> np.ndarray:
    return generator.synthesis(generator.mapping(generator.sample(seeds), c, psi), c).numpy()


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder(toy: Generator, tmp_path: Path) -> None:
    seeds, steps = [17, 3, 5, 0, 9], []
    content = render(
        toy, tmp_path / "out", seeds, psi=0.7, batch_size=2, progress=lambda *step: steps.append(step)
    )
    assert steps == [(2, 5), (4, 5), (5, 5)]
    assert content == json.loads((tmp_path / "out" / MANIFEST).read_text())
    files = [f"seed{seed:04d}.png" for seed in seeds]
    assert content["files"] == [*files, "grid.png"]
    assert _names(tmp_path / "out") == {*content["files"], MANIFEST}
    assert content["generator"] == toy.identity()
    assert content["seeds"] == seeds
    assert (content["psi"], content["cutoff"], content["classes"]) == (0.7, None, None)
    assert content["runtime"]["backend"] == "eager"
    wanted = to_uint8(_images(toy, seeds, psi=0.7))
    for file, pixels in zip(files, wanted, strict=True):
        difference = _pixels(tmp_path / "out" / file).astype(int) - pixels
        assert np.abs(difference).max() <= 1, "rounding alone"
    grid = _pixels(tmp_path / "out" / "grid.png")
    assert grid.shape == (2 * 32, 3 * 32, 3)
    np.testing.assert_array_equal(grid[32:, 32:64], _pixels(tmp_path / "out" / files[4]))
    assert grid[32:, 64:].max() == 0, "an empty place"


def test_an_array(toy_artifact: Artifact, toy: Generator, tmp_path: Path) -> None:
    opened: list[tuple[Runtime, Sample]] = []
    content = render(
        toy_artifact.folder, tmp_path / "out.npy", range(11), batch_size=4, backend="ort",
        opened=lambda *found: opened.append(found),
    )  # fmt: skip
    assert _names(tmp_path) == {"out.npy", "out.json"}
    assert content == json.loads((tmp_path / "out.json").read_text())
    assert content["files"] == ["out.npy"]
    assert content["artifact"] == toy_artifact.sha256
    assert content["image_format"] is None
    images = np.load(tmp_path / "out.npy", allow_pickle=False, mmap_mode="r")
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, _images(toy, range(11)), atol=1e-4)
    ((runtime, sample),) = opened
    assert (runtime.backend, len(sample)) == ("ort", 11)


def test_nothing_is_clipped(layered: Generator, tmp_path: Path) -> None:
    class Loud(torch.nn.Module):
        def forward(self, state: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            return 5 * state

    layered.stages.append(Loud())
    try:
        render(layered, tmp_path / "out.npy", [0, 1])
        render(layered, tmp_path / "out", [0, 1])
    finally:
        del layered.stages[-1]
    images = np.load(tmp_path / "out.npy")
    assert np.abs(images).max() > 1
    np.testing.assert_array_equal(_pixels(tmp_path / "out" / "seed0001.png"), to_uint8(images)[1])


@pytest.mark.parametrize("image_format", ["png", "jpg", "webp"])
def test_image_formats(toy: Generator, tmp_path: Path, image_format: str) -> None:
    content = render(toy, tmp_path / "out", [4], image_format=image_format)
    assert content["files"] == [f"seed0004.{image_format}", f"grid.{image_format}"]
    difference = _pixels(tmp_path / "out" / content["files"][0]) - to_uint8(_images(toy, [4]))[0].astype(
        float
    )
    assert np.abs(difference).mean() < 4


def test_grey_images(random_dcgan: Any, tmp_path: Path) -> None:
    generator = fastdirs.ModuleGenerator(random_dcgan(channels=1), z_dim=8, name="grey")
    render(generator, tmp_path / "out", range(3))
    grid = _pixels(tmp_path / "out" / "grid.png")
    assert grid.ndim == 2
    np.testing.assert_array_equal(
        grid[: grid.shape[0] // 2, : grid.shape[1] // 2], _pixels(tmp_path / "out" / "seed0000.png")
    )


def test_the_grid_holds_the_first_images(toy: Generator, tmp_path: Path) -> None:
    content = render(toy, tmp_path / "out", range(70))
    assert len(content["files"]) == 71
    grid = _pixels(tmp_path / "out" / "grid.png")
    assert grid.shape == (8 * 32, 8 * 32, 3)
    np.testing.assert_array_equal(grid[-32:, -32:], _pixels(tmp_path / "out" / "seed0063.png"))


@pytest.mark.parametrize("backend", ["eager", "ort"])
def test_classes_in_turn(
    classes: Generator, classes_artifact: Artifact, tmp_path: Path, backend: str
) -> None:
    source = classes if backend == "eager" else classes_artifact
    content = render(source, tmp_path / "out.npy", range(5), psi=0.6, c=[2, 0], backend=backend, batch_size=2)
    assert content["classes"] == [2, 0, 2, 0, 2]
    wanted = _images(classes, range(5), np.array([2, 0, 2, 0, 2]), psi=0.6)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, atol=1e-4)


def test_given_latents_and_mixtures_of_classes(classes: Generator, tmp_path: Path) -> None:
    latents = classes.mapping(classes.sample(range(3)), psi=0.5)
    weights = torch.rand(3, 4)
    np.savez(tmp_path / "given.npz", latents=latents.numpy(), c=weights.numpy())
    content = render(classes, tmp_path / "out.npy", latents=tmp_path / "given.npz")
    assert content["given"] == {
        "file": "given.npz", "sha256": sha256_file(tmp_path / "given.npz"), "holds": ["c", "latents"],
    }  # fmt: skip
    wanted = classes.synthesis(latents, weights).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, atol=1e-5)
    render(classes, tmp_path / "out", latents=tmp_path / "given.npz", image_format="webp")
    assert _names(tmp_path / "out") == {*(f"image000{i}.webp" for i in range(3)), "grid.webp", MANIFEST}


def test_given_z(layered: Generator, tmp_path: Path) -> None:
    np.savez(tmp_path / "given.npz", z=layered.sample([7, 8]).numpy())
    render(layered, tmp_path / "given.npy", latents=tmp_path / "given.npz", psi=0.5)
    render(layered, tmp_path / "seeds.npy", [7, 8], psi=0.5)
    np.testing.assert_array_equal(np.load(tmp_path / "given.npy"), np.load(tmp_path / "seeds.npy"))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, SelectionError, "Name either seeds or a file of latents"),
        ({"seeds": [0], "latents": "given.npz"}, SelectionError, "Name either seeds or a file"),
        ({"seeds": [0], "batch_size": 0}, SelectionError, "Batch size 0 is out of range"),
        ({"seeds": [0], "psi": float("nan")}, SelectionError, "psi is nan"),
        ({"seeds": [0], "cutoff": 5}, SelectionError, "Cutoff 5 is out of range"),
        ({"seeds": [0], "image_format": "bmp"}, UnknownNameError, "'bmp'"),
        ({"seeds": [0], "backend": "egaer"}, UnknownNameError, "Did you mean 'eager'"),
    ],
)
@pytest.mark.parametrize("out", ["out", "out.npy"])
def test_mistakes_leave_nothing(
    toy: Generator, tmp_path: Path, out: str, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        render(toy, tmp_path / out, **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_beyond_what_was_verified(toy_artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=r"A batch of 9 is out of range.*1 to 8"):
        render(toy_artifact, tmp_path / "out", range(20), batch_size=9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["out", "out.npy"])
def test_an_interruption_leaves_nothing_new(toy: Generator, tmp_path: Path, out: str) -> None:
    def interrupt(done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(toy, tmp_path / out, range(20), batch_size=2, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    before = render(toy, tmp_path / out, range(3))
    with pytest.raises(KeyboardInterrupt):
        render(toy, tmp_path / out, range(20), batch_size=2, progress=interrupt, force=True)
    manifest = tmp_path / "out.json" if out.endswith("npy") else tmp_path / out / MANIFEST
    assert json.loads(manifest.read_text()) == before, "what was there is still there"


@pytest.mark.parametrize("out", ["out", "out.npy"])
def test_what_exists_is_replaced_by_force_alone(toy: Generator, tmp_path: Path, out: str) -> None:
    render(toy, tmp_path / out, range(3))
    with pytest.raises(OutputError, match=r"exists already\. Choose another --out, or pass --force"):
        render(toy, tmp_path / out, range(2))
    again = render(toy, tmp_path / out, range(2), force=True)
    if out == "out":
        assert _names(tmp_path / out) == {*again["files"], MANIFEST}
    else:
        assert len(np.load(tmp_path / out)) == 2


def test_what_is_not_ours_is_left_alone(toy: Generator, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    np.save(tmp_path / "results.npy", np.arange(3))
    (tmp_path / "notes.json").write_text("{}")
    for out in ("thesis", "results.npy", "notes.npy"):
        for force in (False, True):
            with pytest.raises(OutputError, match=r"exists already|not (made|written) by this command"):
                render(toy, tmp_path / out, [0], force=force)
    assert np.load(tmp_path / "results.npy").tolist() == [0, 1, 2]
    assert (tmp_path / "notes.json").read_text() == "{}"
    assert _names(tmp_path) == {"thesis", "results.npy", "notes.json"}
    # A manifest whose array was lost is ours.
    render(toy, tmp_path / "mine.npy", [0])
    (tmp_path / "mine.npy").unlink()
    render(toy, tmp_path / "mine.npy", [1])


@pytest.mark.parametrize("out", ["out", "out.npy"])
def test_memory_does_not_grow(toy: Generator, tmp_path: Path, out: str) -> None:
    held: list[float] = []
    render(toy, tmp_path / "warm", range(64))
    render(
        toy,
        tmp_path / out,
        range(4096),
        batch_size=64,
        progress=lambda done, total: held.append(resident_mib()),
    )
    # All images together take 48 MiB.
    assert held[-1] - held[len(held) // 4] < 16
