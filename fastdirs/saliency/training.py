"""Training of a saliency network on a dataset of images and masks: steps, checkpoints, what it reaches."""

import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastdirs.errors import MissingDependencyError, SelectionError, TrainingError
from fastdirs.images import Pixels, encode, grid, strip, to_uint8
from fastdirs.manifest import Json, sha256_json, write_bytes
from fastdirs.mask_dataset import MaskDataset, open_mask_dataset
from fastdirs.registry import install_hint
from fastdirs.saliency.augmentation import augment
from fastdirs.saliency.settings import SaliencySettings
from fastdirs.saliency.stream import PairStream
from fastdirs.segmenters import Segmenter, build_segmenter, save_segmenter
from fastdirs.training.state import STATE_FILE, load_state, run_folder, save_state

try:
    from fastdirs.training.fabric import open_fabric
    from fastdirs.training.log import TrainingLog
except ModuleNotFoundError as error:
    raise MissingDependencyError(
        f"Training a saliency network needs {error.name}, which is not installed: "
        f"{install_hint(error.name or '')}"
    ) from error

PICTURES_FOLDER = "pictures"
_FIGURES = ("loss", "iou", "accuracy")
_PICTURE_ROWS = 8
_NOT_OF_THE_WEIGHTS = ("log_every", "save_every", "picture_every")
_OF_THE_DATASET = ("generator", "bank", "direction", "epsilon", "rule")


@dataclass(frozen=True, kw_only=True)
class TrainedSaliency:
    """What a training ended with.

    Attributes:
        path: The network, which `load_segmenter` reads.
        steps: Steps done.
        held_out: How many pairs were never trained on, and the mean loss, IoU and pixel accuracy of each
            image of them at a saliency of 0.5; only "pairs" if there are none.
    """

    path: Path
    steps: int
    held_out: dict[str, float]


def train_saliency(
    dataset: MaskDataset | str | Path,
    out: str | Path,
    settings: SaliencySettings,
    *,
    folder: str | Path | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[str], None] = lambda line: None,
) -> TrainedSaliency:
    """Train a saliency network and write it to a file.

    Args:
        dataset: Images and masks, or their folder.
        out: The file to write; one that is there is replaced.
        settings: As asked; what they leave open is decided here.
        folder: Where checkpoint, log and pictures are kept; the same call continues there and ends with the
            same bytes. None = nowhere.
        force: Begin anew where the folder holds a training of such a network with other settings.
        progress: Called with steps done and in all.
        report: Called with a line about what is going on.

    Raises:
        DatasetError: The dataset is unfinished, too small, or a shard is missing or torn.
        SelectionError: Images that the network does not take, a batch that processes cannot share, a device
            that is not there, or fewer steps than are done.
        TrainingError: The loss is no number any more; the last good checkpoint is kept.
        OutputError: The folder holds something else, or a run with other settings; or nothing can be written.
        MissingDependencyError: The network needs a package that is not installed.

    Source:
        Voynov & Babenko 2020, section 5: cross entropy of two classes, logits divided by a temperature, Adam
        with a learning rate that drops. The binary cross entropy of one logit, the difference of the two, is
        the same loss.
    """
    if not isinstance(dataset, MaskDataset):
        dataset = open_mask_dataset(dataset)
    settings = settings.resolved(dataset)
    folder = None if folder is None else Path(folder)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        segmenter = build_segmenter(settings.network, settings.channels, settings.size, settings.width)
    trainer = _Trainer(segmenter, dataset, settings)
    fabric = trainer.fabric
    report(
        f"{trainer.stream.total:,} pairs to train on, {trainer.stream.held_out:,} held out; "
        f"{settings.network}, {settings.size} pixels, {settings.device}, {settings.precision}"
    )
    kept = folder if fabric.is_global_zero else None
    described = _described(dataset, settings, fabric.world_size)
    with run_folder(kept, described, force) if kept else nullcontext(), torch.random.fork_rng():
        # Whether the folder is right is said by the one that holds it; the others read it afterwards.
        fabric.barrier()
        state = None if folder is None else folder / STATE_FILE
        first = load_state(state, segmenter, trainer.optimizers) if state else 0
        if first > settings.steps:
            raise SelectionError(
                f"steps={settings.steps} is below the {first} that {folder} has done. Ask for more."
            )
        if first:
            report(f"continued after step {first:,}")
        # Nobody writes before all have read.
        fabric.barrier()
        log = TrainingLog(kept, first) if kept else None
        try:
            held_out = _run(trainer, first, log, kept, progress)
        finally:
            if log:
                log.close()
        if held_out is None:
            held_out = trainer.held_out()
        _check_weights(segmenter)
        content = {
            "dataset": described["dataset"],
            "settings": described["settings"] | {"steps": settings.steps},
            "held_out": held_out,
        }
        if fabric.is_global_zero:
            save_segmenter(segmenter, Path(out), content)
        fabric.barrier()
    return TrainedSaliency(path=Path(out), steps=settings.steps, held_out=held_out)


