import statistics
import time

import numpy as np
import pytest
import torch

from fastdirs.errors import SelectionError, ShapeError
from fastdirs.latents import (
    MAX_SEED,
    class_weights,
    parse_epsilons,
    parse_indices,
    parse_seeds,
    psi_per_layer,
    sample_classes,
    sample_z,
    statistics_place,
    truncate,
)


def test_z_is_the_stream_of_numpy() -> None:
    for seed in (0, 17, 2**32 - 1):
        expected = np.random.RandomState(seed).randn(100).astype(np.float32)
        np.testing.assert_array_equal(sample_z([seed], 100)[0].numpy(), expected)


def test_seeds_beyond_32_bits_have_streams_of_their_own() -> None:
    seeds = (5, 2**32 + 5, 2**33 + 5, 5 * 2**32, MAX_SEED)
    z = sample_z(seeds, 64)
    correlations = np.corrcoef(z.numpy())
    assert (np.abs(correlations[~np.eye(len(seeds), dtype=bool)]) < 0.6).all()
    expected = np.random.RandomState([5, 1]).randn(64).astype(np.float32)
    np.testing.assert_array_equal(z[1].numpy(), expected)
    assert len(set(sample_classes(range(2**40, 2**40 + 50), 1000).tolist())) > 30


def test_z_of_a_seed_does_not_depend_on_its_batch() -> None:
    together = sample_z(range(20), 16)
    assert together.shape == (20, 16)
    assert together.dtype == torch.float32
    for seed in (0, 7, 19):
        torch.testing.assert_close(sample_z([seed], 16)[0], together[seed], rtol=0, atol=0)
    torch.testing.assert_close(sample_z([19, 3], 16), together[[19, 3]], rtol=0, atol=0)


def test_z_leaves_the_global_random_state_alone() -> None:
    before = (np.random.get_state()[1].copy(), torch.get_rng_state())
    sample_z([5], 8)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_no_seeds_give_no_rows() -> None:
    assert sample_z([], 8).shape == (0, 8)


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(SelectionError, match=f"Seed {seed} is out of range"):
        sample_z([0, seed], 8)


@pytest.mark.parametrize("bound", [0.5, 2.0])
def test_bounded_z_is_the_inverse_distribution_of_uniform_numbers(bound: float) -> None:
    normal = statistics.NormalDist()
    low, high = normal.cdf(-bound), normal.cdf(bound)
    for seed in (0, 17, 2**32 - 1):
        uniform = np.random.RandomState(seed).uniform(size=50)
        wanted = [normal.inv_cdf(low + each * (high - low)) for each in uniform]
        found = sample_z([3, seed], 50, bound)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found[1].numpy(), wanted, atol=1e-6)
    assert sample_z(range(200), 50, bound).abs().max() <= bound
    assert sample_z([], 8, bound).shape == (0, 8)


def test_classes_of_seeds_do_not_depend_on_their_batch() -> None:
    classes = sample_classes(range(50), 7)
    assert classes.dtype == torch.int64
    assert set(classes.tolist()) == set(range(7))
    assert sample_classes([40, 3], 7).tolist() == classes[[40, 3]].tolist()


