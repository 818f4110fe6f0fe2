"""Train the SN-GAN of the family `sngan` on MNIST, 32 pixels and grey, on one core in an hour; then judge it.

python benchmarks/train_sngan.py --out FOLDER [--data FILE] [--steps 7500 | --minutes M] [--width 32] ...

The folder receives `sngan-mnist-32.safetensors`, which `fastdirs.load_generator` reads; `training.json` with
settings, losses and the judge's figures; `samples-STEP.png`; and `checkpoint.safetensors`. Stopped at any
moment, the same command goes on from the checkpoint. On one machine the same settings, steps and threads give
the same weights, stopped or not.

With a width of w the generator has 4w, 2w, w and w channels (at 4, 8, 16 and 32 pixels), the discriminator
w, 2w, 4w and 4w; the published ones have 256 and 128 throughout.

Source: Miyato et al. 2018 (arXiv:1802.05957), table 3 and section 4: layers, hinge loss, Adam's betas. What
differs: widths; one step of the discriminator for each of the generator, not five; a constant learning rate;
and what is kept is a moving average of the generator's weights, with batch norm statistics of its own.
"""

import argparse
import json
import math
import sys
import time
import zipfile
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

import fastdirs
from fastdirs.checkpoints.safetensors_file import HEADER, read_safetensors
from fastdirs.errors import FastdirsError
from fastdirs.generators import Generator, Provenance
from fastdirs.generators.sngan import GENERATOR
from fastdirs.images import encode, grid, strip, to_uint8
from fastdirs.loading import save_generator
from fastdirs.machine import bf16_unit, describe_machine
from fastdirs.manifest import Json, environment, sha256_tensors, write_bytes, write_json

NAME = "sngan-mnist-32"
CHECKPOINT = "checkpoint.safetensors"
_Z_DIM = 128
# Decay of the moving average, and batches from which its batch norm statistics are measured.
_DECAY = 0.999
_BATCHES = 20
_JUDGED = 2000
_SOURCE = "trained on MNIST (research data, on its own terms) by benchmarks/train_sngan.py"
Digits = tuple[Tensor, Tensor]  # Images `[digits, 1, 32, 32]`, uint8, 0 to 255; labels `[digits]`, int64.


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the weights depend on, beside the number of steps: the options of these names, and the digits."""

    width: int
    batch: int
    critic_steps: int
    rate: float
    seed: int
    precision: str
    digits_sha256: str


def read_digits(path: Path) -> tuple[Digits, Digits]:
    """Digits to learn from and held-out ones: the last of every 21, which are the last 3,000 of 63,000.

    Args:
        path: An npz file of `x` `[digits, 28, 28]`, uint8, here padded with black, and `y` `[digits]`.

    Raises:
        FastdirsError: The file is missing or holds something else.
    """
    expected = "Expected MNIST as npz: x [digits, 28, 28] uint8, y [digits]. Name it with --data."
    if not path.exists():
        raise FastdirsError(f"{path} does not exist. {expected}")
    try:
        with np.load(path) as file:
            x, y = file["x"], file["y"]
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise FastdirsError(f"{path} cannot be read: {error}. {expected}") from error
    if x.dtype != np.uint8 or x.shape[1:] != (28, 28) or y.shape != x.shape[:1]:
        raise FastdirsError(f"{path} holds x {x.dtype} {list(x.shape)} and y {list(y.shape)}. {expected}")
    images = functional.pad(torch.from_numpy(x)[:, None], (2, 2, 2, 2))
    labels = torch.from_numpy(y.astype(np.int64))
    learnt = len(x) - len(x) // 21
    return (images[:learnt], labels[:learnt]), (images[learnt:], labels[learnt:])


def to_float(images: Tensor) -> Tensor:
    """Pixels, uint8, 0 to 255 -> float32, -1 to 1; any shape `[...]`."""
    return images.float() / 127.5 - 1


class _Block(nn.Module):
    """Rectify (unless first), convolve, rectify, convolve, perhaps halve; past all that a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, first: bool, halves: bool) -> None:
        super().__init__()
        pool: list[nn.Module] = [nn.AvgPool2d(2)] if halves else []
        one, two = (spectral_norm(nn.Conv2d(size, outputs, 3, padding=1)) for size in (inputs, outputs))
        opening = nn.Identity() if first else nn.ReLU()
        self.body = nn.Sequential(opening, one, nn.ReLU(), two, *pool)
        # Halved first: the same as halving last, with fewer products.
        widened = [spectral_norm(nn.Conv2d(inputs, outputs, 1))] if inputs != outputs else []
        self.bypass = nn.Sequential(*pool, *widened)

    def forward(self, features: Tensor) -> Tensor:
        """`[batch, inputs, height, width]` -> `[batch, outputs, height, width]`, halved or not."""
        added: Tensor = self.body(features) + self.bypass(features)
        return added


