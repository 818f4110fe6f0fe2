"""Engines of exported graphs, each beside its graph: compiled ahead of time, maybe for other machines."""

from collections.abc import Callable, Mapping
from pathlib import Path

from fastdirs.backends import BACKENDS, engine_path
from fastdirs.errors import BackendError
from fastdirs.manifest import Json
from fastdirs.recipe import Batch, Engine

Progress = Callable[[str, int, int], None]


def check_engine(engine: Engine) -> None:
    """Whether this machine could build what is asked for, before hours of other work.

    Raises:
        BackendError: It lacks a driver, or cannot build for one of these GPUs.
        MissingDependencyError: The library is not installed.
    """
    if engine.to != "onnx":
        targets = BACKENDS.load("trt").targets
        assert targets is not None
        targets(engine)


def build_engines(
    folder: Path,
    graphs: Mapping[str, Path],
    batch: Batch,
    engine: Engine,
    progress: Progress = lambda phase, done, total: None,
    report: Callable[[str], None] = lambda message: None,
) -> dict[str, Json]:
    """Build an engine of each graph, beside its graph.

    Args:
        folder: The artefact's folder.
        graphs: ONNX file of each precision.
        batch: Batch sizes that they serve.
        engine: What they are built for.
        progress: Called with the phase, steps done and steps in all; what it raises cancels the build.
        report: Called with a line for each engine.

    Returns:
        For each file that was written, by name within the folder, the manifest of the engine.

    Raises:
        BackendError: A graph is refused, or does not compute in the precision it is said to; or the machine
            lacks what building needs.
        MissingDependencyError: The library is not installed.
        OutputError: A file cannot be written.
    """
    build = BACKENDS.load("trt").build
    assert build is not None
    written: dict[str, Json] = {}
    for precision, graph in graphs.items():
        path = engine_path(graph, engine.to)
        files = (path, path.with_name(f"{path.name}.json"))
        content = build(graph, path, batch, engine, progress)
        if content["precision"] != precision:
            for file in files:
                file.unlink()
            raise BackendError(
                f"{graph.name} computes in {content['precision']} in {engine.to}, not in {precision}. "
                "Export it again."
            )
        for file in files:
            written[file.relative_to(folder).as_posix()] = content
        capabilities = ", ".join(content["compute_capabilities"])
        report(f"{path.name}: {engine.to} {content['version']} for {capabilities}")
    return written
