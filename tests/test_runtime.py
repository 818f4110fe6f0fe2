import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from fastdirs.artifact import REFERENCE, SYNTHESIS, Artifact
from fastdirs.backends import BACKENDS, Array, graph_backends
from fastdirs.errors import (
    ArtifactError,
    BackendError,
    ContractError,
    ParityError,
    SelectionError,
    ShapeError,
    UnknownNameError,
)
from fastdirs.generators import Generator
from fastdirs.latents import sample_z
from fastdirs.loading import load_generator
from fastdirs.manifest import cache_dir
from fastdirs.parity import compare
from fastdirs.recipe import DEFAULT_ACCEPT
from fastdirs.runtime import measure_backends, open_runtime

GRAPH_BACKENDS = list(dict.fromkeys(name for name, _ in graph_backends(("f32",))[0]))
HAS_BF16 = "bf16" in BACKENDS.load("openvino_cpu").precisions()


@pytest.fixture
def own_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing was measured yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_dir() / "choices.json"


def _latents(generator: Generator, count: int) -> Array:
    return generator.mapping(sample_z(range(count), generator.z_dim)).numpy()


def _accepting(artifact: Artifact, accept: dict[str, Any]) -> Artifact:
    return Artifact(artifact.folder, {**artifact.content, "accept": accept})


@pytest.mark.usefixtures("own_choices")
def test_auto_says_what_it_chose_and_why(toy_artifact: Artifact, toy: Generator) -> None:
    rows, kept = measure_backends(toy_artifact, "auto", None, 4)
    assert not kept
    assert {(row.backend, row.precision) for row in rows} == {
        (name, precision)
        for name in GRAPH_BACKENDS
        for precision in BACKENDS.load(name).precisions()
        if BACKENDS.load(name).graph_of(precision) == "f32"
    }
    with open_runtime(toy_artifact) as runtime:
        best = max((row for row in rows if row.accepted), key=lambda row: row.images_per_second)
        assert (runtime.backend, runtime.precision) == (best.backend, best.precision)
        listed = ", ".join(
            f"{row.backend} {row.precision} {row.images_per_second:.0f} images/s" for row in rows
        )
        assert runtime.reason == f"fastest of {listed} at batch 4 (measured earlier)"
        assert runtime.describe() == {
            "backend": best.backend,
            "precision": best.precision,
            "provider": best.provider,
        }
        assert runtime.parity == best.parity
        assert runtime.max_batch == 8
        latents = _latents(toy, 8)
        images = runtime.synthesize(latents)
    assert compare(images, toy.synthesis(torch.from_numpy(latents)).numpy()).within(
        DEFAULT_ACCEPT[best.precision]
    )


def test_a_choice_is_kept_for_this_artifact_and_batch(
    own_choices: Path, toy_artifact: Artifact, dcgan_artifact: Artifact
) -> None:
    with open_runtime(toy_artifact) as first:
        assert "measured earlier" not in first.reason
    with open_runtime(toy_artifact.folder) as second:
        assert second.reason == f"{first.reason} (measured earlier)"
        assert second.describe() == first.describe()
    with open_runtime(toy_artifact, batch_size=2) as third:
        assert third.reason.endswith("at batch 2")
    with open_runtime(toy_artifact, batch_size=100) as fourth:
        assert fourth.reason.endswith("at batch 8"), "no more than was verified"
    with open_runtime(dcgan_artifact) as fifth:
        assert "measured earlier" not in fifth.reason
    assert len(json.loads(own_choices.read_text())) == 4


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "rows", "row", "field", "\x00"])
def test_a_damaged_choice_is_measured_again(own_choices: Path, toy_artifact: Artifact, damage: str) -> None:
    measure_backends(toy_artifact, "ort", "f32", 2)
    content = json.loads(own_choices.read_text())
    ((key, rows),) = content.items()
    damaged: dict[str, object] = {
        "rows": {key: 3},
        "row": {key: [{"backend": "ort"}]},
        "field": {key: [{**rows[0], "parity": {"mean": 0}}]},
    }
    own_choices.write_text(json.dumps(damaged[damage]) if damage in damaged else damage)
    rows, kept = measure_backends(toy_artifact, "ort", "f32", 2)
    assert not kept
    assert rows[0].images_per_second > 0
    assert measure_backends(toy_artifact, "ort", "f32", 2) == (rows, True)


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_artifact: Artifact
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not measure_backends(toy_artifact, "ort", "f32", 2)[1]
    assert not measure_backends(toy_artifact, "ort", "f32", 2)[1]


