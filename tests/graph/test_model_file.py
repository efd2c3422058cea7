"""Models are written without a copy of their weights; those of large ones stand in a file that is named by its content."""

from __future__ import annotations

import os
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from kills import at_step, forks, killed
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import OutputError
from onnxprune.fileio import Transaction
from onnxprune.graph import io, model_file
from onnxprune.graph.model import Model

DATA = re.compile(r"s\.onnx\.[0-9a-f]{12}\.data")


@pytest.fixture
def limit(monkeypatch) -> None:
    """Make every model one of more than 2 GB."""
    monkeypatch.setattr(io, "PROTO_LIMIT", 1000)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def restore(folder: Path, before: dict[str, bytes]) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, content in before.items():
        (folder / name).write_bytes(content)


def answer(path: Path, images: np.ndarray) -> bytes:
    found: np.ndarray = ort.InferenceSession(str(path)).run(None, {"x": images})[0]
    return found.tobytes()


def same_weights(one: Model, two: Model) -> None:
    for a, b in zip(one.to_proto().graph.initializer, two.to_proto().graph.initializer, strict=True):
        assert a.name == b.name
        np.testing.assert_array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))


@pytest.fixture
def two(tiny, tiny_path, tmp_path) -> tuple[Model, Model]:
    """Return two models of other weights."""
    for tensor in tiny.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.5), tensor.name))
    onnx.save(tiny, tmp_path / "other.onnx")
    return io.load(tiny_path), io.load(tmp_path / "other.onnx")


def of_kinds() -> onnx.ModelProto:
    """Return a model with weights that a session shares, and with those that it does not."""
    rng = np.random.default_rng(0)
    stored = {
        "a": rng.standard_normal((8, 64)).astype(np.float32),
        "b": rng.standard_normal((64, 40)).astype(np.float32),
        "h": rng.standard_normal((40, 50)).astype(np.float16),
        "q": rng.integers(-128, 127, (50, 60)).astype(np.int8),
        "s": np.float32(0.1),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["xa"], "first", doc_string="a node"),
        helper.make_node("MatMul", ["xa", "b"], ["xb"]),
        helper.make_node("Cast", ["h"], ["hf"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["xb", "hf"], ["xh"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["qf"]),
        helper.make_node("MatMul", ["xh", "qf"], ["y"]),
    ]
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 8), ("y", 60))
    ]
    tensors = [numpy_helper.from_array(values, name) for name, values in stored.items()]
    graph = helper.make_graph(nodes, "kinds", infos[:1], infos[1:], tensors, doc_string="a graph")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="tests")
    helper.set_model_props(model, {"labels": "a,b"})
    return model


@pytest.fixture
def kinds(tmp_path) -> Model:
    onnx.save(of_kinds(), tmp_path / "kinds.onnx")
    return io.load(tmp_path / "kinds.onnx")


# --------------------------------------------------------------------------------------------------------- one file


def test_file_has_the_bytes_that_protobuf_writes(kinds, out):
    assert io.save(kinds, out / "s.onnx", {"key": "value"}) == (out / "s.onnx").stat().st_size
    expected = kinds.to_proto()
    expected.metadata_props.add(key="key", value="value")
    assert (out / "s.onnx").read_bytes() == expected.SerializeToString()
    assert len(kinds.stub()[1]) == 2  # not all weights are apart, and not none


