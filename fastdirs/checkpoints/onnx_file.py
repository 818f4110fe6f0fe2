"""ONNX files: a generator that exists only as a graph."""

from pathlib import Path
from typing import TYPE_CHECKING

from fastdirs.checkpoints import Contents, Format, is_safetensors
from fastdirs.errors import CheckpointError

if TYPE_CHECKING:
    import onnx


def _recognises(path: Path, head: bytes) -> bool:
    # A protobuf message whose first field is ir_version (field 1, a small varint) and whose next is a known
    # field of ModelProto.
    return (
        len(head) > 8
        and head[0] == 0x08
        and head[1] < 32
        and head[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)
        and not is_safetensors(head)
    )


def read_graph(path: Path) -> "onnx.ModelProto":
    """The graph in a file, its weights included unless they lie in files beside it.

    Raises:
        CheckpointError: Broken, truncated or no ONNX file.
    """
    # Read on use: only the ONNX family needs the library, and recognising other formats must not load it.
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        # Not onnx.load: that chooses the parser by the file's name.
        return onnx.load_model_from_string(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise _broken(path, error) from error


def dtype_name(elem_type: int) -> str:
    """What ONNX calls a type of numbers, such as "float"; a damaged file may name one that does not exist."""
    from onnx import TensorProto

    names: dict[int, str] = {number: name.lower() for name, number in TensorProto.DataType.items()}
    return names.get(elem_type, f"unknown type {elem_type}")


def _read(path: Path, key: str | None) -> Contents:
    import onnx

    if key is not None:
        raise CheckpointError(f"{path} holds one graph, so key={key!r} selects nothing. Leave it out.")
    model = read_graph(path)
    elsewhere = [tensor.name for tensor in model.graph.initializer if tensor.external_data]
    if elsewhere:
        raise CheckpointError(
            f"{path} keeps {len(elsewhere)} of its tensors in a file beside it, "
            "which fastdirs does not follow. Save it as one file: onnx.save(onnx.load(PATH), OTHER)."
        )
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise _broken(path, error) from error
    return Contents(tensors={})


def _broken(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return CheckpointError(f"{path} is a broken ONNX file ({reason}). Download or export it again.")


FORMAT = Format(summary="ONNX graph", recognises=_recognises, read=_read)
