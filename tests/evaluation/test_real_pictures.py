import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdirs.errors import FastdirsError, SelectionError, ShapeError
from fastdirs.evaluation.real_pictures import load_real

MNIST = Path(os.environ.get("FASTDIRS_FIXTURES", "../shared/fixtures")).parent / "data" / "mnist.npz"


def save(path: Path, array: np.ndarray) -> Path:
    np.savez(path, x=array)
    return path


def whole(value: int, *shape: int) -> np.ndarray:
    return np.full(shape, value, dtype=np.uint8)


def test_an_npz_file_of_grey_pictures(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 32, 32), dtype=np.uint8)
    real = load_real(save(tmp_path / "real.npz", array), 5, 1, 32)
    assert real.shape == (5, 1, 32, 32)
    expected = torch.from_numpy(array).float() / 127.5 - 1
    # All five, in the order of a fixed permutation.
    order = [next(i for i in range(5) if torch.equal(expected[i], picture[0])) for picture in real]
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert torch.equal(real, load_real(tmp_path / "real.npz", 5, 1, 32))
    assert not torch.equal(real, load_real(tmp_path / "real.npz", 5, 1, 32, seed=1))


def test_each_comes_once_before_any_comes_again(tmp_path: Path) -> None:
    path = save(tmp_path / "real.npz", np.stack([whole(value, 8, 8) for value in range(4)]))
    values = ((load_real(path, 10, 1, 8)[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert sorted(values[:4]) == sorted(values[4:8]) == [0, 1, 2, 3]
    assert len(set(values[8:])) == 2


def test_28_pixels_are_put_into_32_with_a_border_of_zeros(tmp_path: Path) -> None:
    (picture,) = load_real(save(tmp_path / "real.npz", whole(255, 1, 28, 28)), 1, 1, 32)
    assert (picture[0, 2:30, 2:30] == 1).all()
    assert picture.sum() == 28 * 28 - (32 * 32 - 28 * 28)


@pytest.mark.skipif(not MNIST.is_file(), reason=f"no {MNIST}")
def test_mnist() -> None:
    real = load_real(MNIST, 64, 1, 32)
    assert real.shape == (64, 1, 32, 32)
    assert (real[:, 0, 0] == -1).all()
    # The published mean of the digits, 0.1307 of white, spread over 32 pixels.
    assert float((real + 1).mean() / 2) == pytest.approx(0.1307 * 28**2 / 32**2, abs=0.01)


def test_other_sizes_are_cropped_and_averaged(tmp_path: Path) -> None:
    array = whole(0, 1, 64, 96, 3)
    array[:, :, 16:80] = 200
    (picture,) = load_real(save(tmp_path / "real.npz", array), 1, 3, 16)
    assert torch.allclose(picture, torch.full((3, 16, 16), 200 / 127.5 - 1), atol=1e-5)


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    Image.fromarray(whole(10, 16, 16, 3)).save(tmp_path / "a.png")
    Image.fromarray(whole(20, 16, 16, 3)).quantize(4).save(tmp_path / "more" / "b.PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    values = ((load_real(tmp_path, 2, 3, 16)[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert sorted(values) == [10, 20]


def broken_picture(folder: Path) -> Path:
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    return folder


def grey_picture(folder: Path) -> Path:
    Image.fromarray(whole(10, 16, 16)).save(folder / "a.png")
    return folder


def text_file(folder: Path) -> Path:
    (folder / "real.npz").write_text("no archive")
    return folder / "real.npz"


def of_objects(folder: Path) -> Path:
    return save(folder / "real.npz", np.array([print], dtype=object))


def other_key(folder: Path) -> Path:
    np.savez(folder / "real.npz", images=whole(0, 1, 16, 16, 3))
    return folder / "real.npz"


def cut_short(folder: Path) -> Path:
    path = save(folder / "real.npz", pattern())
    path.write_bytes(path.read_bytes()[:-200])
    return path


def pattern() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda folder: folder / "none.npz", SelectionError, "does not exist"),
        (lambda folder: folder, SelectionError, "holds no pictures"),
        (broken_picture, SelectionError, "a.png cannot be read as a picture"),
        (grey_picture, ShapeError, "of mode L, but RGB"),
        (text_file, SelectionError, "cannot be read as an npz file"),
        (of_objects, SelectionError, "cannot be read as an npz file"),
        (cut_short, SelectionError, "cannot be read as an npz file"),
        (other_key, SelectionError, "no array 'x'"),
        (lambda f: save(f / "r.npz", whole(0, 4, 16, 16)), ShapeError, r"uint8 \[4, 16, 16\]"),
        (lambda f: save(f / "r.npz", pattern() / 255.0), ShapeError, r"float64 \[3, 16, 16, 3\]"),
        (lambda f: save(f / "r.npz", whole(0, 0, 16, 16, 3)), SelectionError, "holds no pictures"),
    ],
)
def test_bad_input(
    make: Callable[[Path], Path], kind: type[FastdirsError], message: str, tmp_path: Path
) -> None:
    path = make(tmp_path)
    with pytest.raises(kind, match=message):
        load_real(path, 2, 3, 16)
