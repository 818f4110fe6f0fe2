"""Every generator that an original wrote gives in torch what the original gives: latents, images, edits."""

import pytest
import torch

from fastdirs.checkpoints import read_checkpoint
from fastdirs.errors import CheckpointError
from fastdirs.loading import load_generator
from tests.originals.conftest import (
    INPUTS,
    Original,
    every_array,
    every_original,
    in_torch,
    loaded,
    made,
    options_of,
    require_equal,
)


@every_array()
@pytest.mark.parametrize("alone", [True, False], ids=["one by one", "in a batch"])
def test_what_the_original_made(original: Original, array: str, alone: bool) -> None:
    generator = loaded(original, tuple(options_of(original, array).items()))
    require_equal(in_torch(generator, 1 if alone else original.batch), original, array)


@every_original()
def test_every_input_is_known(original: Original) -> None:
    unknown = set(original.inputs) - INPUTS
    assert not unknown, f"{original.folder.name} was made with {unknown}: let a rule use it"


@every_original(lambda original: "truncation_latent" in original.inputs)
def test_the_mean_of_w_is_the_one_in_the_file(original: Original) -> None:
    generator = load_generator(original.source)
    given = original.inputs["truncation_latent"].expand_as(generator.latent_mean)
    in_file = not any(note.startswith("latent_mean") for note in generator.provenance.assumed)
    assert in_file == ("latent_avg" in read_checkpoint(original.source).tensors)
    # A mean of other samples differs, but it is the mean of the same distribution.
    torch.testing.assert_close(generator.latent_mean, given, rtol=0, atol=1e-5 if in_file else 0.1)


@every_original(lambda original: original.source != original.weights)
def test_the_file_alone_is_the_same_generator_or_says_what_it_lacks(original: Original) -> None:
    try:
        alone = load_generator(original.weights)
    except CheckpointError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert "name the folder" in refusal.lower()
        return
    assert alone.weights_sha256 == loaded(original).weights_sha256
    for array in (name for name in original.names if name.startswith("img")):
        require_equal(in_torch(alone, original.batch), original, array)


@every_original()
def test_its_sizes_are_what_the_original_says(original: Original) -> None:
    generator, images = loaded(original), next(n for n in original.names if n.startswith("img"))
    *_, channels, height, width = original.expected[images].shape
    assert (generator.img_channels, generator.img_resolution) == (channels, height)
    assert height == width
    assert generator.z_dim == original.z().shape[1]
    assert not generator.training


@every_original()
def test_a_changed_weight_is_noticed(original: Original) -> None:
    """A comparison that cannot fail compares nothing: 1% on one of the last weights must be too much."""
    generator = original.load()
    last = max(generator.stages[-1].parameters(), key=lambda parameter: parameter.numel())
    array = next(name for name in original.names if name.startswith("img") and not options_of(original, name))
    before = made(in_torch(generator, original.batch), original, array)
    last.mul_(1.01)
    assert not torch.equal(made(in_torch(generator, original.batch), original, array), before)
    with pytest.raises(AssertionError):
        require_equal(in_torch(generator, original.batch), original, array)


@every_original()
def test_an_array_that_no_rule_makes_is_not_passed_over_silently(original: Original) -> None:
    with pytest.raises(pytest.fail.Exception, match="'img_of_a_new_kind': write a rule"):
        made(in_torch(loaded(original), 1), original, "img_of_a_new_kind")
