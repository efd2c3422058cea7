"""Stages that check a result, measure it, report it and write it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np

from onnxprune import fileio, plan_file
from onnxprune.errors import ProofError
from onnxprune.evaluation import structure
from onnxprune.evaluation.benchmark import timing_key
from onnxprune.evaluation.compare import Front, compare, finite_check
from onnxprune.evaluation.never_slower import slower_error, speed_check
from onnxprune.evaluation.policy import GateLimits
from onnxprune.evaluation.verdict import Judged, hold_quality
from onnxprune.graph import io
from onnxprune.graph import model as models
from onnxprune.graph.analysis import analyse, layers_of, pinned_of, versions
from onnxprune.graph.comparison_points import in_front
from onnxprune.graph.model import Model
from onnxprune.pipeline.distillation import forget_states
from onnxprune.pipeline.rejection import delivered_to, kept_note, refused_by
from onnxprune.pipeline.run import Run, Stage
from onnxprune.report import grouping, saving, text
from onnxprune.report.details import details
from onnxprune.report.document import Report, figures
from onnxprune.runtime.session import SessionConfig, open_session
from onnxprune.runtime.timing import Latency
from onnxprune.surgery.cuts import Pair, Subject
from onnxprune.types import Check, Verdict

SEEN = "accuracy and agreement were measured on the samples that repair and training have seen; --eval takes others"
UNMEASURED = "quality was not measured: no output of numbers has one shape in both models"
TRAINED_ON = "accuracy and agreement were measured on the samples that were trained on; --eval takes others"


def check_structure(run: Run) -> Run:
    """Check that the result is well-formed, as far as the original is, with its inputs and outputs."""
    run.on_stage("verify", None)
    strict = structure.full_check(run.original.model) is None
    if not strict:
        run = run.noted("the original does not pass onnx's full check, so this check was skipped for the result")
    return replace(run, checks=tuple(structure.check_structure(run.model, run.original.model, strict=strict)))


def well_formed(run: Run) -> Run:
    """Add the proof to the checks, and refuse a result that fails any.

    A result with more parameters than the original is refused once it is kept under another name.

    Raises:
        ProofError: the result is not well-formed.
    """
    proof = run.proof
    assert proof is not None
    where = f"batch {', '.join(map(str, proof.batches))}" + (f"; {proof.note}" if proof.note else "")
    amounts = {"loaded equals file": proof.normalized, "pruned equals masked": proof.difference}
    proven = (Check(name, amount, f"{proof.tolerance:.0e}", True, where) for name, amount in amounts.items())
    run = replace(run, checks=(*run.checks, *proven))
    failed = [check for check in run.checks if not check]
    if failed:
        raise ProofError(
            "the pruned model is not well-formed",
            where=str(run.original.model.path),
            why="; ".join(str(check) for check in failed),
            hint="nothing was written; this is a defect of onnxprune: please report it",
        )
    before, after = run.original.model.params, models.count_params(run.model.stub()[0])
    if after > before:
        why = f"it has {after:,}, the original has {before:,}"
        refusal = ProofError(
            "the result has more parameters than the original",
            where=str(run.original.model.path),
            why=why,
            hint="remove more, or repair less with --repair none",
        )
        return replace(
            run, refusal=refusal, checks=(*run.checks, Check("parameters", after, before, False, kind="cost"))
        )
    return run


def measure(run: Run) -> Run:
    """Measure accuracy, fidelity and latency of both models on the same inputs, as the benchmark config says."""
    path, config = str(run.original.model.path), run.measure.session
    original = open_session(path, config, where=path)
    candidate = run.model.session(config, where=f"the {'pruned' if run.sources.teacher is None else 'trained'} model")
    header, signature = run.model.header, run.original.model.signature
    front = front_of(run.original.model, run.model, config)
    if front:
        run = run.noted(
            f"figures are of {', '.join(front.measured.names)}: in outputs that are selected from it rows change places"
        )
    seed, data = run.options.seed, run.evaluation
    found = compare(original, candidate, header, data, run.evaluating, signature, run.on_stage, seed, front, run.task)
    return replace(run, comparison=found)


def front_of(original: Model, result: Model, config: SessionConfig) -> Front | None:
    """Return what stands for outputs that a selection leads to; None without such outputs, or where a model lacks it."""
    found = in_front(original.graph, (tensor.name for node in result.graph.nodes for tensor in node.outputs))
    if found is None:
        return None
    first, second = Subject(original, str(original.path)), Subject(result, "the result")
    return Front(found, Pair(first, second, found.names, found.points, config))


def judge_quality(run: Run) -> Run:
    """Hold the quality of the result against `--tolerate`, `--max-drop`, or the default."""
    options = run.options
    limit = options.tolerate if options.tolerate is not None else options.max_drop
    judged = Judged(run.comparison, GateLimits(max_drop=limit if run.comparison.is_real else None), doubts=run.doubts)
    return replace(run, checks=(*hold_quality(judged), *run.checks))


def check_finite(run: Run) -> Run:
    """Check that the outputs are finite."""
    return replace(run, checks=(*run.checks, finite_check(run.comparison)))


def hold_targets(run: Run) -> Run:
    """Check the result against the targets that are measured."""
    estimator = run.estimator
    if estimator is None or not estimator.measured:
        return run
    return replace(run, checks=(*run.checks, *estimator.checks(_decisive(run), run.model)))


def _decisive(run: Run) -> Latency | None:
    """Return the latency that decisions are taken from: that of the timing table, which gets the measured one."""
    found = run.comparison.latency
    if found is None or found.b is None:
        return found
    key = timing_key("result", [run.original.model, run.model], run.shapes, run.measure)
    figures = found.figures
    return found.with_figures(run.timings.of(key, len(figures), lambda: figures))


def never_slower(run: Run) -> Run:
    """Refuse a result that is slower than the original, once it is kept under another name."""
    timed, original = _decisive(run), run.original.model
    if run.destinations.model is None or run.destinations.force or timed is None:
        return run
    check = speed_check(original, run.model, timed, run.shapes, run.measure, run.timings, run.on_stage)
    if check is None:
        return run
    run = replace(run, checks=(*run.checks, check))
    if check or run.refusal is not None:
        return run
    return replace(run, refusal=slower_error(original, run.model, check, timed, run.shapes, run.measure))


def report(run: Run) -> Run:
    """Make the report; with the details of layers and samples where a file is asked for."""
    original, model, found, plan = run.original, run.original.model, run.comparison, run.plan
    analysis, estimator = run.edited.analysis, run.estimator
    macs0, _ = original.cost.totals(np.ones(original.trace.n_channels, dtype=bool))
    counted = analyse(run.model, known=original.trace.input_shapes)  # in the result, not predicted
    macs1, _ = counted.cost.totals(np.ones(counted.trace.n_channels, dtype=bool))
    amounts = macs1, models.count_params(run.model.stub()[0]), run.model.byte_size()
    before, after = figures(found, (macs0, model.params, model.size), amounts)
    trained = {"training": asdict(run.training)} if run.training is not None else {}
    judged = {**({} if run.task is None else {"task": run.task.name}), **run.sources.judging.plain()}
    more = None
    if run.destinations.report is not None:
        run.on_stage("profile", None)
        around = grouping.groups(run.traced, grouping.survivors(analysis.trace, run.keep))
        more = details((str(model.path), run.model), found, run.evaluation, run.measure.session, around)
    made = Report(
        model=str(model.path),
        sha256=model.digest,
        output=None,
        settings={**({"seed": run.options.seed} if plan is None else plan.settings), **trained, **judged},
        before=before,
        after=after,
        fidelity=found.fidelity,
        data=found.data,
        samples=found.samples,
        latency=found.latency,
        layers=layers_of(analysis, run.keep, original),
        prunable_share=original.cost.prunable_share(),
        pinned=pinned_of(run.traced),
        proof=run.proof,
        verdict=Verdict(run.checks),
        path=() if plan is None else plan.path,
        notes=(*run.notes, *run.timings.notes),
        repair=run.repaired,
        curves=() if plan is None else plan.curves,
        training=None if run.tuned is None else run.tuned.to_dict(),
        versions=versions(),
        latency_table=estimator.table if estimator is not None and estimator.measured else None,
        blocks=() if plan is None else plan.blocks,
        task="" if found.task is None else found.task.name,
        lead="" if found.lead is None else found.lead.name,
        lost=found.lost,
        details=more,
    )
    return replace(run, report=made)


def note_samples(run: Run) -> Run:
    """Note where the figures were measured on the calibration samples or the training samples."""
    if not run.comparison.accuracy[0] and not run.comparison.fidelity:
        return run.noted(UNMEASURED)
    if run.sources.evaluation is not None:
        return run
    if run.plan is None:
        return run.noted(TRAINED_ON)
    return run.noted(SEEN) if run.workspace is not None and (run.repaired or run.tuned) else run


def finish_plan(run: Run) -> Run:
    """Set the channels that stay in the end, and the steps that led there, in the plan."""
    return replace(run, plan=replace(run.plan, keep=run.keep, path=run.path))


def provenance(run: Run) -> dict[str, str]:
    """Return metadata of a pruned model, beside version and original; a model that was only trained keeps its own."""
    plan, data = run.plan, run.data
    if plan is None:  # channels that training has gated are in no plan
        return {plan_file.ENTRY: ""} if run.tuned is not None and run.model is not run.tuned.model else {}
    target = {key: plan.settings[key] for key in ("reduce", "limit", "max_drop", "threshold") if plan.settings.get(key)}
    return {
        plan_file.ENTRY: plan_file.fingerprint(plan_file.to_dict(plan, run.edited.analysis.trace, "")),
        "data": "none" if data is None else f"{len(data)} samples, {data.digest()}",
        "target": json.dumps(target, sort_keys=True),
        "quality": text.quality(run.report.verdict),
        "verdict": run.report.verdict.headline,
    }


def write(run: Run) -> Run:
    """Write model and plan, both or none; a result that is refused gets another name."""
    plan, made, refused = run.plan, run.report, refused_by(run)
    destinations = delivered_to(run)
    output = destinations.model
    if refused and output is not None:
        made = replace(made, notes=(*made.notes, kept_note(refused, destinations)))
    trace, name = run.edited.analysis.trace, run.edited.analysis.model.path.name
    with fileio.Transaction() as both:
        if plan is not None and destinations.plan is not None:
            plan_file.write(destinations.plan, plan, trace, name, both)
        if output is not None:
            run.on_stage("write", None)
            size = io.save(run.model, output, models.provenance(run.original.model.digest, **provenance(run)), both)
            made = replace(made, output=str(output), after=replace(made.after, size=size))
    if run.tuned is not None:
        forget_states(run)
    return replace(run, report=made)


def save_report(run: Run) -> None:
    """Write the report where one is asked for."""
    page, plan, edited = run.destinations.report, run.plan, run.edited.analysis
    if page is not None:
        content = None if plan is None else plan_file.to_dict(plan, edited.trace, edited.model.path.name)
        saving.save(page, run.report, run.command, content)


CHECK_TRAINED = Stage(check_structure, requires=("original", "model"))
CHECK_PRUNED = Stage(check_structure, requires=("original", "model"), ensures=well_formed)
MEASURE = Stage(measure, requires=("original", "model"))
JUDGE_QUALITY = Stage(judge_quality, requires=("comparison",))
CHECK_FINITE = Stage(check_finite, requires=("comparison",))
HOLD_TARGETS = Stage(hold_targets, requires=("comparison",))
NEVER_SLOWER = Stage(never_slower, requires=("comparison",))
NOTE_SAMPLES = Stage(note_samples, requires=("comparison",))
FINISH_PLAN = Stage(finish_plan, requires=("plan", "keep"))
REPORT = Stage(report, requires=("comparison", "edited"))
WRITE = Stage(write, requires=("report",))
