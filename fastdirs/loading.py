"""Whatever a user calls a generator (zoo name, file, factory) becomes a generator; generators are saved."""

import importlib
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from fastdirs.checkpoints import Checkpoint, read_checkpoint
from fastdirs.checkpoints.safetensors_file import HEADER, read_safetensors
from fastdirs.errors import (
    CheckpointError,
    ContractError,
    FastdirsError,
    MissingDependencyError,
    OutputError,
    UnknownNameError,
)
from fastdirs.generators import GENERATORS, Family, Generator, Provenance, built
from fastdirs.identification import identify
from fastdirs.manifest import Json, manifest, sha256_file, write_bytes, write_json
from fastdirs.module_generator import ModuleGenerator
from fastdirs.registry import unknown_name
from fastdirs.zoo import ZOO, pulled_path

KIND = "generator"
# What the header of a converted file says of the one it came from.
_ORIGIN = ("source_sha256", "reader", "part", "foreign")
_DTYPES = frozenset({
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint8, torch.bool,
})  # fmt: skip
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def load_generator(
    source: str | Path,
    family: str | None = None,
    options: Mapping[str, str] | None = None,
    factory: str | None = None,
) -> Generator:
    """Load a pretrained generator.

    Args:
        source: A zoo name that was pulled, a family without weights ("toy"), a checkpoint file or folder, or
            "package.module:factory".
        family: Family of a foreign checkpoint; None recognises it from the content.
        options: What the checkpoint leaves open, such as {"strides": "1,2,2,1"}; each family has its own.
            "key" names the part to take of a file that holds several networks.
        factory: "package.module:function" of the user's own code that turns the path `source` into a
            generator.

    Returns:
        The generator, frozen, in evaluation mode, float32, on the CPU.

    Raises:
        CheckpointError: The file is missing, broken, no generator, ambiguous, or holds values that are not
            finite.
        UnknownNameError: No such zoo name, family or option.
        MissingDependencyError: The family needs a package that is not installed.
        ContractError: The user's factory does not return a generator.
    """
    return _load(source, family, options or {}, factory)[0]


def convert(
    source: str | Path,
    out: str | Path,
    family: str | None = None,
    options: Mapping[str, str] | None = None,
    force: bool = False,
) -> Json:
    """Write a checkpoint of any known format as safetensors, value for value.

    Args:
        source: What `load_generator` takes, except code.
        out: `NAME.safetensors`; its manifest becomes `NAME.json`.
        family: Family of a foreign checkpoint; None recognises it from the content.
        options: What the checkpoint leaves open.
        force: Replace a generator that was written there before.

    Returns:
        The manifest: generator, config, provenance, reader, source_sha256, the part that was taken, ...

    Raises:
        CheckpointError: As `load_generator`.
        UnknownNameError: As `load_generator`.
        ContractError: The source is code, or has no weights.
        OutputError: The file exists and `force` is off, or holds something else, or cannot be written.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise OutputError(f"{out} does not end in .safetensors. Name the file so.")
    _check_replaceable(out, force)
    generator, checkpoint = _load(source, family, options or {}, None)
    if checkpoint is None:
        raise ContractError(f"{source} has no checkpoint to convert: it is made by code.")
    return save_generator(generator, out, extra=_origin(checkpoint))


def _check_replaceable(out: Path, force: bool) -> None:
    """Raises OutputError where a file must not be written."""
    if not out.exists():
        return
    if not force:
        raise OutputError(f"{out} exists already. Choose another --out, or pass --force to replace it.")
    try:
        kind = read_safetensors(out)[1].get("kind")
    except CheckpointError:
        kind = None
    if kind != KIND:
        raise OutputError(
            f"{out} is no generator that fastdirs wrote, so it is left alone, even with --force. "
            "Choose another --out."
        )


def _origin(checkpoint: Checkpoint) -> Json:
    """What a converted copy records of the file it came from; a copy of a copy keeps the first one's."""
    if checkpoint.config:
        return {key: checkpoint.config[key] for key in _ORIGIN if key in checkpoint.config}
    values = (checkpoint.sha256, checkpoint.format, checkpoint.part, list(checkpoint.foreign))
    return dict(zip(_ORIGIN, values, strict=True))


def _load(
    source: str | Path, family: str | None, options: Mapping[str, str], factory: str | None
) -> tuple[Generator, Checkpoint | None]:
    """The generator, and the checkpoint that it was read from if there is one."""
    text = str(source)
    if "://" in text:
        raise CheckpointError(f"{text} is an address, not a file. Download it first, then name the file.")
    # os.path: a name may be too long or too private to be looked for.
    exists = os.path.exists(text)
    is_factory = not exists and ":" in text and not text.startswith((".", "/"))
    if (factory is not None or is_factory) and (family or options):
        raise ContractError(
            f"{factory or text} is code: family and options do not apply to it. Leave them out."
        )
    checkpoint = None
    if factory is not None:
        generator = _from_factory(factory, text)
    elif is_factory:
        generator = _from_factory(text, None)
    elif not exists and text in GENERATORS.names() and GENERATORS.load(text).infer is None:
        if family not in (None, text):
            raise CheckpointError(f"{text} is a family itself, not {family}. Leave the family out.")
        generator = GENERATORS.load(text).build(_numbers(text, GENERATORS.load(text), options))
    else:
        checkpoint = read_checkpoint(_locate(text), options.get("key"))
        settled = {name: value for name, value in options.items() if name != "key"}
        generator = _from_checkpoint(checkpoint, family, settled)
    _check_finite(generator, text)
    return generator, checkpoint