@pytest.mark.parametrize("backend", GRAPH_BACKENDS)
def test_an_explicit_backend(toy_artifact: Artifact, backend: str) -> None:
    with open_runtime(str(toy_artifact.folder), backend=backend, precision="f32") as runtime:
        assert (runtime.backend, runtime.precision) == (backend, "f32")
        assert runtime.reason == "the only candidate"
        assert runtime.provider
        assert runtime.parity is not None
        assert runtime.parity.within(DEFAULT_ACCEPT["f32"])


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no bf16 units")
def test_an_explicit_precision(dcgan_artifact: Artifact) -> None:
    with open_runtime(dcgan_artifact, precision="bf16") as runtime:
        assert (runtime.backend, runtime.precision) == ("openvino_cpu", "bf16")
        assert "in bf16" in runtime.detail


def test_backends_that_do_not_apply(toy_artifact: Artifact, toy: Generator) -> None:
    with pytest.raises(UnknownNameError, match=r"no backend 'openvino'. Did you mean 'openvino_cpu'\?"):
        open_runtime(toy_artifact, backend="openvino")
    with pytest.raises(UnknownNameError, match=r"no backend 'eagre'. Did you mean 'eager'"):
        open_runtime(toy, backend="eagre")
    with pytest.raises(BackendError, match="eager runs models, not exported graphs"):
        open_runtime(toy_artifact, backend="eager")
    for backend in GRAPH_BACKENDS:
        with pytest.raises(
            BackendError, match=rf"{backend} runs exported graphs.*fastdirs export MODEL --out DIR"
        ):
            open_runtime(toy, backend=backend)


def test_precisions_that_do_not_apply(toy_artifact: Artifact, toy: Generator) -> None:
    with pytest.raises(BackendError, match=r"accepts f32, bf16, not 'f16'"):
        open_runtime(toy_artifact, precision="f16")
    with pytest.raises(BackendError, match=r"ort does not compute in 'bf16' .* It offers: f32"):
        open_runtime(toy_artifact, backend="ort", precision="bf16")
    with pytest.raises(BackendError, match=r"eager does not compute in 'f16' .* It offers: f32"):
        open_runtime(toy, precision="f16")
    f32_only = _accepting(toy_artifact, {"f32": toy_artifact.content["accept"]["f32"]})
    with pytest.raises(BackendError, match="accepts f32, not 'bf16'"):
        open_runtime(f32_only, precision="bf16")
    bf16_only = _accepting(toy_artifact, {"bf16": toy_artifact.content["accept"]["bf16"]})
    with pytest.raises(BackendError, match="ort computes in f32, int8 here, but this artefact accepts only"):
        open_runtime(bf16_only, backend="ort")


@pytest.mark.usefixtures("own_choices")
def test_what_is_beyond_the_tolerance_here_is_not_used(toy_artifact: Artifact) -> None:
    accept = toy_artifact.content["accept"]
    exact = {"mean": 0.0, "max": 0.0, "psnr": 300.0}
    with pytest.raises(ParityError, match=r"On this machine .*error beyond tolerance.*: mean"):
        open_runtime(_accepting(toy_artifact, dict.fromkeys(accept, exact)))
    with open_runtime(_accepting(toy_artifact, {**accept, "bf16": exact})) as runtime:
        assert runtime.precision == "f32"
        assert ("bf16" in runtime.reason) == HAS_BF16
        assert runtime.reason.count("(error beyond tolerance)") == runtime.reason.count("bf16")


def test_a_changed_graph_is_not_opened(toy_artifact: Artifact, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy_artifact.folder, tmp_path / "artifact"))
    with (folder / SYNTHESIS).open("ab") as file:
        file.write(b"\x00")
    with pytest.raises(ArtifactError, match="changed since its manifest was written"):
        open_runtime(folder)
    (folder / REFERENCE).unlink()
    with pytest.raises(ArtifactError):
        open_runtime(folder)


