"""Whether an engine can be used: it fits one release, one graph, some GPUs and a range of batch sizes."""

import platform
from dataclasses import dataclass
from pathlib import Path

from fastdirs.errors import ArtifactError, BackendError, PrecisionError
from fastdirs.manifest import Json, read_json, sha256_file
from fastdirs.recipe import Batch

KIND = "engine"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an engine is to be used with.

    Attributes:
        library: "tensorrt" or "tensorrt-rtx".
        version: Its release.
        compute_capability: That of the GPU.
        system: Operating system, as `platform.system` names it.
        precision: Arithmetic that is asked for.
        graph_sha256: Of the ONNX file.
        engine_sha256: Of the engine file as it is.
        batch: Batch sizes that will be run; None if it is not known yet.
    """

    library: str
    version: str
    compute_capability: str
    system: str
    precision: str
    graph_sha256: str
    engine_sha256: str
    batch: Batch | None = None


def manifest_path(engine: Path) -> Path:
    """The manifest beside an engine."""
    return engine.with_name(f"{engine.name}.json")


def facts_of(
    graph: Path,
    engine: Path,
    library: str,
    version: str,
    compute_capability: str,
    precision: str,
    batch: Batch | None,
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
        library=library, version=version, compute_capability=compute_capability, precision=precision,
        system=platform.system(), batch=batch, **hashes,
    )  # fmt: skip


def read_fitting(engine: Path, facts: Facts) -> Json:
    """The manifest of an engine that fits.

    Raises:
        ArtifactError: The manifest is missing or incomplete.
        BackendError: It does not fit; the message says in what, and how to build one that does.
    """
    content = read_json(manifest_path(engine), KIND)
    try:
        reason = misfit(content, facts)
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{manifest_path(engine)} lacks {error}. Build the engine again: {_rebuild(facts)}."
        ) from error
    if reason:
        kind = PrecisionError if content["precision"] != facts.precision else BackendError
        raise kind(
            f"{engine} cannot be used: {reason}. Build it again: {_rebuild(facts)}. "
            "Or delete it: then one is built here on first use."
        )
    return content


def misfit(content: Json, facts: Facts) -> str:
    """Why an engine cannot be used with what is here; "" if it can.

    Args:
        content: The engine's manifest.
        facts: What is here.

    Source: NVIDIA's notes on engine compatibility: plans fit the release that built them, TensorRT's the
        operating system and GPU as well, TensorRT for RTX's every GPU that they were built for.
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
    if facts.compute_capability not in capabilities:
        return (
            f"it was built for GPUs of compute capability {', '.join(capabilities)}, "
            f"and this one has {facts.compute_capability}"
        )
    if facts.library == "tensorrt" and content["platform"] != facts.system:
        return f"it was built on {content['platform']}, and this is {facts.system}"
    if facts.batch is not None and not profile["min"] <= facts.batch.opt <= facts.batch.max <= profile["max"]:
        return (
            f"it serves batches of {profile['min']} to {profile['max']} images, "
            f"and {facts.batch.max} are asked for"
        )
    return ""


def _rebuild(facts: Facts) -> str:
    largest = f" --max-batch {facts.batch.max}" if facts.batch else ""
    capability = (
        f" --compute-capability {facts.compute_capability}" if facts.library == "tensorrt-rtx" else ""
    )
    return f"fastdirs export ... --to {facts.library}{capability}{largest}"
