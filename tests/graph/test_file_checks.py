"""Tensors, inputs and functions of a file that declare what it does not hold, or what no machine computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph import io
from onnxprune.graph.external_data import data_files
from onnxprune.graph.file_checks import check_nodes, check_tensors
from onnxprune.graph.io import load

Edit = Callable[[onnx.ModelProto], None]
HERE = Path("m.onnx")


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def resized(name: str, dims: list[int]) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        tensor = initializer(model, name)
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return edit


def of_input(dims: list[int]) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, dims))

    return edit


def sparse(indices: list, dims: tuple[int, ...] = (16, 3, 3, 3), *, constant: bool = False) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        values = numpy_helper.from_array(np.array([1, 2], np.float32), "w1")
        made = onnx.SparseTensorProto(values=values, indices=numpy_helper.from_array(np.array(indices), "i"), dims=dims)
        model.graph.initializer.remove(initializer(model, "w1"))
        if constant:
            model.graph.node.insert(0, helper.make_node("Constant", [], ["w1"], sparse_value=made))
        else:
            model.graph.sparse_initializer.append(made)

    return edit


def computed(op: str, *arguments: np.ndarray) -> Edit:
    """Add a constant that the file computes from small ones."""

    def edit(model: onnx.ModelProto) -> None:
        names = [f"argument{n}" for n in range(len(arguments))]
        model.graph.initializer.extend(map(numpy_helper.from_array, arguments, names))
        model.graph.node.insert(0, helper.make_node(op, names, ["large"]))
        model.graph.node.append(helper.make_node("ReduceMax", ["large"], ["most"], keepdims=0))
        model.graph.node.append(helper.make_node("Add", ["y", "most"], ["sum"]))
        model.graph.output[0].name = "sum"

    return edit


def doubled(model: onnx.ModelProto) -> None:
    last = "y"
    for number in range(60):
        model.graph.node.append(helper.make_node("Concat", [last, last], [f"twice{number}"], axis=1))
        last = f"twice{number}"
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(last, TensorProto.FLOAT, None))


def functions(model: onnx.ModelProto, calls: dict[str, list[str]]) -> None:
    """Add functions of a domain of their own; each calls others, one after the other."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model.opset_import.append(opsets[1])
    for name, called in calls.items():
        names = ["a", *(f"t{n}" for n in range(len(called) - 1)), "b"]
        nodes = [
            helper.make_node(op, [names[n]], [names[n + 1]], domain="" if op == "Relu" else "own")
            for n, op in enumerate(called)
        ]
        model.functions.append(helper.make_function("own", name, ["a"], ["b"], nodes, opsets))
    model.graph.node.append(helper.make_node(next(iter(calls)), ["y"], ["z"], domain="own"))
    model.graph.output[0].name = "z"


def growing(model: onnx.ModelProto) -> None:
    functions(model, {**{f"f{n}": [f"f{n - 1}"] * 10 for n in range(11, 0, -1)}, "f0": ["Relu"]})


def circular(model: onnx.ModelProto) -> None:
    functions(model, {"f": ["g"], "g": ["Relu", "f"]})


def node_of(op: str, inputs: list[str], outputs: list[str], **attributes: int | str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node(op, inputs, outputs, **attributes))
        model.opset_import[0].version = 18

    return edit


def called(nodes: list[onnx.NodeProto], arguments: list[str], *, overload: str = "", **attributes: int) -> Edit:
    """Add a function of two inputs, a and c, and the attribute n, behind the model, and a call of it within another one."""

    def edit(model: onnx.ModelProto) -> None:
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        del model.opset_import[:]
        model.opset_import.extend(opsets)
        model.ir_version = 10 if overload else 9
        inner = helper.make_function("own", "Inner", ["a", "c"], ["b"], nodes, opsets, ["n"], overload=overload)
        call = helper.make_node("Inner", arguments, ["o"], domain="own", overload=overload or None)
        call.attribute.append(onnx.AttributeProto(name="n", ref_attr_name="m", type=onnx.AttributeProto.INT))
        outer = helper.make_function("own", "Outer", ["i", "j"], ["o"], [call], opsets, ["m"])
        model.functions.extend([inner, outer])
        model.graph.node.append(helper.make_node("Outer", ["y"], ["z"], domain="own", **attributes))
        model.graph.output[0].name = "z"

    return edit