def test_latents_are_checked(toy_artifact: Artifact, toy: Generator) -> None:
    with open_runtime(toy_artifact, backend="ort") as runtime:
        assert runtime.synthesize(_latents(toy, 8)).shape[0] == 8
        with pytest.raises(SelectionError, match=r"A batch of 9 is out of range.*verified for 1 to 8"):
            runtime.synthesize(_latents(toy, 9))
        with pytest.raises(SelectionError, match="The batch is empty"):
            runtime.synthesize(_latents(toy, 1)[:0])
        with pytest.raises(ShapeError, match=r"latents has shape \[1, 16\]"):
            runtime.synthesize(_latents(toy, 1)[:, 0])
        with pytest.raises(ShapeError, match=r"expected \[batch, layers=1, dim=16\]"):
            runtime.synthesize(_latents(toy, 1)[..., :15])
        with pytest.raises(ContractError, match="toy takes no class"):
            runtime.synthesize(_latents(toy, 1), c=np.zeros(1, dtype=np.float32))
        with pytest.raises(SelectionError, match="A batch of 9 is out of range"):
            list(runtime.stream([_latents(toy, 2), _latents(toy, 9)]))


@pytest.mark.parametrize("backend", ["eager", *GRAPH_BACKENDS])
def test_any_kind_of_array_is_taken(toy_artifact: Artifact, toy: Generator, backend: str) -> None:
    latents = _latents(toy, 4)
    read_only = latents.copy()
    read_only.flags.writeable = False
    spread = np.repeat(latents, 2, axis=0)[::2]
    with open_runtime(toy if backend == "eager" else toy_artifact, backend, "f32") as runtime:
        wanted = runtime.synthesize(latents)
        for other in (read_only, spread, latents.astype(np.float64), np.asfortranarray(latents)):
            np.testing.assert_array_equal(runtime.synthesize(other), wanted)
            np.testing.assert_array_equal(next(runtime.stream([other])), wanted)


@pytest.mark.parametrize("streaming", [False, True])
def test_streams_in_order(toy_artifact: Artifact, toy: Generator, streaming: bool) -> None:
    latents = _latents(toy, 24)
    with open_runtime(toy_artifact, precision="f32", streaming=streaming) as runtime:
        images = np.concatenate(list(runtime.stream(latents.reshape(12, 2, *latents.shape[1:]))))
    assert compare(images, toy.synthesis(torch.from_numpy(latents)).numpy()).max < 0.5


@pytest.mark.parametrize("name", ["toy", "layered"])
def test_a_generator_runs_in_torch(name: str, request: pytest.FixtureRequest) -> None:
    generator: Generator = request.getfixturevalue(name)
    with open_runtime(generator) as runtime:
        assert (runtime.backend, runtime.precision) == ("eager", "f32")
        assert "export it" in runtime.reason
        assert runtime.parity is None
        assert runtime.max_batch is None
        latents = _latents(generator, 40)
        np.testing.assert_array_equal(
            runtime.synthesize(latents), generator.synthesis(torch.from_numpy(latents)).numpy()
        )
        with pytest.raises(SelectionError, match="The batch is empty"):
            runtime.synthesize(latents[:0])
        found = runtime.latents_of(0.6, 1)((3, 7))
        wanted = generator.mapping(sample_z((3, 7), generator.z_dim), psi=0.6, cutoff=1)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_a_generator_that_is_being_trained(layered: Generator) -> None:
    layered.requires_grad_(True)
    try:
        with open_runtime(layered) as runtime:
            latents = runtime.latents_of()((0, 1)).numpy()
            assert runtime.synthesize(latents).shape[0] == 2
    finally:
        layered.requires_grad_(False)


def test_seeds_become_latents(toy_artifact: Artifact, toy: Generator) -> None:
    with open_runtime(toy_artifact, backend="ort") as runtime:
        for psi, cutoff in ((1.0, None), (0.5, None), (0.5, 0)):
            wanted = toy.mapping(sample_z((4, 2), toy.z_dim), psi=psi, cutoff=cutoff)
            torch.testing.assert_close(runtime.latents_of(psi, cutoff)((4, 2)), wanted, rtol=0, atol=1e-6)
        with pytest.raises(SelectionError, match="psi is nan"):
            runtime.latents_of(float("nan"))
        with pytest.raises(SelectionError, match="Cutoff 2 is out of range"):
            runtime.latents_of(0.5, 2)


@pytest.mark.parametrize("backend", ["eager", *GRAPH_BACKENDS])
def test_a_closed_runtime_says_so(toy_artifact: Artifact, toy: Generator, backend: str) -> None:
    with open_runtime(toy if backend == "eager" else toy_artifact, backend) as runtime:
        runtime.synthesize(_latents(toy, 1))
        latents_of = runtime.latents_of()
    runtime.close()
    with pytest.raises(BackendError, match="This runtime was closed"):
        runtime.synthesize(_latents(toy, 1))
    with pytest.raises(BackendError, match="This runtime was closed"):
        list(runtime.stream([_latents(toy, 1)]))
    with pytest.raises(BackendError, match="This runtime was closed"):
        latents_of((0,))


