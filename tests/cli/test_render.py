import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from fastdirs.artifact import Artifact
from fastdirs.generators import Generator


@pytest.fixture
def artifact(toy_artifact: Artifact) -> str:
    return str(toy_artifact.folder)


def test_a_folder_of_images(run: Callable[..., Result], artifact: str, tmp_path: Path) -> None:
    result = run("render", artifact, "--out", "images")
    assert result.exit_code == 0, result.output
    assert result.stdout == "images/grid.png\n"
    assert "fastest of " in result.stderr
    assert "error against torch fp32 on this machine: mean " in result.stderr
    assert "16 images" in result.stderr
    made = {path.name for path in (tmp_path / "images").iterdir()}
    assert made == {*(f"seed{seed:04d}.png" for seed in range(16)), "grid.png", "manifest.json"}
    with Image.open(tmp_path / "images" / "grid.png") as grid:
        assert grid.size == (4 * 32, 4 * 32)


def test_an_array(run_json: Callable[..., Any], toy: Generator, tmp_path: Path) -> None:
    content = run_json(
        "render", "toy", "--generator-option", "resolution=32", "--seeds", "5,9", "--psi", 0.5, "--cutoff", 1,
        "--batch", 1, "--out", "images.npy",
    )  # fmt: skip
    assert content["out"] == "images.npy"
    assert (content["seeds"], content["psi"], content["cutoff"]) == ([5, 9], 0.5, 1)
    wanted = toy.synthesis(toy.mapping(toy.sample([5, 9]), psi=0.5)).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("c", "listed"), [("3", [3, 3, 3, 3, 3]), ("0,2", [0, 2, 0, 2, 0]), ("1-3", [1, 2, 3, 1, 2])]
)
def test_classes(run_json: Callable[..., Any], classes_artifact: Artifact, c: str, listed: list[int]) -> None:
    content = run_json("render", classes_artifact.folder, "--seeds", "0-4", "--class", c, "--out", "images")
    assert content["classes"] == listed


def test_random_classes(run_json: Callable[..., Any], classes_artifact: Artifact, classes: Generator) -> None:
    content = run_json("render", classes_artifact.folder, "--class", "random", "--out", "images.npy")
    drawn = classes.sample_classes(range(16))
    assert drawn is not None
    assert content["classes"] == drawn.tolist()


def test_given_latents(run: Callable[..., Result], artifact: str, toy: Generator, tmp_path: Path) -> None:
    latents = toy.mapping(toy.sample([5, 9])).numpy()
    np.savez(tmp_path / "given.npz", latents=latents)
    result = run("render", artifact, "--latents", "given.npz", "--image-format", "jpg", "--out", "images")
    assert result.exit_code == 0, result.output
    assert result.stdout == "images/grid.jpg\n"
    made = {path.name for path in (tmp_path / "images").iterdir()}
    assert made == {"image0000.jpg", "image0001.jpg", "grid.jpg", "manifest.json"}
    assert run("render", artifact, "--latents", "given.npz", "--out", "images").exit_code == 1
    assert run("render", artifact, "--latents", "given.npz", "--out", "images", "--force").exit_code == 0


def test_own_code(run: Callable[..., Result], own_module: str) -> None:
    result = run("render", "--generator", f"{own_module}:make", "--seeds", 3, "--out", "images")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("--seeds", "0", "--latents", "x.npz"), 2, "--seeds and --latents exclude each other"),
        (("--latents", "none.npz"), 1, "none.npz does not exist"),
        (("--seeds", "all"), 1, "Seeds have no 'all'"),
        (("--class", "0"), 1, "toy takes no class. Leave it out"),
        (("--class", "all"), 2, "--class has no 'all'"),
        (("--class", "cat"), 1, "'cat' is not a list of class numbers"),
        (("--batch", "0"), 2, "0 is not in the range"),
        (("--batch", "9"), 1, "A batch of 9 is out of range"),
        (("--psi", "nan"), 1, "psi is nan"),
        (("--backend", "openvino"), 1, "Did you mean 'openvino_cpu'?"),
        (("--precision", "f16"), 1, "'f16'"),
        (("--image-format", "bmp"), 2, "'bmp' is not one of"),
    ],
)
def test_wrong_arguments(
    run: Callable[..., Result], artifact: str, tmp_path: Path, arguments: tuple[str, ...], exit_code: int,
    message: str,
) -> None:  # fmt: skip
    result = run("render", artifact, *arguments, "--out", "images")
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert not result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_class_is_asked_for(run: Callable[..., Result], classes_artifact: Artifact) -> None:
    result = run("render", classes_artifact.folder, "--out", "images")
    assert result.exit_code == 1
    assert "classes needs a class. Name one from 0 to 3." in result.stderr


def test_an_array_has_no_image_format(run: Callable[..., Result], artifact: str) -> None:
    result = run("render", artifact, "--image-format", "jpg", "--out", "images.npy")
    assert result.exit_code == 2
    assert "--image-format does not apply to an array" in result.stderr


@pytest.mark.parametrize("out", ["images", "images.npy"])
def test_ctrl_c_leaves_nothing(artifact: str, tmp_path: Path, out: str) -> None:
    command = [sys.executable, "-m", "fastdirs", "render", artifact, "--backend", "ort"]
    command += ["--seeds", "0-999999", "--batch", "1", "--out", out]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(_size(path) > 100_000 for path in tmp_path.iterdir()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    assert "Interrupted. Nothing half-written was kept" in process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert list(tmp_path.iterdir()) == []


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in path.iterdir()) if path.is_dir() else path.stat().st_size
