"""Images per second and error of every backend and precision on an NVIDIA GPU, with and without CUDA graphs.

python benchmarks/gpu.py [--generator NAME] [--batch 64] [--rounds 9] [--dry-run]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from families import networks, random_generator
from harness import Row, print_rows, race, write_result

import fastdirs
from fastdirs.backends import BACKENDS, Array, Session
from fastdirs.errors import BackendError, FastdirsError
from fastdirs.export import export_generator
from fastdirs.generators import Generator
from fastdirs.graphs import SynthesisGraph, synthesis_inputs
from fastdirs.parity import measure
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
    """Everything that opens, in turns within one run; what does not is a row with the reason.

    Args:
        generator: The generator.
        batch: Images in a batch.
        rounds: Timings of each.
        names: Backends.
        device: Where they have to compute, as torch names it.
        precisions: Graphs to write.

    Returns:
        Settings, with what each runtime says of itself and the seconds that opening took; and the rows.
    """
    inputs = synthesis_inputs(generator, range(batch))
    with torch.inference_mode():
        reference: Array = SynthesisGraph(generator)(*map(torch.from_numpy, inputs)).numpy()
    sizes = Batch(opt=batch, max=max(2, batch))
    rows: list[Row] = []
    providers: dict[str, str] = {}
    work: dict[tuple[str, str], Callable[[], object]] = {}
    parity, seconds, sessions = {}, {}, []
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(
            generator=generator.provenance.name, graph=Graph(precisions=precisions), batch=sizes,
            accept=usual_accept(precisions),
        )  # fmt: skip
        graphs = export_generator(generator, Path(folder) / "artifact", recipe).graphs
        for candidate, source in candidates(generator, graphs, names, rows):
            key = (candidate.title, candidate.precision)
            try:
                start = time.perf_counter()
                session = opened(candidate, source, sizes, device)
                if session is None:
                    continue
                seconds[key] = time.perf_counter() - start
                sessions.append(session)
                parity[key] = measure(session, inputs, reference, sorted({1, min(2, batch), batch}))
            except FastdirsError as error:
                rows.append(Row(name=key[0], precision=key[1], failure=str(error)))
                continue
            providers[" ".join(key)] = "; ".join(filter(None, (session.provider, session.detail)))
            work[key] = timed(session, candidate.way, inputs)
        speeds = race(work, _BATCHES * batch, rounds) if work else {}
        for session in sessions:
            session.close()
    for key, (median, low, high) in speeds.items():
        rows.append(Row(
            name=key[0], precision=key[1], images_per_second=median, low=low, high=high,
            error_mean=parity[key].mean, error_max=parity[key].max, extra={"seconds_to_open": seconds[key]},
        ))  # fmt: skip
    settings: dict[str, object] = {
        "generator": generator.provenance.name, "batch": batch, "rounds": rounds, "providers": providers,
    }  # fmt: skip
    return settings, rows


def candidates(
    generator: Generator, graphs: Mapping[str, Path], names: Sequence[str], failures: list[Row]
) -> Iterator[tuple[Candidate, Any]]:
    """All that the backends can be measured in, and what each of them opens; what is missing is a failure."""
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
            for way in WAYS:
                yield Candidate(name, precision, way), source


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
    # Backends that record CUDA graphs have this attribute, to do without.
    recorded = getattr(session, "cuda_graphs", False)
    if (way == "streamed" and session.num_parallel == 1) or (way == "without CUDA graphs" and not recorded):
        session.close()
        return None
    if way == "without CUDA graphs":
        vars(session)["cuda_graphs"] = False
    return session


def timed(session: Session, way: str, inputs: Sequence[Array]) -> Callable[[], object]:
    """Several batches of images, all of them done when it returns."""
    if way == "streamed":
        return lambda: sum(len(images) for images in stream(session, [inputs] * _BATCHES))
    if way != "kept on the GPU":
        return lambda: [session.run(inputs) for _ in range(_BATCHES)]
    placed = [torch.from_numpy(each).to(session.device) for each in inputs]

    def kept() -> None:
        for _ in range(_BATCHES):
            session.run_kept(placed)
        if session.device != "cpu":
            torch.cuda.synchronize()

    return kept


if __name__ == "__main__":
    main()
