"""Give layers another form: which taps, blocks of channels, directions and branches go, chosen by what the output loses per what they save."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxprune import runtime, sensitivity, verify
from onnxprune.analysis import Analysis, analyse, unless_it_does_not_run
from onnxprune.channels.linear import Linear, linear_layers
from onnxprune.channels.readers import Reader
from onnxprune.comparison import Stage, quiet
from onnxprune.errors import TargetError
from onnxprune.granularity import candidates
from onnxprune.granularity.candidates import Candidate
from onnxprune.granularity.edits import Depth, Edit, Grouped, Kernel, Merged, Rank, to_dict
from onnxprune.granularity.losses import Gram
from onnxprune.granularity.rewriting import Bases, RefusalError, reform
from onnxprune.granularity.timing import Saving, Timer
from onnxprune.model import Model
from onnxprune.moments import threads_for
from onnxprune.options import QUANTITIES, WITH_DATA, Options
from onnxprune.pruning import budget, rewrite, second_order
from onnxprune.rounding import FINER, steps
from onnxprune.search import Choice, Mended, Workspace, mend, settings
from onnxprune.targets import Meter, meet
from onnxprune.types import BoolArray, FloatArray, Plan, Repaired, Trace

USUAL = 0.03
"""Error of a layer, as a share of its output's variance, of the edit that is measured for all of its kind: about what will be chosen."""
PRICES = (1e-9, 1e9)
HALVINGS = 60
MOST_LOST = 1e3
"""Loss of the output from which an edit is not looked at."""


@dataclass(frozen=True)
class Scored:
    """An edit that is measured to be faster, and what it costs.

    Attributes:
        candidate: which.
        saving: milliseconds, multiplications, parameters.
        error: of the layer, as a share of the variance of its output, after the rest has made up for what goes; 0: exact.
        loss: divergence of the output, expected from one measurement for each kind of edit in a layer.
    """

    candidate: Candidate
    saving: Saving
    error: float
    loss: float

    @property
    def edit(self) -> Edit:
        """The edit."""
        return self.candidate.edit


