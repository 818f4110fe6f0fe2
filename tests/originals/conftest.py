"""Checkpoints of the original implementations, and what the arrays that these made of them stand for."""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdirs.generators import Generator
from fastdirs.latents import class_weights
from fastdirs.loading import load_generator

ROOT = Path(__file__).parents[2]
FIXTURES = Path(os.environ.get("FASTDIRS_FIXTURES", ROOT.parent / "shared" / "fixtures"))
_NEEDED = f"needs the originals' checkpoints and images in {FIXTURES} (or where FASTDIRS_FIXTURES says)"


@dataclass(frozen=True)
class Original:
    """A folder: a checkpoint as an original wrote it, inputs, and what the original made of them."""

    folder: Path

    def __str__(self) -> str:
        return self.folder.name

    @cached_property
    def meta(self) -> Mapping[str, object]:
        """What the folder says of itself, `checkpoint` (the files) above all."""
        return json.loads((self.folder / "meta.json").read_text())

    @cached_property
    def inputs(self) -> Mapping[str, Tensor]:
        """What the original was given, by name; texts are left out."""
        return _read(self.folder / "inputs.npz")

    @cached_property
    def expected(self) -> Mapping[str, Tensor]:
        """What the original made of it, by name."""
        return _read(self.folder / "expected.npz")

    @property
    def names(self) -> list[str]:
        """Names of the expected arrays."""
        with np.load(self.folder / "expected.npz", allow_pickle=False) as arrays:
            return list(arrays.files)

    @property
    def weights(self) -> Path:
        """The file that holds the tensors."""
        return self.folder / next(f for f in self.meta["checkpoint"] if not f.endswith(".json"))

    @property
    def source(self) -> Path:
        """What a user would name: the folder if settings lie beside the tensors, else the file."""
        return self.folder if any(f.endswith(".json") for f in self.meta["checkpoint"]) else self.weights

    @property
    def batch(self) -> int:
        """How many images the original made at a time."""
        return len(self.inputs["z"])

    def tolerance(self, kind: str) -> float:
        """Largest absolute difference of "images" or "latents" that is accepted."""
        return self.meta.get("tolerance", {}).get(kind, {"images": 1e-4, "latents": 1e-5}[kind])

    def load(self, **options: str) -> Generator:
        """The generator; where the original was given the mean of w, it replaces the file's."""
        generator = load_generator(self.source, options=options)
        if "truncation_latent" in self.inputs:
            mean = self.inputs["truncation_latent"].expand_as(generator.latent_mean)
            generator.latent_mean = mean.clone()
        return generator

    def z(self, name: str = "z") -> Tensor:
        """`[batch, z_dim]`."""
        return self.inputs[name]

    def classes(self, generator: Generator, name: str = "y") -> Tensor | None:
        """Weights `[batch, c_dim]`; None if unconditional."""
        given = self.inputs.get("c", self.inputs.get(name))
        return None if given is None else class_weights(given, len(given), generator.c_dim)


def _read(path: Path) -> Mapping[str, Tensor]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype.kind != "U"}


