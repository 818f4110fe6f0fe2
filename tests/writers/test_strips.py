import numpy as np

from fastdirs.images import decode
from fastdirs.writers.strips import WRITER


def test_a_strip_is_one_row_of_pictures() -> None:
    images = np.random.RandomState(0).randint(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    row = decode(WRITER.encode(images, "png"))
    assert row.shape == (4, 5 * 6, 3)
    for step in range(5):
        np.testing.assert_array_equal(row[:, 6 * step : 6 * step + 6], images[step])


def test_the_suffix_is_the_image_format() -> None:
    assert (WRITER.folder, WRITER.suffix("webp")) == ("strips", "webp")
