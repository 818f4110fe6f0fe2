"""Pickles as other programs write them, and as nobody should, without importing what they name."""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


class Global:
    """A name that a pickle holds: `Global("timm.models.layers", "Conv2d")`; calling it is only written down."""

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

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

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


@pytest.fixture
def pickled(tmp_path: Path) -> Callable[..., Path]:
    """Write a pickle of anything: `pickled(content, protocol=4)`."""

    def write(content: object, protocol: int = 4) -> Path:
        path = tmp_path / f"content-{protocol}.pkl"
        path.write_bytes(dumps(content, protocol))
        return path

    return write
