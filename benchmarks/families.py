"""Images per second, memory and error of full-size networks with random weights, a family after the other.

python benchmarks/families.py [--network NAME ...] [--rounds 5] [--quick] [--dry-run]
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from harness import Row, matrix_rates, print_rows, race, write_result
from torch.utils.flop_counter import FlopCounterMode

from fastdirs.artifact import SYNTHESIS
from fastdirs.backends import BACKENDS, Array
from fastdirs.errors import ContractError, FastdirsError
from fastdirs.export import export_generator
from fastdirs.generators import GENERATORS, Generator, Provenance, proggan, stylegan2, stylegan3
from fastdirs.generators._spectral import SpectralConv2d, SpectralLinear
from fastdirs.graphs import SynthesisGraph, synthesis_inputs
from fastdirs.machine import bf16_unit
from fastdirs.manifest import Json
from fastdirs.parity import Parity, compare
from fastdirs.recipe import Batch, Recipe

ARTIFACT = "artifact"
_REFERENCE = "reference.npz"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Network:
    """What is measured.

    Attributes:
        name: What the table calls it.
        family: Registered name.
        config: As the family's `build` takes it.
        batch: Images in a batch.
    """

    name: str
    family: str
    config: Json
    batch: int


def networks(tiny: bool = False) -> dict[str, Network]:
    """The networks by name, as they were published, or tiny ones of the same families."""
    biggan = {
        "widths": [1536, 1536, 768, 384, 192, 96], "bottom": 4, "channels": 3, "attention": [3],
        "classes": 1000, "shared_dim": 128, "dim": 20, "hier": True, "sn_eps": 1e-6, "bn_eps": 1e-5,
    }  # fmt: skip
    deep = {
        "widths": [128 * each for each in (16, 16, 16, 16, 8, 8, 8, 8, 4, 4, 2, 2, 1)],
        "doubles": [False, True] * 6, "attention": 8, "z_dim": 128, "embedding_dim": 128, "classes": 1000,
        "rows": 51, "eps": 1e-4,
    }  # fmt: skip
    if tiny:
        biggan |= {"widths": [32, 16, 8], "attention": [0], "classes": 5, "shared_dim": 6, "dim": 4}
        deep |= {"widths": [32, 32, 16, 16, 8], "doubles": [False, True] * 2, "attention": 2}
        deep |= {"z_dim": 8, "embedding_dim": 6, "classes": 5, "rows": 3}
        chosen = [
            Network("StyleGAN2 16", "stylegan2", stylegan2.published(16, 256, 16, w_dim=16), 2),
            Network("StyleGAN3-T 16", "stylegan3", stylegan3.published("T", 16, 1024, 64), 2),
            Network("BigGAN 16", "biggan", biggan, 2),
            Network("BigGAN-deep 16", "biggan_deep", deep, 2),
            Network("ProgGAN 8", "proggan", {**proggan.published(8), "z_dim": 16, "widths": [16] * 4}, 2),
        ]
    else:
        chosen = [
            Network("StyleGAN2 256", "stylegan2", stylegan2.published(256), 4),
            Network("StyleGAN2 1024", "stylegan2", stylegan2.published(1024), 2),
            Network("StyleGAN3-T 256", "stylegan3", stylegan3.published("T", 256), 2),
            Network("BigGAN 128", "biggan", biggan, 8),
            Network("BigGAN-deep 256", "biggan_deep", deep, 4),
            Network("ProgGAN 1024", "proggan", proggan.published(1024), 2),
        ]
    return {each.name: each for each in chosen}


def random_generator(network: Network) -> Generator:
    """The network with random weights, the same ones each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = GENERATORS.load(network.family).build(network.config)
    if network.family == "proggan":
        # Linear to the end, so that random weights of the scale of training leave [-1, 1] too often.
        next(generator.stages[-1].parameters()).mul_(0.3)
    generator.provenance = Provenance(name=network.name, source="random weights")
    return generator


@dataclass(frozen=True)
class Candidate:
    """One way to make images.

    Attributes:
        backend: Registered name.
        precision: "f32" or "bf16".
        one_by_one: Whether each image of a batch is made alone.
        published: Whether it is made as the scripts of the papers do: one by one, with what a training needs
            (gradients recorded, spectral norms computed anew for each image).
    """

    backend: str
    precision: str
    one_by_one: bool = False
    published: bool = False

    @property
    def title(self) -> str:
        """What the table calls it."""
        if self.backend != "eager":
            return self.backend
        if self.published:
            return "published loop"
        return "torch eager, one at a time" if self.one_by_one else "torch eager, batched"


