import pytest

from fastdirs.errors import SelectionError, UnknownNameError
from fastdirs.mask_filters import Filters
from fastdirs.mask_settings import PRESETS, MaskSettings, filters_of


def test_the_threshold_in_effect() -> None:
    assert MaskSettings(direction=0, epsilon=1.0, rule="intensity").cut == 0.95
    assert MaskSettings(direction=0, epsilon=1.0, rule="intensity", threshold=0.5).cut == 0.5


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings(name: str) -> None:
    preset = PRESETS[name]
    settings = MaskSettings(**preset.values)
    assert settings.to_json()["filters"] == preset.values["filters"].to_json()
    assert "Voynov" in preset.source


def test_the_published_settings() -> None:
    settings = MaskSettings(**PRESETS["published"].values)
    assert (settings.direction, settings.epsilon, settings.rule, settings.cut) == (
        59,
        26.0,
        "intensity",
        0.95,
    )
    assert settings.filters == Filters(min_area=0.05, max_area=0.5)
    assert settings.classes == "random"
    follow = MaskSettings(**PRESETS["bgw"].values)
    assert (follow.epsilon, follow.rule) == (5.0, "lightening")
    assert follow.filters == Filters(min_area=0.0, max_area=0.5, min_peaks=2, min_component=0.2)


def test_filters_are_changed_one_by_one() -> None:
    published = PRESETS["bgw"].values
    assert filters_of({}) == Filters()
    assert filters_of(published) == published["filters"]
    changed = filters_of(published, min_area=0.1, max_area=None, min_peaks=3)
    assert changed == Filters(min_area=0.1, max_area=0.5, min_peaks=3, min_component=0.2)
    with pytest.raises(SelectionError, match="area range"):
        filters_of({}, min_area=0.9)


def test_refined_masks() -> None:
    refined = MaskSettings(direction=0, epsilon=1.0, refine=True, filters=Filters(min_agreement=0.7))
    assert refined.to_json()["refine"] is True
    with pytest.raises(SelectionError, match="Masks of the rule intensity cannot be refined"):
        MaskSettings(direction=0, epsilon=1.0, rule="intensity", refine=True)
    with pytest.raises(SelectionError, match="An agreement is of refined masks only"):
        MaskSettings(direction=0, epsilon=1.0, filters=Filters(min_agreement=0.7))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"epsilon": 0.0}, SelectionError, "Epsilon 0 is out of range"),
        ({"epsilon": float("nan")}, SelectionError, "Epsilon nan is out of range"),
        ({"epsilon": 1001.0}, SelectionError, "Epsilon 1001 is out of range"),
        ({"threshold": float("inf")}, SelectionError, "Threshold inf is out of range"),
        (
            {"rule": "lightning"},
            UnknownNameError,
            "There is no mask rule 'lightning'. Did you mean 'lightening'",
        ),
    ],
)
def test_values_out_of_range(values: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MaskSettings(**{"direction": 0, "epsilon": 1.0, **values})


def test_classes_travel_as_they_are() -> None:
    for classes, written in ((None, None), (3, 3), ((3, 8), [3, 8]), ("random", "random")):
        assert MaskSettings(direction=0, epsilon=1.0, classes=classes).to_json()["classes"] == written
