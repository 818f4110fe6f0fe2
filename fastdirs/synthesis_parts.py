"""What else a synthesis is opened as: cut in two halves, or followed by a module that reads its images."""

import tempfile
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch

from fastdirs.artifact import Artifact
from fastdirs.backends import BACKENDS, Session
from fastdirs.errors import ParityError
from fastdirs.generators import Generator
from fastdirs.halves import Halves, open_halves
from fastdirs.parity import measure, require
from fastdirs.recipe import Batch
from fastdirs.tails import FollowedGraph, Tail, followed

# Of what a tail gives: the share of values that may differ from torch's, by the precision of the synthesis.
_DIFFERING = {"f32": 0.002, "f16": 0.02, "bf16": 0.03, "int8": 0.1}


class SynthesisParts(ABC):
    """One synthesis on one backend, in one precision."""

    @abstractmethod
    def halves(self, stage: int, batch_size: int) -> Halves:
        """The synthesis cut before a stage.

        Args:
            stage: Where to cut; 0 keeps it whole.
            batch_size: Images that will be rendered at a time.

        Raises:
            ParityError: The error is beyond the artefact's tolerance.
            BackendError: The runtime refuses a half.
            SelectionError: The synthesis has no such stage.
        """

    @abstractmethod
    def followed(self, tail: Tail, groups: int) -> Session:
        """The synthesis and what reads its images, as one.

        Args:
            tail: What reads them.
            groups: Groups of images that will be rendered at a time.

        Returns:
            A session: latents `[groups, size, layers, dim]`, and weights of the classes
            `[groups, size, c_dim]` if the synthesis reads them, float32 -> what the tail gives.

        Raises:
            ParityError: What it gives differs from torch's by too much.
            BackendError: The runtime refuses it.
        """


@dataclass(frozen=True)
class ModuleParts(SynthesisParts):
    """Parts of a generator, in torch.

    Attributes:
        generator: The generator.
        backend: Registered name.
        precision: Arithmetic to compute in.
    """

    generator: Generator
    backend: str
    precision: str

    def halves(self, stage: int, batch_size: int) -> Halves:
        """See `SynthesisParts`."""
        return open_halves(self.generator, stage, self.precision, BACKENDS.load(self.backend).open)

    def followed(self, tail: Tail, groups: int) -> Session:
        """See `SynthesisParts`."""
        module = FollowedGraph(self.generator, tail)
        return BACKENDS.load(self.backend).open(module, self.precision, True)


@dataclass(frozen=True)
class GraphParts(SynthesisParts):
    """Parts of an artefact's graph; each is compared with torch when it is opened.

    Attributes:
        artifact: The artefact.
        backend: Registered name.
        precision: Arithmetic to compute in.
        streaming: Whether throughput matters more than latency.
        batch: Batch sizes that will be run.
        pixels: Whether halves end in uint8 pixels.
    """

    artifact: Artifact
    backend: str
    precision: str
    streaming: bool
    batch: Batch
    pixels: bool

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.artifact.graphs[BACKENDS.load(self.backend).graph_of(self.precision)]

    def halves(self, stage: int, batch_size: int) -> Halves:
        """See `SynthesisParts`."""
        opened = partial(BACKENDS.load(self.backend).open, streaming=self.streaming, batch=self.batch)
        halves = open_halves(self.graph, stage, self.precision, opened, self.pixels)
        with ExitStack() as refused:
            refused.callback(halves.close)
            reference, tolerance = self.artifact.reference(), self.artifact.accept[self.precision]
            if self.pixels:
                # The smallest difference may carry a pixel over to the next grey level.
                tolerance = replace(tolerance, max=max(tolerance.max, 1.0), psnr=min(tolerance.psnr, 50.0))
            sizes = sorted({1, min(2, batch_size), batch_size})
            parity = measure(halves.joined(), reference.inputs, reference.images, sizes)
            require(parity, tolerance, f"{self.graph.name} cut before stage {stage} on {self.backend}")
            refused.pop_all()
        return halves

    def followed(self, tail: Tail, groups: int) -> Session:
        """See `SynthesisParts`."""
        with tempfile.TemporaryDirectory(prefix="fastdirs-followed-") as folder:
            path = Path(folder) / "followed.onnx"
            onnx.save(followed(onnx.load(str(self.graph)), tail), str(path))
            sizes = Batch(opt=groups, max=groups)
            session = BACKENDS.load(self.backend).open(path, self.precision, self.streaming, sizes)
        with ExitStack() as refused:
            refused.callback(session.close)
            self._compare(session, tail, groups)
            refused.pop_all()
        return session

    def _compare(self, session: Session, tail: Tail, groups: int) -> None:
        """Raises ParityError unless the session gives what the tail, in torch, makes of torch's images."""
        reference = self.artifact.reference()
        for size in sorted({1, groups}):
            rows = np.arange(size * tail.size) % len(reference.images)
            given = [each[rows].reshape(size, tail.size, *each.shape[1:]) for each in reference.inputs]
            images = reference.images[rows].reshape(size, tail.size, *reference.images.shape[1:])
            with torch.inference_mode():
                wanted = tail(torch.from_numpy(images))
            for name, mine, theirs in zip(tail.outputs, session.run_all(given), wanted, strict=True):
                if name not in tail.differences:
                    continue
                apart = np.abs(mine.astype(np.float64) - theirs.numpy()) > tail.differences[name]
                if apart.mean() > _DIFFERING[self.precision]:
                    raise ParityError(
                        f"{self.graph.name} on {self.backend} in {self.precision} gives {name} of which "
                        f"{apart.mean():.1%} differ from torch's; accepted are "
                        f"{_DIFFERING[self.precision]:.1%}. Choose another precision or backend."
                    )
