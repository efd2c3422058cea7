"""Random edits of a model, and a model in which a branch can go and two layers can be merged."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from graphs import load
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import PlanError
from onnxprune.graph.linear import Conv
from onnxprune.graph.model import Model
from onnxprune.graph.readers import linear_layers
from onnxprune.graph.trace import node_labels
from onnxprune.surgery.edits.apply import apply_edits
from onnxprune.surgery.edits.depth import DropBranch
from onnxprune.surgery.edits.inputs import DropInputs
from onnxprune.surgery.edits.kernel import Kernel
from onnxprune.surgery.edits.low_rank import LowRank
from onnxprune.surgery.edits.protocol import Edit


def some(model: Model, rng: np.random.Generator, share: float = 1.0) -> Iterator[Edit]:
    """Yield an edit of some kind for each layer, and for some sums."""
    labels = node_labels(model.graph)
    for n, layer in linear_layers(model.graph).items():
        if rng.random() > share:
            continue
        _, outputs, features = layer.matrix(layer.values).shape
        found: list[Edit] = [LowRank(labels[n], max(1, min(outputs, features) // 3), "channel")]
        if isinstance(layer, Conv) and max(layer.kernel, default=1) > 1:
            cut = []
            for size in layer.kernel:
                first, step = int(rng.integers(0, size)), int(rng.integers(1, 3))
                cut.append((first, step, int(rng.integers(1, (size - 1 - first) // step + 2))))
            found.append(Kernel(labels[n], tuple(cut)))
            found.append(LowRank(labels[n], max(1, min(outputs, features // 9) // 2), "spatial"))
        inputs = features // int(np.prod(layer.kernel)) if isinstance(layer, Conv) else features
        found += [DropInputs(labels[n], int(rng.integers(1, inputs)))] if inputs > 1 else []
        yield found[int(rng.integers(len(found)))]
    yield from (c.edit for c in DropBranch.candidates(model, 1) if rng.random() < 0.3)


def reformable(model: Model, edits: Iterator[Edit]) -> list[Edit]:
    """Return the edits that a model lets one make, one to a layer."""
    found: dict[str, Edit] = {}
    for edit in edits:
        found.setdefault(edit.layer, edit)
    while True:
        try:
            apply_edits(model, list(found.values()))
            return list(found.values())
        except PlanError as error:
            del found[str(error.where)]


def residual() -> Model:
    """Return two residual blocks, an expansion after a projection with nothing in between, and a head."""
    rng = np.random.default_rng(2)
    shapes = {
        "k0": (8, 3, 3, 3),
        "k1": (8, 8, 3, 3),
        "k2": (8, 8, 3, 3),
        "k3": (4, 8, 1, 1),
        "k4": (12, 4, 3, 3),
        "m": (12, 5),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k0"], ["a"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "k1"], ["b"], "inner", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["b"], ["c"], "relu"),
        helper.make_node("Conv", ["c", "k2"], ["d"], "outer", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["a", "d"], ["e"], "sum"),
        helper.make_node("Relu", ["e"], ["f"], "relu2"),
        helper.make_node("Conv", ["f", "k3"], ["g"], "project"),
        helper.make_node("Conv", ["g", "k4"], ["h"], "expand", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["h"], ["i"], "pool"),
        helper.make_node("Flatten", ["i"], ["j"], "flat"),
        helper.make_node("Gemm", ["j", "m"], ["y"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name) for name, shape in shapes.items()],
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