def main() -> None:
    """Measure the networks that were asked for, print the rows and keep them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", action="append", help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny networks of the same families, not kept")
    parser.add_argument("--dry-run", action="store_true", help="print, but keep nothing")
    arguments = parser.parse_args()
    known = networks(tiny=arguments.quick)
    chosen = arguments.network or list(known)
    if unknown := set(chosen) - set(known):
        parser.error(f"there is no network {min(unknown)}. Known are {', '.join(known)}")
    settings, rows = families([known[name] for name in chosen], arguments.rounds)
    if not (arguments.quick or arguments.dry_run):
        # Some networks alone must not take the place of all.
        suite = "families-chosen" if arguments.network else "families"
        print(f"\nkept in {write_result(suite, settings, rows)}")


def families(
    chosen: Sequence[Network], rounds: int, own_process: bool = True
) -> tuple[dict[str, object], list[Row]]:
    """Measure networks one after the other, and print what is found.

    Args:
        chosen: The networks.
        rounds: Timings of each candidate.
        own_process: Whether each step has a process of its own, without which peaks of memory mean nothing.
    """
    rates = matrix_rates(rounds)
    rows: list[Row] = []
    facts: dict[str, Mapping[str, Any]] = {}
    for network in chosen:
        print(f"\n{network.name}", flush=True)
        facts[network.name], found = _measure(network, rounds, rates, _alone if own_process else _here)
        for key, value in facts[network.name].items():
            print(f"  {key}: {value}")
        print_rows(found)
        rows += found
    matrix = {name: round(rate, 3) for name, rate in rates.items()}
    return {"rounds": rounds, "networks": facts, "matrix_tflops": matrix}, rows


def _measure(
    network: Network, rounds: int, rates: Mapping[str, float], run: "_Runner"
) -> tuple[Mapping[str, Any], list[Row]]:
    """Facts of a network, and a row for each candidate."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fastdirs-families-") as name:
        folder = Path(name)
        try:
            facts = dict(run(_prepare, network, folder))
        except (FastdirsError, RuntimeError, MemoryError) as error:
            return {"batch": network.batch}, [_failed(network, "all", "f32", error)]
        try:
            facts.update(run(_export, network, folder))
        except (FastdirsError, RuntimeError, MemoryError) as error:
            facts["export_failure"] = _first_line(error)
        found: dict[Candidate, tuple[Parity, float]] = {}
        for candidate in _candidates(network, facts.get("export_failure"), rows):
            try:
                found[candidate] = run(_once, network, folder, candidate)
            except (FastdirsError, RuntimeError, MemoryError) as error:
                rows.append(_failed(network, candidate.title, candidate.precision, error))
        speeds = run(_race, network, folder, list(found), rounds)
    measured = [
        Row(
            name=f"{network.name}: {candidate.title}", precision=candidate.precision,
            images_per_second=median, low=low, high=high,
            error_mean=found[candidate][0].mean, error_max=found[candidate][0].max,
            matrix_share=median * facts["gflop_per_image"] / 1000 / rates[candidate.precision],
            extra={"peak_mib": round(found[candidate][1])},
        )
        for candidate, (median, low, high) in speeds.items()
    ]  # fmt: skip
    return facts, measured + rows


class _Runner(Protocol):
    """Calls a function with arguments, here or elsewhere."""

    def __call__(self, work: Callable[..., Result], *arguments: object) -> Result: ...


def _here(work: Callable[..., Result], *arguments: object) -> Result:
    return work(*arguments)


def _alone(work: Callable[..., Result], *arguments: object) -> Result:
    """In a fresh process, so that its peak of memory is its own; its error is raised here."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def _prepare(network: Network, folder: Path) -> Mapping[str, Any]:
    """Size of the network, and torch's images of a batch, which everything is compared with."""
    generator = random_generator(network)
    inputs = synthesis_inputs(generator, range(network.batch))
    images = _images(Candidate("eager", "f32", one_by_one=True), network, folder, inputs)()
    _require_pictures(network, images)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        SynthesisGraph(generator)(*(torch.from_numpy(each[:1]) for each in inputs))
    np.savez(folder / _REFERENCE, *inputs, images=images)
    return {
        "batch": network.batch,
        "parameters": sum(parameter.numel() for parameter in generator.parameters()),
        "gflop_per_image": float(f"{counter.get_total_flops() / 1e9:.4g}"),
    }


