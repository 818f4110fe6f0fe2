from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdirs.directions import DirectionBank
from fastdirs.errors import SelectionError
from fastdirs.generators import Generator
from fastdirs.images import Pixels, to_uint8
from fastdirs.latents import sample_z
from fastdirs.traversal import Plan, Strip

SEEDS = (4, 0, 9)
DIRECTIONS = (3, 1)
EPSILONS = {
    "with zero": (-2.0, -0.5, 0.0, 1.0),
    "without zero": (-2.0, -0.5, 1.0),
    "zero alone": (0.0,),
    "zero first": (0.0, 3.0),
    "zero last": (-3.0, 0.0),
    "one": (2.5,),
}
BATCH_SIZES = (1, 3, 7, 64)


def plan(epsilons: str = "with zero", batch_size: int = 3) -> Plan:
    return Plan(seeds=SEEDS, directions=DIRECTIONS, epsilons=EPSILONS[epsilons], batch_size=batch_size)


@pytest.fixture(scope="module")
def renderer(toy: Generator) -> "Renderer":
    return Renderer(toy)


class Renderer:
    """What a runtime does, one image at a time so that results cannot depend on batches, with a count."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.seeds_asked: list[int] = []
        self.rendered: list[bytes] = []

    def latents_of(self, seeds: Sequence[int]) -> Tensor:
        self.seeds_asked += seeds
        return self.generator.mapping(sample_z(seeds, self.generator.z_dim))

    def pixels(self, batches: Iterator[np.ndarray]) -> Iterator[Pixels]:
        for batch in batches:
            self.rendered += [row.tobytes() for row in batch]
            yield np.concatenate(
                [to_uint8(self.generator.synthesis(torch.from_numpy(row[None]))) for row in batch]
            )

    def strips(self, plan: Plan, bank: DirectionBank, first: int = 0) -> list[Strip]:
        return list(plan.strips(self.pixels(plan.batches(self.latents_of, bank, first)), first))

    def directly(self, seed: int, direction: int, epsilons: Sequence[float], bank: DirectionBank) -> Pixels:
        latents = self.generator.mapping(sample_z([seed], self.generator.z_dim))
        images = [self.generator.synthesis(latents + bank.shift(direction, epsilon)) for epsilon in epsilons]
        return to_uint8(torch.cat(images))


def same(a: list[Strip], b: list[Strip]) -> bool:
    return len(a) == len(b) and all(
        (x.seed, x.direction) == (y.seed, y.direction) and np.array_equal(x.images, y.images)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize(
    ("epsilons", "per_seed", "shown"),
    [
        ("with zero", 1 + 2 * 3, 3 * 2 * 4),
        ("without zero", 2 * 3, 3 * 2 * 3),
        ("zero alone", 1, 3 * 2),
        ("one", 2, 3 * 2),
    ],
)
def test_arithmetic(epsilons: str, per_seed: int, shown: int) -> None:
    for batch_size in BATCH_SIZES:
        made = plan(epsilons, batch_size)
        assert made.images_per_seed == per_seed
        assert made.num_rendered == 3 * per_seed
        assert made.num_images == shown
        assert (made.num_batches - 1) * batch_size < made.num_rendered <= made.num_batches * batch_size


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("epsilons", EPSILONS)
def test_strips_equal_images_rendered_one_by_one(
    toy_bank: DirectionBank, renderer: Renderer, epsilons: str, batch_size: int
) -> None:
    strips = renderer.strips(plan(epsilons, batch_size), toy_bank)
    assert [(s.seed, s.direction) for s in strips] == [(seed, d) for seed in SEEDS for d in DIRECTIONS]
    for strip in strips:
        expected = renderer.directly(strip.seed, strip.direction, EPSILONS[epsilons], toy_bank)
        assert strip.images.dtype == np.uint8
        # Adding a shift in another order may move a value across the edge between two grey levels.
        assert np.abs(strip.images.astype(int) - expected).max() <= 1
        assert (strip.images != expected).mean() < 1e-3


@pytest.mark.parametrize("epsilons", EPSILONS)
@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_every_batch_has_the_same_shape(
    toy_bank: DirectionBank, renderer: Renderer, epsilons: str, batch_size: int
) -> None:
    batches = list(plan(epsilons, batch_size).batches(renderer.latents_of, toy_bank))
    assert len(batches) == plan(epsilons, batch_size).num_batches
    assert {batch.shape for batch in batches} == {(batch_size, 1, 16)}
    assert {batch.dtype for batch in batches} == {np.dtype(np.float32)}


@pytest.mark.parametrize("epsilons", EPSILONS)
def test_nothing_is_rendered_twice(toy: Generator, toy_bank: DirectionBank, epsilons: str) -> None:
    renderer = Renderer(toy)
    made = plan(epsilons, batch_size=1)
    renderer.strips(made, toy_bank)
    assert len(renderer.rendered) == made.num_rendered
    assert len(set(renderer.rendered)) == made.num_rendered


def test_the_last_batch_is_filled_up_with_its_last_row(toy_bank: DirectionBank, renderer: Renderer) -> None:
    made = plan("with zero", batch_size=64)
    (batch,) = made.batches(renderer.latents_of, toy_bank)
    assert (batch[made.num_rendered :] == batch[made.num_rendered - 1]).all()


@pytest.mark.parametrize("epsilons", EPSILONS)
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_batches_do_not_depend_on_where_one_begins(
    toy_bank: DirectionBank, renderer: Renderer, epsilons: str, batch_size: int
) -> None:
    made = plan(epsilons, batch_size)
    whole = list(made.batches(renderer.latents_of, toy_bank))
    for first in range(made.num_batches + 1):
        tail = list(made.batches(renderer.latents_of, toy_bank, first))
        assert len(tail) == len(whole) - first
        assert all(np.array_equal(a, b) for a, b in zip(tail, whole[first:], strict=True))


@pytest.mark.parametrize("epsilons", EPSILONS)
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_a_resumed_plan_gives_the_rest_of_the_strips(
    toy_bank: DirectionBank, renderer: Renderer, epsilons: str, batch_size: int
) -> None:
    made = plan(epsilons, batch_size)
    whole = renderer.strips(made, toy_bank)
    for position in range(len(SEEDS)):
        first = made.batch_of_seed(position)
        resumed = renderer.strips(made, toy_bank, first)
        expected = whole[position * len(DIRECTIONS) :]
        # The batch in which a seed begins may hold whole seeds before it.
        assert len(resumed) >= len(expected)
        assert same(resumed[-len(expected) :], expected)
        assert same(resumed, whole[-len(resumed) :])


def test_resuming_renders_only_what_is_left(toy: Generator, toy_bank: DirectionBank) -> None:
    made = plan("with zero", batch_size=1)
    renderer = Renderer(toy)
    renderer.strips(made, toy_bank, made.batch_of_seed(2))
    assert len(renderer.rendered) == made.images_per_seed
    assert set(renderer.seeds_asked) == {SEEDS[2]}


def test_a_stream_that_breaks_off_gives_only_whole_strips(
    toy_bank: DirectionBank, renderer: Renderer
) -> None:
    made = plan("with zero", batch_size=1)
    whole = renderer.strips(made, toy_bank)
    pixels = list(renderer.pixels(made.batches(renderer.latents_of, toy_bank)))
    # The unshifted image and three more make a strip.
    for count, strips in ((0, 0), (3, 0), (4, 1), (6, 1), (7, 2), (8, 2), (10, 2), (11, 3)):
        assert same(list(made.strips(iter(pixels[:count]))), whole[:strips])


def test_strips_come_as_soon_as_they_are_whole(toy_bank: DirectionBank, toy: Generator) -> None:
    made = plan("with zero", batch_size=1)
    renderer = Renderer(toy)
    stream = made.strips(renderer.pixels(made.batches(renderer.latents_of, toy_bank)))
    next(stream)
    assert len(renderer.rendered) == 4
    next(stream)
    assert len(renderer.rendered) == 7


@pytest.mark.parametrize("epsilons", EPSILONS)
def test_paths_are_followed(curved_bank: DirectionBank, renderer: Renderer, epsilons: str) -> None:
    for strip in renderer.strips(plan(epsilons, 3), curved_bank):
        expected = renderer.directly(strip.seed, strip.direction, EPSILONS[epsilons], curved_bank)
        assert np.abs(strip.images.astype(int) - expected).max() <= 1
        assert (strip.images != expected).mean() < 1e-3


def test_a_path_is_no_straight_line(
    toy_bank: DirectionBank, curved_bank: DirectionBank, renderer: Renderer
) -> None:
    made = Plan(seeds=(1,), directions=(0,), epsilons=(-3.0, 0.0, 3.0), batch_size=3)
    (straight,), (curved,) = (renderer.strips(made, bank) for bank in (toy_bank, curved_bank))
    differs = np.abs(straight.images.astype(int) - curved.images).max(axis=(1, 2, 3))
    assert differs[1] == 0
    assert (differs[[0, 2]] > 10).all()


def test_nothing_of_a_path_is_rendered_twice(toy: Generator, curved_bank: DirectionBank) -> None:
    renderer = Renderer(toy)
    made = plan("with zero", batch_size=1)
    renderer.strips(made, curved_bank)
    assert len(set(renderer.rendered)) == len(renderer.rendered) == made.num_rendered


def test_only_the_edited_layers_change(toy_bank: DirectionBank) -> None:
    directions = torch.zeros(5, 3, 16)
    directions[:, 1] = toy_bank.directions[:, 0]
    generator = {**toy_bank.generator, "num_layers": 3}
    bank = replace(toy_bank, directions=directions, generator=generator, layers=(1,))
    latents = torch.randn(1, 3, 16)
    made = Plan(seeds=(0,), directions=(2,), epsilons=(1.5,), batch_size=1)
    (batch,) = made.batches(lambda seeds: latents, bank)
    np.testing.assert_array_equal(batch[:, [0, 2]], latents[:, [0, 2]])
    np.testing.assert_allclose(batch[:, 1], latents[:, 1] + 1.5 * bank.directions[2, 1], rtol=1e-6)


def test_a_direction_that_the_bank_does_not_have(toy_bank: DirectionBank, renderer: Renderer) -> None:
    made = Plan(seeds=(0,), directions=(0, 5), epsilons=(1.0,), batch_size=2)
    with pytest.raises(SelectionError, match="There is no direction 5"):
        next(made.batches(renderer.latents_of, toy_bank))


@pytest.mark.parametrize(
    ("seeds", "directions", "epsilons", "batch_size", "message"),
    [
        ((), (0,), (1.0,), 1, "no seed"),
        ((0,), (), (1.0,), 1, "no direction"),
        ((0,), (0,), (), 1, "no epsilon"),
        ((0,), (0,), (1.0,), 0, "Batch size 0 is out of range"),
        ((0,), (0,), (1.0,), -3, "Batch size -3 is out of range"),
    ],
)
def test_empty_plans(
    seeds: tuple[int, ...],
    directions: tuple[int, ...],
    epsilons: tuple[float, ...],
    batch_size: int,
    message: str,
) -> None:
    with pytest.raises(SelectionError, match=message):
        Plan(seeds=seeds, directions=directions, epsilons=epsilons, batch_size=batch_size)
