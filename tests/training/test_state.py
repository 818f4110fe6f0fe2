"""What a training keeps so that it can be continued."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fastdirs.errors import OutputError, TrainingError
from fastdirs.training.state import load_state, run_folder, save_state

ASKED = {"method": "voynov", "settings": {"batch": 32, "deformator": "proj"}}


def network(seed: int = 0) -> tuple[nn.Module, dict[str, torch.optim.Optimizer]]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    return module, {
        "first": torch.optim.Adam(module[0].parameters(), 0.1),
        "last": torch.optim.Adam(module[2].parameters(), 0.01),
    }


def steps(module: nn.Module, optimizers: dict[str, torch.optim.Optimizer], count: int) -> None:
    for step in range(count):
        module(torch.sin(torch.arange(12.0) + step).reshape(3, 4)).square().mean().backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()


def test_a_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    module, optimizers = network()
    steps(module, optimizers, 5)
    save_state(tmp_path / "state.safetensors", 5, module, optimizers)
    again, others = network(seed=1)
    assert load_state(tmp_path / "state.safetensors", again, others) == 5
    for one in ((module, optimizers), (again, others)):
        steps(*one, 4)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    save_state(tmp_path / "one.safetensors", 9, module, optimizers)
    save_state(tmp_path / "other.safetensors", 9, again, others)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()


def test_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert load_state(tmp_path / "state.safetensors", *network()) == 0


def test_a_state_that_is_not_finite_replaces_nothing(tmp_path: Path) -> None:
    module, optimizers = network()
    path = tmp_path / "state.safetensors"
    save_state(path, 1, module, optimizers)
    before = path.read_bytes()
    with torch.no_grad():
        module[0].bias[0] = float("nan")
    with pytest.raises(TrainingError, match=r"module\.0\.bias has values that are not finite"):
        save_state(path, 2, module, optimizers)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "other", "kind"])
def test_a_damaged_state(damage: str, tmp_path: Path) -> None:
    module, optimizers = network()
    path = tmp_path / "state.safetensors"
    save_state(path, 1, module, optimizers)
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "kind":
        path.write_bytes(data.replace(b"training-state", b"training-stale"))
    else:
        module = nn.Linear(3, 3)
    with pytest.raises(TrainingError, match=r"cannot be continued from.*Remove it to begin again"):
        load_state(path, module, optimizers)


def test_the_setting_that_differs_is_named(tmp_path: Path) -> None:
    with run_folder(tmp_path / "run", ASKED) as begun:
        assert not begun
    with run_folder(tmp_path / "run", ASKED) as begun:
        assert begun
    other = {**ASKED, "settings": {"batch": 64, "deformator": "proj"}}
    with (
        pytest.raises(OutputError, match="holds a run with batch=32, not batch=64"),
        run_folder(tmp_path / "run", other),
    ):
        pass
    with (
        pytest.raises(OutputError, match="method=voynov, not method=manifolds"),
        run_folder(tmp_path / "run", {**ASKED, "method": "manifolds"}),
    ):
        pass


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    for name in (".run.json.17.tmp", ".checkpoint.safetensors.17.tmp"):
        (tmp_path / name).write_text("half")
    with run_folder(tmp_path, ASKED) as begun:
        assert not begun
        assert {path.name for path in tmp_path.iterdir()} <= {".lock", "run.json"}


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="holds no training run"), run_folder(tmp_path, ASKED):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        run_folder(tmp_path / "run", ASKED),
        pytest.raises(OutputError, match="filled by another run"),
        run_folder(tmp_path / "run", ASKED),
    ):
        pass


def test_a_damaged_record_of_what_was_asked(tmp_path: Path) -> None:
    with run_folder(tmp_path / "run", ASKED):
        pass
    record = tmp_path / "run" / "run.json"
    record.write_text(record.read_text().replace('"asked"', '"aksed"'))
    with pytest.raises(OutputError, match="damaged"), run_folder(tmp_path / "run", ASKED):
        pass
