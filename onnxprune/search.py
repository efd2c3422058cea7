"""Choose what goes: score, measure, allocate."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np

from onnxprune import sensitivity
from onnxprune.analysis import Analysis, analyse, refuse_unprunable, removed, unless_it_does_not_run
from onnxprune.calibration import AIM, AUTOMATIC, ENOUGH, Calibration, is_enlarged_data
from onnxprune.capture import Store
from onnxprune.channels.readers import readers_of
from onnxprune.comparison import Stage, quiet
from onnxprune.data import Data, DataLike, Preprocess, inputs_of, load_data
from onnxprune.errors import OptionError, TargetError
from onnxprune.generate import NAME as GENERATED_NAME
from onnxprune.generate import generate
from onnxprune.model import Model, load
from onnxprune.options import AUTO, WITH_DATA, WITH_GRADIENTS, Options
from onnxprune.pruning import budget, importance, repair, rewrite, second_order
from onnxprune.recovery import Recovery
from onnxprune.report.document import curve_dict
from onnxprune.training import require_torch
from onnxprune.types import BoolArray, Curve, FloatArray, Plan, Repaired

SCHEMA = "onnxprune.sensitivity/1"
GENERATED = "generated"
"""What `--data` takes for inputs that are made up."""
STORED, SUMS = 0.4, 0.3
"""Shares of `--memory` for activations that are kept, and for the sums of one layer; the rest is for what onnxruntime and numpy take."""
SAVES_NOTHING = 1e-12
"""Share of what is limited below which a channel saves nothing."""


@dataclass(frozen=True)
class Workspace:
    """Where calibrated stages keep what they need.

    Attributes:
        calibration: the samples.
        store: activations, in memory or in files.
        memory: bytes for the sums of one layer.
        notes: what a reader should know of the samples.
    """

    calibration: Calibration
    store: Store
    memory: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """What goes, and from what.

    Attributes:
        plan: which channels of the original stay.
        start: what the last step starts from: the original, or after steps with training what these left of it.
        keep: (channels of `start`,) which of them stay.
    """

    plan: Plan
    start: Analysis
    keep: BoolArray


def make_plan(
    analysis: Analysis, options: Options, on_stage: Stage = quiet, workspace: Workspace | None = None
) -> Plan:
    """Score and allocate; see `choose`."""
    return choose(analysis, options, on_stage, workspace).plan


def choose(
    analysis: Analysis,
    options: Options,
    on_stage: Stage = quiet,
    workspace: Workspace | None = None,
    recovery: Recovery | None = None,
) -> Choice:
    """Score and allocate.

    Progressive steps each aim at an absolute share of the way to the target, so they don't compound: at equal distances, or as
    the cubic schedule of Zhu and Gupta, 2017, "To prune, or not to prune", equation 1, which goes fast at first. With data, the
    pruned model is repaired after each, trained where there is a recovery, and what follows is chosen by looking at that.

    Args:
        analysis: of the model.
        options: the dials; `auto` is resolved here.
        on_stage: called as the run goes on.
        workspace: calibration data; None without.
        recovery: trains between steps; None: nothing does.

    Raises:
        ModelError: nothing can be pruned.
        OptionError: no target, or a method that needs data.
        TargetError: the target cannot be reached.
    """
    refuse_unprunable(analysis)
    if not options.has_target:
        raise OptionError(
            "nothing says how much to remove", hint="give --reduce flops=50%, a --limit, or a --threshold"
        )
    options = options.resolved(workspace is not None)
    keep = np.ones(analysis.trace.n_channels, dtype=bool)
    macs = analysis.cost.totals(keep)[0]
    goals = _limits(options, macs, analysis.model.params)
    steps = options.steps if options.schedule == "progressive" else 1
    rules = budget.Rules(options.round_to, options.min_channels, options.max_ratio)
    budget.refuse_unreachable(analysis.trace, analysis.cost, keep, rules, goals)  # before anything takes time
    path = []
    curves: tuple[Curve, ...] = ()
    current = _Step(analysis, keep, _sizes(analysis))
    for step in range(1, steps + 1):
        on_stage("score", step / steps)
        share = step / steps if options.pace == "linear" else 1 - (1 - step / steps) ** 3
        limits = _part_of_the_way(goals, macs, analysis.model.params, share)
        start = current
        with unless_it_does_not_run(analysis.model, analysis.trace.input_shapes):
            keep, found = _choose(current, options, limits, step == 1, on_stage, workspace)
        curves = curves or found
        path.append(removed(analysis, keep))
        if workspace is None:
            current = replace(current, keep=keep)
        elif step < steps:
            current = _next(start, keep, analysis, workspace, options, on_stage, recovery, step)
    settings = asdict(replace(options, reduce=dict(options.reduce), limit=dict(options.limit)))
    plan = Plan(keep, analysis.model.digest, settings, tuple(path), curves)
    if recovery is None or start.analysis is analysis:
        return Choice(plan, analysis, keep)
    return Choice(plan, start.analysis, keep[start.keep])


@dataclass(frozen=True)
class _Step:
    """Where a progressive search stands: a model to look at, and which channels of the original are left.

    Without data the model is the original itself, and `keep` says what doesn't count any more; with data it is pruned and
    repaired, and holds just the channels in `keep`, in the same order. `sizes` are those of the groups in the original.
    """

    analysis: Analysis
    keep: BoolArray
    sizes: Mapping[str, int]


def _choose(
    current: _Step, options: Options, limits: budget.Limits, first: bool, on_stage: Stage, workspace: Workspace | None
) -> tuple[BoolArray, tuple[Curve, ...]]:
    """Return which channels of the original are left after a step, and what was measured."""
    analysis = current.analysis
    model, trace, cost = analysis.model, analysis.trace, analysis.cost
    whole = trace.n_channels == current.keep.size
    keep = current.keep if whole else np.ones(trace.n_channels, dtype=bool)
    rules = budget.Rules(options.round_to, options.min_channels, options.max_ratio, options.scope, current.sizes)
    curves: tuple[Curve, ...] = ()
    if options.importance in WITH_DATA or options.scope == "sensitivity":
        assert workspace is not None
        scores, removals = _calibrated_scores(analysis, options, keep, on_stage, workspace)
    else:
        scores, removals = importance.score(model, trace, options.importance, keep, options.seed), []
    if options.threshold is not None and first:
        told = importance.relative(trace, scores, keep) if options.importance in WITH_GRADIENTS else scores
        keep = budget.below(trace, told, keep, rules, options.threshold)
    if options.scope == "sensitivity" and not limits.hold(*cost.totals(keep)):
        assert workspace is not None
        macs = cost.totals(np.ones(trace.n_channels, dtype=bool))[0]
        curves = sensitivity.curves(
            model, trace, removals, workspace.calibration.plain, macs, workspace.store, _told(on_stage, "measure")
        )
        keep = budget.allocate_by_loss(trace, cost, curves, keep, rules, limits)
    else:
        if options.importance in WITH_GRADIENTS and options.scope == "global":
            scores = _per_saving(analysis, scores, limits)
        keep = budget.allocate(trace, cost, scores, keep, rules, limits)
    if workspace is not None:
        for removal in removals:
            removal.drop(workspace.store)
    if whole:
        return keep, curves
    total = current.keep.copy()
    total[np.flatnonzero(current.keep)[~keep]] = False
    return total, curves


def _per_saving(analysis: Analysis, scores: FloatArray, limits: budget.Limits) -> FloatArray:
    """Divide losses by what a channel saves of what is limited: Liu et al., 2021, "Group Fisher Pruning", section 3.3.

    Scores in one unit over the whole network are the prices of a knapsack; without this, a cheap layer would lose all its channels.
    """
    macs, params = analysis.cost.savings()
    saved = (macs if limits.macs is not None else 0) + (params if limits.params is not None else 0)
    return np.asarray(scores / np.maximum(saved, SAVES_NOTHING))


def _calibrated_scores(
    analysis: Analysis, options: Options, keep: BoolArray, on_stage: Stage, workspace: Workspace
) -> tuple[FloatArray, list[second_order.Removal]]:
    """Return the importance of every channel, and how each group loses its channels where the scope asks for it."""
    model, trace = analysis.model, analysis.trace
    plain = options.importance not in WITH_DATA
    fallback = importance.score(model, trace, options.importance if plain else "l2", keep, options.seed)
    given: FloatArray | None = fallback
    if not plain:
        kind = options.importance
        given = None
        if kind in WITH_GRADIENTS:
            given = _gradient_scores(analysis, options, on_stage, workspace)
            if options.scope != "sensitivity":
                return given, []
        elif kind != "obs":
            given = second_order.activation_scores(
                model,
                trace,
                workspace.calibration.plain,
                kind,
                store=workspace.store,
                memory=workspace.memory,
                seed=options.seed,
            )
            given = np.where(np.isnan(given), fallback, given)
            if options.scope != "sensitivity":
                return given, []
    found = list(
        second_order.removals(
            model,
            trace,
            workspace.calibration.plain,
            scores=given,
            fallback=fallback,
            store=workspace.store,
            memory=workspace.memory,
            seed=options.seed,
            hold_out=options.scope == "sensitivity",
            progress=_told(on_stage, "capture"),
        )
    )
    if given is None:
        given = second_order.scores_of(trace, found, fallback)
    return given, found


def _gradient_scores(analysis: Analysis, options: Options, on_stage: Stage, workspace: Workspace) -> FloatArray:
    require_torch(f"--importance {options.importance}")
    from onnxprune.training import gradients  # only here: torch takes seconds to load

    return gradients.scores(
        analysis.model,
        analysis.trace,
        workspace.calibration.plain,
        options.importance,
        memory=workspace.memory,
        seed=options.seed,
        progress=_told(on_stage, "gradients"),
    )


def _next(
    start: _Step,
    keep: BoolArray,
    analysis: Analysis,
    workspace: Workspace,
    options: Options,
    on_stage: Stage,
    recovery: Recovery | None,
    step: int,
) -> _Step:
    """Return the model without what has gone so far, repaired, to look at next; where it is trained, from the model before."""
    trace = analysis.trace
    before, left = (analysis, keep) if recovery is None else (start.analysis, keep[start.keep])
    pruned = rewrite.delete(before.model, before.trace, left)
    result, _ = _repair(before, pruned, left, workspace, options, on_stage)
    if recovery is not None:
        result = recovery.between(result, keep, step)
    again = analyse(result, options.ignore, trace.input_shapes, options.grouped, options.heads, options.norms)
    if again.trace.n_channels != int(keep.sum()):
        raise TargetError(
            "the progressive schedule cannot follow this model",
            why="after a step its channels are coupled in another way than before",
            hint="use --schedule block",
        )
    return _Step(again, keep, _sizes(analysis))


def _sizes(analysis: Analysis) -> dict[str, int]:
    return {group.name: group.channels.size for group in analysis.trace.groups}


@dataclass(frozen=True)
class Mended:
    """A pruned model after repair, what was done at each layer, and what a reader should know."""

    model: Model
    layers: tuple[Repaired, ...] = ()
    notes: tuple[str, ...] = ()


def mend(
    analysis: Analysis, pruned: Model, keep: BoolArray, workspace: Workspace, options: Options, on_stage: Stage = quiet
) -> Mended:
    """Repair a pruned model as the options say, and keep that only where the output held out says that it is better."""
    model, layers = _repair(analysis, pruned, keep, workspace, options, on_stage)
    before, after = sensitivity.losses(analysis.model, (pruned, model), workspace.calibration)
    notes = list(workspace.notes)
    if after > before:
        text = f"repair was undone: on inputs held out it moves the output further from the original ({after:.3g} after {before:.3g})"
        return Mended(pruned, (), (*notes, text))
    kept = sum(1 for layer in layers if layer.after >= layer.before)
    if kept:
        notes.append(f"{kept} of {len(layers)} layers keep their weights: no change predicted the rows held out better")
    return Mended(model, layers, tuple(notes))


def is_generated(data: object) -> bool:
    """Tell whether inputs are to be made up."""
    return isinstance(data, str | os.PathLike) and os.fspath(data) == GENERATED and not os.path.exists(data)


def generated(analysis: Analysis, options: Options) -> Data:
    """Return made-up inputs for a model."""
    return generate(inputs_of(analysis.model.header), analysis.trace.input_shapes, options.samples, options.seed)


@contextlib.contextmanager
def workspace_for(data: Data, analysis: Analysis, options: Options) -> Iterator[Workspace]:
    """Prepare calibration on some data, and clean up after it."""
    notes = []
    if data.name == GENERATED_NAME:
        notes.append("data-free: inputs were generated, no sample of the real ones was seen")
    elif len(data) < ENOUGH:
        notes.append(f"{len(data)} samples are few to calibrate on: aim for {AIM}")
    kinds = options.augment
    if isinstance(kinds, str):
        kinds, reasons = (), []
        if data.name != GENERATED_NAME and _is_short(analysis, min(len(data), options.samples)):
            kinds = AUTOMATIC
            reasons.append("most parameters lie in layers with fewer rows than unknowns")
        if data.name != GENERATED_NAME and is_enlarged_data(data):
            kinds = (*AUTOMATIC, "detail")
            reasons.append("the images look enlarged, sharp ones would fare worse")
        if kinds:
            notes.append(
                f"{', and '.join(reasons)}: samples were augmented ({', '.join(kinds)}); --augment none leaves it"
            )
    store = Store(options.memory * STORED)
    try:
        calibration = Calibration.of(data, options.samples, tuple(kinds), options.seed)
        yield Workspace(calibration, store, options.memory * SUMS, tuple(notes))
    finally:
        store.close()


def _is_short(analysis: Analysis, samples: int) -> bool:
    """Tell whether layers with more unknowns per output than they will see rows hold most of the parameters."""
    trace = analysis.trace
    found = {r.node: r for readers in readers_of(analysis.model, trace).values() for r in readers}
    short = 0
    for reader in found.values():
        shape = trace.shapes[reader.layer.node.outputs[0].name]
        rows = samples * math.prod(shape) // shape[reader.layer.channel_axis] / max(1, shape[0])
        short += reader.layer.values.size if rows < reader.channels.shape[1] else 0
    return short > analysis.model.params / 2


def _repair(
    analysis: Analysis, pruned: Model, keep: BoolArray, workspace: Workspace, options: Options, on_stage: Stage
) -> tuple[Model, tuple[Repaired, ...]]:
    return repair.repair(
        analysis.model,
        pruned,
        analysis.trace,
        keep,
        workspace.calibration,
        store=workspace.store,
        memory=workspace.memory,
        only_bias=options.repair == "bias",
        seed=options.seed,
        progress=_told(on_stage, "repair"),
    )


def _told(on_stage: Stage, name: str) -> Callable[[float], None]:
    return lambda share: on_stage(name, share)


def _limits(options: Options, macs: float, params: float) -> budget.Limits:
    bounds: dict[str, list[float]] = {"flops": [], "params": []}
    for quantity, share in options.reduce.items():
        bounds[quantity].append((macs if quantity == "flops" else params) * (1 - share))
    for quantity, amount in options.limit.items():
        bounds[quantity].append(amount / 2 if quantity == "flops" else amount)  # FLOPs are 2 x MACs
    return budget.Limits(min(bounds["flops"], default=None), min(bounds["params"], default=None))


def _part_of_the_way(goals: budget.Limits, macs: float, params: float, share: float) -> budget.Limits:
    def between(whole: float, goal: float | None) -> float | None:
        return None if goal is None else whole - share * (whole - min(goal, whole))

    return goals if share == 1 else budget.Limits(between(macs, goals.macs), between(params, goals.params))


def plan(
    model: str | os.PathLike[str],
    options: Options,
    data: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    on_stage: Stage = quiet,
) -> tuple[Analysis, Plan]:
    """Load a model and choose what would go."""
    analysis, given = opened(model, options, data, preprocess, on_stage)
    if given is None:
        return analysis, make_plan(analysis, options, on_stage)
    with workspace_for(given, analysis, options) as workspace:
        return analysis, make_plan(analysis, options, on_stage, workspace)


def study(
    model: str | os.PathLike[str],
    options: Options,
    data: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    on_stage: Stage = quiet,
) -> tuple[Analysis, tuple[Curve, ...]]:
    """Load a model and measure what each group loses, by second order.

    Raises:
        OptionError: no data.
        ModelError: nothing can be pruned.
    """
    options = replace(options, importance="obs", scope="sensitivity")
    analysis, given = opened(model, options, data, preprocess, on_stage)
    options = options.resolved(given is not None)
    refuse_unprunable(analysis)
    assert given is not None
    with workspace_for(given, analysis, options) as workspace:
        keep = np.ones(analysis.trace.n_channels, dtype=bool)
        _, removals = _calibrated_scores(analysis, options, keep, on_stage, workspace)
        macs = analysis.cost.totals(keep)[0]
        found = sensitivity.curves(
            analysis.model,
            analysis.trace,
            removals,
            workspace.calibration.plain,
            macs,
            workspace.store,
            _told(on_stage, "measure"),
        )
    return analysis, found


def opened(
    model: str | os.PathLike[str],
    options: Options,
    data: DataLike | None,
    preprocess: Preprocess | str | None,
    on_stage: Stage,
) -> tuple[Analysis, Data | None]:
    """Load a model and its data, real or generated."""
    on_stage("load", None)
    loaded = load(model)
    given = None
    if data is not None and not is_generated(data):
        given = load_data(data, inputs_of(loaded.header), preprocess)
    norms = options.norms if options.norms != AUTO else options.resolved(data is not None).norms
    known = None if given is None else given.shapes()
    analysis = analyse(loaded, options.ignore, known, options.grouped, options.heads, norms)
    if data is not None and given is None:
        given = generated(analysis, options)
    return analysis, given


def curves_dict(analysis: Analysis, curves: tuple[Curve, ...]) -> dict[str, object]:
    """Return what `sensitivity --json` prints."""
    return {
        "schema": SCHEMA,
        "model": {"path": str(analysis.model.path), "sha256": analysis.model.digest},
        "groups": [curve_dict(curve) for curve in curves],
        "held": [
            {"node": p.node, "operator": p.op, "reason": p.reason, "channels": int(p.channels.size)}
            for p in analysis.trace.pins
        ],
    }
