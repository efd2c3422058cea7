"""Models are loaded, counted and written; metadata and other fields survive."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import ModelError, OutputError
from onnxprune.evaluation.structure import full_check
from onnxprune.graph import io
from onnxprune.graph import model as model_files
from onnxprune.graph.initializers import SHARED_FROM
from onnxprune.runtime.session import SessionConfig, open_session

MEASURE = onnxprune.BenchmarkConfig(latency=False)  # two timed runs would decide whether finer channel multiples stay
HALF = {"flops": 0.5}


def answer(path: Path, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(str(path)).run(None, {"x": x})[0]


def write(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


# --------------------------------------------------------------------------------------------------------- loading


def test_facts_of_a_file(tiny_path):
    model = io.load(tiny_path)
    content = tiny_path.read_bytes()
    assert model.digest == hashlib.sha256(content).hexdigest()
    assert model.size == len(content)
    assert model.files == (tiny_path,)
    assert model.params == 16 * 27 + 16 + 16 * 144 + 16 + 64 + 4


def test_read_returns_the_model_unchanged(tiny, tiny_path):
    found = io.read(tiny_path)
    assert found.weights.keys() == {t.name for t in tiny.graph.initializer if len(t.raw_data) >= 4 * SHARED_FROM}
    assert found.whole() == tiny
    assert found.size == tiny_path.stat().st_size


@pytest.mark.parametrize("batchnorms", [1, 2])
def test_batchnorm_is_folded_and_noted(batchnorms, tiny, images, tmp_path, out):
    rng = np.random.default_rng(0)
    for n, conv in enumerate((0, 3)[:batchnorms]):
        names = [f"{part}{n}" for part in ("scale", "bias", "mean", "var")]
        tiny.graph.initializer.extend(
            numpy_helper.from_array(rng.uniform(0.5, 1.5, 16).astype(np.float32), name) for name in names
        )
        tiny.graph.node.insert(
            conv + 1, helper.make_node("BatchNormalization", [f"c{n + 1}", *names], [f"bn{n}"], f"bn{n}")
        )
        tiny.graph.node[conv + 2].input[0] = f"bn{n}"
    path = write(tiny, tmp_path / "bn.onnx")
    model = io.load(path)
    assert "BatchNormalization" not in {node.op for node in model.graph.nodes}
    assert len(model.batchnorms) == batchnorms
    assert any(str(batchnorms) in note and "BatchNormalization" in note for note in model.notes)
    io.save(model, out / "folded.onnx")
    np.testing.assert_allclose(answer(out / "folded.onnx", images), answer(path, images), rtol=1e-4, atol=1e-4)


def test_infinite_constants_are_no_error(tiny, tmp_path):
    tiny.graph.initializer.append(numpy_helper.from_array(np.float32(np.inf), "most"))
    tiny.graph.initializer.append(numpy_helper.from_array(np.float32(0), "least"))
    tiny.graph.node[1].CopyFrom(helper.make_node("Clip", ["c1", "least", "most"], ["r1"], "relu1"))
    assert io.load(write(tiny, tmp_path / "m.onnx")).params > 0


def test_model_local_functions_are_inlined(tiny, images, tmp_path, out):
    body = [helper.make_node("Relu", ["a"], ["b"])]
    opset = helper.make_opsetid("", 17)
    tiny.functions.append(helper.make_function("local", "Act", ["a"], ["b"], body, [opset]))
    tiny.opset_import.append(helper.make_opsetid("local", 1))
    tiny.graph.node[1].op_type, tiny.graph.node[1].domain = "Act", "local"
    path = write(tiny, tmp_path / "f.onnx")
    result = onnxprune.prune(path, output=out / "s.onnx", reduce=HALF, repair="none", measure=MEASURE)
    assert result.report.verdict.integrity == "PASSED"
    assert {node.op_type for node in onnx.load(str(out / "s.onnx")).graph.node} == {
        "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm",
    }  # fmt: skip


# ------------------------------------------------------------------------------------------- what pruning leaves as is


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_batch_axis_is_unchanged(batch, tiny, images, tmp_path, out):
    if batch != "n":
        for value in (tiny.graph.input[0], tiny.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = batch
    path = write(tiny, tmp_path / "m.onnx")
    result = onnxprune.prune(path, output=out / "s.onnx", data=images, reduce=HALF, repair="none", measure=MEASURE)
    assert result.report.verdict.integrity == "PASSED"
    pruned = onnx.load(str(out / "s.onnx"))
    assert pruned.graph.input == tiny.graph.input
    assert pruned.graph.output == tiny.graph.output
    for n in (1, 2, 7) if batch == "n" else (batch,):
        assert answer(out / "s.onnx", images[:n]).shape == (n, 4)


def test_metadata_survive_and_provenance_is_added(tiny, tmp_path, out):
    helper.set_model_props(tiny, {"labels": "cat,dog", "onnxprune.version": "old"})
    tiny.doc_string, tiny.graph.doc_string, tiny.graph.node[2].doc_string = "a model", "a graph", "a node"
    tiny.producer_name, tiny.producer_version, tiny.domain, tiny.model_version = "exporter", "1.2", "org.example", 7
    tiny.graph.input[0].doc_string = "an image"
    path = write(tiny, tmp_path / "m.onnx")
    onnxprune.prune(path, output=out / "s.onnx", reduce=HALF, repair="none", measure=MEASURE)
    pruned = onnx.load(str(out / "s.onnx"))
    props = {entry.key: entry.value for entry in pruned.metadata_props}
    assert props["labels"] == "cat,dog"
    assert props["onnxprune.original.sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert props["onnxprune.version"] != "old"
    assert props["onnxprune.verdict"] == props["onnxprune.quality"] == "NOT MEASURED"
    assert props["onnxprune.data"] == "none"
    assert json.loads(props["onnxprune.target"]) == {"reduce": HALF}
    assert len(props) == len(pruned.metadata_props) == 8
    for field in ("doc_string", "producer_name", "producer_version", "domain", "model_version", "ir_version"):
        assert getattr(pruned, field) == getattr(tiny, field)
    assert pruned.opset_import == tiny.opset_import
    assert (pruned.graph.name, pruned.graph.doc_string) == ("tiny", "a graph")
    assert pruned.graph.input == tiny.graph.input
    assert [(n.name, n.op_type, n.doc_string) for n in pruned.graph.node] == [
        (n.name, n.op_type, n.doc_string) for n in tiny.graph.node
    ]
    assert {t.name for t in pruned.graph.initializer} == {t.name for t in tiny.graph.initializer}


def test_original_is_not_touched(tiny_path, out):
    before, status = tiny_path.read_bytes(), tiny_path.stat()
    onnxprune.prune(tiny_path, output=out / "s.onnx", reduce=HALF, repair="none", measure=MEASURE)
    assert tiny_path.read_bytes() == before
    assert (tiny_path.stat().st_mtime_ns, tiny_path.stat().st_ino) == (status.st_mtime_ns, status.st_ino)


def test_initializers_listed_as_inputs(tiny, tiny_path, images, tmp_path, out):
    tiny.ir_version = 3
    tiny.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tiny.graph.initializer
    )
    path = write(tiny, tmp_path / "ir3.onnx")
    for data in (None, images):
        result = onnxprune.prune(path, output=out / "s.onnx", data=data, reduce=HALF, repair="none", measure=MEASURE)
        assert result.report.verdict.integrity == "PASSED"
        assert onnxprune.check(out / "s.onnx", path, data=data, measure=MEASURE)
        assert onnxprune.check(path, tiny_path, data=data, measure=MEASURE)
    pruned = onnx.load(str(out / "s.onnx"))
    assert [value.name for value in pruned.graph.input] == ["x"]
    assert pruned.ir_version >= 4


# --------------------------------------------------------------------------------------------------- external data


@pytest.fixture
def external(tiny, tmp_path) -> Path:
    folder = tmp_path / "external"
    (folder / "weights").mkdir(parents=True)
    onnx.save_model(
        copy.deepcopy(tiny),
        str(folder / "m.onnx"),
        save_as_external_data=True,
        location="weights/w.bin",
        size_threshold=0,
    )
    return folder / "m.onnx"


def test_external_data_are_loaded_and_counted(external, tiny_path):
    model, inside = io.load(external), io.load(tiny_path)
    weights = external.parent / "weights" / "w.bin"
    assert model.files == (external, weights)
    assert model.size == external.stat().st_size + weights.stat().st_size
    assert model.params == inside.params
    for (_, _, a), (_, _, b) in zip(
        model_files.tensors_of(model.graph), model_files.tensors_of(inside.graph), strict=True
    ):
        np.testing.assert_array_equal(a.values, b.values)


def test_model_with_external_data_is_pruned_like_any_other(external, tiny_path, images, out):
    for name, path in (("a", external), ("b", tiny_path)):
        onnxprune.prune(path, output=out / f"{name}.onnx", reduce=HALF, repair="none", measure=MEASURE)
    np.testing.assert_array_equal(answer(out / "a.onnx", images), answer(out / "b.onnx", images))
    assert sorted(path.name for path in out.iterdir()) == ["a.onnx", "a.plan.json", "b.onnx", "b.plan.json"]


def test_link_to_a_model_finds_its_external_data(external, tmp_path):
    (tmp_path / "link.onnx").symlink_to(external)
    assert io.load(tmp_path / "link.onnx").params == io.load(external).params


# ---------------------------------------------------------------------------------------------------------- saving


def test_saving_tells_the_size(tiny_path, out):
    size = io.save(io.load(tiny_path), out / "s.onnx", {"key": "value"})
    assert size == (out / "s.onnx").stat().st_size
    assert onnx.load(str(out / "s.onnx")).metadata_props[0].key == "key"


@pytest.mark.parametrize("name", ["m.onnx", "weights/w.bin"])
def test_model_is_not_saved_over_a_file_of_the_original(name, external):
    target = external.parent / name
    before = target.read_bytes()
    with pytest.raises(OutputError, match="would overwrite an input"):
        io.save(io.load(external), target)
    assert target.read_bytes() == before


def test_copy_leaves_the_model_alone(tiny_path):
    model = io.load(tiny_path)
    copy = model.copy()
    copy.graph.nodes[0].attrs["pads"] = [0, 0, 0, 0]
    copy.batchnorms["w"] = None
    assert model.graph.nodes[0].attrs["pads"] == [1, 1, 1, 1]
    assert model.batchnorms == {}


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(np.float16, True), (np.float32, True), (np.float64, True), (np.int64, False), (np.uint8, False), (bool, False)],
)
def test_only_floats_count_as_weights(dtype, expected):
    import onnx_graphsurgeon as gs

    assert model_files.is_float(gs.Constant("c", np.ones(3, dtype))) == expected


def test_bfloat16_is_a_float(tiny, tmp_path):
    weight = tiny.graph.initializer[0]
    bits = (numpy_helper.to_array(weight).view(np.uint32) >> 16).astype(np.uint16)
    weight.CopyFrom(helper.make_tensor("w1", TensorProto.BFLOAT16, bits.shape, bits.tobytes(), raw=True))
    tiny.graph.node.insert(0, helper.make_node("Cast", ["w1"], ["w1f"], "cast", to=TensorProto.FLOAT))
    tiny.graph.node[1].input[1] = "w1f"
    model = io.load(write(tiny, tmp_path / "b.onnx"))
    assert model.params == 16 * 27 + 16 + 16 * 144 + 16 + 64 + 4


def test_nan_is_found_in_half_precision(tiny, tmp_path):
    weight = tiny.graph.initializer[2]
    value = numpy_helper.to_array(weight).astype(np.float16)
    value[3, 2] = np.nan
    weight.CopyFrom(numpy_helper.from_array(value, "w2"))
    tiny.graph.node.insert(0, helper.make_node("Cast", ["w2"], ["w2f"], "cast", to=TensorProto.FLOAT))
    tiny.graph.node[3].input[1] = "w2f"
    with pytest.raises(ModelError, match="a weight is NaN"):
        io.load(write(tiny, tmp_path / "b.onnx"))


# -------------------------------------------------------------------------------------------------- weights apart

REFERENCE = Path(__file__).parent.parent.parent / "models" / "resnet.onnx"


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
def test_the_size_is_known_without_writing_it(tmp_path, kind):
    weights = {"w": np.ones((64, 33), kind), "v": np.ones((33, 700), kind), "u": np.ones((700, 4), kind)}
    nodes = [helper.make_node("MatMul", [x, w], [y]) for x, w, y in (("x", "w", "a"), ("a", "v", "b"), ("b", "u", "y"))]
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    infos = [helper.make_tensor_value_info(name, dtype, ["n", size]) for name, size in (("x", 64), ("y", 4))]
    graph = helper.make_graph(
        nodes, "g", infos[:1], infos[1:], [numpy_helper.from_array(v, n) for n, v in weights.items()]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = io.load(write(proto, tmp_path / "model.onnx"))
    assert len(model.stub()[1]) == 3
    assert model.byte_size() == len(model.to_proto().SerializeToString())


def test_a_session_shares_the_weights():
    model = io.load(REFERENCE)
    x = np.random.default_rng(0).standard_normal((2, 1, 28, 28)).astype(np.float32)
    name = model.header.graph.input[0].name
    assert model.byte_size() == len(model.to_proto().SerializeToString())
    stub, _ = model.stub()
    assert stub.ByteSize() < 0.2 * model.byte_size()
    for optimize in (False, True):
        shared = model.session(SessionConfig(optimize=optimize)).run(None, {name: x})[0]
        whole = open_session(model.to_proto(), SessionConfig(optimize=optimize)).run(None, {name: x})[0]
        np.testing.assert_array_equal(shared, whole)


def test_full_check_of_a_model_equals_that_of_its_file(tiny, tmp_path):
    model = io.load(REFERENCE)
    assert full_check(model) is None
    broken = model.copy()
    node = next(node for node in broken.graph.nodes if node.op == "Conv")
    node.attrs["kernel_shape"] = [1, 1, 1]
    assert full_check(broken) is not None
    assert full_check(broken.to_proto()) is not None
