"""A generator that exists only as an ONNX file: run as it is, with latents put in front and pixels made uniform behind."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import Tensor, nn

from fastdirs.checkpoints import Checkpoint
from fastdirs.errors import CheckpointError, ContractError
from fastdirs.generators import Factor, Family, Generator, Provenance
from fastdirs.latents import sample_z
from fastdirs.manifest import Json
from fastdirs.registry import unknown_name

Array = NDArray[np.float32]

# Scale and offset that bring what a file returns to [-1, 1].
_RANGES = {"-1:1": (1.0, 0.0), "0:1": (2.0, -1.0), "0:255": (1 / 127.5, -1.0)}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
# Larger than any generator without a last activation returns, smaller than any bright picture in grey levels.
_NOT_UNIT = 16.0
_BATCH_ERROR = 1e-3
_PREFIX = "file/"
_FATAL_ONLY = 4
_RUN_ERRORS = (
    ort_errors.EPFail, ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf, ort_errors.NotImplemented, ort_errors.RuntimeException,
)  # fmt: skip


class _GraphStage(nn.Module):
    """The whole file as one stage."""

    graph: Tensor

    def __init__(self, config: Json) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("graph", torch.empty(config["graph_bytes"], dtype=torch.uint8))
        self._session: onnxruntime.InferenceSession | None = None
        self.register_load_state_dict_post_hook(_forget_session)

    def forward(self, state: Tensor | None, latents: Tensor) -> Tensor:
        """Latents `[batch, 1, dim]` -> images `[batch, channels, height, width]`, float32; not differentiable."""
        if latents.requires_grad and torch.is_grad_enabled():
            raise ContractError(
                "An ONNX file has no gradients. Use a method that needs none, or the torch checkpoint."
            )
        if self._session is None:
            self._session = _open(self.adapted())
        rows = latents.detach().float().cpu().numpy()
        return torch.from_numpy(_run(self._session, rows, self.config["one_by_one"])).to(latents.device)

    def adapted(self) -> onnx.ModelProto:
        """The file between `latents` and `images`."""
        return _adapt(onnx.load_model_from_string(self.graph.cpu().numpy().tobytes()), self.config)

    def __getstate__(self) -> dict[str, Any]:
        # A session cannot be copied; a copy of the module opens its own.
        return {**self.__dict__, "_session": None}


def _forget_session(stage: nn.Module, incompatible: object) -> None:
    """Other weights were loaded into the buffer, so what was opened from it is out of date."""
    stage._session = None  # type: ignore[assignment]


class OnnxGraph(Generator):
    """An ONNX file from z to images.

    The file's bytes are the weights: they are hashed, saved and loaded like any other buffer.

    Args:
        config: Length of the file, shape of its z, which output is the picture and how it is laid out.
    """

    def __init__(self, config: Json) -> None:
        z_dim = int(np.prod(config["z_shape"]))
        super().__init__(
            family="onnx_graph", space="z", z_dim=z_dim, num_layers=1, dim=z_dim,
            img_resolution=config["img_resolution"], img_channels=config["img_channels"],
            stages=[_GraphStage(config)], reads=[(0,)], config=config,
        )  # fmt: skip

    @property
    def has_mapping(self) -> bool:
        """False: z is the latent space; a mapping network, if there is one, is somewhere in the file."""
        return False

    def map_z(self, z: Tensor, c: Tensor | None) -> Tensor:
        """z `[batch, z_dim]` -> `[batch, 1, z_dim]`."""
        return z[:, None]

    def factors(self) -> list[Factor]:
        """None: which weights multiply z is not known."""
        return []

    def graph_model(self) -> onnx.ModelProto:
        """The file as an export needs it, with nothing left to convert and a dynamic batch.

        Input `latents` `[batch, 1, dim]`, output `images` `[batch, channels, height, width]` in [-1, 1], float32.

        Raises:
            ContractError: The file works for one image at a time only.
        """
        if self.config["one_by_one"]:
            raise ContractError(
                f"{self.provenance.name} works for one image at a time only: its graph has the batch size built in. "
                "Export the ONNX file again with a dynamic batch axis, or use the eager backend."
            )
        stage = self.stages[0]
        assert isinstance(stage, _GraphStage)
        return stage.adapted()


def _build(config: Json) -> Generator:
    return OnnxGraph(config).eval().requires_grad_(False)


def _infer(checkpoint: Checkpoint, options: Mapping[str, str]) -> Generator:
    path = str(checkpoint.path)
    data = checkpoint.path.read_bytes()
    model = onnx.load_model_from_string(data)
    _check_weights(model, path)
    source = _only_input(model, path)
    z_shape = _z_shape(source, path)
    assumed = []
    chosen = options.get("output_range", "-1:1")
    if chosen not in _RANGES:
        raise unknown_name("output_range", chosen, _RANGES)

    # Four random rows through the file as it is: zeros would hide too much.
    rows = sample_z(range(4), int(np.prod(z_shape))).numpy()[:, None]
    output, pictures = _probe(model, rows, z_shape, path)
    channels_last = pictures.shape[3] in (1, 3) and pictures.shape[1] not in (1, 3)
    if pictures.dtype == np.uint8:
        if options.get("output_range", "0:255") != "0:255":
            raise CheckpointError(f"{path} returns uint8, so output_range={chosen} cannot be. Leave it out.")
        chosen = "0:255"
    elif "output_range" not in options:
        _check_range(pictures, path)
        assumed.append(f"output_range={chosen}")
    config: Json = {
        "graph_bytes": len(data), "z_shape": list(z_shape), "output": output, "output_range": chosen,
        "channels_last": channels_last, "img_channels": int(pictures.shape[3 if channels_last else 1]),
        "img_resolution": int(pictures.shape[2]), "one_by_one": False,
    }  # fmt: skip
    config["one_by_one"] = not _batches(model, config, rows)
    if config["one_by_one"]:
        if _fixed_batch(source) not in (None, 1):
            raise CheckpointError(
                f"{path} works for exactly {_fixed_batch(source)} images at once. Export it again with a dynamic batch axis."
            )
        assumed.append("one_by_one=true")
    generator = OnnxGraph(config)
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    generator.load_state_dict({"stages.0.graph": buffer, "latent_mean": generator.latent_mean})
    named = {entry.key: entry.value for entry in model.metadata_props}
    licence = named.get("licence") or named.get("license") or "unknown"
    generator.provenance = Provenance(
        name=checkpoint.path.stem, source=checkpoint.path.name, licence=licence, assumed=tuple(assumed)
    )
    return generator.eval().requires_grad_(False)


def _inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """What the caller passes: old files list their weights as inputs too."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _only_input(model: onnx.ModelProto, path: str) -> onnx.ValueInfoProto:
    inputs = _inputs(model.graph)
    if len(inputs) != 1:
        names = ", ".join(repr(value.name) for value in inputs) or "none"
        raise CheckpointError(
            f"{path} has {len(inputs)} inputs ({names}), so z is not all it needs. "
            "Export it again with z as its only input and the others as constants."
        )
    return inputs[0]


