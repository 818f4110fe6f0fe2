"""Images per second and error of a quantised graph, beside the float graph that it was made of.

python benchmarks/int8.py [--generator celeba-faces-64] [--batch 64] [--rounds 15] [--dry-run]
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from harness import Row, matrix_rates, print_rows, race, write_result
from torch.utils.flop_counter import FlopCounterMode

import fastdirs
from fastdirs.backends import BACKENDS, Array, Session
from fastdirs.errors import FastdirsError
from fastdirs.export import export_generator
from fastdirs.generators import Generator
from fastdirs.graphs import SynthesisGraph, synthesis_inputs
from fastdirs.manifest import Json
from fastdirs.parity import compare
from fastdirs.quantization import quantize
from fastdirs.recipe import Batch, Graph, Recipe

RUNTIMES = ("openvino_cpu", "ort")
FORMS = ("subpixel", "folded")
_CALIBRATION_SEEDS = range(1_000_000, 1_000_128)
_CALIBRATION_BATCH = 16
Work = Callable[[], Array]


def main() -> None:
    """Measure a generator, print the rows and keep them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generator", default="celeba-faces-64", help="zoo name or file")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dry-run", action="store_true", help="print, but keep nothing")
    arguments = parser.parse_args()
    if arguments.generator == "celeba-faces-64":
        fastdirs.pull(arguments.generator)
    settings, rows = int8(fastdirs.load_generator(arguments.generator), arguments.batch, arguments.rounds)
    print_rows(rows)
    for key, value in settings.items():
        print(f"  {key}: {value}")
    if not arguments.dry_run:
        print(f"kept in {write_result('int8', settings, rows)}")


def int8(generator: Generator, batch: int, rounds: int) -> tuple[dict[str, object], list[Row]]:
    """Each form in each precision on each runtime of CPUs.

    Args:
        generator: The generator.
        batch: Images in a batch.
        rounds: Timings of each candidate.
    """
    inputs = synthesis_inputs(generator, range(batch))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        reference: Array = SynthesisGraph(generator)(*map(torch.from_numpy, inputs)).numpy()
    gflop = counter.get_total_flops() / batch / 1e9
    rates = matrix_rates()
    layers: dict[str, Json] = {}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        graphs: dict[str, dict[str, Path]] = {}
        for form in FORMS:
            graphs[form], layers[form] = _graphs(generator, form, batch, Path(name))
        for runtime in RUNTIMES:
            sessions = _sessions(runtime, graphs, rows)
            work: dict[tuple[str, str], Work] = {
                pair: partial(session.run, inputs) for pair, session in sessions.items()
            }
            # One race for each runtime: the threads of ONNX Runtime go on looking for work after a call, and
            # would slow down the next one of another runtime.
            for (title, precision), (median, low, high) in race(work, batch, rounds).items():
                parity = compare(work[title, precision](), reference)
                share = median * gflop / 1000 / rates[precision] if precision in rates else None
                rows.append(
                    Row(
                        name=title, precision=precision, images_per_second=median, low=low, high=high,
                        error_mean=parity.mean, error_max=parity.max, matrix_share=share,
                        extra={"psnr": parity.psnr},
                    )
                )  # fmt: skip
    settings: dict[str, object] = {
        "generator": generator.provenance.name, "batch": batch, "rounds": rounds,
        "gflop_per_image": round(gflop, 4),
        "matrix_tflops": {name: round(rate, 3) for name, rate in rates.items()},
        "calibration_images": len(_CALIBRATION_SEEDS), "quantised": layers,
    }  # fmt: skip
    return settings, rows


def _graphs(generator: Generator, form: str, batch: int, folder: Path) -> tuple[dict[str, Path], Json]:
    """The graph of a form in float32, quantised for CPUs and symmetrically, and what was done to it."""
    recipe = Recipe(
        generator=generator.provenance.name,
        graph=Graph(lowering=form),
        batch=Batch(opt=batch, max=max(2, batch)),
    )
    made = export_generator(generator, folder / form, recipe).synthesis_path
    first = range(0, len(_CALIBRATION_SEEDS), _CALIBRATION_BATCH)
    batches = [
        synthesis_inputs(generator, _CALIBRATION_SEEDS[start : start + _CALIBRATION_BATCH]) for start in first
    ]
    paths = {"": made, "int8": folder / f"{form}.int8.onnx", "symmetric": folder / f"{form}.symmetric.onnx"}
    done = quantize(made, paths["int8"], batches)
    quantize(made, paths["symmetric"], batches, symmetric=True)
    return paths, {key: done[key] for key in ("quantised", "left_in_float")}


def _sessions(
    runtime: str, graphs: Mapping[str, Mapping[str, Path]], rows: list[Row]
) -> dict[tuple[str, str], Session]:
    """An open session by title and precision; what does not open becomes a row with the reason."""
    sessions: dict[tuple[str, str], Session] = {}
    for form, paths in graphs.items():
        for kind, path in paths.items():
            title = f"{form}, {runtime}" + (", symmetric" if kind == "symmetric" else "")
            for precision in BACKENDS.load(runtime).precisions():
                if (precision == "int8") is not (kind != ""):
                    continue
                try:
                    sessions[title, precision] = BACKENDS.load(runtime).open(path, precision)
                except FastdirsError as error:
                    rows.append(Row(name=title, precision=precision, failure=str(error)))
    return sessions


if __name__ == "__main__":
    main()
