"""What plain sampling renders: seeds, or z or latents of a file, with their classes."""

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdirs.errors import ContractError, SelectionError, ShapeError
from fastdirs.generators import Generator
from fastdirs.runtime import open_runtime
from fastdirs.samples import Sample, sample_of_file, sample_of_seeds

FIXTURES = Path(os.environ.get("FASTDIRS_FIXTURES", Path(__file__).parents[2] / "shared" / "fixtures"))


def _inputs(generator: Generator, sample: Sample) -> list[np.ndarray]:
    with open_runtime(generator) as runtime:
        return sample.inputs(runtime, 0, len(sample))


def test_seeds(toy: Generator) -> None:
    sample = sample_of_seeds(toy.identity(), [3, 17, 3, 100_000], psi=0.5)
    assert sample.names == ["seed0003", "seed0017", "seed100000"]
    assert sample.described == {"seeds": [3, 17, 100_000], "psi": 0.5, "cutoff": None, "classes": None}
    (latents,) = _inputs(toy, sample)
    wanted = toy.mapping(toy.sample((3, 17, 100_000)), psi=0.5).numpy()
    np.testing.assert_allclose(latents, wanted, atol=1e-6)
    with open_runtime(toy) as runtime:
        np.testing.assert_array_equal(sample.inputs(runtime, 1, 2)[0], latents[1:2])


@pytest.mark.parametrize(
    ("c", "listed"),
    [(2, [2] * 5), ([0, 3], [0, 3, 0, 3, 0]), (range(9), None), (np.array([1, 1, 2]), [1, 1, 2, 1, 1])],
)
def test_classes_are_taken_in_turn(classes: Generator, c: Any, listed: list[int] | None) -> None:
    if listed is None:
        with pytest.raises(SelectionError, match=r"no class 4\. Classes run from 0 to 3"):
            sample_of_seeds(classes.identity(), range(5), c=c)
        return
    sample = sample_of_seeds(classes.identity(), range(5), c=c)
    assert sample.described["classes"] == listed
    assert _inputs(classes, sample)[1].argmax(1).tolist() == listed


def test_random_classes_are_those_of_the_seeds(classes: Generator) -> None:
    seeds = (7, 5, 99)
    sample = sample_of_seeds(classes.identity(), seeds, c="random")
    drawn = classes.sample_classes(seeds)
    assert drawn is not None
    assert sample.described["classes"] == drawn.tolist()


