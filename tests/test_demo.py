"""The first command of the README, as far as it goes after the installation."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "demo.py"
NO_NETWORK = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
_TIMEOUT_S = 60


def run(folder: Path, **environment: str) -> str:
    variables = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), **environment}
    done = subprocess.run(
        [sys.executable, DEMO], cwd=folder, env=variables, capture_output=True, text=True, check=False,
        timeout=4 * _TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def check(output: str, folder: Path) -> None:
    assert re.search(r"error against torch fp32: mean \S+, max \S+ grey levels", output)
    assert re.search(r"^   \w+ (f32|bf16): [\d,]+ images/s, error mean \S+", output, re.MULTILINE)
    assert re.search(r"^   torch eager f32: [\d,]+ images/s; ratio \d+\.\d", output, re.MULTILINE)
    assert output.rstrip().endswith("Open out/demo/index.html in a browser.")
    page = (folder / "out" / "demo" / "index.html").read_text()
    # One file is all that has to be sent to somebody: the pictures are in it, nothing is loaded.
    assert page.count("data:image/jpeg;base64,") >= 50
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def test_without_a_network(folder: Path) -> None:
    output = run(folder, **NO_NETWORK)
    assert "celeba-faces-64 was not pulled" in output
    assert "Going on with the built-in toy generator" in output
    taken = re.search(r"Done in (\d+) s\.", output)
    assert taken
    assert int(taken[1]) < _TIMEOUT_S
    check(output, folder)


@pytest.mark.slow
def test_again_in_the_same_folder(folder: Path) -> None:
    check(run(folder, **NO_NETWORK), folder)


@pytest.mark.slow
def test_with_a_network(tmp_path: Path) -> None:
    output = run(tmp_path)
    if "Going on with the built-in toy generator" in output:
        pytest.skip("the package index does not offer celeba-faces-64")
    assert "MIT" in output
    check(output, tmp_path)
