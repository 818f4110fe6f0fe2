"""What the original code made of given images."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
FIXTURE = Path(os.environ.get("FASTDIRS_FIXTURES", ROOT.parent / "shared" / "fixtures")) / "gld_masks"
Arrays = dict[str, NDArray[np.generic]]


@pytest.fixture(scope="session")
def original() -> Callable[[str], Arrays]:
    """The arrays of a file: `original("inputs.npz")`."""

    def read(name: str) -> Arrays:
        if not FIXTURE.is_dir():
            pytest.skip(f"needs the original code's masks in {FIXTURE}")
        with np.load(FIXTURE / name, allow_pickle=False) as arrays:
            return dict(arrays)

    return read
