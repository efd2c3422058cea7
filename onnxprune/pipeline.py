"""The stages of a run, in order: load, trace, score, allocate, rewrite, prove, verify, report."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune import model as models
from onnxprune import output as outputs
from onnxprune import plan_file, runtime, verify
from onnxprune.channels.cost import CostModel
from onnxprune.channels.trace import trace as trace_model
from onnxprune.comparison import Measure, Stage, compare, quiet
from onnxprune.data import Data, DataLike, Preprocess, inputs_of, load_data
from onnxprune.errors import ModelError, OnnxPruneError, OptionError, OutputError, ProofError
from onnxprune.model import Model
from onnxprune.options import Options
from onnxprune.pruning import budget, importance, rewrite
from onnxprune.report.document import Figures, Held, Inspection, Layer, Report
from onnxprune.types import BoolArray, Check, Pin, Plan, Trace, Verdict

WARN_BELOW = 0.5
"""Share of FLOPs that can move, below which a run warns."""


@dataclass(frozen=True)
class Analysis:
    """A loaded model, its trace and its cost model."""

    model: Model
    trace: Trace
    cost: CostModel


@dataclass(frozen=True)
class Result:
    """What `prune` returns: the pruned model, the plan, and the report."""

    model: Model
    plan: Plan
    report: Report
    trace: Trace

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the pruned model to `path`.

        Raises:
            OutputError: it cannot be written there.
        """
        models.save(self.model, path, _provenance(self.plan))


def analyse(
    model: Model,
    ignore: tuple[str, ...] = (),
    known: dict[str, tuple[int, ...]] | None = None,
    grouped: str = "positions",
    heads: str = "whole",
) -> Analysis:
    """Trace a loaded model; `known` are the shapes of data, for dynamic axes.

    Raises:
        ModelError: it cannot be traced.
        OptionError: an --ignore pattern that matches nothing.
    """
    with _unless_it_does_not_run(model, known):
        traced = trace_model(model, ignore=ignore, input_shapes=known, grouped=grouped, heads=heads)
        return Analysis(model, traced, CostModel(traced))


@contextlib.contextmanager
def _unless_it_does_not_run(model: Model, known: dict[str, tuple[int, ...]] | None) -> Iterator[None]:
    """When a stage fails in a way that nobody foresaw, say so if the model itself is what does not run.

    onnxruntime loads models whose weights do not fit each other, and notices when it runs them.
    """
    try:
        yield
    except (OnnxPruneError, MemoryError):
        raise
    except Exception:
        where = str(model.path)
        shapes = runtime.concrete_shapes(model.header, 1, known=known)
        runtime.run(
            runtime.session(where, optimise=False, where=where),
            runtime.random_feeds(model.header, shapes, 0),
            where=where,
        )
        raise


def make_plan(analysis: Analysis, options: Options, on_stage: Stage = quiet) -> Plan:
    """Score and allocate.

    Progressive steps each aim at an absolute share of the way to the target, so they don't compound.

    Raises:
        ModelError: nothing can be pruned.
        OptionError: no target.
        TargetError: the target cannot be reached.
    """
    model, trace, cost = analysis.model, analysis.trace, analysis.cost
    refuse_unprunable(analysis)
    if not options.has_target:
        raise OptionError(
            "nothing says how much to remove", hint="give --reduce flops=50%, a --limit, or a --threshold"
        )
    rules = budget.Rules(options.round_to, options.min_channels, options.max_ratio, options.scope)
    keep = np.ones(trace.n_channels, dtype=bool)
    dense = cost.totals(keep)
    goals = _limits(options, dense[0], model.params)
    steps = options.steps if options.schedule == "progressive" else 1
    path = []
    for step in range(1, steps + 1):
        on_stage("score", step / steps)
        with _unless_it_does_not_run(model, trace.input_shapes):
            scores = importance.score(model, trace, options.importance, keep, options.seed)
        if options.threshold is not None and step == 1:
            keep = budget.below(trace, scores, keep, rules, options.threshold)
        share = step / steps
        keep = budget.allocate(trace, cost, scores, keep, rules, _part_of_the_way(goals, dense[0], model.params, share))
        path.append(_removed(analysis, keep))
    settings = asdict(replace(options, reduce=dict(options.reduce), limit=dict(options.limit)))
    return Plan(keep, model.digest, settings, tuple(path))


def _removed(analysis: Analysis, keep: BoolArray) -> tuple[float, float]:
    """Return the shares of FLOPs and of parameters that are gone."""
    whole, _ = analysis.cost.totals(np.ones_like(keep))
    macs, params = analysis.cost.totals(keep)
    before = analysis.model.params
    return 1 - macs / whole if whole else 0.0, 1 - params / before if before else 0.0


