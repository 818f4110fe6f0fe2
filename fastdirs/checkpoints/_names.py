"""Globals that a file names: remembered, judged by their names, never looked up or imported."""

_MAX_SHOWN = 100

# Python 2 called these modules otherwise.
_ALIASES = {"__builtin__": "builtins", "copy_reg": "copyreg"}

# Modules in which nothing belongs to a checkpoint.
_ACTING_MODULES = frozenset({
    "_posixsubprocess", "_pickle", "_thread", "asyncio", "atexit", "bdb", "cPickle", "cProfile", "code",
    "codeop", "commands", "ctypes", "ftplib", "http", "httplib", "imp", "importlib", "marshal",
    "multiprocessing", "nt", "os", "pdb", "pickle", "pip", "popen2", "posix", "profile", "pty", "pydoc",
    "requests", "runpy", "shelve", "shutil", "signal", "smtplib", "socket", "subprocess", "sys", "telnetlib",
    "tempfile", "threading", "timeit", "torch.hub", "torch.jit", "torch.package", "torch.utils.cpp_extension",
    "trace", "urllib", "urllib2", "webbrowser", "zipimport",
})  # fmt: skip
# Those that others import, so that a file may reach them through torch.serialization.os.
_REACHED_THROUGH = frozenset({
    "builtins", "ctypes", "importlib", "nt", "os", "pickle", "posix", "runpy", "shutil", "socket",
    "subprocess", "sys",
})  # fmt: skip
# Functions that act wherever they are found, and those of Python itself.
_ACTING_NAMES = frozenset({
    "__builtins__", "__globals__", "__import__", "__subclasses__", "_eval_repr", "_getattribute",
    "_import_module", "attrgetter", "breakpoint", "compile", "delattr", "eval", "exec", "execfile",
    "import_module", "load", "loads", "methodcaller", "open", "popen", "read_pickle", "run_module",
    "run_path", "runstring", "setattr", "system",
})  # fmt: skip
_ACTING_BUILTINS = frozenset({
    "apply", "exit", "file", "filter", "globals", "input", "locals", "map", "quit", "reload", "vars",
})  # fmt: skip


class Named:
    """A global that a file names, such as `torch._utils._rebuild_tensor_v2`.

    Attributes:
        module: Dotted module, in today's spelling.
        name: Name in it, dotted for what belongs to a class.
        where: Where in the file it was named, for messages; empty for the pickle itself.
    """

    __slots__ = ("module", "name", "where")

    def __init__(self, module: str, name: str, where: str = "") -> None:
        module = _ALIASES.get(module, module)
        if module == "numpy._core" or module.startswith("numpy._core."):
            # numpy 2 moved what numpy 1 had.
            module = "numpy.core" + module[len("numpy._core") :]
        self.module = module
        self.name = name
        self.where = where

    @property
    def full(self) -> str:
        """Module and name, as the file spells them."""
        return f"{self.module}.{self.name}"

    @property
    def dotted(self) -> str:
        """Module and name, cut and without anything that would upset a terminal."""
        return shown(f"{self.module[:_MAX_SHOWN]}.{self.name[:_MAX_SHOWN]}")


def acts(dotted: str) -> bool:
    """Whether a global, called while a file is unpickled the ordinary way, could do harm:
    start a program, open a file, import or evaluate something.

    A list of the known ways, for the message and for refusing files that were tampered with. No reading is
    made safe by it, because nothing that a file names is ever looked up.
    """
    parts = dotted.split(".")
    starts = {".".join(parts[:count]) for count in range(1, min(len(parts), 4))}
    return bool(
        _ACTING_MODULES & starts
        or _REACHED_THROUGH & set(parts[1:])
        or parts[-1] in _ACTING_NAMES
        or (parts[0] == "builtins" and parts[-1] in _ACTING_BUILTINS)
    )


def shown(text: str) -> str:
    """A name from a file, fit for a message: printable and not too long."""
    text = text if len(text) <= 2 * _MAX_SHOWN else f"{text[: 2 * _MAX_SHOWN]}..."
    return text if text.isprintable() else ascii(text)[1:-1]