@dataclass(frozen=True)
class Engine:
    """A generator in torch or exported: z to latents and latents to images, `batch` at a time."""

    generator: Generator
    mapping: Callable[[Tensor, Tensor | None, float, int | None], Tensor]
    synthesis: Callable[[Tensor, Tensor | None], Tensor]
    batch: int

    def latents(
        self, z: Tensor, c: Tensor | None = None, psi: float = 1.0, cutoff: int | None = None
    ) -> Tensor:
        """z `[n, z_dim]` -> `[n, layers, dim]`."""
        return torch.cat([self.mapping(*rows, psi, cutoff) for rows in self._rows(z, c)])

    def images(self, latents: Tensor, c: Tensor | None = None) -> Tensor:
        """`[n, layers, dim]` -> `[n, channels, height, width]`."""
        return torch.cat([self.synthesis(*rows) for rows in self._rows(latents, c)])

    def _rows(self, first: Tensor, c: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        starts = range(0, len(first), self.batch)
        classes = [None if c is None else c[i : i + self.batch] for i in starts]
        return list(zip(first.split(self.batch), classes, strict=True))


def in_torch(generator: Generator, batch: int) -> Engine:
    """The generator as it is."""
    return Engine(generator, generator.mapping, generator.synthesis, batch)


# What the arrays are ------------------------------------------------------------------------------------

Rule = Callable[[Engine, Original, "re.Match[str]"], Tensor]


def _decimal(text: str | None) -> float:
    """ "1", "07" and "0.413" as numbers; nothing is 1."""
    if text is None:
        return 1.0
    return float(text if "." in text or len(text) == 1 else f"{text[0]}.{text[1:]}")


def _cutoff(original: Original) -> int:
    return int(original.inputs["cutoff" if "cutoff" in original.inputs else "trunc_layers"])


def _latents(engine: Engine, original: Original, match: "re.Match[str]") -> Tensor:
    """`psi1`, `psi07`, and `_cut` for truncation of the first layers alone."""
    psi, cut = _decimal(match["psi"]), _cutoff(original) if match["cut"] else None
    return engine.latents(original.z(), original.classes(engine.generator), psi, cut)


def _plain(engine: Engine, original: Original, match: "re.Match[str]") -> Tensor:
    psi, cut = _decimal(match["psi"]), _cutoff(original) if match["cut"] else None
    c = original.classes(engine.generator)
    return engine.images(engine.latents(original.z(), c, psi, cut), c)


def _mix(engine: Engine, original: Original, match: "re.Match[str]") -> Tensor:
    """Latents that differ from layer to layer."""
    return engine.images(original.inputs[match["given"]])


def _truncated(engine: Engine, original: Original, match: "re.Match[str]") -> Tensor:
    c = original.classes(engine.generator)
    return engine.images(engine.latents(original.z(), c, _decimal(match["psi"])), c)


def _shifted(engine: Engine, original: Original, match: "re.Match[str]") -> Tensor:
    """z is truncated, the shift is not."""
    c = original.classes(engine.generator)
    shift = original.inputs["shift"]
    # What is no copy of z among the latents is the same for every z, so it takes no part in the shift.
    shift = engine.latents(shift, c) - engine.latents(torch.zeros_like(shift), c)
    return engine.images(engine.latents(original.z(), c, _decimal(match["psi"])) + shift, c)


def _class_mixture(engine: Engine, original: Original, match: "re.Match[str]") -> Tensor:
    """Embeddings are linear in the weights of the classes, so mixing either is the same."""
    first, second = original.classes(engine.generator), original.classes(engine.generator, "y2")
    c = 0.7 * first + 0.3 * second
    # The original whose statistics depend on the truncation made this at 0.7, the other without one.
    psi = 0.7 if "truncation" in original.inputs else 1.0
    return engine.images(engine.latents(original.z(), c, psi), c)


def _two_styles(engine: Engine, original: Original, match: "re.Match[str]") -> Tensor:
    index = int(original.inputs["inject_index"])
    first, second = engine.latents(original.z()), engine.latents(original.z("z2"))
    return engine.images(torch.cat([first[:, :index], second[:, index:]], dim=1))


def _factor(engine: Engine, original: Original, match: "re.Match[str]") -> Tensor:
    """w moved along an eigenvector, before the truncation of 0.7; then the same unmoved and moved back."""
    vectors = torch.load(original.folder / "factor.pt", map_location="cpu", weights_only=True)["eigvec"]
    latents = engine.latents(original.z(), psi=0.7)
    moved = [
        latents + 0.7 * sign * degree * vectors[:, index]
        for index in original.inputs["factor_index"]
        for degree in original.inputs["factor_degree"]
        for sign in (1, 0, -1)
    ]
    return engine.images(torch.cat(moved))


def _sefa(engine: Engine, original: Original, match: "re.Match[str]") -> Tensor:
    """Codes along the original's own directions, whose order and sign another solver would not repeat."""
    expected, tag = original.expected, match["tag"]
    codes = expected["sefa_codes"].reshape(-1, engine.generator.num_layers, engine.generator.dim)
    layers = expected[f"sefa_{tag}_layers"].long()
    count = expected[f"img_sefa_{tag}"].shape[1]
    moved = []
    for code in codes:
        for direction in expected[f"sefa_{tag}_boundaries"][:count].float():
            for distance in expected[f"sefa_{tag}_distances"]:
                moved.append(code.clone())
                moved[-1][layers] += direction * float(distance)
    return engine.images(torch.stack(moved))


RULES: dict[str, Rule] = {
    r"(w|ws|wp)(_psi(?P<psi>\d+))?(?P<cut>_cut)?": _latents,
    r"img(_psi(?P<psi>\d+))?(?P<cut>_cut)?(_nonoise|_user_transform)?": _plain,
    r"img_(?P<given>w[sp]_mix)": _mix,
    r"img_trunc_?(?P<psi>[\d.]+)": _truncated,
    r"img_shift(_trunc(?P<psi>[\d.]+))?": _shifted,
    r"img_class_interp": _class_mixture,
    r"img_two_styles": _two_styles,
    r"img_factor": _factor,
    r"img_sefa_(?P<tag>\w+)": _sefa,
}

# What no rule makes, and why that is no gap.
PASSED_OVER = {
    r"z_normalised": "inside the first layer of the family",
    r"embedding": "inside the synthesis; the images depend on it",
    r"sefa_codes|sefa_\w+_(layers|boundaries|distances)": "given to img_sefa_*",
    r"sefa_\w+_(eigenvalues|top8_\w+)": "compared by test_sefa.py",
    r"factor_(singular_values|abscos_top10|eigvec_top10_signfixed)": "compared by test_sefa.py",
}  # fmt: skip

INPUTS = {
    "z", "z2", "sefa_z", "y", "y2", "c", "class_idx", "shift", "psi", "cutoff", "trunc_psi", "trunc_layers",
    "num_layers", "truncation", "truncation_latent", "inject_index", "ws_mix", "wp_mix", "factor_index",
    "factor_degree", "user_translate", "user_rotate_deg",
}  # fmt: skip


@cache
def loaded(original: Original, options: tuple[tuple[str, str], ...] = ()) -> Generator:
    """An original's generator, once for all tests. Not to be changed."""
    return original.load(**dict(options))


def options_of(original: Original, array: str) -> dict[str, str]:
    """Options of the family that an array was made with."""
    if array.endswith("_nonoise"):
        return {"noise": "none"}
    if array.endswith("_user_transform"):
        x, y = original.inputs["user_translate"].tolist()
        return {"translate": f"{x:g},{y:g}", "rotate": f"{float(original.inputs['user_rotate_deg']):g}"}
    return {}


def passed_over(array: str) -> bool:
    """Whether an array is deliberately left out."""
    return any(re.fullmatch(pattern, array) for pattern in PASSED_OVER)


def made(engine: Engine, original: Original, array: str) -> Tensor:
    """What this engine makes where the original made `array`."""
    for pattern, rule in RULES.items():
        if match := re.fullmatch(pattern, array):
            with torch.inference_mode():
                return rule(engine, original, match)
    pytest.fail(f"{original.folder.name} holds {array!r}: write a rule for it, or say why it is passed over")


def require_equal(engine: Engine, original: Original, array: str) -> None:
    """Fail unless what the engine makes is what the original made."""
    found, expected = made(engine, original, array), original.expected[array]
    if array.startswith("img"):
        # Several axes, such as sample, direction and distance, count as one batch.
        kind, expected = "images", expected.reshape(-1, *expected.shape[-3:])
    else:
        # A w without layers is every layer's.
        kind, expected = "latents", expected[:, None].expand_as(found) if expected.ndim == 2 else expected
    torch.testing.assert_close(
        found,
        expected,
        rtol=0,
        atol=original.tolerance(kind),
        msg=lambda text: f"{original}, {array}: {text}",
    )


# Parameters ---------------------------------------------------------------------------------------------


@cache
def originals() -> tuple[Original, ...]:
    """Every folder that holds a generator."""
    folders = [path.parent for path in sorted(FIXTURES.glob("*/meta.json"))]
    return tuple(o for o in map(Original, folders) if "checkpoint" in o.meta)


def _parameters(names: str, values: list[tuple[object, ...]]) -> pytest.MarkDecorator:
    """A test for each row of values; one that is skipped, and says what it needs, where there are none."""
    absent = pytest.param(*[None] * len(names.split()), marks=pytest.mark.skip(reason=_NEEDED), id="absent")
    found = [pytest.param(*v, id="-".join(map(str, v))) for v in values]
    return pytest.mark.parametrize(names.replace(" ", ","), found or [absent])


def every_original(having: Callable[[Original], bool] = lambda original: True) -> pytest.MarkDecorator:
    """A test for each folder, or for those that have what it looks at."""
    return _parameters("original", [(o,) for o in originals() if having(o)])


def every_array() -> pytest.MarkDecorator:
    """A test for each array that an original made."""
    return _parameters("original array", [(o, a) for o in originals() for a in o.names if not passed_over(a)])
