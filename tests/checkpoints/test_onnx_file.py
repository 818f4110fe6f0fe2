from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastdirs.checkpoints import read_checkpoint, recognise
from fastdirs.checkpoints.onnx_file import read_graph
from fastdirs.errors import CheckpointError


def model() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((4, 300), np.float32), "weight")
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 4])
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 300])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["z", "weight"], ["images"])], "g", [z], [images], [weight]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_graph_has_no_named_tensors(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model().SerializeToString())
    checkpoint = read_checkpoint(tmp_path / "model.onnx")
    assert (checkpoint.format, dict(checkpoint.tensors), checkpoint.config) == ("onnx_file", {}, {})


def test_the_name_of_the_file_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_bytes(model().SerializeToString())
    assert recognise(tmp_path / "model.txt") == "onnx_file"
    assert read_graph(tmp_path / "model.txt") == model()


def test_truncated(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model().SerializeToString()[:700])
    with pytest.raises(CheckpointError, match=r"broken ONNX file.*Download or export it again"):
        read_checkpoint(tmp_path / "model.onnx")


def test_a_graph_that_breaks_the_rules(tmp_path: Path) -> None:
    broken = model()
    broken.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "model.onnx").write_bytes(broken.SerializeToString())
    with pytest.raises(CheckpointError, match="broken ONNX file"):
        read_checkpoint(tmp_path / "model.onnx")


def test_weights_in_another_file_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="model.data", size_threshold=0)
    with pytest.raises(CheckpointError, match=r"in a file beside it.*Save it as one file"):
        read_checkpoint(path)


def test_one_graph_needs_no_key(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model().SerializeToString())
    with pytest.raises(CheckpointError, match="key='G' selects nothing"):
        read_checkpoint(tmp_path / "model.onnx", key="G")