def test_class_weights() -> None:
    one_hot = [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    for c in (2, torch.tensor(2), np.int64(2), torch.tensor([2, 2]), np.array([2, 2])):
        weights = class_weights(c, 2, 3)
        assert weights.dtype == torch.float32
        assert weights.tolist() == one_hot
    mixture = np.array([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_array_equal(class_weights(mixture, 2, 3).numpy(), mixture.astype(np.float32))
    for wrong in (-1, 3, torch.tensor([0, 3]), 1.5):
        with pytest.raises(SelectionError, match="Classes run from 0 to 2"):
            class_weights(wrong, 2, 3)  # type: ignore[arg-type]
    for shape in ((3,), (2, 4), (1, 3), (2, 3, 1)):
        with pytest.raises(ShapeError, match="c has shape"):
            class_weights(np.zeros(shape, dtype=np.int64), 2, 3)


# As the original code mixes its rows: coef, start = modf(t / (1 / (n - 1))); row[start] gets coef.
@pytest.mark.parametrize(
    ("psi", "rows", "place"),
    [
        (0.7, 51, 35.0),
        (0.58, 51, 28 + 3.6e-15),
        (0.413, 51, 20.35),
        (1.0, 51, 50.0),
        (0.0, 51, 0.0),
        (0.02, 51, 1.0),
        (0.7, 21, 13 + 1.8e-15),
        (0.5, 21, 10.0),
    ],
)
def test_the_place_among_the_statistics(psi: float, rows: int, place: float) -> None:
    assert statistics_place(psi, rows) == pytest.approx(place, abs=1e-12, rel=0)


def test_the_last_layer_carries_the_place() -> None:
    assert psi_per_layer(0.7, None, 3, 51).tolist() == pytest.approx([0.7, 0.7, 35.0])
    assert psi_per_layer(0.7, 1, 3, 51).tolist() == pytest.approx([0.7, 1.0, 35.0])
    assert psi_per_layer(1.0, None, 3, 51).tolist() == [1.0, 1.0, 50.0]
    for psi in (-0.1, 1.1):
        with pytest.raises(SelectionError, match="statistics cover 0 to 1"):
            psi_per_layer(psi, None, 3, 51)
        psi_per_layer(psi, None, 3)


def test_psi_of_one_changes_nothing() -> None:
    latents = torch.randn(4, 3, 5)
    torch.testing.assert_close(truncate(latents, torch.randn(3, 5), psi_per_layer(1.0, None, 3)), latents)


def test_psi_of_zero_gives_the_mean() -> None:
    mean = torch.randn(3, 5)
    truncated = truncate(torch.randn(4, 3, 5), mean, psi_per_layer(0.0, None, 3))
    torch.testing.assert_close(truncated, mean.expand(4, 3, 5))


def test_psi_scales_the_distance_from_the_mean() -> None:
    latents, mean = torch.randn(4, 3, 5), torch.randn(5)
    truncated = truncate(latents, mean, psi_per_layer(0.7, None, 3))
    torch.testing.assert_close(truncated - mean, 0.7 * (latents - mean))


@pytest.mark.parametrize(
    ("cutoff", "expected"),
    [(None, [0.5, 0.5, 0.5]), (0, [1, 1, 1]), (2, [0.5, 0.5, 1]), (3, [0.5, 0.5, 0.5])],
)
def test_cutoff_limits_truncation_to_the_first_layers(cutoff: int | None, expected: list[float]) -> None:
    assert psi_per_layer(0.5, cutoff, 3).tolist() == expected


@pytest.mark.parametrize(("psi", "cutoff"), [(float("nan"), None), (float("inf"), None), (0.5, 4), (0.5, -1)])
def test_truncation_out_of_range(psi: float, cutoff: int | None) -> None:
    with pytest.raises(SelectionError):
        psi_per_layer(psi, cutoff, 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", tuple(range(20))),
        ("3", (3,)),
        ("0,4,7", (0, 4, 7)),
        ("7,4,4,0", (0, 4, 7)),
        ("6-9", (6, 7, 8, 9)),
        ("6-6", (6,)),
        ("0-2, 10-11,19", (0, 1, 2, 10, 11, 19)),
    ],
)
def test_indices(text: str, expected: tuple[int, ...]) -> None:
    assert parse_indices(text, 20, "layer") == expected


@pytest.mark.parametrize(
    "text",
    ["", "x", "1,", ",1", "1--3", "-1", "3-", "1.5", "9-6", "20", "0-20", "²", "all,1", "0-99999999999999"],
)
def test_bad_indices(text: str) -> None:
    with pytest.raises(SelectionError, match=r"layer"):
        parse_indices(text, 20, "layer")


def test_seeds() -> None:
    assert parse_seeds("0-3,9") == (0, 1, 2, 3, 9)
    assert parse_seeds(str(MAX_SEED)) == (MAX_SEED,)


@pytest.mark.parametrize("text", ["all", str(MAX_SEED + 1), "0-99999999999999999999", "5-4", "a"])
def test_bad_seeds(text: str) -> None:
    with pytest.raises(SelectionError, match=r"[Ss]eed|backwards"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-6:6:9", (-6.0, -4.5, -3.0, -1.5, 0.0, 1.5, 3.0, 4.5, 6.0)),
        ("-1:1:2", (-1.0, 1.0)),
        ("3,-3,0", (-3.0, 0.0, 3.0)),
        ("2,2,2", (2.0,)),
        ("-0.0,1e-12", (0.0,)),
        ("1:-1:3", (-1.0, 0.0, 1.0)),
        ("1000,-1000", (-1000.0, 1000.0)),
    ],
)
def test_epsilons(text: str, expected: tuple[float, ...]) -> None:
    assert parse_epsilons(text) == expected


@pytest.mark.parametrize("count", range(3, 40, 2))
def test_zero_in_the_middle_is_exact(count: int) -> None:
    epsilons = parse_epsilons(f"-0.7:0.7:{count}")
    assert len(epsilons) == count
    assert epsilons[count // 2] == 0.0


@pytest.mark.parametrize(
    "text",
    ["", "x", "1,", "nan", "0,inf", "-1001,0", "1:2", "1:2:3:4", "1:2:x", "0:1:1", "0:1:-5", "0:1:2.5",
     "nan:1:3", "-inf:inf:3", "0:1:10001", "0:1:99999999999999"],
)  # fmt: skip
def test_bad_epsilons(text: str) -> None:
    with pytest.raises(SelectionError):
        parse_epsilons(text)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_seeds, "0-4294967295,0-4294967296"),
        (parse_seeds, "0-4294967295"),
        (parse_epsilons, "0:1:4294967296"),
    ],
)
def test_huge_lists_are_refused_before_they_fill_the_memory(parse: object, text: str) -> None:
    began = time.monotonic()
    with pytest.raises(SelectionError):
        parse(text)  # type: ignore[operator]
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("psi", [1e39, -1000.5, float("nan"), float("inf")])
def test_psi_out_of_range(psi: float) -> None:
    with pytest.raises(SelectionError, match="Expected a number from -1000 to 1000"):
        psi_per_layer(psi, None, 3)
