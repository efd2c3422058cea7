"""A model run piece by piece gives what it gives when it runs as a whole."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import DRAWN, Builder, as_half, cnn_models, load
from hypothesis import given as drawn
from hypothesis import settings
from onnx import helper, numpy_helper, parser

from onnxprune.calibration.capture import FREE, ActivationStore, LayerwiseRunner
from onnxprune.graph.model import Model
from onnxprune.runtime.session import Feeds, open_session, random_feeds, run_batch

Array = np.ndarray[Any, Any]
SETTINGS = settings(DRAWN, max_examples=25)


def feeds_of(model: Model, batches: int = 2, size: int = 2, seed: int = 0) -> list[Feeds]:
    shapes = model.signature.input_shapes(size)
    return [random_feeds(model.header, shapes, seed + n) for n in range(batches)]


def whole(model: Model, names: Sequence[str], feeds: Feeds) -> list[Array]:
    """Run a whole model with extra outputs."""
    proto = model.to_proto()
    there = {value.name for value in proto.graph.output} | {value.name for value in proto.graph.input}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    inner = [name for name in names if name not in feeds]
    found = dict(zip(inner, run_batch(open_session(proto), feeds, names=inner), strict=True)) if inner else {}
    return [found.get(name, feeds.get(name)) for name in names]


def activations(model: Model) -> list[str]:
    return [t.name for node in model.graph.nodes for t in node.outputs if t.name]


def close(one: Array, two: Array) -> None:
    assert (one.shape, one.dtype) == (two.shape, two.dtype)
    if one.size:
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5 * float(np.abs(two.astype(np.float64)).max() + 1e-6))


@pytest.fixture
def store() -> Iterator[ActivationStore]:
    made = ActivationStore(1e9)
    yield made
    made.close()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the nodes in all sessions that are opened."""
    seen: Counter[str] = Counter()
    original = open_session

    def session(model: Any, *config: Any, **how: Any) -> Any:
        seen.update(name for node in model.graph.node for name in node.output[:1])
        return original(model, *config, **how)

    monkeypatch.setattr("onnxprune.calibration.capture.open_session", session)
    return seen


# -------------------------------------------------------------------------------------------------------------- graphs


def text(lines: str, inputs: str = "float[N,3,6,6] x", outputs: str = "float[N,4,6,6] y", **weights: Any) -> Model:
    stock = {"w": (4, 3, 1, 1), "v": (4, 4, 3, 3)} | weights
    rng = np.random.default_rng(0)
    values = {
        name: rng.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else np.asarray(value)
        for name, value in stock.items()
    }
    graph = parser.parse_graph(f"g ({inputs}) => ({outputs}) {{ {lines} }}")
    used = {name for node in graph.node for name in node.input} | set(weights)
    graph.initializer.extend(numpy_helper.from_array(values[name], name) for name in values if name in used)
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


PAD = "<pads=[1,1,1,1]>"


def line() -> Model:
    return text(f"a = Conv(x, w) b = Relu(a) c = Conv{PAD}(b, v) y = Sigmoid(c)")


def branches() -> Model:
    return text(f"a = Conv(x, w) b = Relu(a) c = Conv{PAD}(b, v) d = Sigmoid(a) y = Mul(c, d)")


def residual() -> Model:
    return text(f"a = Conv(x, w) b = Relu(a) c = Conv{PAD}(b, v) d = Add(c, a) e = Conv{PAD}(d, v) y = Add(e, d)")


def several_outputs() -> Model:
    """Return one with an output that is an inner tensor as well."""
    return text(
        f"a = Conv(x, w) b = Relu(a) c = Conv{PAD}(b, v) y = Relu(c)",
        outputs="float[N,4,6,6] b, float[N,4,6,6] y, float[N,4,6,6] c",
    )


def shapes() -> Model:
    return text(
        f"a = Conv(x, w) s = Shape(a) b = Relu(a) c = Reshape(b, r) d = Relu(c) e = Reshape(d, s) f = Conv{PAD}(e, v) "
        "t = Shape(f) g = Cast<to=1>(t) h = ReduceSum<keepdims=0>(g) y = Mul(f, h)",
        r=np.array([0, 4, 36]),
    )


def condition() -> Model:
    """Return one with an If whose bodies capture two tensors, one of them made early and used by nothing else."""
    return text(
        f"a = Conv(x, w) z = Sigmoid(a) b = Relu(a) c = Conv{PAD}(b, v) m = ReduceMax<keepdims=0>(c) k = Greater(m, o) "
        "p = If (k) <then_branch = t () => (float[N,4,6,6] q) { q = Add(c, z) }, "
        f"else_branch = e () => (float[N,4,6,6] u) {{ n = Neg(c) u = Mul(n, z) }}> y = Conv{PAD}(p, v)",
        o=np.float32(0),
    )


