"""Whether an engine can be used: it fits one release, one graph, some GPUs and a range of batch sizes."""

import platform
from dataclasses import dataclass
from pathlib import Path

from fastdirs.backends._tensorrt_library import Gpu
from fastdirs.errors import ArtifactError, BackendError, PrecisionError
from fastdirs.manifest import Json, read_json, sha256_file
from fastdirs.recipe import Batch

KIND = "engine"
# What running reads of a manifest, beside what `misfit` does.
_READ = ("inputs", "outputs", "heavy_layers")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an engine is to be used with.

    Attributes:
        library: "tensorrt" or "tensorrt-rtx".
        version: Its release.
        gpu: The GPU.
        system: Operating system, as `platform.system` names it.
        machine: Architecture of the processor, as `platform.machine` names it.
        precision: Arithmetic that is asked for.
        graph_sha256: Of the ONNX file.
        engine_sha256: Of the engine file as it is.
        batch: Batch sizes that will be run; None if it is not known yet.
    """

    library: str
    version: str
    gpu: Gpu
    system: str
    machine: str
    precision: str
    graph_sha256: str
    engine_sha256: str
    batch: Batch | None = None


def manifest_path(engine: Path) -> Path:
    """The manifest beside an engine."""
    return engine.with_name(f"{engine.name}.json")


def facts_of(
    graph: Path, engine: Path, library: str, version: str, gpu: Gpu, precision: str, batch: Batch | None
) -> Facts:
    """What this machine and these files are.

    Raises:
        ArtifactError: The graph or the engine cannot be read.
    """
    try:
        hashes = {"graph_sha256": sha256_file(graph), "engine_sha256": sha256_file(engine)}
    except OSError as error:
        raise ArtifactError(
            f"{error.filename} cannot be read: {error.strerror}. Export the generator again."
        ) from error
    return Facts(
        library=library, version=version, gpu=gpu, system=platform.system(), machine=platform.machine(),
        precision=precision, batch=batch, **hashes,
    )  # fmt: skip


def read_fitting(engine: Path, facts: Facts) -> Json:
    """The manifest of an engine that fits.

    Raises:
        ArtifactError: The manifest is missing or incomplete, or the engine is not the one that it describes.
        PrecisionError: It is an engine of this graph, and computes in another precision.
        BackendError: It does not fit; the message says in what, and how to build one that does.
    """
    content = read_json(manifest_path(engine), KIND)
    try:
        _, reason = [content[key] for key in _READ], misfit(content, facts)
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{manifest_path(engine)} lacks {error}. Build the engine again: {_rebuild(facts)}."
        ) from error
    if not reason:
        return content
    mend = f"Build it again: {_rebuild(facts)}. Or delete it: then one is built here on first use."
    if content["engine_sha256"] != facts.engine_sha256:
        raise ArtifactError(f"{engine} cannot be used: {reason}. {mend}")
    if content["graph_sha256"] == facts.graph_sha256 and content["precision"] != facts.precision:
        raise PrecisionError(
            f"{engine} cannot be used: {reason}. TensorRT computes in what the graph says: "
            f"give it the graph in {facts.precision}, or ask for {content['precision']}."
        )
    raise BackendError(f"{engine} cannot be used: {reason}. {mend}")


def misfit(content: Json, facts: Facts) -> str:
    """Why an engine cannot be used with what is here; "" if it can.

    Args:
        content: The engine's manifest.
        facts: What is here.

    Source: NVIDIA's notes on engine compatibility: plans fit the release that built them, TensorRT's the
        platform and GPU model as well, TensorRT for RTX's every GPU that they were built for.
    """
    profile, capabilities = content["profile"], content["compute_capabilities"]
    if content["engine_sha256"] != facts.engine_sha256:
        return "its content is not what was built (another SHA-256)"
    if content["graph_sha256"] != facts.graph_sha256:
        return "it was built from another graph (another SHA-256)"
    if content["precision"] != facts.precision:
        return f"it computes in {content['precision']}, not in {facts.precision}"
    if (content["library"], content["version"]) != (facts.library, facts.version):
        return (
            f"it was built by {content['library']} {content['version']}, "
            f"and {facts.library} {facts.version} is installed"
        )
    if facts.gpu.compute_capability not in capabilities:
        return (
            f"it was built for GPUs of compute capability {', '.join(capabilities)}, "
            f"and this one has {facts.gpu.compute_capability}"
        )
    if facts.library == "tensorrt":
        built = (content["platform"], content["machine"], content["gpu"])
        if built != (facts.system, facts.machine, facts.gpu.name):
            return (
                f"it was built on {built[0]} {built[1]} for the {built[2]}, "
                f"and this is {facts.system} {facts.machine} with the {facts.gpu.name}"
            )
    if facts.batch is not None and not profile["min"] <= facts.batch.opt <= facts.batch.max <= profile["max"]:
        return (
            f"it serves batches of {profile['min']} to {profile['max']} images, "
            f"and {facts.batch.max} are asked for"
        )
    return ""


def _rebuild(facts: Facts) -> str:
    largest = f" --max-batch {facts.batch.max}" if facts.batch else ""
    capability = (
        f" --compute-capability {facts.gpu.compute_capability}" if facts.library == "tensorrt-rtx" else ""
    )
    return f"fastdirs export ... --to {facts.library}{capability}{largest}"
