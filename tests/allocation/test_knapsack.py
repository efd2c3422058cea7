"""Allocation by measured loss, against an enumeration of everything that could go."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from graphs import Builder, load

from onnxprune.allocation.knapsack import Amounts, Budget, PruningRules, allocate_by_loss, holds
from onnxprune.errors import TargetError
from onnxprune.graph.cost import CostModel
from onnxprune.graph.trace import trace as trace_model
from onnxprune.types import BoolArray, Curve, FloatArray, Group, Trace


@dataclass
class Problem:
    """A model whose groups can lose channels, and what each loses then."""

    trace: Trace
    cost: CostModel
    curves: tuple[Curve, ...]

    @property
    def dense(self) -> BoolArray:
        return np.ones(self.trace.n_channels, dtype=bool)

    def limits(self, macs: float | None = None, params: float | None = None) -> Budget:
        """Return limits from shares of what there is."""
        whole, shares = self.predict(self.dense), {"flops": macs, "params": params}
        return {name: share * whole[name] for name, share in shares.items() if share is not None}

    def predict(self, keep: BoolArray) -> Amounts:
        return dict(zip(("flops", "params"), self.cost.totals(keep), strict=True))

    def lost(self, keep: BoolArray) -> float:
        return sum(float(curve.at(np.array([(~keep[curve.order]).sum()]))[0]) for curve in self.curves)

    def allocate(self, limits: Budget, rules: PruningRules | None = None, keep: BoolArray | None = None) -> BoolArray:
        rules = rules or PruningRules(1)
        found = allocate_by_loss(
            self.trace, self.predict, self.curves, self.dense if keep is None else keep, rules, limits
        )
        assert holds(self.predict(found), limits)
        return found

    def best(self, limits: Budget, rules: PruningRules | None = None) -> tuple[float, BoolArray]:
        """Return the least loss of all choices that the rules allow and that hold the limits."""
        rules = rules or PruningRules(1)
        counts = []
        for curve in self.curves:
            size = self.group(curve).channels.size
            least = max(rules.min_channels, int(np.ceil(size * (1 - rules.max_ratio) - 1e-9)), 1)
            counts.append(
                [n for n in range(curve.order.size + 1) if n == 0 or (size - n >= least and not (size - n) % rules.round_to)]
            )  # fmt: skip
        found = (np.inf, self.dense)
        for numbers in itertools.product(*counts):
            keep = self.dense
            for curve, number in zip(self.curves, numbers, strict=True):
                keep[curve.order[:number]] = False
            if holds(self.predict(keep), limits):
                found = min(found, (self.lost(keep), keep), key=lambda pair: pair[0])
        return found

    def group(self, curve: Curve) -> Group:
        return next(group for group in self.trace.groups if group.name == curve.group)


def curve_of(group: Group, losses: FloatArray, rng: np.random.Generator) -> Curve:
    order = rng.permutation(group.channels)[: losses.size]
    return Curve(group.name, order, np.arange(losses.size + 1), np.concatenate([[0.0], losses]))


def line(
    widths: Sequence[int], seed: int = 0, *, kind: str = "convex", strides: Sequence[int] = (), size: int = 8
) -> Problem:
    """Return a chain of Conv whose groups have random curves."""
    b = Builder((3, size, size))
    x = "x"
    for n, width in enumerate(widths):
        x = b.node("Relu", [b.conv(x, width, 3, stride=strides[n] if strides else 1)])
    return problem(b, b.conv(x, 4), seed, kind)


def problem(b: Builder, y: str, seed: int, kind: str) -> Problem:
    trace = trace_model(load(b.build(y)))
    rng = np.random.default_rng(seed)
    curves = []
    for group in trace.groups:
        if trace.pinned[group.channels].all():
            continue
        steps = rng.exponential(1.0, group.channels.size - 1) * 10 ** rng.uniform(-1, 1)
        if kind == "convex":
            steps.sort()
        elif kind == "steep":
            steps = np.sort(steps)[::-1]
        curves.append(curve_of(group, np.cumsum(steps), rng))
    return Problem(trace, CostModel(trace), tuple(curves))


def separable(widths: Sequence[int], prices: Sequence[float]) -> Problem:
    """Return branches of Conv on the input that are summed up by pinned outputs: each channel saves the same, whatever else goes."""
    b = Builder((3, 8, 8))
    outputs = [b.conv(b.node("Relu", [b.conv("x", width)]), 4) for width in widths]
    trace = trace_model(load(b.build(*outputs)))
    free = [group for group in trace.groups if not trace.pinned[group.channels].all()]
    rng = np.random.default_rng(0)
    curves = [
        curve_of(group, np.cumsum(np.full(group.channels.size - 1, price)), rng)
        for group, price in zip(free, prices, strict=True)
    ]
    return Problem(trace, CostModel(trace), tuple(curves))


# -------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.3])
@pytest.mark.parametrize("kind", ["convex", "any", "steep"])
def test_loss_is_near_the_least_there_is(kind, share):
    over = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        widths = rng.integers(3, 8, rng.integers(2, 5)).tolist()
        found = line(widths, seed, kind=kind)
        limits = found.limits(macs=share)
        best, _ = found.best(limits)
        if np.isinf(best):
            continue
        lost = found.lost(found.allocate(limits))
        assert lost >= best - 1e-9
        over.append(lost / best if best else 1.0)
    assert len(over) >= 6
    assert np.mean(over) < 1.05 if kind == "convex" else np.mean(over) < 1.15
    assert max(over) < 1.25 if kind == "convex" else max(over) < 1.6


def test_separable_problems_are_solved_exactly():
    for prices, share in (((1.0, 2.0, 5.0), 0.8), ((3.0, 1.0, 2.0), 0.5), ((1.0, 1.5, 4.0), 0.25)):
        found = separable((8, 8, 8), prices)
        limits = found.limits(macs=share)
        best, _ = found.best(limits)
        assert found.lost(found.allocate(limits)) == pytest.approx(best)


def test_the_cheap_group_goes_first():
    found = separable((8, 8), (1.0, 100.0))
    keep = found.allocate(found.limits(macs=0.6))
    gone = [int((~keep[curve.order]).sum()) for curve in found.curves]
    assert gone[0] == 7
    assert gone[1] <= 1


def test_channels_go_in_the_order_of_the_curve():
    found = line((6, 7, 5))
    for share in (0.8, 0.5, 0.3):
        keep = found.allocate(found.limits(macs=share))
        for curve in found.curves:
            alive = keep[curve.order]
            assert (np.diff(alive.astype(int)) >= 0).all()


def test_a_step_before_a_flat_part_is_not_in_the_way():
    """What counts is a group's convex hull: four channels cost what one does."""
    b = Builder((3, 8, 8))
    outputs = [b.conv(b.node("Relu", [b.conv("x", 8)]), 4) for _ in range(2)]
    trace = trace_model(load(b.build(*outputs)))
    one, two = (group for group in trace.groups if not trace.pinned[group.channels].all())
    rng = np.random.default_rng(0)
    losses = np.array([1.0, 1, 1, 1, 9, 9, 9]), np.array([0.5, 1, 1.5, 2, 2.5, 3, 3.5])
    found = Problem(
        trace, CostModel(trace), tuple(curve_of(g, values, rng) for g, values in zip((one, two), losses, strict=True))
    )
    limits = found.limits(macs=0.75)  # four channels of either
    assert found.best(limits)[0] == 1
    assert found.lost(found.allocate(limits)) == 1