def condition_with_weights() -> Model:
    """Return one whose bodies take a weight from outside."""
    return text(
        f"a = Conv(x, w) b = Relu(a) m = ReduceMax<keepdims=0>(b) k = Greater(m, o) "
        f"p = If (k) <then_branch = t () => (float[N,4,6,6] q) {{ q = Conv{PAD}(b, v) }}, "
        f"else_branch = e () => (float[N,4,6,6] u) {{ u = Neg(b) }}> y = Relu(p)",
        o=np.float32(0),
        v=(4, 4, 3, 3),
    )


def input_as_output() -> Model:
    return text("a = Conv(x, w) y = Relu(a)", outputs="float[N,4,6,6] y, float[N,3,6,6] x")


def pieces() -> Model:
    """Return one with a sequence between two layers."""
    return text(
        f"a = Conv(x, w) s = SplitToSequence<axis=1>(a, n) b = SequenceAt(s, zero) c = SequenceAt(s, one) "
        f"d = Concat<axis=1>(c, b) e = Conv{PAD}(d, v) y = Relu(e)",
        n=np.array([2, 2]), zero=np.int64(0), one=np.int64(1),
    )  # fmt: skip


GRAPHS: tuple[Callable[[], Model], ...] = (
    line, branches, residual, several_outputs, shapes, condition, condition_with_weights, input_as_output,
)  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("build", GRAPHS)
def test_every_tensor_is_that_of_the_whole_model(build, store, runs):
    model = build()
    feeds = feeds_of(model)
    runs.clear()
    stream = LayerwiseRunner(model, feeds, store)
    for name in activations(model):
        stream.advance([name])
        for batch, given in enumerate(feeds):
            close(stream.read(name, batch), whole(model, [name], given)[0])
    assert stream.done == set(range(len(model.graph.nodes)))


@pytest.mark.parametrize("build", GRAPHS)
def test_each_node_runs_once(build, store, runs):
    model = build()
    stream = LayerwiseRunner(model, feeds_of(model), store)
    runs.clear()
    for name in activations(model):
        stream.advance([name])
    stream.finish(model)
    assert dict(runs) == dict.fromkeys((node.outputs[0].name for node in model.graph.nodes), 1)


@pytest.mark.parametrize("build", GRAPHS)
def test_finish_gives_the_outputs_from_anywhere(build, store):
    model = build()
    feeds = feeds_of(model)
    names = [t.name for t in model.graph.outputs]
    wanted = [np.concatenate(parts) for parts in zip(*(whole(model, names, given) for given in feeds), strict=True)]
    for stop in ([], *([name] for name in activations(model))):
        stream = LayerwiseRunner(model, feeds, store)
        stream.advance(stop)
        for _ in range(2):  # and once more
            for one, two in zip(stream.finish(model), wanted, strict=True):
                close(one, two)
        stream.close()
    assert store.held == 0


@SETTINGS
@drawn(cnn_models())
def test_random_models(proto: onnx.ModelProto) -> None:
    model = load(proto)
    feeds = feeds_of(model)
    store = ActivationStore(1e9)
    stream = LayerwiseRunner(model, feeds, store)
    names = activations(model)[::3]
    for name in names:
        stream.advance([name])
        close(stream.read(name, 1), whole(model, [name], feeds[1])[0])
    outputs = [t.name for t in model.graph.outputs]
    parts = [whole(model, outputs, given) for given in feeds]
    for one, *two in zip(stream.finish(model), *parts, strict=True):
        close(one, np.concatenate(two))
    stream.close()
    assert store.held == 0
    store.close()


def test_several_tensors_at_once(store):
    model = branches()
    feeds = feeds_of(model)
    stream = LayerwiseRunner(model, feeds, store)
    stream.advance(["d", "c"])
    for name in ("c", "d"):
        close(stream.read(name, 0), whole(model, [name], feeds[0])[0])


def test_only_what_is_needed_runs(store, runs):
    model = branches()
    stream = LayerwiseRunner(model, feeds_of(model), store)
    runs.clear()
    stream.advance(["b"])
    assert set(runs) == {"a", "b"}
    stream.advance(["b"])  # nothing to do
    assert sum(runs.values()) == 2


def test_what_nobody_needs_any_more_is_dropped(store):
    model = residual()
    stream = LayerwiseRunner(model, feeds_of(model), store)
    kept = []
    for name in ("a", "b", "c", "d", "e", "y"):
        stream.advance([name])
        kept.append(set(stream.kept))
    assert kept == [{"a"}, {"a", "b"}, {"a", "c"}, {"d"}, {"d", "e"}, {"y"}]


def test_an_output_stays(store):
    model = several_outputs()
    stream = LayerwiseRunner(model, feeds_of(model), store)
    stream.advance(["c"])
    stream.advance(["y"])
    assert set(stream.kept) == {"b", "c", "y"}


