"""Traversals that are killed, interrupted, crowded or long."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdirs
from fastdirs.artifact import Artifact
from fastdirs.directions import DirectionBank
from fastdirs.discovery import discover
from fastdirs.errors import (
    OutputError,
    SelectionError,
)
from fastdirs.gallery import traverse
from fastdirs.images import decode
from fastdirs.machine import resident_mib
from fastdirs.writers import PLAN_FILE

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


def test_a_folder_that_another_run_fills_is_left_to_it(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    def fill_meanwhile(*_: object) -> None:
        traverse(toy_artifact, toy_bank, tmp_path / "out", **SMALL)

    with pytest.raises(OutputError, match="was filled by another run in the meantime"):
        traverse(toy_artifact, toy_bank, tmp_path / "out", **SMALL, opened=fill_meanwhile)
    before = _contents(tmp_path / "out")

    def inside(phase: str, done: int, total: int) -> None:
        with pytest.raises(OutputError, match="is being filled by another run"):
            traverse(toy_artifact, toy_bank, tmp_path / "other", **SMALL)

    traverse(toy_artifact, toy_bank, tmp_path / "other", **SMALL, progress=inside)
    assert _contents(tmp_path / "out") == before


@pytest.mark.parametrize(("image_format", "widest"), [("jpg", 65_500), ("webp", 16_383)])
def test_strips_that_the_format_cannot_hold(
    image_format: str, widest: int, toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    most = widest // toy_artifact.generator["img_resolution"]
    epsilons = np.linspace(-6, 6, most + 1)
    settings = {**SMALL, "image_format": image_format, "epsilons": epsilons, "writers": ("strips",)}
    with pytest.raises(SelectionError, match=f"too wide for {image_format}"):
        traverse(toy_artifact, toy_bank, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
    fits = {**settings, "epsilons": epsilons[:-1], "seeds": np.arange(1), "directions": np.array([0])}
    gallery = traverse(toy_artifact, toy_bank, tmp_path / "out", **fits)
    assert len(gallery.read_strip(0, 0)) == most


def test_seeds_that_are_no_whole_numbers(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    with pytest.raises(SelectionError, match="Expected whole numbers"):
        traverse(toy_artifact, toy_bank, tmp_path / "out", **{**SMALL, "seeds": (1.5,)})


_LONG = """
import os, resource, signal, sys, threading
import fastdirs

artifact, bank, out, backend, how = sys.argv[1:]
if how == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 2**10, resource.RLIM_INFINITY))
begun = []

def progress(phase, done, total):
    if done < total // 3 or begun or how == "full":
        return
    begun.append(done)
    if how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    # A little later, when the main thread is somewhere else.
    threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGINT)).start()