def refuse_unprunable(analysis: Analysis) -> None:
    """Raise ModelError, with the reasons, when no channel of the model can go."""
    trace = analysis.trace
    if (~trace.pinned).any():
        return
    layers = sorted({node.op for node in analysis.model.graph.nodes} & models.QUANTISED_LAYERS)
    if layers:
        raise ModelError(
            "the model is quantised: there is nothing to prune",
            where=str(analysis.model.path),
            why=f"its layers are {', '.join(layers)}",
            hint="prune the float model, then quantise the result",
        )
    reasons = budget.holders(trace, budget.Rules())
    raise ModelError(
        "nothing can be pruned",
        where=str(analysis.model.path),
        why="; ".join(reasons) or "it has no layer with a constant weight",
        hint="`onnxprune inspect` lists every reason",
    )


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


def prune(
    model: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    data: DataLike | None = None,
    evaluation: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    plan: str | os.PathLike[str] | None = None,
    plan_output: str | os.PathLike[str] | None = None,
    measure: Measure | None = None,
    on_stage: Stage = quiet,
    options: Options | None = None,
    **dials: Any,
) -> Result:
    """Prune a model, prove it, verify it, and write it when `output` is given.

    Args:
        model: path of an ONNX file; it is not changed.
        output: where to write the result; the plan goes beside it as `<name>.plan.json` unless `plan_output` says otherwise.
        data: calibration data: a path as for `--data`, or arrays.
        evaluation: data to verify on; `data` when None.
        preprocess: a `Preprocess`, a preset, or a TOML file.
        plan: a plan.json to replay; no other dial then has a say.
        plan_output: where to write the plan.
        measure: how to measure.
        on_stage: called as the run goes on.
        options: the dials in one value;
        dials: or one by one, fields of `onnxprune.options.Options`: reduce={"flops": 0.5}, importance="l2", …

    Raises:
        OnnxPruneError: with a reason; nothing is written then.
    """
    options, measure = options or _options(dials), measure or Measure()
    destination = Path(output) if output is not None else None
    plan_path = Path(plan_output) if plan_output is not None else destination and destination.with_suffix(".plan.json")
    if plan is not None and plan_output is None and plan_path is not None and outputs.same_file(plan_path, Path(plan)):
        plan_path = None  # the plan that is replayed already lies there
    given = [Path(path) for path in (model, plan, data, evaluation, preprocess) if isinstance(path, str | os.PathLike)]
    for target in (destination, plan_path):
        if target is not None:
            outputs.check_destination(target, *(path for path in given if path.exists()))
    if destination is not None and plan_path is not None and outputs.same_file(destination, plan_path):
        raise OutputError(
            "the plan would overwrite the model", where=str(destination), hint="give the two different paths"
        )

    on_stage("load", None)
    loaded = models.load(model)
    for target in (destination, plan_path):
        if target is not None:
            outputs.check_destination(target, *loaded.files)  # external data, too
    specs = inputs_of(loaded.header)
    calibration = load_data(data, specs, preprocess) if data is not None else None
    checked_on = load_data(evaluation, specs, preprocess) if evaluation is not None else calibration
    known = checked_on.shapes() if checked_on is not None else None
    analysis = analyse(loaded, options.ignore, known, options.grouped, options.heads)
    known = known or analysis.trace.input_shapes
    if plan is not None:
        refuse_unprunable(analysis)
        chosen = plan_file.read(Path(plan), analysis.trace, analysis.model.digest)
        chosen = replace(chosen, path=(_removed(analysis, chosen.keep),))  # it may have been edited
    else:
        chosen = make_plan(analysis, options, on_stage)
    on_stage("rewrite", None)
    with _unless_it_does_not_run(loaded, known):
        pruned = rewrite.delete(analysis.model, analysis.trace, chosen.keep)
        masked = rewrite.mask(analysis.model, analysis.trace, chosen.keep)
    on_stage("prove", None)
    proof = verify.prove(analysis.model, pruned, masked, known, options.seed)
    report = _verify(analysis, pruned, chosen, proof, checked_on, measure, options.seed, on_stage)
    with contextlib.ExitStack() as both:  # plan and model, or none
        if plan_path is not None:
            both.enter_context(plan_file.written(plan_path, chosen, analysis.trace, analysis.model.path.name))
        if destination is not None:
            on_stage("write", None)
            size = models.save(pruned, destination, _provenance(chosen))
            report = replace(report, output=str(destination), after=replace(report.after, size=size))
    return Result(pruned, chosen, report, analysis.trace)


def _options(dials: dict[str, Any]) -> Options:
    unknown = set(dials) - set(Options.__dataclass_fields__)
    if unknown:
        raise OptionError(
            f"unknown option {', '.join(sorted(unknown))}", hint=f"known are {', '.join(Options.__dataclass_fields__)}"
        )
    return Options(**dials)


def _provenance(plan: Plan) -> dict[str, str]:
    return {"onnxprune.version": importlib.metadata.version("onnxprune"), "onnxprune.original.sha256": plan.digest}


