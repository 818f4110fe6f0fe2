"""The whole job in one sitting: a real face generator, its directions, a verified compiled graph, an atlas.

Run it with `make demo`. It needs about three minutes on two cores, most of them for installing.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import fastdirs
from fastdirs.backends import BACKENDS
from fastdirs.cli._console import note, progress_bar
from fastdirs.errors import DownloadError, FastdirsError
from fastdirs.graphs import SynthesisGraph
from fastdirs.runtime import Runtime
from fastdirs.throughput import time_sessions
from fastdirs.traversal import Portion

OUT = Path("out/demo")
ZOO_NAME = "celeba-faces-64"


def main() -> None:
    """Pull, discover, export, measure, traverse."""
    begun = time.perf_counter()

    print(f"1. A pretrained generator: {ZOO_NAME}")
    try:
        print(f"   {fastdirs.pull(ZOO_NAME)}")
        generator = fastdirs.load_generator(ZOO_NAME)
    except DownloadError as error:
        print(f"   {error}\n   Going on with the built-in toy generator, which needs no download.")
        generator = fastdirs.load_generator("toy")
    shape = f"{generator.img_resolution} px, latents {generator.num_layers} x {generator.dim}"
    print(f"   {shape}, licence: {generator.provenance.licence}")

    print("2. Directions in closed form (SeFa), without labels")
    bank = fastdirs.discover(generator, "sefa", num_directions=min(12, generator.dim))
    OUT.mkdir(parents=True, exist_ok=True)
    bank.save(OUT / "bank.safetensors")
    print(f"   {len(bank)} directions, strongest eigenvalue {bank.scores[0]:.1f}: {OUT / 'bank.safetensors'}")

    print("3. Export to ONNX, compared with torch at batch 1, 2 and the largest")
    artifact = fastdirs.export_generator(
        generator, OUT / "artifact", force=True, report=lambda line: print(f"   {line}")
    )

    print("4. A traversal on the fastest backend here")

    def opened(runtime: Runtime, planned: Sequence[Portion]) -> None:
        print(f"   {runtime.backend} {runtime.precision} ({runtime.provider}): {runtime.reason}")
        print(f"   error against torch fp32: {runtime.parity}")

    with progress_bar() as progress:
        fastdirs.traverse(
            artifact, bank, OUT / "traversal", seeds=range(12), writers=("strips", "grids", "atlas"),
            force=True, progress=progress, opened=opened,
        )  # fmt: skip
    (OUT / "index.html").write_bytes((OUT / "traversal" / "index.html").read_bytes())

    print("5. Speed, both in this run, in turns, batch 64")
    with fastdirs.open_runtime(artifact, streaming=True) as runtime:
        latents = np.ascontiguousarray(runtime.latents_of()(range(64)).numpy())
        eager = BACKENDS.load("eager").open(SynthesisGraph(generator), "f32", True)
        timings = time_sessions({"compiled": runtime.session, "torch eager": eager}, [latents], rounds=5)
        speeds = {name: 1000 * len(latents) / timing.median_ms for name, timing in timings.items()}
        name = f"{runtime.backend} {runtime.precision}"
        print(f"   {name}: {speeds['compiled']:,.0f} images/s, error {runtime.parity}")
        ratio = speeds["compiled"] / speeds["torch eager"]
        print(f"   torch eager f32: {speeds['torch eager']:,.0f} images/s; ratio {ratio:.1f}")

    print(f"Done in {time.perf_counter() - begun:.0f} s. Open {OUT / 'index.html'} in a browser.")


if __name__ == "__main__":
    try:
        main()
    except FastdirsError as problem:
        note(f"Error: {problem}")
        sys.exit(1)
