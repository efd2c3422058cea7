"""Optimal Brain Surgeon on the readers of a group, against least squares solved anew for every choice of channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import DRAWN, Builder, cnn_models, load
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxprune.calibration.batches import Calibration
from onnxprune.calibration.capture import ActivationStore
from onnxprune.calibration.workspace import Workspace
from onnxprune.data.dataset import load_data
from onnxprune.graph.model import Model, inputs_of
from onnxprune.graph.trace import trace as trace_model
from onnxprune.importance import obs as second_order
from onnxprune.importance.obs import SHARES, Reader, Removal, Statistics
from onnxprune.runtime.session import open_session, run_batch
from onnxprune.types import Group, Trace

Array = np.ndarray[Any, Any]
SETTINGS = settings(DRAWN, max_examples=25)
N = 24


@dataclass
class Study:
    """A model, what its readers see, and how each group is taken apart."""

    model: Model
    trace: Trace
    calibration: Calibration
    store: ActivationStore
    removals: dict[str, Removal]
    readers: dict[str, list[Reader]]
    statistics: dict[int, Statistics]

    def weights(self, removal: Removal, gone: int, node: int) -> tuple[Array, Array]:
        matrix, bias = removal.weights[gone][node]
        return self.store.get(matrix), self.store.get(bias)


@contextmanager
def studied(
    proto: onnx.ModelProto, x: Array | None = None, scores: Array | None = None, memory: float = 1e9, n: int = N
) -> Iterator[Study]:
    model = load(proto)
    trace = trace_model(model)
    if x is None:
        x = next(iter(model.signature.random_feeds(model.header, n, 7).values()))
    name = model.header.graph.input[0].name
    calibration = Calibration.of(load_data({name: x}, inputs_of(model)), len(x))
    store = ActivationStore(1e9)
    workspace = Workspace(calibration, store, memory)
    found = second_order.removals(model, trace, workspace, scores, np.ones(trace.n_channels))
    removals = {removal.group.name: removal for removal in found}
    readers = second_order.readers_of(model, trace)
    by_node = {reader.node: reader for found in readers.values() for reader in found}
    statistics = dict(second_order.collect(model, trace, workspace, by_node))
    yield Study(model, trace, calibration, store, removals, readers, statistics)
    store.close()


# ------------------------------------------------------------------------------------------------------------- oracle


def damped(statistics: Statistics, g: int) -> Array:
    covariance = statistics.covariance[g]
    return covariance + (statistics.damping * np.trace(covariance) / len(covariance) + 1e-12) * np.eye(len(covariance))


def optimum(reader: Reader, statistics: Statistics, gone: Array) -> tuple[Array, float]:
    """Return the best weights without some channels, and their share of lost variance, by least squares."""
    matrix, _ = reader.layer.effective()
    result = np.zeros_like(matrix)
    loss = spread = 0.0
    for g, weights in enumerate(matrix):
        root = np.linalg.cholesky(damped(statistics, g))
        left = ~np.isin(reader.channels[g], gone)
        result[g][:, left] = np.linalg.lstsq(root[left].T, root.T @ weights.T, rcond=None)[0].T
        loss += float((((result[g] - weights) @ root) ** 2).sum())
        spread += float(np.einsum("of,fh,oh->", weights, statistics.covariance[g], weights))
    return result, loss / spread


def total(study: Study, group: Group, gone: Array) -> float:
    return sum(optimum(reader, study.statistics[reader.node], gone)[1] for reader in study.readers[group.name])


def check(study: Study, removal: Removal) -> None:
    """Hold a whole order against brute force."""
    free = removal.group.channels[~study.trace.pinned[removal.group.channels]]
    for step, chosen in enumerate(removal.order):
        before = removal.order[:step]
        left = np.setdiff1d(free, before)
        joint = {channel: total(study, removal.group, np.append(before, channel)) for channel in left}
        assert joint[chosen] <= min(joint.values()) * (1 + 1e-6)  # the greedy choice
        assert removal.losses[step] == pytest.approx(joint[chosen], rel=1e-5, abs=1e-9)
    for gone in removal.weights:
        for reader in study.readers[removal.group.name]:
            matrix, bias = study.weights(removal, gone, reader.node)
            statistics = study.statistics[reader.node]
            wanted, _ = optimum(reader, statistics, removal.order[:gone])
            np.testing.assert_allclose(matrix, wanted, rtol=1e-3, atol=1e-4 * float(np.abs(wanted).max()))
            assert not matrix.swapaxes(1, 2)[np.isin(reader.channels, removal.order[:gone])].any()
            before_matrix, before_bias = reader.layer.effective()
            means = np.einsum("gof,gf->go", before_matrix, statistics.mean) + before_bias
            np.testing.assert_allclose(  # the mean of the output stays
                np.einsum("gof,gf->go", matrix, statistics.mean) + bias, means, atol=1e-4 * (1 + np.abs(means).max())
            )


# ------------------------------------------------------------------------------------------------------------- graphs


def plain(kernel: int = 1, **how: Any) -> Builder:
    b = Builder((3, 6, 6))
    b.conv(b.node("Relu", [b.conv("x", 6, 3)]), 4, kernel, **how)
    return b


def grouped() -> Builder:
    b = Builder((3, 6, 6))
    b.conv(b.node("Relu", [b.conv("x", 8, 3)]), 6, 3, group=2)
    return b


def flattened() -> Builder:
    b = Builder((3, 4, 4))
    b.gemm(b.flatten(b.pool(b.node("Relu", [b.conv("x", 6, 3)]), "MaxPool", 2, 2)), 5)
    return b


def two_groups() -> Builder:
    b = Builder((3, 6, 6))
    one, two = b.conv("x", 4, 3), b.node("Relu", [b.conv("x", 5, 3)])
    b.conv(b.concat([one, two]), 4, 1)
    return b


def two_readers() -> Builder:
    b = Builder((3, 6, 6))
    x = b.node("Relu", [b.conv("x", 6, 3)])
    b.node("Add", [b.conv(x, 4, 3), b.conv(x, 4, 1)])
    return b


def channels_last() -> Builder:
    b = Builder((3, 6, 6))
    x = b.node("Transpose", [b.conv("x", 6, 3)], (6, 6, 6), perm=[0, 2, 3, 1])
    b.node("Add", [b.node("MatMul", [b.node("Relu", [x]), b.normal(6, 5)], (6, 6, 5)), b.normal(5)])
    return b


def transposed() -> Builder:
    b = Builder((3, 5, 5))
    x = b.node("Relu", [b.conv("x", 6, 3)])
    b.node("ConvTranspose", [x, b.normal(6, 4, 3, 3)], (4, 11, 11), strides=[2, 2], kernel_shape=[3, 3])
    return b


def through_depthwise() -> Builder:
    b = Builder((3, 6, 6))
    b.conv(b.node("Relu", [b.depthwise(b.node("Relu", [b.conv("x", 6)]))]), 4)
    return b


def uneven() -> Builder:
    """Return one whose reader sees some channels twice."""
    b = Builder((3, 6, 6))
    x = b.node("Relu", [b.conv("x", 6, 3)])
    b.conv(b.concat([x, b.node("Sigmoid", [b.gather(x, (4, 0, 1))])]), 4)
    return b


BUILDERS: dict[str, tuple[Callable[[], Builder], int]] = {  # and how many groups can go
    "1x1": (plain, 1),
    "3x3": (lambda: plain(3), 1),
    "strided and dilated": (lambda: plain(3, stride=2, dilation=2), 1),
    "grouped": (grouped, 1),
    "flattened": (flattened, 1),
    "uneven": (uneven, 1),
    "two groups": (two_groups, 2),
    "two readers": (two_readers, 1),
    "channels last": (channels_last, 1),
    "transposed": (transposed, 1),
    "depthwise between": (through_depthwise, 1),
}


def built(b: Builder) -> onnx.ModelProto:
    return b.build(b.nodes[-1].output[0])


# -------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("name", BUILDERS)
def test_order_losses_and_weights_are_those_of_brute_force(name):
    build, groups = BUILDERS[name]
    with studied(built(build())) as study:
        found = {n: removal for n, removal in study.removals.items() if removal.order.size}
        assert len(found) == groups
        for removal in found.values():
            size = removal.group.channels.size
            assert sorted(removal.order) != list(removal.order)  # a choice was made
            assert removal.order.size == np.unique(removal.order).size == size - 1
            assert set(removal.weights) == {max(1, round(size * share)) for share in SHARES} - {size}
            check(study, removal)


def test_statistics_are_those_of_the_input():
    b = plain(3)
    with studied(built(b)) as study:
        ((node, seen),) = study.statistics.items()
        proto = study.model.to_proto()
        name = study.model.graph.nodes[node].inputs[0].name
        proto.graph.output.extend([onnx.ValueInfoProto(name=name)])
        x = np.concatenate([run_batch(open_session(proto), f, names=[name])[0] for f in study.calibration])
    wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), axis=(2, 3))  # (n, channels, h, w, 3, 3)
    rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 54).astype(np.float64)
    np.testing.assert_allclose(seen.covariance[0], np.cov(rows, rowvar=False, ddof=0), atol=1e-5)
    np.testing.assert_allclose(seen.mean[0], rows.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(seen.variance[0], rows.var(axis=0), atol=1e-5)
    np.testing.assert_allclose(seen.zeros[0], (rows == 0).mean(axis=0), atol=1e-9)


def test_more_positions_than_needed_are_sampled():
    b = Builder((3, 40, 40))
    b.conv(b.node("Relu", [b.conv("x", 6, 3)]), 4, 3)
    x = np.random.default_rng(0).standard_normal((48, 3, 40, 40)).astype(np.float32)
    found = []
    with studied(built(b), x) as study:
        ((node, seen),) = study.statistics.items()
        readers = {reader.node: reader for found in study.readers.values() for reader in found}
        for seed in (0, 1):
            workspace = Workspace(replace(study.calibration, seed=seed), study.store, 1e9)
            found.append(dict(second_order.collect(study.model, study.trace, workspace, readers))[node])
    np.testing.assert_array_equal(found[0].covariance, seen.covariance)  # the same choice for a seed
    assert np.abs(found[1].covariance - seen.covariance).max() > 0
    np.testing.assert_allclose(found[1].covariance, seen.covariance, atol=0.1 * seen.variance.max())


def test_batches_that_are_held_out_are_not_seen():
    b = Builder((3, 8, 8))
    b.conv(b.node("Relu", [b.conv("x", 6, 3)]), 4, 3)
    x = np.random.default_rng(0).standard_normal((48, 3, 8, 8)).astype(np.float32)
    with studied(built(b), x) as study:
        size = study.calibration.batch
        held = [number for number in range(48 // size) if study.calibration.is_held(number)]
    for number in held:
        x[number * size : (number + 1) * size] *= 100
    with studied(built(b), x) as study:
        ((node, everything),) = study.statistics.items()
        readers = {reader.node: reader for found in study.readers.values() for reader in found}
        how = study.model, study.trace, Workspace(study.calibration, study.store, 1e9), readers
        seen = dict(second_order.collect(*how, hold_out=True))[node]
    assert held
    assert seen.variance.max() < 20 < everything.variance.max()


def test_of_few_batches_some_rows_of_each_are_not_seen():
    b = Builder((3, 8, 8))
    b.conv(b.node("Relu", [b.conv("x", 6, 3)]), 4, 3)
    with studied(built(b), n=3) as study:
        ((node, everything),) = study.statistics.items()
        readers = {reader.node: reader for found in study.readers.values() for reader in found}
        how = study.model, study.trace, Workspace(study.calibration, study.store, 1e9), readers
        seen = dict(second_order.collect(*how, hold_out=True))[node]
    assert 0 < np.abs(seen.covariance - everything.covariance).max() < everything.variance.max()


def planted(edit: Callable[[Array, Array], None], tail: Callable[[Builder, str], str]) -> tuple[onnx.ModelProto, str]:
    """Return a model whose first layer, (8, 3, 3, 3) and (8,), is edited, and the name of its group."""
    b = Builder((3, 6, 6))
    x = b.conv("x", 8, 3, name="first")
    proto = b.build(tail(b, x))
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    _, w, bias = next(node for node in proto.graph.node if node.name == "first").input
    values = [numpy_helper.to_array(weights[name]).copy() for name in (w, bias)]
    edit(*values)
    for name, value in zip((w, bias), values, strict=True):
        weights[name].CopyFrom(numpy_helper.from_array(value, name))
    return proto, "first"


def duplicate(w: Array, b: Array) -> None:
    w[5], b[5] = w[2], b[2]


def combination(w: Array, b: Array) -> None:
    w[6] = w[0] - 0.5 * w[1] + 2 * w[3]
    b[6] = 1.25


def dead(w: Array, b: Array) -> None:
    w[4], b[4] = 0, 0


TAILS: dict[str, Callable[[Builder, str], str]] = {
    "conv": lambda b, x: b.conv(x, 4, 3),
    "grouped": lambda b, x: b.conv(b.concat([x, b.conv("x", 8)]), 4, 3, group=2),
    "flatten": lambda b, x: b.gemm(b.flatten(x), 4),
    "relu": lambda b, x: b.conv(b.node("Relu", [x]), 4, 3),
    "concat": lambda b, x: b.conv(b.concat([b.conv("x", 3), x]), 4),
    "two": lambda b, x: b.node("Sub", [b.conv(x, 4), b.conv(x, 4, 3)]),
}


@pytest.mark.parametrize("tail", ["conv", "flatten", "concat", "two", "relu"])
def test_a_duplicate_goes_first_and_costs_next_to_nothing(tail):
    proto, group = planted(duplicate, TAILS[tail])
    with studied(proto, n=20_000 if tail == "flatten" else 200) as study:  # more rows than features
        removal = study.removals[group]
        local = removal.order - removal.group.channels[0]
        assert local[0] in (2, 5)
        assert removal.losses[0] < 0.02 * removal.losses[-1]
        assert removal.losses[0] < 0.5 * removal.losses[1]


@pytest.mark.parametrize("tail", ["conv", "flatten", "concat", "two"])
def test_a_channel_that_others_make_up_for_goes_first(tail):
    proto, group = planted(combination, TAILS[tail])
    with studied(proto, n=20_000 if tail == "flatten" else 200) as study:  # more rows than features
        removal = study.removals[group]
        local = removal.order - removal.group.channels[0]
        assert local[0] in (0, 1, 3, 6)
        assert removal.losses[0] < 0.03 * removal.losses[-1]


@pytest.mark.parametrize("factor", [1.0, 30.0])
@pytest.mark.parametrize("tail", ["relu", "two"])
def test_a_channel_that_never_varies_goes_first_whatever_its_weights(tail, factor):
    """Its value is made up for by the bias, so large weights on it are no reason to keep it."""
    proto, group = planted(dead, TAILS[tail])
    readers = [n for n in proto.graph.node if n.op_type == "Conv" and n.name != "first"]
    for node in readers:
        tensor = next(t for t in proto.graph.initializer if t.name == node.input[1])
        value = numpy_helper.to_array(tensor).copy()
        value[:, 4] *= factor
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    with studied(proto, n=100) as study:
        removal = study.removals[group]
        assert removal.order[0] - removal.group.channels[0] == 4
        assert removal.losses[0] < 1e-4


def test_a_reader_that_sees_nothing_has_no_say():
    """The output of a reader with constant inputs does not vary: nothing is lost there, whatever goes."""

    def tail(b: Builder, x: str) -> str:
        cut = b.node("Clip", [x, b.const(np.float32(50)), b.const(np.float32(60))])  # always 50
        return b.node("Add", [b.conv(cut, 4), b.conv(x, 4, 3)])

    proto, group = planted(lambda w, b: None, tail)
    with studied(proto) as study:
        removal = study.removals[group]
        assert removal.losses[-1] < 3
        node, *_ = (reader.node for reader in study.readers[group] if reader.channels.shape[1] > 8)
        reader = next(reader for reader in study.readers[group] if reader.node == node)
        alone = [optimum(reader, study.statistics[node], np.array([c]))[1] for c in removal.group.channels]
        assert removal.order[0] == removal.group.channels[int(np.argmin(alone))]


def test_pinned_channels_are_in_no_order():
    b = Builder((3, 6, 6))
    x = b.conv("x", 8, 3)
    part = b.slice(x, 2, 5)
    y = b.conv(b.node("Relu", [x]), 4, 3)
    with studied(b.build(y, part)) as study:
        (removal,) = (found for found in study.removals.values() if found.order.size)
        assert study.trace.pinned[removal.group.channels].sum() == 3
        assert not study.trace.pinned[removal.order].any()
        assert removal.order.size == 5  # all others may go, as three stay
        check(study, removal)


def test_scores_that_are_given_decide_the_order():
    proto = built(plain(3))
    size = trace_model(load(proto)).n_channels
    given_scores = np.random.default_rng(3).permutation(size).astype(np.float64)
    with studied(proto, scores=given_scores) as study:
        (removal,) = (found for found in study.removals.values() if found.order.size)
        assert list(given_scores[removal.order]) == sorted(given_scores[removal.order])
        for step in range(removal.order.size):  # the losses and weights are still those of second order
            assert removal.losses[step] == pytest.approx(total(study, removal.group, removal.order[: step + 1]))
        matrix, _ = study.weights(removal, 3, study.readers[removal.group.name][0].node)
        wanted, _ = optimum(
            study.readers[removal.group.name][0], next(iter(study.statistics.values())), removal.order[:3]
        )
        np.testing.assert_allclose(matrix, wanted, atol=1e-4)


def test_without_memory_the_diagonal_has_to_do():
    with studied(built(plain(3)), memory=0) as study:
        (removal,) = (found for found in study.removals.values() if found.order.size)
        (reader,) = study.readers[removal.group.name]
        seen = study.statistics[reader.node]
        assert seen.covariance is None
        matrix, _ = reader.layer.effective()
        costs = (matrix[0] ** 2).sum(axis=0) * (seen.variance[0] + seen.damping * seen.variance[0].mean())
        per_channel = [costs[reader.channels[0] == channel].sum() for channel in removal.group.channels]
        np.testing.assert_array_equal(removal.order, removal.group.channels[np.argsort(per_channel)[:-1]])


def test_a_wide_group_loses_several_channels_between_two_looks():
    b = Builder((3, 6, 6))
    b.conv(b.node("Relu", [b.conv("x", 200, 1)]), 4, 1)
    with studied(built(b)) as study:
        (removal,) = (found for found in study.removals.values() if found.order.size)
        assert removal.order.size == 199 == np.unique(removal.order).size
        assert set(removal.weights) == {round(200 * share) for share in SHARES}
        assert (np.diff(removal.losses) >= -1e-12).all()
        for gone in removal.weights:
            (reader,) = study.readers[removal.group.name]
            matrix, _ = study.weights(removal, gone, reader.node)
            wanted, _ = optimum(reader, study.statistics[reader.node], removal.order[:gone])
            np.testing.assert_allclose(matrix, wanted, rtol=1e-2, atol=1e-3 * float(np.abs(wanted).max()))


def test_scores_rise_along_the_order():
    with studied(built(two_groups())) as study:
        fallback = np.full(study.trace.n_channels, 0.25)
        scores = second_order.scores_of(study.trace, study.removals.values(), fallback)
        for removal in study.removals.values():
            if not removal.order.size:
                np.testing.assert_array_equal(scores[removal.group.channels], 0.25)
                continue
            assert (np.diff(scores[removal.order]) >= 0).all()
            assert scores[removal.order].mean() == pytest.approx(1)
            last = np.setdiff1d(removal.group.channels, removal.order)
            assert np.isinf(scores[last]).all()


@pytest.mark.parametrize("kind", ["activation", "apoz"])
def test_scores_of_activations(kind):
    with studied(built(two_readers())) as study:
        workspace = Workspace(study.calibration, study.store, 1e9)
        found = second_order.activation_scores(study.model, study.trace, workspace, kind)
        (group,) = (study.trace.groups[i] for i in range(1))
        raw = np.zeros(group.channels.size)
        for reader in study.readers[group.name]:
            seen = study.statistics[reader.node]
            matrix, _ = reader.layer.effective()
            for n, channel in enumerate(group.channels):
                at = reader.channels[0] == channel
                if kind == "apoz":
                    raw[n] += (1 - seen.zeros[0][at]).sum() / 10  # ten features in two readers
                else:
                    raw[n] += (seen.variance[0][at] * (matrix[0][:, at] ** 2).sum(axis=0)).sum()
        np.testing.assert_allclose(found[group.channels], raw / raw.mean(), rtol=1e-4)


@SETTINGS
@given(cnn_models(), st.integers(0, 100))
def test_random_models(proto: onnx.ModelProto, seed: int) -> None:
    with studied(proto, n=8) as study:
        names = {g.name for g in study.trace.groups if not study.trace.pinned[g.channels].all()}
        assert set(study.removals) == names
        for removal in study.removals.values():
            free = removal.group.channels[~study.trace.pinned[removal.group.channels]]
            assert removal.order.size == np.unique(removal.order).size
            assert set(removal.order) <= set(free)
            assert removal.order.size == min(free.size, removal.group.channels.size - 1)
            assert removal.losses.size == removal.order.size
            assert np.isfinite(removal.losses).all()
            assert (np.diff(removal.losses, prepend=0) >= -1e-9).all()
