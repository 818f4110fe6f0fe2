"""Every backend and precision of this machine on one generator: speed, latency, error, memory."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS, Backend, Session
from fastdirs.errors import BackendError, FastdirsError
from fastdirs.export import export_generator, make_reference
from fastdirs.generators import Generator
from fastdirs.graphs import SynthesisGraph, synthesis_inputs
from fastdirs.machine import Timing, alternate, describe_machine, resident_mib
from fastdirs.manifest import Json, environment
from fastdirs.parity import Parity, measure
from fastdirs.recipe import Batch, Graph, Recipe, Tolerance, usual_accept, usual_batch
from fastdirs.throughput import time_sessions

# The error is what is measured here, and no reason to measure nothing.
_ANY = Tolerance(mean=1e9, max=1e9, psnr=0.0)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One backend and precision.

    Attributes:
        backend: Registered name.
        precision: Arithmetic in effect; what was asked for where it failed, "" where nothing could be asked.
        provider: What executes it, as the runtime says.
        images_per_second: In a stream of batches.
        batch_ms: Time of one batch in the stream, in milliseconds, with its quartiles.
        latency_ms: Time of a single image, in milliseconds, with its quartiles.
        parity: Error against torch fp32.
        memory_mib: What opening and running it added to the process, in MiB; less than it holds, where memory
            that was free already is used again.
        failure: Why there are no figures; None if there are.
    """

    backend: str
    precision: str
    provider: str = ""
    images_per_second: float = 0.0
    batch_ms: Timing | None = None
    latency_ms: Timing | None = None
    parity: Parity | None = None
    memory_mib: float = 0.0
    failure: str | None = None


def bench(
    generator: Generator,
    batch_size: int | None = None,
    rounds: int = 7,
    graphs: Sequence[str] = ("f32",),
    compiled: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """Measure every backend and precision, in turns within one run.

    Args:
        generator: The generator; it is exported to a temporary folder.
        batch_size: Images in a batch; None takes what suits the image size, 64 up to 64 pixels.
        rounds: Timings of each.
        graphs: Precisions of the graphs to measure; float32 is always among them.
        compiled: Whether to measure torch.compile too, which takes a minute or more.
        progress: Called with timings done and timings in all.

    Returns:
        A row for each backend and precision, fastest first; one that cannot run says why.
    """
    # A mistake is said, and not measured.
    usual_accept(graphs)
    batch_size = batch_size or usual_batch(generator.img_resolution).opt
    inputs = synthesis_inputs(generator, range(batch_size))
    batch = Batch(opt=batch_size, max=max(2, batch_size))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fastdirs-bench-") as folder:
        artifact = _exported(generator, batch_size, graphs, Path(folder))
        # The export has rendered some pictures in torch, which takes long where they are large.
        reference = (
            artifact.reference()
            if isinstance(artifact, Artifact)
            else make_reference(generator, min(batch_size, 8))
        )
        sessions: dict[tuple[str, str], Session] = {}
        facts: dict[tuple[str, str], tuple[Parity, float]] = {}
        alone: dict[str, Session] = {}
        for name in BACKENDS.names():
            if name == "compiled" and not compiled:
                continue
            try:
                backend = BACKENDS.load(name)
                sources = _sources(backend, generator, artifact)
            except FastdirsError as error:
                rows.append(Row(backend=name, precision="", failure=str(error)))
                continue
            for precision, source in sources.items():
                try:
                    with ExitStack() as failed:
                        before = resident_mib()
                        session = backend.open(source, precision, True, batch)
                        failed.callback(session.close)
                        parity = measure(session, reference.inputs, reference.images, (1, batch_size))
                        facts[name, precision] = (parity, resident_mib() - before)
                        alone[f"{name} {precision}"] = backend.open(source, precision, False, batch)
                        sessions[name, precision] = session
                        failed.pop_all()
                except FastdirsError as error:
                    rows.append(Row(backend=name, precision=precision, failure=str(error)))
        named = {" ".join(pair): session for pair, session in sessions.items()}
        total = 2 * rounds * len(named)
        batches = time_sessions(named, inputs, rounds, lambda done, _: progress(done, total))
        one = [np.ascontiguousarray(each[:1]) for each in inputs]
        singles = alternate(
            {name: partial(session.run, one) for name, session in alone.items()},
            rounds,
            lambda done, _: progress(total // 2 + done, total),
        )
        for pair, session in sessions.items():
            timing = batches[" ".join(pair)]
            rows.append(
                Row(
                    backend=pair[0],
                    precision=session.precision,
                    provider="; ".join(filter(None, (session.provider, session.detail))),
                    images_per_second=1000 * batch_size / timing.median_ms,
                    batch_ms=timing,
                    latency_ms=singles[" ".join(pair)],
                    parity=facts[pair][0],
                    memory_mib=facts[pair][1],
                )
            )
            session.close()
            alone[" ".join(pair)].close()
    return sorted(rows, key=lambda row: -row.images_per_second)


def conditions(generator: Generator, batch_size: int) -> Json:
    """What a table of rows holds for: generator, batch size, machine, versions."""
    return {
        "generator": generator.identity(),
        "batch_size": batch_size,
        "machine": describe_machine(),
        "environment": environment(),
    }


def _exported(
    generator: Generator, batch_size: int, graphs: Sequence[str], folder: Path
) -> Artifact | FastdirsError:
    try:
        recipe = Recipe(
            generator=generator.provenance.name, batch=Batch(opt=batch_size, max=max(2, batch_size)),
            graph=Graph(precisions=("f32", *(each for each in graphs if each != "f32"))),
            accept=dict.fromkeys(usual_accept(graphs), _ANY),
        )  # fmt: skip
        return export_generator(generator, folder / "artifact", recipe)
    except FastdirsError as error:
        return error


def _sources(
    backend: Backend, generator: Generator, artifact: Artifact | FastdirsError
) -> dict[str, nn.Module | Path]:
    """What a backend opens for each precision; raises what keeps it from opening anything."""
    offered = backend.precisions()
    if not offered:
        raise BackendError(backend.lacks())
    if backend.runs == "module":
        module = SynthesisGraph(generator)
        return {precision: module for precision in offered if precision in generator.precisions}
    if isinstance(artifact, FastdirsError):
        raise artifact
    return {
        precision: artifact.graphs[backend.graph_of(precision)]
        for precision in offered
        if backend.graph_of(precision) in artifact.graphs
    }
