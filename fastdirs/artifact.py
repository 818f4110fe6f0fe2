"""The exported folder: graphs, a few reference images, and the manifest that vouches for them."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastdirs.errors import ArtifactError
from fastdirs.manifest import Json, read_json, sha256_file
from fastdirs.recipe import Tolerance

KIND = "artifact"
MANIFEST = "manifest.json"
SYNTHESIS = "synthesis.onnx"
MAPPING = "mapping.onnx"
REFERENCE = "reference.safetensors"


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
    def mapping_path(self) -> Path | None:
        """The graph from z to latents, where the family has one."""
        return self.folder / MAPPING if MAPPING in self.content["files"] else None

    @property
    def generator(self) -> Json:
        """Identity of the generator it was made from."""
        identity: Json = self.content["generator"]
        return identity

    @property
    def accept(self) -> dict[str, Tolerance]:
        """Accepted error of each precision."""
        return {name: Tolerance(**values) for name, values in self.content["accept"].items()}

    @property
    def sha256(self) -> str:
        """Hash of the synthesis graph."""
        return str(self.content["files"][SYNTHESIS])

    def reference(self) -> tuple[Tensor, Tensor]:
        """Latents `[images, layers, dim]` and torch's images `[images, channels, height, width]`, float32.

        Raises:
            ArtifactError: The file is broken.
        """
        try:
            tensors = load_file(self.folder / REFERENCE)
            return tensors["latents"], tensors["images"]
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
    for name, expected in content["files"].items():
        file = folder / name
        if not file.is_file():
            raise ArtifactError(f"{file} is missing. Copy the whole folder, or export again.")
        if sha256_file(file) != expected:
            raise ArtifactError(
                f"{file} changed since its manifest was written, so nobody has verified it. Export again."
            )
    return Artifact(folder, content)
