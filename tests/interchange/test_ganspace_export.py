import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdirs.errors import BankError
from fastdirs.generators import Generator
from fastdirs.interchange import import_bank
from tests.interchange.conftest import ganspace_export


def test_one_direction_with_its_layers_and_reach(layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    bank = import_bank(ganspace_export(tmp_path, vectors), layered)
    assert (bank.labels, bank.layers) == (("hair",), (0, 1))
    # `edit_end` is exclusive.
    assert not bank.directions[:, 2].any()
    torch.testing.assert_close(bank.directions[0, 0], vectors[0] / vectors[0].norm())
    reach = 3.0 * 0.5 * vectors[0].norm()
    torch.testing.assert_close(bank.ranges, torch.stack([-reach, reach])[None])
    assert bank.settings["truncation"] == 0.7
    assert bank.settings["decomposition"]["layer"] == "style"


def test_layers_can_be_chosen_all_the_same(layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    bank = import_bank(ganspace_export(tmp_path, vectors), layered, layers=[2])
    assert bank.layers == (2,)
    assert not bank.directions[:, :2].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edit_end": 18}, "edits layers 0 to 17, but layered has 3"),
        ({"edit_start": 2, "edit_end": 2}, "edits layers 2 to 1"),
        ({"edit_type": "both"}, r"edits activations \(edit_type 'both'"),
        ({"latent_space": "Z"}, r"directions in z, but the latents of layered are w\+"),
        ({"lat_comp": None}, "lacks lat_comp"),
        ({"lat_stdev": "wide"}, "lacks lat_comp, lat_stdev"),
        ({"edit_start": None}, "lacks lat_comp, lat_stdev, edit_start"),
    ],
)
def test_what_cannot_be_edited(
    changes: dict[str, Any], message: str, layered: Generator, vectors: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(BankError, match=message):
        import_bank(ganspace_export(tmp_path, vectors, **changes), layered)


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("PWNED_fastdirs",)


def test_nothing_in_it_is_run(
    layered: Generator, vectors: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = ganspace_export(tmp_path, vectors, name=_Hostile())
    with pytest.raises(BankError, match=r"asks to run \w+\.mkdir .* nothing was run"):
        import_bank(path, layered)
    assert not (tmp_path / "PWNED_fastdirs").exists()


def test_half_precision(layered: Generator, vectors: Tensor, tmp_path: Path) -> None:
    path = ganspace_export(tmp_path, vectors, lat_comp=vectors[:1].half().numpy())
    torch.testing.assert_close(
        import_bank(path, layered).directions[0, 0], vectors[0] / vectors[0].norm(), atol=1e-3, rtol=0
    )
