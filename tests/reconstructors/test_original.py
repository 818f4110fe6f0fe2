"""Files of the authors' code, laid out here by their names and shapes alone; nothing of ours makes them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastdirs.errors import CheckpointError
from fastdirs.reconstructors import is_reconstructor, load_reconstructor

DIRECTIONS = 7


def _norm(name: str, size: int) -> dict[str, Tensor]:
    return {
        f"{name}.weight": torch.rand(size) + 0.5,
        f"{name}.bias": torch.randn(size) * 0.1,
        f"{name}.running_mean": torch.randn(size) * 0.1,
        f"{name}.running_var": torch.rand(size) + 0.5,
        f"{name}.num_batches_tracked": torch.tensor(90000),
    }


def _convolution(name: str, *shape: int) -> dict[str, Tensor]:
    fan_in = shape[1] * shape[2] * shape[3]
    return {f"{name}.weight": torch.randn(*shape) * fan_in**-0.5}


def _linear(name: str, out: int, size: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(out, size) * size**-0.5, f"{name}.bias": torch.randn(out)}


def _resnet(channels: int = 3) -> dict[str, Tensor]:
    """As torchvision names ResNet-18, with the first layer replaced, the unused classifier, and two heads."""
    body: dict[str, Tensor] = {**_convolution("conv1", 64, 2 * channels, 7, 7), **_norm("bn1", 64)}
    inputs = 64
    for stage, width in ((1, 64), (2, 128), (3, 256), (4, 512)):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            body |= {**_convolution(f"{name}.conv1", width, inputs, 3, 3), **_norm(f"{name}.bn1", width)}
            body |= {**_convolution(f"{name}.conv2", width, width, 3, 3), **_norm(f"{name}.bn2", width)}
            if stage > 1 and block == 0:
                body |= _convolution(f"{name}.downsample.0", width, inputs, 1, 1)
                body |= _norm(f"{name}.downsample.1", width)
            inputs = width
    body |= _linear("fc", 1000, 512)
    heads = {**_linear("type_estimator", DIRECTIONS, 512), **_linear("shift_estimator", 1, 512)}
    return {**{f"features_extractor.{name}": each for name, each in body.items()}, **heads}


def _resnet_answers(state: dict[str, Tensor], pair: Tensor) -> tuple[Tensor, Tensor]:
    """What ResNet-18 says by its definition, from the named tensors."""

    def norm(x: Tensor, name: str) -> Tensor:
        at = f"features_extractor.{name}"
        keys = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(state[f"{at}.{key}"] for key in keys))

    def convolve(x: Tensor, name: str, stride: int, padding: int) -> Tensor:
        return functional.conv2d(
            x, state[f"features_extractor.{name}.weight"], stride=stride, padding=padding
        )

    x = norm(convolve(pair, "conv1", 2, 3), "bn1").relu()
    x = functional.max_pool2d(x, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            kept = x
            if stride == 2:
                kept = norm(convolve(x, f"{name}.downsample.0", 2, 0), f"{name}.downsample.1")
            x = norm(convolve(x, f"{name}.conv1", stride, 1), f"{name}.bn1").relu()
            x = (norm(convolve(x, f"{name}.conv2", 1, 1), f"{name}.bn2") + kept).relu()
    features = functional.adaptive_avg_pool2d(x, 1).flatten(1)
    logits = functional.linear(features, state["type_estimator.weight"], state["type_estimator.bias"])
    epsilon = functional.linear(features, state["shift_estimator.weight"], state["shift_estimator.bias"])
    return logits, epsilon.squeeze(1)


def _lenet(channels: int = 1) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for index, (out, size) in {0: (6, 2 * channels), 4: (16, 6), 8: (120, 16)}.items():
        state |= _convolution(f"convnet.{index}", out, size, 5, 5)
        state |= {f"convnet.{index}.bias": torch.randn(out), **_norm(f"convnet.{index + 1}", out)}
    for head, out in (("fc_logits", DIRECTIONS), ("fc_shift", 1)):
        state |= {**_linear(f"{head}.0", 84, 120), **_norm(f"{head}.1", 84), **_linear(f"{head}.3", out, 84)}
    return state


def _run(folder: Path, state: object, arguments: Any = None, name: str = "shift_predictor_90000.pt") -> Path:
    """A run folder as run_train.py leaves it, with the reconstructor alone."""
    (folder / "models").mkdir(exist_ok=True)
    torch.save(state, folder / "models" / name)
    if arguments is not None:
        (folder / "args.json").write_text(json.dumps(arguments))
    return folder / "models" / name


@pytest.mark.parametrize("channels", [1, 3])
def test_resnet(channels: int, tmp_path: Path) -> None:
    state = _resnet(channels)
    path = _run(tmp_path, state, {"gan_type": "BigGAN", "target_class": 239, "deformator": "ortho"})
    assert is_reconstructor(path)
    reconstructor, recorded = load_reconstructor(path)
    assert recorded["reconstructor"] == {
        "kind": "resnet18", "num_directions": DIRECTIONS, "img_channels": channels, "img_resolution": 128,
    }  # fmt: skip
    assert recorded["source"] == path.name
    images, shifted = torch.rand(2, 2, channels, 128, 128) * 2 - 1
    logits, epsilon, _ = reconstructor(images, shifted)
    wanted_logits, wanted_epsilon = _resnet_answers(state, torch.cat([images, shifted], dim=1))
    torch.testing.assert_close(logits, wanted_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(epsilon, wanted_epsilon, rtol=1e-5, atol=1e-5)
    assert not any("fc" in name for name in reconstructor.state_dict())


@pytest.mark.parametrize(
    ("arguments", "resolution"),
    [
        ({"gan_type": "SN_MNIST", "gan_resolution": 1024}, 32),
        ({"gan_type": "SN_Anime", "shift_predictor_size": None}, 64),
        ({"gan_type": "ProgGAN"}, 1024),
        ({"gan_type": "StyleGAN2", "gan_resolution": 256}, 256),
        ({"gan_type": "StyleGAN2", "resolution": 512}, 512),
        ({"gan_type": "ProgGAN", "shift_predictor_size": 128}, 128),
    ],
)
def test_image_size_comes_from_the_runs_arguments(
    arguments: dict[str, object], resolution: int, tmp_path: Path
) -> None:
    path = _run(tmp_path, _lenet(), arguments)
    assert load_reconstructor(path)[0].img_resolution == resolution
    # Who knows better is believed.
    assert load_reconstructor(path, img_resolution=48)[0].img_resolution == 48


@pytest.mark.parametrize(
    ("arguments", "shifts"),
    [
        ({}, None),
        ({"gan_type": "SN_MNIST"}, ("uniform", 6.0, 0.5)),
        ({"shift_distribution_key": "normal", "shift_scale": 8, "min_shift": 0.25}, ("normal", 8.0, 0.25)),
    ],
)
def test_shifts_come_from_the_runs_arguments(
    arguments: dict[str, object], shifts: tuple[str, float, float] | None, tmp_path: Path
) -> None:
    _, recorded = load_reconstructor(_run(tmp_path, _lenet(), arguments), img_resolution=32)
    found = recorded.get("shifts")
    assert (found and tuple(found[key] for key in ("name", "scale", "minimum"))) == shifts


@pytest.mark.parametrize("arguments", [None, {}, [], {"gan_type": "BigBiGAN", "gan_resolution": 1024}])
def test_images_of_unknown_size(arguments: object, tmp_path: Path) -> None:
    path = _run(tmp_path, _lenet(), arguments)
    with pytest.raises(CheckpointError, match=r"how large its images are.* pass img_resolution"):
        load_reconstructor(path)
    assert load_reconstructor(path, img_resolution=32)[0].num_directions == DIRECTIONS


def test_the_reconstructor_within_a_checkpoint(tmp_path: Path) -> None:
    state = _lenet()
    content = {"step": 99000, "deformator": {"log_mat_half": torch.zeros(4, 4)}, "shift_predictor": state}
    torch.save(content, tmp_path / "checkpoint.pt")
    reconstructor, _ = load_reconstructor(tmp_path / "checkpoint.pt", img_resolution=32)
    assert torch.equal(reconstructor.state_dict()["classifier.weight"], state["fc_logits.3.weight"])


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("convnet.4.weight", None, "'body.4.weight' is missing"),
        ("convnet.12.weight", torch.zeros(2), "'body.12.weight' is no part of it"),
        ("something", torch.zeros(2), "'something' is no part of it"),
        ("convnet.4.weight", torch.zeros(16, 6, 3, 3), "'body.4.weight' has shape"),
        ("convnet.0.weight", torch.zeros(6, 8, 5, 5), "first layer of shape"),
        ("fc_logits.3.weight", torch.zeros(84), "last one of"),
        ("fc_shift.3.bias", torch.tensor([float("inf")]), "NaN or infinite values in 'meter.bias'"),
        ("fc_logits.3.weight", None, "is no reconstructor"),
    ],
)
def test_damaged(name: str, tensor: Tensor | None, reason: str, tmp_path: Path) -> None:
    state = _lenet()
    state.pop(name, None)
    path = _run(tmp_path, state if tensor is None else {**state, name: tensor})
    with pytest.raises(CheckpointError, match=reason):
        load_reconstructor(path, img_resolution=32)


def test_cut_short(tmp_path: Path) -> None:
    path = _run(tmp_path, _lenet())
    path.write_bytes(path.read_bytes()[:-2000])
    assert not is_reconstructor(path)
    with pytest.raises(CheckpointError):
        load_reconstructor(path, img_resolution=32)


class _Acts:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('it ran')",))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = _run(tmp_path, {**_lenet(), "extra": _Acts()})
    with pytest.raises(CheckpointError, match="nothing was run"):
        load_reconstructor(path, img_resolution=32)
