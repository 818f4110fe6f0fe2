"""What is sampled: seeds, or z or latents of an npz file, with a class for each image."""

import operator
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastdirs.backends import Array, Kept
from fastdirs.errors import ContractError, SelectionError, check_shape
from fastdirs.latents import check_class, class_weights, sample_classes, sample_z
from fastdirs.manifest import Json, sha256_file
from fastdirs.runtime import Runtime

Chosen = int | Sequence[int] | Literal["random"] | None
"""One class for all images, several that they take in turn, one by seed ("random"), or None."""


# What a damaged file makes zipfile and numpy raise; nothing else is done with it while it is read.
_UNREADABLE = (
    OSError, ValueError, TypeError, SyntaxError, EOFError, MemoryError, RuntimeError, OverflowError,
    zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Images to render.

    Attributes:
        names: A name for each image.
        described: What a manifest says of them.
        psi: Truncation, 1 = off.
        cutoff: How many of the first layers to truncate; None = all.
        seeds: One for each image, if they come from seeds.
        z: `[images, z_dim]`, float32, if z is given.
        latents: `[images, layers, dim]`, float32, if latents are given.
        c: Class index of each image `[images]`, int64, or weights of the classes `[images, c_dim]`, float32;
            None if nothing reads a class.
    """

    names: list[str]
    described: Json
    psi: float = 1.0
    cutoff: int | None = None
    seeds: tuple[int, ...] = ()
    z: Array | None = None
    latents: Array | None = None
    c: NDArray[np.generic] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def inputs(self, runtime: Runtime, first: int, last: int) -> list[Kept]:
        """What the synthesis takes for the images from `first` to before `last`.

        Returns:
            Latents `[images, layers, dim]`, and weights of the classes `[images, c_dim]` if it reads them.

        Raises:
            SelectionError: psi or cutoff out of range, or more images than was verified.
        """
        c = None if self.c is None else self.c[first:last]
        if self.latents is not None:
            return runtime.inputs(self.latents[first:last], c)
        facts = runtime.generator
        z = (
            sample_z(self.seeds[first:last], int(facts["z_dim"]), facts.get("z_bound")).numpy()
            if self.z is None
            else self.z[first:last]
        )
        return runtime.inputs(runtime.mapping(z, c, self.psi, self.cutoff), c)


def sample_of_seeds(
    identity: Json, seeds: Sequence[int], psi: float = 1.0, cutoff: int | None = None, c: Chosen = None
) -> Sample:
    """One image for each seed.

    Args:
        identity: Of the generator.
        seeds: Repeats are dropped.
        psi: Truncation, 1 = off.
        cutoff: How many of the first layers to truncate; None = all.
        c: Classes.

    Raises:
        SelectionError: No seed, or a seed or class out of range.
        ContractError: A class for an unconditional generator, or none for a conditional one.
    """
    chosen = tuple(dict.fromkeys(_whole(seeds, "seeds")))
    sample_z((min(chosen), max(chosen)), 1)
    classes = _classes(identity, c, len(chosen), chosen)
    described = {"seeds": list(chosen), "psi": psi, "cutoff": cutoff, "classes": _listed(classes)}
    names = [f"seed{seed:04d}" for seed in chosen]
    return Sample(names=names, described=described, psi=psi, cutoff=cutoff, seeds=chosen, c=classes)


def sample_of_file(
    identity: Json, path: Path, psi: float = 1.0, cutoff: int | None = None, c: Chosen = None
) -> Sample:
    """The images of an npz file with `latents` or `z`, and maybe `c`.

    Args:
        identity: Of the generator.
        path: The file; an array of objects, which could run code, is refused.
        psi: Truncation of z, 1 = off.
        cutoff: How many of the first layers to truncate; None = all.
        c: Classes, where the file holds none.

    Raises:
        SelectionError: The file cannot be read or holds something else; a truncation of latents; a class out
            of range or given twice.
        ShapeError: Arrays of another shape.
        ContractError: A class that nothing reads, or none where one is needed.
    """
    given = _read(path)
    named = [name for name in ("latents", "z") if name in given]
    if len(named) != 1 or set(given) - {*named, "c"}:
        raise SelectionError(
            f"{path} holds {', '.join(sorted(given)) or 'nothing'}. "
            "Expected either latents [images, layers, dim] or z [images, z_dim], and maybe c."
        )
    (what,) = named
    axes, sizes = (
        ("images z_dim", {"z_dim": int(identity["z_dim"])})
        if what == "z"
        else ("images layers dim", {"layers": int(identity["num_layers"]), "dim": int(identity["dim"])})
    )
    values = _floats(given[what], f"{what} in {path}")
    check_shape(values, axes, f"{what} in {path}", **sizes)
    if not len(values):
        raise SelectionError(f"{path} holds no {what}. Expected those of at least one image.")
    if what == "latents" and (psi != 1 or cutoff is not None):
        raise SelectionError("psi and cutoff mean nothing for given latents. Leave them out, or give z.")
    if "c" in given and c is not None:
        raise SelectionError(f"{path} holds the classes itself. Leave the class out.")
    if what == "latents" and identity.get("class_in") == "mapping":
        if c is not None or "c" in given:
            raise ContractError(
                f"{identity['name']} reads the class on the way to its latents. Leave it out, or give z."
            )
        classes = None
    elif "c" in given:
        classes = _given_classes(identity, given["c"], len(values), path)
    else:
        classes = _classes(identity, c, len(values), None)
    described = {
        "given": {"file": path.name, "sha256": sha256_file(path), "holds": sorted(given)},
        "psi": psi if what == "z" else None,
        "cutoff": cutoff,
        "classes": _listed(classes),
    }
    return Sample(
        names=[f"image{index:04d}" for index in range(len(values))], described=described, psi=psi,
        cutoff=cutoff, z=values if what == "z" else None, latents=values if what == "latents" else None,
        c=classes,
    )  # fmt: skip


def _whole(values: Iterable[Any], noun: str) -> list[int]:
    """Whole numbers of any library as plain ones, at least one."""
    try:
        whole = [operator.index(value) for value in values]
    except TypeError as error:
        raise SelectionError(f"{list(values)} are no {noun}. Expected whole numbers.") from error
    if not whole:
        raise SelectionError(f"There are no {noun}. Name at least one.")
    return whole


def _classes(
    identity: Json, c: Chosen, count: int, seeds: Sequence[int] | None
) -> NDArray[np.generic] | None:
    """An index for each image `[images]`, int64; None if unconditional."""
    if c is None or not identity.get("c_dim"):
        check_class(identity, None if c is None else 0)
        return None
    if isinstance(c, str):
        if seeds is None:
            raise SelectionError("Random classes are drawn by seed, and here are none. Name the classes.")
        return sample_classes(seeds, int(identity["c_dim"])).numpy()
    several = _whole(c if isinstance(c, Sequence | np.ndarray) else [c], "classes")
    for each in several:
        check_class(identity, each)
    return np.resize(np.array(several, dtype=np.int64), count)


def _listed(classes: NDArray[np.generic] | None) -> list[int] | None:
    """Classes for a manifest; mixtures of classes stay in their file."""
    return classes.tolist() if classes is not None and classes.ndim == 1 else None


def _given_classes(identity: Json, c: NDArray[np.generic], count: int, path: Path) -> NDArray[np.generic]:
    if not identity.get("c_dim"):
        raise ContractError(f"{identity['name']} takes no class. Leave c out of {path}.")
    if c.ndim == 2:
        classes: NDArray[np.generic] = _floats(c, f"c in {path}")
    elif c.dtype.kind in "iu":
        classes = c.astype(np.int64)
    else:
        raise SelectionError(
            f"c in {path} has dtype {c.dtype}. Expected whole numbers, or weights [images, c_dim]."
        )
    class_weights(classes, count, int(identity["c_dim"]))
    return classes


def _floats(values: NDArray[np.generic], what: str) -> Array:
    if values.dtype.kind != "f":
        raise SelectionError(f"{what} has dtype {values.dtype}. Expected floating-point numbers.")
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(floats).all():
        raise SelectionError(f"{what} has NaN or infinite values. Mend the file.")
    return floats


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    """The arrays of an npz file, without running anything in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for name in archive.namelist():
                with archive.open(name) as member:
                    found[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
            return found
    except FileNotFoundError as error:
        raise SelectionError(f"{path} does not exist. Check the path.") from error
    except _UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SelectionError(
            f"{path} cannot be read as an npz file of plain arrays: {reason}. Save it with numpy.savez."
        ) from error
