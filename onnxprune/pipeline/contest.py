"""Compare ways to meet the targets: channels alone, and channels after edits chosen at several multipliers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.edit_choice import DEFAULT_MULTIPLIER, EditEstimator, ScoredEdit, multiplier_of, worth
from onnxprune.allocation.edit_study import study
from onnxprune.allocation.knapsack import Budget
from onnxprune.allocation.problem import paced
from onnxprune.allocation.targets import too_far
from onnxprune.calibration.workspace import Workspace
from onnxprune.errors import TargetError
from onnxprune.graph.analysis import Analysis, analysed
from onnxprune.pipeline.edited_model import EditedModel, apply, edited, refitted
from onnxprune.pipeline.opening import from_model
from onnxprune.pipeline.run import Run
from onnxprune.pipeline.schedule import select_channels
from onnxprune.repair.least_squares import DEPTH
from onnxprune.repair.network import RepairResult, divergences
from onnxprune.surgery import channels as rewrite

FACTORS = (0.1, 0.3, 1.0)
"""Shares of the Lagrange multiplier of the channels at which edits are chosen."""
FINALISTS, CLOSE = 2, 1.5
"""Solutions with edits that get the full repair, at most, and how far the figure of a solution may be above the least one for that. Full
repair gains more where more was lost: it takes about the square root of a ratio."""
CORRECTIONS = 3
"""Largest number of times that edits are chosen for one multiplier."""
TIE = 0.02
"""Relative difference below which losses count as equal; the solution with fewer edits is taken then."""
ROUNDS = 4
"""Largest number of rounds that look for further edits."""


@dataclass(frozen=True)
class Solution:
    """One way to meet the targets.

    Attributes:
        run: with the edited model, the channels of it that stay, and its cost estimator.
        repaired: the pruned model after repair; None where repair is still to be done.
        loss: divergence of the output on held-out samples.
    """

    run: Run
    repaired: RepairResult | None = None
    loss: float = math.inf

    @property
    def base(self) -> EditedModel:
        """The model that channels are selected from."""
        return self.run.edited

    @property
    def estimator(self) -> CostEstimator:
        """The cost estimator of that model."""
        assert self.run.estimator is not None
        return self.run.estimator

    def __str__(self) -> str:
        return _count(self.base.edits)

    @property
    def rank(self) -> float:
        """The figure that the best solution minimizes: the loss, or a quantity where --max-drop bounds the loss."""
        options = self.estimator.options
        if options.max_drop is None:
            return self.loss
        return self.estimator.predict(self.run.plan.keep)[options.minimise]


def best_solution(run: Run) -> Run:
    """Let edits compete with channels, and return the solution with the least loss.

    The Lagrange multiplier is the cost of the last channels that went: divergence of the output per share of the bound
    quantity. At some shares of it the edits with the largest net gain are applied, channels do the rest, and the
    results, repaired, are compared on held-out samples. The first edits are looked for in the original, those of
    further rounds in the best solution after its deletion; all are applied to the original.

    Each step of the progressive schedule does this for its part of the way, and starts from the edits of the step
    before. The last solutions, and channels alone, then lose their channels by steps.

    Raises:
        TargetError: the targets cannot be met, neither by channels alone nor with any of these edits.
    """
    options, estimator = run.options, run.estimator
    assert estimator is not None
    search = Search(run)
    at_once = replace(options, schedule="block")
    steps = options.rounds if options.max_drop is None else 1
    best: Solution | None = None
    for step in range(1, steps + 1):
        best = search.step(estimator.with_targets(at_once, paced(options, step / steps)), best)
    best = search.finished()
    notes = (*best.base.notes, *search.notes, f"compared on held-out samples: {'; '.join(search.told)}")
    return replace(best.run, edited=replace(best.base, notes=notes), ready=best.repaired)


@dataclass
class Search:
    """Solutions of the current step, and a line for the report on each that was tried."""

    run: Run
    told: list[str] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    alone: Solution | None = None
    others: list[Solution] = field(default_factory=list)
    seen: set[tuple[str, ...]] = field(default_factory=set)

    @property
    def workspace(self) -> Workspace:
        """Calibration samples."""
        assert self.run.workspace is not None
        return self.run.workspace

    def step(self, goal: CostEstimator, start: Solution | None) -> Solution:
        """Return the best solution for the targets of `goal`, an estimator of the original; `start` is of the step
        before.

        Raises:
            TargetError: the targets cannot be met.
        """
        self.alone, self.others, self.seen = None, [], set()
        if goal.share < 1 or start is not None:
            self.told.append(f"{goal.share:.0%} of the way")
        best = unmet = None
        try:
            best = self.tried(self.run.edited, goal)
        except TargetError as error:
            unmet = error
            self.told.append(f"channels alone cannot reach the target ({_reason(error)})")
        if start is not None and start.base.chosen:
            with contextlib.suppress(TargetError):
                best = _better(best, self.tried(start.base, start.estimator.with_targets(goal.options, goal.share)))
        if start is None or best is None:
            scored, self.notes = self.studied(self.run.edited.analysis, goal)
            best = self.with_edits(best, goal, EditEstimator(goal if best is None else best.estimator, scored))
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

    def studied(self, analysis: Analysis, goal: CostEstimator) -> tuple[tuple[ScoredEdit, ...], tuple[str, ...]]:
        """Score the edits of a model; return them, and notes."""
        return study(analysis, self.run.options, self.workspace, goal.config, goal.timings, self.run.on_stage)

    def tried(self, base: EditedModel, estimator: CostEstimator) -> Solution:
        """Select channels, repair the result layer by layer, and measure the loss.

        Raises:
            TargetError: the targets cannot be met.
        """
        found = self.repaired(Solution(self.selected(base, estimator)), 1)
        if base.chosen:
            self.others.append(found)
        else:
            self.alone = found
        self.told.append(f"{found}: divergence {found.loss:.3g}")
        return found

    def with_further_edits(self, best: Solution, goal: CostEstimator) -> Solution | None:
        """Look for edits in the pruned model of the best solution, and return the best solution then."""
        assert best.repaired is not None
        original = self.run.edited.analysis.trace
        analysis = analysed(best.repaired.model, self.run.options, original.input_shapes)
        found, _ = self.studied(analysis, goal)
        free = unedited(found, best.base.edits, original.labels)
        return self.with_edits(best, goal, EditEstimator(best.estimator, free, analysis.model), best.base.edits)

    def with_edits(
        self,
        start: Solution | None,
        goal: CostEstimator,
        costs: EditEstimator,
        earlier: tuple[ScoredEdit, ...] | None = None,
    ) -> Solution | None:
        """Choose some of the edits of `costs` at several multipliers, and return the best solution; see `chosen`."""
        multiplier = DEFAULT_MULTIPLIER if start is None else multiplier_of(start.run.plan, start.estimator)
        best = start
        for factor in FACTORS:
            edits = self.chosen(goal, costs, factor * multiplier, earlier)
            key = tuple(sorted(str((scored.edit.layer, scored.edit)) for scored in edits))
            if not edits or key in self.seen:
                continue
            self.seen.add(key)
            other = apply(self.run.edited, edits, self.run.options, self.workspace, self.run.on_stage)
            if best is not None and self.run.options.max_drop is None and other.loss >= best.loss:
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
        """Choose edits at a multiplier; fewer of them where they alone are measured to go beyond the targets.

        `earlier` are edits of the original that stay; None: the edits to choose from are of the original themselves.
        """
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
                edits = tuple(refitted(self.run.edited.analysis, edits, self.run.options, self.workspace))
                gone = {label for scored in edits if scored.edit.removes_nodes for label in scored.layers}
                edits = (*(scored for scored in earlier if scored.edit.layer not in gone), *edits)
            made = edited(self.run.edited, edits, self.run.options)[0].analysis.model
            budget = too_far(goal, made, costs.predict(picked))
        return edits

    def finalists(self) -> list[Solution]:
        """Return the solutions that get the full repair: channels alone and the best with edits, where they are close to the best."""
        last = [*((self.alone,) if self.alone else ()), *sorted(self.others, key=lambda s: s.rank)[:FINALISTS]]
        most = CLOSE * min((solution.rank for solution in last), default=math.inf)
        return [solution for solution in last if not solution.rank > most]  # one whose loss is unknown stays

    def finished(self) -> Solution:
        """Repair the best solutions in full, channels alone among them; return the best, see `fewest_edits`.

        Raises:
            TargetError: no solution meets the targets by steps.
        """
        found: list[Solution] = []
        unmet: TargetError | None = None
        for solution in self.finalists():
            try:
                stepped = self.by_steps(solution) if self.run.options.schedule == "progressive" else solution
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

    def selected(self, base: EditedModel, estimator: CostEstimator) -> Run:
        """Select channels of a model."""
        return select_channels(replace(from_model(self.run, base), estimator=estimator, options=estimator.options))

    def by_steps(self, solution: Solution) -> Solution:
        """Select the channels again, by steps."""
        return replace(solution, run=self.selected(solution.base, solution.estimator.with_targets(self.run.options)))

    def repaired(self, solution: Solution, depth: int) -> Solution:
        """Repair the pruned model, and measure the loss; at depth 1 layer by layer and without augmented samples."""
        run, start = solution.run, solution.run.start.model
        workspace = self.workspace.plain if depth == 1 else self.workspace
        pruned = rewrite.delete(start.analysis.model, start.analysis.trace, run.left)
        result = start.repaired(pruned, run.left, workspace, self.run.options, self.run.on_stage, depth=depth)
        loss = result.loss
        if (
            math.isnan(loss) or start is not solution.base
        ):  # otherwise repair has measured the divergence from the original
            original, calibration = self.run.edited.analysis.model, workspace.calibration
            loss = divergences(original, [result.model], calibration, workspace.distance)[0]
        return replace(solution, repaired=result, loss=loss)


def unedited(found: Sequence[ScoredEdit], earlier: Sequence[ScoredEdit], labels: Sequence[str]) -> list[ScoredEdit]:
    """Return the edits that can be made of the original, with nodes of `labels`, beside earlier ones.

    An edit of a layer needs one that no earlier edit has made another one of: a merged layer is that of two.
    """
    taken = {label for scored in earlier for label in (scored.edit.layer, *scored.layers)}
    left = set(labels) - taken
    return [s for s in found if s.edit.layer in labels and (s.edit.removes_nodes or s.layers <= left)]


def fewest_edits(found: list[Solution]) -> Solution:
    """Return the solution with fewest edits among those within `TIE` of the best."""
    least = min(solution.rank for solution in found) * (1 + TIE)
    return min((solution for solution in found if solution.rank <= least), key=lambda s: len(s.base.edits))


def _better(best: Solution | None, other: Solution) -> Solution:
    return other if best is None or other.rank < best.rank else best


def _count(edits: Sequence[ScoredEdit]) -> str:
    if not edits:
        return "channels alone"
    return f"{len(edits)} edit{'s' if len(edits) > 1 else ''}"


def _reason(error: TargetError) -> str:
    """Return the first reason; the others name pins."""
    return str(error.why).split("; ")[0]
