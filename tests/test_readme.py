"""The README cannot rot: its code runs, its links lead somewhere, its tables come from the results."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fastdirs.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
DOCUMENTS = [
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "banks/README.md",
    "assets/README.md", "docs/discovery.md", "docs/deployment.md", "docs/masks.md", "docs/scale.md",
]  # fmt: skip
_TABLES_ARE_CURRENT = """
import sys
from pathlib import Path

sys.path.insert(0, "benchmarks")
import tables

text = Path("README.md").read_text()
sys.exit(0 if tables.updated(text) == text else "run: python benchmarks/tables.py")
"""


def block(language: str) -> str:
    """The block of code after the comment that asks for a test."""
    found = re.search(rf"<!-- test: \w+ -->\n```{language}\n(.*?)```", TEXT, re.DOTALL)
    assert found, f"no block of {language} to test"
    return found[1]


def commands(text: str) -> list[list[str]]:
    """The fastdirs command lines in blocks of code, without "fastdirs"."""
    code = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    return [shlex.split(line)[1:] for line in code.splitlines() if line.startswith("fastdirs ")]


def test_the_python_block_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block("python")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\w+ (f32|bf16) mean \S+, max \S+ grey levels.* \(1, 3, 64, 64\)", done.stdout)
    assert (tmp_path / "out" / "index.html").is_file()


def test_the_python_block_is_ten_lines() -> None:
    code = [line for line in block("python").splitlines() if line and not line.startswith(("#", "import"))]
    assert len(code) <= 10
    assert max(map(len, code)) <= 110


def test_the_shell_block_runs_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = block("sh").splitlines()
    assert all(line.startswith("fastdirs ") for line in lines)
    for line in lines:
        result = CliRunner().invoke(main, shlex.split(line)[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{line}\n{result.output}"
    assert (tmp_path / "out" / "index.html").is_file()


@pytest.mark.parametrize("arguments", commands(TEXT), ids=shlex.join)
def test_every_command_line_is_understood(arguments: list[str]) -> None:
    # As far as names and options go: some of these need a network to run.
    context = COMMANDS.load(arguments[0]).make_context("fastdirs", arguments[1:])
    assert isinstance(context, click.Context)


def test_recipes_that_are_named_exist() -> None:
    recipes = [argument for line in commands(TEXT) for argument in line if argument.endswith(".toml")]
    assert recipes
    assert all((ROOT / recipe).is_file() for recipe in recipes)


@pytest.mark.parametrize("name", COMMANDS.names())
def test_every_command_is_in_the_table(name: str) -> None:
    assert re.search(rf"^\| `fastdirs {name}\b", TEXT, re.MULTILINE)


def test_every_extra_is_in_the_table() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE))
    assert table == set(project["optional-dependencies"])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    missing = [
        link
        for link in links
        if not re.match(r"https?:|#", link) and not (path.parent / link.partition("#")[0]).exists()
    ]
    assert not missing


def test_the_two_commands_come_first() -> None:
    indented = [line.strip() for line in TEXT.splitlines() if line.startswith("    ")]
    assert indented[:2] == ["make demo", "make test"]


def test_the_tables_are_those_of_the_results() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TABLES_ARE_CURRENT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
