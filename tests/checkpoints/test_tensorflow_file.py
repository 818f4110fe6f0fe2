"""TensorFlow network pickles, written by hand as the original code would: no original file is at hand."""

from typing import Any

import numpy as np
import pytest

from fastdirs.checkpoints import FORMATS, read_checkpoint
from fastdirs.errors import CheckpointError, UnknownNameError

ROWS, MEAN = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3, np.float32)


def network(
    pickles: Any, variables: dict[str, Any], components: dict[str, Any] | None = None, **more: object
) -> Any:
    state = {
        "version": 4,
        "name": "G",
        "static_kwargs": {"resolution": 1024, "func": None},
        "components": components or {},
        "build_module_src": "import numpy as np\n",
        "build_func_name": "G_main",
        "variables": list(variables.items()),
        **more,
    }
    return pickles.named("dnnlib.tflib.network", "Network")(state=state)


def generator(pickles: Any) -> Any:
    synthesis = network(pickles, {"4x4/Const/const": ROWS}, static_kwargs={"fmap_base": 16})
    mapping = network(pickles, {"Dense0/weight": ROWS, "Dense0/bias": MEAN}, static_kwargs={"layers": 8})
    return network(pickles, {"dlatent_avg": MEAN}, {"mapping": mapping, "synthesis": synthesis})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_averaged_generator_with_its_components(pickles: Any, protocol: int) -> None:
    other = network(pickles, {"w": MEAN})
    path = pickles.write((other, other, generator(pickles)), protocol)
    read = read_checkpoint(path)
    assert (read.format, read.part, read.parts) == ("tensorflow_file", "Gs", ("G", "D", "Gs"))
    assert sorted(read.tensors) == [
        "G_mapping/Dense0/bias",
        "G_mapping/Dense0/weight",
        "G_synthesis/4x4/Const/const",
        "dlatent_avg",
    ]
    assert read.tensors["G_synthesis/4x4/Const/const"].tolist() == ROWS.tolist()
    assert read.settings["resolution"] == 1024
    assert read.settings["class_name"] == "G_main"
    assert read.settings["G_mapping"] == {"layers": 8}
    assert "has not been checked" in read.settings["unchecked"]
    assert read.foreign == ()
    assert list(read_checkpoint(path, key="D").tensors) == ["w"]
    with pytest.raises(UnknownNameError, match="Known: D, G, Gs"):
        read_checkpoint(path, key="G_ema")
    survey = FORMATS.load("tensorflow_file").survey
    assert survey is not None
    assert sorted(survey(path).parts["Gs"]) == sorted(read.tensors)


def test_a_file_of_one_network(pickles: Any) -> None:
    assert read_checkpoint(pickles.write(generator(pickles))).parts == ("Gs",)
    call = pickles.named("dnnlib.tflib.tfutil", "run")
    with pytest.raises(CheckpointError, match="not of its networks"):
        read_checkpoint(pickles.write([call()]))


def test_payloads(pickles: Any) -> None:
    evil, good = pickles.named("posix", "system")("true"), generator(pickles)
    for hostile in (
        network(pickles, {"w": evil}),
        network(pickles, {"w": MEAN}, static_kwargs={"func": evil}),
        network(pickles, {"w": MEAN}, {"mapping": network(pickles, {"w": evil})}),
    ):
        with pytest.raises(CheckpointError, match=r"asks to run posix\.system"):
            read_checkpoint(pickles.write((good, good, hostile)))
        # The discriminator is never taken.
        assert read_checkpoint(pickles.write((good, hostile, good))).foreign == ("posix.system",)
    source = network(pickles, {"w": MEAN}, build_module_src="import os\nos.system('true')")
    with pytest.raises(CheckpointError, match=r"asks to run os\.system in the source text"):
        read_checkpoint(pickles.write((good, good, source)))


def test_an_unknown_class_among_the_variables(pickles: Any) -> None:
    hostile = network(pickles, {"w": MEAN, "x": pickles.named("mylab", "Thing")()})
    with pytest.raises(CheckpointError, match=r"Gs of .*asks to call mylab\.Thing"):
        read_checkpoint(pickles.write((hostile, hostile, hostile)))
