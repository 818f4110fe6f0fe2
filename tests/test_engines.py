"""Engines lie beside their graphs, each with its manifest, and nothing is left of one that is refused."""

from pathlib import Path

import onnx
import pytest

from fastdirs.artifact import Artifact
from fastdirs.engines import build_engines
from fastdirs.errors import BackendError
from fastdirs.graph_parts import part
from fastdirs.inspection import inspect_file
from fastdirs.manifest import read_json
from fastdirs.recipe import Batch, Engine

pytest.importorskip("tensorrt_rtx")
RTX = Engine(to="tensorrt-rtx", compute_capability=("8.6", "8.9", "12.0"))


def test_each_graph_gets_one(toy_artifact: Artifact, tmp_path: Path) -> None:
    graph = tmp_path / "synthesis.onnx"
    graph.write_bytes(toy_artifact.synthesis_path.read_bytes())
    lines: list[str] = []
    steps: list[tuple[str, int, int]] = []
    written = build_engines(
        tmp_path, {"f32": graph}, Batch(opt=2, max=4), RTX, lambda *step: steps.append(step), lines.append
    )
    assert set(written) == {"synthesis.tensorrt-rtx.engine", "synthesis.tensorrt-rtx.engine.json"}
    assert set(written) | {"synthesis.onnx"} == {each.name for each in tmp_path.iterdir()}
    content = read_json(tmp_path / "synthesis.tensorrt-rtx.engine.json", "engine")
    assert written["synthesis.tensorrt-rtx.engine"] == content
    assert content["profile"] == {"min": 1, "opt": 2, "max": 4}
    assert lines == [f"synthesis.tensorrt-rtx.engine: tensorrt-rtx {content['version']} for 8.6, 8.9, 12.0"]
    assert steps
    described = inspect_file(tmp_path / "synthesis.tensorrt-rtx.engine")
    # The file itself says the same release.
    assert described["built_by"] == f"TensorRT for RTX {content['version']}"


def test_a_graph_in_another_precision_than_it_is_said_to_be(toy_artifact: Artifact, tmp_path: Path) -> None:
    graph = tmp_path / "synthesis.f16.onnx"
    graph.write_bytes(toy_artifact.synthesis_path.read_bytes())
    with pytest.raises(
        BackendError, match=r"synthesis\.f16\.onnx computes in f32 in tensorrt-rtx, not in f16"
    ):
        build_engines(tmp_path, {"f16": graph}, Batch(opt=2, max=4), RTX)
    assert [each.name for each in tmp_path.iterdir()] == ["synthesis.f16.onnx"]


def test_pixels(toy_artifact: Artifact, tmp_path: Path) -> None:
    graph = tmp_path / "pixels.onnx"
    onnx.save(part(onnx.load(str(toy_artifact.synthesis_path)), pixels=True), str(graph))
    content = build_engines(tmp_path, {"f32": graph}, Batch(opt=2, max=4), RTX)["pixels.tensorrt-rtx.engine"]
    assert [each["dtype"] for each in content["outputs"]] == ["uint8"]
