"""A module becomes one ONNX file with a dynamic batch, names and metadata."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastdirs.errors import ContractError, MissingDependencyError, RecipeError
from fastdirs.manifest import Json, write_bytes
from fastdirs.registry import install_hint


def trace(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    output: str | Sequence[str],
    opset: int,
    identity: Json,
    kind: str = "generator",
    finish: Callable[[onnx.ModelProto], None] = lambda model: None,
) -> None:
    """Write a module as one ONNX file with a dynamic batch, names and metadata.

    Args:
        module: Its `forward` is the graph's signature.
        example: Inputs to trace with: `[2, ...]`, whose batch becomes dynamic, but for psi `[layers]`.
        path: The file.
        inputs: Names of the inputs.
        output: Name of the output, or of each of several.
        opset: ONNX operator set.
        identity: What the file records of what it was made from; "name" is what people call it.
        kind: What that is.
        finish: Called with the graph before it is checked and written, to change it in place.

    Raises:
        ContractError: The module cannot be traced, or not for every batch size.
        RecipeError: The exporter does not write this opset.
        MissingDependencyError: The module or the exporter needs a package that is not installed.
    """
    outputs = [output] if isinstance(output, str) else list(output)
    dynamic = tuple({0: "batch"} if name != "psi" else None for name in inputs)
    try:
        with _quiet(), _KeepEpsilons():
            program = torch.onnx.export(
                module, example, dynamo=True, input_names=list(inputs), output_names=outputs,
                opset_version=opset, dynamic_shapes=dynamic, external_data=False, verbose=False,
            )  # fmt: skip
    except (torch.onnx.OnnxExporterError, ModuleNotFoundError) as error:
        if missing := _missing(error):
            raise MissingDependencyError(
                f"Exporting {identity['name']} needs {missing}, which is not installed: "
                f"{install_hint(missing)}"
            ) from error
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ContractError(
            f"{identity['name']} cannot be traced into a graph with a dynamic batch: {reason} "
            "Its code must not branch on values or on the batch size."
        ) from error
    assert program is not None
    model = program.model_proto
    if opset_of(model) != opset:
        # The exporter only logs that it could not convert, and keeps the operator set that it works in.
        raise RecipeError(f"{identity['name']} cannot be written in opset {opset}. Use {opset_of(model)}.")
    # The exporter notes the source lines behind each node, with the paths of this machine.
    for each in (model.graph, *model.graph.node, *model.graph.value_info):
        each.ClearField("metadata_props")
    model.producer_name = "fastdirs"
    onnx.helper.set_model_props(model, {"fastdirs": json.dumps({kind: identity})})
    finish(model)
    onnx.checker.check_model(model, full_check=True)
    write_bytes(path, model.SerializeToString())


class _KeepEpsilons(TorchFunctionMode):
    """Keeps the 1e-8 that guards a root or a quotient from zero: the exporter takes it for 0, and drops it.

    It compares numbers with a tolerance of 1e-8, but no arrays. So a small number becomes an array of one.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _SUMS and any(isinstance(each, Tensor) and each.ndim for each in args):
            args = tuple(
                torch.full((1,), each) if isinstance(each, float) and 0 < abs(each) <= 1e-8 else each
                for each in args
            )
        return func(*args, **(kwargs or {}))


_SUMS = (torch.add, torch.Tensor.add, torch.Tensor.add_, torch.Tensor.__add__, torch.Tensor.__radd__)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the ONNX operator set that a graph is written in."""
    return next(int(each.version) for each in model.opset_import if each.domain in ("", "ai.onnx"))


def _missing(error: BaseException | None) -> str:
    """The package whose absence led to an error; "" if another thing did."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError):
            return error.name or ""
        error = error.__cause__
    return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints, logs and warns about packages and internals that a user cannot act on."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
