"""Opening an artefact or a generator on a backend; `auto` measures what is here and says what it chose."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from fastdirs.artifact import Artifact, open_artifact
from fastdirs.backends import BACKENDS, Array, Session
from fastdirs.errors import (
    BackendError,
    ContractError,
    ParityError,
    SelectionError,
    check_shape,
)
from fastdirs.generators import Generator
from fastdirs.graphs import SynthesisGraph
from fastdirs.latents import psi_per_layer, sample_z, truncate
from fastdirs.manifest import Json
from fastdirs.parity import Parity
from fastdirs.selection import AUTO, check_precision, measure_backends
from fastdirs.throughput import stream
from fastdirs.traversal import LatentsOf


class Runtime:
    """An opened backend: latents in, images out, as numpy arrays.

    Attributes:
        generator: Identity of the generator.
        backend: Registered name of the backend.
        precision: Arithmetic in effect, read back from the runtime.
        provider: What executes it, read back from the runtime.
        detail: More that the runtime says.
        reason: Why this backend and precision.
        parity: Error against torch fp32, measured on this machine; None for torch itself.
        max_batch: Largest batch that was verified; None = any.
        usual_batch: Batch size that speed was measured at.
    """

    def __init__(
        self,
        *,
        generator: Json,
        backend: str,
        synthesis: Session,
        latents_of_z: "_LatentsOfZ",
        reason: str,
        parity: Parity | None,
        max_batch: int | None,
        usual_batch: int,
    ) -> None:
        self.generator = generator
        self.backend = backend
        self.precision = synthesis.precision
        self.provider = synthesis.provider
        self.detail = synthesis.detail
        self.reason = reason
        self.parity = parity
        self.max_batch = max_batch
        self.usual_batch = usual_batch
        self.session = synthesis
        self._latents_of_z = latents_of_z
        self._closed = False

    def synthesize(self, latents: Array, c: Array | None = None) -> Array:
        """Images of latents.

        Args:
            latents: `[batch, layers, dim]`, float32.
            c: Class; the families that fastdirs compiles today are unconditional, so None.

        Returns:
            `[batch, channels, height, width]`, float32 in [-1, 1].

        Raises:
            ShapeError: The latents have another shape.
            SelectionError: An empty batch, or one larger than was verified.
            ContractError: A class for an unconditional generator.
            BackendError: The runtime was closed.
        """
        if c is not None:
            raise ContractError(f"{self.generator['name']} takes no class. Leave c out.")
        return self.session.run([self._checked(latents)])

    def stream(self, batches: Iterable[Array]) -> Iterator[Array]:
        """Images of batch after batch, in order, while the caller works on earlier ones.

        Args:
            batches: Latents. Each `[batch, layers, dim]`, float32.

        Yields:
            `[batch, channels, height, width]`, float32 in [-1, 1].

        Raises:
            ShapeError: Latents of another shape.
            SelectionError: An empty batch, or one larger than was verified.
            BackendError: The runtime was closed.
        """
        return stream(self.session, map(self._checked, batches))

    def latents_of(self, psi: float = 1.0, cutoff: int | None = None) -> LatentsOf:
        """The way from seeds to unshifted latents, with a truncation.

        Args:
            psi: Truncation, 1 = off.
            cutoff: How many of the first layers to truncate; None = all.

        Raises:
            SelectionError: psi or cutoff out of range.
        """
        psi_of_layers = psi_per_layer(psi, cutoff, int(self.generator["num_layers"]))

        def latents_of(seeds: Sequence[int]) -> Tensor:
            self._check_open()
            return self._latents_of_z(sample_z(seeds, int(self.generator["z_dim"])), psi_of_layers)

        return latents_of

    def describe(self) -> Json:
        """What is in effect, for manifests."""
        return {"backend": self.backend, "precision": self.precision, "provider": self.provider}

    def close(self) -> None:
        """Free the runtime. May be called twice."""
        self._closed = True
        self.session.close()
        self._latents_of_z.close()

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("This runtime was closed. Open it again with open_runtime.")

    def _checked(self, latents: Array) -> Array:
        """Latents as a session wants them: `[batch, layers, dim]`, float32, contiguous."""
        self._check_open()
        layers, dim = int(self.generator["num_layers"]), int(self.generator["dim"])
        check_shape(latents, "batch layers dim", "latents", layers=layers, dim=dim)
        if not len(latents):
            raise SelectionError("The batch is empty. Pass the latents of at least one image.")
        if self.max_batch is not None and len(latents) > self.max_batch:
            raise SelectionError(
                f"A batch of {len(latents)} is out of range. "
                f"This artefact was verified for 1 to {self.max_batch}."
            )
        return np.ascontiguousarray(latents, dtype=np.float32)


class _LatentsOfZ:
    """z `[batch, z_dim]` and the truncation of each layer `[layers]` -> latents `[batch, layers, dim]`."""

    def __init__(self, source: Generator | Session | Json) -> None:
        self._source = source

    def __call__(self, z: Tensor, psi: Tensor) -> Tensor:
        if isinstance(self._source, Session):
            return torch.from_numpy(self._source.run([z.numpy(), psi.numpy()]))
        if isinstance(self._source, Generator):
            with torch.inference_mode():
                return truncate(self._source.map_z(z, None), self._source.latent_mean, psi)
        # Without a mapping the latents are z itself, in another shape, and their mean is zero.
        return psi[:, None] * z.reshape(len(z), int(self._source["num_layers"]), int(self._source["dim"]))

    def close(self) -> None:
        if isinstance(self._source, Session):
            self._source.close()


def open_runtime(
    source: Artifact | Generator | str | Path,
    backend: str = AUTO,
    precision: str | None = None,
    batch_size: int | None = None,
    streaming: bool = False,
) -> Runtime:
    """Open an artefact, or a generator in torch.

    Args:
        source: An artefact, its folder, or a generator.
        backend: Registered name, or "auto" for the fastest whose error is accepted, by a short measurement
            that is kept for this machine, these library versions and this artefact.
        precision: "f32" or "bf16"; None leaves it to the measurement.
        batch_size: The batch to measure at; None takes the recipe's usual one.
        streaming: Many batches will be streamed, so throughput matters more than the latency of one.

    Raises:
        ArtifactError: The artefact is broken or changed.
        UnknownNameError: No such backend.
        MissingDependencyError: The backend's package is not installed; the pip command is named.
        BackendError: The backend does not run this source or precision on this machine.
        ParityError: The error on this machine is beyond the artefact's tolerance.
    """
    if isinstance(source, Generator):
        return _open_generator(source, backend, precision)
    artifact = source if isinstance(source, Artifact) else open_artifact(source)
    usual = min(batch_size or int(artifact.content["batch"]["opt"]), int(artifact.content["batch"]["max"]))
    rows, kept = measure_backends(artifact, backend, precision, usual)
    accepted = [row for row in rows if row.accepted]
    if not accepted:
        found = "; ".join(f"{row}: {row.parity}" for row in rows)
        raise ParityError(f"On this machine {found}. Export again, or choose another backend.")
    best = max(accepted, key=lambda row: row.images_per_second)
    if len(rows) == 1:
        reason = "the only candidate"
    else:
        when = " (measured earlier)" if kept else ""
        reason = f"fastest of {', '.join(map(str, rows))} at batch {usual}{when}"
    plugin = BACKENDS.load(best.backend)
    mapping = artifact.mapping_path
    return Runtime(
        generator=artifact.generator,
        backend=best.backend,
        synthesis=plugin.open(artifact.synthesis_path, best.precision, streaming),
        latents_of_z=_LatentsOfZ(plugin.open(mapping, "f32", False) if mapping else artifact.generator),
        reason=reason,
        parity=best.parity,
        max_batch=int(artifact.content["batch"]["max"]),
        usual_batch=usual,
    )


def _open_generator(generator: Generator, backend: str, precision: str | None) -> Runtime:
    name = "eager" if backend == AUTO else backend
    plugin = BACKENDS.load(name)
    if plugin.runs != "module":
        raise BackendError(
            f"{name} runs exported graphs, not a model. "
            "First: fastdirs export MODEL --out DIR, then name DIR."
        )
    wanted = precision or "f32"
    check_precision(name, wanted)
    if wanted not in generator.precisions:
        raise BackendError(
            f"{generator.provenance.name} runs in {', '.join(generator.precisions)} only, not in {wanted}. "
            "Export it for a backend that does."
        )
    reason = (
        "torch runs the model as it is; export it for a compiled graph" if backend == AUTO else "as asked"
    )
    return Runtime(
        generator=generator.identity(),
        backend=name,
        synthesis=plugin.open(SynthesisGraph(generator), wanted, True),
        latents_of_z=_LatentsOfZ(generator),
        reason=reason,
        parity=None,
        max_batch=None,
        usual_batch=16,
    )
