"""Which batch sizes an engine is compiled for where nobody says."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fastdirs.errors import BackendError
from fastdirs.recipe import Batch, usual_batch


def batch_of(graph: Path) -> Batch:
    """Batch sizes that suit the pictures of a graph.

    Args:
        graph: ONNX file.

    Raises:
        BackendError: It cannot be read.
    """
    try:
        output = onnx.load(str(graph), load_external_data=False).graph.output[0]
    except (DecodeError, IndexError, OSError) as error:
        raise BackendError(f"{graph} is no ONNX graph: {error}. Export it again.") from error
    axes = [axis.dim_value for axis in output.type.tensor_type.shape.dim]
    return usual_batch(axes[2]) if len(axes) == 4 and axes[2] else Batch()