@dataclass(frozen=True)
class Study:
    """What came into question, what is needed to do it, and what was left out, and why.

    Attributes:
        scored: edits that are faster.
        bases: directions of layers, see `onnxprune.granularity.rewriting.Bases`.
        notes: what a reader should know.
    """

    scored: tuple[Scored, ...]
    bases: Mapping[tuple[str, str], FloatArray]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Base:
    """What channels are chosen from: the original, or what edits have made of it.

    Attributes:
        analysis: of it, repaired.
        reference: the original with its channels in the order of `analysis`: what to repair towards.
        chosen: the edits, in rounds; each round in the terms of what the one before left.
        proof: that each gave what the dense layers give with what went set to zero; None without edits.
        layers: what repair did.
        notes: what a reader should know.
    """

    analysis: Analysis
    reference: Model
    chosen: tuple[tuple[Scored | Edit, ...], ...] = ()
    proof: verify.Proof | None = None
    layers: tuple[Repaired, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def teacher(self) -> Analysis:
        """What to train towards: the original, with the facts of what is left of it."""
        return replace(self.analysis, model=self.reference)

    @property
    def blocks(self) -> tuple[tuple[dict[str, Any], ...], ...]:
        """The edits as they stand in a plan, with what each costs and saves."""
        return tuple(tuple(_entry(choice) for choice in part) for part in self.chosen)

    @property
    def edits(self) -> tuple[tuple[Edit, ...], ...]:
        """The edits, in rounds."""
        return tuple(tuple(c.edit if isinstance(c, Scored) else c for c in part) for part in self.chosen)


def _entry(choice: Scored | Edit) -> dict[str, Any]:
    if not isinstance(choice, Scored):
        return to_dict(choice)
    saving = choice.saving
    why = {
        "error": choice.error,
        "divergence": choice.loss,
        "milliseconds": [saving.before, saving.after],
        "macs_removed": saving.macs,
        "params_removed": saving.params,
    }
    return {**to_dict(choice.edit), "why": why}


# ------------------------------------------------------------------------------------------------------------------ study


def study(base: Base, options: Options, workspace: Workspace, meter: Meter, on_stage: Stage = quiet) -> Study:
    """Time and score every edit that comes into question.

    Each layer is timed by itself before and after; what is not faster is not looked at further. The error of those that are left follows
    from the Gram matrix of the layer's input, the weights that stay being adjusted; for one edit of each kind in each layer the loss
    of the output is measured, and those of the others are taken to be in the same proportion as their errors.

    Args:
        base: the model.
        options: the dials.
        workspace: calibration data.
        meter: says how to time.
        on_stage: called as it goes on.
    """
    analysis = base.analysis
    model, trace = analysis.model, analysis.trace
    layers = linear_layers(model.graph)
    ignored = set() if not options.ignore else _ignored(trace, options.ignore)
    shapes = runtime.concrete_shapes(model.header, meter.how.batch, known=trace.input_shapes)
    timer = Timer(model, trace, shapes, meter.how.batch, meter.how.threads)
    found: list[Candidate] = []
    kinds, step = options.blocks, _step(trace, options)
    for n, layer in layers.items():
        if trace.labels[n] not in ignored:
            found += candidates.layer_candidates(layer, trace.labels[n], n, kinds, step)
    if "depth" in kinds:
        found += (c for c in candidates.branches(model) if not _touches(c, trace, ignored))
        found += (c for c in candidates.pairs(model) if not _touches(c, trace, ignored))
    faster: list[tuple[Candidate, Saving]] = []
    slower = 0
    for number, candidate in enumerate(found):
        on_stage("time layers", number / len(found))
        saving = timer.saving(candidate.edit, candidate.nodes)
        if saving is not None and saving.is_faster:
            faster.append((candidate, saving))
        elif saving is not None:
            slower += 1
    notes = []
    if slower:
        notes.append(
            f"{slower} of {len(found)} edits of layers that came into question were measured not to be faster, and were left"
        )
    scored, bases = _scored(analysis, faster, options, workspace, on_stage)
    return Study(tuple(scored), bases, tuple(notes))


def _ignored(trace: Trace, patterns: Iterable[str]) -> set[str]:
    from fnmatch import fnmatchcase

    return {label for label in trace.labels if any(fnmatchcase(label, pattern) for pattern in patterns)}


def _touches(candidate: Candidate, trace: Trace, ignored: set[str]) -> bool:
    return any(trace.labels[n] in ignored for n in candidate.nodes)


def _step(trace: Trace, options: Options) -> int:
    return int(options.round_to) if isinstance(options.round_to, int) else max(steps(trace)[0], FINER[0])


def _scored(
    analysis: Analysis,
    faster: Sequence[tuple[Candidate, Saving]],
    options: Options,
    workspace: Workspace,
    on_stage: Stage,
) -> tuple[list[Scored], dict[tuple[str, str], FloatArray]]:
    model, trace = analysis.model, analysis.trace
    layers = linear_layers(model.graph)
    by_node: dict[int, list[tuple[Candidate, Saving]]] = {}
    exact = [Scored(c, saving, 0.0, 0.0) for c, saving in faster if isinstance(c.edit, Merged)]
    for candidate, saving in faster:
        if not isinstance(candidate.edit, Merged):
            by_node.setdefault(candidate.nodes[-1], []).append((candidate, saving))
    readers = {n: _reader(n, layers[n]) for n in by_node if n in layers}
    macs = analysis.cost.totals(np.ones(trace.n_channels, dtype=bool))[0]
    points = len({(n, type(c.edit), getattr(c.edit, "form", "")) for n, found in by_node.items() for c, _ in found})
    probe = sensitivity.Probe(model, workspace.calibration.plain, macs * max(points, 1), workspace.store)
    statistics = _collected(analysis, readers, options, workspace)
    scored: list[Scored] = []
    bases: dict[tuple[str, str], FloatArray] = {}
    for number, n in enumerate(sorted(by_node)):
        on_stage("score layers", number / len(by_node))
        probe.advance(n)
        if n in layers:
            at, seen = next(statistics)
            assert at == n
            with threads_for(seen.mean.shape[1]):
                gram = Gram(layers[n], _weighing(seen, options.importance), seen.mean)
                scored += _of_layer(analysis, n, gram, by_node[n], probe, bases)
        else:
            scored += _of_branch(analysis, n, by_node[n], probe)
    probe.close()
    return [*exact, *(found for found in scored if found.loss < MOST_LOST)], bases


ROOM = 1.25
"""Of the memory for sums: here a covariance lies beside fewer copies of itself than where its inverse is needed."""


def _weighing(seen: second_order.Statistics, importance: str) -> FloatArray:
    """Return what errors of the input are weighed by: its covariance, damped; its diagonal, or for a norm of the weights nothing."""
    groups, features = seen.variance.shape
    mean = seen.variance.mean(axis=1, keepdims=True)
    damping = seen.damping * mean + 1e-12
    if importance not in WITH_DATA:
        return np.ones((groups, features))
    if seen.covariance is None or importance in ("activation", "apoz"):
        return np.asarray(seen.variance + damping)
    lifted = seen.covariance.copy()
    lifted[:, np.arange(features), np.arange(features)] += damping
    return lifted


def _of_layer(
    analysis: Analysis,
    n: int,
    gram: Gram,
    found: Sequence[tuple[Candidate, Saving]],
    probe: sensitivity.Probe,
    bases: dict[tuple[str, str], FloatArray],
) -> list[Scored]:
    """Score the edits of one layer."""
    by_kind: dict[str, list[tuple[Candidate, Saving, float, FloatArray | None]]] = {}
    label = analysis.trace.labels[n]
    errors: dict[str, FloatArray] = {}
    for candidate, saving in found:
        edit = candidate.edit
        if isinstance(edit, Rank):
            if edit.form not in errors:
                basis, errors[edit.form] = gram.directions() if edit.form == "channel" else gram.separable()
                most = max(c.edit.rank for c, _ in found if isinstance(c.edit, Rank) and c.edit.form == edit.form)
                bases[label, edit.form] = basis[:, :, :most]
            by_kind.setdefault(edit.form, []).append((candidate, saving, float(errors[edit.form][edit.rank]), None))
            continue
        assert isinstance(edit, Kernel | Grouped)
        if isinstance(edit, Grouped):
            inputs, outputs = gram.blocks(edit.groups)
            edit = replace(edit, inputs=inputs, outputs=outputs)
        matrix, error = gram.without(edit)
        by_kind.setdefault(edit.granularity, []).append((replace(candidate, edit=edit), saving, error, matrix))
    scored = []
    for kind, rows in by_kind.items():
        rows = _undominated(rows)
        candidate, _, error, fitted = min(rows, key=lambda row: abs(math.log(max(row[2], 1e-9) / USUAL)))
        if fitted is None:
            assert isinstance(candidate.edit, Rank)
            fitted = gram.projected(bases[label, kind], candidate.edit.rank, kind == "spatial")
        variant = analysis.model.copy()
        layer = replace(gram.layer, node=variant.graph.nodes[n])
        layer.write(fitted, gram.bias(fitted) if gram.layer.holds_bias and not _adds(gram.layer) else None)
        loss = probe.loss(variant)
        scored += [Scored(c, saving, e, loss * e / max(error, 1e-12)) for c, saving, e, _ in rows]
    return scored


def _adds(layer: Any) -> bool:
    return getattr(layer, "adds", None) is not None


def _undominated(rows: list[tuple[Candidate, Saving, float, Any]]) -> list[tuple[Candidate, Saving, float, Any]]:
    """Leave out what saves less time than another one that loses no more."""
    best: list[tuple[Candidate, Saving, float, Any]] = []
    for row in sorted(rows, key=lambda row: (row[2], row[1].after)):
        if not best or row[1].after < best[-1][1].after:
            best.append(row)
    return best


def _of_branch(
    analysis: Analysis, n: int, found: Sequence[tuple[Candidate, Saving]], probe: sensitivity.Probe
) -> list[Scored]:
    """Score the branches of one sum: each is replaced by its mean, which is what later layers can make up for at least."""
    import onnx_graphsurgeon as gs

    scored = []
    for candidate, saving in found:
        edit = candidate.edit
        assert isinstance(edit, Depth)
        variant = analysis.model.copy()
        node = variant.graph.nodes[n]
        branch = node.inputs[1 - edit.stays]
        shape = analysis.trace.shapes[branch.name]
        axis = analysis.trace.carried.get(branch.name, (1 if len(shape) > 1 else 0, None))[0]
        mean = probe.mean(branch.name, axis)
        around = [1] * len(shape)
        around[axis] = -1
        node.inputs[1 - edit.stays] = gs.Constant(
            f"{node.outputs[0].name}__mean", mean.reshape(around).astype(np.float32)
        )
        scored.append(Scored(candidate, saving, 1.0, probe.loss(variant)))
    return scored


# ----------------------------------------------------------------------------------------------------------------- choose


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
        return _edited(base, _taken(found, chosen), found.bases, options)[0].analysis.model

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
    """

    base: Base
    choice: Choice
    meter: Meter
    mended: Mended | None = None


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
    if "filter" in options.granularity:
        found = contend(Contender(base, choose_from(base, meter), meter), options, workspace, choose_from, on_stage)
    else:
        last = alone(base, options, workspace, meter, on_stage)
        keep = np.ones(last.analysis.trace.n_channels, dtype=bool)
        plan = Plan(keep, base.analysis.model.digest, settings(base.analysis, options))
        found = Contender(last, Choice(plan, last.analysis, keep), meter.on(last.analysis))
    plan = replace(found.choice.plan, blocks=found.base.blocks)
    return replace(found, choice=replace(found.choice, plan=plan))


def contend(
    first: Contender,
    options: Options,
    workspace: Workspace,
    choose_from: Callable[[Base, Meter], Choice],
    on_stage: Stage = quiet,
) -> Contender:
    """Let other edits than those of channels compete with these, and return what loses least.

    At a price, which is what the last channels that went cost (divergence of the output per share of what is bound), each layer gets
    the edit with the largest surplus; channels do the rest of the way. That is done at some prices around it, and the results, repaired,
    are held against each other on samples held out.

    Args:
        first: channels alone.
        options: the dials.
        workspace: calibration data.
        choose_from: chooses channels from a base so that the targets are met.
        on_stage: called as it goes on.
    """
    original = first.base.analysis
    found = study(first.base, options, workspace, first.meter, on_stage)
    gauge = BlockMeter(first.meter, found.scored)
    gains = gauge.gains()
    price = price_of(first, gauge)
    best = replace(first, mended=_mended(first, options, workspace, on_stage))
    told = [_told(first, _loss(best, original, workspace))]
    seen = {np.zeros(len(found.scored), dtype=bool).tobytes()}
    for factor in FACTORS:
        chosen = pick(found.scored, gains, factor * price)
        if chosen.tobytes() in seen:
            continue
        seen.add(chosen.tobytes())
        base = apply(first.base, _taken(found, chosen), found.bases, options, workspace, on_stage)
        meter = first.meter.on(base.analysis)
        try:
            here = Contender(base, choose_from(base, meter), meter)
        except TargetError as error:
            told.append(f"{int(chosen.sum())} layers of another form: {error}")
            continue
        here = replace(here, mended=_mended(here, options, workspace, on_stage))
        told.append(_told(here, _loss(here, original, workspace)))
        if _is_better(here, best, original, options, workspace):
            best = here
    notes = [*best.base.notes, *found.notes, "held against each other: " + "; ".join(told)]
    return replace(best, base=replace(best.base, notes=tuple(notes)))


FACTORS = (0.3, 1.0, 3.0)
"""Of the price of the last channels, what edits are chosen at."""


def _told(contender: Contender, loss: float) -> str:
    edits = sum(len(part) for part in contender.base.chosen)
    return (
        f"divergence {loss:.3g} with {edits} layers of another form"
        if edits
        else f"divergence {loss:.3g} by channels alone"
    )


def _is_better(one: Contender, other: Contender, original: Analysis, options: Options, workspace: Workspace) -> bool:
    if options.max_drop is None:
        return _loss(one, original, workspace) < _loss(other, original, workspace)
    at = QUANTITIES.index(options.minimise)
    return one.meter.totals(one.choice.plan.keep)[at] < other.meter.totals(other.choice.plan.keep)[at]


def _mended(contender: Contender, options: Options, workspace: Workspace, on_stage: Stage) -> Mended:
    choice, reference = contender.choice, contender.base.reference
    pruned = rewrite.delete(choice.start.model, choice.start.trace, choice.keep)
    if choice.keep.all() or options.repair not in ("lstsq", "bias"):
        return Mended(pruned, notes=workspace.notes)
    return mend(choice.start, pruned, choice.keep, workspace, options, on_stage, reference=reference)


def _loss(contender: Contender, original: Analysis, workspace: Workspace) -> float:
    assert contender.mended is not None
    return sensitivity.losses(original.model, [contender.mended.model], workspace.calibration)[0]


def price_of(contender: Contender, gauge: BlockMeter) -> float:
    """Return what the last channels to go have cost: divergence of the output per share of what is bound, the median over the groups."""
    plan, meter = contender.choice.plan, contender.meter
    curves = {curve.group: curve for curve in plan.curves}
    whole = np.maximum(gauge.start, 1e-30)
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


# ------------------------------------------------------------------------------------------------------------------ apply


@dataclass(frozen=True)
class _Made:
    masked: Model
    changed: frozenset[str]
    folded: str = ""
    given: tuple[Scored | Edit, ...] = field(default=())


def apply(
    base: Base,
    chosen: Sequence[Scored | Edit],
    bases: Mapping[tuple[str, str], FloatArray],
    options: Options,
    workspace: Workspace | None,
    on_stage: Stage = quiet,
) -> Base:
    """Make one round of edits, prove it, and repair what is left.

    Raises:
        PlanError: an edit that cannot be made.
        ProofError: the result does not give what the dense layers give with what went set to zero.
    """
    if not chosen:
        return base
    on_stage("reform", None)
    after, made = _edited(base, chosen, bases, options)
    model, known = after.analysis.model, base.analysis.trace.input_shapes
    on_stage("prove", None)
    with unless_it_does_not_run(base.analysis.model, known):
        proof = verify.prove(base.analysis.model, model, made.masked, known, options.seed, loaded=bool(base.chosen))
        if made.folded:
            again = verify.prove(
                base.analysis.model, after.reference, base.analysis.model, known, options.seed, loaded=True
            )
            proof = replace(proof, difference=max(proof.difference, again.difference))
    if base.proof is not None:
        proof = replace(
            proof,
            difference=max(proof.difference, base.proof.difference),
            normalised=max(proof.normalised, base.proof.normalised),
        )
    notes = [*base.notes, *((made.folded,) if made.folded else ())]
    layers: tuple[Repaired, ...] = ()
    analysis = after.analysis
    if workspace is not None and options.repair in ("lstsq", "bias"):
        keep = np.ones(analysis.trace.n_channels, dtype=bool)
        mended = mend(
            analysis, model, keep, workspace, options, on_stage, reference=after.reference, changed=made.changed
        )
        notes += [note for note in mended.notes if note not in (*notes, *workspace.notes)]
        layers = mended.layers
        analysis = analyse(mended.model, options.ignore, known, options.grouped, options.heads, options.norms)
    return replace(after, analysis=analysis, proof=proof, layers=layers, notes=tuple(notes))


def _norms(options: Options) -> str:
    return options.norms if options.norms != "auto" else "keep"


def _edited(
    base: Base, chosen: Sequence[Scored | Edit], bases: Mapping[tuple[str, str], FloatArray], options: Options
) -> tuple[Base, _Made]:
    """Make edits, unproven and unrepaired."""
    edits: list[Edit] = [c.edit if isinstance(c, Scored) else c for c in chosen]
    model, reference, edits, folded = _fold(base, edits)
    of_layer: Bases = {
        edit.layer: bases[edit.layer, edit.form]
        for edit in edits
        if isinstance(edit, Rank) and (edit.layer, edit.form) in bases
    }
    made = reform(model, edits, of_layer)
    trace = base.analysis.trace
    analysis = analyse(made.model, options.ignore, trace.input_shapes, options.grouped, options.heads, options.norms)
    after = replace(base, analysis=analysis, reference=reference, chosen=(*base.chosen, tuple(chosen)))
    return after, _Made(made.masked, made.changed, folded)


def _fold(base: Base, edits: Sequence[Edit]) -> tuple[Model, Model, list[Edit], str]:
    """Put channels in the order that their blocks want, wherever they are stored, so that nothing is left to do at run time.

    Returns:
        The model and the reference in that order, the edits in the terms of these, and what was done.
    """
    model, reference, trace = base.analysis.model, base.reference, base.analysis.trace
    grouped = [edit for edit in edits if isinstance(edit, Grouped)]
    if not grouped or base.chosen:  # later the reference has other layers than the model
        return model, reference, list(edits), ""
    order = np.arange(trace.n_channels)
    claimed = np.zeros(trace.n_channels, dtype=bool)
    done: dict[str, Grouped] = {}
    left: list[str] = []
    for edit in grouped:
        sides = sides_of(trace, edit.layer)
        plain = edit
        for name, wanted in (("inputs", edit.inputs), ("outputs", edit.outputs)):
            channels = sides.get(name)
            if channels is None or claimed[channels].any():
                left.append(edit.layer)
                continue
            trial = order.copy()
            trial[channels] = channels[list(wanted)]
            if rewrite.permute(model, trace, trial) is None:
                left.append(edit.layer)
                continue
            order = trial
            claimed[channels] = True
            ordered = tuple(range(len(wanted)))
            plain = replace(plain, inputs=ordered) if name == "inputs" else replace(plain, outputs=ordered)
        done[edit.layer] = plain
    note = f"channels were put in order for {len(grouped)} grouped layers"
    if left:
        note += (
            f"; at {', '.join(dict.fromkeys(left))} that is done at run time, as the same channels are in use elsewhere"
        )
    result = rewrite.permute(model, trace, order)
    assert result is not None
    return result, result, [done.get(edit.layer, edit) for edit in edits], note


def sides_of(trace: Trace, label: str) -> dict[str, Any]:
    """Return the channels that a layer reads (`inputs`) and writes (`outputs`), where these may change places; absent where not."""
    n = trace.labels.index(label)
    found = {}
    for fact in trace.slices:
        name = {"reads": "inputs", "writes": "outputs"}.get(fact.role)
        if fact.layer != n or name is None:
            continue
        channels = fact.channels
        free = (channels >= 0).all() and np.unique(channels).size == channels.size and not trace.pinned[channels].any()
        if free:
            found[name] = channels
    return found


def replayed(
    base: Base,
    rounds: Sequence[Sequence[Edit]],
    options: Options,
    workspace: Workspace | None,
    on_stage: Stage = quiet,
) -> Base:
    """Make the edits of a plan; directions follow from the data, without any from the weights.

    Raises:
        PlanError: an edit that cannot be made.
    """
    for edits in rounds:
        bases = {} if workspace is None else _bases(base.analysis, edits, options, workspace)
        base = apply(base, edits, bases, options, workspace, on_stage)
    return base


def _bases(
    analysis: Analysis, edits: Sequence[Edit], options: Options, workspace: Workspace
) -> dict[tuple[str, str], FloatArray]:
    layers = linear_layers(analysis.model.graph)
    numbers = {label: n for n, label in enumerate(analysis.trace.labels)}
    wanted = {numbers[e.layer]: e for e in edits if isinstance(e, Rank) and numbers.get(e.layer) in layers}
    readers = {n: _reader(n, layers[n]) for n in wanted}
    found: dict[tuple[str, str], FloatArray] = {}
    for n, seen in _collected(analysis, readers, options, workspace):
        edit, gram = wanted[n], Gram(layers[n], _weighing(seen, options.importance), seen.mean)
        with contextlib.suppress(RefusalError):  # the edit itself will say why
            basis, _ = gram.directions() if edit.form == "channel" else gram.separable()
            found[edit.layer, edit.form] = basis[:, :, : edit.rank]
    return found


def _reader(n: int, layer: Linear) -> Reader:
    groups, _, features = layer.matrix(layer.values).shape
    return Reader(n, layer, np.zeros((groups, features), dtype=np.int64))


def _collected(
    analysis: Analysis, readers: dict[int, Reader], options: Options, workspace: Workspace
) -> Iterator[tuple[int, second_order.Statistics]]:
    return second_order.collect(
        analysis.model,
        analysis.trace,
        workspace.calibration.plain,
        readers,
        workspace.store,
        workspace.memory * ROOM,
        options.seed,
        hold_out=True,
    )