def save_generator(generator: Generator, path: Path, extra: Json | None = None) -> Json:
    """Write a generator as safetensors, with its manifest in the header and as JSON beside it.

    Args:
        generator: Any family but "custom", whose code lies elsewhere.
        path: `NAME.safetensors`; the manifest becomes `NAME.json`.
        extra: What else to record, such as the source's hash.

    Returns:
        The manifest.

    Raises:
        ContractError: The generator is the user's own code.
        OutputError: The file cannot be written.
    """
    if generator.family not in GENERATORS.names():
        raise ContractError(
            f"{generator.provenance.name} is code, not a file: "
            "fastdirs cannot save what it could not load again."
        )
    header = {
        "generator": generator.identity(),
        "config": generator.config,
        "provenance": asdict(generator.provenance),
        **(extra or {}),
    }
    content = manifest(KIND, header)
    tensors = {name: tensor.contiguous() for name, tensor in generator.state_dict().items()}
    write_bytes(path, save(tensors, metadata={HEADER: json.dumps(content, sort_keys=True)}))
    write_json(path.with_suffix(".json"), {**content, "sha256": sha256_file(path)})
    return content


def _locate(text: str) -> Path:
    """The file or folder behind a path or zoo name; the errors say which command helps."""
    path = Path(text)
    if os.path.exists(text):
        return path
    if text in ZOO.names():
        pulled = pulled_path(text)
        if not pulled.exists():
            raise CheckpointError(
                f"{text} is in the zoo but not on this machine yet. {ZOO.load(text).how_to_get()}"
            )
        return pulled
    if path.suffix or "/" in text:
        raise CheckpointError(f"{path} does not exist. Check the path.")
    raise unknown_name("file or zoo generator", text, [*ZOO.names(), *_weightless()])


def _weightless() -> Iterator[str]:
    """Names of the families that need no file."""
    for name in GENERATORS.names():
        with suppress(MissingDependencyError):
            if GENERATORS.load(name).infer is None:
                yield name


def _from_checkpoint(checkpoint: Checkpoint, family: str | None, options: Mapping[str, str]) -> Generator:
    path = checkpoint.path
    _check_types(checkpoint)
    if checkpoint.config:
        if checkpoint.config.get("kind") != KIND:
            raise CheckpointError(
                f"{path} is a fastdirs {checkpoint.config.get('kind')}, not a generator. Name a generator."
            )
        return _from_own(checkpoint, family, options)
    known, missing = _families(checkpoint)
    fits = [name for name, plugin in known.items() if plugin.recognises and plugin.recognises(checkpoint)]
    if family is not None:
        plugin = GENERATORS.load(family)
        if fits and family not in fits:
            raise CheckpointError(
                f"{path} is a {' or '.join(fits)} by its tensors, not a {family}. Leave the family out."
            )
        return _infer(plugin, family, checkpoint, options)
    if len(fits) > 1:
        raise CheckpointError(f"{path} may be a {' or a '.join(fits)}. Say which with --family.")
    if fits:
        return _infer(known[fits[0]], fits[0], checkpoint, options)
    stranger = identify(checkpoint)
    if stranger is not None:
        raise CheckpointError(f"{path} is {stranger}, not a generator. Name the generator's file or part.")
    refusals: list[CheckpointError] = []
    for name, plugin in known.items():
        if plugin.recognises is None:
            try:
                return _infer(plugin, name, checkpoint, options)
            except CheckpointError as error:
                refusals.append(error)
    if missing is not None and not refusals:
        raise missing
    names = list(checkpoint.tensors)
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    prefix = "".join(f"{level[0]}." for level in takewhile(lambda level: len(set(level)) == 1, levels))
    hint = f" All of them begin with {prefix!r}: save them without it." if prefix and len(names) > 1 else ""
    reasons = " ".join(str(refusal) for refusal in refusals)
    raise CheckpointError(
        f"{path} holds no generator of a family that fastdirs knows; its tensors are "
        f"{', '.join(map(repr, names[:3]))}, ...{hint} {reasons}"
    )


