import logging

import pytest

from fastdirs.training.fabric import open_fabric, quiet_fabric


def test_one_process_on_the_cpu() -> None:
    fabric = open_fabric("cpu")
    assert (fabric.world_size, fabric.global_rank) == (1, 0)
    assert fabric.device.type == "cpu"


def test_the_logger_is_as_before_also_after_an_error() -> None:
    logger = logging.getLogger("lightning_fabric")
    before = logger.level
    with quiet_fabric():
        assert logger.level == logging.ERROR
    assert logger.level == before
    with pytest.raises(ZeroDivisionError), quiet_fabric():
        _ = 1 / 0
    assert logger.level == before
