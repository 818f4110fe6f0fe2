"""What a reconstructor's file says of the pairs that it was trained on."""

import math

from fastdirs.directions import DirectionBank
from fastdirs.errors import CheckpointError, SelectionError
from fastdirs.pairs import ShiftDistribution
from fastdirs.reconstructor_runtime import ReconstructorRuntime


def taught_shifts(judge: ReconstructorRuntime | None) -> ShiftDistribution:
    """How far the pairs of its training were shifted; as usual if nobody says.

    Raises:
        CheckpointError: What the file says is damaged.
    """
    recorded = judge.content.get("shifts", {}) if judge else {}
    try:
        return ShiftDistribution(**recorded)
    except (TypeError, SelectionError) as error:
        raise CheckpointError(
            f"The reconstructor's file says of its shifts {recorded}, which is damaged. Train it again."
        ) from error


def taught_lengths(judge: ReconstructorRuntime | None, bank: DirectionBank) -> list[float]:
    """The bank's epsilon in one unit of the reconstructor's, signed, for each direction.

    Banks fix signs and lengths; a reconstructor was taught those of its deformator. Where its file does not
    say, an imported bank may.

    Raises:
        CheckpointError: What the file says is damaged.
    """
    usual = bank.settings.get("lengths", [1.0] * len(bank))
    recorded = judge.content.get("lengths", usual) if judge else usual
    lengths = recorded if isinstance(recorded, list) else []
    known = all(isinstance(each, float) and each and math.isfinite(each) for each in lengths)
    if not known or len(lengths) != len(bank):
        raise CheckpointError(
            f"The {len(bank)} lengths of the directions are recorded as {recorded}, which is damaged. "
            "Train the reconstructor again, or import the bank again."
        )
    return lengths


def taught_pairs(judge: ReconstructorRuntime, pairs: int) -> tuple[int, int, int] | None:
    """Batch, steps and seed to draw pairs that it was trained on, at most as many as there were.

    Args:
        judge: The reconstructor.
        pairs: How many are wanted.

    Returns:
        None where its file does not say.

    Raises:
        CheckpointError: What the file says is damaged.
    """
    recorded = judge.content.get("training")
    if recorded is None:
        return None
    try:
        batch, steps, seed = (int(recorded[name]) for name in ("batch", "steps", "seed"))
        return batch, min(steps, -(-pairs // batch)), seed
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"The reconstructor's file says of its training {recorded}, which is damaged. Train it again."
        ) from error
