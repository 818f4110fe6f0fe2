"""Every public function, class and method is described: axes of its tensors, errors it raises."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastdirs import errors

PACKAGE = Path(__file__).parent.parent / "fastdirs"
FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.stem == "__init__" or not path.stem.startswith("_")
)
ERRORS = {
    name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)
}
# Functions that make or raise an error, by the error that their callers then raise.
INDIRECT = {"unknown_name": "UnknownNameError", "check_shape": "ShapeError"}
ARRAYS = {"Array", "NDArray", "Pixels", "Tensor"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Public = tuple[str, ast.ClassDef | Function, str]


def described(path: Path) -> Iterator[Public]:
    """Public classes, functions and methods, without nested functions: (name, node, docstring)."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield node.name, node, ast.get_docstring(node) or ""
            for inner in node.body if isinstance(node, ast.ClassDef) else []:
                if not isinstance(inner, Function):
                    continue
                if inner.name in ("__init__", "__post_init__"):
                    # Described where the class is.
                    yield f"{node.name}()", inner, ast.get_docstring(node) or ""
                elif not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", inner, ast.get_docstring(inner) or ""


PUBLIC = [
    pytest.param(node, docstring, id=f"{path.relative_to(PACKAGE).with_suffix('')}:{name}")
    for path in FILES
    for name, node, docstring in described(path)
]
FUNCTIONS = [case for case in PUBLIC if not isinstance(case.values[0], ast.ClassDef)]


def names_in(node: ast.AST | None) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} if node else set()


def raised(function: Function) -> set[str]:
    """Names of our own errors that a function raises itself or through the functions in INDIRECT."""
    found: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and node.exc is not None:
            found |= {INDIRECT.get(name, name) for name in names_in(node.exc)} & ERRORS
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            found |= {INDIRECT[name] for name in names_in(node.value.func) if name == "check_shape"}
    return found


@pytest.mark.parametrize(("node", "docstring"), PUBLIC)
def test_described(node: ast.ClassDef | Function, docstring: str) -> None:
    assert docstring, f"line {node.lineno} has no docstring"
    first = docstring.splitlines()[0]
    assert first[0].isupper() or not first[0].isalpha() or first.split()[0] in ("z",), (
        f"{first!r} begins small"
    )


@pytest.mark.parametrize(("function", "docstring"), FUNCTIONS)
def test_the_errors_it_raises_are_named(function: Function, docstring: str) -> None:
    missing = {name for name in raised(function) if name not in docstring}
    assert not missing, f"line {function.lineno} raises {missing}, which its docstring does not name"


@pytest.mark.parametrize(("function", "docstring"), FUNCTIONS)
def test_every_tensor_has_its_axes(function: Function, docstring: str) -> None:
    arguments = [*function.args.args, *function.args.kwonlyargs]
    tensors = [
        a.arg
        for a in arguments
        if names_in(a.annotation) & ARRAYS and "None" not in ast.unparse(a.annotation)
    ]
    shapes = re.findall(r"\[[\w .,*+|/-]*\]", docstring)
    assert len(shapes) >= len(tensors), f"line {function.lineno}: axes of {tensors}, found {shapes}"


def test_there_is_something_to_check() -> None:
    assert len(PUBLIC) > 100
    assert sum(bool(raised(case.values[0])) for case in FUNCTIONS) > 20
