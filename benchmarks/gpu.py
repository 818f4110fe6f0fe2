"""Images per second and error of every backend and precision on an NVIDIA GPU, with and without CUDA graphs.

python benchmarks/gpu.py [--generator NAME] [--batch 64] [--rounds 9] [--dry-run]
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from families import networks, random_generator
from harness import Row, print_rows, race, write_result

import fastdirs
from fastdirs.backends import BACKENDS, Array, Kept, Session
from fastdirs.errors import BackendError, FastdirsError
from fastdirs.export import export_generator
from fastdirs.generators import Generator
from fastdirs.graphs import SynthesisGraph, synthesis_inputs
from fastdirs.parity import Parity, compare
from fastdirs.recipe import Batch, Graph, Recipe, usual_accept, usual_batch
from fastdirs.throughput import stream

NAMES = ("eager", "compiled", "ort_cuda", "ort_tensorrt", "trt")
PRECISIONS = ("f32", "f16", "bf16", "int8")
# "": numpy in, numpy out, one batch after the other.
WAYS = ("", "streamed", "kept on the GPU", "without CUDA graphs")
_BATCHES = 8


@dataclass(frozen=True)
class Candidate:
    """One way to make images.

    Attributes:
        backend: Registered name.
        precision: Arithmetic.
        way: One of `WAYS`.
    """

    backend: str
    precision: str
    way: str = ""

    @property
    def title(self) -> str:
        """What the table calls it."""
        return ", ".join(filter(None, (self.backend, self.way)))


def main() -> None:
    """Measure, print and keep; where there is no GPU, say so and keep nothing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    families = {network.family: network for network in networks().values()}
    parser.add_argument(
        "--generator", default="celeba-faces-64",
        help=f"zoo name or file, or a full-size network with random weights: {', '.join(families)}",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, help="default: what suits the image size")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dry-run", action="store_true", help="print, but keep nothing")
    arguments = parser.parse_args()
    if reason := without_gpu():
        sys.exit(f"not measured: {reason}")
    if arguments.generator in ("celeba-faces-64", "digiface-64"):
        fastdirs.pull(arguments.generator)
    if arguments.generator in families:
        generator = random_generator(families[arguments.generator])
    else:
        generator = fastdirs.load_generator(arguments.generator)
    batch = arguments.batch or usual_batch(generator.img_resolution).opt
    settings, rows = measured(generator, batch, arguments.rounds, NAMES, "cuda")
    print(f"{generator.provenance.name}, batch {batch}, {torch.cuda.get_device_name(0)}")
    print_rows(rows)
    if not arguments.dry_run:
        print(f"  kept in {write_result('gpu', settings, rows)}")


def without_gpu() -> str:
    """Why nothing can be measured here; "" if something can."""
    if torch.cuda.is_available():
        return ""
    lacking = BACKENDS.load("trt").lacks()
    return lacking or f"torch {torch.__version__} does not compute on the GPU. Install a build for CUDA."


