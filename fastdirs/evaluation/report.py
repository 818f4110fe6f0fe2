"""The report of an evaluation: a folder with the figures as JSON and a page to look at, sort and compare."""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from fastdirs.artifact import Artifact
from fastdirs.directions import DirectionBank
from fastdirs.evaluation import KIND, Evaluation, EvaluationSettings, Progress, evaluate
from fastdirs.generators import Generator
from fastdirs.images import MIME_TYPES
from fastdirs.manifest import Json, atomic_folder, write_bytes, write_json
from fastdirs.runtime import Runtime

FIGURES_FILE = "evaluation.json"
PAGE_FILE = "index.html"
NOT_MEASURED = "–"


@dataclass(frozen=True)
class Figure:
    """One column of the table.

    Attributes:
        key: Its name in the JSON of a direction.
        heading: What the column is called.
        meaning: What it says, in plain words.
        pattern: How it is written, as in `format`.
        falls: Whether lower is better, so that the first click on the heading sorts upwards.
    """

    key: str
    heading: str
    meaning: str
    pattern: str = ".2f"
    falls: bool = False

    def text(self, direction: Json) -> str:
        """The figure of a direction, as it is written."""
        value = direction[self.key]
        return NOT_MEASURED if value is None else format(value, self.pattern).replace("-", "−")


FIGURES = (
    Figure(
        "score", "Score",
        "To sort by: the geometric mean of accuracy, consistency, smoothness and visibility, 0 to 1. "
        "Visibility is e / (e + 8) for an effect of e grey levels. What was not measured is left out.",
    ),
    Figure(
        "accuracy", "Accuracy",
        "Share of image pairs, made with seeds that no training used, in which the reconstructor "
        "recognised this direction. Low: it cannot be told from others, or does nothing.",
    ),
    Figure(
        "epsilon_error", "ε error",
        "How far the reconstructor's guess of ε is from the truth, on average, in latent units. Lower "
        "is better.",
        falls=True,
    ),
    Figure(
        "consistency", "Consistency",
        "Whether it does the same to every seed, as the reconstructor sees it: mean cosine between the "
        "features of a seed's pair and the centroid of the other seeds, −1 to 1.",
    ),
    Figure(
        "change_consistency", "Same change",
        "The same, seen without a reconstructor: the features are the difference between shifted and "
        "unshifted image, averaged over 16 × 16 cells. High if the same places change in the same way; "
        "an object that moves from wherever it is scores low.",
    ),
    Figure(
        "smoothness", "Smoothness",
        "How evenly, straight and without jumps the picture changes along ε, 0 to 1. A linear fade is "
        "1, one jump is 0; what moves or soon has no room left lies between.",
    ),
    Figure(
        "monotonicity", "Order",
        "Whether the reconstructor sees ε grow from each picture of a strip to all later ones, −1 to 1 "
        "(Kendall's rank correlation).",
    ),
    Figure(
        "effect", "Effect",
        "Mean absolute change at the two ends of the strip, in grey levels of 255.", ".1f",
    ),
    Figure(
        "effect_slope", "Effect per ε",
        "Grey levels of change for each unit of ε: the nearest straight line through zero.", ".2f",
    ),
    Figure(
        "overlap", "Overlap",
        "Largest absolute cosine with another direction of the bank, 0 to 1: near 1, the two are the "
        "same.",
        falls=True,
    ),
    Figure(
        "separation", "Split",
        "Foreground from background, 0 to 1: the share of what one map of colours for all pixels leaves "
        "unexplained that a second map explains, both the same for all seeds. High for directions that "
        "make masks.",
    ),
    Figure(
        "dvn", "DVN",
        "Direction variation naturalness, 0 to 1, chance is 0.5: a classifier learns from generated "
        "pictures which way they were shifted and says so of real ones; a second one learns from these, "
        "and this is its accuracy on generated ones. High only if real pictures vary in the same way.",
    ),
)  # fmt: skip


