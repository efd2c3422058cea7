"""Bounds of weights: what is projected where, exactly, and what stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Builder, load
from onnx import numpy_helper

from onnxprune.errors import OptionError
from onnxprune.options import Bound

torch = pytest.importorskip("torch")
from onnxprune.torch_backend.executor import Executor  # noqa: E402
from onnxprune.training.constraints import Constraints, Filters, Frozen, toward_zero  # noqa: E402 (torch may be missing)

pytestmark = pytest.mark.torch
Array = np.ndarray[Any, Any]


def layers() -> onnx.ModelProto:
    """Return a network with a filter of every kind: cw, tw (in two groups), gt (rows), gn (columns), mw and lw."""
    b = Builder((3, 6, 6))

    def weight(name: str, *shape: int) -> str:
        b.weights[name] = numpy_helper.from_array(b.rng.standard_normal(shape).astype(np.float32), name)
        return name

    x = b.node("Conv", ["x", weight("cw", 4, 3, 3, 3), weight("cb", 4)], (4, 4, 4), kernel_shape=[3, 3])
    x = b.node("ConvTranspose", [x, weight("tw", 4, 3, 2, 2)], (6, 5, 5), group=2)
    x = b.flatten(b.global_pool(x))
    x = b.node("Gemm", [x, weight("gt", 5, 6)], (5,), transB=1)
    x = b.node("Gemm", [x, weight("gn", 5, 4)], (4,), transB=0)
    x = b.node("MatMul", [x, weight("mw", 4, 7)], (7,))
    x = b.node("Unsqueeze", [x, b.ints(2)], (7, 1))
    x = b.node("MatMul", [weight("lw", 3, 7), x], (3, 1))
    return b.build(b.flatten(x))


def norms(name: str, w: Array) -> Array:
    """Return the norm of each filter, the long way round."""
    w = w.astype(np.float64)
    if name == "cw":
        filters = [w[o] for o in range(4)]
    elif name == "tw":  # 4 inputs in 2 groups, 3 outputs each
        filters = [w[2 * g : 2 * g + 2, o] for g in range(2) for o in range(3)]
    else:
        filters = list(w if name in ("gt", "lw") else w.T)
    return np.array([np.sqrt(sum(v * v for v in f.ravel().tolist())) for f in filters])


NAMES = ("cw", "tw", "gt", "gn", "mw", "lw")


@pytest.mark.parametrize("name", NAMES)
def test_norms_hold_for_each_filter_of_every_layer(name: str) -> None:
    executor = Executor(load(layers()))
    before = {n: w.detach().numpy().copy() for n, w in executor.weights.items()}
    start = norms(name, before[name])
    most = float(np.median(start))
    constraints = Constraints(executor, (Bound(name, norm=most),))
    constraints.project(executor.weights)
    after = executor.weights[name].detach().numpy()
    found = norms(name, after)
    assert (found <= most).all()
    np.testing.assert_allclose(found, np.minimum(start, most), rtol=1e-5)
    assert (np.abs(after) <= np.abs(before[name])).all()
    (note,) = constraints.notes
    assert f"{(start > most).sum()} of {start.size} filters of {name}" in note
    for other in executor.weights.keys() - {name}:
        np.testing.assert_array_equal(executor.weights[other].detach().numpy(), before[other])
    constraints.project(executor.weights)  # what holds stays
    np.testing.assert_array_equal(executor.weights[name].detach().numpy(), after)


def test_a_range_holds_as_a_decimal_number() -> None:
    """0.1 in single precision lies above 0.1, so the bound is the number before it."""
    executor = Executor(load(layers()))
    assert float(np.float32(0.1)) > 0.1
    constraints = Constraints(executor, (Bound("c*", -0.3, 0.1),))
    beyond = int(sum(((w < -0.3) | (w > 0.1)).sum() for n, w in executor.weights.items() if n == "cw"))
    assert any(f"{beyond} of 108 elements of cw" in note for note in constraints.notes)
    constraints.project(executor.weights)
    for name in ("cw", "cb"):
        w = executor.weights[name].detach().numpy().astype(np.float64)
        assert w.max() <= 0.1
        assert w.min() >= -0.3
        assert w.max() > 0.0999999
    assert float(executor.weights["mw"].detach().abs().max()) > 0.3


def test_all_bounds_of_a_weight_hold_whatever_their_order() -> None:
    bounds = (Bound("cw", -1, 0.2), Bound("*", norm=0.7), Bound("c*", -0.25, 5.0), Bound("cw", norm=0.5))
    for order in (bounds, bounds[::-1]):
        executor = Executor(load(layers()))
        Constraints(executor, order).project(executor.weights)
        w = executor.weights["cw"].detach().numpy().astype(np.float64)
        assert w.min() >= -0.25
        assert w.max() <= 0.2
        assert (norms("cw", w) <= 0.5).all()
        assert (norms("tw", executor.weights["tw"].detach().numpy()) <= 0.7).all()


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        ((Bound("nothing*", -1, 1),), "names no trained weight"),
        ((Bound("cb", norm=1.0),), "names no filters"),
        ((Bound("cw", 0, 1), Bound("c*", 2, 3)), "exclude each other"),
        ((Bound("cw", 0.5, 1), Bound("cw", norm=9.0)), "exclude each other"),
    ],
)
def test_bounds_that_cannot_be_held_are_errors(bounds: tuple[Bound, ...], says: str) -> None:
    with pytest.raises(OptionError, match=says) as caught:
        Constraints(Executor(load(layers())), bounds)
    assert caught.value.hint
    assert caught.value.why


def test_no_bounds_are_false_and_change_nothing() -> None:
    executor = Executor(load(layers()))
    constraints = Constraints(executor, ())
    assert not constraints
    assert constraints.notes == ()
    assert Constraints(executor, (Bound("*", -9, 9),)).notes == ()


def test_elements_that_stay_do_so_and_the_others_make_room() -> None:
    weight = torch.tensor([[3.0, 4.0, 12.0], [0.1, 0.2, 0.2]])
    filters = Filters((2, 3), (1,))
    stays = torch.tensor([[True, True, False], [False, False, False]])
    found = filters.within(weight, 6.0, stays)
    assert torch.equal(found[0, :2], weight[0, :2])
    assert torch.equal(found[1], weight[1])
    assert float(found[0, 2]) == pytest.approx(np.sqrt(36 - 25), rel=1e-5)
    assert np.linalg.norm(found[0].double().numpy()) <= 6.0
    # where what stays is all there is room for, the others go
    tight = filters.within(torch.tensor([[3.0, 4.0, 1.0], [0.0, 0.0, 0.0]]), 5.0, stays)
    assert tight.tolist() == [[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_running_mean_keeps_what_never_moved() -> None:
    executor = Executor(load(layers()))
    constraints = Constraints(executor, (Bound("gt", norm=0.5), Bound("cb", -0.1, 0.1)))
    weights = {name: w.detach().clone() for name, w in executor.weights.items()}
    constraints.project(weights)
    mean = {name: w.clone() for name, w in weights.items()}
    mean["gt"][:, 3:] *= 1.001
    mean["cb"][0] = 0.11
    constraints.project_beside(mean, weights)
    assert torch.equal(mean["gt"][:, :3], weights["gt"][:, :3])
    assert (norms("gt", mean["gt"].numpy()) <= 0.5).all()
    assert float(mean["cb"].double().abs().max()) <= 0.1


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_bounds_hold_in_half_precision(kind: str) -> None:
    proto = layers()
    executor = Executor(load(proto))
    low, high, most = -0.7001, 0.1001, 0.9003
    stored = getattr(torch, kind)
    halves = Constraints(_as_half(executor, kind), (Bound("cw", low, high), Bound("g*", norm=most)))
    over = 0
    for seed in range(20):
        torch.manual_seed(seed)
        weights = {name: torch.randn_like(w.detach()) for name, w in executor.weights.items()}
        halves.project(weights)
        rounded = halves.rounded(weights)
        for name, value in rounded.items():
            assert torch.equal(value, value.to(stored).to(value.dtype))  # a file can hold it
            assert float((value - weights[name]).abs().max()) <= 0.02
        assert float(rounded["cw"].double().min()) >= low
        assert float(rounded["cw"].double().max()) <= high
        for name in ("gt", "gn"):
            assert (norms(name, rounded[name].numpy()) <= most).all()
            over += int((norms(name, weights[name].to(stored).float().numpy()) > most).sum())
    assert over  # rounding to the nearest would not have held


def _as_half(executor: Executor, kind: str) -> Executor:
    """Return an executor whose weights are stored in half precision."""
    half = Executor(executor.model.copy())
    tensors = half.model.graph.tensors()
    for name in half.weights:
        tensors[name].values = np.asarray(tensors[name].values).astype(
            np.float16 if kind == "float16" else onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
        )
    return half


def test_half_precision_stays_finite() -> None:
    half = _as_half(Executor(load(layers())), "float16")
    weights = {name: torch.full_like(w.detach(), 1e6) for name, w in half.weights.items()}
    assert float(Constraints(half, ()).rounded(weights)["cw"].max()) == 65504.0


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_toward_zero(kind: torch.dtype) -> None:
    values = torch.randn(1000, dtype=torch.float64) * 10 ** torch.linspace(-3, 3, 1000, dtype=torch.float64)
    found = toward_zero(values, kind).double()
    assert (found.abs() <= values.abs()).all()
    nearest = values.to(kind).double()
    assert (
        (found - values).abs() <= torch.finfo(kind).eps * values.abs() + 6e-8
    ).all()  # the latter among the smallest
    assert torch.equal(found[nearest.abs() <= values.abs()], nearest[nearest.abs() <= values.abs()])
    exact = torch.tensor([0.0, -0.5, 1.0, -2.0], dtype=torch.float64)
    assert torch.equal(toward_zero(exact, kind).double(), exact)


def test_frozen_elements_stay_where_the_gradient_is_small() -> None:
    weights = {name: torch.randn(4, 3).requires_grad_() for name in "ab"}
    weights["c"] = torch.randn(2).requires_grad_()  # no gradient: the optimiser leaves it alone
    frozen = Frozen(weights, 0.5)
    for name in "ab":
        weights[name].grad = torch.linspace(-1, 1, 12).reshape(4, 3)
    before = {name: w.detach().clone() for name, w in weights.items()}
    frozen.before()
    with torch.no_grad():
        for weight in weights.values():
            weight += 1
    frozen.after()
    small = (torch.linspace(-1, 1, 12).reshape(4, 3).abs() < 0.5).numpy()
    assert frozen.share == small.mean()
    for name in "ab":
        assert torch.equal(weights[name].detach() == before[name], torch.from_numpy(small))
