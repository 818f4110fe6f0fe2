"""Train the SN-GAN of the family `sngan` on MNIST, 32 pixels and grey, on one core in an hour; then judge it.

python benchmarks/train_sngan.py --out FOLDER [--data FILE] [--steps 7500 | --minutes M] [--width 32] ...

The folder receives `sngan-mnist-32.safetensors`, which `fastdirs.load_generator` reads, `training.json` with the
settings, losses and the judge's figures, `samples-STEP.png`, and `checkpoint.safetensors`. Stopped at any moment, the
same command goes on from the checkpoint. On one machine, the same settings, steps and threads give the same weights,
stopped or not.

Narrower than the published network, which has 256 channels in the generator and 128 in the discriminator: with a width
of w the generator has 4w, 2w, w and w channels (at 4, 8, 16 and 32 pixels), the discriminator w, 2w, 4w and 4w.

Source: Miyato et al. 2018 (arXiv:1802.05957), table 3 and section 4: layers, hinge loss, Adam with betas 0 and 0.9. What
differs: the widths; one step of the discriminator for each of the generator, there five; a constant learning rate; and
the weights that are kept are a moving average, for which the statistics of the batch norms are measured anew.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
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
_STEPS = 7500
_Z_DIM = 128
_BETAS = (0.0, 0.9)
_AVERAGE = 0.999
_CALIBRATION = 20
_PICTURES = 10
_JUDGED = 2000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the weights depend on, beside the number of steps.

    Attributes:
        width: Narrowest width of both networks.
        batch: Real and generated digits in a step, each.
        critic_steps: Steps of the discriminator for each of the generator.
        rate: Learning rate of both.
        seed: Where all chance comes from.
        precision: "bf16" or "f32", of the layers; losses and weights are float32 in both.
        digits_sha256: Hash of the digits that are learnt from.
    """

    width: int
    batch: int
    critic_steps: int
    rate: float
    seed: int
    precision: str
    digits_sha256: str


@dataclass(frozen=True)
class Digits:
    """Digits of 32x32 pixels: `images` `[digits, 1, 32, 32]`, uint8, 0 to 255; `labels` `[digits]`, int64."""

    images: Tensor
    labels: Tensor

    def split(self) -> tuple["Digits", "Digits"]:
        """Those to learn from, and the last of every 21, which of MNIST's 63,000 are the last 3,000."""
        learnt = len(self.images) - len(self.images) // 21
        return (
            Digits(self.images[:learnt], self.labels[:learnt]),
            Digits(self.images[learnt:], self.labels[learnt:]),
        )


def read_digits(path: Path) -> Digits:
    """The arrays `x` `[digits, 28, 28]`, uint8, padded with black to 32x32, and `y` `[digits]` of an npz file.

    Raises:
        FastdirsError: The file is missing or holds something else.
    """
    if not path.exists():
        raise FastdirsError(
            f"{path} does not exist. Expected an npz file with MNIST's digits, x [digits, 28, 28] uint8 and "
            "y [digits]. Name it with --data."
        )
    try:
        with np.load(path) as file:
            x, y = file["x"], file["y"]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise FastdirsError(
            f"{path} holds no arrays x and y: {error} Name MNIST's npz with --data."
        ) from error
    if x.dtype != np.uint8 or x.shape[1:] != (28, 28) or y.shape != x.shape[:1]:
        raise FastdirsError(
            f"{path} holds x {x.dtype} {list(x.shape)} and y {list(y.shape)}, expected x uint8 "
            "[digits, 28, 28] and y [digits]. Name MNIST's npz with --data."
        )
    images = functional.pad(torch.from_numpy(x)[:, None], (2, 2, 2, 2))
    return Digits(images, torch.from_numpy(y.astype(np.int64)))


def to_float(images: Tensor) -> Tensor:
    """Pixels, uint8, 0 to 255 -> float32, -1 to 1; any shape `[...]`."""
    return images.float() / 127.5 - 1


