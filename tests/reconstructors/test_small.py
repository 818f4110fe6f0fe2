"""The reconstructor for small pictures."""

import pytest
import torch

from fastdirs.errors import SelectionError
from fastdirs.reconstructors import build_reconstructor


def test_it_learns_to_tell_two_shifts_apart() -> None:
    torch.manual_seed(0)
    reconstructor = build_reconstructor("small", 2, 1, 16)
    optimizer = torch.optim.Adam(reconstructor.parameters(), 3e-3)
    for _ in range(30):
        images, label = torch.rand(16, 1, 16, 16), torch.randint(2, (16,))
        # Brighter above, or below.
        shifted = images.clone()
        shifted[label == 0, :, :8] += 0.5
        shifted[label == 1, :, 8:] += 0.5
        logits, _, _ = reconstructor(images, shifted)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, label).backward()
        optimizer.step()
    assert (logits.argmax(dim=1) == label).float().mean() > 0.9


def test_pictures_that_are_too_small() -> None:
    with pytest.raises(SelectionError, match=r"small takes images of 16 pixels or more; these have 8"):
        build_reconstructor("small", 2, 3, 8)