@pytest.mark.parametrize("limit_of_a_file", [2**30, 1000])
def test_writing_takes_no_memory_for_the_weights(limit_of_a_file, tmp_path, out, monkeypatch):
    weights = np.zeros((2000, 1000), np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", size]) for n, size in (("x", 2000), ("y", 1000))]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    model = io.load(tmp_path / "m.onnx")
    monkeypatch.setattr(io, "PROTO_LIMIT", limit_of_a_file)
    tracemalloc.start()
    try:
        size = io.save(model, out / "s.onnx")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > weights.nbytes
    assert peak < 0.1 * weights.nbytes


# ---------------------------------------------------------------------------------------------------- weights apart


@pytest.mark.usefixtures("limit")
def test_large_model_is_written_into_the_current_folder(kinds, out, monkeypatch):
    monkeypatch.chdir(out)
    size = io.save(kinds, "s.onnx")
    model, data = names(out)
    assert model == "s.onnx"
    assert DATA.fullmatch(data)
    assert size == sum(path.stat().st_size for path in out.iterdir())
    stub = onnx.load(out / "s.onnx", load_external_data=False)
    apart = {tensor.name: {e.key: e.value for e in tensor.external_data} for tensor in stub.graph.initializer}
    assert {name for name, entries in apart.items() if entries} == {"a", "b", "h", "q"}
    assert all(int(entries["offset"]) % 4096 == 0 for entries in apart.values() if entries)
    onnx.checker.check_model("s.onnx", full_check=True)
    x = {"x": np.ones((2, 8), np.float32)}
    expected = ort.InferenceSession(kinds.to_proto().SerializeToString()).run(None, x)[0]
    np.testing.assert_array_equal(ort.InferenceSession("s.onnx").run(None, x)[0], expected)
    loaded = io.load("s.onnx")
    assert [file.name for file in loaded.files] == ["s.onnx", data]
    same_weights(loaded, kinds)


@pytest.mark.usefixtures("limit")
def test_data_file_is_named_by_its_content(two, out):
    first, second = two
    for model in (first, second, first):
        io.save(model, out / "s.onnx")
    found = names(out)
    io.save(first, out / "s.onnx", {"key": "value"})
    assert names(out) == found  # equal weights: the same name


@pytest.mark.usefixtures("limit")
def test_only_own_data_of_the_replaced_model_are_deleted(two, out):
    first, second = two
    foreign = ["s.onnx.data", "s.onnx.0123456789ab.data", "other.onnx.0123456789ab.data", "s.onnx.0123456789AB.data"]
    for name in foreign:
        (out / name).write_text("not of this model")
    io.save(first, out / "s.onnx")
    (old,) = set(names(out)) - {*foreign, "s.onnx"}
    io.save(second, out / "s.onnx")
    assert old not in names(out)
    assert set(names(out)) > {*foreign, "s.onnx"}
    assert len(names(out)) == len(foreign) + 2
    assert all((out / name).read_text() == "not of this model" for name in foreign)


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize("is_input", [True, False])
def test_data_that_others_need_stay(is_input, two, images, out, monkeypatch):
    first, second = two
    io.save(first, out / "s.onnx")
    before = answer(out / "s.onnx", images)
    (out / "kept.onnx").write_bytes((out / "s.onnx").read_bytes())
    if is_input:  # no file beside it names them
        real = model_file._names
        monkeypatch.setattr(model_file, "_names", lambda file, name: file.name != "kept.onnx" and real(file, name))
        second = replace(second, files=io.load(out / "kept.onnx").files)
    io.save(second, out / "s.onnx")
    assert answer(out / "kept.onnx", images) == before
    assert answer(out / "s.onnx", images) != before


@pytest.mark.usefixtures("limit")
def test_data_that_another_run_has_come_to_need_stay(two, images, out):
    first, second = two
    io.save(first, out / "s.onnx")
    before, content = answer(out / "s.onnx", images), (out / "s.onnx").read_bytes()
    with Transaction() as files:
        files.afterwards(lambda: (out / "s.onnx").write_bytes(content) and None)
        io.save(second, out / "s.onnx", together=files)
    assert answer(out / "s.onnx", images) == before


def test_data_of_a_model_that_becomes_small_are_deleted(two, images, out, monkeypatch):
    first, second = two
    with monkeypatch.context() as patched:
        patched.setattr(io, "PROTO_LIMIT", 1000)
        io.save(first, out / "s.onnx")
        assert len(names(out)) == 2
    io.save(second, out / "s.onnx")
    assert names(out) == ["s.onnx"]


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize(
    "name", ["x" * 250, "ö" * 110 + ".onnx", os.fsdecode(b"\xff.onnx")], ids=["long", "wide", "bytes"]
)
def test_data_of_a_model_with_an_odd_name(name, two, images, out):
    io.save(two[0], out / name)
    assert len(names(out)) == 2
    (out / name).rename(out / "plain.onnx")  # onnxruntime takes no path that is no text
    same_weights(io.load(out / "plain.onnx"), two[0])


@pytest.mark.usefixtures("limit")
def test_data_lie_beside_the_target_of_a_link(two, images, out):
    (out / "far").mkdir()
    (out / "s.onnx").symlink_to("far/t.onnx")
    io.save(two[0], out / "s.onnx")
    assert (out / "s.onnx").is_symlink()
    assert [name.split(".")[0] for name in names(out / "far")] == ["t", "t"]
    expected = answer(out / "far" / "t.onnx", images)
    io.save(two[1], out / "s.onnx")
    assert len(names(out / "far")) == 2
    assert answer(out / "far" / "t.onnx", images) != expected
    assert io.load(out / "s.onnx").params == two[1].params


# ----------------------------------------------------------------------------------------------- whatever may happen


@forks
@pytest.mark.parametrize("large", [True, False])
def test_a_kill_at_any_step_leaves_a_model_that_loads(large, two, images, out, tmp_path, monkeypatch):
    monkeypatch.chdir(out)
    monkeypatch.setattr(io, "PROTO_LIMIT", 1000 if large else 2**30)
    first, second = two
    known = {}
    for model, name in ((first, "first"), (second, "second")):
        (tmp_path / name).mkdir()
        io.save(model, tmp_path / name / "s.onnx")
        known[answer(tmp_path / name / "s.onnx", images)] = name
    io.save(first, "s.onnx")
    found = []
    for number in range(1, 60):
        if not killed(lambda: io.save(second, "s.onnx"), number):
            break
        found.append(known[answer(Path("s.onnx"), images)])
        io.save(first, "s.onnx")  # as after any kill: the same again
        assert not [name for name in names(out) if name.endswith(".part")]
        assert answer(Path("s.onnx"), images) in known
    assert found == sorted(found)
    assert {"first", "second"} == set(found)
    assert number > 5


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError(), KeyboardInterrupt()], ids=type)
@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.usefixtures("limit")
def test_an_error_at_any_step_leaves_the_old_model_or_the_new_one(error, existing, two, images, out):
    first, second = two
    if existing:
        io.save(first, out / "s.onnx")
    before = contents(out)
    (out.parent / "new").mkdir()
    io.save(second, out.parent / "new" / "s.onnx")
    expected = answer(out.parent / "new" / "s.onnx", images)

    def fail() -> None:
        raise error

    told = 0
    for number in range(1, 60):
        with pytest.MonkeyPatch.context() as patched:
            calls = at_step(number, fail, patched)
            try:
                io.save(second, out / "s.onnx")
            except (OutputError, MemoryError, KeyboardInterrupt):
                told += 1
                if contents(out) == before:
                    continue
        assert answer(out / "s.onnx", images) == expected
        assert len(names(out)) == 2 or calls[number - 1] == "unlink"  # old data that cannot be deleted stay
        if len(calls) < number:
            break
        restore(out, before)
    assert told > 5
