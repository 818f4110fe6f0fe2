"""An engine that does not fit is refused, and the message says in what and how to build one that does."""

from dataclasses import replace
from pathlib import Path

import pytest

from fastdirs.backends._tensorrt_fit import Facts, facts_of, manifest_path, misfit, read_fitting
from fastdirs.backends._tensorrt_library import Gpu
from fastdirs.errors import ArtifactError, BackendError, PrecisionError
from fastdirs.manifest import Json, manifest, write_json
from fastdirs.recipe import Batch

CONTENT: Json = {
    "library": "tensorrt", "version": "11.4.0", "compute_capabilities": ["8.9"], "platform": "Linux",
    "machine": "x86_64", "gpu": "NVIDIA L4", "precision": "f16",
    "graph_sha256": "a" * 64, "engine_sha256": "b" * 64,
    "profile": {"min": 1, "opt": 4, "max": 8}, "inputs": [], "outputs": [], "heavy_layers": {"f16": 4},
}  # fmt: skip
FACTS = Facts(
    library="tensorrt", version="11.4.0", gpu=Gpu("NVIDIA L4", "8.9"), system="Linux", machine="x86_64",
    precision="f16",     graph_sha256="a" * 64, engine_sha256="b" * 64, batch=Batch(opt=4, max=8),
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
        ({"gpu": Gpu("some", "12.0")}, "for GPUs of compute capability 8.9, and this one has 12.0"),
        ({"system": "Windows"}, "built on Linux x86_64 for the NVIDIA L4, and this is Windows x86_64"),
        ({"machine": "aarch64"}, "and this is Linux aarch64 with the NVIDIA L4"),
        # Another one of the same compute capability.
        ({"gpu": Gpu("NVIDIA L40", "8.9")}, "and this is Linux x86_64 with the NVIDIA L40"),
        ({"precision": "f32"}, "computes in f16, not in f32"),
        ({"graph_sha256": "c" * 64}, "another graph"),
        ({"engine_sha256": "c" * 64}, "not what was built"),
        ({"batch": Batch(opt=4, max=9)}, "serves batches of 1 to 8 images, and 9 are asked for"),
    ],
)
def test_each_misfit(change: Json, said: str) -> None:
    assert said in misfit(CONTENT, replace(FACTS, **change))


def test_engines_for_rtx_move_between_systems_and_gpus() -> None:
    facts = replace(FACTS, library="tensorrt-rtx", version="1.7.1", system="Windows", machine="AMD64")
    for capability in RTX["compute_capabilities"]:
        assert misfit({**CONTENT, **RTX}, replace(facts, gpu=Gpu("another", capability))) == ""
    assert "8.6, 8.9, 12.0" in misfit({**CONTENT, **RTX}, replace(facts, gpu=Gpu("old", "7.5")))


def test_files(tmp_path: Path) -> None:
    graph, engine = tmp_path / "synthesis.onnx", tmp_path / "synthesis.tensorrt-rtx.engine"
    graph.write_bytes(b"graph")
    engine.write_bytes(b"engine")
    ada = Gpu("NVIDIA L4", "8.9")
    facts = facts_of(graph, engine, "tensorrt-rtx", "1.7.1", ada, "f16", Batch(opt=4, max=8))
    content = {
        **CONTENT, **RTX, "graph_sha256": facts.graph_sha256, "engine_sha256": facts.engine_sha256,
    }  # fmt: skip
    assert manifest_path(engine).name == "synthesis.tensorrt-rtx.engine.json"
    write_json(manifest_path(engine), manifest("engine", content))
    assert read_fitting(engine, facts)["version"] == "1.7.1"
    engine.write_bytes(b"another engine")
    changed = facts_of(graph, engine, "tensorrt-rtx", "1.7.1", ada, "f16", Batch(opt=4, max=8))
    command = "--to tensorrt-rtx --compute-capability 8.9 --max-batch 8"
    with pytest.raises(ArtifactError, match=f"{engine.name} cannot be used: .*not what was built.*{command}"):
        read_fitting(engine, changed)
    write_json(manifest_path(engine), manifest("engine", {**content, "profile": {"min": 1}}))
    with pytest.raises(ArtifactError, match=r"lacks 'max'\. Build the engine again"):
        read_fitting(engine, facts)
    older = {key: value for key, value in content.items() if key != "heavy_layers"}
    write_json(manifest_path(engine), manifest("engine", older))
    with pytest.raises(ArtifactError, match=r"lacks 'heavy_layers'\. Build the engine again"):
        read_fitting(engine, facts)
    manifest_path(engine).unlink()
    with pytest.raises(ArtifactError, match="is missing or unreadable"):
        read_fitting(engine, facts)
    graph.unlink()
    with pytest.raises(ArtifactError, match=r"synthesis\.onnx cannot be read"):
        facts_of(graph, engine, "tensorrt-rtx", "1.7.1", ada, "f16", None)


def test_the_kind_of_error_says_what_would_help(tmp_path: Path) -> None:
    engine = tmp_path / "synthesis.tensorrt.engine"
    write_json(manifest_path(engine), manifest("engine", CONTENT))
    with pytest.raises(PrecisionError, match="give it the graph in f32, or ask for f16"):
        read_fitting(engine, replace(FACTS, precision="f32"))
    # A graph of another precision, exported since: this engine is merely old.
    with pytest.raises(BackendError, match="another graph") as caught:
        read_fitting(engine, replace(FACTS, precision="f32", graph_sha256="c" * 64))
    assert not isinstance(caught.value, PrecisionError)
