import io

import numpy as np

from fastdirs.writers.npy import WRITER


def test_numpy_reads_the_pixels_back_without_pickles() -> None:
    images = np.random.RandomState(0).randint(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    read = np.load(io.BytesIO(WRITER.encode(images, "jpg")), allow_pickle=False)
    np.testing.assert_array_equal(read, images)
    assert read.dtype == np.uint8


def test_the_suffix_does_not_depend_on_the_image_format() -> None:
    assert (WRITER.folder, WRITER.suffix("jpg")) == ("npy", "npy")
