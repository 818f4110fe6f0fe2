"""Pickles as other programs write them, and as nobody should, without importing what they name."""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor


class Global:
    """A name that a pickle holds, such as `Global("timm.layers", "Conv2d")`; calls are only written down."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, *args: object, state: object = None) -> "Call":
        return Call(self, args, state)


class Call:
    """A call that a pickle asks for, and the state that its result is given."""

    def __init__(self, function: Global, args: tuple[object, ...], state: object) -> None:
        self.function, self.args, self.state = function, args, state


class Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes `Global` and `Call` as if they were the real things."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, Call):
            return (value.function, value.args, value.state)[: 2 if value.state is None else 3]
        return NotImplemented

    def save_named(self, value: Global) -> None:
        if self.proto >= 4:
            self.save(value.module)
            self.save(value.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        self.memoize(value)

    dispatch[Global] = save_named


def dumps(content: object, protocol: int = 4) -> bytes:
    """A pickle, of whatever."""
    stream = io.BytesIO()
    Pickler(stream, protocol).dump(content)
    return stream.getvalue()


RECONSTRUCT = Global("torch_utils.persistence", "_reconstruct_persistent_obj")


def network(
    parameters: dict[str, Tensor],
    modules: dict[str, object] | None = None,
    source: str = "# source text",
    **extra: object,
) -> Call:
    """A module as NVIDIA's code pickles it; `extra` are further attributes."""
    state = {
        "_parameters": OrderedDict((name, torch.nn.Parameter(value)) for name, value in parameters.items()),
        "_buffers": OrderedDict(),
        "_non_persistent_buffers_set": set(),
        "_modules": OrderedDict(modules or {}),
        "_init_args": (),
        "_init_kwargs": {"z_dim": 4},
        **extra,
    }
    return RECONSTRUCT(
        {"type": "class", "version": 6, "module_src": source, "class_name": "Generator", "state": state}
    )


class Pickles:
    """What the tests need to write such files; `write` puts them into the test's own folder."""

    dumps = staticmethod(dumps)
    named = Global
    network = staticmethod(network)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, content: object, protocol: int = 4) -> Path:
        return self.raw(dumps(content, protocol))

    def raw(self, data: bytes) -> Path:
        path = self.folder / "content.pkl"
        path.write_bytes(data)
        return path

    def legacy(self, content: object) -> Path:
        """A file in torch's older container, without storages of its own."""
        system = {"protocol_version": 1001, "little_endian": True}
        parts = (0x1950A86A20F9469CFC6C, 1001, system, content, [])
        return self.raw(b"".join(dumps(part, 2) for part in parts))

    def zipped(self, content: object, **files: bytes) -> Path:
        """A file in torch's zip container, without storages of its own; `files` lie beside the pickle."""
        path = self.folder / "content.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", dumps(content, 2))
            for name, data in files.items():
                archive.writestr(f"archive/{name}", data)
        return path


@pytest.fixture
def pickles(tmp_path: Path) -> Pickles:
    return Pickles(tmp_path)
