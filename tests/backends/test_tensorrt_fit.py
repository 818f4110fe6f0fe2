"""An engine that does not fit is refused, and the message says in what and how to build one that does."""

from dataclasses import replace
from pathlib import Path

import pytest

from fastdirs.backends._tensorrt_fit import Facts, facts_of, manifest_path, misfit, read_fitting
from fastdirs.errors import ArtifactError, BackendError
from fastdirs.manifest import Json, manifest, write_json
from fastdirs.recipe import Batch

CONTENT: Json = {
    "library": "tensorrt", "version": "11.4.0", "compute_capabilities": ["8.9"], "platform": "Linux",
    "precision": "f16", "graph_sha256": "a" * 64, "engine_sha256": "b" * 64,
    "profile": {"min": 1, "opt": 4, "max": 8},
}  # fmt: skip
FACTS = Facts(
    library="tensorrt", version="11.4.0", compute_capability="8.9", system="Linux", precision="f16",
    graph_sha256="a" * 64, engine_sha256="b" * 64, batch=Batch(opt=4, max=8),
)  # fmt: skip
RTX = {"library": "tensorrt-rtx", "version": "1.7.1", "compute_capabilities": ["8.6", "8.9", "12.0"]}


def test_one_that_fits() -> None:
    assert misfit(CONTENT, FACTS) == ""
    assert misfit(CONTENT, replace(FACTS, batch=None)) == ""
    assert misfit(CONTENT, replace(FACTS, batch=Batch(opt=1, max=1))) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "11.3.1"}, "built by tensorrt 11.4.0, and tensorrt 11.3.1 is installed"),
        ({"library": "tensorrt-rtx"}, "built by tensorrt 11.4.0, and tensorrt-rtx 11.4.0 is installed"),
        ({"compute_capability": "12.0"}, "for GPUs of compute capability 8.9, and this one has 12.0"),
        ({"system": "Windows"}, "built on Linux, and this is Windows"),
        ({"precision": "f32"}, "computes in f16, not in f32"),
        ({"graph_sha256": "c" * 64}, "another graph"),
        ({"engine_sha256": "c" * 64}, "not what was built"),
        ({"batch": Batch(opt=4, max=9)}, "serves batches of 1 to 8 images, and 9 are asked for"),
    ],
)
def test_each_misfit(change: Json, said: str) -> None:
    assert said in misfit(CONTENT, replace(FACTS, **change))


def test_engines_for_rtx_move_between_systems_and_gpus() -> None:
    facts = replace(FACTS, library="tensorrt-rtx", version="1.7.1", system="Windows")
    for capability in RTX["compute_capabilities"]:
        assert misfit({**CONTENT, **RTX}, replace(facts, compute_capability=capability)) == ""
    assert "8.6, 8.9, 12.0" in misfit({**CONTENT, **RTX}, replace(facts, compute_capability="7.5"))


def test_files(tmp_path: Path) -> None:
    graph, engine = tmp_path / "synthesis.onnx", tmp_path / "synthesis.tensorrt-rtx.engine"
    graph.write_bytes(b"graph")
    engine.write_bytes(b"engine")
    facts = facts_of(graph, engine, "tensorrt-rtx", "1.7.1", "8.9", "f16", Batch(opt=4, max=8))
    content = {
        **CONTENT, **RTX, "graph_sha256": facts.graph_sha256, "engine_sha256": facts.engine_sha256,
    }  # fmt: skip
    assert manifest_path(engine).name == "synthesis.tensorrt-rtx.engine.json"
    write_json(manifest_path(engine), manifest("engine", content))
    assert read_fitting(engine, facts)["version"] == "1.7.1"
    engine.write_bytes(b"another engine")
    changed = facts_of(graph, engine, "tensorrt-rtx", "1.7.1", "8.9", "f16", Batch(opt=4, max=8))
    command = "--to tensorrt-rtx --compute-capability 8.9 --max-batch 8"
    with pytest.raises(BackendError, match=f"{engine.name} cannot be used: .*not what was built.*{command}"):
        read_fitting(engine, changed)
    write_json(manifest_path(engine), manifest("engine", {**content, "profile": {"min": 1}}))
    with pytest.raises(ArtifactError, match=r"lacks 'max'\. Build the engine again"):
        read_fitting(engine, facts)
    manifest_path(engine).unlink()
    with pytest.raises(ArtifactError, match="is missing or unreadable"):
        read_fitting(engine, facts)
    graph.unlink()
    with pytest.raises(ArtifactError, match=r"synthesis\.onnx cannot be read"):
        facts_of(graph, engine, "tensorrt-rtx", "1.7.1", "8.9", "f16", None)
