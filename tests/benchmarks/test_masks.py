"""The published loop that pairs per second are compared with makes the same pairs as we do."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fastdirs.artifact import Artifact
from fastdirs.discovery import discover
from fastdirs.generators import Generator
from fastdirs.mask_pairs import PairSource
from fastdirs.runtime import open_runtime

ROOT = Path(__file__).parents[2]


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> object:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import masks

    yield masks
    sys.modules.pop("masks", None)


def test_the_same_pairs_as_the_published_loop(
    masks: object, small_dcgan: Generator, dcgan_artifact: Artifact
) -> None:
    bank = discover(small_dcgan, "random", 1)
    settings = masks.SETTINGS
    wanted = masks.loop(small_dcgan, bank.shift(0, settings.epsilon), 8)(range(8))
    with (
        open_runtime(dcgan_artifact, "ort", "f32", streaming=True) as runtime,
        PairSource(runtime, bank, settings, 4) as source,
    ):
        errors = masks.compared(source, wanted)
        found = [
            source.candidates(seeds, source.session.run_all(source.inputs(seeds)))
            for seeds in ([0, 1, 2, 3], [4, 5, 6, 7])
        ]
    assert errors["max"] <= 1
    assert errors["iou"] > 0.999
    kept = [not failing for each in found for failing in each.failing]
    assert kept == [not failing for failing in wanted.failing]
    assert np.allclose(np.concatenate([each.areas for each in found]), wanted.areas, atol=0.002)
