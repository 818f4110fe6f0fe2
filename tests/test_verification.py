from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from fastdirs.artifact import Artifact
from fastdirs.errors import BackendError, ParityError
from fastdirs.graph_precision import typed
from fastdirs.images import decode, to_uint8
from fastdirs.recipe import DEFAULT_ACCEPT, Batch, Graph, Recipe, Tolerance, usual_accept
from fastdirs.verification import available, verify

EXACT = Tolerance(mean=0.0, max=0.0, psnr=300.0)


def _recipe(artifact: Artifact, *precisions: str, **changes: object) -> Recipe:
    recipe = Recipe(
        generator=artifact.generator["name"], graph=Graph(precisions=("f32", *precisions)),
        accept=usual_accept(precisions), batch=Batch(**artifact.content["batch"]),
    )  # fmt: skip
    return replace(recipe, **changes)  # type: ignore[arg-type]


def test_rows_say_what_ran(dcgan_artifact: Artifact) -> None:
    recipe = _recipe(dcgan_artifact)
    pairs, lines = available(recipe), []
    rows = verify(dcgan_artifact.graphs, recipe, pairs, dcgan_artifact.reference(), None, lines.append)
    assert [(row["backend"], row["precision"]) for row in rows] == pairs
    assert all(row["batch_sizes"] == [1, 2, recipe.batch.max] and row["accepted"] for row in rows)
    assert len(lines) == len(rows)
    assert "at batch 1, 2, 8: mean" in lines[0]


@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_a_typed_graph_is_run_with_its_rounding(
    precision: str, dcgan_artifact: Artifact, tmp_path: Path
) -> None:
    path = tmp_path / f"synthesis.{precision}.onnx"
    onnx.save(typed(onnx.load(str(dcgan_artifact.synthesis_path)), precision), str(path))  # type: ignore[arg-type]
    recipe = _recipe(dcgan_artifact, precision, required=(precision,))
    graphs = {**dcgan_artifact.graphs, precision: path}
    # Without OpenVINO, which computes in bf16 from the float32 graph.
    pairs = [pair for pair in available(recipe) if pair[1] == "f32"]
    rows = verify(graphs, recipe, pairs, dcgan_artifact.reference(), None)
    (row,) = [row for row in rows if "rounded" in row["provider"]]
    assert (row["backend"], row["precision"]) == ("ort", precision)
    assert row["parity"]["mean"] > rows[0]["parity"]["mean"], "rounding shows"
    strict = replace(recipe, accept={**recipe.accept, precision: EXACT})
    with pytest.raises(ParityError, match=rf"synthesis\.{precision}\.onnx on ort in {precision} differs"):
        verify(graphs, strict, pairs, dcgan_artifact.reference(), None)


def test_what_fails_is_shown(dcgan_artifact: Artifact, tmp_path: Path) -> None:
    reference = dcgan_artifact.reference()
    images = reference.images.copy()
    images[1] = -images[1]
    recipe, picture = _recipe(dcgan_artifact), tmp_path / "worst.png"
    with pytest.raises(ParityError, match=r"in f32 differs .*worst\.png shows the worst image"):
        verify(dcgan_artifact.graphs, recipe, available(recipe), replace(reference, images=images), picture)
    width = images.shape[3]
    np.testing.assert_array_equal(decode(picture.read_bytes())[:, :width], to_uint8(images)[1])


def test_what_nothing_here_computes_in(dcgan_artifact: Artifact) -> None:
    recipe = _recipe(dcgan_artifact, accept={"f16": DEFAULT_ACCEPT["f16"]}, required=("f16",))
    with pytest.raises(BackendError, match="Nothing here computes in f16, so an export could not be"):
        available(recipe)
    recipe = _recipe(dcgan_artifact, accept=usual_accept(("int8",)), required=("int8",))
    with pytest.raises(BackendError, match=r"Nothing here runs synthesis\.onnx in int8, which the recipe"):
        verify(dcgan_artifact.graphs, recipe, available(recipe), dcgan_artifact.reference(), None)


def test_a_graph_that_nothing_runs_is_not_shipped(dcgan_artifact: Artifact) -> None:
    # It says int8, and holds nothing of it: each runtime refuses it, and float32 passes.
    recipe = _recipe(dcgan_artifact, "int8")
    graphs = {**dcgan_artifact.graphs, "int8": dcgan_artifact.synthesis_path}
    with pytest.raises(BackendError, match=r"Nothing here runs synthesis\.onnx, so it could not be verified"):
        verify(graphs, recipe, available(recipe), dcgan_artifact.reference(), None)
