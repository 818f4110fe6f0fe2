"""Candidates for pairs: seeds in, images and masks out, and which of them make a pair."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from fastdirs.backends import Array, Kept, Session
from fastdirs.directions import DirectionBank
from fastdirs.errors import SelectionError
from fastdirs.images import Pixels
from fastdirs.latents import check_class, sample_classes, sample_z
from fastdirs.mask_filters import Masks, apply_filters
from fastdirs.mask_settings import MaskSettings
from fastdirs.mask_tail import MaskTail
from fastdirs.runtime import Runtime
from fastdirs.shards import Pair

_PRIOR_SEEDS = 64


@dataclass(frozen=True)
class Candidates:
    """A batch that was rendered.

    Attributes:
        seeds: One for each.
        classes: Class of each, or None.
        pixels: Unshifted images. `[batch, height, width, channels]`, uint8.
        masks: After the filters. `[batch, height, width]`, bool, True = salient object.
        areas: Share of the image that each mask covers. `[batch]`.
        failing: All reasons why each is rejected; none if it makes a pair.
        settings: What they were made with.
    """

    seeds: Sequence[int]
    classes: Sequence[int] | None
    pixels: Pixels
    masks: Masks
    areas: NDArray[np.float64]
    failing: Sequence[tuple[str, ...]]
    settings: MaskSettings

    def pairs(self) -> list[Pair]:
        """Those that make a pair, in order."""
        return [self._pair(row) for row, failing in enumerate(self.failing) if not failing]

    def _pair(self, row: int) -> Pair:
        facts = {
            "class": None if self.classes is None else self.classes[row],
            "direction": self.settings.direction,
            "epsilon": self.settings.epsilon,
            "rule": self.settings.rule,
            "area": round(float(self.areas[row]), 6),
        }
        return Pair(self.seeds[row], self.pixels[row], self.masks[row], facts)


class PairSource:
    """A generator, a direction and a rule, opened on a backend. A context manager.

    Args:
        runtime: The generator.
        bank: Its directions.
        settings: How a pair is made.
        batch_size: Candidates rendered at a time; None takes what fills the usual batch of images.

    Attributes:
        session: What `inputs` are for.
        batch_size: Candidates rendered at a time.

    Raises:
        BankError: The bank belongs to another generator.
        SelectionError: A direction, epsilon, class, psi or batch size out of range.
        ContractError: A class for an unconditional generator, or none for a conditional one.
        ParityError: Masks on this backend differ from torch's by too much.
        BackendError: The backend refuses the graph.
        MissingDependencyError: Refined masks need a package that is not installed.
    """

    def __init__(
        self, runtime: Runtime, bank: DirectionBank, settings: MaskSettings, batch_size: int | None = None
    ) -> None:
        bank.check_generator(runtime.generator)
        self._runtime, self._settings = runtime, settings
        self._check_classes()
        self._tail = MaskTail(settings.rule, settings.cut, settings.refine)
        epsilons = [sign * settings.epsilon for sign in self._tail.signs]
        self._shifts = bank.shifts(settings.direction, epsilons).numpy()[None]
        runtime.latents_of(settings.psi, settings.cutoff, None if self._classes([0]) is None else 0)
        self.batch_size = self._sized(batch_size)
        self.session: Session = runtime.followed_by(self._tail, self.batch_size)
        self._prior: NDArray[np.float32] | None = None
        if settings.refine:
            # A package of its own, which only refined masks need.
            from fastdirs.mask_refinement import refined

            self._refined, self._prior = refined, self._mean_saliency()

    def inputs(self, seeds: Sequence[int]) -> list[Kept]:
        """What the session takes for seeds.

        Returns:
            Latents `[batch, signs, layers, dim]`, and weights of the classes `[batch, signs, c_dim]` if the
            synthesis reads them, float32.
        """
        runtime, settings, size = self._runtime, self._settings, self._tail.size
        facts, classes = runtime.generator, self._classes(seeds)
        z = sample_z(seeds, int(facts["z_dim"]), facts.get("z_bound")).numpy()
        latents = runtime.mapping(z, classes, settings.psi, settings.cutoff)
        shifted = (latents[:, None] + self._shifts).reshape(-1, *latents.shape[1:])
        given = runtime.inputs(shifted, None if classes is None else np.repeat(classes, size))
        return [each.reshape(len(seeds), size, *each.shape[1:]) for each in given]

    def candidates(self, seeds: Sequence[int], outputs: Sequence[Array]) -> Candidates:
        """What the session gave for seeds, filtered.

        Args:
            seeds: Those of the inputs.
            outputs: The session's: pixels, masks, histograms, and saliency if masks are refined.
                Each `[batch, ...]`.
        """
        pixels, masks, histograms, *saliency = outputs
        found, agreement = masks.astype(bool), None
        if self._prior is not None:
            found, agreement = self._refined(pixels, saliency[0], self._prior)
        found, areas, failing = apply_filters(found, histograms, self._settings.filters, agreement)
        classes = self._classes(seeds)
        named = None if classes is None else classes.tolist()
        return Candidates(seeds, named, pixels, found, areas, failing, self._settings)

    def shifted(self, seeds: Sequence[int]) -> tuple[Array, list[Array]]:
        """The images behind the masks, to look at: unshifted, and each shifted one.

        Returns:
            Each `[seeds, channels, height, width]`, float32.
        """
        inputs = [each.reshape(-1, *each.shape[2:]) for each in self.inputs(seeds)]
        images = self._runtime.session.run(inputs)
        unshifted, *shifted = (images[place :: self._tail.size] for place in range(self._tail.size))
        return unshifted, shifted

    def close(self) -> None:
        """Free the session; the runtime stays open."""
        self.session.close()

    def __enter__(self) -> "PairSource":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _mean_saliency(self) -> NDArray[np.float32]:
        """Where the objects of this generator lie, the same for all who make pairs with it: `[h, w]`."""
        seeds = [*range(_PRIOR_SEEDS), *[_PRIOR_SEEDS - 1] * (-_PRIOR_SEEDS % self.batch_size)]
        chunks = [seeds[first : first + self.batch_size] for first in range(0, len(seeds), self.batch_size)]
        found = np.concatenate([self.session.run_all(self.inputs(chunk))[3] for chunk in chunks])
        mean: NDArray[np.float32] = found[:_PRIOR_SEEDS].mean(axis=0, dtype=np.float64).astype(np.float32)
        return mean / np.float32(255)

    def _sized(self, asked: int | None) -> int:
        largest = self._runtime.max_batch
        if asked is not None and (asked < 1 or (largest and asked * self._tail.size > largest)):
            most = f" to {largest // self._tail.size}" if largest else " or more"
            raise SelectionError(
                f"A batch of {asked} pairs is out of range. Expected 1{most}: "
                f"each takes {self._tail.size} images."
            )
        return asked or max(1, self._runtime.usual_batch // self._tail.size)

    def _check_classes(self) -> None:
        classes, identity = self._settings.classes, self._runtime.generator
        if classes is None or isinstance(classes, int):
            check_class(identity, classes)
        elif not identity.get("c_dim"):
            check_class(identity, 0)
        elif not isinstance(classes, str):
            for each in classes:
                check_class(identity, each)

    def _classes(self, seeds: Sequence[int]) -> NDArray[np.int64] | None:
        """The class of each seed, which depends on the seed alone: `[seeds]`, int64."""
        classes = self._settings.classes
        if classes is None:
            return None
        if isinstance(classes, int):
            return np.full(len(seeds), classes, dtype=np.int64)
        if isinstance(classes, str):
            drawn: NDArray[np.int64] = sample_classes(seeds, int(self._runtime.generator["c_dim"])).numpy()
            return drawn
        chosen = np.array(classes, dtype=np.int64)
        picked: NDArray[np.int64] = chosen[sample_classes(seeds, len(chosen)).numpy()]
        return picked
