"""A generator that exists only as an ONNX file: run as it is, behind latents and in front of [-1, 1]."""

import json
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
from fastdirs.checkpoints.onnx_file import dtype_name
from fastdirs.errors import CheckpointError, ContractError
from fastdirs.generators import Factor, Family, Generator, Provenance, ZGenerator
from fastdirs.latents import sample_z
from fastdirs.manifest import Json
from fastdirs.registry import unknown_name

Array = NDArray[np.float32]

# Scale and offset that bring what a file returns to [-1, 1].
_RANGES = {"-1:1": (1.0, 0.0), "0:1": (2.0, -1.0), "0:255": (1 / 127.5, -1.0)}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
# More than a generator without a last activation returns, less than a picture in grey levels.
_BEYOND_UNITS = 16.0
# A little more than one grey level, by which a file that returns whole levels may differ between batch sizes.
_BATCH_ERROR = 0.01
_PREFIX = "file/"
_FATAL_ONLY = 4
_RUN_ERRORS = (
    ort_errors.EPFail, ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf, ort_errors.NotImplemented, ort_errors.RuntimeException,
)  # fmt: skip


class _GraphStage(nn.Module):
    """The whole file as one stage; its bytes are the weights."""

    graph: Tensor

    def __init__(self, config: Json) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("graph", torch.empty(config["graph_bytes"], dtype=torch.uint8))
        self._session: onnxruntime.InferenceSession | None = None
        self.register_load_state_dict_post_hook(_forget_session)  # type: ignore[no-untyped-call]

    def forward(self, state: Tensor | None, latents: Tensor) -> Tensor:
        """Latents `[batch, 1, dim]` -> images `[batch, channels, height, width]`, float32."""
        if latents.requires_grad and torch.is_grad_enabled():
            raise ContractError("An ONNX file has no gradients. Use a method that needs none.")
        if self._session is None:
            self._session = _open(self.adapted())
        rows = latents.detach().float().cpu().numpy()
        return torch.from_numpy(_run(self._session, rows, self.config["one_by_one"])).to(latents.device)

    def adapted(self) -> onnx.ModelProto:
        """The file, between `latents` and `images`."""
        return _adapt(onnx.load_model_from_string(self.graph.cpu().numpy().tobytes()), self.config)

    def __getstate__(self) -> dict[str, Any]:
        # A session cannot be copied; a copy of the stage opens its own.
        return {**self.__dict__, "_session": None}


def _forget_session(stage: nn.Module, incompatible: object) -> None:
    """The buffer was loaded, so what was opened from its old content is out of date."""
    assert isinstance(stage, _GraphStage)
    stage._session = None


class OnnxGraph(ZGenerator):
    """An ONNX file from z to images.

    Args:
        config: Length of the file, shape of z in it, which output is the picture and how that is laid out.
    """

    # ONNX Runtime executes the file as it is, whatever torch is asked for.
    precisions = ("f32",)
    differentiable = False

    def __init__(self, config: Json) -> None:
        z_dim = int(np.prod(config["z_shape"]))
        super().__init__(
            family="onnx_graph", space="z", z_dim=z_dim, num_layers=1, dim=z_dim,
            img_resolution=config["img_resolution"], img_channels=config["img_channels"],
            stages=[_GraphStage(config)], reads=[(0,)], config=config,
        )  # fmt: skip

    def factors(self) -> list[Factor]:
        """None: which weights multiply z is not known."""
        return []

    def graph_model(self) -> onnx.ModelProto:
        """The file as an export needs it: nothing is left to convert, and the batch is dynamic.

        Input `latents` `[batch, 1, dim]`, output `images` `[batch, channels, height, width]` in [-1, 1], both
        float32.

        Raises:
            ContractError: The file works for one image at a time only.
        """
        if self.config["one_by_one"]:
            raise ContractError(
                f"{self.provenance.name} works for one image at a time only: the batch size is built into "
                "its graph. Export the ONNX file again with a dynamic batch axis, or use the eager backend."
            )
        stage = self.stages[0]
        assert isinstance(stage, _GraphStage)
        model = stage.adapted()
        model.metadata_props.add(key="fastdirs", value=json.dumps({"generator": self.identity()}))
        return model


