"""What many tests start from: the toy, its bank, DCGANs with random weights, and artefacts of both."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.artifact import Artifact
from fastdirs.directions import DirectionBank
from fastdirs.discovery import discover
from fastdirs.export import export_generator
from fastdirs.generators import Factor, Generator
from fastdirs.loading import load_generator
from fastdirs.pairs import ShiftDistribution, draw_pairs
from fastdirs.recipe import Batch, Graph, Recipe
from fastdirs.reconstructors import build_reconstructor, save_reconstructor
from fastdirs.shift_space import ShiftSpace

_OWN_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@pytest.fixture(scope="session")
def own_cache() -> Path:
    """Where the user's own caches lie. To look for weights that need not be fetched again, never to write."""
    return _OWN_CACHE


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes what the user's own cache holds, measurements above all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def toy() -> Generator:
    return load_generator("toy", options={"resolution": "32"})


@pytest.fixture(scope="session")
def toy_bank(toy: Generator) -> DirectionBank:
    return discover(toy, "sefa", num_directions=5)


@pytest.fixture(scope="session")
def curved_bank(toy: Generator, toy_bank: DirectionBank) -> DirectionBank:
    """Paths of the toy: along one true direction, bending into the next on either side of 0."""
    knots = torch.tensor([-4.0, -1.5, 0.0, 1.5, 4.0])
    ahead = toy_bank.directions.flatten(1)
    bend = ahead.roll(-1, 0)[:, None] * (0.1 * knots**2)[:, None]
    space = ShiftSpace(toy, (0,))
    return space.bank(
        ahead[:, None] * knots[:, None] + bend, toy_bank.scores, "bent", {}, knots, keep_signs=True
    )


