"""A folder is a registry: the file name is the registered name and the value on the command line."""

import difflib
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import re
from collections.abc import Iterable
from typing import Generic, TypeVar, cast

from fastdirs.errors import ContractError, MissingDependencyError, UnknownNameError

T = TypeVar("T")


def unknown_name(noun: str, name: str, names: Iterable[str]) -> UnknownNameError:
    """The error for a name that does not exist, with the nearest spelling and the whole list."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(f"There is no {noun} {name!r}.{hint} Known: {', '.join(known) or 'none'}.")


def install_hint(module: str) -> str:
    """The pip command that brings an importable `module`: the smallest extra with it, else the package."""
    root = module.partition(".")[0]
    sizes: dict[str, int] = {}
    found: list[str] = []
    for requirement in importlib.metadata.requires("fastdirs") or []:
        match = re.match(r"([\w-]+).*extra == ['\"](\w+)['\"]", requirement)
        if match is None or match[2] == "dev":
            continue
        sizes[match[2]] = sizes.get(match[2], 0) + 1
        # Some are imported under a name with other dashes: pysodmetrics is py_sod_metrics.
        if re.sub("[-_]", "", match[1]) == re.sub("_", "", root):
            found.append(match[2])
    if found:
        return f"pip install 'fastdirs[{min(found, key=lambda extra: sizes[extra])}]'"
    return f"pip install {root}"


class Registry(Generic[T]):
    """The plug-ins of one folder, each file offering the same constant.

    Listing imports nothing. A new file is registered the moment it exists; files whose name starts with an
    underscore are not plug-ins.

    Args:
        package: Dotted name of the folder.
        constant: The name that each file must define.
        noun: What a plug-in is called in messages.
    """

    def __init__(self, package: str, constant: str, noun: str) -> None:
        self.package = package
        self.constant = constant
        self.noun = noun

    def names(self) -> list[str]:
        """Registered names, sorted, without importing any of them."""
        spec = importlib.util.find_spec(self.package)
        locations = spec.submodule_search_locations if spec else None
        return sorted(m.name for m in pkgutil.iter_modules(locations or []) if not m.name.startswith("_"))

    def load(self, name: str) -> T:
        """Import one file and return its constant.

        Raises:
            UnknownNameError: No file of that name; the nearest spelling is named.
            MissingDependencyError: The file needs a package that is not installed; the pip command is named.
            ContractError: The file does not define the constant.
        """
        if name not in self.names():
            raise unknown_name(self.noun, name, self.names())
        try:
            module = importlib.import_module(f"{self.package}.{name}")
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if missing.startswith("fastdirs"):
                raise
            raise MissingDependencyError(
                f"The {self.noun} {name!r} needs {missing}, which is not installed: {install_hint(missing)}"
            ) from error
        if not hasattr(module, self.constant):
            raise ContractError(f"{self.package}.{name} does not define {self.constant}.")
        return cast(T, getattr(module, self.constant))