def referring(op: str, name: str, inputs: list[str], outputs: list[str], **attributes: int) -> onnx.NodeProto:
    """Return a node of a function with an attribute that refers to the attribute n of the function."""
    node = helper.make_node(op, inputs, outputs, **attributes)
    node.attribute.append(onnx.AttributeProto(name=name, ref_attr_name="n", type=onnx.AttributeProto.INT))
    return node


def branching(*inputs: str) -> list[onnx.NodeProto]:
    """Return the nodes of a function that takes a maximum within a branch."""
    result = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    body = helper.make_graph([helper.make_node("Max", inputs, ["r"])], "branch", [], [result])
    condition = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.array(True)))
    return [condition, helper.make_node("If", ["k"], ["b"], then_branch=body, else_branch=body)]


LARGEST = helper.make_node("Max", ["a", "c"], ["b"])
SPLIT = [
    referring("Split", "num_outputs", ["a"], ["p", "q"], axis=1),
    helper.make_node("Concat", ["q", "p"], ["b"], axis=1),
]


def repeated(model: onnx.ModelProto) -> None:
    model.graph.output.append(model.graph.output[0])


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (repeated, "told apart by their names"),
        (node_of("Einsum", ["y", ""], ["z"], equation="bc,ck->bk"), "input 1 has no name"),
        (node_of("Max", ["y", "", "y"], ["z"]), "input 1 has no name"),
        (node_of("LayerNormalization", ["y", "b3", ""], ["z"]), "its bias has no name"),
        (node_of("DFT", ["y", "", ""], ["z"]), "its axis has no name"),
        (node_of("RegexFullMatch", [""], ["z"], pattern="a"), "input 0 has no name"),
        (node_of("Split", ["y"], ["p", "q", ""], axis=1, num_outputs=2), "it has 3 outputs, and declares 2"),
        (node_of("Reshape", ["y", "shape"], ["z"], allowzero=-2), "allowzero is -2"),
        (called([LARGEST], ["i"]), "input 1 has no name"),
        (called([LARGEST], ["i", ""]), "input 1 has no name"),
        (called([LARGEST], ["i", "j"]), "input 1 has no name"),
        (called([LARGEST], ["i", "j"], overload="v"), "input 1 has no name"),
        (called(branching("a", "", "a"), ["i"]), "input 1 has no name"),
        (called(branching("a", "c"), ["i"]), "input 1 has no name"),
        (called([helper.make_node("RegexFullMatch", ["c"], ["b"], pattern="a")], ["i"]), "input 0 has no name"),
        (called([helper.make_node("DFT", ["a", "", "c"], ["b"])], ["i"]), "its axis has no name"),
        (called(SPLIT, ["i"], m=3), "it has 2 outputs, and declares 3"),
        (called([referring("Reshape", "allowzero", ["a", "c"], ["b"])], ["i", "i"], m=2), "allowzero is 2"),
        (resized("w1", [2**62]), "declares 4,611,686,018,427,387,904 elements, the file holds 432"),
        (resized("w1", [2**62, 2**62, 3, 3]), "the file holds 432"),
        (resized("w1", [-16, 3, 3, -3]), "[-16, 3, 3, -3]"),
        (resized("b3", []), "declares 1 elements, the file holds 4"),
        (of_input([1, 3, 2**62, 8]), "at most 4,294,967,296 are run"),
        (of_input([2**31, 2**31, 2**31, 2**31]), "at most 4,294,967,296 are run"),
        (sparse([1, 2], (2**62,)), "at most 2,147,483,648 are read"),
        (sparse([1, 2], (-3, 2)), "at most 2,147,483,648 are read"),
        (sparse([-1, 2]), "lies outside"),
        (sparse([1, 432]), "lies outside"),
        (sparse([1, 432], constant=True), "lies outside"),
        (sparse([[0, 0, 0, 0], [0, 0, 3, 0]]), "lies outside"),
        (sparse([1, 1]), "occurs twice"),
        (sparse([[0, 0], [1, 1]]), "indices of shape [2, 2]"),
        (sparse([1, 2, 3]), "indices of shape [3]"),
        (sparse([0.5, 1.5]), "not of the type int64"),
        (computed("ConstantOfShape", np.array([2**20, 2**13])), "at most 1,073,741,824 are computed"),
        (computed("Tile", np.ones((2, 2), np.float32), np.array([2**40, 2**20])), "at most 1,073,741,824 are computed"),
        (doubled, "at most 8,589,934,592 are computed"),
        (growing, "100,000,000,007 nodes when they are written out, at most 1,000,000 are read"),
        (circular, "f calls g calls f"),
    ],
)  # fmt: skip
def test_model_that_is_refused(edit: Edit, says: str, tiny: onnx.ModelProto, tmp_path: Path) -> None:
    edit(tiny)
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny.SerializeToString())
    with pytest.raises(ModelError) as caught:
        load(path)
    assert says in caught.value.why


