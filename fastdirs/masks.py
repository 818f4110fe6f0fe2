"""Fill a folder with a dataset of images and masks: shards that can be streamed, resumed and checked."""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastdirs.artifact import Artifact, open_artifact
from fastdirs.directions import DirectionBank
from fastdirs.errors import ArtifactError, ContractError, MaskError, OutputError, SelectionError
from fastdirs.generators import Generator
from fastdirs.images import ENCODERS
from fastdirs.latents import MAX_SEED
from fastdirs.manifest import Json, environment, is_manifest, manifest, read_json, write_json
from fastdirs.mask_dataset import DATASET_FILE, KIND, SHARD_KIND, SHARDS_FOLDER, MaskDataset
from fastdirs.mask_filters import REASONS
from fastdirs.mask_page import PAGE_FILE, rejected_sheet, write_page
from fastdirs.mask_pairs import PairSource
from fastdirs.mask_settings import MaskSettings
from fastdirs.mask_shards import AREA_BINS, ShardPlan, fill_shards, shard_name
from fastdirs.registry import unknown_name
from fastdirs.runtime import Runtime, open_runtime
from fastdirs.selection import AUTO
from fastdirs.traversal_folder import as_json, holds_nothing, remove_leftovers_in, sole_run

Progress = Callable[[str, int, int], None]
_USUAL_PER_SHARD = 1000
# Larger images make smaller shards, so that a shard that is being filled takes some 10 MB of memory.
_USUAL_RESOLUTION = 128
_FEWEST_PER_SHARD = 32
_MINE = (SHARDS_FOLDER, PAGE_FILE, DATASET_FILE)
_ASIDE = ".replaced.tmp"


@dataclass(frozen=True, kw_only=True)
class MaskJob:
    """Everything that a process needs to fill some shards of a dataset.

    Attributes:
        source: An artefact or a generator.
        bank: Its directions.
        settings: How a pair is made.
        plan: Which seeds are whose.
        folder: Of the dataset.
        backend: Registered name.
        precision: Arithmetic to compute in.
        batch_size: Pairs rendered at a time; all shards have to be made with the same.
    """

    source: Artifact | Generator
    bank: DirectionBank
    settings: MaskSettings
    plan: ShardPlan
    folder: Path
    backend: str
    precision: str
    batch_size: int


Filler = Callable[[MaskJob, Sequence[int], Callable[[int], None]], None]
"""How the missing shards are filled: (job, their numbers, progress)."""


