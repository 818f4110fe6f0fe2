"""What training scripts leave beside their files: args.json, and which latent space it speaks of."""

import json
from pathlib import Path

from fastdirs.errors import BankError
from fastdirs.generators import Generator
from fastdirs.manifest import Json

_ARGS = "args.json"
_MAX_JSON_BYTES = 2**20


def read_args(path: Path) -> Json:
    """The arguments of a run, from its folder or any file in it; empty if there are none.

    Raises:
        BankError: They are no JSON.
    """
    # <run>, <run>/checkpoint.pt or <run>/models/deformator_1000.pt
    places = [path] if path.is_dir() else [path.parent, *([path.parents[1]] if len(path.parents) > 1 else [])]
    for place in places:
        file = place / _ARGS
        try:
            if file.is_file() and file.stat().st_size <= _MAX_JSON_BYTES:
                content = json.loads(file.read_bytes())
                if isinstance(content, dict):
                    return content
        except (OSError, ValueError, RecursionError) as error:
            raise BankError(f"{file} is no JSON ({str(error)[:100]}). Mend or remove it.") from error
    return {}


def told(args: Json, *names: str) -> Json:
    """Some arguments of a run, those that it was given: not where it lay and what it ran on."""
    return {name: args[name] for name in names if args.get(name) is not None}


def check_space(path: Path, space: str, generator: Generator) -> None:
    """Compare the latent space of a file with a generator's.

    Args:
        path: The file, for the message.
        space: "z" or "w".
        generator: The generator.

    Raises:
        BankError: They differ.
    """
    if (space == "z") != (generator.space == "z"):
        raise BankError(
            f"{path} holds directions in {space}, but the latents of {generator.provenance.name} are "
            f"{generator.space}. Name the generator that they were found in."
        )
