"""ONNX files: a generator that exists only as a graph."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fastdirs.checkpoints import Format
from fastdirs.errors import CheckpointError
from fastdirs.manifest import Json


def _recognises(head: bytes) -> bool:
    # A protobuf message whose first field is ir_version (field 1, a small varint) and whose next is a known field of ModelProto.
    return len(head) > 8 and head[0] == 0x08 and head[1] < 32 and head[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)


def _read(path: Path, key: str | None) -> tuple[Mapping[str, Tensor], Json]:
    # Read on use: only the ONNX family needs the library, and recognising other formats must not load it.
    import onnx
    from google.protobuf.message import DecodeError

    if key is not None:
        raise CheckpointError(f"{path} holds one graph, so key={key!r} selects nothing. Leave it out.")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{path} is a broken ONNX file ({reason}). Download or export it again.") from error
    return {}, {}


FORMAT = Format(summary="ONNX graph", recognises=_recognises, read=_read)