def test_closing_frees_all_graphs(layered_artifact: Artifact) -> None:
    def opened() -> int:
        gc.collect()
        return sum(type(each) is onnxruntime.InferenceSession for each in gc.get_objects())

    before = opened()
    runtime = open_runtime(layered_artifact, backend="ort")
    assert opened() == before + 2, "mapping and synthesis"
    runtime.close()
    assert opened() == before


def test_a_generator_runs_in_no_precision_that_it_ignores(toy_artifact: Artifact, tmp_path: Path) -> None:
    if "bf16" not in BACKENDS.load("eager").precisions():
        pytest.skip("this processor has no bf16 units")
    shutil.copy(toy_artifact.synthesis_path, tmp_path / "own.onnx")
    with pytest.raises(BackendError, match="own runs in f32 only, not in bf16"):
        open_runtime(load_generator(tmp_path / "own.onnx"), precision="bf16")


_WITH_ONE_RUNTIME = """
import sys
import numpy as np
import fastdirs
from fastdirs.errors import MissingDependencyError, FastdirsError
from fastdirs.export import export_generator
from fastdirs.verification import verify_artifact
from fastdirs.recipe import DEFAULT_ACCEPT, Recipe
from fastdirs.artifact import open_artifact

artifact, missing, out = sys.argv[1:]
for source in (artifact, open_artifact(artifact)):
    try:
        fastdirs.open_runtime(source, backend=missing)
    except MissingDependencyError as error:
        print(error)
with fastdirs.open_runtime(artifact) as runtime:
    print(runtime.backend, runtime.synthesize(runtime.latents_of()((0, 1)).numpy()).shape)
print([row["backend"] for row in verify_artifact(open_artifact(artifact))])
if missing == "openvino_cpu":
    # ONNX Runtime has no bf16 here, so what asks for it names the package that brings it.
    recipe = Recipe(generator="toy", accept=DEFAULT_ACCEPT, required=("bf16",))
    for ask in (
        lambda: fastdirs.open_runtime(artifact, precision="bf16"),
        lambda: export_generator(fastdirs.load_generator("toy"), out, recipe),
    ):
        try:
            ask()
        except FastdirsError as error:
            print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("missing", "package", "other"),
    [("openvino_cpu", "openvino", "ort"), ("ort", "onnxruntime", "openvino_cpu")],
)
def test_one_runtime_is_enough(
    python_without: Callable[..., str],
    toy_artifact: Artifact,
    tmp_path: Path,
    missing: str,
    package: str,
    other: str,
) -> None:
    arguments = (toy_artifact.folder, missing, tmp_path / "out")
    printed = python_without([package], _WITH_ONE_RUNTIME, *arguments).splitlines()
    hint = f"The backend '{missing}' needs {package}, which is not installed: pip install 'fastdirs[cpu]'"
    assert printed[:2] == [hint, hint]
    assert printed[2] == f"{other} (2, 3, 32, 32)"
    assert set(printed[3].strip("[]").replace("'", "").split(", ")) == {other}
    if missing == "openvino_cpu":
        assert printed[4:] == [f"MissingDependencyError {hint}"] * 2
    assert not (tmp_path / "out").exists()


_WITHOUT_ANY_RUNTIME = """
import sys
import fastdirs
from fastdirs.errors import MissingDependencyError

artifact, out = sys.argv[1:]
generator = fastdirs.load_generator("toy")
for ask in (lambda: fastdirs.open_runtime(artifact), lambda: fastdirs.export_generator(generator, out)):
    try:
        ask()
    except MissingDependencyError as error:
        print(error)
with fastdirs.open_runtime(generator) as runtime:
    print(runtime.backend)
"""


def test_torch_is_there_without_any_runtime(
    python_without: Callable[..., str], toy_artifact: Artifact, tmp_path: Path
) -> None:
    packages = ["onnxruntime", "openvino"]
    printed = python_without(
        packages, _WITHOUT_ANY_RUNTIME, toy_artifact.folder, tmp_path / "out"
    ).splitlines()
    assert len(printed) == 3
    assert all("pip install 'fastdirs[cpu]'" in line for line in printed[:2])
    assert printed[2] == "eager"
    assert list(tmp_path.iterdir()) == []
