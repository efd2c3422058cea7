"""Choose what goes: score, measure, allocate."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from onnxprune import rounding, sensitivity, workers
from onnxprune.analysis import Analysis, analyse, refuse_unprunable, removed, unless_it_does_not_run
from onnxprune.calibration import AIM, AUTOMATIC, ENOUGH, Calibration, is_enlarged_data
from onnxprune.capture import Store
from onnxprune.channels.readers import readers_of
from onnxprune.comparison import Measure, Stage, quiet
from onnxprune.data import Data, DataLike, Preprocess, inputs_of, load_data
from onnxprune.errors import OptionError, TargetError
from onnxprune.generate import NAME as GENERATED_NAME
from onnxprune.generate import generate
from onnxprune.model import Model, load
from onnxprune.options import AUTO, WITH_DATA, WITH_GRADIENTS, Options
from onnxprune.pruning import budget, importance, repair, rewrite, second_order
from onnxprune.recovery import Recovery
from onnxprune.report.document import curve_dict
from onnxprune.targets import Lifted, Meter, lift, meet, rules_of, within
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

    @property
    def plain(self) -> Workspace:
        """The same without augmented samples."""
        return replace(self, calibration=self.calibration.plain)


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
    analysis: Analysis,
    options: Options,
    on_stage: Stage = quiet,
    workspace: Workspace | None = None,
    meter: Meter | None = None,
) -> Plan:
    """Score and allocate; see `choose`."""
    return choose(analysis, options, on_stage, workspace, meter=meter).plan


def choose(
    analysis: Analysis,
    options: Options,
    on_stage: Stage = quiet,
    workspace: Workspace | None = None,
    recovery: Recovery | None = None,
    meter: Meter | None = None,
    lost: Callable[[BoolArray], float] | None = None,
    reference: Model | None = None,
) -> Choice:
    """Score and allocate, and where what is asked for is measured, measure and correct.

    Progressive steps each aim at an absolute share of the way to the target, so they don't compound: at equal distances, or as
    the cubic schedule of Zhu and Gupta, 2017, "To prune, or not to prune", equation 1, which goes fast at first. With data, the
    pruned model is repaired after each, trained where there is a recovery, and what follows is chosen by looking at that.

    Args:
        analysis: of the model.
        options: the dials; `auto` is resolved here.
        on_stage: called as the run goes on.
        workspace: calibration data; None without.
        recovery: trains between steps; None: nothing does.
        meter: predicts and measures; None: one is made.
        lost: points that are lost, as measured, when only these channels of the original stay; needed for `max_drop`.
        reference: what steps are repaired towards, where that is not the model itself.

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
    meter = meter or Meter(analysis, options, Measure(), on_stage=on_stage)
    options = _rounded(meter, options)
    steps = options.steps if options.schedule == "progressive" else 1
    path = []
    curves: tuple[Curve, ...] = ()
    current = _Step(analysis, keep, _sizes(analysis))
    for step in range(1, steps + 1):
        on_stage("score", step / steps)
        start = current
        with unless_it_does_not_run(analysis.model, analysis.trace.input_shapes):
            allocate, found = _allocator(current, options, meter, step == 1, on_stage, workspace)
            if step < steps:
                keep = allocate(part_of_the_way(meter, options, step / steps))
            elif options.max_drop is None:
                keep = meet(allocate, functools.partial(_without, current), meter)
            elif lost is not None:
                keep = within(allocate, lost, meter, options.max_drop)
            else:
                raise OptionError("--max-drop needs data to measure it on", hint="give --data to `prune`")
        curves = curves or found
        path.append(removed(analysis, keep))
        if workspace is None:
            current = replace(current, keep=keep)
        elif step < steps:
            current = _next(start, keep, analysis, workspace, options, on_stage, recovery, step, reference)
    plan = Plan(keep, analysis.model.digest, settings(analysis, options), tuple(path), curves)
    if recovery is None or start.analysis is analysis:
        return Choice(plan, analysis, keep)
    return Choice(plan, start.analysis, keep[start.keep])


def settings(analysis: Analysis, options: Options) -> dict[str, object]:
    """Return what a plan says of how it was made: the options, and the step that channels were rounded to."""
    plain = asdict(replace(options, reduce=dict(options.reduce), limit=dict(options.limit)))
    return {**plain, "step": rules_of(analysis.trace, options).round_to}


@dataclass(frozen=True)
class _Step:
    """Where a progressive search stands: a model to look at, and which channels of the original are left.

    Without data the model is the original itself, and `keep` says what doesn't count any more; with data it is pruned and
    repaired, and holds just the channels in `keep`, in the same order. `sizes` are those of the groups in the original.
    """

    analysis: Analysis
    keep: BoolArray
    sizes: Mapping[str, int]

    @property
    def is_whole(self) -> bool:
        """Whether the model is the original, whatever of it counts."""
        return self.analysis.trace.n_channels == self.keep.size


