import pytest
import torch
from torch import Tensor, nn

from fastdirs.errors import ContractError
from fastdirs.latents import sample_z
from fastdirs.module_generator import ModuleGenerator


class Dense(nn.Module):
    """A generator as anybody writes it: z `[batch, 6]` -> images `[batch, 3, 8, 8]`."""

    def __init__(self, z_dim: int = 6, channels: int = 3) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.shape = (channels, 8, 8)
        self.dropout = nn.Dropout(0.5)
        self.layer = nn.Linear(z_dim, channels * 64)

    def forward(self, z: Tensor) -> Tensor:
        return self.dropout(self.layer(z)).tanh().unflatten(1, self.shape)


class Returns(nn.Module):
    """A module whose result does not depend on its weights."""

    z_dim = 4

    def __init__(self, result: object) -> None:
        super().__init__()
        self.result = result

    def forward(self, z: Tensor) -> object:
        return self.result


@pytest.mark.parametrize("channels", [1, 3])
def test_a_module_becomes_a_generator(channels: int) -> None:
    module = Dense(channels=channels)
    generator = ModuleGenerator(module, name="mine")
    z = sample_z(range(3), 6)
    torch.testing.assert_close(generator.synthesis(generator.mapping(z)), module(z))
    assert (generator.z_dim, generator.img_resolution, generator.img_channels) == (6, 8, channels)
    assert (generator.family, generator.provenance.name) == ("custom", "mine")


def test_it_is_frozen_and_in_evaluation_mode() -> None:
    generator = ModuleGenerator(Dense().train())
    assert not [parameter for parameter in generator.parameters() if parameter.requires_grad]
    assert not generator.stages[0].module.training
    latents = generator.mapping(sample_z([0], 6))
    assert torch.equal(generator.synthesis(latents), generator.synthesis(latents)), "dropout must be off"


def test_z_with_four_axes() -> None:
    module = nn.Sequential(
        nn.ConvTranspose2d(7, 4, 4), nn.ReLU(), nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Tanh()
    )
    generator = ModuleGenerator(module, z_dim=7)
    z = sample_z(range(2), 7)
    torch.testing.assert_close(generator.synthesis(generator.mapping(z)), module(z[:, :, None, None]))


def test_the_first_layer_can_be_factorised() -> None:
    dense = Dense()
    (factor,) = ModuleGenerator(dense).factors()
    torch.testing.assert_close(factor.weight, dense.layer.weight.detach())
    module = nn.Sequential(nn.ConvTranspose2d(7, 1, 4), nn.Tanh())
    (factor,) = ModuleGenerator(module, z_dim=7).factors()
    assert factor.weight.shape == (16, 7)


def test_no_layer_as_long_as_z_means_no_factors() -> None:
    class Hidden(Dense):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(torch.cat([z, z], dim=1))

    module = Hidden(z_dim=12)
    assert ModuleGenerator(module, z_dim=6).factors() == []


def test_z_dim_is_needed() -> None:
    with pytest.raises(ContractError, match=r"does not say how long its z is.*z_dim"):
        ModuleGenerator(nn.Linear(4, 4), name="mine")


@pytest.mark.parametrize(
    "result",
    [
        torch.zeros(2, 5), torch.zeros(2, 3, 8, 9), torch.zeros(2, 2, 8, 8), torch.zeros(1, 3, 8, 8),
        torch.zeros(()), None, "text", (torch.zeros(2, 3, 8, 8),),
    ],
    ids=["vector", "not square", "two channels", "one image", "number", "none", "text", "tuple"],
)  # fmt: skip
def test_not_a_generator(result: object) -> None:
    with pytest.raises(ContractError, match=r"mine does not turn z \[batch, 4\] into square images"):
        ModuleGenerator(Returns(result), name="mine")


def test_a_discriminator_is_not_a_generator() -> None:
    with pytest.raises(ContractError, match="does not turn z"):
        ModuleGenerator(nn.Conv2d(3, 1, 4), z_dim=100)


def test_a_module_that_wants_something_else() -> None:
    class TwoInputs(nn.Module):
        def forward(self, z: Tensor, labels: Tensor) -> Tensor:
            return z + labels

    class Careful(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            raise AssertionError

    for module in (TwoInputs(), Careful()):
        with pytest.raises(ContractError, match="does not turn z"):
            ModuleGenerator(module, z_dim=4)


class Headed(nn.Module):
    """Its last layer is as long as z, and is written down before the one that reads z."""

    z_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.to_rgb = nn.Linear(6, 192)
        self.first = nn.Linear(6, 6)

    def forward(self, z: Tensor) -> Tensor:
        return self.to_rgb(self.first(z).tanh()).tanh().unflatten(1, (3, 8, 8))


class Normalised(Headed):
    """No layer is given z itself."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z / z.norm(dim=1, keepdim=True))


def test_the_layer_that_is_given_z_is_factorised_wherever_it_is_written() -> None:
    module = Headed()
    (factor,) = ModuleGenerator(module).factors()
    assert factor.name.endswith("first")
    assert torch.equal(factor.weight, module.first.weight)
    assert ModuleGenerator(Normalised()).factors() == []


def test_images_in_another_range_are_refused() -> None:
    module = Dense()
    module.forward = lambda z: (Dense.forward(module, z) + 1) / 2
    with pytest.raises(ContractError, match=r"Expected images in \[-1, 1\]: return 2 \* images - 1"):
        ModuleGenerator(module)
