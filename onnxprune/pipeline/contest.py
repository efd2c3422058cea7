"""Compare ways to meet the targets: channels alone, and channels after edits chosen at several multipliers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.allocation.carried_curves import KnownCurves
from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.allocation.edit_choice import (
    DEFAULT_MULTIPLIER,
    EditEstimator,
    ScoredEdit,
    expected_loss,
    multiplier_of,
    worth,
)
from onnxprune.allocation.edit_study import study
from onnxprune.allocation.knapsack import Budget
from onnxprune.allocation.problem import paced
from onnxprune.allocation.targets import too_far
from onnxprune.calibration.workspace import Workspace
from onnxprune.errors import TargetError
from onnxprune.evaluation.benchmark import median_times, timing_key
from onnxprune.graph.analysis import Analysis, analysed
from onnxprune.pipeline.edited_model import EditedModel, apply, edited, refitted
from onnxprune.pipeline.opening import from_model
from onnxprune.pipeline.run import Run
from onnxprune.pipeline.schedule import select_channels
from onnxprune.repair.least_squares import DEPTH
from onnxprune.repair.network import RepairResult, divergences
from onnxprune.runtime.session import random_feeds
from onnxprune.surgery import channels as rewrite

FACTORS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5)
"""Shares of the Lagrange multiplier of the channels at which edits are chosen."""
UNEXPECTED = (0.3, 0.1, 1.0)
"""The same where no loss can be expected, because no loss of channels was measured or the loss is what is bounded; all are tried."""
TRIES = 2
"""Selections of edits that are tried in a round at most, until one is better; those with the least expected loss come first."""
EQUAL = 1.1
"""Ratio to the least figure of a solution up to which another one counts as equal: that with the fewest edits is repaired in full."""
SLOWER = 1.03
"""Ratio of times from which a solution with edits counts as slower than channels alone."""
CORRECTIONS = 3
"""Largest number of times that edits are chosen for one multiplier."""
ROUNDS = 1
"""Largest number of rounds that look for further edits in the best solution."""


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
    quantity. At some shares of it the edits with the largest net gain are chosen. Those with the least expected loss are
    applied, channels do the rest, and the results, repaired, are compared on held-out samples. The first edits are
    looked for in the original, further ones in the best solution after its deletion; all are applied to the original.

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
            if best is None or (self.expects(best) and not best.base.chosen):
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
        """Choose some of the edits of `costs`, let channels do the rest, and return the best solution."""
        best = start
        for number, edits in enumerate(self.selections(start, goal, costs, earlier)):
            if self.expects(start) and (best is not start or number == TRIES):
                break
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

    def selections(
        self,
        start: Solution | None,
        goal: CostEstimator,
        costs: EditEstimator,
        earlier: tuple[ScoredEdit, ...] | None,
    ) -> Iterator[tuple[ScoredEdit, ...]]:
        """Yield selections of edits that were not tried, the least expected loss first; see `chosen`."""
        multiplier = DEFAULT_MULTIPLIER if start is None else multiplier_of(start.run.plan, start.estimator)
        factors = UNEXPECTED if start is None or not self.expects(start) else self.promising(start, costs, multiplier)
        for factor in factors:
            edits = self.chosen(goal, costs, factor * multiplier, earlier)
            key = tuple(sorted(str((scored.edit.layer, scored.edit)) for scored in edits))
            if edits and key not in self.seen:
                self.seen.add(key)
                yield edits

    def expects(self, start: Solution | None) -> bool:
        """Tell whether the loss of a selection of edits can be expected."""
        return start is not None and bool(start.run.plan.curves) and self.run.options.max_drop is None

    def promising(self, start: Solution, costs: EditEstimator, multiplier: float) -> tuple[float, ...]:
        """Return the factors of `FACTORS` by expected loss, without those that choose the same, or promise no gain."""
        none, budget = np.zeros(len(costs.scored), dtype=bool), costs.budget()
        alone = expected_loss(costs, none, start.run.plan, start.estimator)
        expected: dict[bytes, tuple[float, float]] = {none.tobytes(): (alone, 0.0)}
        for factor in FACTORS:
            picked = worth(costs, budget, factor * multiplier)
            if picked.tobytes() not in expected:
                loss = expected_loss(costs, picked, start.run.plan, start.estimator)
                expected[picked.tobytes()] = loss, factor
        return tuple(factor for loss, factor in sorted(expected.values()) if loss < alone)

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

    def ranked(self) -> list[Solution]:
        """Return all solutions: first those whose figures count as equal to the least one, fewest edits first, then the others by figure."""
        found = [*((self.alone,) if self.alone else ()), *self.others]
        equal = EQUAL * min((solution.rank for solution in found if not math.isnan(solution.rank)), default=math.inf)

        def place(solution: Solution) -> tuple[bool, float]:
            is_equal = solution.rank <= equal
            return not is_equal, len(solution.base.edits) if is_equal else solution.rank

        return sorted(found, key=place)

    def finished(self) -> Solution:
        """Repair the first of the ranked solutions in full.

        With the progressive schedule the first two that can be reached by steps are repaired, and the better one is taken.

        Raises:
            TargetError: no solution meets the targets by steps.
        """
        by_steps = self.run.options.schedule == "progressive"
        found: list[Solution] = []
        unmet: TargetError | None = None
        for solution in self.ranked():
            if len(found) == (2 if by_steps else 1):
                break
            if self.is_slower(solution):
                self.told.append(f"{solution} left out: slower than channels alone")
                continue
            try:
                stepped = self.by_steps(solution) if by_steps else solution
            except TargetError as error:
                unmet = error
                self.told.append(f"{solution} cannot reach the target by steps ({_reason(error)})")
                continue
            found.append(self.repaired(stepped, DEPTH))
            self.told.append(f"{solution}, after full repair: divergence {found[-1].loss:.3g}")
        if not found:
            assert unmet is not None
            raise unmet
        return min(found, key=lambda s: s.rank)

    def is_slower(self, solution: Solution) -> bool:
        """Tell whether a solution with edits is measured to be slower than channels alone, where latency is measured and is no target.

        A layer that is faster by itself may not be within the network, where onnxruntime fuses it with others and chooses layouts.
        """
        alone, config = self.alone, self.run.measure
        if alone is None or not solution.base.chosen or not config.latency or "latency" in alone.estimator.measured:
            return False
        assert alone.repaired is not None
        assert solution.repaired is not None
        models, shapes = [alone.repaired.model, solution.repaired.model], alone.estimator.shapes

        def medians() -> list[float]:
            feeds = random_feeds(self.run.original.model.header, shapes, 0)
            return median_times([model.session(config.session) for model in models], feeds, config, 1 / 4)

        key = timing_key("edits beside channels", models, shapes, config)
        before, after = self.run.timings.of(key, 2, medians)
        return after > SLOWER * before

    def selected(self, base: EditedModel, estimator: CostEstimator) -> Run:
        """Select channels of a model; curves that were measured on the original stay those of groups that no edit has changed."""
        known = None
        if base.chosen and self.alone is not None and self.alone.run.plan.curves:
            known = KnownCurves(self.alone.base.analysis, self.alone.run.plan.curves)
        run = replace(from_model(self.run, base), estimator=estimator, options=estimator.options, known=known)
        return select_channels(run)

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


def _better(best: Solution | None, other: Solution) -> Solution:
    return other if best is None or other.rank < best.rank else best


def _count(edits: Sequence[ScoredEdit]) -> str:
    if not edits:
        return "channels alone"
    return f"{len(edits)} edit{'s' if len(edits) > 1 else ''}"


def _reason(error: TargetError) -> str:
    """Return the first reason; the others name pins."""
    return str(error.why).split("; ")[0]