def make_masks(
    source: Artifact | Generator | str | Path,
    bank: DirectionBank,
    out: str | Path,
    settings: MaskSettings,
    count: int,
    *,
    first_seed: int = 0,
    per_shard: int | None = None,
    image_format: str = "jpg",
    backend: str = AUTO,
    precision: str | None = None,
    batch_size: int | None = None,
    force: bool = False,
    progress: Progress = lambda phase, done, total: None,
    opened: Callable[[Runtime, PairSource], None] = lambda runtime, source: None,
    filler: Filler | None = None,
) -> MaskDataset:
    """Make pairs of images and masks, as WebDataset shards in a folder.

    A pair depends on its seed alone. A run that was killed continues when it is called again in the same way,
    and ends with the same bytes.

    Args:
        source: An artefact, its folder, or a generator.
        bank: Directions of the same generator.
        out: The folder.
        settings: How a pair is made.
        count: Pairs.
        first_seed: Seeds from here on are candidates, 100 for each pair.
        per_shard: Pairs of a shard; None takes 1,000, fewer for large images.
        image_format: "jpg", "png" or "webp"; masks are PNG.
        backend: Registered name, or "auto".
        precision: "f32", "bf16", "f16", "int8", or None for the fastest that is accepted.
        batch_size: Pairs rendered at a time; None takes the usual one.
        force: Replace an earlier dataset in this folder.
        progress: Called with what is going on, pairs done, and how many in all.
        opened: Called once, before the first pair, with what was opened.
        filler: Fills the missing shards; None does so here.

    Returns:
        The finished dataset.

    Raises:
        BankError: The bank belongs to another generator.
        SelectionError: A direction, epsilon, count, class, psi, seed or batch size out of range.
        ContractError: A class for an unconditional generator, or none for a conditional one; pictures that
            hold chance.
        MaskError: Fewer than 1 % of the candidates make a pair; a sheet beside the folder shows some.
        UnknownNameError: No such image format or backend.
        OutputError: The folder holds something else or a dataset with other settings, or cannot be written.
    """
    out = Path(out).resolve()
    if image_format not in ENCODERS:
        raise unknown_name("image format", image_format, ENCODERS)
    if not isinstance(source, Artifact | Generator):
        source = open_artifact(source)
    if isinstance(source, Generator) and not source.exportable:
        raise ContractError(
            f"The pictures of {source.provenance.name} hold chance, so nobody could make a pair again. "
            "Load it with noise=const or noise=none."
        )
    identity = source.generator if isinstance(source, Artifact) else source.identity()
    plan = _plan(count, per_shard, first_seed, image_format, int(identity["img_resolution"]))
    asked = as_json({
        "generator": identity,
        "artifact": source.sha256 if isinstance(source, Artifact) else None,
        "bank": {"method": bank.method, "label": _label(bank, settings.direction), "sha256": bank.sha256},
        **settings.to_json(),
        **asdict(plan),
    })  # fmt: skip
    earlier = _earlier(out, asked, force)
    if earlier is not None:
        chosen = earlier["runtime"]
        wanted = {
            "backend": None if backend == AUTO else backend,
            "precision": precision,
            "batch_size": batch_size,
        }
        kept = {**chosen, "batch_size": earlier["batch_size"]}
        for name, value in wanted.items():
            if value not in (None, kept[name]):
                raise _other_settings(out, name)
        backend, precision, batch_size = kept["backend"], kept["precision"], kept["batch_size"]
    with (
        open_runtime(source, backend, precision, streaming=True) as runtime,
        PairSource(runtime, bank, settings, batch_size) as pairs,
    ):
        if earlier is not None and as_json(runtime.describe()) != earlier["runtime"]:
            raise OutputError(
                f"{out} was begun with {earlier['runtime']['provider']}, but here is {runtime.provider}. "
                "Pass --force to begin again."
            )
        opened(runtime, pairs)
        job = MaskJob(
            source=source, bank=bank, settings=settings, plan=plan, folder=out,
            backend=runtime.backend, precision=runtime.precision, batch_size=pairs.batch_size,
        )  # fmt: skip
        begun = {
            "runtime": runtime.describe(),
            "batch_size": pairs.batch_size,
            "complete": False,
            "shards": [],
        }
        content = manifest(KIND, {**asked, **begun})
        with sole_run(out):
            if earlier is None and (out / DATASET_FILE).exists():
                if not force:
                    raise OutputError(f"{out} was filled by another run in the meantime. Give it again.")
                _set_aside(out)
            remove_leftovers_in(out, out / SHARDS_FOLDER)
            missing = [number for number in range(plan.num_shards) if _facts(out, plan, number) is None]
            if earlier is not None and earlier["complete"] and not missing and earlier["count"] == count:
                return MaskDataset(out, earlier)
            write_json(out / DATASET_FILE, content)
            done = count - sum(plan.size(number) for number in missing)

            def added(number: int) -> None:
                nonlocal done
                done += number
                if (out / _ASIDE).exists() and any((out / SHARDS_FOLDER).glob("*.tar")):
                    shutil.rmtree(out / _ASIDE)
                progress("pairs", done, count)

            progress("pairs", done, count)
            try:
                if filler is None:
                    fill_shards(pairs, plan, missing, out, added)
                elif missing:
                    filler(job, missing, added)
            except MaskError as error:
                sheet = out.with_name(f"{out.name}.rejected.png")
                first = plan.seeds(missing[0]).start if error.first_seed is None else error.first_seed
                rejected_sheet(pairs, range(first, first + len(plan.seeds(0))), sheet)
                if not any((out / SHARDS_FOLDER).glob("*.tar")):
                    # There is nothing to continue, and other settings are to find the folder free.
                    _remove(out)
                    _put_back(out)
                raise MaskError(f"{error} {sheet} shows what became of some.") from error
            finished = {**content, "complete": True, **_summary(out, plan)}
            dataset = MaskDataset(out, finished)
            write_page(dataset)
            write_json(out / DATASET_FILE, finished)
            shutil.rmtree(out / _ASIDE, ignore_errors=True)
    return dataset


