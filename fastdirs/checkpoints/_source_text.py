"""Source text embedded in network pickles: never run, only parsed, to tell users of a file that would act."""

import ast
import warnings
from collections.abc import Iterator

from fastdirs.checkpoints._names import acts

# Longer texts are not looked at: parsing costs far more memory than the text itself.
_MAX_CHARACTERS = 250_000
_MAX_TEXTS = 16

# What genuine modules do with these while they are imported.
_HARMLESS = ("os.path.", "os.environ.", "os.getenv", "os.getcwd", "os.cpu_count", "sys.path.", "sys.exit",
             "torch.jit.", "threading.", "re.compile", "multiprocessing.")  # fmt: skip


def acting_call(source: str, seen: dict[str, str]) -> str:
    """A call outside function bodies that would act on the machine when the text is imported.

    Args:
        source: Text of a Python module.
        seen: Results for texts of the same file; this one's is added.

    Returns:
        Dotted name of the first such call, such as "os.system"; empty if there is none, or if the text is too
        long or no Python, which is no fault of the tensors beside it.
    """
    if source not in seen:
        seen[source] = ""
        if len(source) <= _MAX_CHARACTERS and len(seen) <= _MAX_TEXTS:
            seen[source] = next(_calls(source), "")
    return seen[source]


def _calls(source: str) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            # Python warns of doubtful escapes in texts that it parses.
            warnings.simplefilter("ignore")
            module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    imported: dict[str, str] = {}
    todo: list[ast.AST] = [module]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            imported.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom):
            imported.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
        elif isinstance(node, ast.Call):
            dotted = _dotted(node.func, imported)
            full = dotted if "." in dotted else f"builtins.{dotted}"
            if dotted and not full.startswith(_HARMLESS) and acts(full):
                yield full
        todo.extend(reversed(list(_run_on_import(node))))


def _run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a node that run when its module is imported: all but the bodies of functions."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield from node.decorator_list
        yield node.args
    elif isinstance(node, ast.Lambda):
        yield node.args
    else:
        yield from ast.iter_child_nodes(node)


def _dotted(node: ast.AST, imported: dict[str, str]) -> str:
    """The dotted name of what is called, `os.system`; empty if it is no name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([imported.get(node.id, node.id), *reversed(parts)])
