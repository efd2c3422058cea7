"""Figures of models that select their outputs are those of what enters the selection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from discrete_models import model
from graphs import Builder

import onnxprune
from onnxprune.graph import io
from onnxprune.metrics.outputs import compare_outputs
from onnxprune.runtime.session import run_batch

OPTIONS: dict[str, Any] = {"reduce": {"flops": 0.3}, "round_to": 1, "samples": 48, "latency": False}
RNG = np.random.default_rng(0)


def classes(best: bool) -> onnx.ModelProto:
    """Return a classifier whose outputs are its five best classes with their scores, or its best class."""
    b = Builder((3, 8, 8))
    x = b.node("Relu", [b.conv(b.node("Relu", [b.conv("x", 16, 3)]), 16, 3)])
    scores = b.node("Softmax", [b.gemm(b.flatten(b.global_pool(x)), 12)], axis=1)
    if best:
        proto = b.build(b.node("ArgMax", [scores], (), axis=1, keepdims=0))
    else:
        proto = b.build(*b.nodes_out("TopK", [scores, b.ints(5)], [(5,), (5,)]))
    proto.graph.output[-1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return proto


def data_of(proto: onnx.ModelProto, folder: Path, **more: np.ndarray) -> tuple[Path, Path, np.ndarray]:
    onnx.save(proto, folder / "m.onnx")
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = RNG.normal(size=(48, *shape)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, **more)
    return folder / "m.onnx", folder / "data.npz", x


@pytest.mark.parametrize("best", [True, False])
def test_classes_are_those_of_the_scores_that_are_selected(best: bool, tmp_path: Path) -> None:
    path, data, x = data_of(classes(best), tmp_path)
    loaded = io.load(path)
    chosen = run_batch(loaded.session(), {"x": x})[-1].reshape(48, -1)[:, 0]
    np.savez(data, x=x, labels=chosen)
    found = onnxprune.prune(path, data=data, **OPTIONS)
    after = run_batch(found.model.session(), {"x": x})[-1].reshape(48, -1)[:, 0]
    report = found.report
    assert report.before.accuracy["top1"] == 100
    assert (
        report.after.accuracy["top1"] == report.fidelity["agreement"] == pytest.approx(100 * (after == chosen).mean())
    )
    assert any("rows change places" in note for note in report.notes)
    found.save(tmp_path / "o.onnx")
    checked = onnxprune.check(
        tmp_path / "o.onnx", path, data=data, limits=onnxprune.GateLimits(max_drop=50), latency=False
    )
    drop = next(check for check in checked.checks if check.name == "top-1 drop (points)")
    assert drop.value == report.before.accuracy["top1"] - report.after.accuracy["top1"]


def test_rows_of_a_detector_are_compared_in_front_of_the_selection(tmp_path: Path) -> None:
    path, data, x = data_of(model("topk", 3), tmp_path)
    found = onnxprune.prune(path, data=data, **OPTIONS)
    assert {name for name, value in found.report.fidelity.items() if value is not None} == {"cosine", "explained"}
    (note,) = [note for note in found.report.notes if "rows change places" in note]
    names = note.removeprefix("figures are of ").partition(":")[0].split(", ")
    pair = [run_batch(one.session(outputs=names), {"x": x}, names=names) for one in (io.load(path), found.model)]
    assert found.report.fidelity == compare_outputs(*pair, classes=False)
    found.save(tmp_path / "o.onnx")
    checked = onnxprune.check(tmp_path / "o.onnx", path, data=data, latency=False)
    values = {check.name: check.value for check in checked.checks}
    # the scores of this model are as small as 5e-6: rounding of 1e-7, which differs by the fused operators, shows in their variance
    assert values["explained variance (%)"] == pytest.approx(found.report.fidelity["explained"], abs=1e-2)
    drop = onnxprune.prune(path, data=data, **{**OPTIONS, "reduce": {}}, max_drop=10)
    assert drop.report.fidelity["explained"] >= 90


def test_pixels_and_masks_are_amounts(tmp_path: Path) -> None:
    b = Builder((3, 8, 8))
    x = b.node("Relu", [b.conv(b.node("Relu", [b.conv("x", 16, 3)]), 16, 3)])
    image = b.conv(x, 3)
    pixels = b.node(
        "Cast", [b.node("Mul", [b.node("Sigmoid", [image]), b.const(np.float32(255))])], to=onnx.TensorProto.UINT8
    )
    proto = b.build(pixels, b.node("Greater", [image, b.const(np.float32(0))]))
    for value, kind in zip(proto.graph.output, (onnx.TensorProto.UINT8, onnx.TensorProto.BOOL), strict=True):
        value.type.tensor_type.elem_type = kind
    path, data, _ = data_of(proto, tmp_path)
    curves = onnxprune.sensitivity(path, data=data).curves
    assert min(curve.losses[1:].min() for curve in curves) > 0
    assert max(curve.losses.max() for curve in curves) < 10
    found = onnxprune.prune(path, data=data, **OPTIONS)
    assert 50 < found.report.fidelity["explained"] < 100


@pytest.mark.parametrize("head", ["headed", "codebook"])
def test_what_lies_behind_a_selection_is_measured_on_the_same_selection(head: str, tmp_path: Path) -> None:
    proto = codebook() if head == "codebook" else model(head, 3)
    path, data, _ = data_of(proto, tmp_path)
    loaded = io.load(path)
    last = [node for node in loaded.graph.nodes if node.op in ("Conv", "MatMul")][-1]
    behind = {curve.group: curve.losses[-1] for curve in onnxprune.sensitivity(path, data=data, augment=()).curves}
    assert min(behind.values()) > 1e-4, "no layer is blind"
    dead = onnx.load(path)
    for tensor in dead.graph.initializer:
        if tensor.name == last.inputs[1].name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.float32), tensor.name))
    onnx.save(dead, tmp_path / "dead.onnx")
    limits = onnxprune.GateLimits(max_drop=10)
    assert onnxprune.check(path, path, data=data, limits=limits, latency=False)
    verdict = onnxprune.check(tmp_path / "dead.onnx", path, data=data, limits=limits, latency=False)
    assert [check.name for check in verdict.verdict.checks if not check] == ["explained variance, drop (points)"]
    held = onnxprune.prune(path, data=data, round_to=1, max_drop=10, latency=False)
    assert held.report.fidelity["explained"] >= 90
    held.save(tmp_path / "o.onnx")
    assert onnxprune.check(tmp_path / "o.onnx", path, data=data, limits=limits, latency=False)


def codebook() -> onnx.ModelProto:
    """Return an autoencoder that replaces each position by the nearest of eight rows of a table."""
    b = Builder((3, 8, 8))
    code = b.conv(b.node("Relu", [b.conv("x", 16, 3)]), 6)
    rows = b.node("Transpose", [code], (8, 8, 6), perm=[0, 2, 3, 1])
    table = b.normal(8, 6)
    turned = b.normal(6, 8)
    near = b.node("ArgMax", [b.node("MatMul", [rows, turned], (8, 8, 8))], (8, 8), axis=3, keepdims=0)
    picked = b.node("Transpose", [b.node("Gather", [table, near], (8, 8, 6), axis=0)], (6, 8, 8), perm=[0, 3, 1, 2])
    return b.build(b.conv(b.node("Relu", [b.conv(picked, 16, 3)]), 3))


@pytest.mark.parametrize("best", [True, False])
def test_a_model_alone_is_judged_in_front_of_its_selection(best: bool, tmp_path: Path) -> None:
    path, data, x = data_of(classes(best), tmp_path)
    chosen = run_batch(io.load(path).session(), {"x": x})[-1].reshape(48, -1)[:, 0]
    np.savez(data, x=x, labels=chosen)
    checked = onnxprune.check(path, data=data, limits=onnxprune.GateLimits(min={"top1": 99.0}), latency=False)
    assert next(check for check in checked.checks if check.name.startswith("top-1")).value == 100
