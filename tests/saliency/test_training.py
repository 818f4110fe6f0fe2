"""Training of a saliency network."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastdirs.checkpoints.safetensors_file import read_safetensors
from fastdirs.errors import DatasetError, OutputError, SelectionError, TrainingError
from fastdirs.images import decode
from fastdirs.manifest import write_json
from fastdirs.mask_dataset import MaskDataset
from fastdirs.saliency.settings import SaliencySettings, saliency_settings
from fastdirs.saliency.stream import PairStream
from fastdirs.saliency.training import TrainedSaliency, _Trainer, train_saliency
from fastdirs.segmenters import build_segmenter, load_segmenter
from fastdirs.training.log import read_log
from fastdirs.training.state import STATE_FILE

QUICK = SaliencySettings(
    width=4, steps=8, batch=8, lr=2e-3, lr_drop_every=5, temperature=1.0, flip=True, zoom=1.2, jitter=0.1,
    device="cpu", precision="f32", held_out=20, log_every=2, save_every=4, picture_every=4,
)  # fmt: skip
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


class StopError(Exception):
    """What a test stops a run with."""


def run(
    dataset: MaskDataset, folder: Path, settings: SaliencySettings = QUICK, stop: int = 0
) -> TrainedSaliency:
    """Train in a folder, or go on there; the network lies in it as well, under its own name."""

    def progress(done: int, total: int) -> None:
        assert total == settings.steps
        if done == stop:
            raise StopError

    return train_saliency(
        dataset, folder.with_suffix(".safetensors"), settings, folder=folder, progress=progress
    )


def test_what_a_run_leaves_behind(toy_dataset: MaskDataset, tmp_path: Path) -> None:
    lines: list[str] = []
    trained = train_saliency(
        toy_dataset.folder, tmp_path / "s.safetensors", QUICK, folder=tmp_path / "run", report=lines.append
    )
    assert lines == ["80 pairs to train on, 20 held out; unet, 32 pixels, cpu, f32"]
    segmenter, recorded = load_segmenter(trained.path)
    assert (segmenter.kind, segmenter.width, segmenter.img_resolution, segmenter.img_channels) == (
        "unet", 4, 32, 3
    )  # fmt: skip
    assert recorded["settings"]["steps"] == trained.steps == 8
    assert recorded["settings"]["network"] == "unet"
    assert recorded["dataset"]["count"] == 100
    assert len(recorded["dataset"]["sha256"]) == 64
    assert recorded["dataset"]["generator"]["family"] == "toy"
    assert recorded["held_out"] == trained.held_out
    assert str(tmp_path) not in json.dumps(recorded)
    log = read_log(tmp_path / "run")
    assert [line["step"] for line in log] == [2, 4, 6, 8]
    assert set(log[0]) == {"step", "loss", "iou", "accuracy"}
    assert {"held_out_loss", "held_out_iou", "held_out_accuracy"} <= set(log[1])
    assert log[-1]["held_out_iou"] == trained.held_out["iou"]
    pictures = sorted((tmp_path / "run" / "pictures").iterdir())
    assert [path.name for path in pictures] == ["step-0000004.png", "step-0000008.png"]
    picture = decode(pictures[0].read_bytes())
    assert picture.shape == (8 * 32, 3 * 32, 3)
    assert set(np.unique(picture[:, 32:64])) == {0, 255}, "the middle column shows masks"


def test_held_out_figures_are_those_of_the_file(toy_dataset: MaskDataset, tmp_path: Path) -> None:
    trained = run(toy_dataset, tmp_path / "run", replace(QUICK, steps=20))
    segmenter, _ = load_segmenter(trained.path)
    ious, rights, losses = [], [], []
    for pair in list(toy_dataset.pairs())[80:]:
        logits = segmenter(torch.from_numpy(pair.image.copy()).permute(2, 0, 1)[None] / 127.5 - 1)[0]
        mask, found = torch.from_numpy(pair.mask), logits > 0
        union = int((mask | found).sum())
        ious.append(int((mask & found).sum()) / union if union else 1.0)
        rights.append((mask == found).float().mean().item())
        losses.append(F.binary_cross_entropy_with_logits(logits, mask.float()).item())
    wanted = {"pairs": 20, "loss": np.mean(losses), "iou": np.mean(ious), "accuracy": np.mean(rights)}
    assert trained.held_out == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_a_step_is_the_published_one(toy_dataset: MaskDataset) -> None:
    """Loss and gradients of a loop written as plainly as it can be: two classes, a temperature, Adam."""
    settings = replace(
        QUICK, flip=False, zoom=1.0, jitter=0.0, temperature=10.0, lr=0.005, weight_decay=0.01
    ).resolved(toy_dataset)
    torch.manual_seed(0)
    one, other = build_segmenter("unet", 3, 32, 4), build_segmenter("unet", 3, 32, 4)
    other.load_state_dict(one.state_dict())
    optimizer = torch.optim.Adam(other.parameters(), 0.005, weight_decay=0.01)
    before = [parameter.detach().clone() for parameter in other.parameters()]
    trainer = _Trainer(one, toy_dataset, settings)
    outputs: list[torch.Tensor] = []
    other.outc.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    batches = PairStream(toy_dataset, 32, 3, 8, settings.seed, 20).batches(0, 3)
    for step, (images, masks) in enumerate(batches):
        other(images)
        loss = F.cross_entropy(outputs.pop() / 10, masks.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found = trainer.step(step, images, masks)
        assert found[0].item() == pytest.approx(loss.item(), rel=1e-4 if step == 0 else 1e-2)
        if step == 0:
            for a, b, begun in zip(one.parameters(), other.parameters(), before, strict=True):
                # Adam's first step goes by the learning rate, whatever little a gradient is.
                clear = (b.grad + 0.01 * begun).abs() > 1e-4
                torch.testing.assert_close(a[clear], b[clear], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_run_that_was_stopped_ends_with_the_same_bytes(
    toy_dataset: MaskDataset, stop: int, tmp_path: Path
) -> None:
    run(toy_dataset, tmp_path / "whole")
    with pytest.raises(StopError):
        run(toy_dataset, tmp_path / "parts", stop=stop)
    run(toy_dataset, tmp_path / "parts")
    names = (STATE_FILE, "log.jsonl", "run.json", "pictures/step-0000008.png")
    for name in (*names, "../{}.safetensors"):
        whole, parts = (tmp_path / each / name.format(each) for each in ("whole", "parts"))
        assert whole.read_bytes() == parts.read_bytes(), name


def test_the_folder_changes_nothing(toy_dataset: MaskDataset, tmp_path: Path) -> None:
    run(toy_dataset, tmp_path / "run")
    train_saliency(toy_dataset, tmp_path / "alone.safetensors", QUICK)
    assert (tmp_path / "run.safetensors").read_bytes() == (tmp_path / "alone.safetensors").read_bytes()


def test_a_finished_run_goes_on_with_more_steps(toy_dataset: MaskDataset, tmp_path: Path) -> None:
    run(toy_dataset, tmp_path / "whole")
    run(toy_dataset, tmp_path / "parts", replace(QUICK, steps=4))
    run(toy_dataset, tmp_path / "parts")
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "parts.safetensors").read_bytes()
    with pytest.raises(SelectionError, match=r"steps=4 is below the 8 that .* has done"):
        run(toy_dataset, tmp_path / "parts", replace(QUICK, steps=4))


def test_rates_that_depend_on_the_end_do_not_go_on_beyond_it(
    toy_dataset: MaskDataset, tmp_path: Path
) -> None:
    cosine = replace(QUICK, schedule="cosine")
    run(toy_dataset, tmp_path / "run", replace(cosine, steps=4))
    with pytest.raises(OutputError, match="a run with steps=4, not steps=8"):
        run(toy_dataset, tmp_path / "run", cosine)


def test_a_run_of_another_dataset_or_with_other_settings(
    toy_dataset: MaskDataset, write_toy_dataset: Callable[..., MaskDataset], tmp_path: Path
) -> None:
    run(toy_dataset, tmp_path / "run")
    with pytest.raises(OutputError, match=r"a run with lr=0\.002, not lr=0\.1"):
        run(toy_dataset, tmp_path / "run", replace(QUICK, lr=0.1))
    other = write_toy_dataset(tmp_path / "other", (30, 20, 30, 20), first_seed=1000)
    with pytest.raises(OutputError, match="a run with sha256="):
        run(other, tmp_path / "run")


def test_how_often_something_is_written_may_change(toy_dataset: MaskDataset, tmp_path: Path) -> None:
    run(toy_dataset, tmp_path / "whole")
    run(toy_dataset, tmp_path / "parts", replace(QUICK, steps=4))
    run(toy_dataset, tmp_path / "parts", replace(QUICK, log_every=4, save_every=8, picture_every=0))
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "parts.safetensors").read_bytes()


def test_forced_a_run_with_other_settings_is_replaced(toy_dataset: MaskDataset, tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "run.safetensors"
    other = replace(QUICK, width=6)
    run(toy_dataset, tmp_path / "whole", other)
    run(toy_dataset, folder)
    train_saliency(toy_dataset, out, other, folder=folder, force=True)
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert (folder / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()
    # The run of something else, of which a model is no part.
    path = folder / "run.json"
    content = json.loads(path.read_text())
    write_json(path, {**content, "asked": {"method": "voynov", "settings": {}}})
    with pytest.raises(OutputError, match="holds a run with"):
        train_saliency(toy_dataset, out, QUICK, folder=folder, force=True)
    assert (folder / STATE_FILE).is_file()


def test_held_out_pairs_are_measured_once_at_the_end(
    toy_dataset: MaskDataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls, measure = [], _Trainer.held_out
    monkeypatch.setattr(_Trainer, "held_out", lambda self: calls.append(1) or measure(self))
    first = run(toy_dataset, tmp_path / "run")
    assert len(calls) == 2, "at both checkpoints, the last of which is the end"
    assert run(toy_dataset, tmp_path / "run") == first, "measured though no step is left"
    assert len(calls) == 3


def test_weights_depend_on_the_seed_alone(toy_dataset: MaskDataset, tmp_path: Path) -> None:
    torch.rand(5)
    state = torch.random.get_rng_state()
    one = train_saliency(toy_dataset, tmp_path / "a.safetensors", QUICK)
    assert torch.equal(torch.random.get_rng_state(), state), "whoever draws goes on as before"
    two = train_saliency(toy_dataset, tmp_path / "b.safetensors", replace(QUICK, seed=1))
    assert one.path.read_bytes() != two.path.read_bytes()


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("network", ["unet", "resnet10"])
def test_every_network_learns(toy_dataset: MaskDataset, network: str, precision: str, tmp_path: Path) -> None:
    settings = replace(
        QUICK,
        network=network,
        precision=precision,
        width=8,
        steps=24,
        lr_drop_every=24,
        log_every=8,
        save_every=24,
    )
    run(toy_dataset, tmp_path / "run", settings)
    log = read_log(tmp_path / "run")
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    assert log[-1]["iou"] > log[0]["iou"]
    assert log[-1]["held_out_iou"] > 0.3


def test_other_sizes_and_channels(toy_dataset: MaskDataset, tmp_path: Path) -> None:
    trained = run(toy_dataset, tmp_path / "run", replace(QUICK, size=48, channels=1, steps=4))
    segmenter, _ = load_segmenter(trained.path)
    assert (segmenter.img_resolution, segmenter.img_channels) == (48, 1)
    assert decode((tmp_path / "run/pictures/step-0000004.png").read_bytes()).shape == (8 * 48, 3 * 48, 1)
    with pytest.raises(SelectionError, match="unet takes images of 16 pixels or more, not of 8"):
        run(toy_dataset, tmp_path / "small", replace(QUICK, size=8))


def test_without_held_out_pairs(toy_dataset: MaskDataset, tmp_path: Path) -> None:
    trained = run(toy_dataset, tmp_path / "run", replace(QUICK, held_out=0))
    assert trained.held_out == {"pairs": 0}
    assert set(read_log(tmp_path / "run")[-1]) == {"step", "loss", "iou", "accuracy"}


def test_a_dataset_smaller_than_a_batch(
    write_toy_dataset: Callable[..., MaskDataset], tmp_path: Path
) -> None:
    trained = run(write_toy_dataset(tmp_path / "pairs", (3,)), tmp_path / "run")
    assert trained.held_out == {"pairs": 0}, "no fifth of three"


def test_a_loss_that_is_no_number_keeps_the_last_good_state(toy_dataset: MaskDataset, tmp_path: Path) -> None:
    run(toy_dataset, tmp_path / "run", replace(QUICK, steps=4))
    (tmp_path / "run.safetensors").unlink()
    # The same run with a rate that cannot go well.
    path = tmp_path / "run" / "run.json"
    content = json.loads(path.read_text())
    content["asked"]["settings"] |= {"lr": 1e9, "lr_drop_factor": 1.0}
    path.write_text(json.dumps(content))
    with pytest.raises(TrainingError, match=r"not finite.* step \d+.*is kept.*Lower"):
        run(toy_dataset, tmp_path / "run", replace(QUICK, steps=400, lr=1e9, lr_drop_factor=1.0))
    assert not (tmp_path / "run.safetensors").exists()
    tensors, header = read_safetensors(tmp_path / "run" / STATE_FILE)
    assert header["step"] >= 4
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_damaged_checkpoint(toy_dataset: MaskDataset, tmp_path: Path) -> None:
    run(toy_dataset, tmp_path / "run")
    path = tmp_path / "run" / STATE_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors cannot be continued from"):
        run(toy_dataset, tmp_path / "run")


def test_a_torn_shard_stops_the_run(write_toy_dataset: Callable[..., MaskDataset], tmp_path: Path) -> None:
    dataset = write_toy_dataset(tmp_path / "pairs", (30, 30))
    path = dataset.path(dataset.shards[1])
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DatasetError, match=r"pairs-00001\.tar"):
        run(dataset, tmp_path / "run")


def test_a_dataset_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere does not exist"):
        train_saliency(tmp_path / "nowhere", tmp_path / "s.safetensors", QUICK)


_TRAIN = """
import sys
from pathlib import Path
from fastdirs.saliency.settings import saliency_settings
from fastdirs.saliency.training import train_saliency

