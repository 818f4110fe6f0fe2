"""Saliency against a reference: errors, IoU of masks, ties, and batch sizes."""

from collections.abc import Sequence

import numpy as np
import pytest

from fastdirs.backends import Array, Session
from fastdirs.saliency.parity import (
    ACCEPT,
    SaliencyParity,
    compare_saliency,
    mask_threshold,
    measure_saliency,
)


def _saliency(count: int = 4) -> Array:
    """A square of saliency 0.9 on 0.1, elsewhere in each picture."""
    saliency = np.full((count, 16, 16), 0.1, np.float32)
    for number in range(count):
        saliency[number, number : number + 8, 2:10] = 0.9
    return saliency


def test_equal_saliency() -> None:
    parity = compare_saliency(_saliency(), _saliency())
    assert (parity.largest, parity.mean, parity.iou) == (0, 0, 1)
    assert parity.within(ACCEPT["f32"])
    assert str(parity) == "saliency error largest 0, mean 0; IoU of masks 1.00000"


def test_masks_that_differ_though_the_errors_are_small() -> None:
    wanted = np.where(_saliency() > 0.5, np.float32(0.5002), np.float32(0.1))
    found = wanted.copy()
    found[0, :4] -= np.float32(0.0004)
    parity = compare_saliency(found, wanted)
    assert parity.largest < ACCEPT["f32"].largest
    assert parity.iou == pytest.approx((0.5 + 3) / 4)
    assert not parity.within(ACCEPT["f32"])


def test_errors_though_the_masks_are_equal() -> None:
    parity = compare_saliency(_saliency() * np.float32(1.01), _saliency())
    assert parity.iou == 1
    assert parity.largest == pytest.approx(0.009, abs=1e-5)
    assert not parity.within(ACCEPT["f32"])
    assert parity.within(ACCEPT["bf16"])


def test_the_mask_of_one_small_object_counts_as_much_as_a_large_one() -> None:
    wanted = _saliency()
    wanted[3] = 0.1
    wanted[3, 0, 0] = 0.9
    found = wanted.copy()
    found[3, 0, 0] = 0.1
    assert compare_saliency(found, wanted).iou == 0.75


def test_empty_masks_agree() -> None:
    nothing = np.zeros((2, 4, 4), np.float32)
    assert compare_saliency(nothing, nothing).iou == 1
    some = nothing.copy()
    some[0, 0, 0] = 1
    assert compare_saliency(some, nothing).iou == 0.5


def test_where_masks_are_compared() -> None:
    assert mask_threshold(_saliency()) == 0.5
    # One picture with an object is enough.
    assert mask_threshold(np.concatenate([_saliency(1), np.zeros((3, 16, 16), np.float32)])) == 0.5
    # Found nowhere, or everywhere, or one picture is all of it.
    ramp = np.linspace(0, 0.2, 256, dtype=np.float32).reshape(1, 16, 16)
    for wanted in (ramp, 1 - ramp):
        assert mask_threshold(wanted) == pytest.approx(np.median(wanted))
    # More than half of the pixels are alike.
    assert mask_threshold(_saliency() / np.float32(9)) == pytest.approx(0.5 / 9)
    for constant in (0, 0.5, 1, float("nan")):
        assert mask_threshold(np.full((2, 4, 4), constant, np.float32)) is None


def test_a_graph_that_finds_nothing_where_torch_finds_little() -> None:
    wanted = _saliency() * np.float32(1e-4)
    found = np.zeros_like(wanted)
    assert compare_saliency(found, wanted).within(ACCEPT["f32"]), "no masks, so equal ones"
    parity = measure_saliency(_Answers(), found[:, None], wanted, (2,))
    assert parity.iou == 0
    assert not parity.within(ACCEPT["f32"])
    assert "IoU of masks 0.00000 at a saliency of 5e-05" in str(parity)


def test_on_the_threshold_rounding_decides() -> None:
    wanted = np.full((1, 4, 4), 0.5, np.float32)
    assert compare_saliency(wanted - np.float32(1e-6), wanted).iou == 1
    assert compare_saliency(wanted - np.float32(1e-4), wanted).iou == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", sorted(ACCEPT))
def test_what_is_not_finite_is_never_accepted(value: float, precision: str) -> None:
    found = _saliency()
    found[1, 2, 3] = value
    assert not compare_saliency(found, _saliency()).within(ACCEPT[precision])


def test_another_shape_is_another_graph() -> None:
    parity = compare_saliency(_saliency()[:, None], _saliency())
    assert parity == SaliencyParity(largest=np.inf, mean=np.inf, iou=0)
    assert not parity.within(ACCEPT["bf16"])


class _Answers(Session):
    """Gives back the first channel, but 0 in row `wrong_row` of batches of `wrong_size`."""

    precision, provider, detail, num_parallel = "f32", "answers", "", 1

    def __init__(self, wrong_size: int = 0, wrong_row: int = 0) -> None:
        self.wrong = wrong_size, wrong_row
        self.sizes: list[int] = []

    def run_all(self, inputs: Sequence[Array]) -> list[Array]:
        answer = inputs[0][:, 0].copy()
        self.sizes.append(len(answer))
        if len(answer) == self.wrong[0]:
            answer[self.wrong[1]] = np.nan
        return [answer]

    def close(self) -> None:
        pass


def test_each_size_sees_every_picture() -> None:
    wanted, session = _saliency(), _Answers()
    parity = measure_saliency(session, wanted[:, None], wanted, (1, 2, 3, 6))
    assert parity.within(ACCEPT["f32"])
    assert session.sizes == [1] * 4 + [2] * 2 + [3] * 2 + [6]


@pytest.mark.parametrize(("size", "row"), [(1, 0), (2, 1), (6, 5)])
def test_one_wrong_row_is_found(size: int, row: int) -> None:
    wanted = _saliency()
    parity = measure_saliency(_Answers(size, row), wanted[:, None], wanted, (6, 1, 2))
    assert not parity.within(ACCEPT["bf16"])