def _rounded(meter: Meter, options: Options) -> Options:
    """Replace `auto` by the step that channels are rounded to: the one that is measured to be cheap, or finer where the target asks for it.

    Raises:
        TargetError: the target cannot be reached with any.
    """
    trace = meter.analysis.trace
    everything = np.ones(trace.n_channels, dtype=bool)
    first = rules_of(trace, options)
    try:
        budget.refuse_unreachable(trace, meter, everything, first, meter.goals())
        return options
    except TargetError:
        if options.round_to != AUTO:
            raise
    for step in (first.round_to, *(step for step in rounding.FINER if step < first.round_to)):
        try:
            rules = replace(first, round_to=step, steps={})
            budget.refuse_unreachable(trace, meter, everything, rules, meter.goals())
        except TargetError:
            if step == 1:
                raise
        else:
            return replace(options, round_to=step)
    raise AssertionError("unreachable")


def _without(current: _Step, keep: BoolArray) -> Model:
    """Return the model of a step without the channels of the original that are not in `keep`."""
    trace = current.analysis.trace
    return rewrite.delete(current.analysis.model, trace, keep if current.is_whole else keep[current.keep])


class Allocate(Protocol):
    """Says which channels of the original are left under some limits, rounded to a step in place of that of the options."""

    def __call__(self, limits: budget.Limits, step: int | None = None) -> BoolArray:
        """See the class; raises TargetError where they cannot be reached."""


def _allocator(
    current: _Step, options: Options, meter: Meter, first: bool, on_stage: Stage, workspace: Workspace | None
) -> tuple[Allocate, tuple[Curve, ...]]:
    """Look at a model as a step has it; return what says which channels of the original are left under some limits, and what was measured."""
    analysis = current.analysis
    model, trace = analysis.model, analysis.trace
    whole = current.is_whole
    costs: budget.Costs = meter if whole else Lifted(meter, current.keep)
    before = current.keep if whole else np.ones(trace.n_channels, dtype=bool)
    rules = rules_of(trace, options, options.scope, current.sizes)
    curves: tuple[Curve, ...] = ()
    if options.importance in WITH_DATA or options.scope == "sensitivity":
        assert workspace is not None
        scores, removals = _calibrated_scores(analysis, options, before, on_stage, workspace)
    else:
        scores, removals = importance.score(model, trace, options.importance, before, options.seed), []
    if options.threshold is not None and first:
        told = importance.relative(trace, scores, before) if options.importance in WITH_GRADIENTS else scores
        before = budget.below(trace, told, before, rules, options.threshold)
    by_loss = options.scope == "sensitivity" and bool(options.reduce or options.limit or options.max_drop is not None)
    if by_loss:
        assert workspace is not None
        macs = analysis.cost.totals(np.ones(trace.n_channels, dtype=bool))[0]
        curves = sensitivity.curves(
            model, trace, removals, workspace.calibration.plain, macs, workspace.store, _told(on_stage, "measure")
        )
    if workspace is not None:
        for removal in removals:
            removal.drop(workspace.store)

    def allocate(limits: budget.Limits, step: int | None = None) -> BoolArray:
        held = rules if step is None else replace(rules, round_to=step, steps={})
        if limits.hold(*costs.totals(before)):
            left = before.copy()
        elif by_loss:
            left = budget.allocate_by_loss(trace, costs, curves, before, held, limits)
        else:
            weighed = options.importance in WITH_GRADIENTS and options.scope == "global"
            ranks = _per_saving(analysis, scores, limits) if weighed else scores
            left = budget.allocate(trace, costs, ranks, before, held, limits)
        return left if whole else lift(left, current.keep)

    return allocate, curves


def _per_saving(analysis: Analysis, scores: FloatArray, limits: budget.Limits) -> FloatArray:
    """Divide losses by what a channel saves of what is limited: Liu et al., 2021, "Group Fisher Pruning", section 3.3.

    Scores in one unit over the whole network are the prices of a knapsack; without this, a cheap layer would lose all its channels.
    """
    macs, params = analysis.cost.savings()
    of_params = limits.params is not None or limits.size is not None
    of_macs = limits.macs is not None or limits.latency is not None or limits.memory is not None or not of_params
    saved = (macs if of_macs else 0) + (params if of_params else 0)  # time and activations fall about as MACs do
    return np.asarray(scores / np.maximum(saved, SAVES_NOTHING))


