"""Compare ways to meet the targets: channels alone, and channels after edits that are chosen at several Lagrange multipliers."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field, replace

from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.edit_choice import DEFAULT_MULTIPLIER, EditEstimator, ScoredEdit, multiplier_of, worth
from onnxprune.allocation.edit_study import study
from onnxprune.allocation.knapsack import Budget
from onnxprune.allocation.problem import paced
from onnxprune.allocation.targets import too_far
from onnxprune.calibration.workspace import Workspace
from onnxprune.errors import TargetError
from onnxprune.graph.analysis import analysed
from onnxprune.options import ResolvedOptions
from onnxprune.pipeline.edited_model import EditedModel, apply, edited, refitted
from onnxprune.pipeline.opening import from_model
from onnxprune.pipeline.run import Run
from onnxprune.pipeline.schedule import select_channels
from onnxprune.progress import ProgressCallback
from onnxprune.repair.least_squares import DEPTH
from onnxprune.repair.network import RepairResult, divergences
from onnxprune.surgery import channels as rewrite

FACTORS = (0.1, 0.3, 1.0)
"""Shares of the Lagrange multiplier of the channels at which edits are chosen."""
FINALISTS = 2
"""Solutions with edits that get the full repair."""
CORRECTIONS = 3
"""How often edits are chosen for one multiplier, at most."""
TIE = 0.02
"""Share by which losses differ that count as equal: the solution with fewer edits is taken then."""
ROUNDS = 4
"""Rounds in which further edits are looked for, at most."""


@dataclass(frozen=True)
class Solution:
    """One way to meet the targets.

    Attributes:
        run: with the edited model, the channels of it that stay, and its cost estimator.
        mended: what is left, repaired; None where that has still to be done.
        loss: divergence of the output on held-out samples.
    """

    run: Run
    mended: RepairResult | None = None
    loss: float = math.inf

    @property
    def base(self) -> EditedModel:
        """The model that channels were chosen from."""
        return self.run.edited

    @property
    def meter(self) -> CostEstimator:
        """The cost estimator of that model."""
        assert self.run.meter is not None
        return self.run.meter

    def __str__(self) -> str:
        return _count(self.base.edits)

    @property
    def rank(self) -> float:
        """What the best solution has least of: the loss, or where that is bound the quantity that is minimized."""
        options = self.meter.options
        if options.max_drop is None:
            return self.loss
        return self.meter.predict(self.run.plan.keep)[options.minimise]


def best_solution(run: Run, meter: CostEstimator) -> Run:
    """Let edits compete with channels, and return the solution with the least loss.

    The Lagrange multiplier is what the last channels that went have cost: divergence of the output per share of what is bound. At some
    shares of it the edits with the largest net gain are applied, channels do the rest, and the results, repaired, are compared on held-out
    samples. Edits are looked for in the original first, then, in further rounds, in what the best solution has left, where they save what
    they will in the end; the edits that are chosen are applied to the original as well.

    Each step of the progressive schedule goes a part of the way like that, and starts from the edits of the one before. The last
    solutions, and channels alone, then lose their channels by steps.

    Args:
        run: with the original.
        meter: of the original.

    Raises:
        TargetError: the targets cannot be met, neither by channels alone nor with any of these edits.
    """
    assert run.workspace is not None
    options = run.options
    search = Search(run, run.edited, options, run.workspace, run.on_stage)
    at_once = replace(options, schedule="block")
    steps = options.rounds if options.max_drop is None else 1
    best: Solution | None = None
    for step in range(1, steps + 1):
        best = search.step(meter.with_targets(at_once, paced(options, step / steps)), best)
    best = search.finished()
    notes = (*best.base.notes, *search.notes, f"compared on held-out samples: {'; '.join(search.told)}")
    return replace(best.run, edited=replace(best.base, notes=notes), ready=best.mended)


@dataclass
class Search:
    """Solutions of the current step, and what became of all that were tried."""

    run: Run
    base: EditedModel
    options: ResolvedOptions
    workspace: Workspace
    on_stage: ProgressCallback
    told: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    alone: Solution | None = None
    others: list[Solution] = field(default_factory=list)
    seen: set[tuple[str, ...]] = field(default_factory=set)

    def step(self, goal: CostEstimator, start: Solution | None) -> Solution:
        """Return the best solution that meets some goals.

        Args:
            goal: of the original.
            start: the best solution of the step before.

        Raises:
            TargetError: the goals cannot be met.
        """
        self.alone, self.others, self.seen = None, [], set()
        if goal.share < 1 or start is not None:
            self.told.append(f"{goal.share:.0%} of the way")
        best = unmet = None
        try:
            best = self.tried(self.base, goal)
        except TargetError as error:
            unmet = error
            self.told.append(f"channels alone cannot reach the target ({_reason(error)})")
        if start is not None and start.base.chosen:
            with contextlib.suppress(TargetError):
                best = _better(best, self.tried(start.base, start.meter.with_targets(goal.options, goal.share)))
        if start is None or best is None:
            scored, self.notes = study(self.base.analysis, self.options, self.workspace, goal.config, self.on_stage)
            best = self.with_edits(best, goal, EditEstimator(goal if best is None else best.meter, scored))
        for _ in range(ROUNDS):
            if best is None:
                break
            before, best = best, self.with_further_edits(best, goal)
            if best is before:
                break
        if best is None:
            assert unmet is not None
            raise unmet
        return best

    def tried(self, base: EditedModel, meter: CostEstimator) -> Solution:
        """Choose channels, repair what is left layer by layer, and measure the loss.

        Raises:
            TargetError: the targets cannot be met.
        """
        found = self.repaired(Solution(self.selected(base, meter)), 1)
        if base.chosen:
            self.others.append(found)
        else:
            self.alone = found
        self.told.append(f"{found}: divergence {found.loss:.3g}")
        return found

    def with_further_edits(self, best: Solution, goal: CostEstimator) -> Solution | None:
        """Look for edits in what the best solution has left, and return the best solution then."""
        assert best.mended is not None
        analysis = analysed(best.mended.model, self.options, self.base.analysis.trace.input_shapes)
        found, _ = study(analysis, self.options, self.workspace, goal.config, self.on_stage)
        there = set(self.base.analysis.trace.labels)
        unedited = there - {scored.edit.layer for scored in best.base.edits}
        free = [
            scored
            for scored in found
            if scored.edit.layer in there and (scored.edit.removes_nodes or scored.layers <= unedited)
        ]
        return self.with_edits(best, goal, EditEstimator(best.meter, free, analysis.model), best.base.edits)

    def with_edits(
        self,
        start: Solution | None,
        goal: CostEstimator,
        costs: EditEstimator,
        earlier: tuple[ScoredEdit, ...] | None = None,
    ) -> Solution | None:
        """Choose some of the edits at several multipliers, and return the best solution.

        Args:
            start: the best solution so far.
            goal: of the original.
            costs: of the edits to choose from.
            earlier: edits of the original that stay; None: those to choose from are edits of the original themselves.
        """
        multiplier = DEFAULT_MULTIPLIER if start is None else multiplier_of(start.run.plan, start.meter)
        best = start
        for factor in FACTORS:
            edits = self.chosen(goal, costs, factor * multiplier, earlier)
            key = tuple(sorted(str((scored.edit.layer, scored.edit)) for scored in edits))
            if not edits or key in self.seen:
                continue
            self.seen.add(key)
            other = apply(self.base, edits, self.options, self.workspace, self.on_stage)
            if best is not None and self.options.max_drop is None and other.loss >= best.loss:
                self.told.append(
                    f"{_count(edits)} before any channel goes, already too much: divergence {other.loss:.3g}"
                )
                continue
            try:
                best = _better(best, self.tried(other, goal.for_model(other.analysis)))
            except TargetError as error:
                self.told.append(f"{_count(edits)} cannot reach the target ({_reason(error)})")
        return best

    def chosen(
        self, goal: CostEstimator, costs: EditEstimator, multiplier: float, earlier: tuple[ScoredEdit, ...] | None
    ) -> tuple[ScoredEdit, ...]:
        """Choose edits at a multiplier; fewer of them where the goals are measured to be met without any channel going."""
        budget: Budget | None = costs.budget()
        edits: tuple[ScoredEdit, ...] = ()
        for _ in range(CORRECTIONS):
            if budget is None:
                break
            picked = worth(costs, budget, multiplier)
            if not picked.any():
                return ()
            edits = costs.taken(picked)
            if earlier is not None:
                edits = tuple(refitted(self.base.analysis, edits, self.options, self.workspace))
                gone = {label for scored in edits if scored.edit.removes_nodes for label in scored.layers}
                edits = (*(scored for scored in earlier if scored.edit.layer not in gone), *edits)
            made = edited(self.base, edits, self.options)[0].analysis.model
            budget = too_far(goal, made, costs.predict(picked))
        return edits

    def finished(self) -> Solution:
        """Repair channels alone, and the best solutions with edits, in full; return the best, of equal ones the one with fewest edits.

        Raises:
            TargetError: no solution meets the targets by steps.
        """
        last = [*((self.alone,) if self.alone else ()), *sorted(self.others, key=lambda s: s.rank)[:FINALISTS]]
        found: list[Solution] = []
        unmet: TargetError | None = None
        for solution in last:
            try:
                stepped = self.by_steps(solution) if self.options.schedule == "progressive" else solution
            except TargetError as error:
                unmet = error
                self.told.append(f"{solution} cannot reach the target by steps ({_reason(error)})")
                continue
            found.append(self.repaired(stepped, DEPTH))
            self.told.append(f"{solution}, after full repair: divergence {found[-1].loss:.3g}")
        if not found:
            assert unmet is not None
            raise unmet
        return fewest_edits(found)

    def selected(self, base: EditedModel, meter: CostEstimator) -> Run:
        """Choose channels of a model."""
        return select_channels(replace(from_model(self.run, base), meter=meter, options=meter.options))

    def by_steps(self, solution: Solution) -> Solution:
        """Choose channels again, by steps."""
        return replace(solution, run=self.selected(solution.base, solution.meter.with_targets(self.options)))

    def repaired(self, solution: Solution, depth: int) -> Solution:
        """Repair what is left, and measure the loss; at depth 1 layer by layer and without augmented samples."""
        run, start = solution.run, solution.run.start.model
        workspace = self.workspace.plain if depth == 1 else self.workspace
        pruned = rewrite.delete(start.analysis.model, start.analysis.trace, run.left)
        mended = start.repaired(pruned, run.left, workspace, self.options, self.on_stage, depth=depth)
        loss = mended.loss
        if math.isnan(loss) or start is not solution.base:  # else repair aimed at the original, and measured it
            loss = divergences(self.base.analysis.model, [mended.model], workspace.calibration)[0]
        return replace(solution, mended=mended, loss=loss)


def fewest_edits(found: list[Solution]) -> Solution:
    """Return the best solution, of those that count as equal the one with fewest edits."""
    least = min(solution.rank for solution in found) * (1 + TIE)
    return min((solution for solution in found if solution.rank <= least), key=lambda s: len(s.base.edits))


def _better(best: Solution | None, other: Solution) -> Solution:
    return other if best is None or other.rank < best.rank else best


def _count(edits: tuple[ScoredEdit, ...]) -> str:
    if not edits:
        return "channels alone"
    return f"{len(edits)} edit{'s' if len(edits) > 1 else ''}"


def _reason(error: TargetError) -> str:
    """Return the first reason: the others say what holds channels."""
    return str(error.why).split("; ")[0]
