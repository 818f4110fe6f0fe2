import pytest
import torch

from fastdirs.discovery import Search, discover, random
from fastdirs.errors import SelectionError
from fastdirs.generators import Generator
from fastdirs.shift_space import ShiftSpace


def test_directions_stand_at_right_angles(toy: Generator) -> None:
    flat = discover(toy, "random", 16).directions.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(16), rtol=0, atol=1e-6)


def test_the_first_ones_do_not_depend_on_how_many(toy: Generator) -> None:
    few, all_of_them = discover(toy, "random", 3), discover(toy, "random", 16)
    torch.testing.assert_close(few.directions, all_of_them.directions[:3], rtol=0, atol=1e-6)


def test_no_axis_and_no_side_of_it_is_preferred(toy: Generator) -> None:
    search = Search(generator=toy, space=ShiftSpace(toy, (0,)), num_directions=4)
    vectors = torch.cat([random.find(search, random.Settings(seed)).vectors for seed in range(500)])
    torch.testing.assert_close(
        vectors.square().mean(dim=0).float(), torch.full((16,), 1 / 16), rtol=0.2, atol=0
    )
    # The standard error of 2,000 components of length 1/4 is 0.0056.
    assert (vectors.mean(dim=0).abs() < 0.025).all()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range(toy: Generator, seed: int) -> None:
    with pytest.raises(SelectionError, match=f"seed={seed} is out of range. Expected 0 to 4294967295"):
        discover(toy, "random", 2, settings={"seed": str(seed)})


def test_scores_say_nothing(toy: Generator) -> None:
    assert not discover(toy, "random", 3).scores.any()
