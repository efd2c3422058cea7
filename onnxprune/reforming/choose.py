"""Choose edits: alone, or in competition with channels."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune import sensitivity
from onnxprune.analysis import Analysis, analyse, removed
from onnxprune.comparison import Measure, Stage, quiet
from onnxprune.data import DataLike, Preprocess
from onnxprune.errors import OptionError, TargetError
from onnxprune.granularity.edits import Depth, Merged
from onnxprune.model import Model
from onnxprune.options import QUANTITIES, Options
from onnxprune.pruning import budget, rewrite
from onnxprune.pruning.repair import DEPTH
from onnxprune.reforming.base import Base, Scored, apply, edited, fitted
from onnxprune.reforming.study import Study, study
from onnxprune.search import Choice, Mended, Workspace, choose, opened, settings, workspace_for
from onnxprune.targets import Meter, meet
from onnxprune.types import BoolArray, FloatArray, Plan

PRICES = (1e-9, 1e9)
HALVINGS = 60


class BlockMeter:
    """Predicts and measures what a choice of edits costs, as `Meter` does for channels.

    Args:
        meter: of the base.
        scored: edits, of which some are chosen.
    """

    def __init__(self, meter: Meter, scored: Sequence[Scored]) -> None:
        self.meter, self.wanted, self.whole = meter, meter.wanted, meter.whole
        self.start = np.array(meter.totals(np.ones(meter.analysis.trace.n_channels, dtype=bool)))
        if "latency" in meter.wanted:
            self.start[4] = meter.whole["latency"]
        size = self.start[2] / max(self.start[1], 1.0)
        self._saves = np.array(
            [
                [s.saving.macs, s.saving.params, s.saving.params * size, 0.0, s.saving.before - s.saving.after]
                for s in scored
            ]
        ).reshape(len(scored), 5)

    def goals(self) -> budget.Limits:
        """Return the bounds."""
        return self.meter.goals()

    def totals(self, chosen: BoolArray) -> tuple[float, ...]:
        """Predict amounts in the order of `budget.Limits`."""
        return tuple(np.maximum(self.start - self._saves[chosen].sum(axis=0), 0.0).tolist())

    def of(self, candidate: Model) -> dict[str, float]:
        """Measure a model."""
        return self.meter.of(candidate)

    def gains(self, limits: budget.Limits | None = None) -> FloatArray:
        """Return what each edit saves of what is bound, as shares of the whole, added up."""
        bounds = (limits or self.goals()).bounds
        whole = np.maximum(self.start, 1e-30)
        here = [n for n, bound in enumerate(bounds) if bound is not None]
        if not here:
            here = [0]
        return np.asarray((self._saves[:, here] / whole[here]).sum(axis=1))


def pick(scored: Sequence[Scored], gains: FloatArray, price: float) -> BoolArray:
    """Choose edits for a price: what a share of the cost is worth in divergence of the output. At most one in each layer.

    Of each layer the edit with the largest surplus (price times gain, less loss); a branch goes where that is worth more than all that
    would be done within it.
    """
    chosen = np.zeros(len(scored), dtype=bool)
    surplus = price * gains - np.array([s.loss for s in scored])
    taken: dict[int, int] = {}
    order = np.argsort(-surplus, kind="stable")
    for number in order:
        if surplus[number] <= 0:
            break
        if isinstance(scored[number].edit, Depth | Merged):
            continue
        nodes = scored[number].candidate.nodes
        if not any(n in taken for n in nodes):
            taken.update(dict.fromkeys(nodes, int(number)))
    for number in order:
        if surplus[number] <= 0:
            break
        if not isinstance(scored[number].edit, Depth | Merged):
            continue
        inside = {taken[n] for n in scored[number].candidate.nodes if n in taken}
        if surplus[number] > sum(float(surplus[i]) for i in inside):
            taken = {n: i for n, i in taken.items() if i not in inside}
            taken.update(dict.fromkeys(scored[number].candidate.nodes, int(number)))
    chosen[sorted(set(taken.values()))] = True
    return chosen


def alone(base: Base, options: Options, workspace: Workspace, meter: Meter, on_stage: Stage = quiet) -> Base:
    """Choose edits so that they meet the targets without any channel going: at once, or in steps, each chosen by looking at what the
    one before has left.

    Raises:
        TargetError: they cannot.
    """
    rounds = options.steps if options.schedule == "progressive" else 1
    start = np.array(meter.totals(np.ones(meter.analysis.trace.n_channels, dtype=bool)))
    original = meter
    for number in range(1, rounds + 1):
        found = study(base, options, workspace, meter, on_stage)
        share = number / rounds if options.pace == "linear" else 1 - (1 - number / rounds) ** 3
        bounds = (
            None if goal is None else amount - share * (amount - min(goal, amount))
            for amount, goal in zip(start.tolist(), original.goals().bounds, strict=True)
        )
        limits = None if number == rounds else budget.Limits(*bounds)
        base = _round(base, found, options, workspace, meter, limits, on_stage)
        meter = original.on(base.analysis)
    return base


def _round(
    base: Base,
    found: Study,
    options: Options,
    workspace: Workspace,
    meter: Meter,
    limits: budget.Limits | None,
    on_stage: Stage,
) -> Base:
    """Choose edits that keep some limits as predicted, or without any the goals as measured."""
    gauge = BlockMeter(meter, found.scored)
    gains = gauge.gains()

    def allocate(limits: budget.Limits) -> BoolArray:
        low, high = PRICES
        most = pick(found.scored, gains, high)
        if not limits.hold(*gauge.totals(most)):
            reached = gauge.totals(most)
            raise TargetError(
                "the target cannot be reached",
                why="; ".join(
                    f"{value:.4g} is the least, {bound:.4g} was asked"
                    for value, bound in limits.pairs(reached)
                    if value > bound
                )
                + f", with {int(most.sum())} layers of another form",
                hint="ask for less, or let channels go as well: --granularity auto",
            )
        for _ in range(HALVINGS):
            middle = math.sqrt(low * high)
            holds = limits.hold(*gauge.totals(pick(found.scored, gains, middle)))
            low, high = (low, middle) if holds else (middle, high)
        return pick(found.scored, gains, high)

    def build(chosen: BoolArray) -> Model:
        return edited(base, _taken(found, chosen), found.bases, options)[0].analysis.model

    chosen = allocate(limits) if limits is not None else meet(allocate, build, gauge)
    return apply(base, _taken(found, chosen), found.bases, options, workspace, on_stage)


def _taken(found: Study, chosen: BoolArray) -> tuple[Scored, ...]:
    return tuple(s for s, flag in zip(found.scored, chosen, strict=True) if flag)


@dataclass(frozen=True)
class Contender:
    """One way to meet the targets.

    Attributes:
        base: what channels were chosen from.
        choice: which of them stay.
        meter: of the base.
        mended: what is left, repaired; None where that has still to be done.
        loss: divergence of its output on samples held out.
    """

    base: Base
    choice: Choice
    meter: Meter
    mended: Mended | None = None
    loss: float = math.inf


def decide(
    base: Base,
    options: Options,
    workspace: Workspace | None,
    meter: Meter,
    choose_from: Callable[[Base, Meter], Choice],
    on_stage: Stage = quiet,
) -> Contender:
    """Choose what goes, of what the options let go.

    Args:
        base: the original.
        options: the dials, resolved.
        workspace: calibration data; None without.
        meter: of the original.
        choose_from: chooses channels from a base so that the targets are met.
        on_stage: called as it goes on.

    Raises:
        TargetError: the targets cannot be met.
    """
    if not options.blocks:
        return Contender(base, choose_from(base, meter), meter)
    assert workspace is not None  # `Options.resolved` has seen to it
    if meter.is_elsewhere:
        raise OptionError(
            "--latency-table does not go with other granularities than filter",
            why="layers of another form are timed on this machine, the table says what channels take on another one",
            hint="run it on the target machine without --latency-table, or leave out --granularity",
        )
    if "filter" in options.granularity:
        found = contend(base, options, workspace, meter, choose_from, on_stage)
    else:
        last = alone(base, options, workspace, meter, on_stage)
        keep = np.ones(last.analysis.trace.n_channels, dtype=bool)
        plan = Plan(keep, base.analysis.model.digest, settings(base.analysis, options))
        found = Contender(last, Choice(plan, last.analysis, keep), meter.on(last.analysis))
    plan = found.choice.plan
    path = (*plan.path[:-1], removed(found.base.analysis, plan.keep, base.analysis))
    plan = replace(plan, path=path, blocks=found.base.blocks)
    return replace(found, choice=replace(found.choice, plan=plan))


def contend(
    base: Base,
    options: Options,
    workspace: Workspace,
    meter: Meter,
    choose_from: Callable[[Base, Meter], Choice],
    on_stage: Stage = quiet,
) -> Contender:
    """Let other edits than those of channels compete with these, and return what loses least.

    At a price, which is what the last channels that went cost (divergence of the output per share of what is bound), each layer gets
    the edit with the largest surplus; channels do the rest of the way. That is done at some prices below it, and the results, repaired,
    are held against each other on samples held out. Edits are looked at in the original first, then, in further rounds, in what
    the best so far has left, where they save what they will in the end; those that are chosen are made in the original as well.

    Args:
        base: the original.
        options: the dials.
        workspace: calibration data.
        meter: of the original.
        choose_from: chooses channels from a base so that the targets are met.
        on_stage: called as it goes on.

    Raises:
        TargetError: the targets cannot be met, neither by channels alone nor with any of these edits.
    """
    contest = _Contest(base, options, workspace, choose_from, on_stage)
    best = unmet = None
    try:
        best = contest.tried(base, meter)
    except TargetError as error:
        unmet = error
        contest.told.append(f"channels alone cannot reach the target ({_short(error)})")
    found, price = study(base, options, workspace, meter, on_stage), DEFAULT_PRICE if best is None else price_of(best)
    notes = found.notes
    best = contest.round(best, found, price, meter, whole=True)
    for _ in range(ROUNDS):
        if best is None:
            break
        before, best = best, contest.round(best, *contest.study(best, meter), meter)
        if best is before:
            break
    if best is None:
        assert unmet is not None
        raise unmet
    best = contest.finished()
    return replace(best, base=replace(best.base, notes=(*best.base.notes, *notes, contest.summary())))


FACTORS = (0.1, 0.3, 1.0)
"""Of the price of the last channels, what edits are chosen at."""
FINALISTS = 2
"""Of the ways with edits, how many are repaired as far as can be."""
ROUNDS = 4
"""How often further edits are looked at, at most."""


class _Contest:
    """Ways to meet the targets, one after the other, and what became of them."""

    def __init__(
        self,
        base: Base,
        options: Options,
        workspace: Workspace,
        choose_from: Callable[[Base, Meter], Choice],
        on_stage: Stage,
    ) -> None:
        self.base, self.options, self.workspace = base, options, workspace
        self.choose_from, self.on_stage = choose_from, on_stage
        self.told: list[str] = []
        self.alone: Contender | None = None
        self.others: list[Contender] = []
        self.seen: set[tuple[str, ...]] = set()
        self.bases: dict[tuple[str, str], FloatArray] = {}

    def tried(self, base: Base, meter: Meter) -> Contender:
        """Choose channels from a base, repair what is left layer by layer, and measure what it loses.

        Raises:
            TargetError: the targets cannot be met.
        """
        found = self._mended(Contender(base, self.choose_from(base, meter), meter), depth=1)
        if base.chosen:
            self.others.append(found)
        else:
            self.alone = found
        self.told.append(_told(found))
        return found

    def study(self, best: Contender, meter: Meter) -> tuple[Study, float]:
        """Look at further edits in what the best so far has left; return them and the price."""
        assert best.mended is not None
        options, left, known = self.options, best.mended.model, self.base.analysis.trace.input_shapes
        analysis = analyse(left, options.ignore, known, options.grouped, options.heads, options.norms)
        found = study(Base(analysis, left), options, self.workspace, meter, self.on_stage)
        taken = {s.edit.layer for s in _edits(best)}
        there = set(self.base.analysis.trace.labels)
        free = (
            s
            for s in found.scored
            if s.edit.layer in there and (isinstance(s.edit, Depth) or s.layers <= there - taken)
        )
        return replace(found, scored=tuple(free)), price_of(best)

    def round(
        self, best: Contender | None, found: Study, price: float, meter: Meter, *, whole: bool = False
    ) -> Contender | None:
        """Choose from some edits at a price; return the best that comes of it, or that was there.

        Args:
            best: that was there; its edits stay.
            found: edits.
            price: what the last channels cost.
            meter: of the original.
            whole: whether the edits are of the original, or of what the best has left.
        """
        gains = BlockMeter(meter, found.scored).gains()
        start = best
        for factor in FACTORS:
            chosen = pick(found.scored, gains, factor * price)
            edits = self._together(start, _taken(found, chosen), None if not whole else found)
            key = tuple(sorted(str((s.edit.layer, s.edit)) for s in edits))
            if not chosen.any() or key in self.seen:
                continue
            self.seen.add(key)
            other = apply(self.base, edits, self.bases, self.options, self.workspace, self.on_stage)
            try:
                here = self.tried(other, meter.on(other.analysis))
            except TargetError as error:
                self.told.append(f"{len(edits)} layers of another form cannot reach the target ({_short(error)})")
                continue
            if best is None or _rank(here) < _rank(best):
                best = here
        return best

    def _together(self, best: Contender | None, scored: tuple[Scored, ...], whole: Study | None) -> tuple[Scored, ...]:
        """Return the edits of the best so far and further ones, in the terms of the original; `whole`: where that is what they are of."""
        if whole is not None:
            self._keep(whole.bases)
            return scored
        assert best is not None
        placed, bases = fitted(self.base.analysis, [s.edit for s in scored], self.options, self.workspace, anew=True)
        self._keep(bases)
        further = [
            replace(s, candidate=replace(s.candidate, edit=edit))
            for s, edit in zip(scored, placed, strict=True)
            if edit is not None
        ]
        gone = {label for s in further if isinstance(s.edit, Depth) for label in s.layers}
        return (*(s for s in _edits(best) if s.edit.layer not in gone), *further)

    def _keep(self, bases: Mapping[tuple[str, str], FloatArray]) -> None:
        """Remember directions, all of them in the original: of each layer as many as any edit has asked for."""
        for key, basis in bases.items():
            if key not in self.bases or basis.shape[-1] > self.bases[key].shape[-1]:
                self.bases[key] = basis

    def finished(self) -> Contender:
        """Repair channels alone, and the best with edits, as far as can be; return the best."""
        last = [*((self.alone,) if self.alone else ()), *sorted(self.others, key=_rank)[:FINALISTS]]
        found = [self._mended(contender, depth=DEPTH) for contender in last]
        self.told += [f"layers fitted together: {_told(contender)}" for contender in found]
        return min(found, key=_rank)

    def summary(self) -> str:
        """Return what a reader should know."""
        return "held against each other: " + "; ".join(self.told)

    def _mended(self, contender: Contender, depth: int) -> Contender:
        choice, original = contender.choice, self.base.analysis.model
        pruned = rewrite.delete(choice.start.model, choice.start.trace, choice.keep)
        mended = contender.base.mended(
            choice.start, pruned, choice.keep, self.workspace, self.options, self.on_stage, depth=depth
        )
        loss = sensitivity.losses(original, [mended.model], self.workspace.calibration)[0]
        return replace(contender, mended=mended, loss=loss)


def _edits(contender: Contender) -> tuple[Scored, ...]:
    return tuple(s for part in contender.base.chosen for s in part if isinstance(s, Scored))


def _short(error: TargetError) -> str:
    """Return the first reason: the others say what holds channels."""
    return str(error.why).split("; ")[0]


def _told(contender: Contender) -> str:
    edits = sum(len(part) for part in contender.base.chosen)
    return f"divergence {contender.loss:.3g} " + (
        f"with {edits} layers of another form" if edits else "by channels alone"
    )


def _rank(contender: Contender) -> float:
    """Return what the best has least of: the loss, or where that is bound what is minimised."""
    options = contender.meter.options
    if options.max_drop is None:
        return contender.loss
    return contender.meter.totals(contender.choice.plan.keep)[QUANTITIES.index(options.minimise)]


def price_of(contender: Contender) -> float:
    """Return what the last channels to go have cost: divergence of the output per share of what is bound, the median over the groups."""
    plan, meter = contender.choice.plan, contender.meter
    curves = {curve.group: curve for curve in plan.curves}
    whole = np.maximum(BlockMeter(meter, ()).start, 1e-30)
    bound = [n for n, limit in enumerate(meter.goals().bounds) if limit is not None] or [0]

    def cost(keep: BoolArray) -> float:
        return float((np.array(meter.totals(keep))[bound] / whole[bound]).sum())

    here = cost(plan.keep)
    ratios = []
    for group in meter.analysis.trace.groups:
        curve = curves.get(group.name)
        gone = 0 if curve is None else int((~plan.keep[curve.order]).sum())
        if curve is None or not gone:
            continue
        back = max(1, min(gone, curve.order.size // 8))
        more = plan.keep.copy()
        more[curve.order[gone - back : gone]] = True
        lost = curve.at(np.array([gone - back, gone]))
        saved = cost(more) - here
        if saved > 0:
            ratios.append(float(lost[1] - lost[0]) / saved)
    return float(np.median(ratios)) if ratios else DEFAULT_PRICE


DEFAULT_PRICE = 0.1
"""Divergence per share of the cost, where the channels' own price is not known."""


def plan(
    model: str | os.PathLike[str],
    options: Options,
    data: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    on_stage: Stage = quiet,
    measure: Measure | None = None,
    latency_table: str | os.PathLike[str] | None = None,
) -> tuple[Analysis, Contender]:
    """Load a model and choose what would go; return both."""
    analysis, given = opened(model, options, data, preprocess, on_stage)
    shapes = None if given is None else given.shapes()
    meter = Meter(analysis, options, measure or Measure(), shapes=shapes, table=latency_table, on_stage=on_stage)
    resolved = options.resolved(given is not None)
    with contextlib.ExitStack() as scope:
        workspace = None if given is None else scope.enter_context(workspace_for(given, analysis, options))

        def choose_from(base: Base, meter: Meter) -> Choice:
            return choose(base.analysis, options, on_stage, workspace, meter=meter, reference=base.reference)

        return analysis, decide(Base(analysis, analysis.model), resolved, workspace, meter, choose_from, on_stage)