def test_a_size_keeps_no_tensor_alive(store):
    model = shapes()
    stream = LayerwiseRunner(model, feeds_of(model), store)
    stream.advance(["c"])
    assert all(model.graph.nodes[n].op not in FREE or n in stream.done for n in (1,))
    assert set(stream.kept) == {"c", "s"}


def test_what_a_body_captures_is_kept_until_it_runs(store):
    model = condition()
    stream = LayerwiseRunner(model, feeds_of(model), store)
    stream.advance(["z"])
    stream.advance(["k"])
    assert {"z", "c"} <= set(stream.kept)
    stream.advance(["p"])
    assert set(stream.kept) == {"p"}


def test_a_layer_that_has_not_run_may_be_changed(store):
    model = line()
    feeds = feeds_of(model)
    changed = model.copy()
    stream = LayerwiseRunner(changed, feeds, store)
    stream.advance(["b"])
    node = changed.graph.nodes[2]
    node.inputs[1].values = node.inputs[1].values * 2
    stream.advance(["c"])
    close(stream.read("c", 0), 2 * whole(line(), ["c"], feeds[0])[0])


def test_finish_of_a_variant_is_the_variant(store):
    model = residual()
    feeds = feeds_of(model)
    stream = LayerwiseRunner(model, feeds, store)
    for stop, change in (("a", 2), ("b", 2), ("c", 4)):  # c is done: node 4 is the second Conv
        stream.advance([stop])
        variant = model.copy()
        node = variant.graph.nodes[change]
        weight = node.inputs[1]
        node.inputs[1] = type(weight)(f"{weight.name}_changed", weight.values * 0.5)
        wanted = np.concatenate([whole(variant, ["y"], given)[0] for given in feeds])
        close(stream.finish(variant)[0], wanted)
        unchanged = np.concatenate([whole(model, ["y"], given)[0] for given in feeds])
        assert np.abs(wanted - unchanged).max() > 1e-2
        close(stream.finish(model)[0], unchanged)


def test_batches_of_unequal_size(store):
    model = line()
    feeds = [*feeds_of(model, 2, 3), *feeds_of(model, 1, 1, seed=9)]
    stream = LayerwiseRunner(model, feeds, store)
    stream.advance(["b"])
    assert [len(stream.read("b", batch)) for batch in range(3)] == [3, 3, 1]
    assert len(stream.finish(model)[0]) == 7


def test_half_precision(store):
    model = load(as_half(line().to_proto()))
    feeds = feeds_of(model)
    stream = LayerwiseRunner(model, feeds, store)
    stream.advance(["b"])
    assert stream.read("b", 0).dtype == np.float16
    assert stream.finish(model)[0].dtype == np.float16


def test_a_sequence_between_layers(store):
    model = pieces()
    feeds = feeds_of(model)
    stream = LayerwiseRunner(model, feeds, store)
    for name in ("a", "b", "d"):
        stream.advance([name])
        close(stream.read(name, 1), whole(model, [name], feeds[1])[0])
    close(stream.finish(model)[0][:2], whole(model, ["y"], feeds[0])[0])


# --------------------------------------------------------------------------------------------------------------- store


def test_store_spills_what_exceeds_its_budget():
    store = ActivationStore(budget=100_000)
    values = [np.random.default_rng(n).standard_normal((100, 100)) for n in range(3)]  # 80,000 bytes each
    kept = [store.put(value) for value in values]
    assert [isinstance(one, Path) for one in kept] == [False, True, True]
    for one, value in zip(kept, values, strict=True):
        np.testing.assert_array_equal(store.get(one), value)
    small = store.put(np.zeros(3))
    assert not isinstance(small, Path)  # a file of its own would be a waste
    folder = kept[1].parent
    store.drop(kept[1])
    assert list(folder.iterdir()) == [kept[2]]
    store.drop(kept[0])
    assert not isinstance(store.put(values[0]), Path)  # there is room again
    store.close()
    assert not folder.exists()


def test_a_tiny_budget_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    b = Builder((3, 40, 40))
    x = b.node("Relu", [b.conv("x", 8, 3)])
    y = b.node("Add", [b.conv(x, 8, 3), x])
    model = load(b.build(b.conv(y, 4)))
    feeds = feeds_of(model)
    found = []
    for budget in (1e9, 0.0):
        store = ActivationStore(budget)
        stream = LayerwiseRunner(model, feeds, store)
        values = []
        for name in activations(model):
            stream.advance([name])
            values.append(stream.read(name, 1))
        values += stream.finish(model)
        found.append(values)
        assert bool(store.count) == (budget == 0)
        stream.close()
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
        store.close()
        assert list(tmp_path.iterdir()) == []
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
