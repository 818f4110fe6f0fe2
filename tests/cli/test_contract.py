"""What every command promises: help without heavy packages, and examples that work."""

import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from fastdirs.cli import COMMANDS, main

README = Path(__file__).parents[2] / "README.md"
HEAVY = ["torch", "numpy", "onnx", "onnxruntime", "onnxscript", "openvino", "safetensors", "PIL", "rich"]
# Their examples make what the other examples start from.
MAKERS = ["discover", "export", "bank", "render", "masks", "saliency train"]
_WITHOUT_PACKAGES = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
from fastdirs.cli import main
main(prog_name="fastdirs")
"""
_MAX_HELP_S = 0.3


def _found(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for inner, each in command.commands.items():
            yield from _found(f"{name} {inner}", each)


# Every command by what one types, those of groups such as "bank merge" too.
EVERY = dict(pair for name in COMMANDS.names() for pair in _found(name, COMMANDS.load(name)))


def examples(help_text: str | None) -> list[list[str]]:
    """The command lines in the Example block of a help text, without "fastdirs"."""
    block = (help_text or "").partition("Example:")[2]
    return [shlex.split(line)[1:] for line in block.splitlines() if line.strip().startswith("fastdirs ")]


def follow(example: list[str], folder: Path) -> Result:
    with chdir(folder):
        return CliRunner().invoke(main, example, catch_exceptions=False)


def skip_without_index(result: Result) -> None:
    if re.search("index cannot be reached|index that pip is set up with does not offer", result.output):
        pytest.skip(f"no package index: {result.output.strip()}")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, random_dcgan: Callable[..., nn.Sequential]) -> Path:
    """A folder with a checkpoint in which the examples of the makers were followed."""
    folder = tmp_path_factory.mktemp("workplace")
    torch.save(random_dcgan().state_dict(), folder / "generator.pt")
    for name in MAKERS:
        for example in examples(EVERY[name].help):
            result = follow(example, folder)
            assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("name", ["", *EVERY])
def test_help_needs_no_heavy_package(name: str) -> None:
    command = [sys.executable, "-c", _WITHOUT_PACKAGES, *name.split(), "-h"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"Usage: fastdirs {name}".strip() in done.stdout
    assert "Example:" in done.stdout


@pytest.mark.parametrize("name", EVERY)
def test_help_begins_with_a_short_sentence(name: str) -> None:
    first = (EVERY[name].help or "").partition("\n")[0]
    assert first.endswith(".")
    # What `fastdirs --help` shows of a command; a longer one is cut off with three dots.
    assert len(first) <= 66


@pytest.mark.parametrize("name", EVERY)
def test_every_option_is_explained(name: str) -> None:
    for parameter in EVERY[name].params:
        if parameter.param_type_name == "option":
            assert getattr(parameter, "help", None), parameter.opts


def test_the_makers_make_what_the_other_examples_name(workplace: Path) -> None:
    assert (workplace / "bank.safetensors").is_file()
    assert (workplace / "artifact" / "manifest.json").is_file()
    assert (workplace / "directions.npy").is_file()


@pytest.mark.parametrize("name", [name for name in EVERY if name not in MAKERS])
def test_examples_work(name: str, workplace: Path) -> None:
    lines = examples(EVERY[name].help)
    assert lines
    for example in lines:
        result = follow(example, workplace)
        if name == "pull":
            skip_without_index(result)
        assert result.exit_code == 0, result.output
        assert result.stdout


@pytest.mark.slow
def test_the_example_of_the_whole_works(tmp_path: Path) -> None:
    lines = examples(main.help)
    assert [line[0] for line in lines] == ["pull", "discover", "export", "traverse"]
    for example in lines:
        result = follow(example, tmp_path)
        skip_without_index(result)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "index.html").is_file()


@pytest.mark.parametrize("name", COMMANDS.names())
def test_the_readme_names_it(name: str) -> None:
    assert f"`fastdirs {name}" in README.read_text()


def test_help_is_instant() -> None:
    command = [Path(sys.executable).with_name("fastdirs"), "--help"]
    medians = []
    # A machine that is busy with something else gets two more chances.
    for _ in range(3):
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            taken.append(time.perf_counter() - start)
        medians.append(statistics.median(taken))
        if medians[-1] < _MAX_HELP_S:
            return
    pytest.fail(f"fastdirs --help took {medians} seconds")


def test_unknown_command_names_the_nearest() -> None:
    result = CliRunner().invoke(main, ["travers", "artifact"])
    assert result.exit_code == 2
    assert "There is no command 'travers'. Did you mean 'traverse'?" in result.output


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.exit_code == 0
    assert re.fullmatch(r"fastdirs, version \d+\.\d+\.\d+\S*\n", result.output)