class Discriminator(nn.Module):
    """Four blocks of w, 2w, 4w and 4w channels, of which the first two halve; then a sum over all pixels."""

    def __init__(self, width: int, bf16: bool) -> None:
        super().__init__()
        self.bf16 = bf16
        widths = list(pairwise([1, width, 2 * width, 4 * width, 4 * width]))
        blocks = [_Block(*each, first=place == 0, halves=place < 2) for place, each in enumerate(widths)]
        self.blocks = nn.Sequential(*blocks, nn.ReLU())
        self.score = spectral_norm(nn.Linear(4 * width, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images `[batch, 1, 32, 32]`, float32, -1 to 1 -> scores `[batch]`, float32, high for real ones."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            features: Tensor = self.blocks(images)
        scores: Tensor = self.score(features.float().sum((2, 3)))[:, 0]
        return scores


class Training(nn.Module):
    """Both networks, the average of the generator, their optimisers, and how far they are.

    Args:
        settings: What the weights depend on.
        images: Digits to learn from, `[digits, 1, 32, 32]`, uint8.
    """

    def __init__(self, settings: Settings, images: Tensor) -> None:
        super().__init__()
        self.settings = settings
        self.images = images
        self.seconds = 0.0
        self.losses: list[tuple[float, float]] = []
        self.bf16, w = settings.precision == "bf16", settings.width
        config = {"z_dim": _Z_DIM, "widths": [4 * w, 2 * w, w, w], "img_channels": 1, "eps": 1e-5}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.average = GENERATOR.build(config)
            self.discriminator = Discriminator(w, self.bf16)
        self.generator = deepcopy(self.average).train().requires_grad_(True)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimisers = {name: self._adam(name) for name in ("generator", "discriminator")}

    def _adam(self, name: str) -> torch.optim.Adam:
        """An optimiser whose moments are there before the first step, so that `everything` can name them."""
        parameters = list(self.get_submodule(name).parameters())
        adam = torch.optim.Adam(parameters, lr=self.settings.rate, betas=(0.0, 0.9))
        for each in parameters:
            moments = {slot: torch.zeros_like(each).detach() for slot in ("exp_avg", "exp_avg_sq")}
            adam.state[each] = {"step": torch.tensor(0.0), **moments}
        return adam

    @property
    def steps(self) -> int:
        """Steps of the generator so far."""
        return len(self.losses)

    def step(self) -> None:
        """One step of the generator, after those of the discriminator."""
        started = time.perf_counter()
        # Drawn by the step's own number, so that a resumed run needs no state of a random generator.
        draws = np.random.default_rng([self.settings.seed, 0, self.steps])
        for _ in range(self.settings.critic_steps):
            chosen = torch.from_numpy(draws.integers(len(self.images), size=self.settings.batch))
            loss = self._critic_loss(to_float(self.images[chosen]), self._z(draws))
            critic = self._descend("discriminator", loss)
        self.discriminator.requires_grad_(False)
        scores = self.discriminator(self._synthesise(self._z(draws)))
        missed = self._descend("generator", -scores.mean())
        self.discriminator.requires_grad_(True)
        self._follow()
        self.losses.append((critic, missed))
        self.seconds += time.perf_counter() - started

    def _z(self, draws: np.random.Generator) -> Tensor:
        return torch.from_numpy(draws.standard_normal((self.settings.batch, _Z_DIM), dtype=np.float32))

    def _synthesise(self, z: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return self.generator.run_stages(self.generator.map_z(z, None)).float()

    def _critic_loss(self, real: Tensor, z: Tensor) -> Tensor:
        """The hinge loss of Miyato et al. 2018, equation 16."""
        with torch.no_grad():
            generated = self._synthesise(z)
        scores: Tensor = self.discriminator(torch.cat([real, generated])).reshape(2, -1)
        return functional.relu(1 - scores[0]).mean() + functional.relu(1 + scores[1]).mean()

    def _descend(self, name: str, loss: Tensor) -> float:
        if not loss.isfinite():
            raise FastdirsError(f"The {name}'s loss is {loss.item()} at step {self.steps}. Lower --rate.")
        self.optimisers[name].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimisers[name].step()
        return loss.item()

    @torch.no_grad()
    def _follow(self) -> None:
        """Moves the average towards the generator: quickly at first, when there is little worth keeping."""
        share = 1 - min(_DECAY, (1 + self.steps) / (10 + self.steps))
        for kept, now in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            kept.lerp_(now, share)

    @torch.no_grad()
    def finished(self) -> Generator:
        """A copy of the averaged generator, with the batch norm statistics that belong to its weights."""
        generator = deepcopy(self.average).train()
        for module in generator.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # The plain mean over all batches.
                module.reset_running_stats()
        for number in range(_BATCHES):
            z = self._z(np.random.default_rng([self.settings.seed, 1, number]))
            generator.run_stages(generator.map_z(z, None))
        facts = {"steps": self.steps, **asdict(self.settings)}
        told = ", ".join(f"{key} {value}" for key, value in facts.items())
        generator.provenance = Provenance(name=NAME, source=f"{_SOURCE}: {told}", licence="Apache-2.0")
        return generator.eval()

    def everything(self) -> dict[str, Tensor]:
        """All weights, statistics and moments by name, not copied: any shape `[...]` and dtype."""
        state: dict[str, Tensor] = {**self.state_dict()}
        for name, adam in self.optimisers.items():
            for place, parameter in enumerate(self.get_submodule(name).parameters()):
                state |= {f"adam.{name}.{place}.{key}": each for key, each in adam.state[parameter].items()}
        return state

    def save(self, path: Path) -> None:
        """Write all that the next step depends on, whole or not at all."""
        tensors = {name: value.contiguous() for name, value in self.everything().items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64).reshape(-1, 2)
        tensors["seconds"] = torch.tensor(self.seconds, dtype=torch.float64)
        write_bytes(path, save(tensors, metadata={HEADER: json.dumps(asdict(self.settings), sort_keys=True)}))

    @torch.no_grad()
    def resume(self, path: Path) -> None:
        """Read what `save` wrote.

        Raises:
            FastdirsError: The checkpoint is broken, or of a training with other settings.
        """
        tensors, settings = read_safetensors(path)
        if settings != asdict(self.settings):
            raise FastdirsError(f"{path} has other settings: {settings}. Use them, or choose another --out.")
        for name, value in self.everything().items():
            value.copy_(tensors[name])
        self.losses = [(critic, loss) for critic, loss in tensors["losses"].tolist()]
        self.seconds = tensors["seconds"].item()


def spent(training: Training, steps: int, minutes: float | None) -> float:
    """Share of the minutes that is over if they are given, else of the steps."""
    return training.seconds / (60 * minutes) if minutes else training.steps / steps


def train(training: Training, steps: int, minutes: float | None, out: Path, every: int) -> None:
    """Train to the end; after every so many steps a line, a grid of samples and a checkpoint."""
    while spent(training, steps, minutes) < 1:
        training.step()
        if training.steps % every == 0:
            critic, loss = np.mean(training.losses[-every:], axis=0)
            rate = training.steps / training.seconds
            left = training.seconds / 60 * (1 / spent(training, steps, minutes) - 1)
            told = f"losses {critic:.3f}, {loss:.3f}; {rate:.2f} steps/s, {left:.0f} min left"
            print(training.steps, told, flush=True)
            keep(training, out)
    keep(training, out)


def keep(training: Training, out: Path) -> None:
    """Write a grid of samples, ten rows of ten, and the checkpoint."""
    pictures = to_uint8(synthesise(training.finished(), 100)).reshape(10, 10, 32, 32, 1)
    path = out / f"samples-{training.steps:06}.png"
    write_bytes(path, encode(grid([strip(row) for row in pictures]), "png"))
    training.save(out / CHECKPOINT)


@torch.inference_mode()
def synthesise(generator: Generator, count: int) -> Tensor:
    """Images of the seeds from 0, `[count, 1, 32, 32]`, float32, -1 to 1."""
    parts = torch.split(generator.sample(range(count)), 200)
    return torch.cat([generator.synthesis(generator.mapping(z)) for z in parts])


def taught(digits: Digits, epochs: int = 2) -> tuple[nn.Sequential, nn.Linear]:
    """A small reader of digits in the manner of LeNet: images to 64 features, and those to logits."""
    images, labels = digits
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = nn.Sequential(
            nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 5 * 5, 64), nn.ReLU(),
        )  # fmt: skip
        head = nn.Linear(64, 10)
        optimiser = torch.optim.Adam([*features.parameters(), *head.parameters()], lr=1e-3)
        for _ in range(epochs):
            for chosen in torch.split(torch.randperm(len(images)), 128):
                optimiser.zero_grad()
                logits = head(features(to_float(images[chosen])))
                loss = functional.cross_entropy(logits, labels[chosen])
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    return features, head


def frechet(one: Tensor, other: Tensor) -> float:
    """Frechet distance of two sets of features `[count, dim]`, each taken as normally distributed."""
    first, second = one.double().T.cov(), other.double().T.cov()
    root = torch.linalg.eigvals(first @ second).real.clamp(min=0).sqrt().sum()
    means = (one.mean(0) - other.mean(0)).square().sum()
    return float(means + first.trace() + second.trace() - 2 * root)


def judged(made: Tensor, learnt: Digits, held_out: Digits) -> Json:
    """What a reader that has learnt says of images made, float32, -1 to 1, and of real ones beside them."""
    reader, head = taught(learnt)
    with torch.inference_mode():
        generated, real, seen = map(reader, (made, to_float(held_out[0]), to_float(learnt[0][: len(made)])))
        probabilities, of_real = head(generated).softmax(1), head(real).softmax(1)
    counts = probabilities.argmax(1).bincount(minlength=10)
    return {
        "accuracy_held_out": (of_real.argmax(1) == held_out[1]).float().mean().item(),
        "confidence_held_out": of_real.amax(1).mean().item(),
        "confidence_generated": probabilities.amax(1).mean().item(),
        "histogram_generated": counts.tolist(),
        "entropy_bits_generated": torch.special.entr(counts / counts.sum()).sum().item() / math.log(2),
        "frechet_generated_to_held_out": frechet(generated, real),
        "frechet_learnt_to_held_out": frechet(seen, real),
        "frechet_held_out_halves": frechet(real[::2], real[1::2]),
    }


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist.npz"), help="MNIST as npz")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to and to resume from")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=7500, help="of the generator (7500)")
    length.add_argument("--minutes", type=float, help="of training, interruptions not counted")
    numbers = {"width": 32, "batch": 64, "critic-steps": 1, "seed": 0, "threads": 1, "every": 250}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"({default})")
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate (2e-4)")
    parser.add_argument("--precision", choices=["bf16", "f32"], default="bf16" if bf16_unit() else "f32")
    options = parser.parse_args()
    for name, value in vars(options).items():
        if isinstance(value, int | float) and not (value > 0 or (name == "seed" and value == 0)):
            parser.error(f"--{name.replace('_', '-')} {value} is too small. Expected a positive number.")
    return options


