"""Photographs, masks and saliency maps as people have them, and folders that do and do not pair."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdirs.errors import DatasetError
from fastdirs.images import picture_size
from fastdirs.saliency.folders import (
    iterate_images,
    pair_folders,
    read_mask,
    read_photo,
    read_saliency,
    read_with_opacity,
)

RAMP = np.arange(0, 256, dtype=np.uint8).reshape(8, 32)
SQUARE = np.zeros((6, 9), bool)
SQUARE[1:4, 2:5] = True
WHITE = SQUARE.view(np.uint8) * np.uint8(255)


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def turned(path: Path, pixels: np.ndarray) -> Path:
    """Saved a quarter turn to the left, with EXIF data that say so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return save(path, np.ascontiguousarray(np.rot90(pixels)), exif=exif)


# --- photographs


@pytest.mark.parametrize("suffix", ["png", "bmp", "pgm", "tif", "gif"])
def test_grey_becomes_rgb(tmp_path: Path, suffix: str) -> None:
    pixels = read_photo(save(tmp_path / f"grey.{suffix}", RAMP))
    assert pixels.shape == (8, 32, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags["C_CONTIGUOUS"]
    for channel in range(3):
        np.testing.assert_array_equal(pixels[..., channel], RAMP)


def test_colour_is_left_alone(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_photo(save(tmp_path / "a.png", pixels)), pixels)


def test_what_is_transparent_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 0] = 200
    pixels[0, :, 3] = 0, 51, 255
    read = read_photo(save(tmp_path / "cut-out.png", pixels))
    # A fifth of red, four fifths of white.
    assert read[0].tolist() == [[255, 255, 255], [244, 204, 204], [200, 0, 0]]


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_colour_that_stands_for_transparent(tmp_path: Path, mode: str) -> None:
    pixels = np.full((4, 4, 3), 90, np.uint8)
    pixels[:2] = 0
    image = Image.fromarray(pixels).convert(mode, palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "a.png", transparency=(0, 0, 0) if mode == "RGB" else image.getpixel((0, 0)))
    read = read_photo(tmp_path / "a.png")
    assert (read[:2] == 255).all()
    assert (read[2:] == 90).all()


def test_a_photograph_with_its_opacity(tmp_path: Path) -> None:
    pixels = np.full((2, 3, 4), 90, np.uint8)
    pixels[0, :, 3] = 0, 51, 255
    np.testing.assert_array_equal(read_with_opacity(save(tmp_path / "a.png", pixels))[0], pixels[0])
    opaque = np.ascontiguousarray(pixels[..., :3])
    np.testing.assert_array_equal(read_with_opacity(save(tmp_path / "b.png", opaque)), opaque)
    grey = read_with_opacity(save(tmp_path / "c.png", np.array([[[7, 0], [8, 255]]], np.uint8)))
    assert grey.tolist() == [[[7, 7, 7, 0], [8, 8, 8, 255]]]
    deep = save(tmp_path / "d.png", RAMP.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_with_opacity(deep), read_photo(deep))


def test_grey_with_alpha(tmp_path: Path) -> None:
    read = read_photo(save(tmp_path / "a.png", np.array([[[0, 0], [0, 255]]], np.uint8)))
    assert read[0].tolist() == [[255] * 3, [0] * 3]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    deep = RAMP.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_photo(save(tmp_path / "a.png", deep))[..., 0], RAMP)
    np.testing.assert_array_equal(read_photo(save(tmp_path / "a.tif", deep))[..., 0], RAMP)


def test_palette_and_cmyk(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2, :, 0] = 255
    np.testing.assert_array_equal(read_photo(save(tmp_path / "a.gif", pixels, "P")), pixels)
    read = read_photo(save(tmp_path / "a.jpg", pixels, "CMYK", quality=95)).astype(int)
    assert abs(read - pixels).max() < 20


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_turns(tmp_path: Path, suffix: str) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 8:] = 255
    read = read_photo(turned(tmp_path / f"a.{suffix}", pixels)).astype(int)
    assert read.shape == pixels.shape
    assert abs(read - pixels).mean() < 3


def test_masks_turn_too(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_mask(turned(tmp_path / "a.png", WHITE)), SQUARE)


