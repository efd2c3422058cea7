"""Importances from gradients, against formulas on small networks and against models whose reading weights are scaled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Builder, load
from onnx import numpy_helper

import onnxprune
from onnxprune import torch_backend
from onnxprune.calibration.batches import Calibration
from onnxprune.calibration.capture import ActivationStore
from onnxprune.calibration.workspace import Workspace
from onnxprune.data.dataset import load_data
from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.graph.analysis import analyse
from onnxprune.graph.model import Model, inputs_of
from onnxprune.importance.weights import ScoringInputs
from onnxprune.metrics.outputs import output_divergence
from onnxprune.options import WITH_GRADIENTS
from onnxprune.runtime.session import run_batch
from onnxprune.types import Trace

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

Array = np.ndarray[Any, Any]


@dataclass
class Study:
    """A model, its facts, and samples."""

    model: Model
    trace: Trace
    calibration: Calibration

    def scores(
        self,
        method: str,
        seed: int = 0,
        memory: float = 1e9,
        draws: int | None = None,
        progress: Any = None,
        distance: str = "auto",
    ) -> Array:
        from onnxprune.importance import gradients

        workspace = Workspace(self.calibration, ActivationStore(0), memory, distance=distance)
        keep = np.ones(self.trace.n_channels, dtype=bool)
        return gradients.scores(ScoringInputs(method, self.model, self.trace, keep, seed, workspace, progress), draws)

    @property
    def free(self) -> Array:
        return np.flatnonzero(~self.trace.pinned)

    def outputs(self, channel: int | None = None, factor: float = 1.0) -> list[Array]:
        """Run the model, with all weights that read a channel scaled."""
        model = self.model.copy()
        for fact in self.trace.slices:
            if fact.role == "reads" and channel is not None:
                tensor = model.graph.nodes[fact.node].inputs[fact.input]
                values = tensor.values.copy()
                index = (slice(None),) * fact.axis + (fact.channels == channel,)
                values[index] *= np.float32(factor)
                tensor.values = values
        opened = model.session()
        return self.model.signature.join([run_batch(opened, feeds) for feeds in self.calibration])


def studied(
    proto: onnx.ModelProto, n: int = 6, labels: Array | None = None, scale: float = 1.0, seed: int = 7
) -> Study:
    model = load(proto)
    found = analyse(model)
    feeds = model.signature.random_feeds(model.header, n, seed)
    given = {name: (scale * x).astype(x.dtype) for name, x in feeds.items()}
    if labels is not None:
        given["labels"] = labels
    calibration = Calibration.of(load_data(given, inputs_of(model)), n)
    return Study(model, found.trace, replace(calibration, batch=min(n, 3)))  # several samples at a time


def edited(proto: onnx.ModelProto, name: str, edit: Callable[[list[Array]], None]) -> onnx.ModelProto:
    """Change weight and bias of a layer in place."""
    node = next(node for node in proto.graph.node if node.name == name)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    values = [numpy_helper.to_array(tensors[key]).copy() for key in node.input[1:]]
    edit(values)
    for key, value in zip(node.input[1:], values, strict=True):
        tensors[key].CopyFrom(numpy_helper.from_array(value, key))
    return proto


def log_softmax(z: Array) -> Array:
    z = z.astype(np.float64) - z.max(axis=1, keepdims=True)
    result: Array = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return result


# ------------------------------------------------------------------------------------------------------------- formulas


def perceptron() -> onnx.ModelProto:
    """A linear layer, and softmax regression on what it gives."""
    b = Builder((5,))
    return b.build(b.gemm(b.gemm("x", 6, name="hidden"), 4, name="head"))


def jacobian(study: Study) -> tuple[Array, Array]:
    """Return dz/dm, (samples, channels, classes), and the logits of the perceptron."""
    (first, second) = (node for node in study.model.graph.nodes if node.op == "Gemm")
    w, c = (first.inputs[i].values.astype(np.float64) for i in (1, 2))
    v, d = (second.inputs[i].values.astype(np.float64) for i in (1, 2))
    x = np.concatenate([feeds["x"] for feeds in study.calibration]).astype(np.float64)
    hidden = x @ w.T + c
    return hidden[:, :, None] * v.T[None], hidden @ v.T + d


def test_taylor_is_the_mean_magnitude_of_the_derivative_of_the_cross_entropy():
    labels = np.array([0, 1, 2, 3, 0, 1])
    for given in (labels, None):
        study = studied(perceptron(), labels=given)
        slopes, z = jacobian(study)
        y = z.argmax(axis=1) if given is None else given
        expected = np.abs(np.einsum("nck,nk->nc", slopes, np.exp(log_softmax(z)) - np.eye(4)[y])).mean(axis=0)
        group = next(group for group in study.trace.groups if group.channels.size == 6)
        np.testing.assert_allclose(study.scores("taylor")[group.channels], expected, rtol=1e-4)


@pytest.mark.parametrize(("method", "draws"), [("fisher", 3000), ("hessian", 1000)])
def test_second_order_is_half_the_diagonal_of_the_hessian_of_the_divergence(method: str, draws: int):
    study = studied(perceptron())
    slopes, z = jacobian(study)
    p = np.exp(log_softmax(z))
    expected = (np.einsum("nck,nk->nc", slopes**2, p) - np.einsum("nck,nk->nc", slopes, p) ** 2).mean(axis=0) / 2
    group = next(group for group in study.trace.groups if group.channels.size == 6)
    found = study.scores(method, draws=draws)[group.channels]
    np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.02 * float(expected.max()))


def test_hessian_is_the_one_that_torch_computes():
    import torch

    from onnxprune.importance import gradients
    from onnxprune.torch_backend.executor import Executor

    b = Builder((2, 3, 3))
    x = b.node("Sigmoid", [b.conv("x", 3, 3)])
    study = studied(b.build(b.gemm(b.flatten(b.node("Sigmoid", [b.conv(x, 4, 1)])), 3)), n=2)
    executor = Executor(study.model, trained=False)
    places = gradients.sites(study.model, study.trace)
    ids = [torch.from_numpy(np.where(site.channels < 0, study.trace.n_channels, site.channels)) for site in places]
    total = np.zeros(study.trace.n_channels)
    count = 0
    for feeds in study.calibration:
        tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
        reference = next(iter(executor(tensors).values())).log_softmax(1)

        def loss(factors: torch.Tensor, tensors: Any = tensors, reference: Any = reference) -> torch.Tensor:
            masks = {}
            for site, index in zip(places, ids, strict=True):
                shape = [1] * site.rank
                shape[site.axis] = index.numel()
                masks[site.node, site.input] = factors[index].reshape(shape)
            log_q = next(iter(executor(tensors, masks=masks).values())).log_softmax(1)
            return (reference.exp() * (reference - log_q)).sum()

        ones = torch.ones(study.trace.n_channels + 1)
        total += torch.autograd.functional.hessian(loss, ones).diagonal().numpy()[:-1] / 2
        count += reference.shape[0]
    expected = total / count
    found = study.scores("hessian", draws=2000)
    np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.03 * float(expected.max()))


# ---------------------------------------------------------------------------------------------- models that are scaled


def plain(b: Builder) -> str:
    return b.node("Sigmoid", [b.conv(b.node("Sigmoid", [b.conv("x", 5, 3)]), 4, 3)])


def grouped(b: Builder) -> str:
    return b.node("Sigmoid", [b.conv(b.node("Sigmoid", [b.conv("x", 8, 3)]), 4, 3, group=2)])


def depthwise(b: Builder) -> str:
    return b.conv(b.node("Sigmoid", [b.depthwise(b.conv("x", 5))]), 4, 3)


def residual(b: Builder) -> str:
    x = b.conv("x", 5, 3)
    y = b.conv(b.node("Sigmoid", [b.conv(x, 4)]), 5, 3)
    return b.conv(b.node("Sigmoid", [b.node("Add", [x, y])]), 3)


def two_readers(b: Builder) -> str:
    x = b.node("Sigmoid", [b.conv("x", 6)])
    return b.node("Add", [b.conv(x, 4, 3), b.conv(x, 4)])


def concat(b: Builder) -> str:
    return b.conv(b.node("Sigmoid", [b.concat([b.conv("x", 3), b.conv("x", 4, 3)])]), 4)


def shuffled(b: Builder) -> str:
    return b.conv(b.shuffle(b.node("Sigmoid", [b.conv("x", 8)]), 2), 4, group=2)


def rows(b: Builder) -> str:
    """Several rows per sample: a Gemm on every pixel."""
    x = b.node("Transpose", [b.node("Sigmoid", [b.conv("x", 5, 3)])], (4, 4, 5), perm=[0, 2, 3, 1])
    y = b.node("Sigmoid", [b.gemm(b.reshape(x, (-1, 5), (5,)), 6)])
    return b.reshape(b.gemm(y, 3), (-1, 4, 4, 3), (4, 4, 3))


BODIES = [plain, grouped, depthwise, residual, two_readers, concat, shuffled, rows]


def classifier(body: Callable[[Builder], str]) -> onnx.ModelProto:
    b = Builder((2, 4, 4), seed=3)
    return b.build(b.gemm(b.flatten(b.node("Sigmoid", [body(b)])), 5))


@pytest.mark.parametrize("body", BODIES)
def test_taylor_is_the_change_of_the_loss_as_what_reads_a_channel_is_scaled(body: Callable[[Builder], str]):
    study = studied(classifier(body), n=3)
    found = study.scores("taylor")
    (z,) = study.outputs()
    top = z.argmax(axis=1)
    for channel in study.free:
        up, down = (-log_softmax(study.outputs(channel, f)[0])[np.arange(3), top] for f in (1.02, 0.98))
        assert found[channel] == pytest.approx(np.abs(up - down).mean() / 0.04, rel=0.02, abs=1e-4)


@pytest.mark.parametrize("method", ["fisher", "hessian"])
@pytest.mark.parametrize("body", BODIES)
def test_second_order_is_the_divergence_as_what_reads_a_channel_is_scaled(body: Callable[[Builder], str], method: str):
    study = studied(classifier(body), n=3)
    found = study.scores(method, draws=600)
    reference = study.outputs()
    expected = np.zeros(study.trace.n_channels)
    for channel in study.free:
        moved = [output_divergence(reference, study.outputs(channel, factor)) for factor in (1.05, 0.95)]
        expected[channel] = sum(moved) / 2 / 0.05**2
    np.testing.assert_allclose(found[study.free], expected[study.free], rtol=0.2, atol=0.04 * float(expected.max()))


@pytest.mark.parametrize("method", ["fisher", "hessian"])
@pytest.mark.parametrize("kind", ["numbers", "boxes", "map", "frames", "embedding"])
def test_scores_are_in_the_units_of_the_distance_of_a_task(method: str, kind: str):
    b = Builder((2, 4, 4), seed=3)
    x = b.node("Sigmoid", [plain(b)])
    if kind == "embedding":
        output = b.gemm(b.flatten(x), 5)
    else:
        output = b.conv(x, 3)
        output = b.reshape(output, (-1, 4, 12), (4, 12)) if kind == "frames" else output
    study = studied(b.build(output), n=3)
    found = study.scores(method, draws=600, distance=kind)
    np.testing.assert_allclose(
        study.scores(method, draws=200, memory=1, distance=kind), found, rtol=0.3, atol=0.05 * float(found.max())
    )
    reference = study.outputs()
    expected = np.zeros(study.trace.n_channels)
    for channel in study.free:
        moved = [output_divergence(reference, study.outputs(channel, factor), kind=kind) for factor in (1.05, 0.95)]
        expected[channel] = sum(moved) / 2 / 0.05**2
    np.testing.assert_allclose(found[study.free], expected[study.free], rtol=0.2, atol=0.04 * float(expected.max()))
    assert study.scores("taylor", distance=kind).any()


def test_an_output_that_is_no_classifier_counts_by_its_squared_error():
    b = Builder((2, 4, 4), seed=3)
    study = studied(b.build(b.conv(b.node("Sigmoid", [plain(b)]), 2)), n=3)
    reference = study.outputs()
    for method in ("fisher", "hessian"):
        found = study.scores(method, draws=600)
        expected = np.zeros(study.trace.n_channels)
        for channel in study.free:
            moved = [output_divergence(reference, study.outputs(channel, factor)) for factor in (1.05, 0.95)]
            expected[channel] = sum(moved) / 2 / 0.05**2
        np.testing.assert_allclose(
            found[study.free], expected[study.free], rtol=0.15, atol=0.03 * float(expected.max())
        )
    assert study.scores("taylor")[study.free].all()


def test_probabilities_are_taken_as_such():
    b = Builder((2, 4, 4), seed=3)
    z = b.gemm(b.flatten(plain(b)), 5)
    logits, probabilities = (studied(b.build(output), n=3) for output in (z, b.node("Softmax", [z], axis=1)))
    for method in WITH_GRADIENTS:
        np.testing.assert_allclose(probabilities.scores(method), logits.scores(method), rtol=1e-3, atol=1e-7)


# ------------------------------------------------------------------------------------------------------------ properties


@pytest.mark.parametrize("method", WITH_GRADIENTS)
def test_a_channel_that_nothing_listens_to_scores_exactly_zero(method: str):
    def silent(values: list[Array]) -> None:
        values[0][1], values[1][1] = 0, -1  # its ReLU never fires

    def deaf(values: list[Array]) -> None:
        values[0][:, 3] = 0

    b = Builder((2, 4, 4))
    x = b.node("Relu", [b.conv("x", 6, 3, name="first")])
    proto = b.build(b.gemm(b.flatten(b.node("Relu", [b.conv(x, 4, 3, name="second")])), 5))
    study = studied(edited(edited(proto, "first", silent), "second", deaf), n=16)
    group = next(group for group in study.trace.groups if group.name == "first")
    np.testing.assert_array_equal(study.scores(method)[group.channels] == 0, [False, True, False, True, False, False])


@pytest.mark.parametrize("method", WITH_GRADIENTS)
def test_scores_do_not_change_when_a_layer_is_scaled_up_and_its_reader_down(method: str):
    def built(factor: float) -> onnx.ModelProto:
        b = Builder((2, 4, 4))
        x = b.node("Relu", [b.conv("x", 6, 3, name="first")])
        proto = b.build(b.gemm(b.flatten(b.conv(x, 4, 3, name="second")), 5))

        def up(values: list[Array]) -> None:
            values[:] = [value * np.float32(factor) for value in values]

        def down(values: list[Array]) -> None:
            values[0] /= np.float32(factor)

        return edited(edited(proto, "first", up), "second", down)

    np.testing.assert_allclose(studied(built(8)).scores(method), studied(built(1)).scores(method), rtol=1e-5)


@pytest.mark.parametrize("method", WITH_GRADIENTS)
def test_what_two_readers_make_of_a_channel_is_added_before_it_is_squared(method: str):
    """Two readers that cancel each other out: alone each would matter, and together no channel does."""
    b = Builder((2, 4, 4))
    x = b.node("Relu", [b.conv("x", 6, 3)])
    same = b.normal(4, 6, 3, 3)
    y = b.node("Sub", [b.conv(x, 4, 3, weight=same), b.conv(x, 4, 3, weight=same)])
    other = b.conv(b.node("Relu", [b.conv("x", 5, name="alive")]), 4)
    study = studied(b.build(b.gemm(b.flatten(b.node("Add", [y, other])), 3)))
    found = study.scores(method)
    alive = next(group for group in study.trace.groups if group.name == "alive")
    cancelled = next(group for group in study.trace.groups if group.channels.size == 6)
    assert found[cancelled.channels].max() < 1e-6 * found[alive.channels].max()


@pytest.mark.parametrize("method", WITH_GRADIENTS)
def test_a_seed_decides(method: str):
    study = studied(classifier(residual))
    np.testing.assert_array_equal(study.scores(method, seed=1), study.scores(method, seed=1))
    differ = not np.array_equal(study.scores(method, seed=1), study.scores(method, seed=2))
    assert differ == (method != "taylor")


@pytest.mark.parametrize("method", WITH_GRADIENTS)
def test_batches_do_not_matter(method: str):
    study = studied(classifier(grouped), n=12)
    one_by_one = study.scores(method, memory=0, draws=300)
    rough = 1e-4 if method == "taylor" else 0.2
    np.testing.assert_allclose(
        study.scores(method, draws=300), one_by_one, rtol=rough, atol=rough * one_by_one.max() / 5
    )


@pytest.mark.parametrize("body", BODIES)
def test_masks_on_weights_are_those_on_activations(body: Callable[[Builder], str]):
    from onnxprune.importance import gradients

    study = studied(classifier(body))
    assert {site.rows for site in gradients.sites(study.model, study.trace)} == ({1, 16} if body is rows else {1})
    expected = study.scores("taylor")
    study.trace = replace(study.trace, carried={})
    assert not any(site.rows for site in gradients.sites(study.model, study.trace))
    np.testing.assert_allclose(study.scores("taylor"), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", ["taylor", "fisher"])
def test_a_sum_over_channels_is_a_reader_whose_weights_are_one(method: str):
    def body(b: Builder, as_sum: bool) -> str:
        x = b.node("Sigmoid", [b.conv("x", 5, 3)])
        ones = b.const(np.ones((1, 5, 1, 1), np.float32))
        total = b.node("ReduceSum", [x, b.ints(1)], (1, 4, 4)) if as_sum else b.conv(x, 1, weight=ones, bias=False)
        return b.node("Mul", [b.conv(x, 3), total])

    found, expected = (studied(classifier(lambda b, s=s: body(b, s))).scores(method, draws=600) for s in (True, False))
    np.testing.assert_allclose(found[:5], expected[:5], rtol=0.02, atol=1e-3 * float(expected[:5].max()))


def test_progress_is_told_and_ends_at_one():
    told: list[float] = []
    studied(classifier(plain), n=24).scores("fisher", progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1


# ---------------------------------------------------------------------------------------------------------------- errors


def test_gradients_that_are_not_finite_are_an_error():
    study = studied(classifier(plain))
    next(iter(study.calibration.data.arrays.values()))[2] = np.nan
    with pytest.raises(ModelError, match="not finite"):
        study.scores("fisher")


@pytest.mark.parametrize("method", WITH_GRADIENTS)
def test_nothing_to_rank_is_an_error(method: str):
    b = Builder((2, 4, 4))
    proto = b.build(b.gemm(b.flatten(b.conv("x", 6, 3)), 5, name="head"))
    study = studied(edited(proto, "head", lambda values: values[0].fill(0)))
    with pytest.raises(OptionError, match="nothing to rank"):
        study.scores(method)


def test_a_label_out_of_range_is_an_error():
    study = studied(perceptron(), labels=np.array([0, 1, 9, 0, 0, 0]))
    with pytest.raises(DataError, match="out of range"):
        study.scores("taylor")


def test_without_torch_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tiny: onnx.ModelProto):
    monkeypatch.setattr(torch_backend.importlib.util, "find_spec", lambda name: None)
    x = np.zeros((8, 3, 8, 8), np.float32)
    with pytest.raises(OptionError, match=r"onnxprune\[train\]"):
        onnxprune.prune(load(tiny).path, data={"x": x}, reduce={"flops": 0.5}, importance="fisher", round_to=1)


# ------------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("method", WITH_GRADIENTS)
@pytest.mark.parametrize(
    "dials",
    [
        {"scope": "global"},
        {"scope": "uniform", "repair": "none"},
        {"scope": "sensitivity"},
        {"scope": "global", "schedule": "progressive", "steps": 2},
        {"threshold": 0.5},
        {"reduce": {"params": 0.4}, "scope": "global"},
    ],
    ids=lambda dials: "-".join(map(str, dials)),
)
def test_prune(tiny: onnx.ModelProto, method: str, dials: dict[str, Any]):
    x = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)
    dials = {"reduce": {"flops": 0.4}, **dials} if "threshold" not in dials else dials
    result = onnxprune.prune(load(tiny).path, data={"x": x}, importance=method, round_to=1, **dials)
    assert result.report.after.flops < result.report.before.flops
    again = onnxprune.prune(load(tiny).path, data={"x": x}, importance=method, round_to=1, **dials)
    np.testing.assert_array_equal(result.plan.keep, again.plan.keep)


def test_savings_are_what_a_channel_saves(tiny: onnx.ModelProto):
    found = analyse(load(tiny))
    keep = np.ones(found.trace.n_channels, dtype=bool)
    macs, params = found.cost.totals(keep)
    for channel in np.flatnonzero(~found.trace.pinned):
        without = keep.copy()
        without[channel] = False
        less = found.cost.totals(without)
        saved = [values[channel] for values in found.cost.savings()]
        np.testing.assert_allclose(saved, [1 - less[0] / macs, 1 - less[1] / params], rtol=1e-6)
