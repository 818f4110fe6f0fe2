"""One process of a training, or those that torchrun started."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_fabric import Fabric

from fastdirs.machine import processes


def open_fabric(device: str) -> Fabric:
    """What places modules and batches, and lets processes share gradients.

    Args:
        device: "cpu" or "cuda".
    """
    world, local = processes()
    with quiet_fabric():
        fabric = Fabric(
            accelerator=device, devices=local, num_nodes=max(1, world // local),
            strategy="ddp" if world > 1 else "auto",
        )  # fmt: skip
        fabric.launch()
    return fabric


@contextmanager
def quiet_fabric() -> Iterator[None]:
    """Fabric logs what it was told to do."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
