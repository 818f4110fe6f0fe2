"""Voynov & Babenko: directions that a reconstructor can tell apart, both trained together."""

from dataclasses import dataclass

from fastdirs.deformators import DEFORMATORS, build_deformator
from fastdirs.discovery import Found, Method, Search
from fastdirs.discovery._learned import learn, refuses
from fastdirs.registry import unknown_name
from fastdirs.training.settings import TrainingSettings, option


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """Options of the method, besides those of every training.

    Raises:
        SelectionError: A value out of range.
        UnknownNameError: No such deformator.
    """

    deformator: str = option("auto", f"{', '.join(DEFORMATORS)} or auto")
    random_init: bool = option(True, "begin at random directions, not at the axes")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.deformator not in ("auto", *DEFORMATORS):
            raise unknown_name("deformator", self.deformator, ("auto", *DEFORMATORS))


def find(search: Search, settings: Settings) -> Found:
    """Directions by the reconstructor's held-out accuracy times how visible the change is, best first.

    Args:
        search: A generator with gradients, the layers to edit, and K.
        settings: See there; "auto" is the family's published value, or else the usual one.

    Raises:
        TrainingError: The loss is no number any more.
        OutputError: The folder holds something else, or a run with other settings.
        SelectionError: A setting out of range.

    Source:
        Voynov & Babenko, ICML 2020 (arXiv:2002.03754). Differs: see `training.train` and
        `deformators.build_deformator`; and where nothing was published for a family: `proj` (unit columns),
        the small reconstructor, and learning rates of 1e-3 and 3e-4 instead of 1e-4.
    """
    settings = settings.resolved(search.generator)
    return learn(
        search, "voynov", settings,
        lambda: build_deformator(
            settings.deformator, search.num_directions, search.space.size, settings.random_init
        ),
    )  # fmt: skip


METHOD = Method(
    summary="directions and a reconstructor trained together (Voynov & Babenko 2020)", settings=Settings,
    find=find, refuses=refuses, trains=True,
)  # fmt: skip
