"""The wheel holds the package, the whole package and nothing but the package."""

import email
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fastdirs

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    # The build backend itself: no isolated environment, so no network.
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def info(name: str) -> str:
    return f"fastdirs-{fastdirs.__version__}.dist-info/{name}"


def test_the_files_are_exactly_those_of_the_package(wheel: zipfile.ZipFile) -> None:
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "fastdirs").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    metadata = {
        info(name) for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }
    assert set(wheel.namelist()) == package | metadata


def test_data_travels_along(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "fastdirs/py.typed" in names
    assert "fastdirs/writers/atlas.html" in names
    assert "fastdirs/zoo/celeba-faces-64.toml" in names
    assert {name.partition("/")[0] for name in names} == {"fastdirs", info("").rstrip("/")}


def test_metadata(wheel: zipfile.ZipFile) -> None:
    metadata = email.message_from_bytes(wheel.read(info("METADATA")))
    assert metadata["Name"] == "fastdirs"
    assert metadata["Version"] == fastdirs.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    extras = set(metadata.get_all("Provides-Extra", []))
    assert {"cpu", "gpu", "rtx", "video", "dev"} <= extras
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    names = {line.split(">")[0] for line in required}
    assert names == {
        "click", "filelock", "jinja2", "numpy", "onnx", "onnxscript", "pillow", "rich", "safetensors",
        "torch",
    }  # fmt: skip
    assert "fastdirs = fastdirs.cli:main" in wheel.read(info("entry_points.txt")).decode()


def test_it_runs_from_the_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", "import fastdirs; print(fastdirs.__file__)"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path), (
        "the wheel's own package is tested, not the checkout"
    )
    command = [sys.executable, "-m", "fastdirs", "list", "zoo"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "celeba-faces-64" in done.stdout