def test_nothing_goes_where_all_limits_hold():
    found = line((4, 5))
    assert found.allocate({}).all()
    assert found.allocate(found.limits(macs=1.0, params=1.0)).all()


def test_nothing_goes_that_is_not_needed():
    """Given back whatever the limits allow: no single block can come back."""
    for seed in range(5):
        found = line((6, 5, 6), seed, kind="any")
        limits = found.limits(macs=0.5)
        keep = found.allocate(limits)
        for curve in found.curves:
            gone = curve.order[~keep[curve.order]]
            if gone.size:
                more = keep.copy()
                more[gone[-1]] = True
                assert not holds(found.predict(more), limits) or found.lost(more) == found.lost(keep)


@pytest.mark.parametrize("round_to", [2, 4])
def test_survivors_are_a_multiple(round_to):
    for seed in range(4):
        found = line((8, 7, 8), seed, kind="any")
        limits = found.limits(macs=0.6)
        rules = PruningRules(round_to)
        keep = found.allocate(limits, rules)
        for curve in found.curves:
            left = int(keep[found.group(curve).channels].sum())
            assert left % round_to == 0 or left == found.group(curve).channels.size
        best, _ = found.best(limits, rules)
        assert best - 1e-9 <= found.lost(keep) <= 1.3 * best