def test_an_attribute_that_a_function_is_given_is_no_fault(tiny: onnx.ModelProto) -> None:
    parts = helper.make_node("Split", ["x"], ["p", "q"])
    parts.attribute.add(name="num_outputs", ref_attr_name="n", type=onnx.AttributeProto.INT)
    tiny.functions.append(
        helper.make_function("f", "parts", ["x"], ["p", "q"], [parts], [helper.make_opsetid("", 18)], ["n"])
    )
    check_nodes(tiny, HERE)


@pytest.mark.parametrize(
    "edit",
    [
        called([LARGEST], ["i", "i"]),
        called([LARGEST], ["i", "i"], overload="v"),
        called(branching("a", "c"), ["i", "i"]),
        called([helper.make_node("Clip", ["a", "c"], ["b"])], ["i"]),
        called(SPLIT, ["i"], m=2),
        called(SPLIT, ["i"]),
    ],
)
def test_functions_whose_calls_are_whole_are_read(edit: Edit, tiny: onnx.ModelProto) -> None:
    edit(tiny)
    check_nodes(tiny, HERE)


@pytest.mark.parametrize("dims", [(), (0,), (3,), (4,), (2, 3)])
@pytest.mark.parametrize("kind", sorted(set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}))
def test_tensors_of_every_type_pass(kind: int, dims: tuple[int, ...], tiny: onnx.ModelProto) -> None:
    count = int(np.prod(dims))
    if kind == TensorProto.STRING:
        tiny.graph.initializer.append(helper.make_tensor("t", kind, dims, [b"a"] * count))
    else:
        array = np.ones(dims, helper.tensor_dtype_to_np_dtype(kind))
        tiny.graph.initializer.append(numpy_helper.from_array(array, "raw"))
        tiny.graph.initializer.append(helper.make_tensor("typed", kind, dims, array.ravel()))
        assert not tiny.graph.initializer[-1].HasField("raw_data")
    check_tensors(tiny, HERE)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"offset": "-1"}, "-1"),
        ({"length": "-5"}, "-5"),
        ({"offset": "abc"}, "abc"),
        ({"length": ""}, "''"),
        ({"offset": str(2**63)}, "9,223,372,036,854,777,536 are needed"),
        ({"length": str(2**70)}, "are needed"),
        ({"location": "a\0b"}, "the tensor points to"),
        ({"location": "."}, "beside the model"),
    ],
)
def test_places_of_external_data(entry: dict[str, str], says: str, tiny: onnx.ModelProto, tmp_path: Path) -> None:
    tensor = initializer(tiny, "w1")
    (tmp_path / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": "0", "length": str(4 * 432), **entry}.items():
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "m.onnx").write_bytes(tiny.SerializeToString())
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "m.onnx")
    assert says in caught.value.why
    assert "external data" in caught.value.what
    assert set(data_files(tmp_path / "m.onnx")) <= {tmp_path / "w.bin"}


def test_sparse_tensor_is_read(tiny: onnx.ModelProto, tmp_path: Path) -> None:
    sparse([[0, 0, 0, 0], [1, 2, 2, 1]])(tiny)
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny.SerializeToString())
    assert "1 sparse tensors stored as dense ones" in load(path).notes


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("maximum recursion depth exceeded")])
def test_a_model_that_python_cannot_hold_is_named(
    error: Exception, tiny: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny.SerializeToString())

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(io, "check_tensors", fail)
    with pytest.raises(ModelError) as caught:
        load(path)
    assert caught.value.where == str(path)