def _build(config: Json) -> Generator:
    return OnnxGraph(config).eval().requires_grad_(False)


def _infer(checkpoint: Checkpoint, options: Mapping[str, str]) -> Generator:
    path, data = str(checkpoint.path), checkpoint.path.read_bytes()
    model = onnx.load_model_from_string(data)
    _check_weights(model, path)
    source = _only_input(model, path)
    z_shape = _z_shape(source, path)
    rows = sample_z(range(4), int(np.prod(z_shape))).numpy()[:, None]
    output, pictures = _probe(model, rows, z_shape, path)
    channels_last = pictures.shape[1] == pictures.shape[2]
    config: Json = {
        "graph_bytes": len(data), "z_shape": list(z_shape), "output": output, "channels_last": channels_last,
        "output_range": _output_range(pictures, options.get("output_range"), path),
        "img_channels": int(pictures.shape[3 if channels_last else 1]),
        "img_resolution": int(pictures.shape[2]), "one_by_one": False,
    }  # fmt: skip
    config["one_by_one"] = not _batches(model, config, rows, pictures)
    if config["one_by_one"] and _fixed_batch(source) not in (None, 1):
        raise CheckpointError(
            f"{path} works for exactly {_fixed_batch(source)} images at once. "
            "Export it again with a dynamic batch axis."
        )
    assumed = ["one_by_one=true"] if config["one_by_one"] else []
    if "output_range" not in options and pictures.dtype != np.uint8:
        assumed.append(f"output_range={config['output_range']}")

    generator = OnnxGraph(config)
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    generator.load_state_dict({"stages.0.graph": buffer, "latent_mean": generator.latent_mean})
    named = {entry.key: entry.value for entry in model.metadata_props}
    licence = named.get("licence") or named.get("license") or "unknown"
    generator.provenance = Provenance(
        name=checkpoint.path.stem, source=checkpoint.path.name, licence=licence, assumed=tuple(assumed)
    )
    return generator.eval().requires_grad_(False)


def _check_weights(model: onnx.ModelProto, path: str) -> None:
    for tensor in model.graph.initializer:
        try:
            values = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path} is a broken ONNX file: {tensor.name!r}: {error}.") from error
        if tensor.data_type in _FLOATS and not np.isfinite(values).all():
            raise CheckpointError(
                f"{path} has NaN or infinite values in {tensor.name!r}: "
                "its training failed or the file is damaged."
            )


