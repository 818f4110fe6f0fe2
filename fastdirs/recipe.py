"""What an export is asked to make: frozen dataclasses read from TOML, where an unknown key is an error."""

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from fastdirs.errors import RecipeError
from fastdirs.registry import unknown_name

TARGETS = ("onnx", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, kw_only=True)
class Graph:
    """How the graph is written.

    Attributes:
        lowering: A form ("plain", "folded", "subpixel"), or "auto" for the one that is fastest here.
        opset: ONNX operator set; 18 is what every runtime knows. A bf16 graph is written in 22, the first
            that has it.
        precisions: Graphs to write. "f32" is always there, and serves runtimes that lower the precision by
            themselves; "f16", "bf16" and "int8" are for those that compute in what the graph says.
    """

    lowering: str = "auto"
    opset: int = 18
    precisions: tuple[str, ...] = ("f32",)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Engines that are compiled ahead of time.

    Attributes:
        to: "onnx" for graphs alone, "tensorrt" or "tensorrt-rtx" for engines of them as well.
        compute_capability: GPUs to build for, such as "8.9"; empty means the GPU of this machine, or where
            there is none every one that the library builds for without one.
        optimization_level: How long the builder searches, 0 (least) to 5.
        workspace_mib: Memory that the builder may use on the GPU; None sets no limit.

    Raises:
        RecipeError: An unknown target (in the words of an UnknownNameError), GPUs without a target or that
            cannot be, or a level out of range.
    """

    to: str = "onnx"
    compute_capability: tuple[str, ...] = ()
    optimization_level: int = 3
    workspace_mib: int | None = None

    def __post_init__(self) -> None:
        if self.to not in TARGETS:
            raise RecipeError(f"[engine]: {unknown_name('target', self.to, TARGETS)}")
        if self.to == "onnx" and self.compute_capability:
            raise RecipeError(
                f"[engine]: compute_capability is {', '.join(self.compute_capability)}, but no engine is "
                'built without a GPU library. Say which: to = "tensorrt-rtx" (--to tensorrt-rtx).'
            )
        for capability in self.compute_capability:
            if not re.fullmatch(r"\d+\.\d", capability):
                raise RecipeError(f"[engine]: {capability!r} is no compute capability. Expected such as 8.9.")
        if not 0 <= self.optimization_level <= 5:
            raise RecipeError(f"[engine]: optimization_level is {self.optimization_level}. Expected 0 to 5.")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Batch sizes: verified at 1, 2 and `max`; `opt` is what speed is measured at.

    Attributes:
        opt: Usual batch size.
        max: Largest batch size that is verified, and so accepted later.
    """

    opt: int = 64
    max: int = 128


