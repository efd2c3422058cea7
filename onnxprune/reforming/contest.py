"""Let edits compete with channels: ways to meet the targets, held against each other."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.knapsack import Budget
from onnxprune.allocation.problem import paced
from onnxprune.allocation.targets import too_far
from onnxprune.errors import TargetError
from onnxprune.granularity.edits import Depth
from onnxprune.graph.analysis import analysed
from onnxprune.options import ResolvedOptions
from onnxprune.pipeline.opening import from_model
from onnxprune.pipeline.run import Run
from onnxprune.pipeline.schedule import select_channels
from onnxprune.reforming.base import Base, Scored, apply, edited, fitted
from onnxprune.reforming.prices import DEFAULT_PRICE, BlockMeter, cheapest, price_of, taken
from onnxprune.reforming.study import Study, study
from onnxprune.repair.least_squares import DEPTH
from onnxprune.repair.network import RepairResult, divergences
from onnxprune.surgery import channels as rewrite
from onnxprune.types import FloatArray

FACTORS = (0.1, 0.3, 1.0)
"""Of the price of the last channels, what edits are chosen at."""
FINALISTS = 2
"""Of the ways with edits, how many are repaired as far as can be."""
CORRECTIONS = 3
"""How often edits for a price are chosen, at most."""
TIE = 0.02
"""Share by which losses differ that are taken to be equal: the way with fewer edits is better then."""
ROUNDS = 4
"""How often further edits are looked at, at most."""


@dataclass(frozen=True)
class Contender:
    """One way to meet the targets.

    Attributes:
        run: with the edited model, the channels of it that stay, and the meter of it.
        mended: what is left, repaired; None where that has still to be done.
        loss: divergence of its output on samples held out.
    """

    run: Run
    mended: RepairResult | None = None
    loss: float = math.inf

    @property
    def base(self) -> Base:
        """What channels were chosen from."""
        return self.run.edited

    @property
    def meter(self) -> CostEstimator:
        """The meter of the base."""
        assert self.run.meter is not None
        return self.run.meter


def contend(run: Run, meter: CostEstimator) -> Run:
    """Let other edits than those of channels compete with these, and return what loses least.

    At a price, which is what the last channels that went cost (divergence of the output per share of what is bound), each layer gets
    the edit with the largest surplus; channels do the rest of the way. That is done at some prices below it, and the results, repaired,
    are held against each other on samples held out. Edits are looked at in the original first, then, in further rounds, in what
    the best so far has left, where they save what they will in the end; those that are chosen are made in the original as well.

    Steps of the progressive schedule each go a part of the way like that, and start from the edits of the one before. The last ones, and
    channels alone, then lose their channels by steps.

    Args:
        run: with the original.
        meter: of the original.

    Raises:
        TargetError: the targets cannot be met, neither by channels alone nor with any of these edits.
    """
    contest = _Contest(run)
    best: Contender | None = None
    for goal in _on_the_way(meter, run.options):
        best = contest.met(goal, best)
    best = contest.finished()
    edited = replace(best.base, notes=(*best.base.notes, *contest.notes, contest.summary()))
    return replace(best.run, edited=edited, ready=best.mended)


def _on_the_way(meter: CostEstimator, options: ResolvedOptions) -> Iterator[CostEstimator]:
    """Yield the goals of each step, the last one those of the options; channels are chosen at once for each."""
    at_once = replace(options, schedule="block")
    steps = options.rounds if options.max_drop is None else 1
    for step in range(1, steps + 1):
        yield meter.with_targets(at_once, paced(options, step / steps))


class _Contest:
    """Ways to meet the targets, one after the other, and what became of them."""

    def __init__(self, run: Run) -> None:
        assert run.workspace is not None
        self.run, self.base = run, run.edited
        self.options, self.workspace, self.on_stage = run.options, run.workspace, run.on_stage
        self.told: list[str] = []
        self.notes: tuple[str, ...] = ()
        self.alone: Contender | None = None
        self.others: list[Contender] = []
        self.seen: set[tuple[str, ...]] = set()
        self.bases: dict[tuple[str, str], FloatArray] = {}

    def met(self, goal: CostEstimator, start: Contender | None) -> Contender:
        """Return the best of the ways to meet some goals, of those that are tried.

        Args:
            goal: of the original.
            start: the best for goals that were nearer; None: there were none.

        Raises:
            TargetError: the goals cannot be met.
        """
        self.alone, self.others, self.seen = None, [], set()
        if goal.share < 1:
            self.told.append(f"{goal.share:.0%} of the way")
        elif start is not None:
            self.told.append("all the way")
        best = unmet = None
        try:
            best = self.tried(self.base, goal)
        except TargetError as error:
            unmet = error
            self.told.append(f"channels alone cannot reach the target ({_short(error)})")
        if start is not None and start.base.chosen:
            with contextlib.suppress(TargetError):
                again = self.tried(start.base, start.meter.with_targets(goal.options, goal.share))
                best = again if best is None or _rank(again) < _rank(best) else best
        if start is None or best is None:
            found = study(self.base, self.options, self.workspace, goal, self.on_stage)
            self.notes = found.notes
            price = DEFAULT_PRICE if best is None else price_of(best.run.plan, best.meter)
            best = self.round(best, found, price, goal, whole=True)
        for _ in range(ROUNDS):
            if best is None:
                break
            before, best = best, self.round(best, *self.study(best, goal), goal)
            if best is before:
                break
        if best is None:
            assert unmet is not None
            raise unmet
        return best

    def tried(self, base: Base, meter: CostEstimator) -> Contender:
        """Choose channels from a base, repair what is left layer by layer, and measure what it loses.

        Raises:
            TargetError: the targets cannot be met.
        """
        found = self._mended(Contender(self._selected(base, meter)), depth=1)
        if base.chosen:
            self.others.append(found)
        else:
            self.alone = found
        self.told.append(_told(found))
        return found

    def study(self, best: Contender, meter: CostEstimator) -> tuple[Study, float]:
        """Look at further edits in what the best so far has left; return them and the price."""
        assert best.mended is not None
        left = best.mended.model
        analysis = analysed(left, self.options, self.base.analysis.trace.input_shapes)
        found = study(Base(analysis, left), self.options, self.workspace, meter, self.on_stage)
        rewritten = {s.edit.layer for s in _edits(best)}
        there = set(self.base.analysis.trace.labels)
        free = (
            s
            for s in found.scored
            if s.edit.layer in there and (isinstance(s.edit, Depth) or s.layers <= there - rewritten)
        )
        return replace(found, scored=tuple(free)), price_of(best.run.plan, best.meter)

    def round(
        self, best: Contender | None, found: Study, price: float, meter: CostEstimator, *, whole: bool = False
    ) -> Contender | None:
        """Choose from some edits at a price; return the best that comes of it, or that was there.

        Args:
            best: that was there; its edits stay.
            found: edits.
            price: what the last channels cost.
            meter: of the original.
            whole: whether the edits are of the original, or of what the best has left.
        """
        gauge = BlockMeter(meter if best is None else best.meter, found.scored)
        start = best
        for factor in FACTORS:
            edits = self._enough(start, found, gauge, factor * price, meter, whole)
            key = tuple(sorted(str((s.edit.layer, s.edit)) for s in edits))
            if not edits or key in self.seen:
                continue
            self.seen.add(key)
            other = apply(self.base, edits, self.bases, self.options, self.workspace, self.on_stage)
            if best is not None and self.options.max_drop is None and other.loss >= best.loss:
                self.told.append(f"{len(edits)} layers of another form lose {other.loss:.3g} before any channel goes")
                continue
            try:
                here = self.tried(other, meter.for_model(other.analysis))
            except TargetError as error:
                self.told.append(f"{len(edits)} layers of another form cannot reach the target ({_short(error)})")
                continue
            if best is None or _rank(here) < _rank(best):
                best = here
        return best

    def _enough(
        self, start: Contender | None, found: Study, gauge: BlockMeter, price: float, meter: CostEstimator, whole: bool
    ) -> tuple[Scored, ...]:
        """Choose edits for a price; fewer of them where the goals are measured to be met without any channel going."""
        limits: Budget | None = gauge.budget()
        edits: tuple[Scored, ...] = ()
        for _ in range(CORRECTIONS):
            if limits is None:
                break
            chosen = cheapest(gauge, limits, price)
            if not chosen.any():
                return ()
            edits = self._together(start, taken(found.scored, chosen), found if whole else None)
            made, _ = edited(self.base, edits, self.bases, self.options)
            limits = too_far(meter, made.analysis.model, gauge.predict(chosen))
        return edits

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
        """Repair channels alone, and the best with edits, as far as can be; return the best, of equal ones the one with fewest edits.

        Raises:
            TargetError: by steps none of them can meet the targets.
        """
        last = [*((self.alone,) if self.alone else ()), *sorted(self.others, key=_rank)[:FINALISTS]]
        found: list[Contender] = []
        unmet: TargetError | None = None
        for contender in last:
            try:
                stepped = self._stepped(contender) if self.options.schedule == "progressive" else contender
            except TargetError as error:
                unmet = error
                self.told.append(f"{_named(contender)} cannot reach the target by steps ({_short(error)})")
                continue
            found.append(self._mended(stepped, depth=DEPTH))
            self.told.append(f"layers fitted together: {_told(found[-1])}")
        if not found:
            assert unmet is not None
            raise unmet
        least = min(map(_rank, found)) * (1 + TIE)
        return min((c for c in found if _rank(c) <= least), key=_edit_count)

    def summary(self) -> str:
        """Return what a reader should know."""
        return "held against each other: " + "; ".join(self.told)

    def _selected(self, base: Base, meter: CostEstimator) -> Run:
        """Choose channels from a base."""
        return select_channels(replace(from_model(self.run, base), meter=meter, options=meter.options))

    def _stepped(self, contender: Contender) -> Contender:
        """Choose channels again, by steps."""
        return replace(contender, run=self._selected(contender.base, contender.meter.with_targets(self.options)))

    def _mended(self, contender: Contender, depth: int) -> Contender:
        """Repair what is left, to look at it layer by layer and without augmented samples."""
        run, original = contender.run, self.base.analysis.model
        workspace = self.workspace.plain if depth == 1 else self.workspace
        start = run.start.model
        pruned = rewrite.delete(start.analysis.model, start.analysis.trace, run.left)
        mended = start.repaired(pruned, run.left, workspace, self.options, self.on_stage, depth=depth)
        loss = mended.loss
        towards_something_else = start is not contender.base
        if math.isnan(loss) or towards_something_else:
            loss = divergences(original, [mended.model], workspace.calibration)[0]
        return replace(contender, mended=mended, loss=loss)


def _edits(contender: Contender) -> tuple[Scored, ...]:
    return tuple(s for part in contender.base.chosen for s in part if isinstance(s, Scored))


def _short(error: TargetError) -> str:
    """Return the first reason: the others say what holds channels."""
    return str(error.why).split("; ")[0]


def _edit_count(contender: Contender) -> int:
    return sum(len(part) for part in contender.base.chosen)


def _named(contender: Contender) -> str:
    edits = _edit_count(contender)
    return f"{edits} layers of another form" if edits else "channels alone"


def _told(contender: Contender) -> str:
    how = "with" if contender.base.chosen else "by"
    return f"divergence {contender.loss:.3g} {how} {_named(contender)}"


def _rank(contender: Contender) -> float:
    """Return what the best has least of: the loss, or where that is bound what is minimised."""
    options = contender.meter.options
    if options.max_drop is None:
        return contender.loss
    return contender.meter.predict(contender.run.plan.keep)[options.minimise]