def _inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """What the caller passes: old files list their weights as inputs too."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _only_input(model: onnx.ModelProto, path: str) -> onnx.ValueInfoProto:
    inputs = _inputs(model.graph)
    if len(inputs) != 1:
        names = ", ".join(repr(value.name) for value in inputs) or "none"
        raise CheckpointError(
            f"{path} has {len(inputs)} inputs ({names}). Expected z alone: "
            "export it again with the others as constants."
        )
    return inputs[0]


def _z_shape(source: onnx.ValueInfoProto, path: str) -> tuple[int, ...]:
    """Shape of one z in the file, without the batch axis: all axes but one have size 1."""
    kind = source.type.tensor_type
    sizes = ", ".join(str(axis.dim_value or axis.dim_param or "?") for axis in kind.shape.dim)
    found = f"its input {source.name!r} is [{sizes}], {dtype_name(kind.elem_type)}"
    row = tuple(axis.dim_value for axis in kind.shape.dim)[1:]
    wide = [size for size in row if size > 1]
    if kind.elem_type not in _FLOATS or len(row) > 3 or (len(wide) > 1 and len(row) != 2):
        raise CheckpointError(
            f"{path} is no generator: {found}. "
            "Expected z, such as [batch, z_dim] or [batch, z_dim, 1, 1], float."
        )
    if not wide or not all(row):
        raise CheckpointError(
            f"{path} does not say how long z is: {found}. Export it again with only the batch axis dynamic."
        )
    if len(wide) == 2:
        raise CheckpointError(
            f"{path} starts from {row[0]} latent layers ({found}), and nothing in it makes them from z. "
            "Export mapping and synthesis together, from z to images."
        )
    return row


def _fixed_batch(source: onnx.ValueInfoProto) -> int | None:
    """The batch size that is built into a file, None if it is dynamic."""
    return source.type.tensor_type.shape.dim[0].dim_value or None


def _probe(
    model: onnx.ModelProto, rows: Array, z_shape: tuple[int, ...], path: str
) -> tuple[str, NDArray[Any]]:
    """Which output is a picture, and the picture of each row `[batch, 1, dim]`, as the file returns it."""
    source = _only_input(model, path)
    dtype = helper.tensor_dtype_to_np_dtype(source.type.tensor_type.elem_type)
    names = [value.name for value in model.graph.output]
    runs = []
    try:
        session = _open(model)
        # The last row twice: it must give the same picture.
        for row in (*rows, rows[-1]):
            z = np.repeat(row.reshape(1, *z_shape), _fixed_batch(source) or 1, axis=0).astype(dtype)
            runs.append([np.asarray(value)[:1] for value in session.run(names, {source.name: z})])
    except _RUN_ERRORS as error:
        raise CheckpointError(f"{path} does not run in ONNX Runtime: {str(error).splitlines()[0]}") from error
    found = [index for index, value in enumerate(runs[0]) if _is_picture(value)]
    if len(found) != 1:
        shapes = ", ".join(
            f"{name!r} {list(value.shape)}" for name, value in zip(names, runs[0], strict=True)
        )
        raise CheckpointError(
            f"{path} is no generator: it returns {shapes}. Expected one square picture for each z, "
            "[batch, 1 or 3, size, size] or [batch, size, size, 1 or 3]."
        )
    pictures = np.concatenate([run[found[0]] for run in runs])
    if not np.isfinite(pictures).all():
        raise CheckpointError(f"{path} returns NaN or infinite values for a random z: the file is damaged.")
    if not np.allclose(pictures[-1], pictures[-2], atol=1e-4):
        raise CheckpointError(
            f"{path} draws random numbers: the same z gave two different pictures. "
            "Export it again with constant noise."
        )
    return names[found[0]], pictures[:-1]


def _is_picture(value: NDArray[Any]) -> bool:
    if value.ndim != 4 or not (value.dtype.kind == "f" or value.dtype == np.uint8):
        return False
    _, first, second, third = value.shape
    return (first in (1, 3) and second == third > 3) or (third in (1, 3) and first == second > 3)


def _output_range(pictures: NDArray[Any], asked: str | None, path: str) -> str:
    """What the values mean; raises CheckpointError where they leave a doubt that `asked` does not settle."""
    low, high = pictures.min(), pictures.max()
    if asked is not None and asked not in _RANGES:
        raise unknown_name("output_range", asked, _RANGES)
    if pictures.dtype == np.uint8:
        if asked not in (None, "0:255"):
            raise CheckpointError(f"{path} returns uint8, so output_range={asked} cannot be. Leave it out.")
        return "0:255"
    if asked is None and (low >= 0 or high > _BEYOND_UNITS):
        raise CheckpointError(
            f"{path} returns values from {low:.3g} to {high:.3g}, so their range is in doubt. "
            f"Settle it with output_range={'0:1' if high <= _BEYOND_UNITS else '0:255'} (or -1:1)."
        )
    return asked or "-1:1"


def _batches(model: onnx.ModelProto, config: Json, rows: Array, pictures: NDArray[Any]) -> bool:
    """Whether the file, its batch made dynamic, turns all rows at once into the pictures of each alone."""
    scale, offset = _RANGES[config["output_range"]]
    wanted = (pictures.transpose(0, 3, 1, 2) if config["channels_last"] else pictures) * scale + offset
    try:
        images = _run(_open(_adapt(model, config)), rows, one_by_one=False)
    except _RUN_ERRORS:
        return False
    return images.shape == wanted.shape and np.allclose(images, wanted, rtol=0, atol=_BATCH_ERROR)


def _open(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    # What goes wrong is raised; the same on standard error would only repeat it.
    settings.log_severity_level = _FATAL_ONLY
    return onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def _run(session: onnxruntime.InferenceSession, latents: Array, one_by_one: bool) -> Array:
    """Latents `[batch, 1, dim]` -> images `[batch, channels, height, width]`, float32."""
    parts = np.split(latents, len(latents)) if one_by_one else [latents]
    return np.concatenate(
        [session.run(["images"], {"latents": np.ascontiguousarray(part)})[0] for part in parts]
    )


def _adapt(model: onnx.ModelProto, config: Json) -> onnx.ModelProto:
    """The same graph from `latents` `[batch, 1, dim]` to `images` in [-1, 1], float32.

    A fixed batch is made dynamic, unless the file runs one by one.
    """
    # Everything in the file gets a prefix, so that the names of this package cannot meet its own.
    adapted = compose.add_prefix(model, _PREFIX)
    graph = adapted.graph
    source = _inputs(graph)[0]
    if _fixed_batch(source) is not None and not config["one_by_one"]:
        _free_batch(graph, _fixed_batch(source))
    z_shape = np.array([-1, *config["z_shape"]], dtype=np.int64)
    graph.initializer.append(numpy_helper.from_array(z_shape, "z_shape"))
    head = [
        helper.make_node("Reshape", ["latents", "z_shape"], ["z"]),
        helper.make_node("Cast", ["z"], [source.name], to=source.type.tensor_type.elem_type),
    ]
    steps: list[tuple[str, list[str], dict[str, Any]]] = [("Cast", [], {"to": TensorProto.FLOAT})]
    if config["channels_last"]:
        steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
    if config["output_range"] != "-1:1":
        for name, value in zip(("scale", "offset"), _RANGES[config["output_range"]], strict=True):
            graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.float32), name))
        steps += [("Mul", ["scale"], {}), ("Add", ["offset"], {})]
    names = [_PREFIX + config["output"], *(f"step_{index}" for index in range(1, len(steps))), "images"]
    tail = [
        helper.make_node(op, [before, *extra], [after], **settings)
        for (op, extra, settings), before, after in zip(steps, names, names[1:], strict=False)
    ]
    batch = 1 if config["one_by_one"] else "batch"
    size, z_dim = config["img_resolution"], int(np.prod(config["z_shape"]))
    latents = helper.make_tensor_value_info("latents", TensorProto.FLOAT, [batch, 1, z_dim])
    shape = [batch, config["img_channels"], size, size]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    nodes = [*head, *graph.node, *tail]
    for field, values in (("node", nodes), ("input", [latents]), ("output", [images]), ("value_info", [])):
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    # Before version 4 every weight had to be an input as well.
    adapted.ir_version = max(adapted.ir_version, 4)
    return adapted


def _free_batch(graph: onnx.GraphProto, size: int | None) -> None:
    """Make the batch dynamic in the nodes of a graph that was traced with a fixed one.

    Tracing turns `x.view(len(x), ...)` into a reshape to a constant shape that starts with the batch size it
    saw; a leading 0 there means "as many as come in". Whether this was all is for the caller to try.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for index, node in enumerate(graph.node):
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]])
        if len(shape) > 1 and shape[0] == size and 0 not in shape:
            name = f"{_PREFIX}free_batch_{index}"
            graph.initializer.append(numpy_helper.from_array(np.array([0, *shape[1:]], dtype=np.int64), name))
            node.input[1] = name
            # The only attribute of a reshape is "allowzero", which would take the 0 literally.
            node.ClearField("attribute")


GENERATOR = Family(
    summary="a generator that exists only as an ONNX file, from z to images",
    build=_build,
    infer=_infer,
    recognises=lambda checkpoint: checkpoint.format == "onnx_file",
    options={"output_range": "what the file's values mean: -1:1 (default), 0:1 or 0:255"},
    formats=("onnx_file",),
)