def _z_shape(source: onnx.ValueInfoProto, path: str) -> tuple[int, ...]:
    """Shape of one z in the file, without the batch axis: all axes but one have size 1."""
    kind = source.type.tensor_type
    sizes = [axis.dim_value or axis.dim_param or "?" for axis in kind.shape.dim]
    shape = f"its input {source.name!r} is [{', '.join(map(str, sizes))}]"
    if kind.elem_type not in _FLOATS:
        raise CheckpointError(
            f"{path} is no generator: {shape} of {_dtype(kind.elem_type)}, and z is of floats."
        )
    row = [axis.dim_value for axis in kind.shape.dim][1:]
    if not row or not all(row):
        raise CheckpointError(
            f"{path} does not say how long z is: {shape}. Export it again with only the batch dynamic."
        )
    wide = [size for size in row if size > 1]
    if len(wide) == 2 and len(row) == 2:
        raise CheckpointError(
            f"{path} starts from {row[0]} latent layers ({shape}), and its mapping from seeds is not in the file. "
            "Export mapping and synthesis together, from z to images."
        )
    if len(wide) != 1 or len(row) > 3:
        raise CheckpointError(
            f"{path} is no generator: {shape}. Expected z: [batch, z_dim] or [batch, z_dim, 1, 1]."
        )
    return tuple(row)


