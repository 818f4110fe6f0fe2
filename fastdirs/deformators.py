"""Deformators: which direction and how far -> a shift of latents; trained together with a reconstructor."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdirs.errors import SelectionError
from fastdirs.registry import unknown_name


class Deformator(nn.Module, ABC):
    """Turns signed lengths along directions into shifts.

    Attributes:
        straight: Whether a shift is epsilon times one vector, so that a bank needs no knots.
        num_directions: K.
        size: Numbers in a shift.
    """

    straight: bool

    def __init__(self, num_directions: int, size: int) -> None:
        super().__init__()
        self.num_directions = num_directions
        self.size = size

    @abstractmethod
    def deform(self, basis: Tensor) -> Tensor:
        """Epsilon at the direction, zero elsewhere `[batch, num_directions]` -> shifts `[batch, size]`."""

    def forward(self, directions: Tensor, epsilons: Tensor) -> Tensor:
        """Shifts.

        Args:
            directions: `[batch]`, int64.
            epsilons: Signed lengths. `[batch]`, float32.

        Returns:
            `[batch, size]`, float32.
        """
        basis = epsilons.new_zeros(len(epsilons), self.num_directions)
        return self.deform(basis.scatter(1, directions[:, None], epsilons[:, None]))

    @torch.no_grad()
    def paths(self, knots: Tensor) -> Tensor:
        """Shifts of every direction at some lengths, in evaluation mode.

        Args:
            knots: Epsilons. `[knots]`, float32.

        Returns:
            `[num_directions, knots, size]`, float32.
        """
        training = self.training
        self.eval()
        directions = torch.arange(self.num_directions, device=knots.device).repeat_interleave(len(knots))
        shifts: Tensor = self(directions, knots.repeat(self.num_directions))
        self.train(training)
        return shifts.reshape(self.num_directions, len(knots), self.size)


class Linear(Deformator):
    """W x (+ b). A column may have any length.

    Args:
        num_directions: K.
        size: Numbers in a shift.
        random_init: Small random columns instead of the first K axes.
        bias: Adds the same vector to every shift, as the original does. Straight only without.
    """

    def __init__(self, num_directions: int, size: int, random_init: bool = True, bias: bool = False) -> None:
        super().__init__(num_directions, size)
        self.linear = nn.Linear(num_directions, size, bias=bias)
        self.straight = not bias
        with torch.no_grad():
            if random_init:
                self.linear.weight.normal_(std=0.1)
            else:
                self.linear.weight.copy_(torch.eye(size, num_directions))

    def deform(self, basis: Tensor) -> Tensor:
        """`[batch, num_directions]` -> `[batch, size]`."""
        shifts: Tensor = self.linear(basis)
        return shifts


class Proj(Linear):
    """W x (+ b), brought to the length of x: columns of unit length."""

    def deform(self, basis: Tensor) -> Tensor:
        """`[batch, num_directions]` -> `[batch, size]`, as long as the basis is."""
        shifts = super().deform(basis)
        length = shifts.norm(dim=1, keepdim=True)
        scaled: Tensor = shifts * (basis.norm(dim=1, keepdim=True) / torch.where(length > 0, length, 1.0))
        return scaled


class Ortho(Deformator):
    """The first K columns of a rotation exp(S - S^T) of the whole space.

    Args:
        num_directions: K, at most `size`.
        size: Numbers in a shift.
        random_init: A random rotation instead of nearly none.
    """

    straight = True

    def __init__(self, num_directions: int, size: int, random_init: bool = True) -> None:
        super().__init__(num_directions, size)
        self.log_mat_half = nn.Parameter((1.0 if random_init else 0.001) * torch.randn(size, size))
        self._matrix: Tensor | None = None

    def train(self, mode: bool = True) -> "Ortho":
        """Switch training mode; the rotation kept for evaluation is forgotten."""
        self._matrix = None
        super().train(mode)
        return self

    def matrix(self) -> Tensor:
        """The rotation `[size, size]`, computed at each call in training and once in evaluation."""
        if self._matrix is None or self.training:
            half = self.log_mat_half
            matrix: Tensor = torch.linalg.matrix_exp(half - half.T)
            if self.training:
                return matrix
            self._matrix = matrix.detach()
        return self._matrix

    def deform(self, basis: Tensor) -> Tensor:
        """`[batch, num_directions]` -> `[batch, size]`."""
        return F.linear(basis, self.matrix()[:, : self.num_directions])


class Fc(Deformator):
    """Four layers with batch norms and sums of what came before: a curved path for each direction.

    Args:
        num_directions: K, at most `size`.
        size: Numbers in a shift.
        inner: Width of the layers between.
        anchored: Take away what comes out for epsilon 0, so that paths begin at zero. The original does not.
    """

    straight = False

    def __init__(self, num_directions: int, size: int, inner: int = 1024, anchored: bool = True) -> None:
        super().__init__(num_directions, size)
        self.anchored = anchored
        self.fc1, self.bn1 = nn.Linear(num_directions, inner), nn.BatchNorm1d(inner)
        self.fc2, self.bn2 = nn.Linear(inner, inner), nn.BatchNorm1d(inner)
        self.fc3, self.bn3 = nn.Linear(inner, inner), nn.BatchNorm1d(inner)
        self.fc4 = nn.Linear(inner, size)

    def deform(self, basis: Tensor) -> Tensor:
        """`[batch, num_directions]` -> `[batch, size]`."""
        if not self.anchored:
            return self._network(basis)
        shifts = self._network(torch.cat([basis, basis.new_zeros(1, self.num_directions)]))
        return shifts[:-1] - shifts[-1:]

    def paths(self, knots: Tensor) -> Tensor:
        """`[num_directions, knots, size]`, and exactly zero at epsilon 0 where anchored.

        Rounding depends on where in a batch a row stands, and with several threads leaves a trace of a shift.
        """
        paths = super().paths(knots)
        if self.anchored:
            paths[:, knots == 0] = 0
        return paths

    def _network(self, basis: Tensor) -> Tensor:
        first = self.fc1(basis)
        second = self.fc2(F.elu(self.bn1(first)))
        third = self.fc3(F.elu(self.bn2(second + first)))
        last: Tensor = self.fc4(F.elu(self.bn3(third + second + first)))
        return last + F.pad(basis, (0, self.size - self.num_directions))


class Id(Deformator):
    """The first K axes, not trained."""

    straight = True

    def deform(self, basis: Tensor) -> Tensor:
        """`[batch, num_directions]` -> `[batch, size]`."""
        return F.pad(basis, (0, self.size - self.num_directions))


class Random(Deformator):
    """K random orthonormal directions, not trained, but kept with the weights (the original lost them)."""

    straight = True
    directions: Tensor

    def __init__(self, num_directions: int, size: int) -> None:
        super().__init__(num_directions, size)
        self.register_buffer("directions", torch.linalg.qr(torch.randn(size, num_directions))[0].T)

    def deform(self, basis: Tensor) -> Tensor:
        """`[batch, num_directions]` -> `[batch, size]`."""
        return basis @ self.directions


class Fixed(Deformator):
    """Paths that are there already, not trained: what a reconstructor learns to tell apart.

    Args:
        paths: At the knots. `[num_directions, knots, size]`, float32.
        knots: Ascending epsilons. `[knots]`, float32.
    """

    straight = False
    at_knots: Tensor
    knots: Tensor

    def __init__(self, paths: Tensor, knots: Tensor) -> None:
        super().__init__(paths.shape[0], paths.shape[2])
        self.register_buffer("at_knots", paths)
        self.register_buffer("knots", knots)

    def forward(self, directions: Tensor, epsilons: Tensor) -> Tensor:
        """Directions and epsilons `[batch]` -> `[batch, size]`, straight between knots and beyond them."""
        after = torch.searchsorted(self.knots, epsilons).clamp(1, len(self.knots) - 1)
        low, high = self.knots[after - 1], self.knots[after]
        share = ((epsilons - low) / (high - low))[:, None]
        return torch.lerp(self.at_knots[directions, after - 1], self.at_knots[directions, after], share)

    def deform(self, basis: Tensor) -> Tensor:
        """`[batch, num_directions]` with one entry a row -> `[batch, size]`."""
        directions = basis.abs().argmax(dim=1)
        shifts: Tensor = self(directions, basis.gather(1, directions[:, None])[:, 0])
        return shifts


DEFORMATORS = ("linear", "proj", "ortho", "fc", "id", "random")


def build_deformator(kind: str, num_directions: int, size: int, random_init: bool = True) -> Deformator:
    """A deformator to train (or not, for "id" and "random").

    Args:
        kind: "linear", "proj", "ortho", "fc", "id" or "random".
        num_directions: K.
        size: Numbers in a shift.
        random_init: Random directions at the start, or the axes.

    Raises:
        UnknownNameError: No such kind.
        SelectionError: More directions than the space has dimensions.

    Source:
        Voynov & Babenko 2020, section 3.1, and anvoynov/GANLatentDiscovery. Differs: no bias in `linear` and
        `proj`, so that epsilon 0 changes nothing; K below the size of the space never confines directions to
        its first K axes; `fc` is anchored, for the same reason; `random` can be saved.
    """
    if num_directions > size:
        raise SelectionError(
            f"{num_directions} directions are out of range. The latent space has room for 1 to {size}."
        )
    if kind == "linear":
        return Linear(num_directions, size, random_init)
    if kind == "proj":
        return Proj(num_directions, size, random_init)
    if kind == "ortho":
        return Ortho(num_directions, size, random_init)
    if kind == "fc":
        return Fc(num_directions, size)
    if kind == "id":
        return Id(num_directions, size)
    if kind == "random":
        return Random(num_directions, size)
    raise unknown_name("deformator", kind, DEFORMATORS)
