"""Curves of what the output loses as each group loses channels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import DRAWN, Builder, cnn_models, load
from hypothesis import given, settings
from onnx import numpy_helper

from onnxprune.allocation import sensitivity
from onnxprune.calibration import capture
from onnxprune.calibration.batches import Calibration
from onnxprune.calibration.capture import ActivationStore
from onnxprune.calibration.workspace import Workspace
from onnxprune.data.dataset import load_data
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.comparison_points import measured_tensors
from onnxprune.graph.cost import CostModel
from onnxprune.graph.model import Model, inputs_of
from onnxprune.graph.readers import linear_layers, linear_of, units_of
from onnxprune.graph.trace import trace as trace_model
from onnxprune.importance import obs as second_order
from onnxprune.importance.obs import Removal
from onnxprune.metrics.output_distance import form_of
from onnxprune.metrics.outputs import output_divergence
from onnxprune.repair.network import divergences
from onnxprune.runtime.session import Feeds, open_session, random_feeds, run_batch
from onnxprune.surgery.mask import mask
from onnxprune.types import Curve, Trace

Array = np.ndarray[Any, Any]
SETTINGS = settings(DRAWN, max_examples=20)


class Study:
    """A model, how its groups lose channels, and the curves."""

    def __init__(self, proto: onnx.ModelProto, n: int = 32, distance: str = "auto") -> None:
        self.model: Model = load(proto)
        self.trace: Trace = trace_model(self.model)
        self.analysis = Analysis(self.model, self.trace, CostModel(self.trace))
        shapes = self.model.signature.input_shapes(n)
        feeds = random_feeds(self.model.header, shapes, 7)
        self.calibration = Calibration.of(load_data(feeds, inputs_of(self.model)), 10_000)
        self.store = ActivationStore(1e9)
        self.workspace = Workspace(self.calibration, self.store, 1e9, distance=distance)
        self.removals: list[Removal] = list(
            second_order.removals(self.model, self.trace, self.workspace, None, np.ones(self.trace.n_channels))
        )
        self.shares: list[float] = []
        self.curves = {
            curve.group: curve
            for curve in sensitivity.curves(self.analysis, self.removals, self.workspace, self.shares.append)
        }

    def held(self) -> list[Feeds]:
        return [feeds for number, feeds in enumerate(self.calibration) if self.calibration.is_held(number)]

    def variant(self, removal: Removal, gone: int) -> Model:
        """Return the model with the first channels masked, and the weights that make up for them."""
        keep = np.ones(self.trace.n_channels, dtype=bool)
        keep[removal.order[:gone]] = False
        result = mask(self.model, self.trace, keep)
        for node, (matrix, bias) in removal.weights[gone].items():
            unit = next(u for u in units_of(self.model.graph, linear_layers(self.model.graph)) if node in u.nodes)
            outputs = [self.model.graph.nodes[n].outputs[0].name for n in unit.nodes]
            layers = [linear_of(n) for name in outputs for n in result.graph.nodes if n.outputs[0].name == name]
            change = self.store.get(bias) - layers[0].effective()[1]
            for layer in layers:
                layer.write(self.store.get(matrix), layer.effective()[1] + change if layer.has_bias else None)
        return result


def outputs(model: Model, batches: list[Feeds]) -> list[Array]:
    opened = open_session(model.to_proto())
    parts = [run_batch(opened, feeds) for feeds in batches]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def checked(study: Study) -> None:
    """Hold every measurement against a run of the whole variant."""
    reference = outputs(study.model, study.held())
    for removal in study.removals:
        curve = study.curves[removal.group.name]
        assert list(curve.counts) == [0, *removal.weights]
        assert curve.losses[0] == 0
        assert (np.diff(curve.losses) >= 0).all()
        np.testing.assert_array_equal(curve.order, removal.order)
        measured = [
            output_divergence(
                reference, outputs(study.variant(removal, gone), study.held()), kind=study.workspace.distance
            )
            for gone in removal.weights
        ]
        wanted = np.maximum.accumulate(np.array([0.0, *measured]))
        np.testing.assert_allclose(curve.losses, wanted, rtol=1e-3, atol=2e-6)


def line(b: Builder) -> str:
    x = b.node("Relu", [b.conv("x", 8, 3)])
    x = b.node("Relu", [b.conv(x, 6, 3)])
    return b.gemm(b.flatten(b.global_pool(x)), 5)


def residual(b: Builder) -> str:
    x = b.node("Relu", [b.conv("x", 8, 3)])
    for _ in range(2):
        x = b.node("Relu", [b.node("Add", [b.conv(b.node("Relu", [b.conv(x, 6, 3)]), 8, 3), x])])
    return b.conv(x, 4)


def branches(b: Builder) -> str:
    x = b.node("Relu", [b.conv("x", 6, 3)])
    y = b.concat([b.node("Sigmoid", [b.conv(x, 4)]), b.depthwise(x), x])
    return b.conv(b.squeeze_excite(b.conv(y, 8), 4), 4, 3)


def matmuls(b: Builder) -> str:
    x = b.flatten(b.global_pool(b.node("Relu", [b.conv("x", 8, 3)])))
    x = b.node("Relu", [b.node("Add", [b.node("MatMul", [x, b.normal(8, 8)], (8,)), b.normal(8)])])
    return b.node("Add", [b.node("MatMul", [x, b.normal(8, 4)], (4,)), b.normal(4)])


def gate_over_channels(b: Builder) -> str:
    """The sum over channels has to be masked on the activation, with a node more."""
    x = b.node("Relu", [b.conv("x", 8, 3)])
    gate = b.node("Sigmoid", [b.reduce_mean(x, (1,), op="ReduceSum")])
    return b.conv(b.node("Mul", [x, gate]), 4, 3)


def proto_of(build: Callable[[Builder], str], **how: Any) -> onnx.ModelProto:
    b = Builder((3, 8, 8), **how)
    return b.build(build(b))


@pytest.mark.parametrize("build", [line, residual, branches, matmuls, gate_over_channels])
def test_measurements_are_those_of_the_whole_variant(build):
    study = Study(proto_of(build, opset=18))
    assert study.curves
    assert max(curve.losses[-1] for curve in study.curves.values()) > 1e-4
    checked(study)


@pytest.mark.parametrize("n", [1, 3])
def test_few_samples(n):
    checked(Study(proto_of(line), n=n))


def kl_of_pixels(x: Array, y: Array) -> float:
    log_p, log_q = (z - np.log(np.exp(z).sum(axis=1, keepdims=True)) for z in (x.astype(float), y.astype(float)))
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


def test_curves_of_maps_are_the_divergence_of_their_pixels():
    study, other = (Study(proto_of(residual), distance=kind) for kind in ("map", "auto"))
    checked(study)
    (reference,) = outputs(study.model, study.held())
    for removal in study.removals:
        curve = study.curves[removal.group.name]
        measured = [
            kl_of_pixels(reference, outputs(study.variant(removal, gone), study.held())[0]) for gone in removal.weights
        ]
        np.testing.assert_allclose(curve.losses[1:], np.maximum.accumulate(measured), rtol=1e-3, atol=2e-6)
        assert not np.allclose(curve.losses[1:], other.curves[removal.group.name].losses[1:], rtol=0.05)


@pytest.mark.parametrize("kind", ["boxes", "map"])
def test_repair_is_judged_by_the_distance_of_the_task(kind):
    study = Study(proto_of(residual))
    variant = study.variant(study.removals[0], max(study.removals[0].weights))
    found = divergences(study.model, [variant], study.calibration, kind)[0]
    reference = outputs(study.model, study.held())
    assert found == pytest.approx(output_divergence(reference, outputs(variant, study.held()), kind=kind), rel=1e-3)
    assert found != pytest.approx(divergences(study.model, [variant], study.calibration)[0], rel=0.01)


def detector(b: Builder) -> str:
    """Rows of 4 pixels and 2 scores, (n, 6, 64)."""
    x = b.node("Relu", [b.conv("x", 8, 3)])
    boxes = b.node("Mul", [b.conv(x, 4), b.const(np.float32(320))])
    return b.reshape(b.concat([boxes, b.node("Sigmoid", [b.conv(x, 2)])]), (-1, 6, 64), (6, 64))


def test_scores_of_boxes_count_in_curves_as_pixels_do():
    study = Study(proto_of(detector), distance="boxes")
    checked(study)
    (removal,) = study.removals
    (reference,) = outputs(study.model, study.held())
    worst = max(removal.weights)
    (found,) = outputs(study.variant(removal, worst), study.held())
    error = np.square(reference.astype(float) - found).mean(axis=(0, 2)) / reference.astype(float).var(axis=(0, 2))
    assert study.curves[removal.group.name].losses[-1] == pytest.approx(error.mean(), rel=1e-3)


def test_boxes_in_front_of_a_selection_are_compared_by_their_entries():
    b = Builder((3, 8, 8))
    x = b.node("Relu", [b.conv("x", 8, 3)])
    boxes = b.node("Transpose", [b.reshape(b.conv(x, 4), (-1, 4, 64), (4, 64))], (64, 4), perm=[0, 2, 1])
    scores = b.reshape(b.node("Sigmoid", [b.conv(x, 2)]), (-1, 2, 64), (2, 64))
    proto = b.build(boxes, scores)
    limits = {"most": np.array([10]), "overlap": np.float32([0.5]), "least": np.float32([0.3])}
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in limits.items())
    proto.graph.node.append(onnx.helper.make_node("NonMaxSuppression", [boxes, scores, *limits], ["selected"]))
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("selected", onnx.TensorProto.INT64, None))
    model = load(proto)
    assert set(measured_tensors(model.graph).names) == {boxes, scores}
    assert form_of("boxes", (1, 64, 4)) == ("error", -1)
    assert form_of("boxes", (1, 2, 64)) == ("error", -2)


def test_a_fixed_batch():
    b = Builder((3, 8, 8), batch=2)
    proto = b.build(residual(b))
    study = Study(proto)
    assert all(np.isfinite(curve.losses).all() for curve in study.curves.values())
    checked(study)


@SETTINGS
@given(cnn_models(most_steps=6))
def test_random_models(proto: onnx.ModelProto) -> None:
    study = Study(proto, n=6)
    trace = study.trace
    assert set(study.curves) == {g.name for g in trace.groups if not trace.pinned[g.channels].all()}
    assert not any(trace.pinned[curve.order].any() for curve in study.curves.values())
    checked(study)


def test_progress_ends_at_one():
    shares = Study(proto_of(line)).shares
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert shares[0] < 0.2


def test_the_part_before_a_group_runs_once(monkeypatch):
    runs: Counter[str] = Counter()

    def session(proto: onnx.ModelProto, *config: Any, **how: Any) -> Any:
        if results.isdisjoint(value.name for value in proto.graph.output):  # not all that is left of the model
            runs.update(node.output[0] for node in proto.graph.node)
        return open_session(proto, *config, **how)

    study = Study(proto_of(residual))
    results = {value.name for value in study.model.graph.outputs}
    monkeypatch.setattr(capture, "open_session", session)
    sensitivity.curves(study.analysis, study.removals, study.workspace)
    assert runs
    assert set(runs.values()) == {1}


def edited(edit: Callable[[Array, Array], None]) -> onnx.ModelProto:
    proto = proto_of(line)
    for node, part in ((0, 1), (0, 2)):
        tensor = next(t for t in proto.graph.initializer if t.name == proto.graph.node[node].input[part])
        value = numpy_helper.to_array(tensor).copy()
        edit(value)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return proto


def duplicates(value: Array) -> None:
    value[4:] = value[:4]


def dead(value: Array) -> None:
    value[4:] = 0 if value.ndim == 4 else -1


@pytest.mark.parametrize("edit", [duplicates, dead])
def test_what_is_not_needed_costs_nothing(edit):
    plain, planted = Study(proto_of(line), n=64), Study(edited(edit), n=64)
    name = planted.trace.groups[0].name
    assert planted.curves[name].at(np.array([4]))[0] < 0.02 * plain.curves[name].at(np.array([4]))[0]
    assert planted.curves[name].at(np.array([4]))[0] < 0.02 * planted.curves[name].losses[-1]


def test_a_pinned_group_has_no_curve():
    b = Builder((3, 8, 8))
    x = b.conv("x", 8, 3, name="shown")
    y = b.conv(b.node("Relu", [b.conv(b.node("Relu", [x]), 6, 3, name="inner")]), 4, name="last")
    study = Study(b.build(y, x))
    assert set(study.curves) == {"inner"}


def test_a_curve_between_its_measurements():
    curve = Curve("g", np.arange(7), np.array([0, 2, 6]), np.array([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(curve.at(np.array([0, 1, 2, 4, 6, 7])), [0, 0.5, 1, 1.5, 2, 2])


def test_a_curve_rises_between_its_measurements_as_its_guide_does():
    guide = np.array([0.0, 1.0, 3.0, 3.0, 7.0])
    curve = Curve("g", np.arange(4), np.array([0, 2, 4]), np.array([0.0, 6.0, 8.0]), guide)
    np.testing.assert_allclose(curve.at(np.arange(6)), [0, 2, 6, 6, 8, 8], atol=1e-4)
    flat = Curve("g", np.arange(4), np.array([0, 2, 4]), np.array([0.0, 6.0, 8.0]), np.zeros(5))
    np.testing.assert_allclose(flat.at(np.arange(5)), [0, 3, 6, 7, 8])


def test_losses_of_candidates_are_those_on_samples_held_out():
    study = Study(proto_of(line))
    half = study.variant(study.removals[0], max(study.removals[0].weights))
    found = divergences(study.model, (study.model, half), study.calibration)
    assert found[0] == 0
    reference = outputs(study.model, study.held())
    assert found[1] == pytest.approx(output_divergence(reference, outputs(half, study.held())), rel=1e-3)


def test_command_line(models: Path, run):
    done = run(
        "sensitivity", models / "small.onnx", "--data", models / "calibration.npz",
        "--preprocess", models / "32x32.toml", "--samples", "64", "--memory", "1GB", "--json", "--quiet",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["schema"] == "onnxprune.sensitivity/1"
    assert len(found["groups"]) == 3
    for group in found["groups"]:
        losses = [point["loss"] for point in group["points"]]
        assert losses == sorted(losses)
        assert losses[0] == 0 < losses[-1]
    assert sum(entry["channels"] for entry in found["held"]) == 10  # the output


def test_command_line_without_data(tiny_path, out, refused):
    refused("sensitivity", tiny_path, "--json", says="--data", code=2)