class _Block(nn.Module):
    """Rectify (unless first), convolve, rectify, convolve, perhaps halve; and past all that a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, first: bool, halves: bool) -> None:
        super().__init__()
        pool: list[nn.Module] = [nn.AvgPool2d(2)] if halves else []
        self.body = nn.Sequential(
            nn.Identity() if first else nn.ReLU(),
            spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1)),
            nn.ReLU(),
            spectral_norm(nn.Conv2d(outputs, outputs, 3, padding=1)),
            *pool,
        )
        # Halved first: the same as halving last, with fewer products.
        widened = [spectral_norm(nn.Conv2d(inputs, outputs, 1))] if inputs != outputs else []
        self.bypass = nn.Sequential(*pool, *widened)

    def forward(self, features: Tensor) -> Tensor:
        """`[batch, inputs, height, width]` -> `[batch, outputs, height, width]`, halved or not."""
        added: Tensor = self.body(features) + self.bypass(features)
        return added


class Discriminator(nn.Module):
    """Four residual blocks with spectral norms, of which the first two halve; then a sum over all pixels.

    Args:
        width: Channels of the first block; the others have 2, 4 and 4 times as many.
        bf16: Whether the blocks run in bfloat16.
    """

    def __init__(self, width: int, bf16: bool) -> None:
        super().__init__()
        self.bf16 = bf16
        widths = [1, width, 2 * width, 4 * width, 4 * width]
        self.blocks = nn.Sequential(
            *(
                _Block(*pair, first=place == 0, halves=place < 2)
                for place, pair in enumerate(pairwise(widths))
            ),
            nn.ReLU(),
        )
        self.score = spectral_norm(nn.Linear(widths[-1], 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images `[batch, 1, 32, 32]`, float32, -1 to 1 -> scores `[batch]`, float32, high for real ones."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            features: Tensor = self.blocks(images)
        scores: Tensor = self.score(features.float().sum((2, 3)))[:, 0]
        return scores


class Training:
    """Both networks, the average of the generator, their optimisers, and how far they are.

    Args:
        settings: What the weights depend on.
        images: Digits to learn from, `[digits, 1, 32, 32]`, uint8.
    """

    def __init__(self, settings: Settings, images: Tensor) -> None:
        self.settings = settings
        self.images = images
        self.seconds = 0.0
        self.losses: list[tuple[float, float]] = []
        bf16, width = settings.precision == "bf16", settings.width
        config = {
            "z_dim": _Z_DIM,
            "widths": [4 * width, 2 * width, width, width],
            "img_channels": 1,
            "eps": 1e-5,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.average = GENERATOR.build(config)
            self.discriminator = Discriminator(width, bf16)
        for network in (self.average, self.discriminator):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.generator = deepcopy(self.average).train().requires_grad_(True)
        self.optimisers = {
            name: torch.optim.Adam(self.networks()[name].parameters(), lr=settings.rate, betas=_BETAS)
            for name in ("generator", "discriminator")
        }

    @property
    def steps(self) -> int:
        """Steps of the generator so far."""
        return len(self.losses)

    def networks(self) -> dict[str, nn.Module]:
        """What a checkpoint holds the weights of, by name."""
        return {"generator": self.generator, "average": self.average, "discriminator": self.discriminator}

    def step(self) -> None:
        """One step of the generator, after those of the discriminator.

        Raises:
            FastdirsError: A loss is no number any more.
        """
        started = time.perf_counter()
        # Drawn by the step's own number, so that a resumed run needs no state of a random generator.
        draws = np.random.default_rng([self.settings.seed, 0, self.steps])
        for _ in range(self.settings.critic_steps):
            chosen = torch.from_numpy(draws.integers(len(self.images), size=self.settings.batch))
            critic = self._descend(
                "discriminator", self._critic_loss(to_float(self.images[chosen]), self._z(draws))
            )
        self.discriminator.requires_grad_(False)
        loss = self._descend("generator", -self.discriminator(self._synthesise(self._z(draws))).mean())
        self.discriminator.requires_grad_(True)
        if not math.isfinite(critic + loss):
            raise FastdirsError(
                f"The training diverged in step {self.steps}. Use another --seed or a lower --rate."
            )
        self._follow()
        self.losses.append((critic, loss))
        self.seconds += time.perf_counter() - started

    def _z(self, draws: np.random.Generator) -> Tensor:
        return torch.from_numpy(draws.standard_normal((self.settings.batch, _Z_DIM), dtype=np.float32))

    def _synthesise(self, z: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.precision == "bf16"):
            images = self.generator.run_stages(self.generator.map_z(z, None))
        return images.float()

    def _critic_loss(self, real: Tensor, z: Tensor) -> Tensor:
        """The hinge loss of Miyato et al. 2018, equation 16."""
        with torch.no_grad():
            generated = self._synthesise(z)
        scores = self.discriminator(torch.cat([real, generated]))
        of_real, of_generated = scores.split([len(real), len(z)])
        return functional.relu(1 - of_real).mean() + functional.relu(1 + of_generated).mean()

    def _descend(self, name: str, loss: Tensor) -> float:
        optimiser = self.optimisers[name]
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return loss.item()

    @torch.no_grad()
    def _follow(self) -> None:
        """Moves the average towards the generator: quickly at first, when there is little worth keeping."""
        share = 1 - min(_AVERAGE, (1 + self.steps) / (10 + self.steps))
        for kept, now in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            kept.lerp_(now, share)

    @torch.no_grad()
    def finished(self) -> Generator:
        """A copy of the averaged generator, with the batch norm statistics that belong to its weights."""
        generator = deepcopy(self.average).train()
        for module in generator.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # type: ignore[assignment]  # the plain mean over all batches
                module.reset_running_stats()
        for number in range(_CALIBRATION):
            z = self._z(np.random.default_rng([self.settings.seed, 1, number]))
            generator.run_stages(generator.map_z(z, None))
        told = ", ".join(f"{key} {value}" for key, value in asdict(self.settings).items())
        generator.provenance = Provenance(
            name=NAME,
            source=f"trained on MNIST (research data, on its own terms) by benchmarks/train_sngan.py: "
            f"{self.steps} steps, {told}",
            licence="Apache-2.0",
        )
        return generator.eval()

    def save(self, path: Path) -> None:
        """Write all that the next step depends on, whole or not at all."""
        tensors = {
            "losses": torch.tensor(self.losses, dtype=torch.float64).reshape(-1, 2),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
        }
        for name, network in self.networks().items():
            tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        for name, place, slots in self._slots():
            tensors |= {f"adam.{name}.{place}.{slot}": value for slot, value in slots.items()}
        header = {HEADER: json.dumps(asdict(self.settings), sort_keys=True)}
        write_bytes(
            path, save({name: value.contiguous() for name, value in tensors.items()}, metadata=header)
        )

    def resume(self, path: Path) -> None:
        """Read what `save` wrote.

        Raises:
            FastdirsError: The checkpoint is broken, or of a training with other settings.
        """
        tensors, settings = read_safetensors(path)
        if settings != asdict(self.settings):
            raise FastdirsError(
                f"{path} is of a training with other settings: {settings}, expected {asdict(self.settings)}. "
                "Repeat the first command, or choose another --out."
            )
        self.losses = [(critic, loss) for critic, loss in tensors["losses"].tolist()]
        self.seconds = tensors["seconds"].item()
        for name, network in self.networks().items():
            network.load_state_dict({key: tensors[f"{name}.{key}"] for key in network.state_dict()})
        for name, optimiser in self.optimisers.items():
            for place, parameter in enumerate(self.networks()[name].parameters()):
                # In the layout of the parameter, as Adam makes them.
                moments = {slot: torch.empty_like(parameter) for slot in ("exp_avg", "exp_avg_sq")}
                slots = {"step": torch.tensor(0.0), **moments}
                for slot, value in slots.items():
                    value.detach().copy_(tensors[f"adam.{name}.{place}.{slot}"])
                optimiser.state[parameter] = slots

    def _slots(self) -> Iterator[tuple[str, int, dict[str, Tensor]]]:
        for name, optimiser in self.optimisers.items():
            for place, slots in optimiser.state_dict()["state"].items():
                yield name, place, slots


@dataclass(frozen=True)
class Budget:
    """When to stop: after so many `minutes` of training if given, else after so many `steps`."""

    steps: int
    minutes: float | None

    def share(self, training: Training) -> float:
        """How much of it is spent, from 0."""
        if self.minutes is not None:
            return training.seconds / (60 * self.minutes)
        return training.steps / self.steps


def train(training: Training, budget: Budget, out: Path, every: int) -> None:
    """Train until the budget is spent; after every so many steps a line, a grid of samples and a checkpoint."""
    while (share := budget.share(training)) < 1:
        training.step()
        if training.steps % every == 0:
            critic, loss = np.mean(training.losses[-every:], axis=0)
            rate, left = training.steps / training.seconds, training.seconds * (1 / max(share, 1e-9) - 1) / 60
            print(
                f"step {training.steps}: discriminator {critic:.3f}, generator {loss:.3f}, "
                f"{rate:.2f} steps/s, {left:.0f} min left",
                flush=True,
            )
            draw(training.finished(), out / f"samples-{training.steps:06}.png")
            training.save(out / CHECKPOINT)
    training.save(out / CHECKPOINT)


@torch.inference_mode()
def synthesise(generator: Generator, count: int) -> Tensor:
    """Images of the seeds from 0, `[count, 1, 32, 32]`, float32, -1 to 1."""
    parts = generator.sample(range(count)).split(200)
    return torch.cat([generator.synthesis(generator.mapping(z)) for z in parts])


def draw(generator: Generator, path: Path) -> None:
    """Write the images of the first hundred seeds as a PNG of ten rows."""
    rows = to_uint8(synthesise(generator, _PICTURES**2)).reshape(_PICTURES, _PICTURES, 32, 32, 1)
    write_bytes(path, encode(grid([strip(row) for row in rows]), "png"))


class Judge(nn.Module):
    """A small network that reads digits, in the manner of LeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 5 * 5, 64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images `[batch, 1, 32, 32]`, float32, -1 to 1 -> logits of the digits `[batch, 10]`."""
        logits: Tensor = self.head(self.features(images))
        return logits

    @torch.inference_mode()
    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images as above -> features `[batch, 64]`, float64, and probabilities `[batch, 10]`, float32."""
        features = torch.cat([self.features(part) for part in images.split(500)])
        return features.double(), self.head(features).softmax(1)


