"""Which backend and precision to open an artefact with: measured here, kept, and said."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS, graph_backends, open_all
from fastdirs.errors import BackendError, OutputError
from fastdirs.machine import describe_machine
from fastdirs.manifest import cache_dir, environment, sha256_json, write_json
from fastdirs.parity import Parity, measure
from fastdirs.recipe import Batch
from fastdirs.throughput import time_sessions

AUTO = "auto"
_ROUNDS = 3
_CHOICES = "choices.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One backend and precision, measured on this machine.

    Attributes:
        backend: Registered name.
        precision: Arithmetic in effect.
        provider: What executes it, as the runtime says.
        detail: More that the runtime says.
        images_per_second: In a stream of batches.
        parity: Error against torch fp32.
        accepted: Whether the error is within the artefact's tolerance.
    """

    backend: str
    precision: str
    provider: str
    detail: str
    images_per_second: float
    parity: Parity
    accepted: bool

    def __str__(self) -> str:
        verdict = "" if self.accepted else " (error beyond tolerance)"
        return f"{self.backend} {self.precision} {self.images_per_second:.0f} images/s{verdict}"


def measure_backends(
    artifact: Artifact, backend: str, precision: str | None, batch_size: int
) -> tuple[list[Measured], bool]:
    """Speed and error of every backend and precision that may open an artefact here.

    Args:
        artifact: The artefact.
        backend: One backend, or "auto" for all that are installed.
        precision: One precision, or None for all that the artefact accepts and the machine has.
        batch_size: The batch to measure at.

    Returns:
        The measurements, and whether they were kept from an earlier call.

    Raises:
        UnknownNameError: No such backend.
        MissingDependencyError: The backend, or with "auto" every backend, is not installed.
        BackendError: The backend or precision does not apply.
    """
    pairs = _candidates(artifact, backend, precision)
    key = sha256_json(
        [artifact.sha256, artifact.content["accept"], pairs, batch_size, describe_machine(), environment()]
    )
    store = cache_dir() / _CHOICES
    known = _read_choices(store)
    # A measurement that is missing or damaged is made again and written anew.
    with suppress(KeyError, TypeError):
        return [Measured(**{**row, "parity": Parity(**row["parity"])}) for row in known[key]], True
    rows = _measure(artifact, pairs, batch_size)
    # Where nothing can be written, each run measures for itself.
    with suppress(OutputError):
        write_json(store, {**known, key: [asdict(row) for row in rows]})
    return rows, False


def _read_choices(store: Path) -> dict[str, Any]:
    try:
        content = json.loads(store.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _candidates(artifact: Artifact, backend: str, precision: str | None) -> list[tuple[str, str]]:
    accept = artifact.content["accept"]
    if precision is not None and precision not in accept:
        raise BackendError(
            f"This artefact accepts {', '.join(accept)}, not {precision!r}. "
            "Choose one of these, or export again with a recipe (or --precision) that accepts more."
        )
    if backend != AUTO:
        if BACKENDS.load(backend).runs != "graph":
            raise BackendError(
                f"{backend} runs models, not exported graphs. Name the model instead, or another backend."
            )
        if precision is not None:
            check_precision(backend, precision)
        plugin = BACKENDS.load(backend)
        check_runs(backend)
        allowed = [p for p in plugin.precisions() if p in accept and precision in (None, p)]
        if not allowed:
            raise BackendError(
                f"{backend} computes in {', '.join(plugin.precisions())} here, "
                f"but this artefact accepts only {', '.join(accept)}. Choose another backend."
            )
        usable = [p for p in allowed if plugin.graph_of(p) in artifact.graphs]
        if not usable:
            wanted = ", ".join(map(plugin.graph_of, allowed))
            raise BackendError(
                f"{backend} runs graphs that are written in {wanted}, but this artefact holds "
                f"{', '.join(artifact.graphs)}. Export again with --precision {wanted}."
            )
        return [(backend, p) for p in usable]
    pairs, missing = graph_backends([p for p in accept if precision in (None, p)])
    pairs = [(name, p) for name, p in pairs if BACKENDS.load(name).graph_of(p) in artifact.graphs]
    if not pairs:
        raise missing or BackendError(
            f"Nothing on this machine computes in {precision or ' or '.join(accept)}. "
            "Leave --precision out, or export with a recipe that accepts f32."
        )
    return pairs


def check_runs(backend: str) -> None:
    """Whether a backend runs on this machine at all.

    Raises:
        BackendError: The machine lacks what it needs; the message says what to do.
    """
    lacks = BACKENDS.load(backend).lacks()
    if lacks:
        raise BackendError(f"{backend} does not run on this machine: {lacks}")


def check_precision(backend: str, precision: str) -> None:
    """Whether a backend computes in a precision on this machine.

    Raises:
        BackendError: It does not.
    """
    check_runs(backend)
    offered = BACKENDS.load(backend).precisions()
    if precision not in offered:
        raise BackendError(
            f"{backend} does not compute in {precision!r} on this machine (its processor would only emulate "
            f"it, or the runtime lacks it). It offers: {', '.join(offered)}."
        )


def _measure(artifact: Artifact, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[Measured]:
    reference = artifact.reference()
    inputs, images = reference.inputs, reference.images
    accept = artifact.accept
    sessions = open_all(pairs, artifact.graphs, True, Batch(**artifact.content["batch"]))
    parities = {pair: measure(session, inputs, images, (1, batch_size)) for pair, session in sessions.items()}
    rows = np.arange(batch_size) % len(images)
    batch = [np.ascontiguousarray(each[rows]) for each in inputs]
    # One candidate needs no race, but its speed is still reported.
    rounds = _ROUNDS if len(sessions) > 1 else 1
    timings = time_sessions({" ".join(pair): session for pair, session in sessions.items()}, batch, rounds)
    measured = [
        Measured(
            backend=pair[0],
            precision=session.precision,
            provider=session.provider,
            detail=session.detail,
            images_per_second=1000 * batch_size / timings[" ".join(pair)].median_ms,
            parity=parities[pair],
            accepted=parities[pair].within(accept[pair[1]]),
        )
        for pair, session in sessions.items()
    ]
    for session in sessions.values():
        session.close()
    return measured
