"""The training of the SN-GAN: what it writes, that it may be killed, what it says where data are missing."""

import io
import json
import runpy
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

import fastdirs

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "train_sngan.py"
STEPS, EVERY = 24, 6


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blobs at a place that says which of ten they are, as an npz file of the same form as MNIST's."""
    labels = np.arange(210) % 10
    rows, columns = np.mgrid[:28, :28]
    centres = 4 + 2 * labels[:, None, None]
    noise = np.random.default_rng(0).uniform(0, 20, (210, 28, 28))
    blobs = 230 * np.exp(-((rows - centres) ** 2 + (columns - 14) ** 2) / 20) + noise
    path = tmp_path_factory.mktemp("digits") / "blobs.npz"
    np.savez(path, x=blobs.astype(np.uint8), y=labels)
    return path


def command(data: Path, out: Path, *options: str) -> list[str]:
    settings = [f"--steps={STEPS}", "--width=8", "--batch=8", f"--every={EVERY}", *options]
    return [str(SCRIPT), f"--data={data}", f"--out={out}", *settings]


def run(data: Path, out: Path, *options: str) -> str:
    """What the script prints, run in this process, which has paid for the imports already."""
    threads = torch.get_num_threads()
    try:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
            patch.setattr(sys, "argv", command(data, out, *options))
            runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    return printed.getvalue()


@pytest.fixture(scope="module")
def straight(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody stopped."""
    out = tmp_path_factory.mktemp("straight")
    printed = run(digits, out)
    assert "steps/s" in printed
    assert "min left" in printed
    return out


def test_it_writes_a_generator_that_loads(straight: Path) -> None:
    generator = fastdirs.load_generator(straight / "sngan-mnist-32.safetensors")
    assert generator.family == "sngan"
    assert generator.provenance.name == "sngan-mnist-32"
    assert generator.provenance.licence == "Apache-2.0"
    assert f"steps {STEPS}, width 8, batch 8" in generator.provenance.source
    images = generator.synthesis(generator.mapping(generator.sample(range(5))))
    assert images.shape == (5, 1, 32, 32)
    assert torch.isfinite(images).all()
    assert images.abs().max() <= 1
    assert images.std(0).max() > 0.01, "all seeds show one picture"


def test_it_reports_settings_losses_and_what_the_judge_says(straight: Path) -> None:
    report = json.loads((straight / "training.json").read_text())
    assert report["settings"]["width"] == 8
    assert report["steps"] == STEPS
    assert len(report["losses"]["discriminator and generator"]) == STEPS // EVERY
    assert np.isfinite(report["losses"]["discriminator and generator"]).all()
    judge = report["judge"]
    assert sum(judge["histogram_generated"]) == 2000
    assert 0 <= judge["entropy_bits_generated"] <= np.log2(10)
    assert judge["frechet_generated_to_held_out"] > judge["frechet_learnt_to_held_out"] >= 0
    assert (straight / f"samples-{STEPS:06}.png").read_bytes().startswith(b"\x89PNG")


def test_killed_and_resumed_ends_with_the_same_bytes(digits: Path, straight: Path, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, *command(digits, tmp_path)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "checkpoint.safetensors").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "sngan-mnist-32.safetensors").exists(), "it was done before it was killed"
    assert "going on after step" in run(digits, tmp_path)
    name = "sngan-mnist-32.safetensors"
    assert (tmp_path / name).read_bytes() == (straight / name).read_bytes()


def test_other_settings_do_not_resume(digits: Path, straight: Path) -> None:
    with pytest.raises(SystemExit, match="has other settings"):
        run(digits, straight, "--rate=0.1")


def test_missing_digits(tmp_path: Path) -> None:
    arguments = command(tmp_path / "nothing.npz", tmp_path / "out")
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nothing.npz does not exist" in done.stderr
    assert "--data" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