def report(
    source: Artifact | Generator,
    bank: DirectionBank,
    out: Path,
    settings: EvaluationSettings | None = None,
    *,
    reconstructor: str | Path | None = None,
    real: str | Path | None = None,
    force: bool = False,
    progress: Progress = lambda phase, done, total: None,
    opened: Callable[[Runtime], None] = lambda runtime: None,
) -> Evaluation:
    """Evaluate a bank, and write figures and page; nothing is left behind where it fails.

    Args:
        source: A model, or an exported artefact.
        bank: The directions.
        out: The folder to make.
        settings: How much is rendered, and with what.
        reconstructor: File or exported folder; None trains one, which is kept in `out`.
        real: Real pictures, an npz file or a folder; None = DVN is not measured.
        force: Replace the folder of an earlier evaluation.
        progress: Called with (phase, done, total).
        opened: Called with the runtime in effect.

    Raises:
        OutputError: The folder exists, or cannot be written.
        FastdirsError: As `evaluate`.
    """
    with atomic_folder(out, FIGURES_FILE, KIND, force) as folder:
        evaluation = evaluate(
            source, bank, folder, settings,
            reconstructor=reconstructor, real=real, progress=progress, opened=opened,
        )  # fmt: skip
        write_json(folder / FIGURES_FILE, evaluation.content)
        write_bytes(folder / PAGE_FILE, page(evaluation))
    return evaluation


def page(evaluation: Evaluation) -> bytes:
    """The page: needs no network, no server and no other file."""
    # Beside this file. Everything that is filled in is escaped.
    source = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    script = source.partition("<script>")[2].partition("</script>")[0]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    content = evaluation.content
    text = environment.from_string(source).render(
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        content=content,
        figures=[figure for figure in FIGURES if _measured(figure, content)],
        facts=_facts(content),
        directions=[content["directions"][index] for index in content["order"]],
        strips=[
            [base64.b64encode(data).decode() for data in of_direction] for of_direction in evaluation.strips
        ],
        mime=MIME_TYPES[evaluation.image_format],
        cells=_confusion_cells(content),
        steps=len(content["settings"]["epsilons"]),
        percent=_percent,
        signed=_signed,
    )
    # A label read from a file may hold half a surrogate pair, which UTF-8 has no bytes for.
    return text.encode("utf-8", errors="xmlcharrefreplace")


def _measured(figure: Figure, content: Json) -> bool:
    return any(direction[figure.key] is not None for direction in content["directions"])


def _facts(content: Json) -> dict[str, str]:
    """What was measured, on what, by what."""
    generator, bank, settings = content["generator"], content["bank"], content["settings"]
    judge, rca, training = content["reconstructor"], content["rca"], content["rca_training"]
    facts = {}
    if rca is not None:
        facts["RCA, held-out seeds"] = _share(rca)
        facts["RCA, seeds of training"] = "not recorded" if training is None else _share(training)
        facts["ε error, held-out seeds"] = f"{rca['epsilon_error']:.3g}"
    facts["DVN"] = "not measured (no real pictures)" if content["dvn"] is None else f"{content['dvn']:.3f}"
    if content["likeness"] is not None:
        facts["Consistency between different directions"] = f"{content['likeness']:.2f}".replace("-", "−")
    facts |= {
        "Directions": f"{len(content['directions'])}, {'curved' if bank['curved'] else 'straight'}",
        "Bank": bank["sha256"][:12],
        "Method settings": ", ".join(f"{k} = {v}" for k, v in bank["settings"].items()) or "none",
        "Seeds of strips": f"0–{settings['seeds'] - 1}",
        "Runtime": _in_effect(content["runtime"]),
        "Reconstructor": "none" if judge is None else _in_effect(judge),
    }
    if judge is not None:
        facts["Trained"] = f"here, {settings['steps']:,} steps" if judge["trained_here"] else "with the bank"
        shifts = settings["shifts"]
        facts["Shifts of pairs"] = f"{shifts['name']}, {shifts['minimum']:g} to {shifts['scale']:g}"
    return facts | {"Weights": generator["weights_sha256"][:12], "Licence": generator["licence"]}


def _in_effect(opened: Json) -> str:
    return " · ".join(str(opened[key]) for key in ("backend", "precision", "provider") if opened[key])


def _share(figures: Json) -> str:
    low, high = figures["interval"]
    return f"{figures['accuracy']:.3f} (95%: {low:.3f}–{high:.3f}, {figures['pairs']:,} pairs)"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.01 else "<1%"


def _signed(number: float) -> str:
    return f"{number:+.3g}".replace("-", "−") if number else "0"


def _confusion_cells(content: Json) -> list[dict[str, Any]]:
    """The cells of the confusion matrix that hold something; there are no more than pairs."""
    cells = []
    for row, counts in enumerate(content["confusion"] or []):
        for column, count in enumerate(counts):
            if count:
                share = count / sum(counts)
                cells.append({"row": row, "column": column, "share": share})
    return cells
