"""Files are read as they are, and written no larger; what no rule understands is counted and listed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

import onnxprune
from onnxprune.errors import ModelError
from onnxprune.graph import io
from onnxprune.graph.trace import trace
from onnxprune.metrics import activation_memory
from onnxprune.report import console
from onnxprune.surgery import channels
from onnxprune.surgery.mask import mask
from onnxprune.surgery.proof import prove

Situation = Callable[[str], Path]
MEASURE = onnxprune.BenchmarkConfig(runs=2, warmup=0)
HALF = {"flops": 0.5}
WHOLE = ("attn23", "bigconst", "constif", "dcn", "defaults_in", "eca", "einsumdense", "ifnet")
WHOLE += ("loopnet", "optiona", "ortopt", "segnet", "seqsplit", "uint8nhwc")


def pruned(path: Path, **more: object) -> tuple[onnx.ModelProto, onnxprune.pipeline.results.PruneResult]:
    output = path.with_name("pruned.onnx")
    settings = {"reduce": HALF, "repair": "none", "measure": MEASURE, **more}
    result = onnxprune.prune(path, output=output, **settings)
    return onnx.load(output), result


def half(model: io.Model) -> tuple[io.Model, io.Model]:
    """Return a model without half of its prunable channels, and the masked model."""
    traced = trace(model)
    rng = np.random.default_rng(0)
    keep = traced.pinned | (rng.random(traced.n_channels) < 0.5)
    for extent in traced.extents:
        keep[extent[0]] = True
    return channels.delete(model, traced, keep), mask(model, traced, keep)


# ------------------------------------------------------------------------------------- constants that grow when folded


@pytest.mark.situation("bigconst")
def test_computed_constants_stay_small_and_keep_their_type(situation: Situation) -> None:
    path = situation("bigconst")
    proto, result = pruned(path, data="generated", repair="lstsq", samples=24, granularity=("filter",))
    report = result.report
    assert report.verdict.integrity == "PASSED"
    assert report.after.flops <= 0.5 * report.before.flops
    assert path.with_name("pruned.onnx").stat().st_size < 0.7 * path.stat().st_size
    stored = [t for t in onnx.load(path).graph.initializer if t.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)]
    assert report.before.params == sum(int(np.prod(t.dims)) for t in stored)
    operators = [node.op_type for node in proto.graph.node]
    assert [operators.count(op) for op in ("Tile", "ConstantOfShape", "Cast")] == [1, 1, 3]
    kernels = [t for t in proto.graph.initializer if list(t.dims)[2:] == [3, 3] and t.dims[1] > 32]
    assert {t.data_type for t in kernels} <= {TensorProto.FLOAT16}


@pytest.mark.parametrize("name", WHOLE)
def test_no_file_grows_and_every_one_is_proven(situation: Situation, name: str) -> None:
    path = situation(name)
    model = io.load(path)
    small, masked = half(model)
    assert prove(model, small, masked).difference <= 1e-4
    assert io.save(model, path.with_name("same.onnx")) <= path.stat().st_size + 64
    assert io.save(small, path.with_name("small.onnx")) <= path.stat().st_size + 64


# -------------------------------------------------------------------------------------------------------- order of nodes


@pytest.mark.parametrize("name", [*WHOLE, "retina", "siamese", "tied", "crnn", "nms"])
def test_nodes_stay_in_order_and_take_no_more_memory(situation: Situation, name: str) -> None:
    path = situation(name)
    proto, model = onnx.load(path), io.load(path)
    before = [node.output[0] for node in proto.graph.node]
    places = [before.index(node.output[0]) for node in model.to_proto().graph.node if node.output[0] in before]
    assert places == sorted(places)
    shapes = trace(model).input_shapes
    assert activation_memory.peak(model, shapes) <= activation_memory.peak(io.read(path), shapes)


# ------------------------------------------------------------------------------------------ inputs, links, sparse tensors


@pytest.mark.situation("defaults_in")
def test_an_input_with_a_default_stays_one(situation: Situation) -> None:
    path = situation("defaults_in")
    proto, result = pruned(path)
    assert result.report.verdict.integrity == "PASSED"
    assert [value.name for value in proto.graph.input] == ["image", "threshold"]
    session = ort.InferenceSession(proto.SerializeToString())
    image = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    assert not np.array_equal(
        session.run(None, {"image": image})[0],
        session.run(None, {"image": image, "threshold": np.array([0.9], np.float32)})[0],
    )
    assert onnxprune.check(path.with_name("pruned.onnx"), path, measure=MEASURE)


@pytest.mark.situation("defaults_in")
def test_data_may_leave_a_default_out(situation: Situation) -> None:
    path = situation("defaults_in")
    images = {"image": np.random.default_rng(0).standard_normal((24, 3, 32, 32)).astype(np.float32)}
    proto, result = pruned(path, data=images, repair="lstsq")
    assert result.report.verdict.integrity == "PASSED"
    assert "threshold" in {value.name for value in proto.graph.input}


def test_weights_that_an_exporter_lists_as_inputs_are_weights(situation: Situation) -> None:
    path = situation("defaults_in")
    proto = onnx.load(path)
    listed = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if tensor.name not in listed and len(tensor.dims) == 4:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(proto, path)
    model = io.load(path)
    assert [value.name for value in model.to_proto().graph.input] == ["image", "threshold"]
    assert any("4 weights" in note for note in model.notes)
    assert not trace(model).pinned[:32].any()


@pytest.mark.situation("hfcache")
def test_a_cache_of_links_loads(situation: Situation) -> None:
    path = situation("hfcache").parent / "hf/snapshots/abc/model.onnx"
    output = path.parents[3] / "pruned.onnx"
    result = onnxprune.prune(path, output=output, reduce=HALF, repair="none", measure=MEASURE)
    assert result.report.verdict.integrity == "PASSED"
    assert onnxprune.check(output, path, measure=MEASURE)
    assert output.stat().st_size < sum(file.stat().st_size for file in (path.parents[2] / "blobs").iterdir())


@pytest.mark.situation("hfcache")
@pytest.mark.parametrize("location", ["../abc/model.onnx_data", "../../secret", "sub/secret", "model.onnx_data"])
def test_data_outside_of_both_folders_are_refused(situation: Situation, location: str) -> None:
    folder = situation("hfcache").parent / "hf/snapshots/abc"
    secret = folder.parents[1] / "secret"
    secret.write_bytes((folder / "model.onnx_data").read_bytes())
    (folder / "sub").symlink_to(folder.parents[1])
    (folder / "model.onnx_data").unlink()
    (folder / "model.onnx_data").symlink_to(secret)
    proto = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder.parents[1] / "blobs" / "1111").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        io.load(folder / "model.onnx")


@pytest.mark.situation("sparse")
def test_sparse_weights_become_dense_in_their_type(situation: Situation) -> None:
    path = situation("sparse")
    proto, result = pruned(path)
    assert result.report.verdict.integrity == "PASSED"
    assert any("2 sparse tensors" in note for note in result.report.notes)
    assert not proto.graph.sparse_initializer
    assert path.with_name("pruned.onnx").stat().st_size < 4 * result.report.before.params


@pytest.mark.situation("halfdouble")
def test_half_precision_stays_and_double_is_refused(situation: Situation) -> None:
    path = situation("halfdouble").with_name("half.onnx")
    proto, result = pruned(path)
    assert result.report.verdict.integrity == "PASSED"
    assert {t.data_type for t in proto.graph.initializer} == {TensorProto.FLOAT16}
    with pytest.raises(ModelError, match="onnxruntime cannot load the model"):
        io.load(path.with_name("double.onnx"))


# ------------------------------------------------------------------------------------------- what no rule understands


@pytest.mark.situation("ortopt")
@pytest.mark.parametrize("name", ["ortopt.onnx", "ortopt_all.onnx"])
def test_an_optimized_file_is_named_and_counted(situation: Situation, name: str) -> None:
    path = situation("ortopt").with_name(name)
    plain, found = (onnxprune.inspect(file).report for file in (path.with_name("plain.onnx"), path))
    assert found.macs == plain.macs
    content = found.to_dict()
    assert {entry["operator"].rpartition(".")[0] for entry in content["uncounted"]} <= {
        "com.microsoft",
        "com.microsoft.nchwc",
    }
    assert any("onnxruntime has optimized this file" in note for note in content["notes"])
    assert content["prunable_share"] < 0.5
    assert len(console.inspect_parts(found)) > 8


@pytest.mark.situation("loopnet")
def test_the_body_of_a_loop_counts_as_often_as_it_runs(situation: Situation) -> None:
    path = situation("loopnet")
    body = 3 * 64 * 64 * 9 * 256
    found = onnxprune.inspect(path).report
    assert found.macs == 32 * 27 * 1024 + 64 * 32 * 9 * 256 + body + 64 * 64 * 9 * 256 + 640
    assert found.analysis.model.params > 64 * 64 * 9 * 2
    _, result = pruned(path, reduce={"flops": 0.25})
    assert result.report.verdict.integrity == "PASSED"
    assert result.report.after.flops >= 2 * body
    assert result.report.after.flops <= 0.75 * result.report.before.flops


@pytest.mark.situation("ifnet")
def test_the_dearer_branch_of_an_if_counts_and_its_weights_are_stored_once(situation: Situation) -> None:
    path = situation("ifnet")
    (entry,) = onnxprune.inspect(path).report.to_dict()["uncounted"]
    assert (entry["operator"], entry["params"], entry["note"]) == ("If", 64 * 64, "the dearer branch")
    proto, result = pruned(path, reduce={"flops": 0.3})
    assert result.report.verdict.integrity == "PASSED"
    assert [t.name for t in proto.graph.initializer].count("body.weight") == 1
    assert path.with_name("pruned.onnx").stat().st_size < path.stat().st_size
