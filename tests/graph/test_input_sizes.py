"""Sizes of dynamic axes that weights further on tell: those from which the weights were made."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import signature_of
from onnx import TensorProto, helper, numpy_helper


def spectrogram(
    bins: int, kernel: int, stride: int, channels: int, *, offset: bool = False, product: bool = False
) -> onnx.ModelProto:
    """Return a network on frames of `bins` values, as madmom exports: no size of the input is written anywhere.

    Each frame is a row; a convolution along the bins, and a dense layer over what is left of them. With `offset` a
    constant is added first; with `product` no Reshape says how many values a row holds, only the weight.
    """
    rng = np.random.default_rng(0)
    left = (bins - kernel) // stride + 1
    arrays = {
        "w": rng.normal(size=(channels, 1, 1, kernel)).astype(np.float32),
        "v": rng.normal(size=(left * channels, 4)).astype(np.float32),
        "shift": rng.normal(size=(bins,)).astype(np.float32),
        "zero": np.array([0]),
        "last": np.array([2]),
        "rows": np.array([-1, left * channels]),
    }
    nodes = [
        helper.make_node("Add", ["x", "shift"], ["x0"]) if offset else helper.make_node("Identity", ["x"], ["x0"]),
        helper.make_node("Unsqueeze", ["x0", "last"], ["x1"]),
        helper.make_node("Unsqueeze", ["x1", "zero"], ["x2"]),
        helper.make_node("Transpose", ["x2"], ["x3"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["x3", "w"], ["c"], strides=[1, stride]),
        helper.make_node("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Squeeze", ["t", "zero"], ["s"]),
        helper.make_node("Flatten", ["s"], ["f"], axis=1)
        if product
        else helper.make_node("Reshape", ["s", "rows"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "spectrogram",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["frames", "bins"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("bins", [81, 144, 482, 1575])
@pytest.mark.parametrize(("kernel", "stride", "channels"), [(3, 1, 10), (35, 1, 30), (7, 3, 4)])
@pytest.mark.parametrize("product", [False, True])
def test_rows_behind_a_convolution_tell_an_axis(
    bins: int, kernel: int, stride: int, channels: int, product: bool
) -> None:
    found = signature_of(spectrogram(bins, kernel, stride, channels, product=product)).shapes["x"][1]
    assert (found - kernel) // stride == (bins - kernel) // stride


@pytest.mark.parametrize("bins", [80, 324])
def test_a_constant_that_is_added_tells_an_axis(bins: int) -> None:
    assert signature_of(spectrogram(bins, 7, 3, 4, offset=True)).shapes["x"][1] == bins


@pytest.mark.parametrize("opset", [11, 17])
def test_a_recurrent_layer_behind_moved_axes_tells_an_axis(opset: int) -> None:
    weights = {"w": np.ones((1, 16, 123), np.float32), "r": np.ones((1, 16, 16), np.float32), "one": np.array([1])}
    if opset < 13:
        del weights["one"]
    unsqueeze = (
        helper.make_node("Unsqueeze", ["x", "one"], ["u"])
        if opset > 12
        else helper.make_node("Unsqueeze", ["x"], ["u"], axes=[1])
    )
    graph = helper.make_graph(
        [unsqueeze, helper.make_node("RNN", ["u", "w", "r"], ["y"], hidden_size=16)],
        "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["frames", "bins"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    assert signature_of(proto).shapes["x"][1] == 123


@pytest.mark.parametrize("size", [20, 75, 200, 331])
@pytest.mark.parametrize("opset", [9, 17])
def test_a_dense_layer_behind_pictures_tells_their_size(size: int, opset: int) -> None:
    left = ((size - 5) // 2 - 1) // 2 + 1
    weights = {"w": (6, 3, 5, 5), "v": (8, 6, 3, 3), "m": (8 * left * left, 10), "c": (10,)}
    arrays = {name: np.ones(shape, np.float32) for name, shape in weights.items()}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], strides=[2, 2]),
            helper.make_node("Conv", ["a", "v"], ["b"], strides=[2, 2], pads=[0, 0, 1, 1]),
            helper.make_node("Flatten", ["b"], ["f"]),
            helper.make_node("Gemm", ["f", "m", "c"], ["y"]),
        ],
        "pictures",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    found = signature_of(proto)
    assert found.inputs["x"].axis == 0
    height, width = found.shapes["x"][2:]
    assert height == width
    assert abs(height - size) < 4
