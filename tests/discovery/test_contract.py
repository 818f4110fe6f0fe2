"""What every discovery method promises. A new method is tested the moment its file exists."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdirs.directions import DirectionBank, load_bank
from fastdirs.discovery import METHODS, discover, parse_settings
from fastdirs.errors import SelectionError, UnknownNameError
from fastdirs.generators import Factor, Generator
from fastdirs.generators.toy import ATTRIBUTES, Toy
from fastdirs.latents import sample_z

SmallSettings = Callable[[str], dict[str, str]]

every_method = pytest.mark.parametrize("method", METHODS.names())
# They look for something, and find it without training.
PLUGINS = {name: METHODS.load(name) for name in METHODS.names()}
CLOSED_FORM = [n for n, plugin in PLUGINS.items() if not (plugin.trains or plugin.baseline or plugin.seeks)]


@pytest.fixture(scope="module", params=METHODS.names())
def bank(request: pytest.FixtureRequest, toy: Generator, small_settings: SmallSettings) -> DirectionBank:
    settings = small_settings(request.param)
    return discover(toy, request.param, num_directions=len(ATTRIBUTES), settings=settings)


@pytest.mark.parametrize("method", CLOSED_FORM)
def test_together_its_directions_span_the_true_ones(toy: Generator, method: str) -> None:
    assert isinstance(toy, Toy)
    found = discover(toy, method, num_directions=len(ATTRIBUTES)).directions.flatten(1)
    axes, _ = torch.linalg.qr(found.T)
    within = (toy.true_directions().flatten(1) @ axes).norm(dim=1)
    assert (within > 0.99).all()


def test_the_bank_says_what_it_is(toy: Generator, bank: DirectionBank) -> None:
    assert len(bank) == len(ATTRIBUTES)
    assert bank.chords().shape == (len(bank), toy.num_layers, toy.dim)
    assert bank.directions.dtype == torch.float32
    assert bank.method in METHODS.names()
    assert bank.layers == (0,)
    assert bank.generator == toy.identity()
    assert len(set(bank.labels)) == len(bank)
    bank.check_generator(toy.identity())


def test_the_bank_records_the_settings(bank: DirectionBank, small_settings: SmallSettings) -> None:
    plugin = METHODS.load(bank.method)
    asked = parse_settings(bank.method, plugin.settings, small_settings(bank.method))
    assert set(bank.settings) >= {option.name for option in fields(plugin.settings)}
    for name in small_settings(bank.method):
        assert bank.settings[name] == getattr(asked, name)


def test_straight_directions_have_unit_length(bank: DirectionBank) -> None:
    assert bank.directions.any(dim=-1).any(dim=-1).all() or bank.curved
    if not bank.curved:
        torch.testing.assert_close(bank.directions.flatten(1).norm(dim=1), torch.ones(len(bank)))


def test_the_largest_component_is_positive(bank: DirectionBank) -> None:
    flat = bank.chords().flatten(1)
    assert (flat.gather(1, flat.abs().argmax(dim=1, keepdim=True)) > 0).all()


def test_best_first(bank: DirectionBank) -> None:
    assert (bank.scores.diff() <= 0).all()


def test_scales_are_the_spread_of_latents_along_the_directions(toy: Generator, bank: DirectionBank) -> None:
    latents = toy.mapping(sample_z(range(5000, 7000), toy.z_dim))
    along = latents[:, 0] @ torch.nn.functional.normalize(bank.chords()[:, 0], dim=1).T
    torch.testing.assert_close(bank.scales, along.std(dim=0), rtol=0.1, atol=0)


@every_method
def test_scales_are_in_latent_units(method: str, small_settings: SmallSettings) -> None:
    class Wide(Toy):
        def map_z(self, z: Tensor, c: Tensor | None) -> Tensor:
            return 3 * super().map_z(z, c)

    bank = discover(Wide(16).eval().requires_grad_(False), method, 5, settings=small_settings(method))
    torch.testing.assert_close(bank.scales, torch.full((5,), 3.0), rtol=0.1, atol=0)


def test_ranges_are_symmetric_and_grow_with_the_scale(bank: DirectionBank) -> None:
    torch.testing.assert_close(bank.ranges[:, 0], -bank.ranges[:, 1])
    torch.testing.assert_close(bank.ranges[:, 1] / bank.scales, torch.full((len(bank),), 6.0))


def test_the_same_call_gives_the_same_bank(
    toy: Generator, bank: DirectionBank, small_settings: SmallSettings
) -> None:
    again = discover(toy, bank.method, len(bank), settings=small_settings(bank.method))
    torch.testing.assert_close(again.directions, bank.directions, rtol=0, atol=1e-6)
    torch.testing.assert_close(again.scores, bank.scores)


def test_another_seed_is_another_search(
    toy: Generator, bank: DirectionBank, small_settings: SmallSettings
) -> None:
    if "seed" not in bank.settings:
        pytest.skip(f"{bank.method} leaves nothing to chance")
    settings = {**small_settings(bank.method), "seed": "1"}
    other = discover(toy, bank.method, len(bank), settings=settings)
    assert (other.directions - bank.directions).abs().max() > 1e-3


@every_method
@pytest.mark.parametrize("count", [1, 2, 16])
def test_as_many_directions_as_asked_for(
    toy: Generator, method: str, count: int, small_settings: SmallSettings
) -> None:
    found = discover(toy, method, count, settings=small_settings(method))
    assert len(found) == count
    assert torch.isfinite(found.directions).all()


def test_the_bank_survives_a_file(bank: DirectionBank, tmp_path: Path) -> None:
    bank.save(tmp_path / "bank.safetensors")
    loaded = load_bank(tmp_path / "bank.safetensors")
    assert torch.equal(loaded.directions, bank.directions)
    assert loaded.settings == bank.settings
    assert loaded.sha256 == bank.sha256


@every_method
def test_progress_ends_at_the_end(toy: Generator, method: str, small_settings: SmallSettings) -> None:
    calls: list[tuple[int, int]] = []
    settings = small_settings(method)
    discover(toy, method, 2, settings=settings, progress=lambda done, total: calls.append((done, total)))
    assert calls
    assert calls[-1][0] == calls[-1][1]
    assert all(0 <= done <= total for done, total in calls)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@every_method
@pytest.mark.parametrize("count", [0, -1, 17])
def test_number_of_directions_out_of_range(toy: Generator, method: str, count: int) -> None:
    with pytest.raises(SelectionError, match=f"{count} directions are out of range.*1 to 16"):
        discover(toy, method, num_directions=count)


@every_method
@pytest.mark.parametrize("layers", [[1], [-1], [0, 5]])
def test_layers_out_of_range(toy: Generator, method: str, layers: list[int]) -> None:
    with pytest.raises(SelectionError, match=r"There is no layer .*has layers 0 to 0"):
        discover(toy, method, num_directions=1, layers=layers)


@every_method
def test_unknown_option_is_named(toy: Generator, method: str) -> None:
    with pytest.raises(UnknownNameError, match=f"no option of {method} 'no_such_option'"):
        discover(toy, method, settings={"no_such_option": "1"})


@every_method
def test_every_option_has_help_and_a_default(method: str) -> None:
    plugin = METHODS.load(method)
    assert plugin.summary
    assert "\n" not in plugin.summary
    assert is_dataclass(plugin.settings)
    plugin.settings()
    for option in fields(plugin.settings):
        assert option.metadata.get("help"), f"option {option.name} of {method} has no help"


@every_method
def test_defaults_survive_being_written_as_text(method: str) -> None:
    settings = METHODS.load(method).settings
    written = {f.name: str(getattr(settings(), f.name)).lower() for f in fields(settings)}
    assert parse_settings(method, settings, written) == settings()


def test_unknown_method_gets_the_nearest_spelling(toy: Generator) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'sefa'"):
        discover(toy, "seffa")


def test_the_layer_that_carries_a_place_is_not_edited(classes: Generator) -> None:
    bank = discover(classes, "sefa", num_directions=classes.dim)
    assert bank.layers == classes.editable == (0, 1, 2)
    assert bank.directions[:, 3].abs().max() == 0
    assert (bank.directions[:, :3].norm(dim=2) - 1).abs().max() < 1e-5
    for layers in ([3], [0, 3]):
        with pytest.raises(SelectionError, match=r"Layer 3 of classes is no latent.*Layers 0 to 2 can"):
            discover(classes, "sefa", layers=layers, num_directions=1)
    with pytest.raises(SelectionError, match="No layer to edit"):
        discover(classes, "sefa", layers=[], num_directions=1)


def test_directions_are_of_the_chosen_layers_alone(classes: Generator) -> None:
    one = discover(classes, "sefa", layers=[1], num_directions=4)
    assert one.directions[:, [0, 2, 3]].abs().max() == 0
    weight = classes.factors()[1].weight.double()
    weight = weight / weight.norm(dim=1, keepdim=True)
    _, vectors = torch.linalg.eigh(weight.T @ weight)
    cosines = (one.directions[:, 1].double() * vectors.T.flip(0)[:4]).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-5)


def test_scales_are_those_of_the_z_that_is_drawn(classes: Generator) -> None:
    bank = discover(classes, "sefa", num_directions=3)
    # The standard deviation of a normal distribution that is cut at 2; the place among statistics has none.
    torch.testing.assert_close(bank.scales, torch.full((3,), 0.8796), rtol=0.06, atol=0)


def test_scales_of_a_mapping_that_reads_the_class(conditional: Generator) -> None:
    class Factorised(type(conditional)):  # type: ignore[misc]
        def factors(self) -> list[Factor]:
            return [Factor(f"stages.{i}", i, stage.scale.weight) for i, stage in enumerate(self.stages)]

    torch.manual_seed(0)
    generator = Factorised(c_dim=3).eval().requires_grad_(False)
    bank = discover(generator, "sefa", num_directions=2)
    seeds = range(3000, 5000)
    latents = generator.mapping(generator.sample(seeds), generator.sample_classes(seeds))
    along = torch.einsum("bld,kld->bkl", latents, bank.directions).std(dim=0).mean(dim=1)
    torch.testing.assert_close(bank.scales, along, rtol=0.1, atol=0)
