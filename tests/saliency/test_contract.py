"""The whole way of a saliency model: pairs of the toy, training, export, folders of pictures, measure."""

from pathlib import Path

import numpy as np
import pytest

from fastdirs.artifact import Artifact
from fastdirs.directions import DirectionBank
from fastdirs.generators import Generator
from fastdirs.generators.toy import Toy
from fastdirs.images import encode, to_uint8
from fastdirs.mask_scores import rank_removers
from fastdirs.mask_settings import MaskSettings
from fastdirs.masks import make_masks
from fastdirs.runtime import open_runtime
from fastdirs.saliency.cutouts import run_folder
from fastdirs.saliency.evaluation import evaluate_folder, read_predictions
from fastdirs.saliency.export import export_segmenter
from fastdirs.saliency.runtime import open_saliency
from fastdirs.saliency.settings import saliency_settings
from fastdirs.saliency.training import train_saliency


@pytest.mark.slow
def test_from_pairs_without_labels_to_a_measured_model(
    toy: Generator, toy_artifact: Artifact, toy_bank: DirectionBank, tmp_path: Path
) -> None:
    assert isinstance(toy, Toy)
    with open_runtime(toy_artifact, "ort") as opened:
        best = rank_removers(opened, toy_bank).removers[0]
    settings = MaskSettings(direction=best.direction, epsilon=best.epsilon, rule=best.rule)
    pairs = make_masks(toy_artifact, toy_bank, tmp_path / "pairs", settings, 400, backend="ort")
    chosen = saliency_settings("quick", {"steps": "400", "width": "16", "batch": "16"})
    trained = train_saliency(pairs, tmp_path / "model.safetensors", chosen)
    artifact = export_segmenter(trained.path, tmp_path / "saliency")
    # Scenes that no pair shows.
    seeds = range(10**9, 10**9 + 24)
    latents = toy.mapping(toy.sample(seeds))
    for folder, pictures in (
        ("images", to_uint8(toy.synthesis(latents))),
        ("masks", toy.mask(latents).numpy()[..., None].astype(np.uint8) * 255),
    ):
        (tmp_path / folder).mkdir()
        for seed, picture in zip(seeds, pictures, strict=True):
            (tmp_path / folder / f"{seed}.png").write_bytes(encode(picture, "png"))
    with open_saliency(artifact, "ort") as runtime:
        run_folder(runtime, tmp_path / "images", tmp_path / "out", what=["saliency"])
    given = read_predictions(tmp_path / "out" / "saliency", tmp_path / "masks")
    results = evaluate_folder(given, tmp_path / "masks")
    assert results.overall["iou"] > 0.85
    assert results.overall["mae"] < 0.05