def _dtype(elem_type: int) -> str:
    return TensorProto.DataType.Name(elem_type).lower()


def _fixed_batch(source: onnx.ValueInfoProto) -> int | None:
    """The batch size that is built into a file, None if it is dynamic."""
    return source.type.tensor_type.shape.dim[0].dim_value or None


def _check_weights(model: onnx.ModelProto, path: str) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type in _FLOATS and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise CheckpointError(
                f"{path} has NaN or infinite values in {tensor.name!r}: its training failed or the file is damaged."
            )


def _probe(
    model: onnx.ModelProto, rows: Array, z_shape: tuple[int, ...], path: str
) -> tuple[str, NDArray[Any]]:
    """Name of the output that is a picture, and four of its pictures, as the file returns them."""
    source = _only_input(model, path)
    dtype = helper.tensor_dtype_to_np_dtype(source.type.tensor_type.elem_type)
    size = _fixed_batch(source) or 1
    names = [value.name for value in model.graph.output]
    runs = []
    try:
        session = _open(model)
        for row in (*rows, rows[-1]):
            z = np.repeat(row.reshape(1, *z_shape), size, axis=0).astype(dtype)
            runs.append([np.asarray(value)[:1] for value in session.run(names, {source.name: z})])
    except _RUN_ERRORS as error:
        raise CheckpointError(f"{path} does not run in ONNX Runtime: {_first_line(error)}") from error
    found = [index for index, value in enumerate(runs[0]) if _is_picture(value)]
    if len(found) != 1:
        shapes = ", ".join(
            f"{name!r} {list(value.shape)}" for name, value in zip(names, runs[0], strict=True)
        )
        raise CheckpointError(
            f"{path} returns {shapes}. A generator returns one square picture for each z, "
            "[batch, 1 or 3, size, size] or [batch, size, size, 1 or 3]."
        )
    pictures = [run[found[0]] for run in runs]
    if not all(np.isfinite(picture).all() for picture in pictures):
        raise CheckpointError(
            f"{path} returns values that are NaN or infinite for a random z. The file is damaged."
        )
    if not np.allclose(pictures[-1], pictures[-2]):
        raise CheckpointError(
            f"{path} draws random numbers: the same z gave two different pictures. Export it again with constant noise."
        )
    return names[found[0]], np.concatenate(pictures[:-1])


def _is_picture(value: NDArray[Any]) -> bool:
    if value.ndim != 4 or value.dtype.kind not in "fu":
        return False
    _, first, second, third = value.shape
    return (first in (1, 3) and second == third > 3) or (third in (1, 3) and first == second > 3)


def _check_range(pictures: NDArray[Any], path: str) -> None:
    """Raises CheckpointError if the values cannot be, or may well not be, from -1 to 1."""
    low, high = float(pictures.min()), float(pictures.max())
    if low >= 0 or high > _NOT_UNIT:
        likely = "0:1" if high <= _NOT_UNIT else "0:255"
        raise CheckpointError(
            f"{path} returns values from {low:.3g} to {high:.3g}, so its range is not clear. "
            f"Settle it with output_range={likely}, or what its author says ({', '.join(_RANGES)})."
        )


def _batches(model: onnx.ModelProto, config: Json, rows: Array) -> bool:
    """Whether the file, made dynamic, gives the same images in a batch as one at a time."""
    try:
        session = _open(_adapt(model, config))
        together = _run(session, rows, one_by_one=False)
        alone = _run(_open(_adapt(model, {**config, "one_by_one": True})), rows, one_by_one=True)
    except _RUN_ERRORS:
        return False
    return together.shape == alone.shape and np.allclose(together, alone, rtol=0, atol=_BATCH_ERROR)


