"""What a file is that holds no generator: told from the names of its tensors."""

import re

from fastdirs.checkpoints import Checkpoint

# Names that tell, and what they tell; the first entry of which every pattern matches some name decides.
_STRANGERS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((r"b\d+\.fromrgb\.weight", r"b4\.(conv|fc|out)\..*"), "the discriminator of a StyleGAN2 or StyleGAN3"),
    ((r"convs\.0\.0\.weight", r"final_linear\.\d.*"), "the discriminator of a StyleGAN2 (rosinality)"),
    ((r"input\d+\.weight", r"layer\d+\.weight"), "a discriminator (genforce)"),
    ((r"blocks\.\d+\.0\.conv1\.weight", r"(linear|embed)\.weight", r"blocks\.\d+\.0\.conv2\.sv0"),
     "the discriminator of a BigGAN"),
    ((r"(.*\.)?exp_avg(_sq)?",), "the state of an optimiser (Adam)"),
    ((r"(.*\.)?momentum_buffer",), "the state of an optimiser"),
    ((r"type_estimator\.weight", r"shift_estimator\.weight"), "a reconstructor (GANLatentDiscovery)"),
    ((r"fc_logits\..*", r"fc_shift\..*"), "a reconstructor (GANLatentDiscovery)"),
    ((r"log_mat_half",), "a deformator (GANLatentDiscovery), that is a bank of directions"),
    ((r"eigvec",), "a file of closed-form directions (rosinality)"),
    ((r"conv1\.weight", r"layer1\.0\..*", r"fc\.weight"), "a ResNet classifier"),
    ((r"features\.\d+\.weight", r"classifier\..*weight"), "a classifier"),
)  # fmt: skip


def identify(checkpoint: Checkpoint) -> str | None:
    """What a checkpoint of no known family is, in words that fit after "is"; None if nobody can tell."""
    names = list(checkpoint.tensors)
    for patterns, what in _STRANGERS:
        if all(any(re.fullmatch(pattern, name) for name in names) for pattern in patterns):
            return what
    # The linear deformators have nothing but one matrix.
    if names and set(names) <= {"linear.weight", "linear.bias"}:
        return "a deformator (GANLatentDiscovery), that is a bank of directions"
    return None
