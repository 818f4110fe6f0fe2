"""What a file or folder holds, as far as reading it tells; nothing in it is ever run."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastdirs.artifact import KIND as ARTIFACT
from fastdirs.artifact import MANIFEST, open_artifact
from fastdirs.checkpoints import FORMATS, HEAD_BYTES, Survey, TensorFacts, recognise
from fastdirs.checkpoints.onnx_file import dtype_name, read_graph
from fastdirs.checkpoints.safetensors_file import read_safetensors
from fastdirs.directions import KIND as BANK
from fastdirs.directions import load_bank
from fastdirs.errors import ArtifactError, CheckpointError, FastdirsError
from fastdirs.loading import KIND as GENERATOR
from fastdirs.loading import load_generator
from fastdirs.manifest import Json, sha256_file
from fastdirs.recipe import load_recipe
from fastdirs.reconstructor_export import KIND as RECONSTRUCTOR_ARTIFACT
from fastdirs.reconstructor_export import open_reconstructor_artifact
from fastdirs.reconstructors import KIND as RECONSTRUCTOR
from fastdirs.reconstructors import load_reconstructor
from fastdirs.saliency.export import KIND as SEGMENTER_ARTIFACT
from fastdirs.saliency.export import open_segmenter_artifact
from fastdirs.segmenters import KIND as SEGMENTER
from fastdirs.segmenters import is_segmenter, load_segmenter

_MAX_TENSORS = 40
_ENGINE_MAGICS = {b"ftrt": "TensorRT", b"vtrt": "TensorRT for RTX"}
_ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
# The TensorRT that built a plan: major, minor, patch and build number, one byte each.
_ENGINE_VERSION = slice(24, 28)


_OPENERS: dict[str, Callable[[Path], object]] = {
    ARTIFACT: open_artifact,
    RECONSTRUCTOR_ARTIFACT: open_reconstructor_artifact,
    SEGMENTER_ARTIFACT: open_segmenter_artifact,
}


def inspect_file(path: Path) -> Json:
    """Describe a file or folder.

    Args:
        path: A generator, checkpoint, bank, reconstructor, segmenter, ONNX file, TensorRT engine, recipe or
            manifest, or the folder of an artefact, traversal or dataset.

    Returns:
        What can be written as JSON: "kind" and "path", then what that kind holds. Where it cannot be used,
        "problem" says why.

    Raises:
        CheckpointError: Missing, empty, truncated, refused because it would run code, or nothing known.
        BankError: A direction bank that is broken.
        RecipeError: A TOML file that is no recipe.
        ArtifactError: A JSON file that is no manifest.
    """
    if path.is_dir():
        return _folder(path)
    engine = _engine(path)
    if engine is not None:
        return engine
    if path.suffix == ".toml" and path.is_file():
        return _described("recipe", path, asdict(load_recipe(path)))
    if path.suffix == ".json" and path.is_file():
        content = _manifest(path)
        if content is None:
            raise ArtifactError(
                f"{path} is no manifest of fastdirs. Name the file or folder that it is about."
            )
        return _described(content["kind"], path, content)
    name = recognise(path)
    readers = {"onnx_file": _onnx, "safetensors_file": _safetensors}
    return readers[name](path) if name in readers else _checkpoint(path, name, _surveyed(path, name))


def _described(kind: str, path: Path, content: Json) -> Json:
    facts = {"bytes": path.stat().st_size, "sha256": sha256_file(path)} if path.is_file() else {}
    rest = {name: value for name, value in content.items() if name not in ("kind", "schema")}
    return {"kind": kind, "path": str(path), **facts, **rest}


def _problem(check: Callable[[Path], object], path: Path) -> Json:
    """Why a file cannot be used; empty if it can."""
    try:
        check(path)
    except FastdirsError as error:
        return {"problem": str(error)}
    return {}


def _manifest(path: Path) -> Json | None:
    """What a manifest says, whatever it is about; None if the file is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(content, dict) and "schema" in content and isinstance(content.get("kind"), str)
    return content if known else None


def _folder(path: Path) -> Json:
    """A folder is what the manifest in it says, or a checkpoint of another program."""
    try:
        here = sorted(file for file in path.iterdir() if file.is_file())
        # A JSON beside a file of the same name is about that file, not about the folder.
        shared = Counter(file.stem for file in here)
        alone = [file for file in here if file.suffix == ".json" and shared[file.stem] == 1]
        for file in sorted(alone, key=lambda file: file.name != MANIFEST):
            content = _manifest(file)
            if content is not None:
                sizes = [each.stat().st_size for each in path.rglob("*") if each.is_file()]
                check = _OPENERS.get(content["kind"])
                problem = _problem(check, path) if check else {}
                facts = {"files_in_all": len(sizes), "bytes": sum(sizes), **problem}
                return _described(content["kind"], path, {**facts, **content})
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Mend its permissions.") from error
    folder = FORMATS.load("folder")
    if folder.recognises(path, b""):
        return _checkpoint(path, "folder", _surveyed(path, "folder"))
    raise CheckpointError(
        f"{path} is a folder without a manifest: fastdirs did not make or finish it. Name a file in it."
    )