dataset, out, steps = sys.argv[1:]
values = {
    "width": "4", "steps": steps, "batch": "8", "precision": "f32", "device": "cpu", "held_out": "20",
    "log_every": "5", "save_every": "10", "schedule": "step",
}
trained = train_saliency(
    dataset, out, saliency_settings("quick", values), folder=Path(out).with_suffix(".run"),
)
# In one piece: two processes write to one pipe.
sys.stdout.write(f"trained {trained.held_out['pairs']}\\n")
"""


def command(dataset: MaskDataset, out: Path, steps: int, *before: str) -> list[str]:
    script = out.with_suffix(".py")
    script.write_text(_TRAIN)
    python = [sys.executable, "-W", "ignore"]
    return [*python, *before, str(script), str(dataset.folder), str(out), str(steps)]


@pytest.mark.slow
def test_a_killed_process_is_continued_to_the_same_bytes(toy_dataset: MaskDataset, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    assert subprocess.run(command(toy_dataset, whole, 200), env=ONE_THREAD, check=False).returncode == 0
    process = subprocess.Popen(command(toy_dataset, killed, 200), env=ONE_THREAD)
    deadline = time.monotonic() + 240
    # Somewhere between two checkpoints, not before the first.
    while len(read_log(tmp_path / "killed.run")) < 7:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    assert subprocess.run(command(toy_dataset, killed, 200), env=ONE_THREAD, check=False).returncode == 0
    assert killed.read_bytes() == whole.read_bytes()
    for name in (STATE_FILE, "log.jsonl"):
        assert (tmp_path / "killed.run" / name).read_bytes() == (tmp_path / "whole.run" / name).read_bytes()


@pytest.mark.slow
def test_two_processes_are_one_run(toy_dataset: MaskDataset, tmp_path: Path) -> None:
    two = tmp_path / "two.safetensors"
    launched = command(
        toy_dataset, two, 10, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
    )
    done = subprocess.run(launched, env=ONE_THREAD, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained 20") == 2
    log = read_log(tmp_path / "two.run")
    assert [line["step"] for line in log] == [5, 10]
    # What is measured by both together is what the file of the one that writes gives.
    segmenter, recorded = load_segmenter(two)
    ious = []
    for pair in list(toy_dataset.pairs())[80:]:
        found = segmenter(torch.from_numpy(pair.image.copy()).permute(2, 0, 1)[None] / 127.5 - 1)[0] > 0
        mask = torch.from_numpy(pair.mask)
        ious.append(float((mask & found).sum() / (mask | found).sum()))
    assert recorded["held_out"]["iou"] == log[-1]["held_out_iou"] == pytest.approx(np.mean(ious), rel=1e-3)
    # One process would see other images in its batch norms.
    alone = subprocess.run(
        command(toy_dataset, two, 20), env=ONE_THREAD, check=False, capture_output=True, text=True
    )
    assert "processes=2, not processes=1" in alone.stderr


@pytest.mark.parametrize("package", ["lightning_fabric", "tensorboard"])
def test_a_package_that_is_not_installed(package: str, python_without: Callable[..., str]) -> None:
    code = """
from fastdirs.errors import MissingDependencyError
try:
    import fastdirs.saliency.training
except MissingDependencyError as error:
    print(error)
"""
    wanted = f"needs {package}, which is not installed: pip install 'fastdirs["
    assert wanted in python_without([package], code)


@pytest.mark.slow
def test_toy_scenes_that_it_never_saw(write_toy_dataset: Callable[..., MaskDataset], tmp_path: Path) -> None:
    dataset = write_toy_dataset(tmp_path / "pairs", (400, 400), 64)
    settings = saliency_settings("quick", {"steps": "100", "precision": "f32", "device": "cpu"})
    before = time.process_time()
    trained = train_saliency(dataset, tmp_path / "s.safetensors", settings)
    assert trained.held_out["iou"] > 0.95
    assert math.isfinite(trained.held_out["loss"])
    assert time.process_time() - before < 60