def usual_batch(img_resolution: int) -> Batch:
    """Batch sizes where none are asked for: half a million pixels, but 2 to 64 images; at most twice that.

    64 and 128 up to 64 pixels, 8 and 16 at 256, 2 and 4 at 1024: so the images of a batch take less than
    64 MiB, and what a large network computes on the way to them fits into memory.

    Args:
        img_resolution: Height and width of the images.
    """
    opt = min(64, max(2, 2**19 // img_resolution**2))
    return Batch(opt=opt, max=2 * opt)


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The error against torch fp32 that is accepted, in grey levels (of 255).

    Attributes:
        mean: Largest mean absolute error.
        max: Largest absolute error of any value.
        psnr: Smallest peak signal-to-noise ratio, in dB.
    """

    mean: float
    max: float
    psnr: float


# fp32 runtimes differ by rounding alone. bf16 keeps 8 bits, so single pixels on sharp edges move by several
# levels.
DEFAULT_ACCEPT = {
    "f32": Tolerance(mean=0.01, max=0.5, psnr=70.0),
    "bf16": Tolerance(mean=0.5, max=24.0, psnr=42.0),
    # f16 keeps 11 bits.
    "f16": Tolerance(mean=0.1, max=8.0, psnr=52.0),
    # 8 bits for weights and activations show: nobody gets them who did not ask.
    "int8": Tolerance(mean=3.0, max=96.0, psnr=30.0),
}


def usual_accept(precisions: Collection[str] = ("f32",)) -> dict[str, Tolerance]:
    """Tolerances where none are stated: of fp32, of bf16 (which runtimes make of fp32 graphs), of asked ones.

    Args:
        precisions: Graphs that are asked for.

    Raises:
        UnknownNameError: No such precision.
    """
    for precision in precisions:
        if precision not in DEFAULT_ACCEPT:
            raise unknown_name("precision", precision, DEFAULT_ACCEPT)
    return {name: DEFAULT_ACCEPT[name] for name in DEFAULT_ACCEPT if name in ("f32", "bf16", *precisions)}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One deployment.

    Attributes:
        generator: Zoo name, family without weights, or a file (relative to the recipe).
        weights_sha256: Identity that the generator must have; None accepts any.
        graph: How the graph is written.
        batch: Batch sizes.
        engine: Engines that are compiled ahead of time.
        accept: Tolerance for each precision that may be used.
        required: Precisions that must pass, or the export fails; others in `accept` are used only if they
            pass.

    Raises:
        RecipeError: A batch size or a requirement that cannot be, or a precision that does not exist (in the
            words of an UnknownNameError).
    """

    generator: str
    weights_sha256: str | None = None
    graph: Graph = field(default_factory=Graph)
    batch: Batch = field(default_factory=Batch)
    engine: Engine = field(default_factory=Engine)
    accept: Mapping[str, Tolerance] = field(default_factory=usual_accept)
    required: tuple[str, ...] = ("f32",)

    def __post_init__(self) -> None:
        if not 1 <= self.batch.opt <= self.batch.max:
            raise RecipeError(
                f"batch.opt is {self.batch.opt}. Expected 1 to batch.max, which is {self.batch.max}."
            )
        for precision in self.graph.precisions:
            # A float32 graph that is only ever run in bf16 needs no tolerance of its own.
            if precision not in (*self.accept, "f32"):
                raise RecipeError(
                    f"[graph] precisions names {precision!r}, but there is no [accept.{precision}]: "
                    "say which error is accepted."
                )
        for precision in self.accept:
            if precision not in DEFAULT_ACCEPT:
                raise RecipeError(
                    f"[accept.{precision}]: {unknown_name('precision', precision, DEFAULT_ACCEPT)}"
                )
        for precision in self.required:
            if precision not in self.accept:
                raise RecipeError(
                    f"required names {precision!r}, but there is no [accept.{precision}] to require."
                )


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: Missing, not TOML, an unknown key (the nearest is named), a missing one, or a value of
            the wrong type.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as a recipe: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}.") from error
    accept = content.pop("accept", None)
    required = content.pop("required", None)
    values = _checked(Recipe, content, str(path), {"accept", "required"})
    if accept is not None:
        if not isinstance(accept, dict):
            raise RecipeError(f"{path}: accept is {accept!r}. Expected tables such as [accept.f32].")
        values["accept"] = {
            precision: Tolerance(**_checked(Tolerance, table, f"{path} [accept.{precision}]"))
            for precision, table in accept.items()
        }
    if required is not None:
        if not isinstance(required, list) or not all(isinstance(item, str) for item in required):
            raise RecipeError(f"{path}: required is {required!r}. Expected a list such as ['f32'].")
        values["required"] = tuple(required)
    try:
        for name, kind in (("graph", Graph), ("batch", Batch), ("engine", Engine)):
            if name in values:
                values[name] = kind(**_checked(kind, values[name], f"[{name}]"))
        return Recipe(**values)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


_TYPES: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (int, float),
    str | None: (str,),
    int | None: (int,),
    tuple[str, ...]: (list,),
    Graph: (dict,),
    Batch: (dict,),
    Engine: (dict,),
}


def _checked(kind: type[Any], table: Any, where: str, elsewhere: Collection[str] = ()) -> dict[str, Any]:
    """A table's values, if its keys and their types are those of a dataclass."""
    if not isinstance(table, dict):
        raise RecipeError(f"{where} is {table!r}. Expected a table of keys and values.")
    known = {f.name: f for f in fields(kind) if f.name not in elsewhere}
    for key, value in table.items():
        if key not in known:
            raise RecipeError(f"{where}: {unknown_name('key', key, known)}")
        wanted = _TYPES[known[key].type]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise RecipeError(f"{where}: {key} is {value!r}. Expected {wanted[-1].__name__}.")
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise RecipeError(f"{where}: {key} is {value!r}. Expected a list of strings.")
    for name, each in known.items():
        if name not in table and each.default is MISSING and each.default_factory is MISSING:
            raise RecipeError(f"{where}: {name} is missing.")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