def _plan(
    count: int, per_shard: int | None, first_seed: int, image_format: str, resolution: int
) -> ShardPlan:
    usual = max(_FEWEST_PER_SHARD, _USUAL_PER_SHARD * _USUAL_RESOLUTION**2 // max(resolution, 128) ** 2)
    size = usual if per_shard is None else per_shard
    for name, value in (("count", count), ("pairs per shard", size)):
        if value < 1:
            raise SelectionError(f"The {name} is {value}. Expected 1 or more.")
    plan = ShardPlan(count=count, per_shard=size, first_seed=first_seed, image_format=image_format)
    if not 0 <= first_seed <= MAX_SEED - plan.num_shards * len(plan.seeds(0)):
        raise SelectionError(f"First seed {first_seed} is out of range. Expected 0 or more, far below 2**63.")
    return plan


def _label(bank: DirectionBank, direction: int) -> str:
    bank.shift(direction, 1.0)
    return bank.labels[direction]


def _facts(out: Path, plan: ShardPlan, number: int) -> Json | None:
    """What a shard that is there holds; None if it has to be made."""
    path = out / SHARDS_FOLDER / f"{shard_name(number)}.tar"
    try:
        facts = read_json(path.with_suffix(".json"), SHARD_KIND)
        whole = facts["count"] == plan.size(number) and path.stat().st_size == facts["bytes"]
    except (ArtifactError, OSError, KeyError):
        return None
    return facts if whole else None


def _summary(out: Path, plan: ShardPlan) -> Json:
    """What all shards hold, and what was rejected on the way."""
    tried, areas = 0, [0] * AREA_BINS
    counts: dict[str, Counter[str]] = {"rejected": Counter(), "failing": Counter()}
    shards = []
    for number in range(plan.num_shards):
        facts = _facts(out, plan, number)
        if facts is None:
            raise OutputError(
                f"{out} lost shard {shard_name(number)} in the meantime. Give the command again."
            )
        tried += facts["tried"]
        areas = [sum(both) for both in zip(areas, facts["areas"], strict=True)]
        for name, counter in counts.items():
            counter.update(facts[name])
        shards.append({name: facts[name] for name in ("name", "count", "tried", "seeds", "bytes", "sha256")})
    return {
        "tried": tried,
        "acceptance": round(plan.count / tried, 6),
        **{
            name: {reason: counter[reason] for reason in REASONS if counter[reason]}
            for name, counter in counts.items()
        },
        "areas": areas,
        "shards": shards,
    }


def _earlier(out: Path, asked: Json, force: bool) -> Json | None:
    """The manifest of an unfinished or finished run of the same settings; None where to begin anew."""
    if not out.exists() or holds_nothing(out):
        return None
    if not is_manifest(out / DATASET_FILE, KIND):
        raise OutputError(
            f"{out} exists and holds no dataset of masks, so it is left alone (even with --force). "
            "Choose another --out."
        )
    if force:
        return None
    content = read_json(out / DATASET_FILE, KIND)
    for name, value in asked.items():
        if name == "count" and name in content and content[name] <= value:
            # More pairs leave the full shards as they are.
            continue
        if name not in content or _pixels(name, content[name]) != _pixels(name, value):
            raise _other_settings(out, name)
    if not {"runtime", "batch_size", "environment", "complete"} <= set(content):
        raise OutputError(f"{out / DATASET_FILE} is damaged. Pass --force to begin again.")
    here = environment()
    for package, version in content["environment"].items():
        if here.get(package) != version:
            raise OutputError(
                f"{out} was begun with {package} {version}, but here is {here.get(package, 'none')}: pixels "
                "or files might differ. Install that version, or pass --force to begin again."
            )
    return content


def _pixels(name: str, value: Any) -> Any:
    """The part of a setting that pixels depend on: names may change."""
    if name == "bank":
        return value["sha256"]
    return (value["weights_sha256"], value["config_sha256"]) if name == "generator" else value


def _other_settings(out: Path, name: str) -> OutputError:
    return OutputError(
        f"{out} holds a dataset with other {name}. Choose another --out, or pass --force to replace it."
    )


def _remove(out: Path) -> None:
    """Remove an earlier dataset, and nothing else; its manifest goes last, so that it can be recognised."""
    try:
        for name in _MINE:
            path = out / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError.from_os(out, error) from error


def _set_aside(out: Path) -> None:
    """Keep an earlier dataset until the new one has a shard."""
    try:
        if (out / _ASIDE).exists():
            # What lies there now replaced another one and came to nothing.
            _remove(out)
            return
        (out / _ASIDE).mkdir()
        for name in _MINE:
            if (out / name).exists():
                (out / name).replace(out / _ASIDE / name)
    except OSError as error:
        raise OutputError.from_os(out, error) from error


def _put_back(out: Path) -> None:
    """Undo `_set_aside`, if something is set aside."""
    try:
        for name in _MINE:
            if (out / _ASIDE / name).exists():
                (out / _ASIDE / name).replace(out / name)
        shutil.rmtree(out / _ASIDE, ignore_errors=True)
    except OSError as error:
        raise OutputError.from_os(out, error) from error