@pytest.mark.parametrize(
    "data",
    [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"],
    ids=["empty", "text", "png", "jpeg"],
)
def test_unreadable_files_are_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    for read in (read_photo, read_mask, read_saliency):
        with pytest.raises(DatasetError, match=r"holiday\.jpg cannot be read as a picture"):
            read(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp"])
def test_torn_files_are_named(tmp_path: Path, suffix: str) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"torn.{suffix}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match=r"torn\.\w+ cannot be read as a picture"):
        read_photo(path)


def test_large_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    # Pillow would warn of it, and a warning is an error here.
    accepted = save(tmp_path / "accepted.png", np.zeros((30, 60), np.uint8))
    assert read_photo(accepted).shape == (30, 60, 3)
    huge = save(tmp_path / "huge.png", np.zeros((50, 60), np.uint8))
    for read in (read_photo, picture_size):
        with pytest.raises(DatasetError, match=r"huge\.png has 3,000 pixels, more than the 2,000 .* down"):
            read(huge)


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        read_photo(tmp_path)


# --- masks and saliency


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [(WHITE, "1"), (WHITE, None), (WHITE, "RGB"), (WHITE, "RGBA"), (WHITE, "LA"), (WHITE, "P"),
     (WHITE.astype(np.uint16) * 257, None)],
    ids=["1", "L", "RGB", "RGBA", "LA", "P", "16"],
)  # fmt: skip
def test_masks_of_every_kind(tmp_path: Path, pixels: np.ndarray, mode: str | None) -> None:
    mask = read_mask(save(tmp_path / "a.png", pixels, mode))
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, SQUARE)


def test_the_threshold_of_masks(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.array([[0, 25, 26, 127, 128, 255]], np.uint8))
    assert read_mask(path)[0].tolist() == [False, False, True, True, True, True]
    assert read_mask(path, threshold=0.5)[0].tolist() == [False] * 4 + [True] * 2


def test_what_is_transparent_is_not_salient(tmp_path: Path) -> None:
    pixels = np.full((6, 9, 4), 255, np.uint8)
    pixels[..., 3] = WHITE
    # Colours below nothing are whatever a program left there.
    pixels[0, :, :3] = 10, 200, 30
    path = save(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(read_mask(path), SQUARE)
    np.testing.assert_array_equal(read_saliency(path), SQUARE.astype(np.float32))


def test_masks_of_zero_and_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="0 and 1 where black and white are 0 and 255"):
        read_mask(save(tmp_path / "a.png", SQUARE.view(np.uint8)))


@pytest.mark.parametrize(
    ("kind", "name"), [(np.uint16, "a.png"), (np.int32, "a.tif")], ids=["16 bits", "32 bits"]
)
def test_masks_of_eight_bits_in_more_are_refused(kind: type, name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"0 and 255 where black and white are 0 and 65535.* by 257"):
        read_mask(save(tmp_path / name, WHITE.astype(kind)))


def test_an_empty_mask_is_read(tmp_path: Path) -> None:
    assert not read_mask(save(tmp_path / "a.png", np.zeros((3, 3), np.uint8))).any()