def _open(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    # What goes wrong is raised; the same on standard error would only repeat it.
    settings.log_severity_level = _FATAL_ONLY
    return onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def _run(session: onnxruntime.InferenceSession, latents: Array, one_by_one: bool) -> Array:
    """Latents `[batch, 1, dim]` -> images `[batch, channels, height, width]`, float32."""
    parts = np.split(latents, len(latents)) if one_by_one and len(latents) else [latents]
    return np.concatenate(
        [session.run(["images"], {"latents": np.ascontiguousarray(part)})[0] for part in parts]
    )


def _adapt(model: onnx.ModelProto, config: Json) -> onnx.ModelProto:
    """The same graph from `latents` `[batch, 1, dim]` to `images` `[batch, channels, height, width]` in [-1, 1].

    The batch becomes dynamic where the file has a fixed one, unless the file runs one by one.
    """
    inner = onnx.ModelProto()
    inner.CopyFrom(model)
    source = _inputs(inner.graph)[0]
    if _fixed_batch(source) is not None and not config["one_by_one"]:
        _free_batch(inner.graph)
    adapted = compose.add_prefix(inner, _PREFIX)
    graph = adapted.graph
    batch = 1 if config["one_by_one"] else "batch"
    size, channels = config["img_resolution"], config["img_channels"]
    head, tail = _head(source, config), _tail(model, config)
    nodes = [*head, *graph.node, *tail]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.append(
        helper.make_tensor_value_info(
            "latents", TensorProto.FLOAT, [batch, 1, int(np.prod(config["z_shape"]))]
        )
    )
    graph.output.append(
        helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, channels, size, size])
    )
    # Before version 4 every weight had to be an input as well.
    adapted.ir_version = max(adapted.ir_version, 4)
    return adapted


def _head(source: onnx.ValueInfoProto, config: Json) -> list[onnx.NodeProto]:
    """Nodes from `latents` to the file's input."""
    shape = numpy_helper.from_array(np.array([-1, *config["z_shape"]], dtype=np.int64))
    return [
        helper.make_node("Constant", [], ["z_shape"], value=shape),
        helper.make_node("Reshape", ["latents", "z_shape"], ["z"]),
        helper.make_node("Cast", ["z"], [_PREFIX + source.name], to=source.type.tensor_type.elem_type),
    ]


def _tail(model: onnx.ModelProto, config: Json) -> list[onnx.NodeProto]:
    """Nodes from the file's output to `images`."""
    scale, offset = (np.float32(value) for value in _RANGES[config["output_range"]])
    axes = [0, 3, 1, 2] if config["channels_last"] else [0, 1, 2, 3]
    nodes = [helper.make_node("Cast", [_PREFIX + config["output"]], ["values"], to=TensorProto.FLOAT)]
    if (scale, offset) == (1, 0):
        return [*nodes, helper.make_node("Transpose", ["values"], ["images"], perm=axes)]
    return [
        *nodes,
        helper.make_node("Transpose", ["values"], ["planes"], perm=axes),
        helper.make_node("Constant", [], ["scale"], value=numpy_helper.from_array(np.asarray(scale))),
        helper.make_node("Constant", [], ["offset"], value=numpy_helper.from_array(np.asarray(offset))),
        helper.make_node("Mul", ["planes", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["images"]),
    ]


def _free_batch(graph: onnx.GraphProto) -> None:
    """Make the batch dynamic in a graph that was traced with one row.

    Tracing turns `x.view(len(x), ...)` into a reshape to a constant shape that starts with the batch size it saw;
    a leading 0 there means "as many as come in". Whether this was all is for the caller to try.
    """
    size = _fixed_batch(_inputs(graph)[0])
    for value in (*_inputs(graph), *graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for index, node in enumerate(graph.node):
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]])
        if (
            any(a.name == "allowzero" and a.i for a in node.attribute)
            or shape.ndim != 1
            or len(shape) < 2
            or shape[0] != size
        ):
            continue
        name = f"free_batch_{index}"
        graph.initializer.append(numpy_helper.from_array(np.array([0, *shape[1:]], dtype=np.int64), name))
        node.input[1] = name


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


GENERATOR = Family(
    summary="a generator that exists only as an ONNX file, from z to images",
    build=_build,
    infer=_infer,
    options={"output_range": "what the file's values mean: -1:1 (default), 0:1 or 0:255"},
    formats=("onnx_file",),
)