fastdirs.traverse(
    artifact, fastdirs.load_bank(bank), out, range(80), image_format="png",
    writers=("npy", "strips", "atlas"), backend=backend,
    precision=None if backend == "auto" else "f32", batch_size=8, progress=progress,
)
"""
_LONG_SETTINGS: dict[str, Any] = {
    "seeds": range(80),
    "image_format": "png",
    "writers": ("npy", "strips", "atlas"),
    "batch_size": 8,
}


@pytest.fixture
def run_long(
    toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> Callable[[Path, str, str], "subprocess.CompletedProcess[str]"]:
    """Begin 400 strips in another process, which does not get to their end: `run_long(out, backend, how)`."""
    toy_bank.save(tmp_path / "bank.safetensors")

    def run(out: Path, backend: str, how: str) -> "subprocess.CompletedProcess[str]":
        arguments = [toy_artifact.folder, tmp_path / "bank.safetensors", out, backend, how]
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", _LONG, *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize("backend", ["ort", "auto"])
def test_a_killed_run_continues_to_the_same_bytes(
    toy_artifact: Artifact,
    toy_bank: DirectionBank,
    tmp_path: Path,
    run_long: Callable[[Path, str, str], "subprocess.CompletedProcess[str]"],
    backend: str,
) -> None:
    out = tmp_path / "killed"
    assert run_long(out, backend, "SIGKILL").returncode == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in out.rglob("seed-*")}
    assert 100 < len(done) < 800, "in the middle of 400 strips and 400 arrays"
    begun = json.loads((out / PLAN_FILE).read_text())
    assert begun["complete"] is False

    seen: list[tuple[str, int, int]] = []
    precision = "f32" if backend == "ort" else None
    traverse(
        toy_artifact,
        toy_bank,
        out,
        backend=backend,
        precision=precision,
        progress=lambda *step: seen.append(step),
        **_LONG_SETTINGS,
    )
    assert {path: path.stat().st_mtime_ns for path in done} == done, "what was there was not made again"
    assert seen[0][1] > 400, "progress begins where the run was killed"

    chosen = begun["runtime"]
    traverse(
        toy_artifact,
        toy_bank,
        tmp_path / "whole",
        backend=chosen["backend"],
        precision=chosen["precision"],
        **_LONG_SETTINGS,
    )
    assert _contents(out) == _contents(tmp_path / "whole")


def _check_whole(out: Path) -> None:
    """Whatever is there can be read, and nothing else is there."""
    strips, arrays = list(out.rglob("*.png")), list(out.rglob("*.npy"))
    for path in strips:
        assert decode(path.read_bytes()).shape == (32, 9 * 32, 3)
    for path in arrays:
        assert np.load(path).shape == (9, 32, 32, 3)
    assert set(_contents(out)) == {PLAN_FILE, *(str(path.relative_to(out)) for path in strips + arrays)}
    assert json.loads((out / PLAN_FILE).read_text())["complete"] is False


def test_an_interrupted_run_leaves_whole_files(
    tmp_path: Path, run_long: Callable[[Path, str, str], "subprocess.CompletedProcess[str]"]
) -> None:
    done = run_long(tmp_path / "out", "ort", "SIGINT")
    assert done.returncode == -signal.SIGINT
    assert done.stderr.strip().endswith("KeyboardInterrupt")
    assert 50 < len(list(tmp_path.rglob("*.png"))) < 400, "in the middle"
    _check_whole(tmp_path / "out")


def test_a_full_disk(
    tmp_path: Path, run_long: Callable[[Path, str, str], "subprocess.CompletedProcess[str]"]
) -> None:
    # A limit on the size of a file stands for a disk without room: an array of 27 KiB does not fit.
    done = run_long(tmp_path / "out", "ort", "full")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("fastdirs.errors.OutputError: ")
    assert ".npy could not be written: File too large" in last
    assert list(tmp_path.rglob("*.npy")) == []
    _check_whole(tmp_path / "out")


def test_slow_writing_holds_the_rendering_back(tmp_path: Path) -> None:
    generator = fastdirs.load_generator("toy")
    bank = discover(generator, "sefa", num_directions=5)
    rendered: list[int] = []
    waiting: list[float] = []
    generator.stages[0].register_forward_hook(lambda stage, inputs, output: rendered.append(len(output)))
    traverse(
        generator,
        bank,
        tmp_path / "out",
        range(60),
        image_format="webp",
        writers=("strips",),
        batch_size=64,
        # Of each seed 41 images are rendered and 45 shown, 9 in a strip.
        progress=lambda phase, done, total: waiting.append((sum(rendered) * 45 / 41 - done) / 9),
    )
    # 64 strips wait for their encoder, and two batches are on their way; without a bound, 200 of 300 strips.
    assert 20 < max(waiting) < 90


@pytest.mark.parametrize("num_seeds", [500, pytest.param(2500, marks=pytest.mark.slow)])
def test_memory_does_not_grow(tmp_path: Path, num_seeds: int) -> None:
    generator = fastdirs.load_generator("toy", options={"resolution": "16"})
    bank = discover(generator, "sefa", num_directions=5)
    settings: dict[str, Any] = {"epsilons": np.linspace(-6, 6, 8), "writers": ("strips",), "batch_size": 64}
    # What is loaded on first use is no growth.
    traverse(generator, bank, tmp_path / "warm-up", range(20), **settings)
    before = resident_mib()
    held: list[float] = []
    gallery = traverse(
        generator,
        bank,
        tmp_path / "out",
        range(num_seeds),
        progress=lambda *step: held.append(resident_mib()),
        **settings,
    )
    # 20,000 images, and 100,000.
    assert len(held) * len(gallery.epsilons) == 40 * num_seeds
    assert max(held) - before < 60