def _calibrated_scores(
    analysis: Analysis,
    options: Options,
    keep: BoolArray,
    on_stage: Stage,
    workspace: Workspace,
    names: Container[str] | None = None,
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
            names=names,
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
    reference: Model | None = None,
) -> _Step:
    """Return the model without what has gone so far, repaired, to look at next; where it is trained, from the model before."""
    trace = analysis.trace
    before, left = (analysis, keep) if recovery is None else (start.analysis, keep[start.keep])
    if before is not analysis:
        reference = before.model  # what was trained has fewer channels than the original
    pruned = rewrite.delete(before.model, before.trace, left)
    result, _ = _repair(before, pruned, left, workspace, options, on_stage, reference or before.model)
    if recovery is not None:
        result = recovery.between(result, keep, step)
    again = analysed(result, options, trace.input_shapes)
    if again.trace.n_channels != int(keep.sum()):
        raise TargetError(
            "the progressive schedule cannot follow this model",
            why="after a step its channels are coupled in another way than before",
            hint="use --schedule block",
        )
    return _Step(again, keep, _sizes(analysis))


def analysed(model: Model, options: Options, known: dict[str, tuple[int, ...]]) -> Analysis:
    """Trace what a run has made of its model, as the options, resolved, say.

    Args:
        model: what is left.
        options: the dials.
        known: shapes of the inputs of the original.
    """
    return analyse(model, options.ignore, known, options.grouped, options.heads, options.norms)


def _sizes(analysis: Analysis) -> dict[str, int]:
    return {group.name: group.channels.size for group in analysis.trace.groups}


@dataclass(frozen=True)
class Mended:
    """A pruned model after repair.

    Attributes:
        model: what came of it.
        layers: what was done at each layer.
        notes: what a reader should know.
        loss: divergence of its output from what it was repaired towards, on samples held out; NaN where that was not measured.
    """

    model: Model
    layers: tuple[Repaired, ...] = ()
    notes: tuple[str, ...] = ()
    loss: float = math.nan


def mend(
    analysis: Analysis,
    pruned: Model,
    keep: BoolArray,
    workspace: Workspace,
    options: Options,
    on_stage: Stage = quiet,
    *,
    reference: Model | None = None,
    changed: Set[str] = frozenset(),
    depth: int = repair.DEPTH,
) -> Mended:
    """Repair a pruned model as the options say, and keep that only where the output held out says that it is better.

    Args:
        analysis: of the model that was pruned.
        pruned: what is left.
        keep: what that is.
        workspace: calibration data.
        options: the dials.
        on_stage: called as it goes on.
        reference: what to repair towards, where that is not the model that was analysed.
        changed: tensors of other layers than those of the reference, where nothing has repaired them yet.
        depth: how many layers are fitted together, at most.
    """
    reference = reference or analysis.model
    model, layers = _repair(analysis, pruned, keep, workspace, options, on_stage, reference, changed, depth)
    before, after = sensitivity.losses(reference, (pruned, model), workspace.calibration)
    notes = list(workspace.notes)
    if after > before:
        text = f"repair was undone: on inputs held out it moves the output further from the original ({after:.3g} after {before:.3g})"
        return Mended(pruned, (), (*notes, text), before)
    kept = sum(1 for layer in layers if layer.after >= layer.before)
    if kept:
        notes.append(f"{kept} of {len(layers)} layers keep their weights: no change predicted the rows held out better")
    return Mended(model, layers, tuple(notes), after)


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
    analysis: Analysis,
    pruned: Model,
    keep: BoolArray,
    workspace: Workspace,
    options: Options,
    on_stage: Stage,
    reference: Model | None = None,
    changed: Set[str] = frozenset(),
    depth: int = repair.DEPTH,
) -> tuple[Model, tuple[Repaired, ...]]:
    return repair.repair(
        reference or analysis.model,
        pruned,
        analysis.trace,
        keep,
        workspace.calibration,
        store=workspace.store,
        memory=workspace.memory,
        only_bias=options.repair == "bias",
        depth=depth,
        seed=options.seed,
        changed=changed,
        progress=_told(on_stage, "repair"),
    )


def _told(on_stage: Stage, name: str) -> Callable[[float], None]:
    return lambda share: on_stage(name, share)


def paced(options: Options, share: float) -> float:
    """Return how far the way to the goals is, when some share of the steps is done."""
    return 1 - (1 - share) ** 3 if options.pace == "cubic" else share


def part_of_the_way(meter: Meter, options: Options, share: float) -> budget.Limits:
    """Return bounds between the original and the goals, when some share of the steps is done."""
    whole = meter.totals(np.ones(meter.analysis.trace.n_channels, dtype=bool))
    return meter.goals().part(whole, paced(options, share))