def taught(digits: Digits, epochs: int = 2) -> Judge:
    """A judge that has learnt from the digits; the same ones give the same judge."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = Judge()
        optimiser = torch.optim.Adam(judge.parameters(), lr=1e-3)
        for _ in range(epochs):
            for chosen in torch.randperm(len(digits.images)).split(128):
                optimiser.zero_grad()
                logits = judge(to_float(digits.images[chosen]))
                functional.cross_entropy(logits, digits.labels[chosen]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    return judge


def frechet(one: Tensor, other: Tensor) -> float:
    """Frechet distance of two normal distributions with the means and covariances of features `[count, dim]`."""
    product = one.T.cov() @ other.T.cov()
    root = torch.linalg.eigvals(product).real.clamp(min=0).sqrt().sum()
    means = (one.mean(0) - other.mean(0)).square().sum()
    return (means + one.T.cov().trace() + other.T.cov().trace() - 2 * root).item()


def judged(generator: Generator, learnt: Digits, held_out: Digits) -> Json:
    """What a judge taught on the digits learnt from says of generated ones, and of held-out real ones beside."""
    judge = taught(learnt)
    features, probabilities = judge.look(synthesise(generator, _JUDGED))
    real, of_real = judge.look(to_float(held_out.images))
    seen, _ = judge.look(to_float(learnt.images[:_JUDGED]))
    counts = probabilities.argmax(1).bincount(minlength=10)
    shares = counts / counts.sum()
    return {
        "accuracy_held_out": (of_real.argmax(1) == held_out.labels).float().mean().item(),
        "confidence_held_out": of_real.amax(1).mean().item(),
        "confidence_generated": probabilities.amax(1).mean().item(),
        "histogram_generated": counts.tolist(),
        "entropy_bits_generated": torch.special.entr(shares).sum().item() / math.log(2),
        "frechet_generated_to_held_out": frechet(features, real),
        "frechet_learnt_to_held_out": frechet(seen, real),
        "frechet_held_out_halves": frechet(real[::2], real[1::2]),
    }


def make(training: Training, budget: Budget, out: Path, every: int) -> Generator:
    """Train, going on from the folder's checkpoint if there is one, and write the generator."""
    if (out / CHECKPOINT).exists():
        training.resume(out / CHECKPOINT)
        print(f"going on after step {training.steps}", flush=True)
    train(training, budget, out, every)
    draw(training.finished(), out / "samples.png")
    save_generator(training.finished(), out / f"{NAME}.safetensors")
    return fastdirs.load_generator(out / f"{NAME}.safetensors")


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist.npz"), help="MNIST as npz")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to and to resume from")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=_STEPS, help="of the generator")
    length.add_argument("--minutes", type=float, help="of training, interruptions not counted")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--critic-steps", type=int, default=1)
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["bf16", "f32"], default="bf16" if bf16_unit() else "f32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    return parser.parse_args()


def main() -> None:
    """Train and judge, with the settings of the command line."""
    options = parse()
    torch.set_num_threads(options.threads)
    try:
        learnt, held_out = read_digits(options.data).split()
        settings = Settings(
            width=options.width, batch=options.batch, critic_steps=options.critic_steps, rate=options.rate,
            seed=options.seed, precision=options.precision,
            digits_sha256=sha256_tensors({"x": learnt.images}),
        )  # fmt: skip
        training = Training(settings, learnt.images)
        generator = make(training, Budget(options.steps, options.minutes), options.out, options.every)
        verdict = judged(generator, learnt, held_out)
    except FastdirsError as error:
        sys.exit(f"error: {error}")
    critic, loss = np.array(training.losses).T
    means = [part.mean() for part in np.array_split(critic, 1)]
    print(json.dumps(verdict, indent=2), means, loss)
    write_json(options.out / "training.json", {
        "settings": asdict(settings), "steps": training.steps, "minutes": training.seconds / 60,
        "threads": options.threads, "machine": describe_machine(), "environment": environment(),
        "judge": verdict,
    })  # fmt: skip


if __name__ == "__main__":
    main()
