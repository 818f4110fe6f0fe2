"""Opening an artefact or a generator on a backend; `auto` measures what is here and says what it chose."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from fastdirs.artifact import Artifact, open_artifact
from fastdirs.backends import BACKENDS, Array, Kept, Session, engine_path
from fastdirs.errors import (
    BackendError,
    ContractError,
    ParityError,
    SelectionError,
    check_shape,
)
from fastdirs.generators import Classes, Generator
from fastdirs.graphs import SynthesisGraph
from fastdirs.halves import Halves, Reads
from fastdirs.latents import class_weights, psi_per_layer, sample_z
from fastdirs.latents_of_z import LatentsOfZ
from fastdirs.manifest import Json
from fastdirs.parity import Parity
from fastdirs.recipe import TARGETS, Batch, usual_batch
from fastdirs.selection import AUTO, check_precision, measure_backends
from fastdirs.synthesis_parts import GraphParts, ModuleParts, SynthesisParts
from fastdirs.tails import Tail
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
        reads: The latent layers that each stage of the synthesis reads; empty if it cannot be cut.
    """

    def __init__(
        self,
        *,
        generator: Json,
        backend: str,
        synthesis: Session,
        latents_of_z: LatentsOfZ,
        reason: str,
        parity: Parity | None,
        max_batch: int | None,
        usual_batch: int,
        reads: Sequence[Sequence[int]],
        parts: SynthesisParts,
        ends_in_pixels: bool = False,
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
        self.reads = reads
        self._parts = parts
        self._ends_in_pixels = ends_in_pixels
        self._latents_of_z = latents_of_z
        self._closed = False

    def synthesize(self, latents: Array, c: Classes | None = None) -> Array:
        """Images of latents.

        Args:
            latents: `[batch, layers, dim]`, float32.
            c: Class for all, class index `[batch]`, or weights of the classes `[batch, c_dim]`; None if
                unconditional, or if only the mapping reads the class.

        Returns:
            `[batch, channels, height, width]`, float32, meant for [-1, 1].

        Raises:
            ShapeError: The latents or c have another shape.
            SelectionError: An empty batch, one larger than was verified, or a class out of range.
            ContractError: A class for an unconditional generator, or none for one that needs it here.
            BackendError: The runtime was closed.
        """
        return self.session.run(self.inputs(latents, c))

    def stream(self, batches: Iterable[Array], c: Classes | None = None) -> Iterator[Array]:
        """Images of batch after batch, in order, while the caller works on earlier ones.

        Args:
            batches: Latents. Each `[batch, layers, dim]`, float32.
            c: As in `synthesize`, for every batch; one row of weights `[1, c_dim]` holds for all images.

        Yields:
            `[batch, channels, height, width]`, float32, meant for [-1, 1].

        Raises:
            ShapeError: Latents or c of another shape.
            SelectionError: An empty batch, one larger than was verified, or a class out of range.
            ContractError: A class for an unconditional generator, or none for one that needs it here.
            BackendError: The runtime was closed.
        """
        return stream(self.session, (self.inputs(batch, c) for batch in batches))

    def inputs(self, latents: Kept, c: Classes | None = None) -> list[Kept]:
        """What the session takes for a batch: contiguous, float32, with checked shapes.

        Args:
            latents: `[batch, layers, dim]`, float; a tensor, float32, where the session computes on a GPU.
            c: As in `synthesize`; one row of weights `[1, c_dim]` holds for all images.

        Returns:
            Latents `[batch, layers, dim]`, and weights of the classes `[batch, c_dim]` if the synthesis reads
            them.

        Raises:
            ShapeError: The latents or c have another shape.
            SelectionError: An empty batch, one larger than was verified, or a class out of range.
            ContractError: A class for an unconditional generator, or none for one that needs it here.
            BackendError: The runtime was closed.
        """
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
        weights = self._class_weights(c, len(latents), "synthesis")
        if not isinstance(latents, Tensor):
            latents = np.ascontiguousarray(latents, dtype=np.float32)
        return [latents, *([] if weights is None else [weights])]

    def mapping(
        self, z: Array, c: Classes | None = None, psi: float = 1.0, cutoff: int | None = None
    ) -> Array:
        """Latents of z.

        Args:
            z: `[batch, z_dim]`, float32.
            c: Class for all, class index `[batch]`, or weights of the classes `[batch, c_dim]` or
                `[1, c_dim]`; None if unconditional, or if only the synthesis reads the class.
            psi: Truncation, 1 = off.
            cutoff: How many of the first layers to truncate; None = all.

        Returns:
            `[batch, layers, dim]`, float32.

        Raises:
            ShapeError: z or c has another shape.
            SelectionError: psi, cutoff or class out of range.
            ContractError: A class for an unconditional generator, or none for one that needs it here.
            BackendError: The runtime was closed.
        """
        self._check_open()
        check_shape(z, "batch z_dim", "z", z_dim=int(self.generator["z_dim"]))
        rows = int(self.generator.get("truncation_rows", 0))
        psi_of_layers = psi_per_layer(psi, cutoff, int(self.generator["num_layers"]), rows).numpy()
        weights = self._class_weights(c, len(z), "mapping")
        return self._latents_of_z(np.ascontiguousarray(z, dtype=np.float32), weights, psi_of_layers)

    def latents_of(self, psi: float = 1.0, cutoff: int | None = None, c: Classes | None = None) -> LatentsOf:
        """The way from seeds to unshifted latents, with a truncation and a class.

        Args:
            psi: Truncation, 1 = off.
            cutoff: How many of the first layers to truncate; None = all.
            c: Class for all seeds, or weights of the classes `[1, c_dim]`; None if unconditional, or if only
                the synthesis reads the class.

        Raises:
            SelectionError: psi, cutoff or class out of range.
            ContractError: A class for an unconditional generator, or none for one that needs it here.
        """
        z_dim, z_bound = int(self.generator["z_dim"]), self.generator.get("z_bound")
        rows = int(self.generator.get("truncation_rows", 0))
        # A mistake is said now, not when the first seed comes.
        psi_per_layer(psi, cutoff, int(self.generator["num_layers"]), rows)
        self._class_weights(c, 1, "mapping")

        def latents_of(seeds: Sequence[int]) -> Tensor:
            return torch.from_numpy(self.mapping(sample_z(seeds, z_dim, z_bound).numpy(), c, psi, cutoff))

        return latents_of

    def first_stage(self, layers: Collection[int]) -> int:
        """The first stage that an edit of some latent layers touches: those before it are the same without.

        Args:
            layers: Latent layers, from 0.
        """
        touched = [stage for stage, read in enumerate(self.reads) if not set(read).isdisjoint(layers)]
        return min(touched, default=max(len(self.reads) - 1, 0))

    def halves(self, stage: int, batch_size: int) -> Halves:
        """The synthesis cut before a stage, on the same backend and precision.

        Of an artefact the halves are compared with torch first, at batch 1, 2 and `batch_size`.

        Args:
            stage: Where to cut; 0 keeps it whole.
            batch_size: Images that will be rendered at a time.

        Raises:
            ParityError: The error is beyond the artefact's tolerance.
            BackendError: The runtime refuses a half, or was closed.
            SelectionError: The synthesis has no such stage.
        """
        self._check_open()
        if not stage and not self._ends_in_pixels:
            return Halves(0, None, self.session, Reads(), borrowed=True)
        return self._parts.halves(stage, batch_size)

    def followed_by(self, tail: Tail, groups: int) -> Session:
        """The synthesis and a module that reads its images, as one graph on the same backend and precision.

        Of an artefact the graph is compared with torch first, at 1 group and at `groups`.

        Args:
            tail: What reads the images, in groups.
            groups: Groups that will be rendered at a time.

        Returns:
            A session that takes `inputs`, each reshaped to `[groups, size, ...]`, and gives what the tail
            gives.

        Raises:
            ParityError: What it gives differs from torch's by too much.
            BackendError: The runtime refuses it, or was closed.
        """
        self._check_open()
        return self._parts.followed(tail, groups)

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

    def _class_weights(self, c: Classes | None, count: int, half: str) -> Array | None:
        """Weights of the classes `[batch, c_dim]` for the half that reads them, as `Generator` makes them."""
        name, c_dim = self.generator["name"], int(self.generator.get("c_dim", 0))
        reads = half == self.generator.get("class_in", "")
        if c is None:
            if reads:
                raise ContractError(f"{name} needs a class from 0 to {c_dim - 1}. Pass c.")
            return None
        if not c_dim:
            raise ContractError(f"{name} takes no class. Leave c out.")
        given = torch.as_tensor(c)
        if given.ndim == 2 and len(given) == 1:
            given = given.expand(count, -1)
        weights: Array = class_weights(given, count, c_dim).numpy()
        return np.ascontiguousarray(weights) if reads else None


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
        precision: "f32", "bf16", "f16" or "int8"; None leaves it to the measurement.
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
    graph = artifact.graphs[plugin.graph_of(best.precision)]
    largest = int(artifact.content["batch"]["max"])

    sizes_run = Batch(opt=usual, max=largest)
    synthesis = plugin.open(graph, best.precision, streaming, sizes_run)
    # On CPUs pixels are made beside the runtime; only a GPU gains by less to copy. An engine that was built
    # ahead of time is of the whole graph, and is used as it is.
    ahead = any(engine_path(graph, library).is_file() for library in TARGETS)
    pixels = synthesis.device != "cpu" and not ahead

    return Runtime(
        generator=artifact.generator,
        backend=best.backend,
        synthesis=synthesis,
        latents_of_z=LatentsOfZ(
            plugin.open(mapping, "f32", False, sizes_run) if mapping else artifact.generator
        ),
        reason=reason,
        parity=best.parity,
        max_batch=largest,
        usual_batch=usual,
        # Artefacts of earlier versions do not say.
        reads=artifact.content.get("graph", {}).get("reads", ()),
        parts=GraphParts(artifact, best.backend, best.precision, streaming, sizes_run, pixels),
        ends_in_pixels=pixels,
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
        latents_of_z=LatentsOfZ(generator),
        reason=reason,
        parity=None,
        max_batch=None,
        usual_batch=min(16, usual_batch(generator.img_resolution).opt),
        reads=generator.reads,
        parts=ModuleParts(generator, name, wanted),
    )