def _described(dataset: MaskDataset, settings: SaliencySettings, world_size: int) -> Json:
    """What the weights depend on, to be compared with an earlier run."""
    asked = {name: value for name, value in asdict(settings).items() if name not in _NOT_OF_THE_WEIGHTS}
    # A run may be continued to more steps than were asked for at first, unless its rates depend on them.
    if settings.schedule == "step":
        del asked["steps"]
    identity = {
        "sha256": sha256_json([shard.sha256 for shard in dataset.shards]),
        "count": len(dataset),
        **{name: dataset.content[name] for name in _OF_THE_DATASET if name in dataset.content},
    }
    return {"dataset": identity, "settings": asked, "processes": world_size}


class _Trainer:
    """A segmenter in training, on one of its processes."""

    def __init__(self, segmenter: Segmenter, dataset: MaskDataset, settings: SaliencySettings) -> None:
        self.fabric = open_fabric(settings.device)
        world = self.fabric.world_size
        # A batch norm needs two images.
        if settings.batch % world or settings.batch < 2 * world:
            raise SelectionError(
                f"A batch of {settings.batch} cannot be shared by {world} processes. Choose a multiple of "
                f"{world}, {2 * world} or more."
            )
        self.stream = PairStream(
            dataset, settings.size, settings.channels, settings.batch, settings.seed, settings.held_out
        )
        self.settings, self.segmenter = settings, segmenter
        self.mine = slice(self.fabric.global_rank, None, world)
        segmenter.to(self.fabric.device)
        segmenter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.Adam(segmenter.parameters(), settings.lr, weight_decay=settings.weight_decay)
        self.optimizers = {"segmenter": optimizer}
        self._wrapped, self._stepping = self.fabric.setup(segmenter, optimizer)

    def step(self, number: int, images: Tensor, masks: Tensor) -> Tensor:
        """One step. It depends on its number, its pairs and the state alone; returns `_FIGURES`, `[3]`."""
        images, masks = images.to(self.fabric.device), masks.to(self.fabric.device)
        images, masks = augment(images, masks, self.mine, number, self.settings)
        for group in self.optimizers["segmenter"].param_groups:
            group["lr"] = self.settings.lr_at(number)
        self.segmenter.train()
        logits = self._logits(self._wrapped, images)
        loss = self._loss(logits, masks).mean()
        self.fabric.backward(loss)
        self._stepping.step()
        self._stepping.zero_grad()
        return torch.stack([loss.detach(), *(each.mean() for each in _agreement(logits.detach(), masks))])

    def warm_up(self) -> None:
        """A gradient for nothing: on some machines the first of a process differ in the last bits."""
        size = self.settings.size
        images = torch.zeros(
            self.settings.batch // self.fabric.world_size, self.settings.channels, size, size,
            device=self.fabric.device,
        )  # fmt: skip
        self.segmenter.eval()
        torch.autograd.backward(self._logits(self.segmenter, images).sum())
        self.segmenter.zero_grad()

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Mean figures of the pairs that no step is trained on."""
        if not self.stream.held_out:
            return {"pairs": 0}
        sums = torch.zeros(len(_FIGURES), dtype=torch.float64, device=self.fabric.device)
        self.segmenter.eval()
        if self.fabric.world_size > 1:
            # Each process has seen other images: what is measured is what is written.
            for buffer in self.segmenter.buffers():
                buffer.copy_(self.fabric.broadcast(buffer))
        for images, masks in self.stream.held_out_batches(self.mine):
            if len(images):
                masks = masks.to(self.fabric.device)
                logits = self._logits(self.segmenter, images.to(self.fabric.device))
                figures = (self._loss(logits, masks), *_agreement(logits, masks))
                sums += torch.stack([each.sum(dtype=torch.float64) for each in figures])
        everywhere = self.fabric.all_reduce(sums, reduce_op="sum")
        assert isinstance(everywhere, Tensor)
        means = (everywhere / self.stream.held_out).tolist()
        return {"pairs": self.stream.held_out, **dict(zip(_FIGURES, means, strict=True))}

    @torch.no_grad()
    def picture(self, images: Tensor, masks: Tensor) -> Pixels:
        """Rows of image, mask and saliency, side by side: `[height, width, channels]`, uint8."""
        images, masks = images[:_PICTURE_ROWS], masks[:_PICTURE_ROWS]
        self.segmenter.eval()
        saliency = self._logits(self.segmenter, images.to(self.fabric.device)).sigmoid().cpu()
        channels = self.settings.channels
        columns = [
            images,
            *((each[:, None] * 2 - 1).expand(-1, channels, -1, -1) for each in (masks, saliency)),
        ]
        return grid([strip(np.stack(row)) for row in zip(*map(to_uint8, columns), strict=True)])

    def _logits(self, network: torch.nn.Module, images: Tensor) -> Tensor:
        """`[batch, height, width]`, float32, whatever precision the network is computed in."""
        fast = self.settings.precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=fast):
            logits: Tensor = network(images.to(memory_format=torch.channels_last))
        return logits.float()

    def _loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Of each image, `[batch]`."""
        losses = F.binary_cross_entropy_with_logits(
            logits / self.settings.temperature, masks, reduction="none"
        )
        return losses.mean(dim=(1, 2))