def plans(
    analysis: Analysis,
    options: Options,
    quantity: str,
    shares: Sequence[float],
    take: Callable[[float, Plan | TargetError], None],
    workspace: Workspace | None,
    measure: Measure,
    latency_table: str | os.PathLike[str] | None = None,
    on_stage: Stage = quiet,
) -> None:
    """Choose what goes for several targets, in one shot each, from one look at the model.

    Args:
        analysis: of the model.
        options: the dials, without targets.
        quantity: what the shares are of.
        shares: to remove.
        take: called with each share, and its plan, or why there is none.
        workspace: calibration data; None without.
        measure: how to measure latency.
        latency_table: file with a table; None: one is measured where it is needed.
        on_stage: called as it goes on.
    """
    refuse_unprunable(analysis)
    options = options.resolved(workspace is not None)
    hardest = replace(options, reduce={quantity: max(shares)})
    meter = Meter(analysis, hardest, measure, table=latency_table, on_stage=on_stage)
    everything = np.ones(analysis.trace.n_channels, dtype=bool)
    current = _Step(analysis, everything, _sizes(analysis))
    with unless_it_does_not_run(analysis.model, analysis.trace.input_shapes):
        allocate, curves = _allocator(current, hardest, meter, True, on_stage, workspace)
    for number, share in enumerate(shares):
        on_stage("plan", number / len(shares))
        goal = meter.aimed_at(replace(options, reduce={quantity: share}))
        try:
            rounded = _rounded(goal, goal.options)
            step = None if rounded.round_to == AUTO else int(rounded.round_to)
            keep = meet(functools.partial(allocate, step=step), functools.partial(_without, current), goal)
        except TargetError as error:
            take(share, error)
            continue
        take(share, Plan(keep, analysis.model.digest, settings(analysis, rounded), (removed(analysis, keep),), curves))


def study(
    model: str | os.PathLike[str],
    options: Options,
    data: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    on_stage: Stage = quiet,
    jobs: int = 1,
    scheduler: str | None = None,
) -> tuple[Analysis, tuple[Curve, ...]]:
    """Load a model and measure what each group loses, by second order, some groups at a time on each of several workers.

    Raises:
        OptionError: no data.
        ModelError: nothing can be pruned.
    """
    options = replace(options, importance="obs", scope="sensitivity")
    analysis, given = opened(model, options, data, preprocess, on_stage)
    options = options.resolved(given is not None)
    refuse_unprunable(analysis)
    assert given is not None
    with threadpool_limits(1):  # sums come out the same, however many workers there are
        if jobs == 1 and scheduler is None:
            return analysis, _curves(analysis, given, options, None, on_stage)
        free = [group.name for group in analysis.trace.groups if not analysis.trace.pinned[group.channels].all()]
        parts = [
            part.tolist() for part in np.array_split(np.array(free, dtype=object), PARTS * max(jobs, 1)) if part.size
        ]
        work = [_Part(os.fspath(model), options, data, preprocess, tuple(part)) for part in parts]
        left = len(work)

        def done(number: int, found: tuple[Curve, ...]) -> None:
            nonlocal left
            left -= 1
            on_stage("measure", 1 - left / len(work))

        found = workers.run(_study_part, work, workers=jobs, scheduler=scheduler, done=done)
    return analysis, tuple(curve for curves in found for curve in curves)


PARTS = 2
"""Parts that a worker gets, about: the last ones then don't wait long for each other."""


@dataclass(frozen=True)
class _Part:
    """What a worker needs to measure some groups."""

    model: str
    options: Options
    data: Any
    preprocess: Any
    names: tuple[str, ...]


def _study_part(part: _Part) -> tuple[Curve, ...]:
    with threadpool_limits(1):
        analysis, given = opened(part.model, part.options, part.data, part.preprocess, quiet)
        assert given is not None
        return _curves(analysis, given, part.options, part.names, quiet)


def _curves(
    analysis: Analysis, given: Data, options: Options, names: tuple[str, ...] | None, on_stage: Stage
) -> tuple[Curve, ...]:
    """Measure what some groups lose; None: all."""
    model, trace = analysis.model, analysis.trace
    with workspace_for(given, analysis, options) as workspace:
        keep = np.ones(trace.n_channels, dtype=bool)
        _, removals = _calibrated_scores(analysis, options, keep, on_stage, workspace, names)
        macs, samples = analysis.cost.totals(keep)[0], workspace.calibration.plain
        told = _told(on_stage, "measure")
        points = second_order.points_of(trace)
        return sensitivity.curves(model, trace, removals, samples, macs, workspace.store, told, points)


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