def _check_types(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError where a tensor's elements are of a kind that no generator is made of."""
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(
                f"{checkpoint.path} holds {name!r} as {str(tensor.dtype)[6:]}, which no generator here is "
                "made of. Save it as float32."
            )


def _families(checkpoint: Checkpoint) -> tuple[dict[str, Family], MissingDependencyError | None]:
    """The families that are read from this format, and what is missing to load the others."""
    known, missing = {}, None
    for name in GENERATORS.names():
        try:
            plugin = GENERATORS.load(name)
        except MissingDependencyError as error:
            # The file may not need that package; if nothing else reads the file, its pip command is shown.
            missing = error
            continue
        if plugin.infer is not None and checkpoint.format in plugin.formats:
            known[name] = plugin
    return known, missing


def _infer(family: Family, name: str, checkpoint: Checkpoint, options: Mapping[str, str]) -> Generator:
    _check_options(name, family, options)
    if family.infer is None:
        raise CheckpointError(f"Family {name} reads no files. Use its name alone: {name}")
    if checkpoint.format not in family.formats:
        raise CheckpointError(
            f"{checkpoint.path} is a {checkpoint.format}, which family {name} is not read from. "
            "Leave the family out."
        )
    return family.infer(checkpoint, options)


def _from_own(checkpoint: Checkpoint, family: str | None, options: Mapping[str, str]) -> Generator:
    header = checkpoint.config
    try:
        identity, provenance = header["generator"], header["provenance"]
        plugin = GENERATORS.load(identity["family"])
        if family not in (None, identity["family"]) or not set(options) <= set(plugin.adjustable):
            allowed = f" (all but {', '.join(plugin.adjustable)})" if plugin.adjustable else ""
            raise CheckpointError(
                f"{checkpoint.path} holds a {identity['family']} with all its settings. "
                f"Leave the family and the options{allowed} out."
            )
        generator = built(plugin.build, {**header["config"], **options}, checkpoint)
        generator.load_state_dict(dict(checkpoint.tensors))
        # What an option settles now is no longer assumed.
        assumed = tuple(each for each in provenance["assumed"] if each.partition("=")[0] not in options)
        generator.provenance = Provenance(**{**provenance, "assumed": assumed})
        wanted = identity["weights_sha256"]
    except FastdirsError:
        raise
    except Exception as error:
        # The header was written by someone else, or changed: anything may be wrong in it.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"{checkpoint.path} does not hold what its header says: {reason} Convert or pull it again."
        ) from error
    if generator.weights_sha256 != wanted:
        raise CheckpointError(
            f"{checkpoint.path} was changed after it was written: its tensors have another hash. "
            "Pull or convert it again."
        )
    return generator.eval().requires_grad_(False)


def _from_factory(spec: str, source: str | None) -> Generator:
    module_name, _, attribute = spec.partition(":")
    if not module_name or module_name.startswith(".") or not attribute:
        raise ContractError(f"{spec!r} names no factory. Expected package.module:function.")
    # The user's own module usually lies in the folder where the command is run; it may import when called.
    sys.path.insert(0, "")
    try:
        return _made_by(spec, module_name, attribute, source)
    except ModuleNotFoundError as error:
        raise UnknownNameError(
            f"{spec!r} cannot be imported: {error}. Run from the folder that holds it, or install it."
        ) from error
    except (ImportError, SyntaxError) as error:
        raise ContractError(f"{spec!r} cannot be imported: {error}. Mend that module.") from error
    finally:
        sys.path.remove("")


def _made_by(spec: str, module_name: str, attribute: str, source: str | None) -> Generator:
    factory = getattr(importlib.import_module(module_name), attribute, None)
    if not callable(factory):
        raise ContractError(f"{module_name} has no function {attribute!r}.")
    parameters = inspect.signature(factory).parameters.values()
    if source is not None and not parameters:
        raise ContractError(f"{spec} takes no path. Leave MODEL out.")
    if source is None and any(p.default is p.empty and p.kind not in _VARIADIC for p in parameters):
        raise ContractError(f"{spec} wants the path of a checkpoint. Pass MODEL too.")
    made = factory(Path(source)) if source is not None else factory()
    if isinstance(made, Generator):
        return made.eval().requires_grad_(False)
    if isinstance(made, nn.Module):
        return ModuleGenerator(made, name=spec)
    raise ContractError(
        f"{spec} returned a {type(made).__name__}. "
        "Expected a torch module from z to images, or a fastdirs.Generator."
    )


def _check_options(name: str, family: Family, options: Mapping[str, str]) -> None:
    for option in options:
        if option not in family.options:
            raise unknown_name(f"option of family {name}", option, family.options)


def _numbers(name: str, family: Family, options: Mapping[str, str]) -> Json:
    _check_options(name, family, options)
    try:
        return {option: int(value) for option, value in options.items()}
    except ValueError as error:
        raise CheckpointError(f"Expected whole numbers in {dict(options)}.") from error


def _check_finite(generator: Generator, source: str) -> None:
    for name, tensor in generator.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{source} has NaN or infinite values in {name!r}: "
                "its training failed or the file is damaged."
            )
