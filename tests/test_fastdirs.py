"""The public face: ten names, imported on first use."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fastdirs


@pytest.mark.parametrize("name", fastdirs.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(fastdirs, name) is not None


def test_type_checkers_see_the_same_names() -> None:
    source = ast.parse(Path(fastdirs.__file__).read_text())
    (block,) = [node for node in source.body if isinstance(node, ast.If)]
    seen = {
        alias.asname: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: f"fastdirs.{module}" for name, module in fastdirs._PUBLIC.items()}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'fastdirs' has no attribute 'nothing'"):
        fastdirs.nothing  # noqa: B018


def test_importing_it_imports_no_torch() -> None:
    code = "import fastdirs, sys; assert fastdirs.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
