from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result

from fastdirs.artifact import Artifact


def test_json(run_json: Callable[..., Any], toy_artifact: Artifact) -> None:
    rows = run_json("verify", toy_artifact.folder)
    assert {(row["backend"], row["precision"]) for row in rows} >= {("ort", "f32"), ("openvino_cpu", "f32")}
    for row in rows:
        assert row["accepted"] or row["precision"] != "f32"
        assert 0 <= row["parity"]["mean"] <= row["parity"]["max"]


def test_a_line_for_people(run: Callable[..., Result], toy_artifact: Artifact) -> None:
    result = run("verify", toy_artifact.folder)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{toy_artifact.folder}: verified on ")
    assert "ort f32" in result.stdout
    assert "grey levels" in result.stderr


def test_a_file_of_the_folder_may_be_named(run: Callable[..., Result], toy_artifact: Artifact) -> None:
    assert run("verify", toy_artifact.synthesis_path).exit_code == 0


def test_nothing_there(run: Callable[..., Result]) -> None:
    result = run("verify", "artifact")
    assert result.exit_code == 1
    assert "artifact does not exist" in result.stderr
    assert "fastdirs export" in result.stderr


def test_an_exported_reconstructor(
    run: Callable[..., Result], run_json: Callable[..., Any], reconstructor_file: Path
) -> None:
    assert run("export", reconstructor_file, "--max-batch", 2, "--out", "artifact").exit_code == 0
    result = run("verify", "artifact")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("artifact: verified on ")
    assert "largest error of logits" in result.stderr
    rows = run_json("verify", "artifact/reconstructor.onnx")
    assert {row["backend"] for row in rows} >= {"ort", "openvino_cpu"}
    data = bytearray(Path("artifact/reference.safetensors").read_bytes())
    data[-1] ^= 1
    Path("artifact/reference.safetensors").write_bytes(data)
    changed = run("verify", "artifact")
    assert changed.exit_code == 1
    assert "changed since its manifest was written" in changed.stderr