def _require_pictures(network: Network, images: Array) -> None:
    """An error in grey levels says nothing of images that are all alike, flat, or black and white.

    Raises:
        ContractError: The images `[batch, channels, height, width]` are such.
    """
    saturated = float((np.abs(images) >= 1).mean())
    between, within = float(images.std(axis=0).mean()), float(images.std(axis=(2, 3)).mean())
    if not (between > 0.01 and within > 0.01 and saturated < 0.25):
        raise ContractError(
            f"{network.name} with random weights makes no pictures: spread {between:.2g} between images and "
            f"{within:.2g} within one, {saturated:.0%} saturated. Expected more than 0.01, and less than 25%."
        )


def _export(network: Network, folder: Path) -> Mapping[str, Any]:
    """Export with a dynamic batch, with its time and peak of memory."""
    generator = random_generator(network)
    start = time.perf_counter()
    recipe = Recipe(generator=network.name, batch=Batch(opt=network.batch, max=max(2, network.batch)))
    artifact = export_generator(generator, folder / ARTIFACT, recipe)
    return {
        "lowering": artifact.content["graph"]["lowering"],
        "export_seconds": round(time.perf_counter() - start, 1),
        "export_peak_mib": round(_peak_mib()),
    }


def _candidates(network: Network, export_failure: str | None, rows: list[Row]) -> list[Candidate]:
    """Torch, and every runtime for graphs and precision of this machine; rows for what cannot run."""
    candidates = [
        Candidate("eager", "f32", one_by_one=True, published=True),
        Candidate("eager", "f32", one_by_one=True),
        Candidate("eager", "f32"),
    ]
    for name in BACKENDS.names():
        try:
            backend = BACKENDS.load(name)
        except FastdirsError as error:
            rows.append(_failed(network, name, "f32", error))
            continue
        if backend.runs == "graph" and export_failure is None:
            candidates += [
                Candidate(name, precision)
                for precision in backend.precisions()
                if backend.graph_of(precision) == "f32"
            ]
        elif backend.runs == "graph":
            rows.append(Row(name=f"{network.name}: {name}", precision="f32", failure=export_failure))
    if bf16_unit() is None:
        reason = "this processor has no bf16 unit"
        rows.append(Row(name=f"{network.name}: openvino_cpu", precision="bf16", failure=reason))
    return candidates


def _once(network: Network, folder: Path, candidate: Candidate) -> tuple[Parity, float]:
    """Error against torch fp32, and the peak of memory in MiB of a process that does nothing else."""
    inputs, reference = _reference(folder)
    images = _images(candidate, network, folder, inputs)()
    return compare(images, reference), _peak_mib()


def _race(
    network: Network, folder: Path, candidates: Sequence[Candidate], rounds: int
) -> dict[Candidate, tuple[float, float, float]]:
    """Images per second of the candidates in turns: median, slower quartile, faster quartile."""
    inputs, _ = _reference(folder)
    named = {f"{each.title} {each.precision}": each for each in candidates}
    work = {name: _images(each, network, folder, inputs) for name, each in named.items()}
    speeds = race(work, network.batch, rounds)
    return {named[name]: speed for name, speed in speeds.items()}


def _images(
    candidate: Candidate, network: Network, folder: Path, inputs: Sequence[Array]
) -> Callable[[], Array]:
    """Work to time: images of all inputs."""
    if candidate.published:
        return partial(_published_loop, random_generator(network), list(inputs))
    backend = BACKENDS.load(candidate.backend)
    source: object = folder / ARTIFACT / SYNTHESIS
    if backend.runs == "module":
        source = SynthesisGraph(random_generator(network))
    session = backend.open(source, candidate.precision, False)
    if not candidate.one_by_one:
        return partial(session.run, list(inputs))
    rows = [[each[i : i + 1] for each in inputs] for i in range(len(inputs[0]))]
    return lambda: np.concatenate([session.run(row) for row in rows])


def _published_loop(generator: Generator, inputs: Sequence[Array]) -> Array:
    """One image after the other; nothing is frozen."""
    synthesis = SynthesisGraph(generator.requires_grad_(True))
    images = []
    for row in range(len(inputs[0])):
        for layer in generator.modules():
            if isinstance(layer, SpectralConv2d | SpectralLinear):
                layer.update_sigma()
        images.append(synthesis(*(torch.from_numpy(each[row : row + 1]) for each in inputs)))
    return np.concatenate([image.detach().numpy() for image in images])


def _reference(folder: Path) -> tuple[list[Array], Array]:
    with np.load(folder / _REFERENCE) as arrays:
        return [arrays[f"arr_{i}"] for i in range(len(arrays.files) - 1)], arrays["images"]


def _failed(network: Network, title: str, precision: str, error: Exception) -> Row:
    return Row(name=f"{network.name}: {title}", precision=precision, failure=_first_line(error))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _peak_mib() -> float:
    """The most memory that this process ever held (0 where the system does not say)."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
