"""Resampling against its definition, in every form it is computed in, and the design of low-pass filters."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.backends import BACKENDS
from fastdirs.generators._resample import Resample, binomial, lowpass
from fastdirs.tracing import trace

SEPARABLE = torch.tensor([0.1, 0.4, -0.2, 0.3, 0.25, 0.15])
SQUARE = torch.outer(SEPARABLE, SEPARABLE) + torch.eye(6) * 0.1


def defined(
    x: Tensor, taps: Tensor, up: int, down: int, padding: tuple[int, int, int, int], gain: float
) -> Tensor:
    """Zeros between pixels, zeros around or pixels cut off, the filter, every n-th value; in float64."""
    taps = taps.double() if taps.ndim == 2 else torch.outer(taps, taps).double()
    batch, channels, height, width = x.shape
    spread = torch.zeros(batch, channels, height * up, width * up, dtype=torch.float64)
    spread[:, :, ::up, ::up] = x
    kernel = taps.flip(0, 1).expand(channels, 1, -1, -1) * gain
    return F.conv2d(F.pad(spread, padding), kernel, groups=channels)[:, :, ::down, ::down]


def picture(height: int = 9, width: int = 9) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [None, 9], ids=["convolutions", "matrices"])
@pytest.mark.parametrize("taps", [SEPARABLE, SQUARE, SEPARABLE[:5]], ids=["separable", "square", "odd"])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (3, 2, 3, 2), (-2, -1, -2, -1), (9, -3, 9, -3)])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (3, 2)])
def test_every_form_is_the_definition(
    taps: Tensor, up: int, down: int, padding: tuple[int, int, int, int], size: int | None
) -> None:
    x = picture()
    resampled = Resample(taps, up, down, padding, gain=up**2, size=size)(x)
    expected = defined(x, taps, up, down, padding, up**2).float()
    torch.testing.assert_close(resampled, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("taps", [SEPARABLE, SQUARE], ids=["separable", "square"])
@pytest.mark.parametrize("up", [1, 2])
def test_sides_differ(taps: Tensor, up: int) -> None:
    x, padding = picture(8, 11), (1, 4, 3, -1)
    expected = defined(x, taps, up, 1, padding, 1.0).float()
    torch.testing.assert_close(Resample(taps, up, padding=padding)(x), expected, rtol=0, atol=2e-6)


def test_only_small_separable_filters_of_known_size_become_matrices() -> None:
    assert Resample(SEPARABLE, size=9).places is not None
    assert Resample(SEPARABLE, padding=(1, 2, 1, 2), size=9).places is not None
    assert Resample(SEPARABLE).places is None
    assert Resample(SEPARABLE, size=1000).places is None
    assert Resample(SQUARE, size=9).places is None
    assert Resample(SEPARABLE, padding=(1, 2, 3, 4), size=9).places is None


@pytest.mark.parametrize("size", [None, 9])
def test_the_taps_alone_are_weights(size: int | None) -> None:
    resample = Resample(SEPARABLE, up=2, size=size)
    assert list(resample.state_dict()) == ["taps"]
    # Other taps that are loaded later are those that count.
    resample.load_state_dict({"taps": SEPARABLE.flip(0)})
    expected = defined(picture(), SEPARABLE.flip(0), 2, 1, (0, 0, 0, 0), 1.0).float()
    torch.testing.assert_close(resample(picture()), expected, rtol=0, atol=2e-6)


def test_the_input_is_left_alone() -> None:
    x = picture()
    before = x.clone()
    for size in (None, 9):
        Resample(SEPARABLE, up=2, padding=(-1, -1, -1, -1), size=size)(x)
    assert torch.equal(x, before)


class _Three(nn.Module):
    """Every form in one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices = Resample(SEPARABLE, up=2, padding=(3, 2, 3, 2), gain=4, size=9)
        self.up = Resample(SEPARABLE, up=2, padding=(3, -1, 3, -1))
        self.down = Resample(SQUARE, down=2, padding=(2, 2, 2, 2))
        self.last = Resample(SEPARABLE, down=2, size=16)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.last(self.down(self.up(self.matrices(x))))
        return features


@pytest.mark.parametrize("backend", ["ort", "openvino_cpu"])
def test_graphs_compute_the_same_at_any_batch(backend: str, tmp_path: Path) -> None:
    module, path = _Three().eval(), tmp_path / "resample.onnx"
    trace(module, (picture(),), path, ["x"], "y", 18, {"name": "resample"})
    session = BACKENDS.load(backend).open(path, "f32", False)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 9, 9, generator=torch.Generator().manual_seed(batch))
        made = torch.from_numpy(session.run([x.numpy()]))
        torch.testing.assert_close(made, module(x), rtol=0, atol=1e-5)
    session.close()


def test_binomial_sums_to_one() -> None:
    taps = binomial((1, 3, 3, 1))
    assert taps.shape == (4, 4)
    assert taps.dtype == torch.float32
    torch.testing.assert_close(taps.sum(), torch.tensor(1.0))
    assert taps[0, 1] == 3 / 64


def response(taps: Tensor, rate: float, frequency: float) -> float:
    """How much of a cosine of that many cycles per unit passes, along one axis."""
    row = taps if taps.ndim == 1 else taps.sum(0)
    places = (torch.arange(len(row)) - (len(row) - 1) / 2) / rate
    return float((row * torch.cos(2 * torch.pi * frequency * places)).sum())


@pytest.mark.parametrize("radial", [False, True])
@pytest.mark.parametrize("count", [12, 13, 24])
def test_a_lowpass_passes_low_and_stops_high(count: int, radial: bool) -> None:
    taps = lowpass(count, cutoff=4.0, width=6.0, rate=32.0, radial=radial)
    assert taps.shape == ((count, count) if radial else (count,))
    assert taps.dtype == torch.float32
    assert response(taps, 32.0, 0.0) == pytest.approx(1, abs=1e-6)
    assert response(taps, 32.0, 4.0) == pytest.approx(0.5, abs=0.1)
    assert abs(response(taps, 32.0, 9.0)) < 0.05
    assert abs(response(taps, 32.0, 14.0)) < 0.05
    torch.testing.assert_close(taps, taps.flip(0))


def test_a_radial_filter_is_the_same_in_both_axes() -> None:
    taps = lowpass(12, 4.0, 6.0, 32.0, radial=True)
    torch.testing.assert_close(taps, taps.T)
    assert torch.linalg.matrix_rank(taps, atol=1e-4) > 1, "not separable"


def test_the_window_depends_on_the_width() -> None:
    """The three branches of Kaiser's formula: no window for a narrow transition, then ever more of one."""
    places = (torch.arange(12) - 5.5) / 32
    sinc = torch.sinc(2 * 4.0 * places)
    torch.testing.assert_close(lowpass(12, 4.0, 1.0, 32.0), sinc / sinc.sum())
    ends = [abs(float(lowpass(12, 4.0, width, 32.0)[0])) for width in (1.0, 4.0, 8.0, 16.0)]
    assert ends == sorted(ends, reverse=True)
    assert ends[3] < ends[0] / 100