def _verify(
    analysis: Analysis,
    pruned: Model,
    plan: Plan,
    proof: verify.Proof,
    data: Data | None,
    measure: Measure,
    seed: int,
    on_stage: Stage,
) -> Report:
    model, trace, cost = analysis.model, analysis.trace, analysis.cost
    on_stage("verify", None)
    before_proto, after_proto = model.to_proto(), pruned.to_proto()
    strict = verify.full_check(before_proto) is None
    checks = verify.structure(after_proto, before_proto, strict=strict)
    where = f"batch {', '.join(map(str, proof.batches))}" + (f"; {proof.note}" if proof.note else "")
    checks.append(Check("loaded equals file", proof.normalised, f"{proof.tolerance:.0e}", True, where))
    checks.append(Check("pruned equals masked", proof.difference, f"{proof.tolerance:.0e}", True, where))
    failed = [check for check in checks if not check]
    if failed:
        raise ProofError(
            "the pruned model is not well-formed",
            where=str(model.path),
            why="; ".join(str(check) for check in failed),
            hint="nothing was written; this is a defect of onnxprune: please report it",
        )
    original = runtime.session(str(model.path), threads=measure.threads, where=str(model.path))  # as users run it
    candidate = runtime.session(after_proto, threads=measure.threads, where="the pruned model")
    found = compare(original, candidate, after_proto, data, measure, on_stage, seed)
    latency = found.latency
    everything = np.ones(trace.n_channels, dtype=bool)
    (macs0, _), (macs1, params1) = cost.totals(everything), cost.totals(plan.keep)
    intervals = (None, None) if latency is None else (latency.a_interval, latency.b_interval)
    times = (None, None) if latency is None else (latency.a, latency.b)
    before = Figures(2 * macs0, macs0, model.params, model.size, *found.accuracy_a, times[0], intervals[0])
    after = Figures(2 * macs1, macs1, round(params1), after_proto.ByteSize(), *found.accuracy_b, times[1], intervals[1])
    return Report(
        model=str(model.path),
        sha256=model.digest,
        output=None,
        settings=dict(plan.settings),
        before=before,
        after=after,
        fidelity=found.fidelity,
        data=found.data,
        samples=found.samples,
        latency=latency,
        layers=layers_of(analysis, plan.keep),
        prunable_share=cost.prunable_share(),
        pinned=pinned_of(trace),
        proof=proof,
        verdict=Verdict(tuple(checks)),
        path=plan.path,
        notes=(*model.notes, *_notes(analysis, strict)),
        versions={
            "onnxprune": importlib.metadata.version("onnxprune"),
            "onnxruntime": runtime.VERSION,
            "onnx": onnx.__version__,
        },
    )


def _notes(analysis: Analysis, strict: bool) -> list[str]:
    notes = []
    share = analysis.cost.prunable_share()
    if share < WARN_BELOW:
        notes.append(f"only {share:.0%} of the FLOPs can move; `onnxprune inspect` says why")
    if not strict:
        notes.append("the original does not pass onnx's full check, so the result was not held to it")
    return notes


def layers_of(analysis: Analysis, keep: BoolArray) -> tuple[Layer, ...]:
    """Return every layer with a weight, before and after."""
    before = analysis.cost.layers(np.ones_like(keep))
    after = analysis.cost.layers(keep)
    return tuple(
        Layer(a.label, a.op, a.channels, b.channels, a.macs, b.macs, a.params, b.params)
        for a, b in zip(before, after, strict=True)
    )


def pinned_of(trace: Trace) -> tuple[tuple[str, str, int], ...]:
    """Return (reason, node, number of channels) of everything that has to stay."""
    return tuple((pin.reason, pin.node, int(pin.channels.size)) for pin in trace.pins)


def inspect(analysis: Analysis) -> Inspection:
    """Return what `inspect` shows."""
    everything = np.ones(analysis.trace.n_channels, dtype=bool)
    macs, _ = analysis.cost.totals(everything)
    shapes = {name: list(shape) for name, shape in analysis.trace.input_shapes.items()}
    return Inspection(
        model=str(analysis.model.path),
        sha256=analysis.model.digest,
        size=analysis.model.size,
        params=analysis.model.params,
        macs=macs,
        prunable_share=analysis.cost.prunable_share(),
        layers=analysis.cost.layers(everything),
        trace=analysis.trace,
        held=_held(analysis),
        inputs=shapes,
        notes=analysis.model.notes,
    )


def _held(analysis: Analysis) -> tuple[Held, ...]:
    """Return what each kind of pin holds, dearest first."""
    kinds: dict[tuple[str, str], list[Pin]] = {}
    for pin in analysis.trace.pins:
        kinds.setdefault((pin.op, pin.reason), []).append(pin)
    keep = np.ones(analysis.trace.n_channels, dtype=bool)
    whole, _ = analysis.cost.totals(keep)
    found = []
    for (op, reason), pins in kinds.items():
        channels = np.unique(np.concatenate([pin.channels for pin in pins]))
        without = keep.copy()
        without[channels] = False
        share = 1 - analysis.cost.totals(without)[0] / whole if whole else 0.0
        found.append(Held(op, reason, len({pin.node for pin in pins}), int(channels.size), share))
    return tuple(sorted(found, key=lambda held: -held.share))
