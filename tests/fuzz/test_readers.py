"""Damaged checkpoints: loading one ends soon, in bounded memory, well or with an error of our own.

Every case is reproducible from its seed, round and number of the file:
`mutations.damaged(data, Random("seed/round/file"))`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastdirs.generators import GENERATORS
from fastdirs.loading import save_generator
from fastdirs.manifest import Json

FIXTURES = Path(
    os.environ.get("FASTDIRS_FIXTURES") or Path(__file__).parents[2].parent / "shared" / "fixtures"
)
MUTATIONS = Path(__file__).with_name("mutations.py")
CONFIGS: dict[str, Json] = {
    "sngan": {"z_dim": 8, "widths": [8, 8, 6], "img_channels": 3, "eps": 1e-5},
    "stylegan2": {"z_dim": 8, "w_dim": 8, "channels": [8, 8, 6], "mapping_widths": [8, 8]},
}
_SUFFIXES = (".pkl", ".pt", ".pth", ".bin")
needs_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(),
    reason=f"needs the checkpoints of the original projects in {FIXTURES} (FASTDIRS_FIXTURES)",
)


def fixtures() -> list[Path]:
    found = (path for path in FIXTURES.rglob("*") if path.suffix in _SUFFIXES)
    return sorted(path for path in found if path.stat().st_size)


def own(folder: Path) -> list[Path]:
    """One small file of every container, for machines without the fixtures."""
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    torch.save({"g_ema": module.state_dict(), "args": {"size": 8}}, folder / "zip.pt")
    torch.save(module, folder / "stream.pt", _use_new_zipfile_serialization=False)
    save_file(module.state_dict(), folder / "model.safetensors")
    pickled = b"(dp0\nVweight\np1\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    state = b"(I1\n(I2\ntcnumpy\ndtype\n(Vf4\nI0\nI1\ntR(I3\nV<\nNNNI-1\nI-1\nI0\ntbI00\nVabcdefgh\ntbs."
    (folder / "arrays.pkl").write_bytes(pickled + state)
    # As `fastdirs convert` writes them: the header says what to build.
    for family, config in CONFIGS.items():
        save_generator(GENERATORS.load(family).build(config), folder / f"{family}.safetensors")
    return sorted(path for path in folder.iterdir() if path.suffix != ".json")


def fuzz(seed: int, rounds: int, paths: Sequence[Path]) -> dict[str, Any]:
    """Damage and read in another process, whose memory is limited, and check what it reports."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(MUTATIONS), str(seed), str(rounds), *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"died with {done.returncode}: {done.stderr[-2000:]}"
    report: dict[str, Any] = json.loads(done.stdout)
    cases = [f"{failure['file']} {failure['case']}\n{failure['error']}" for failure in report["failures"]]
    assert not cases, f"{report['number_of_failures']} failures:\n" + "\n".join(cases)
    assert not report["witness"], "a file did what it asked for"
    assert not [name for name in report["imported"] if not name.startswith("encodings.")]
    return report


def test_own_files(tmp_path: Path) -> None:
    report = fuzz(seed=0, rounds=60, paths=own(tmp_path))
    assert report["cases"] == 60 * (4 + len(CONFIGS))
    # Harmless damage is read: the mutations are not all so coarse that only the first bytes are tried.
    assert 0 < report["read"] < report["cases"]


@needs_fixtures
def test_every_fixture() -> None:
    report = fuzz(seed=1, rounds=2, paths=fixtures())
    assert 0 < report["read"] < report["cases"]


@needs_fixtures
@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_every_fixture_many_times(seed: int) -> None:
    assert fuzz(seed, rounds=20, paths=fixtures())["cases"] > 1500