def test_coloured_masks_are_refused(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[1, 1] = 128, 0, 0
    for read in (read_mask, read_saliency):
        with pytest.raises(DatasetError, match=r"a\.png is coloured"):
            read(save(tmp_path / "a.png", pixels))


def test_saliency_keeps_its_levels(tmp_path: Path) -> None:
    eight = read_saliency(save(tmp_path / "a.png", RAMP))
    assert eight.dtype == np.float32
    np.testing.assert_array_equal(eight, (RAMP / 255).astype(np.float32))
    deep = np.array([[0, 1, 32_768, 65_535]], np.uint16)
    sixteen = read_saliency(save(tmp_path / "b.png", deep))
    np.testing.assert_allclose(sixteen[0], deep[0] / 65_535, rtol=1e-6)


def test_saliency_as_float(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 32, dtype=np.float32).reshape(4, 8)
    np.testing.assert_allclose(read_saliency(save(tmp_path / "a.tif", values)), values, atol=1e-5)
    values[0, 0] = np.nan
    with pytest.raises(DatasetError, match="floats outside 0 to 1"):
        read_saliency(save(tmp_path / "b.tif", values))
    with pytest.raises(DatasetError, match="more than 16 bits"):
        read_saliency(save(tmp_path / "c.tif", np.full((4, 4), 70_000, np.int32)))


# --- folders


def test_pictures_are_listed_in_order(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", ".c.png", "below/d.png"):
        save(tmp_path / name, WHITE)
    (tmp_path / "notes.txt").write_text("")
    assert [path.name for path in iterate_images(tmp_path)] == ["a.jpg", "b.PNG"]
    found = [path.relative_to(tmp_path).as_posix() for path in iterate_images(tmp_path, recursive=True)]
    assert found == ["a.jpg", "b.PNG", "below/d.png"]


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="missing does not exist"):
        iterate_images(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DatasetError, match="is a file, not a folder"):
        iterate_images(tmp_path / "notes.txt")
    with pytest.raises(DatasetError, match=r"holds no picture \(1 other files"):
        iterate_images(tmp_path)


def folders(tmp_path: Path, pictures: str, masks: str) -> tuple[Path, Path]:
    for folder, names, suffix in (("images", pictures, "jpg"), ("masks", masks, "png")):
        for name in names.split():
            save(tmp_path / folder / f"{name}.{suffix}", WHITE)
    return tmp_path / "images", tmp_path / "masks"


def test_folders_pair_by_name(tmp_path: Path) -> None:
    images, masks = folders(tmp_path, "b a.1", "a.1 b")
    pairs = pair_folders(images, masks)
    assert [pair.stem for pair in pairs] == ["a.1", "b"]
    assert pairs[0].picture == images / "a.1.jpg"
    assert pairs[0].mask == masks / "a.1.png"


def test_subfolders_are_part_of_the_name(tmp_path: Path) -> None:
    images, masks = folders(tmp_path, "x/a y/a", "x/a y/a")
    assert [pair.stem for pair in pair_folders(images, masks, recursive=True)] == ["x/a", "y/a"]


def test_nothing_pairs(tmp_path: Path) -> None:
    images, masks = folders(tmp_path, "a b", "a_mask b_mask")
    with pytest.raises(DatasetError, match="a, b against a_mask, b_mask"):
        pair_folders(images, masks)
    with pytest.raises(DatasetError, match="No picture in"):
        pair_folders(images, masks, ignore_unpaired=True)


def test_some_have_no_partner(tmp_path: Path) -> None:
    images, masks = folders(tmp_path, "a b c d e", "a")
    with pytest.raises(DatasetError, match=r"4 in .*images have no mask .*b, c, d and 1 more"):
        pair_folders(images, masks)
    assert [pair.stem for pair in pair_folders(images, masks, ignore_unpaired=True)] == ["a"]
    images, masks = folders(tmp_path / "other", "a", "a z")
    with pytest.raises(DatasetError, match=r"1 in .*masks has no picture .*: z\."):
        pair_folders(images, masks)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    images, masks = folders(tmp_path, "a", "a")
    save(images / "a.png", WHITE)
    with pytest.raises(DatasetError, match=r"holds both a\.jpg and a\.png"):
        pair_folders(images, masks)


def test_sizes_may_be_mixed_but_not_within_a_pair(tmp_path: Path) -> None:
    images, masks = folders(tmp_path, "a b c", "a b c")
    for folder in (images / "b.jpg", masks / "b.png"):
        save(folder, np.zeros((20, 30), np.uint8))
    assert len(pair_folders(images, masks)) == 3
    save(masks / "c.png", np.zeros((9, 6), np.uint8))
    with pytest.raises(DatasetError, match=r"1 of 3 pictures differ .* c \(9 × 6, mask 6 × 9\)"):
        pair_folders(images, masks)
    assert len(pair_folders(images, masks, same_size=False)) == 3


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_the_size_of_a_turned_photograph(tmp_path: Path, suffix: str) -> None:
    turned(tmp_path / "images" / f"a.{suffix}", WHITE)
    save(tmp_path / "masks" / "a.png", WHITE)
    assert len(pair_folders(tmp_path / "images", tmp_path / "masks")) == 1


def test_an_unreadable_picture_stops_pairing(tmp_path: Path) -> None:
    images, masks = folders(tmp_path, "a b", "a b")
    (masks / "b.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"b\.png cannot be read"):
        pair_folders(images, masks)
