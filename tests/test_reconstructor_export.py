"""An exported reconstructor: what is in the folder, what it was compared with, and what is refused."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fastdirs.backends import BACKENDS, Array, Session, engine_path, graph_backends
from fastdirs.errors import ArtifactError, OutputError, ParityError
from fastdirs.manifest import Json, read_json, sha256_file, write_json
from fastdirs.recipe import Engine
from fastdirs.reconstructor_export import (
    GRAPH,
    OUTPUTS,
    REFERENCE,
    TOLERANCE,
    ReconstructorArtifact,
    compare_answers,
    export_reconstructor,
    is_reconstructor_artifact,
    make_pairs,
    measure_answers,
    open_reconstructor_artifact,
    verify_reconstructor,
)
from fastdirs.reconstructors import RECONSTRUCTORS, Reconstructor, build_reconstructor

MAX_BATCH = 5
CONTENT = {
    "kind": "reconstructor", "schema": 1, "environment": {}, "reconstructor": {"kind": "old"},
    "generator": {"name": "toy"}, "shifts": {"name": "uniform", "scale": 6.0, "minimum": 0.5},
    "bank_sha256": "ab",
}  # fmt: skip
RECORDED = {key: CONTENT[key] for key in ("generator", "shifts", "bank_sha256")}

pytest.importorskip("onnxruntime", reason="pip install 'fastdirs[cpu]'")


def _lived_in(kind: str, img_channels: int = 3) -> Reconstructor:
    """Random weights, and statistics of pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reconstructor = build_reconstructor(kind, 6, img_channels, 32)
        for _ in range(5):
            reconstructor(*make_pairs(img_channels, 32, 6))
    return reconstructor


