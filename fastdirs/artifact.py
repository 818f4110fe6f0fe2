"""The exported folder: graphs, a few reference images, and the manifest that vouches for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fastdirs.errors import ArtifactError
from fastdirs.manifest import Json, read_json, sha256_file, sha256_json
from fastdirs.recipe import Tolerance

KIND = "artifact"
MANIFEST = "manifest.json"
SYNTHESIS = "synthesis.onnx"
MAPPING = "mapping.onnx"
REFERENCE = "reference.safetensors"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Latents of seeds 0, 1, ... and torch's images of them: what a graph is compared with.

    Attributes:
        latents: `[images, layers, dim]`, float32.
        images: `[images, channels, height, width]`, float32.
        c: Weights of the classes `[images, c_dim]`, float32; None if the generator is unconditional.
        class_in: Which half reads them: "mapping", "synthesis" or "".
    """

    latents: NDArray[np.float32]
    images: NDArray[np.float32]
    c: NDArray[np.float32] | None = None
    class_in: str = ""

    @property
    def inputs(self) -> list[NDArray[np.float32]]:
        """What the synthesis takes: latents, and the weights of the classes if it reads them."""
        return [self.latents, *self.class_inputs("synthesis")]

    def class_inputs(self, half: str) -> list[NDArray[np.float32]]:
        """The weights of the classes `[images, c_dim]` if this half reads them, else nothing."""
        return [self.c] if self.c is not None and self.class_in == half else []


@dataclass(frozen=True)
class Artifact:
    """A folder that `export` made and verified.

    Attributes:
        folder: The folder.
        content: Its manifest: generator, graph, batch, accept, precisions, verified, files, ...
    """

    folder: Path
    content: Json

    @property
    def synthesis_path(self) -> Path:
        """The graph from latents to images."""
        return self.folder / SYNTHESIS

    @property
    def graphs(self) -> dict[str, Path]:
        """The graph from latents to images in each precision that it is written in; "f32" is always there."""
        named = self.content.get("graphs", {"f32": SYNTHESIS})
        return {precision: self.folder / name for precision, name in named.items()}

    @property
    def mapping_path(self) -> Path | None:
        """The graph from z to latents, where the family has one."""
        return self.folder / MAPPING if MAPPING in self.content["files"] else None

    @property
    def generator(self) -> Json:
        """Identity of the generator it was made from."""
        identity: Json = self.content["generator"]
        return identity

    def identity(self) -> Json:
        """The same, as a generator says it of itself."""
        return self.generator

    @property
    def accept(self) -> dict[str, Tolerance]:
        """Accepted error of each precision."""
        return {name: Tolerance(**values) for name, values in self.content["accept"].items()}

    @property
    def sha256(self) -> str:
        """Hash of everything that images are made with: the graphs in all precisions, and the mapping."""
        names = [path.name for path in self.graphs.values()]
        files = {name: self.content["files"].get(name) for name in (*names, MAPPING)}
        return sha256_json(files)

    def reference(self) -> Reference:
        """The reference images.

        Raises:
            ArtifactError: The file is broken.
        """
        class_in = str(self.generator.get("class_in", ""))
        try:
            tensors = load_file(self.folder / REFERENCE)
            c = tensors["c"] if class_in else None
            return Reference(latents=tensors["latents"], images=tensors["images"], c=c, class_in=class_in)
        except (SafetensorError, OSError, KeyError) as error:
            raise ArtifactError(f"{self.folder / REFERENCE} is broken ({error}). Export again.") from error


def is_artifact(path: Path) -> bool:
    """Whether a path is meant as an artefact: a folder with a manifest or a graph, or one of these files."""
    folder = path if path.is_dir() else path.parent
    return (path.is_dir() or path.name in (SYNTHESIS, MANIFEST)) and (
        (folder / MANIFEST).exists() or (folder / SYNTHESIS).exists()
    )


def open_artifact(path: str | Path) -> Artifact:
    """Open an exported folder, and check that its files are the ones that were verified.

    Args:
        path: The folder, or a file in it.

    Raises:
        ArtifactError: No manifest (an unfinished export), a file missing, or one changed since the manifest
            was written.
    """
    folder = Path(path)
    nothing_there = not folder.exists()
    folder = folder if folder.is_dir() else folder.parent
    if nothing_there:
        raise ArtifactError(f"{path} does not exist. Make it with: fastdirs export MODEL --out {path}")
    content = read_json(folder / MANIFEST, KIND)
    missing = [key for key in ("generator", "batch", "accept", "required", "files") if key not in content]
    if missing or SYNTHESIS not in content["files"]:
        raise ArtifactError(
            f"{folder / MANIFEST} says nothing of {missing[0] if missing else SYNTHESIS}. Export again."
        )
    artifact = Artifact(folder, content)
    unknown = [path.name for path in artifact.graphs.values() if path.name not in content["files"]]
    if unknown or "f32" not in artifact.graphs:
        raise ArtifactError(
            f"{folder / MANIFEST} has no hash of {(unknown or [SYNTHESIS])[0]}. Export again."
        )
    check_files(folder, content["files"])
    return artifact


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Compare the files of an exported folder with their hashes.

    Args:
        folder: The folder.
        files: SHA-256 of each file by name, as its manifest has them.

    Raises:
        ArtifactError: A file is missing, or changed since the manifest was written.
    """
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            raise ArtifactError(f"{file} is missing. Copy the whole folder, or export again.")
        if sha256_file(file) != expected:
            raise ArtifactError(
                f"{file} changed since its manifest was written, so nobody has verified it. Export again."
            )