def test_a_group_keeps_what_the_rules_say():
    found = line((8, 8, 8), kind="any")
    for rules in (
        PruningRules(1, min_channels=5),
        PruningRules(1, max_ratio=0.4),
        PruningRules(2, min_channels=3, max_ratio=0.5),
    ):
        limits = found.limits(macs=0.55)
        keep = found.allocate(limits, rules)
        for curve in found.curves:
            size = found.group(curve).channels.size
            left = int(keep[found.group(curve).channels].sum())
            assert left >= max(rules.min_channels, size * (1 - rules.max_ratio))
        best, _ = found.best(limits, rules)
        assert found.lost(keep) <= 1.3 * best


def test_a_group_without_a_curve_stays():
    found = line((6, 6, 6))
    some = Problem(found.trace, found.cost, found.curves[1:])
    keep = some.allocate(some.limits(macs=0.6))
    assert keep[found.group(found.curves[0]).channels].all()


def test_what_is_not_in_the_order_stays():
    found = line((6, 6))
    curves = tuple(Curve(c.group, c.order[:2], c.counts[:3], c.losses[:3]) for c in found.curves)
    some = Problem(found.trace, found.cost, curves)
    limits = some.limits(macs=0.6)
    keep = some.allocate(limits)
    assert set(np.flatnonzero(~keep)) <= {channel for curve in curves for channel in curve.order}


def test_what_is_gone_already_counts():
    """A progressive step starts from what is left, on the part of the curves that is left."""
    found = line((8, 8), kind="convex")
    first = found.allocate(found.limits(macs=0.8))
    second = found.allocate(found.limits(macs=0.4), keep=first)
    assert not (second & ~first).any()
    straight = found.allocate(found.limits(macs=0.4))
    assert found.lost(second) <= 1.3 * found.lost(straight)


@pytest.mark.parametrize(("macs", "params"), [(0.6, 0.6), (0.4, 0.4), (0.5, 0.8), (0.9, 0.4), (None, 0.5)])
def test_two_limits(macs, params):
    """A head that holds most parameters, and layers that hold most operations."""
    over = []
    for seed in range(6):
        b = Builder((3, 8, 8))
        x = b.node("Relu", [b.conv(b.node("Relu", [b.conv("x", 6, 3)]), 6, 3)])
        hidden = b.node("Relu", [b.gemm(b.flatten(b.pool(x, "MaxPool", 2, 2)), 12)])
        found = problem(b, b.gemm(hidden, 4), seed, "convex")
        limits = found.limits(macs=macs, params=params)
        best, _ = found.best(limits)
        over.append(found.lost(found.allocate(limits)) / best)
    assert np.mean(over) < 1.06
    assert max(over) < 1.25


def test_one_layer_that_holds_only_parameters():
    """The first limit is out of reach of the only group that helps with the second one."""
    b = Builder((3, 16, 16))
    one = b.conv(b.node("Relu", [b.conv("x", 10)]), 4)  # operations
    two = b.gemm(b.node("Relu", [b.gemm(b.flatten(b.global_pool("x")), 64)]), 32)  # parameters
    trace = trace_model(load(b.build(one, two)))
    free = [group for group in trace.groups if not trace.pinned[group.channels].all()]
    rng = np.random.default_rng(0)
    curves = [curve_of(g, np.cumsum(np.arange(1, g.channels.size, dtype=float)), rng) for g in free]
    found = Problem(trace, CostModel(trace), tuple(curves))
    limits = found.limits(macs=0.6, params=0.7)
    best, _ = found.best(limits)
    assert found.lost(found.allocate(limits)) <= 1.1 * best


@pytest.mark.parametrize(
    ("rules", "macs", "params"),
    [(PruningRules(1), 0.01, None), (PruningRules(8), 0.5, None), (PruningRules(1, max_ratio=0.1), None, 0.5)],
)
def test_what_cannot_be_reached_is_an_error(rules, macs, params):
    found = line((6, 6))
    with pytest.raises(TargetError, match="cannot be reached") as caught:
        found.allocate(found.limits(macs=macs, params=params), rules)
    assert "was asked" in caught.value.why
    assert caught.value.hint


def test_no_tensor_loses_all_its_channels():
    b = Builder((3, 8, 8))
    left, right = b.split(b.conv("x", 8), (3, 5))
    y = b.concat([b.node("Relu", [left]), b.node("Sigmoid", [right])])
    found = problem(b, b.conv(y, 4), 0, "any")
    keep = found.allocate(found.limits(macs=0.35))
    assert all(keep[extent].any() for extent in found.trace.extents)


def test_the_same_problem_has_the_same_answer():
    one, two = (line((8, 7, 6), 3, kind="any") for _ in range(2))
    limits = one.limits(macs=0.5)
    np.testing.assert_array_equal(one.allocate(limits), two.allocate(limits))