def measured(
    generator: Generator,
    batch: int,
    rounds: int,
    names: Sequence[str],
    device: str,
    precisions: tuple[str, ...] = PRECISIONS,
) -> tuple[dict[str, object], list[Row]]:
    """All that opens, the ways of one backend and precision in turns; what does not is a row with the reason.

    Args:
        generator: The generator.
        batch: Images in a batch.
        rounds: Timings of each.
        names: Backends.
        device: Where they have to compute, as torch names it.
        precisions: Graphs to write.

    Returns:
        Settings, with what each runtime says of itself; and the rows. Of a backend and precision the first
        has the seconds that opening took, with all that it compiles.
    """
    inputs = synthesis_inputs(generator, range(batch))
    with torch.inference_mode():
        reference: Array = SynthesisGraph(generator)(*map(torch.from_numpy, inputs)).numpy()
    sizes = Batch(opt=batch, max=max(2, batch))
    rows: list[Row] = []
    providers: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(
            generator=generator.provenance.name, graph=Graph(precisions=precisions), batch=sizes,
            accept=usual_accept(precisions),
        )  # fmt: skip
        graphs = export_generator(generator, Path(folder) / "artifact", recipe).graphs
        for name, precision, source in sources(generator, graphs, names, rows):
            # All of them at once would not fit into the memory of a GPU.
            with ExitStack() as stack:
                # What torch keeps free for itself, others cannot use.
                stack.callback(torch.cuda.empty_cache)
                stack.enter_context(empty_caches())
                work: dict[str, Callable[[], list[Kept]]] = {}
                parity, extra = {}, {}
                for way in WAYS:
                    candidate = Candidate(name, precision, way)
                    try:
                        start = time.perf_counter()
                        session = opened(candidate, source, sizes, device)
                        if session is None:
                            continue
                        stack.callback(session.close)
                        # The other ways find compiled what the first has compiled.
                        extra[way] = {} if way else {"seconds_to_open": time.perf_counter() - start}
                        call = timed(session, way, inputs)
                        parity[way] = error_of(call(), reference)
                    except (FastdirsError, torch.OutOfMemoryError) as error:
                        rows.append(Row(name=candidate.title, precision=precision, failure=str(error)))
                        continue
                    work[way] = call
                    said = (session.provider, session.detail)
                    providers[f"{candidate.title} {precision}"] = "; ".join(filter(None, said))
                try:
                    speeds = race(work, _BATCHES * batch, rounds) if work else {}
                except (FastdirsError, torch.OutOfMemoryError) as error:
                    titles = [Candidate(name, precision, way).title for way in work]
                    rows += [Row(name=each, precision=precision, failure=str(error)) for each in titles]
                    continue
                for way, (median, low, high) in speeds.items():
                    rows.append(Row(
                        name=Candidate(name, precision, way).title, precision=precision,
                        images_per_second=median, low=low, high=high,
                        error_mean=parity[way].mean, error_max=parity[way].max, extra=extra[way],
                    ))  # fmt: skip
    settings: dict[str, object] = {
        "generator": generator.provenance.name, "batch": batch, "rounds": rounds, "providers": providers,
    }  # fmt: skip
    return settings, rows


@contextmanager
def empty_caches() -> Iterator[None]:
    """What earlier runs have compiled is not found within the block, so that compiling is timed."""
    names = ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update({name: str(Path(folder) / name) for name in names})
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def error_of(batches: Sequence[Kept], reference: Array) -> Parity:
    """The error of what is timed: of several batches of the same images."""
    images = [each.float().cpu().numpy() if isinstance(each, torch.Tensor) else each for each in batches]
    return compare(np.concatenate(images), np.concatenate([reference] * len(images)))


def sources(
    generator: Generator, graphs: Mapping[str, Path], names: Sequence[str], failures: list[Row]
) -> Iterator[tuple[str, str, Any]]:
    """Backends, their precisions, and what they open for each; what is missing is a failure."""
    for name in names:
        try:
            backend = BACKENDS.load(name)
        except FastdirsError as error:
            failures.append(Row(name=name, precision="", failure=str(error)))
            continue
        if lacking := backend.lacks():
            failures.append(Row(name=name, precision="", failure=lacking))
        for precision in backend.precisions():
            source: Any = SynthesisGraph(generator)
            if backend.runs == "graph":
                source = graphs.get(backend.graph_of(precision))
            if source is None:
                failures.append(
                    Row(
                        name=name,
                        precision=precision,
                        failure="it has no graph, or not one that is exact enough",
                    )
                )
                continue
            yield name, precision, source


def opened(candidate: Candidate, source: object, sizes: Batch, device: str) -> Session | None:
    """A session that computes where it should, in the way that it should; None if it has no such way.

    Raises:
        BackendError: It computes elsewhere.
    """
    way = candidate.way
    session = BACKENDS.load(candidate.backend).open(source, candidate.precision, way == "streamed", sizes)
    if session.device.partition(":")[0] != device:
        session.close()
        raise BackendError(f"it computes on {session.device}")
    # Backends that record CUDA graphs have this attribute, and `stop_recording`.
    recorded = getattr(session, "cuda_graphs", False)
    if (way == "streamed" and session.num_parallel == 1) or (way == "without CUDA graphs" and not recorded):
        session.close()
        return None
    if way == "without CUDA graphs":
        cast(Any, session).stop_recording("not asked for")
    return session


def timed(session: Session, way: str, inputs: Sequence[Array]) -> Callable[[], list[Kept]]:
    """Several batches of the same images, all of them done when it returns."""
    if way == "streamed":
        return lambda: list(stream(session, [inputs] * _BATCHES))
    if way != "kept on the GPU":
        return lambda: [session.run(inputs) for _ in range(_BATCHES)]
    placed = [torch.from_numpy(each).to(session.device) for each in inputs]

    def kept() -> list[Kept]:
        batches = [session.run_kept(placed)[0] for _ in range(_BATCHES)]
        if session.device != "cpu":
            torch.cuda.synchronize()
        return batches

    return kept


if __name__ == "__main__":
    main()
