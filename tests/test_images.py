from pathlib import Path

import numpy as np
import pytest
import torch

from fastdirs.errors import DatasetError, SelectionError, ShapeError, UnknownNameError
from fastdirs.images import (
    ENCODERS,
    MIME_TYPES,
    caption,
    decode,
    encode,
    grid,
    picture_size,
    read_levels,
    resize,
    shrink,
    strip,
    to_uint8,
)


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


@pytest.mark.parametrize("channels", [1, 3, 4])
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


def test_webp_keeps_opacity() -> None:
    pixels = picture(4)
    decoded = decode(encode(pixels, "webp"))
    np.testing.assert_array_equal(decoded[..., 3], pixels[..., 3])


def test_jpg_holds_no_opacity() -> None:
    with pytest.raises(SelectionError, match="jpg holds no opacity"):
        encode(picture(4), "jpg")


@pytest.mark.parametrize("shape", [(4, 5, 2), (4, 5, 5), (4, 5), (2, 4, 5, 3)])
def test_pictures_of_other_axes_are_not_encoded(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="image has"):
        encode(np.zeros(shape, np.uint8), "png")


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_averages(channels: int) -> None:
    pixels = np.zeros((8, 12, channels), np.uint8)
    # Stripes finer than the result become their mean; a filter that does not grow would pick one of them.
    pixels[:, ::2] = 200
    small = resize(pixels, 2, 3)
    assert (small.shape, small.dtype) == ((2, 3, channels), np.uint8)
    assert np.abs(small.astype(int) - 100).max() <= 12


def test_resizing_numbers() -> None:
    ramp = np.linspace(0, 1, 5, dtype=np.float32)[None].repeat(3, axis=0)
    large = resize(ramp, 30, 50)
    assert (large.shape, large.dtype) == ((30, 50), np.float32)
    assert 0 <= large.min() <= large.max() <= 1
    assert (np.diff(large[7]) >= 0).all()
    np.testing.assert_allclose(large[:, 25].mean(), 0.5, atol=0.03)
    assert large.flags.writeable
    assert resize(ramp, 3, 5) is ramp


def test_shrinking_keeps_proportions_and_small_pictures() -> None:
    wide = np.zeros((20, 80, 3), np.uint8)
    wide[:, 40:] = 255
    small = shrink(wide, 8)
    assert small.shape == (2, 8, 3)
    assert small[:, :3].max() < 10
    assert small[:, 5:].min() > 245
    assert shrink(wide[..., :1], 40).shape == (10, 40, 1)
    assert shrink(wide, 80) is wide
    assert shrink(np.zeros((1, 300, 1), np.uint8), 10).shape == (1, 10, 1)


def test_captions_are_drawn_and_cut_off() -> None:
    plain = caption("", 60, 18)
    assert plain.shape == (18, 60, 3)
    assert plain.dtype == np.uint8
    assert (plain == 255).all()
    assert caption("IoU 0.93", 60, 18).min() < 100
    assert caption("a name that is far too long 漢", 60, 18, ground=0, ink=255).shape == (18, 60, 3)


def test_levels_carry_alpha(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(picture(3), "png"))
    levels = read_levels(path)
    assert levels.shape == (6, 9, 4)
    assert (levels[..., 3] == 255).all()
    assert picture_size(path) == (6, 9)
    path.write_bytes(encode(picture(1), "png"))
    assert read_levels(path).shape == (6, 9, 2)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"GIF89a")
    with pytest.raises(DatasetError, match=r"a\.png cannot be read"):
        read_levels(path)
    with pytest.raises(DatasetError, match=r"a\.png cannot be read"):
        picture_size(path)