@pytest.fixture(scope="session")
def toy_reconstructor(
    toy: Generator, toy_bank: DirectionBank, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A file: a reconstructor that tells the directions of `toy_bank` apart, trained by a plain loop."""
    shifts, batch = ShiftDistribution("uniform", 3.0, 0.5), 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reconstructor = build_reconstructor("small", len(toy_bank), 3, 32).train()
    optimizer = torch.optim.Adam(reconstructor.parameters(), 2e-3)
    for step in range(120):
        pairs = draw_pairs(toy, len(toy_bank), shifts, batch, step)
        latents = toy.mapping(pairs.z)
        shifted = latents + toy_bank.directions[pairs.directions] * pairs.epsilons[:, None, None]
        logits, epsilon, _ = reconstructor(toy.synthesis(latents), toy.synthesis(shifted))
        loss = F.cross_entropy(logits, pairs.directions) + 0.25 * (epsilon - pairs.epsilons).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("reconstructors") / "reconstructor.safetensors"
    content = {
        "generator": toy.identity(),
        "bank_sha256": toy_bank.sha256,
        "shifts": {"name": shifts.name, "scale": shifts.scale, "minimum": shifts.minimum},
        "training": {"seed": 0, "batch": batch, "steps": 120},
    }
    save_reconstructor(reconstructor.eval(), path, content)
    return path


def _random_dcgan(
    widths: Sequence[int] = (8, 12, 10),
    channels: int = 3,
    kernels: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    norm_after: Sequence[int] | None = None,
    bias: bool = False,
    seed: int = 0,
) -> nn.Sequential:
    sizes = [*widths, channels]
    count = len(sizes) - 1
    kernels = [4] * count if kernels is None else kernels
    strides = [1] + [2] * (count - 1) if strides is None else strides
    norm_after = range(count - 1) if norm_after is None else norm_after
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for index in range(count):
            # The first layer opens a 1x1 picture; the others keep or double it.
            kernel, stride = kernels[index], strides[index]
            padding = 0 if index == 0 else (kernel - stride + 1) // 2
            output_padding = 0 if index == 0 else stride - kernel + 2 * padding
            layer = nn.ConvTranspose2d(
                sizes[index], sizes[index + 1], kernel, stride, padding, output_padding, bias=bias
            )
            layers.append(layer)
            if index in norm_after:
                norm = nn.BatchNorm2d(sizes[index + 1])
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.normal_(norm.bias, std=0.3)
                norm.running_mean = torch.randn(sizes[index + 1]) * 0.2
                norm.running_var = torch.rand(sizes[index + 1]) * 0.5 + 0.1
                layers.append(norm)
            layers.append(nn.Tanh() if index == count - 1 else nn.ReLU())
    return nn.Sequential(*layers).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def random_dcgan() -> Callable[..., nn.Sequential]:
    """A DCGAN as its author would write it: `random_dcgan(widths=(z, ...), ...)`, of z `[batch, z, 1, 1]`."""
    return _random_dcgan


@pytest.fixture(scope="session")
def small_dcgan(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """32 pixels, as it comes out of a checkpoint; its images differ well between latents."""
    module = _random_dcgan((16, 24, 16, 12))
    for layer in module:
        if isinstance(layer, nn.ConvTranspose2d):
            layer.weight *= 3
    path = tmp_path_factory.mktemp("checkpoints") / "small-dcgan.pt"
    torch.save(module.state_dict(), path)
    return load_generator(path)


class _Layered(Generator):
    """What StyleGAN families bring: a mapping network, a mean w, and three layers read by three stages."""

    def __init__(self, c_dim: int = 0) -> None:
        z_dim, num_layers, dim = 6, 3, 5
        super().__init__(
            family="layered",
            space="w+",
            z_dim=z_dim,
            c_dim=c_dim,
            class_in="mapping" if c_dim else "",
            num_layers=num_layers,
            dim=dim,
            img_resolution=16,
            img_channels=3,
            stages=[_LayeredStage(layer, dim) for layer in range(num_layers)],
            reads=[(layer,) for layer in range(num_layers)],
            config={},
        )
        self.network = nn.Sequential(
            nn.Linear(z_dim + c_dim, 16), nn.LeakyReLU(0.2), nn.Linear(16, num_layers * dim)
        )
        mean = self.map_z(torch.randn(64, z_dim), torch.rand(64, c_dim)).mean(0)
        self.latent_mean = mean.detach() + 0.5

    @property
    def has_mapping(self) -> bool:
        return True

    def map_z(self, z: Tensor, c: Tensor | None) -> Tensor:
        joined = torch.cat([z, 2 * c], dim=1) if self.c_dim and c is not None else z
        return self.network(joined).reshape(-1, self.num_layers, self.dim)

    def factors(self) -> list[Factor]:
        return []


class _LayeredStage(nn.Module):
    """Doubles the size; the scale of each channel comes from one latent layer."""

    def __init__(self, layer: int, dim: int, channels: int = 4) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.Linear(dim, channels)
        self.convolution = nn.ConvTranspose2d(channels, 3 if layer == 2 else channels, 4, 2, 1)

    def forward(self, state: Tensor | None, latents: Tensor) -> Tensor:
        scale = self.scale(latents[:, self.layer])[:, :, None, None]
        features = scale.expand(-1, -1, 2, 2) if state is None else state * (1 + scale)
        return torch.tanh(self.convolution(features) * 2)


class _Classes(Generator):
    """What BigGAN families bring: z for each layer, a class in the synthesis, statistics chosen by psi."""

    def __init__(self, c_dim: int = 4, rows: int = 5) -> None:
        dim = 6
        super().__init__(
            family="classes",
            space="z",
            z_dim=dim,
            z_bound=2.0,
            c_dim=c_dim,
            class_in="synthesis",
            num_layers=4,
            dim=dim,
            truncation_rows=rows,
            img_resolution=16,
            img_channels=3,
            stages=[_ClassesStage(layer, dim, c_dim, rows) for layer in range(3)],
            reads=[(layer, 3) for layer in range(3)],
            config={},
        )

    @property
    def has_mapping(self) -> bool:
        return True

    def map_z(self, z: Tensor, c: Tensor | None) -> Tensor:
        assert c is None
        return torch.cat([z[:, None].expand(-1, 3, -1), torch.ones_like(z)[:, None]], dim=1)

    def factors(self) -> list[Factor]:
        weights = {
            f"stages.{i}.stage.scale.weight": stage.stage.scale.weight for i, stage in enumerate(self.stages)
        }
        return [Factor(name, layer, weight) for layer, (name, weight) in enumerate(weights.items())]


class _ClassesStage(nn.Module):
    """A layered stage whose channels are shifted by the class, and by the statistics of the place."""

    def __init__(self, layer: int, dim: int, c_dim: int, rows: int) -> None:
        super().__init__()
        self.stage = _LayeredStage(layer, dim)
        channels = self.stage.convolution.out_channels
        self.embedding = nn.Linear(c_dim, channels, bias=False)
        self.register_buffer("statistics", torch.rand(rows, channels))

    def forward(
        self, state: Tensor | tuple[Tensor, Tensor], latents: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        features, c = (None, state) if isinstance(state, Tensor) else state
        near = torch.relu(1 - (latents[:, 3, :1] - torch.arange(len(self.statistics))).abs())
        shift = self.embedding(c) + near @ self.statistics
        features = torch.tanh(self.stage(features, latents) + shift[:, :, None, None])
        return features if self.stage.layer == 2 else (features, c)


def _seeded(make: Callable[..., Generator], **settings: int) -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(**settings).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def layered() -> Generator:
    return _seeded(_Layered)


@pytest.fixture(scope="session")
def conditional() -> Generator:
    """Its mapping reads the class."""
    return _seeded(_Layered, c_dim=3)


@pytest.fixture(scope="session")
def classes() -> Generator:
    """Its synthesis reads the class; z is bounded, and the last latent layer carries the place."""
    return _seeded(_Classes)


@pytest.fixture(scope="session")
def toy_artifact(toy: Generator, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The toy, exported and verified up to batch 8. Read only."""
    return _export(toy, "auto", tmp_path_factory)


@pytest.fixture(scope="session")
def dcgan_artifact(small_dcgan: Generator, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The small DCGAN in the form whose layers all have bf16 kernels, verified up to batch 8. Read only."""
    return _export(small_dcgan, "subpixel", tmp_path_factory)


@pytest.fixture(scope="session")
def layered_artifact(layered: Generator, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The one with a mapping network, verified up to batch 8. Read only."""
    return _export(layered, "auto", tmp_path_factory)


@pytest.fixture(scope="session")
def conditional_artifact(conditional: Generator, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The one whose mapping reads the class, verified up to batch 8. Read only."""
    return _export(conditional, "auto", tmp_path_factory)


@pytest.fixture(scope="session")
def classes_artifact(classes: Generator, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The one whose synthesis reads the class, verified up to batch 8. Read only."""
    return _export(classes, "auto", tmp_path_factory)


def _export(generator: Generator, lowering: str, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    recipe = Recipe(
        generator=generator.provenance.name, graph=Graph(lowering=lowering), batch=Batch(opt=4, max=8)
    )
    return export_generator(generator, tmp_path_factory.mktemp("artifacts") / "artifact", recipe)


@pytest.fixture(scope="session")
def python_without() -> Callable[..., str]:
    """Run code in a Python in which some packages are not installed, and return what it prints.

    `python_without(["openvino"], code, *arguments)`; the code finds the arguments in `sys.argv[1:]`.
    """

    def run(packages: Sequence[str], code: str, *arguments: object) -> str:
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "error",
                "-c",
                _BLOCKER.format(packages=list(packages)) + code,
                *map(str, arguments),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


_BLOCKER = """
import sys

class _Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, _Blocker())
"""