@pytest.fixture(scope="module", params=RECONSTRUCTORS.names())
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ReconstructorArtifact, Reconstructor]:
    reconstructor = _lived_in(request.param)
    out = tmp_path_factory.mktemp("reconstructors") / "artifact"
    return export_reconstructor(reconstructor, CONTENT, out, max_batch=MAX_BATCH), reconstructor


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact that is copied, not changed."""
    out = tmp_path_factory.mktemp("lenet") / "artifact"
    return export_reconstructor(_lived_in("lenet"), CONTENT, out, max_batch=MAX_BATCH).folder


@pytest.fixture
def copied(lenet: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lenet, tmp_path / "copied"))


def test_the_graph(exported: tuple[ReconstructorArtifact, Reconstructor]) -> None:
    artifact, reconstructor = exported
    assert sorted(path.name for path in artifact.folder.iterdir()) == ["manifest.json", GRAPH, REFERENCE]
    model = onnx.load(str(artifact.graph_path))
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "images": ["batch", 3, 32, 32], "shifted": ["batch", 3, 32, 32], "logits": ["batch", 6],
        "epsilon": ["batch"], "features": ["batch", reconstructor.width],
    }  # fmt: skip
    identity = json.loads(model.metadata_props[0].value)["reconstructor"]
    assert identity["kind"] == reconstructor.kind


def test_the_manifest(exported: tuple[ReconstructorArtifact, Reconstructor]) -> None:
    artifact, reconstructor = exported
    content = artifact.content
    assert open_reconstructor_artifact(artifact.folder) == artifact
    assert content["kind"] == "reconstructor-artifact"
    assert content["recorded"] == RECORDED
    assert content["reconstructor"]["num_directions"] == 6
    assert content["files"] == {name: sha256_file(artifact.folder / name) for name in (GRAPH, REFERENCE)}
    assert content["batch"] == {"opt": MAX_BATCH, "max": MAX_BATCH}
    assert {row["backend"] for row in content["verified"]} == {
        name for name, _ in graph_backends(("f32",))[0]
    }
    for row in content["verified"]:
        assert row["batch_sizes"] == [1, 2, MAX_BATCH]
        assert set(row["errors"]) == set(OUTPUTS)
        assert 0 <= max(row["error_shares"].values()) <= TOLERANCE
    assert reconstructor.training, "the caller's network is left as it was"
    text = (artifact.folder / "manifest.json").read_text() + artifact.graph_path.read_bytes().decode(
        "latin-1"
    )
    assert str(Path.home()) + "/" not in text
    assert "fastdirs/reconstructors" not in text


def test_every_backend_answers_as_torch(exported: tuple[ReconstructorArtifact, Reconstructor]) -> None:
    artifact, reconstructor = exported
    images, shifted = (each.flip(2, 3) for each in make_pairs(3, 32, 4))
    reconstructor.eval()
    with torch.inference_mode():
        wanted = [each.numpy() for each in reconstructor(images, shifted)]
    reconstructor.train()
    assert np.ptp(wanted[0], axis=0).min() > 10 * TOLERANCE * np.abs(wanted[0]).max(), (
        "answers differ by more"
    )
    for backend, precision in graph_backends(("f32",))[0]:
        session = BACKENDS.load(backend).open(artifact.graph_path, precision, False)
        found = session.run_all([images.numpy(), shifted.numpy()])
        session.close()
        assert compare_answers(found, wanted).accepted


def test_verified_again_without_weights(exported: tuple[ReconstructorArtifact, Reconstructor]) -> None:
    lines: list[str] = []
    rows = verify_reconstructor(open_reconstructor_artifact(exported[0].folder), lines.append)
    assert [row["backend"] for row in rows] == [name for name, _ in graph_backends(("f32",))[0]]
    assert all(row["accepted"] for row in rows)
    assert len(lines) == len(rows)


def test_grey_images(tmp_path: Path) -> None:
    artifact = export_reconstructor(_lived_in("lenet", 1), {}, tmp_path / "grey", max_batch=2)
    assert artifact.reference()["images"].shape[1] == 1
    assert artifact.content["recorded"] == {}
    assert artifact.content["verified"][0]["batch_sizes"] == [1, 2]


def test_largest_batch_follows_the_image_size(tmp_path: Path) -> None:
    artifact = export_reconstructor(_lived_in("lenet"), {}, tmp_path / "lenet")
    assert artifact.content["batch"] == {"opt": 64, "max": 128}


def _answers(batch: int = 4) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    shapes = ((batch, 6), (batch,), (batch, 9))
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def test_equal_answers() -> None:
    parity = compare_answers(_answers(), _answers())
    assert parity.accepted
    assert set(parity.errors.values()) == {0.0}
    assert str(parity) == "largest error of logits 0, epsilon 0, features 0; 0 other directions"


@pytest.mark.parametrize("output", range(3))
@pytest.mark.parametrize("value", [0.01, float("nan"), float("inf")])
def test_an_answer_that_differs(output: int, value: float) -> None:
    found = _answers()
    found[output].reshape(-1)[1] += value
    parity = compare_answers(found, _answers())
    assert not parity.accepted
    assert [name for name, error in parity.errors.items() if error != 0] == [OUTPUTS[output]]


def test_an_answer_within_the_tolerance() -> None:
    found, wanted = _answers(), _answers()
    for mine, theirs in zip(found, wanted, strict=True):
        mine += 0.5 * TOLERANCE * np.abs(theirs).max()
    assert compare_answers(found, wanted).accepted


def test_small_answers_are_compared_by_their_own_size() -> None:
    found, wanted = ([1e-4 * each for each in _answers()] for _ in range(2))
    found[1] = found[1] + np.float32(1e-5)
    assert not compare_answers(found, wanted).accepted


@pytest.mark.parametrize(("lead", "disagreements"), [(5e-4, 1), (5e-6, 0)])
def test_another_direction_counts_unless_it_is_a_tie(lead: float, disagreements: int) -> None:
    wanted, found = _answers(1), _answers(1)
    wanted[0][:] = found[0][:] = np.array([[0, 0, 0, 1 + lead, 1, 0]], dtype=np.float32)
    found[0][0, 4] = 1 + 2 * lead
    parity = compare_answers(found, wanted)
    assert parity.disagreements == disagreements
    assert parity.accepted is (disagreements == 0)


def test_answers_of_another_shape() -> None:
    found = _answers()
    found[1] = found[1][:, None]
    assert not compare_answers(found, _answers()).accepted
    found[0] = found[0][:, :5]
    assert compare_answers(found, _answers()).disagreements == 4


class _Forgetful(Reconstructor):
    """Its graph is another one than what torch runs: only there is epsilon doubled."""

    kind = "forgetful"
    width = 3
    wrong: float = 2.0

    def features(self, pair: torch.Tensor) -> torch.Tensor:
        return pair.mean(dim=(2, 3))[:, :3]

    def heads(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        epsilon = features[:, 0] * (self.wrong if torch.compiler.is_compiling() else 1.0)
        return features, epsilon


@pytest.mark.parametrize("wrong", [2.0, float("nan")])
def test_beyond_the_tolerance_nothing_is_kept(wrong: float, tmp_path: Path) -> None:
    forgetful = _Forgetful(3, 3, 16)
    forgetful.wrong = wrong
    with pytest.raises(
        ParityError, match=r"reconstructor\.onnx on \w+ in f32 differs from torch fp32: .*epsilon"
    ):
        export_reconstructor(forgetful, {}, tmp_path / "artifact")
    assert not list(tmp_path.iterdir())
    forgetful.wrong = 1.0
    assert export_reconstructor(forgetful, {}, tmp_path / "artifact").content["verified"]


def test_a_folder_that_exists(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="--force"):
        export_reconstructor(_lived_in("lenet"), {}, copied, max_batch=2)
    assert open_reconstructor_artifact(copied).content["recorded"] == RECORDED
    export_reconstructor(_lived_in("lenet"), {}, copied, force=True, max_batch=2)
    assert open_reconstructor_artifact(copied).content["recorded"] == {}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="was not made by this command"):
        export_reconstructor(_lived_in("lenet"), {}, tmp_path / "mine", force=True)


@pytest.mark.parametrize("name", [GRAPH, REFERENCE])
def test_one_changed_byte(name: str, copied: Path) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(ArtifactError, match="changed since its manifest was written"):
        open_reconstructor_artifact(copied)


@pytest.mark.parametrize("name", [GRAPH, REFERENCE, "manifest.json"])
def test_a_missing_file(name: str, copied: Path) -> None:
    (copied / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}.* missing"):
        open_reconstructor_artifact(copied)


def _edit(folder: Path, change: Json, drop: str = "") -> None:
    content = json.loads((folder / "manifest.json").read_text())
    content = {**content, **change}
    content.pop(drop, None)
    write_json(folder / "manifest.json", content)


@pytest.mark.parametrize("key", ["reconstructor", "recorded", "batch", "files"])
def test_a_manifest_that_lacks_something(key: str, copied: Path) -> None:
    _edit(copied, {}, key)
    with pytest.raises(ArtifactError, match=f"says nothing of {key}"):
        open_reconstructor_artifact(copied)


def test_a_manifest_of_something_else(copied: Path) -> None:
    _edit(copied, {"kind": "artifact"})
    assert not is_reconstructor_artifact(copied)
    with pytest.raises(ArtifactError, match="not the manifest of a fastdirs reconstructor-artifact"):
        open_reconstructor_artifact(copied)


def test_opens_by_folder_or_file(copied: Path, tmp_path: Path) -> None:
    for path in (copied, copied / GRAPH, copied / "manifest.json"):
        assert is_reconstructor_artifact(path)
        assert open_reconstructor_artifact(path).folder == copied
    assert not is_reconstructor_artifact(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="does not exist"):
        open_reconstructor_artifact(tmp_path / "nothing")


def test_a_broken_reference(copied: Path) -> None:
    (copied / REFERENCE).write_bytes(b"no tensors")
    _edit(copied, {"files": {name: sha256_file(copied / name) for name in (GRAPH, REFERENCE)}})
    with pytest.raises(ArtifactError, match=f"{REFERENCE} is broken"):
        verify_reconstructor(open_reconstructor_artifact(copied))


def test_verification_compares_with_the_reference(copied: Path) -> None:
    artifact = open_reconstructor_artifact(copied)
    session = BACKENDS.load("ort").open(artifact.graph_path, "f32", False)
    reference = artifact.reference()
    assert measure_answers(session, reference, (1, 2, 11)).accepted
    reference["epsilon"] = reference["epsilon"] + np.float32(1)
    parity = measure_answers(session, reference, (1,))
    assert parity.errors["epsilon"] == pytest.approx(1, abs=1e-3)
    # Wrong in one row only, which a batch of one does not hold.
    reference = artifact.reference()
    reference["logits"][2] *= 2
    assert measure_answers(session, reference, (1,)).accepted
    assert not measure_answers(session, reference, (1, 3)).accepted


class _NotFiniteAtTwo(Session):
    """Right but for batches of two."""

    precision, provider, detail, num_parallel = "f32", "wrong", "", 1

    def run_all(self, inputs: Sequence[Array]) -> list[Array]:
        answers = [each[: len(inputs[0])] for each in _answers()]
        return [each * np.float32("nan" if len(each) == 2 else 1) for each in answers]

    def close(self) -> None:
        pass


@pytest.mark.parametrize("sizes", [(1, 2, 4), (2, 4), (4, 2)])
def test_a_wrong_batch_size_is_not_forgotten(sizes: tuple[int, ...]) -> None:
    pictures = np.zeros((4, 1, 2, 2), np.float32)
    answers = dict(zip(OUTPUTS, _answers(), strict=True))
    reference = {"images": pictures, "shifted": pictures, **answers}
    assert measure_answers(_NotFiniteAtTwo(), reference, (1, 4)).accepted
    assert not measure_answers(_NotFiniteAtTwo(), reference, sizes).accepted


def test_pairs_are_the_same_each_time_and_differ() -> None:
    images, shifted = make_pairs(3, 40, 5)
    assert images.shape == shifted.shape == (5, 3, 40, 40)
    assert torch.equal(images, make_pairs(3, 40, 5)[0])
    assert max(images.abs().max(), shifted.abs().max()) <= 1
    assert (images - shifted).abs().mean(dim=(1, 2, 3)).min() > 0.05
    assert images.std(dim=0).min() > 0


@pytest.mark.parametrize("kind", RECONSTRUCTORS.names())
def test_an_engine_beside_the_graph(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = Engine(to="tensorrt-rtx", compute_capability=("8.9",))
    out = tmp_path / "artifact"
    export_reconstructor(_lived_in(kind), CONTENT, out, max_batch=MAX_BATCH, engine=engine)
    path = engine_path(out / GRAPH, "tensorrt-rtx")
    content = read_json(path.with_name(f"{path.name}.json"), "engine")
    assert content["profile"] == {"min": 1, "opt": MAX_BATCH, "max": MAX_BATCH}
    assert [port["name"] for port in content["inputs"]] == ["images", "shifted"]
    assert {path.name, f"{path.name}.json"} <= set(open_reconstructor_artifact(out).content["files"])