def main() -> None:
    """Train, going on from the folder's checkpoint if there is one; write the generator; judge it."""
    options = parse()
    torch.set_num_threads(options.threads)
    learnt, held_out = read_digits(options.data)
    options.digits_sha256 = sha256_tensors({"x": learnt[0]})
    settings = Settings(**{each.name: getattr(options, each.name) for each in fields(Settings)})
    training = Training(settings, learnt[0])
    path: Path = options.out / f"{NAME}.safetensors"
    if (options.out / CHECKPOINT).exists():
        training.resume(options.out / CHECKPOINT)
        print(f"going on after step {training.steps}", flush=True)
    train(training, options.steps, options.minutes, options.out, options.every)
    save_generator(training.finished(), path)
    verdict = judged(synthesise(fastdirs.load_generator(path), _JUDGED), learnt, held_out)
    print(json.dumps(verdict, indent=2))
    starts = range(0, training.steps, options.every)
    means = [np.mean(training.losses[start : start + options.every], axis=0).tolist() for start in starts]
    write_json(options.out / "training.json", {
        "settings": asdict(settings), "steps": training.steps, "minutes": training.seconds / 60,
        "threads": options.threads, "machine": describe_machine(), "environment": environment(),
        "losses": {"every": options.every, "discriminator and generator": means}, "judge": verdict,
    })  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except FastdirsError as error:
        sys.exit(f"error: {error}")