def _agreement(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union (1 where both are empty) and share of right pixels, of each image `[batch]`."""
    found, wanted = logits > 0, masks > 0.5
    union = (found | wanted).sum(dim=(1, 2))
    iou = torch.where(union > 0, (found & wanted).sum(dim=(1, 2)) / union.clamp(min=1), 1.0)
    return iou, (found == wanted).float().mean(dim=(1, 2))


def _run(
    trainer: _Trainer, first: int, log: TrainingLog | None, folder: Path | None,
    progress: Callable[[int, int], None],
) -> dict[str, float] | None:  # fmt: skip
    """All steps from `first` on, with a line, a picture and a checkpoint every so often.

    Returns the figures of the held-out pairs after the last step, if they were measured.
    """
    found = None
    fabric, settings, begun = trainer.fabric, trainer.settings, time.perf_counter()
    state = None if folder is None else folder / STATE_FILE
    trainer.warm_up()
    totals, counted = torch.zeros(len(_FIGURES), device=fabric.device), 0
    with closing(trainer.stream.batches(first, settings.steps, trainer.mine)) as batches:
        for done, (images, masks) in enumerate(batches, first + 1):
            totals, counted = totals + trainer.step(done - 1, images, masks), counted + 1
            progress(done, settings.steps)

            def due(every: int, done: int = done) -> bool:
                return every > 0 and (done % every == 0 or done == settings.steps)

            if due(settings.log_every):
                means = fabric.all_reduce(totals / counted)
                assert isinstance(means, Tensor)
                _check(means, done, settings, state)
                rate, begun = counted / (time.perf_counter() - begun), time.perf_counter()
                totals, counted = torch.zeros_like(totals), 0
                figures = dict(zip(_FIGURES, means.tolist(), strict=True))
                if due(settings.save_every) and settings.held_out:
                    found = trainer.held_out()
                    figures |= {f"held_out_{name}": found[name] for name in _FIGURES}
                if log:
                    log.figures(done, figures, rate)
            if folder and due(settings.picture_every):
                picture = trainer.picture(images, masks)
                write_bytes(folder / PICTURES_FOLDER / f"step-{done:07d}.png", encode(picture, "png"))
            if state and due(settings.save_every):
                _save(state, done, trainer)
    return found


def _check(means: Tensor, done: int, settings: SaliencySettings, state: Path | None) -> None:
    if torch.isfinite(means).all():
        return
    kept = f"The checkpoint before it is kept in {state}. " if state and state.exists() else ""
    raise TrainingError(
        f"The loss is not finite any more at step {done}. {kept}Lower lr ({settings.lr:g}), or train with "
        "precision=f32."
    )


def _check_weights(segmenter: Segmenter) -> None:
    """The last update may have spoiled what no loss was computed from any more."""
    for name, tensor in segmenter.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise TrainingError(f"{name} has values that are not finite in the end. Lower lr.")


def _save(state: Path, done: int, trainer: _Trainer) -> None:
    try:
        save_state(state, done, trainer.segmenter, trainer.optimizers)
    except TrainingError as error:
        kept = f"; the checkpoint before it is kept in {state}" if state.exists() else ""
        raise TrainingError(f"{error} This is step {done}{kept}. Lower lr.") from error