def _engine(path: Path) -> Json | None:
    """A TensorRT engine, as far as it can be known without TensorRT; None if the file is none."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return None
    facts: Json
    product = _ENGINE_MAGICS.get(head[:4])
    if product and len(head) >= _ENGINE_VERSION.stop:
        facts = {
            "recognised_by": "content",
            "built_by": f"{product} {'.'.join(map(str, head[_ENGINE_VERSION]))}",
        }
    elif path.suffix in _ENGINE_SUFFIXES and b"\0" in head:
        facts = {"recognised_by": "name"}
    else:
        return None
    sidecar = _manifest(path.with_name(f"{path.name}.json"))
    note = "A manifest beside it would say more." if sidecar is None else "Its manifest says the rest."
    return _described("tensorrt-engine", path, {**facts, "note": note, "manifest": sidecar})


def _safetensors(path: Path) -> Json:
    tensors, header = read_safetensors(path)
    if header.get("kind") == BANK:
        return _bank(path)
    if header.get("kind") == GENERATOR:
        return _described(GENERATOR, path, {**header, **_count(tensors), **_problem(load_generator, path)})
    if header.get("kind") == RECONSTRUCTOR:
        problem = _problem(load_reconstructor, path)
        return _described(RECONSTRUCTOR, path, {**header, **_count(tensors), **problem})
    if header.get("kind") == SEGMENTER:
        problem = _problem(load_segmenter, path)
        return _described(SEGMENTER, path, {**header, **_count(tensors), **problem})
    return _checkpoint(path, "safetensors_file", Survey(parts={"": tensors}, part=""))


def _surveyed(path: Path, name: str) -> Survey:
    survey = FORMATS.load(name).survey
    return Survey(parts={}) if survey is None else survey(path)


def _count(tensors: Mapping[str, TensorFacts]) -> Json:
    parameters = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
    return {"tensors": len(tensors), "parameters": parameters}


def _checkpoint(path: Path, name: str, survey: Survey) -> Json:
    """A file of another program: the state dicts in it, and what fastdirs makes of them."""
    first = [
        {"name": f"{key}.{name}".lstrip("."), "shape": list(tensor.shape), "dtype": str(tensor.dtype)[6:]}
        for key, tensors in survey.parts.items()
        for name, tensor in tensors.items()
    ][:_MAX_TENSORS]
    content: Json = {
        "format": name.removesuffix("_file"),
        "state_dicts": [{"name": key, **_count(tensors)} for key, tensors in survey.parts.items()],
        "taken": survey.part,
        "settings": survey.settings,
        "unknown_globals": list(survey.foreign),
        "first_tensors": first,
    }
    try:
        if is_segmenter(path):
            segmenter, _ = load_segmenter(path)
            content["loads_as"] = f"{segmenter.kind} segmenter"
            content["assumed"] = [f"img_resolution={segmenter.img_resolution}"]
        else:
            generator = load_generator(path)
            content["loads_as"] = generator.family
            content["assumed"] = list(generator.provenance.assumed)
    except FastdirsError as error:
        content["problem"] = str(error)
    return _described("checkpoint", path, content)


def _bank(path: Path) -> Json:
    bank = load_bank(path)
    numbers = (bank.scales.tolist(), bank.scores.tolist(), bank.ranges.tolist())
    directions = [
        {
            "index": index, "label": label, "scale": scale, "score": score, "range": ends,
            "tags": list(tags), "judge": judge,
        }
        for index, (label, tags, judge, scale, score, ends) in enumerate(
            zip(bank.labels, bank.tags, bank.judges, *numbers, strict=True)
        )
    ]  # fmt: skip
    content = {
        "method": bank.method, "settings": bank.settings, "layers": list(bank.layers),
        "knots": None if bank.knots is None else bank.knots.tolist(),
    }  # fmt: skip
    return _described(BANK, path, {**content, "generator": bank.generator, "directions": directions})


def _onnx(path: Path) -> Json:
    model = read_graph(path)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    counts = Counter(node.op_type for node in graph.node)
    return _described("onnx", path, {
        "inputs": [_value(value) for value in graph.input if value.name not in weights],
        "outputs": [_value(value) for value in graph.output],
        "opset": {each.domain or "ai.onnx": each.version for each in model.opset_import},
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
        "nodes": dict(counts.most_common()),
        "initializers": len(graph.initializer),
        "initializer_mib": round(sum(tensor.ByteSize() for tensor in graph.initializer) / 2**20, 3),
        "tensors_in_other_files": sum(bool(tensor.external_data) for tensor in graph.initializer),
    })  # fmt: skip


def _value(value: Any) -> Json:
    """Name, dtype and shape of a graph's input or output; a name in the shape is an axis of any size."""
    kind = value.type.tensor_type
    shape = [axis.dim_value or axis.dim_param or "?" for axis in kind.shape.dim]
    return {"name": value.name, "dtype": dtype_name(kind.elem_type), "shape": shape}
