import numpy as np
import pytest
import torch

from fastdirs.errors import ShapeError, UnknownNameError
from fastdirs.images import ENCODERS, MIME_TYPES, decode, encode, grid, strip, to_uint8


def picture(channels: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (6, 9, channels), dtype=np.uint8)


@pytest.mark.parametrize(
    ("value", "grey"),
    [(-1.0, 0), (0.0, 128), (1.0, 255), (-7.0, 0), (7.0, 255), (float("-inf"), 0), (float("inf"), 255),
     (2 / 255 - 1, 1), (2.99 / 255 - 1, 1), (3.01 / 255 - 1, 2)],
)  # fmt: skip
def test_values_are_rounded_and_clipped(value: float, grey: int) -> None:
    assert to_uint8(torch.full((1, 1, 1, 1), value)).item() == grey


def test_every_grey_level_survives() -> None:
    levels = np.arange(256)
    images = (levels / 127.5 - 1).astype(np.float32).reshape(1, 1, 16, 16)
    np.testing.assert_array_equal(to_uint8(images).ravel(), levels)


def test_channels_move_to_the_end() -> None:
    images = torch.rand(2, 3, 4, 5) * 2 - 1
    pixels = to_uint8(images)
    assert pixels.shape == (2, 4, 5, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags["C_CONTIGUOUS"]
    assert abs(pixels[1, 2, 3, 0] / 127.5 - 1 - images[1, 0, 2, 3].item()) <= 1 / 127.5


def test_numpy_and_torch_agree_and_the_input_is_left_alone() -> None:
    images = torch.randn(2, 3, 4, 4)
    before = images.clone()
    np.testing.assert_array_equal(to_uint8(images), to_uint8(images.numpy()))
    assert torch.equal(images, before)


def test_half_precision_is_converted_first() -> None:
    assert to_uint8(torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16)).item() == 128


def test_wrong_axes() -> None:
    with pytest.raises(ShapeError, match="images"):
        to_uint8(torch.zeros(3, 4, 4))


def test_strip_lays_steps_side_by_side() -> None:
    steps = np.stack([np.full((2, 3, 1), value, np.uint8) for value in (1, 2, 3)])
    row = strip(steps)
    assert row.shape == (2, 9, 1)
    assert row[0, :, 0].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_strip_keeps_each_picture_upright() -> None:
    steps = np.random.RandomState(0).randint(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(strip(steps)[:, 5:10], steps[1])


def test_grid_stacks_rows() -> None:
    rows = [picture(3, seed) for seed in range(2)]
    stacked = grid(rows)
    assert stacked.shape == (12, 9, 3)
    np.testing.assert_array_equal(stacked[6:], rows[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels: int) -> None:
    pixels = picture(channels)
    np.testing.assert_array_equal(decode(encode(pixels, "png")), pixels)


@pytest.mark.parametrize("image_format", sorted(ENCODERS))
@pytest.mark.parametrize("channels", [1, 3])
def test_equal_pixels_give_equal_bytes(image_format: str, channels: int) -> None:
    pixels = picture(channels)
    data = encode(pixels, image_format)
    assert data == encode(pixels.copy(), image_format)
    decoded = decode(data)
    assert decoded.shape[:2] == pixels.shape[:2]
    assert decoded.dtype == np.uint8


@pytest.mark.parametrize("image_format", sorted(ENCODERS))
def test_lossy_formats_stay_close(image_format: str) -> None:
    ramp = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[None, :, None], 32, axis=0).repeat(3, axis=2)
    error = np.abs(decode(encode(ramp, image_format)).astype(int) - ramp)
    assert error.mean() < 3


def test_signatures() -> None:
    pixels = picture(3)
    assert encode(pixels, "png").startswith(b"\x89PNG")
    assert encode(pixels, "jpg").startswith(b"\xff\xd8")
    assert encode(pixels, "webp")[8:12] == b"WEBP"


def test_every_format_has_a_mime_type() -> None:
    assert sorted(MIME_TYPES) == sorted(ENCODERS)


def test_unknown_format_gets_the_nearest_spelling() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'jpg'"):
        encode(picture(3), "jpeg")