def test_classes_reach_the_mapping(conditional: Generator) -> None:
    sample = sample_of_seeds(conditional.identity(), [4, 5], psi=0.5, cutoff=2, c=[2, 0])
    (latents,) = _inputs(conditional, sample)
    wanted = conditional.mapping(conditional.sample([4, 5]), torch.tensor([2, 0]), 0.5, 2).numpy()
    np.testing.assert_allclose(latents, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("toy", {"seeds": []}, SelectionError, "There are no seeds"),
        ("toy", {"seeds": [-1]}, SelectionError, "Seed -1 is out of range"),
        ("toy", {"seeds": [1.5]}, SelectionError, r"\[1.5\] are no seeds"),
        ("toy", {"seeds": [0], "c": 0}, ContractError, "toy takes no class"),
        ("toy", {"seeds": [0], "c": "random"}, ContractError, "toy takes no class"),
        ("classes", {"seeds": [0]}, ContractError, "classes needs a class"),
        ("classes", {"seeds": [0], "c": []}, SelectionError, "There are no classes"),
        ("classes", {"seeds": [0], "c": [0.5]}, SelectionError, r"\[0.5\] are no classes"),
        ("classes", {"seeds": [0], "c": -1}, SelectionError, "no class -1"),
        ("conditional", {"seeds": [0]}, ContractError, "layered needs a class"),
    ],
)
def test_what_cannot_be(
    name: str, settings: dict[str, Any], error: type[Exception], message: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(error, match=message):
        sample_of_seeds(request.getfixturevalue(name).identity(), **settings)


def _file(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "given.npz", **arrays)
    return folder / "given.npz"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_z_of_a_file(layered: Generator, tmp_path: Path, dtype: type) -> None:
    z = layered.sample(range(3)).numpy().astype(dtype)
    sample = sample_of_file(layered.identity(), _file(tmp_path, z=z), psi=0.6, cutoff=1)
    assert sample.names == ["image0000", "image0001", "image0002"]
    assert sample.described["given"]["file"] == "given.npz"
    assert sample.described["given"]["holds"] == ["z"]
    assert (sample.described["psi"], sample.described["cutoff"]) == (0.6, 1)
    wanted = layered.mapping(torch.from_numpy(z.astype(np.float32)), psi=0.6, cutoff=1).numpy()
    np.testing.assert_allclose(_inputs(layered, sample)[0], wanted, atol=1e-6)


def test_latents_of_a_file(classes: Generator, tmp_path: Path) -> None:
    latents = classes.mapping(classes.sample(range(3))).numpy()
    mixture = np.random.RandomState(0).rand(3, 4)
    for c, taken in ((None, [1, 1, 1]), (np.array([0, 2, 3]), None), (mixture, None)):
        given = {"latents": latents} if c is None else {"latents": latents, "c": c}
        sample = sample_of_file(classes.identity(), _file(tmp_path, **given), c=1 if taken else None)
        assert sample.described["psi"] is None
        found, weights = _inputs(classes, sample)
        np.testing.assert_array_equal(found, latents)
        if c is None:
            assert weights.argmax(1).tolist() == sample.described["classes"] == taken
        elif c.ndim == 1:
            assert weights.argmax(1).tolist() == sample.described["classes"] == c.tolist()
        else:
            np.testing.assert_allclose(weights, mixture, rtol=1e-6)
            assert sample.described["classes"] is None


def test_latents_hold_the_class_of_a_mapping(conditional: Generator, tmp_path: Path) -> None:
    latents = conditional.mapping(conditional.sample(range(2)), 1).numpy()
    identity = conditional.identity()
    assert sample_of_file(identity, _file(tmp_path, latents=latents)).c is None
    with pytest.raises(ContractError, match="reads the class on the way to its latents"):
        sample_of_file(identity, tmp_path / "given.npz", c=1)
    with pytest.raises(ContractError, match="reads the class on the way to its latents"):
        sample_of_file(identity, _file(tmp_path, latents=latents, c=np.array([0, 1])))
    z = conditional.sample(range(2)).numpy()
    sample = sample_of_file(identity, _file(tmp_path, z=z, c=np.array([1, 1])))
    np.testing.assert_allclose(_inputs(conditional, sample)[0], latents, atol=1e-6)


LATENTS = np.zeros((2, 4, 6), dtype=np.float32)
Z = np.zeros((2, 6), dtype=np.float32)


@pytest.mark.parametrize(
    ("arrays", "settings", "error", "message"),
    [
        ({}, {}, SelectionError, "holds nothing. Expected either latents"),
        ({"w": LATENTS}, {}, SelectionError, "holds w. Expected either latents"),
        ({"latents": LATENTS, "z": Z}, {}, SelectionError, "holds latents, z. Expected either"),
        (
            {"latents": LATENTS[:, :3]},
            {"c": 0},
            ShapeError,
            r"latents in .* expected \[images, layers=4, dim=6\]",
        ),
        ({"z": LATENTS}, {"c": 0}, ShapeError, r"z in .*expected \[images, z_dim=6\]"),
        ({"z": Z[:0]}, {"c": 0}, SelectionError, "holds no z"),
        ({"z": Z.astype(int)}, {"c": 0}, SelectionError, "z in .* has dtype int64. Expected floating-point"),
        ({"z": Z.astype(complex)}, {"c": 0}, SelectionError, "has dtype complex128"),
        ({"z": np.full((1, 6), "x")}, {"c": 0}, SelectionError, "has dtype <U1"),
        ({"z": np.full((1, 6), np.nan)}, {"c": 0}, SelectionError, "NaN or infinite"),
        ({"z": np.full((1, 6), 1e300)}, {"c": 0}, SelectionError, "NaN or infinite"),
        ({"latents": LATENTS}, {"c": 0, "psi": 0.7}, SelectionError, "psi and cutoff mean nothing"),
        ({"latents": LATENTS}, {"c": 0, "cutoff": 1}, SelectionError, "psi and cutoff mean nothing"),
        ({"z": Z, "c": np.array([0, 1])}, {"c": 0}, SelectionError, "holds the classes itself"),
        ({"z": Z, "c": np.array([0, 4])}, {}, SelectionError, "no class 4"),
        ({"z": Z, "c": np.array([0, 1, 2])}, {}, ShapeError, r"c has shape \[3\]"),
        ({"z": Z, "c": np.array([0.0, 1.0])}, {}, SelectionError, "c in .* has dtype float64"),
        ({"z": Z, "c": np.zeros((2, 3))}, {}, ShapeError, "c_dim=4"),
        ({"z": Z, "c": np.full((2, 4), np.inf)}, {}, SelectionError, "c in .* NaN or infinite"),
        ({"z": Z}, {}, ContractError, "classes needs a class"),
        ({"z": Z}, {"c": "random"}, SelectionError, "Random classes are drawn by seed"),
    ],
)
def test_files_that_do_not_fit(
    classes: Generator, tmp_path: Path, arrays: dict[str, Any], settings: dict[str, Any],
    error: type[Exception], message: str,
) -> None:  # fmt: skip
    with pytest.raises(error, match=message):
        sample_of_file(classes.identity(), _file(tmp_path, **arrays), **settings)


def test_classes_that_nothing_reads(toy: Generator, tmp_path: Path) -> None:
    path = _file(tmp_path, z=toy.sample([0, 1]).numpy(), c=np.array([0, 1]))
    with pytest.raises(ContractError, match=r"toy takes no class\. Leave c out of"):
        sample_of_file(toy.identity(), path)


class _Acts:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("acted",)


def test_nothing_in_a_file_is_run(toy: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("evil.npz", z=np.array([_Acts()], dtype=object))
    with pytest.raises(SelectionError, match="cannot be read as an npz file of plain arrays: Object arrays"):
        sample_of_file(toy.identity(), Path("evil.npz"))
    assert not Path("acted").exists()
    if not FIXTURES.exists():
        pytest.skip("the fixtures are not on this machine")
    with pytest.raises(SelectionError):
        sample_of_file(toy.identity(), FIXTURES / "bad" / "evil_components.npz")


def _zip(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("z.npy", data)
    return path


def test_broken_files(toy: Generator, tmp_path: Path) -> None:
    identity = toy.identity()
    with pytest.raises(SelectionError, match="does not exist"):
        sample_of_file(identity, tmp_path / "none.npz")
    buffer = io.BytesIO()
    np.save(buffer, toy.sample(range(2)).numpy())
    plain = buffer.getvalue()
    (tmp_path / "plain.npz").write_bytes(plain)
    whole = _zip(tmp_path / "whole.npz", plain).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    # More numbers than memory holds, in a header that is followed by few.
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000, 16), }"
    _zip(tmp_path / "vast.npz", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + plain)
    (tmp_path / "folder.npz").mkdir()
    _zip(tmp_path / "empty.npz", b"")
    for name in ("plain", "cut", "vast", "folder", "empty"):
        with pytest.raises(SelectionError, match=r"cannot be read as an npz file.*numpy\.savez"):
            sample_of_file(identity, tmp_path / f"{name}.npz")


def test_any_damaged_byte_is_an_error_or_harmless(toy: Generator, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, toy.sample(range(2)).numpy())
    random = np.random.RandomState(0)
    outcomes = set()
    for _ in range(500):
        data = bytearray(buffer.getvalue())
        data[random.randint(130)] = random.randint(256)
        try:
            sample_of_file(toy.identity(), _zip(tmp_path / "damaged.npz", bytes(data)))
            outcomes.add("read")
        except (SelectionError, ShapeError):
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
