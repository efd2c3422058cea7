"""Stages that verify a result, hold it against the targets, report it and write it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, replace

import numpy as np

from onnxprune import plan_file
from onnxprune.errors import ProofError
from onnxprune.evaluation import structure
from onnxprune.evaluation.compare import compare
from onnxprune.evaluation.never_slower import refuse_slower
from onnxprune.graph import io
from onnxprune.graph import model as models
from onnxprune.graph.analysis import layers_of, pinned_of, versions
from onnxprune.pipeline.distillation import forget_states
from onnxprune.pipeline.run import Run, Stage
from onnxprune.report import grouping, saving
from onnxprune.report.details import details
from onnxprune.report.document import Report, figures
from onnxprune.runtime.session import open_session
from onnxprune.types import Check, Plan, Verdict

SEEN = "accuracy and agreement were measured on the samples that repair and training have seen; --eval takes others"
TRAINED_ON = "accuracy and agreement were measured on the samples that were trained on; --eval takes others"


def check_original(run: Run) -> Run:
    """Tell whether the original passes onnx's full check: the result is held to it then."""
    if structure.full_check(run.original.model) is None:
        return run
    return replace(run, strict=False).noted(
        "the original does not pass onnx's full check, so the result was not held to it"
    )


def check_structure(run: Run) -> Run:
    """Check that the result is well-formed, and has the inputs and outputs of the original."""
    run.on_stage("verify", None)
    return replace(run, checks=tuple(structure.check_structure(run.model, run.original.model, strict=run.strict)))


def well_formed(run: Run) -> Run:
    """Add the proof to the checks, and refuse a result that fails any.

    Raises:
        ProofError: the result is not well-formed.
    """
    proof = run.proof
    assert proof is not None
    where = f"batch {', '.join(map(str, proof.batches))}" + (f"; {proof.note}" if proof.note else "")
    limit = f"{proof.tolerance:.0e}"
    checks = (
        *run.checks,
        Check("loaded equals file", proof.normalized, limit, True, where),
        Check("pruned equals masked", proof.difference, limit, True, where),
    )
    failed = [check for check in checks if not check]
    if failed:
        raise ProofError(
            "the pruned model is not well-formed",
            where=str(run.original.model.path),
            why="; ".join(str(check) for check in failed),
            hint="nothing was written; this is a defect of onnxprune: please report it",
        )
    return replace(run, checks=checks)


def measure(run: Run) -> Run:
    """Run the result and the original, as users run it, on the same inputs; measure accuracy, fidelity and latency."""
    path, config = str(run.original.model.path), run.measure.session
    original = open_session(path, config, where=path)
    candidate = run.model.session(config, where=run.name)
    found = compare(original, candidate, run.model.header, run.evaluation, run.measure, run.on_stage, run.options.seed)
    run = replace(run, comparison=found)
    if run.destinations.report is None:
        return run
    run.on_stage("profile", None)
    around = grouping.groups(run.facts, grouping.survivors(run.edited.analysis.trace, run.keep))
    return replace(run, details=details((path, run.model), found, run.evaluation, config, around))


def check_finite(run: Run) -> Run:
    """Check that the outputs are finite."""
    finite = run.comparison.finite
    return replace(run, checks=(*run.checks, Check("finite outputs", finite, None, finite)))


def hold_targets(run: Run) -> Run:
    """Hold the result against the targets that are measured, and refuse to write it where it is slower than the original.

    Raises:
        LatencyError: the result is slower.
    """
    latency, meter = run.comparison.latency, run.meter
    if meter is not None and meter.measured:
        run = replace(run, checks=(*run.checks, *meter.checks(latency, run.model)))
    if run.destinations.model is not None and not run.force:
        refuse_slower(run.original.model, run.model, latency, run.shapes, run.measure)
    return run


def report(run: Run) -> Run:
    """Make the report."""
    original, model, found, plan = run.original, run.original.model, run.comparison, run.plan
    analysis, meter, tuned = run.edited.analysis, run.meter, run.tuned
    (macs0, _), (macs1, params1) = (
        original.cost.totals(np.ones(original.trace.n_channels, dtype=bool)),
        analysis.cost.totals(run.keep),
    )
    before, after = figures(found, (macs0, model.params, model.size), (macs1, round(params1), run.model.byte_size()))
    trained = {"training": asdict(run.training)} if run.training is not None else {}
    made = Report(
        model=str(model.path),
        sha256=model.digest,
        output=None,
        settings={**trained, "seed": run.options.seed} if plan is None else {**plan.settings, **trained},
        before=before,
        after=after,
        fidelity=found.fidelity,
        data=found.data,
        samples=found.samples,
        latency=found.latency,
        layers=layers_of(analysis, run.keep, original),
        prunable_share=original.cost.prunable_share(),
        pinned=pinned_of(run.facts),
        proof=run.proof,
        verdict=Verdict(run.checks),
        path=() if plan is None else plan.path,
        notes=run.notes,
        repair=run.repaired,
        curves=() if plan is None else plan.curves,
        training=None if tuned is None else tuned.to_dict(),
        versions=versions(),
        latency_table=meter.table if meter is not None and meter.measured else None,
        blocks=() if plan is None else plan.blocks,
        details=run.details,
    )
    return replace(run, report=made)


def note_samples(run: Run) -> Run:
    """Note that the figures were measured on the calibration samples, where they were."""
    if run.sources.evaluation is not None:
        return run
    if run.plan is None:
        return run.noted(TRAINED_ON)
    return run.noted(SEEN) if run.workspace is not None and (run.repaired or run.tuned) else run


def finish_plan(run: Run) -> Run:
    """Give the plan the channels that stay in the end, and the steps that led there."""
    return replace(run, plan=replace(run.plan, keep=run.keep, path=run.path))


def provenance(run: Run) -> dict[str, str]:
    """Return what a written model says of how it was made, beside its version and its original; nothing for one that was only trained."""
    plan, data = run.plan, run.data
    if plan is None:
        return {}
    target = {key: plan.settings[key] for key in ("reduce", "limit", "max_drop", "threshold") if plan.settings.get(key)}
    return {
        "plan.sha256": hashlib.sha256(np.packbits(plan.keep).tobytes() + _edits_text(plan)).hexdigest(),
        "data": "none" if data is None else f"{len(data)} samples, {data.digest()}",
        "target": json.dumps(target, sort_keys=True),
        "verdict": "PASSED" if run.report.verdict else "FAILED",
    }


def _edits_text(plan: Plan) -> bytes:
    return json.dumps([list(map(dict, part)) for part in plan.blocks]).encode() if plan.blocks else b""


def write(run: Run) -> Run:
    """Write the model and the plan, both or none of them, then the report; a model that was only trained has to pass its verdict."""
    output, page = run.destinations.model, run.destinations.report
    trace, name = run.edited.analysis.trace, run.edited.analysis.model.path.name
    made = run.report
    with contextlib.ExitStack() as both:
        if run.plan is not None and run.destinations.plan is not None:
            both.enter_context(plan_file.written(run.destinations.plan, run.plan, trace, name))
        if output is not None and (run.plan is not None or made.verdict):
            run.on_stage("write", None)
            size = io.save(run.model, output, models.provenance(run.original.model.digest, **provenance(run)))
            made = replace(made, output=str(output), after=replace(made.after, size=size))
    if page is not None:
        plan = None if run.plan is None else plan_file.to_dict(run.plan, trace, name)
        saving.save(page, made, run.command, plan)
    if run.tuned is not None:
        forget_states(run)
    return replace(run, report=made)


CHECK_ORIGINAL = Stage(check_original, requires=("original",))
CHECK_TRAINED = Stage(check_structure, requires=("original", "model"))
CHECK_PRUNED = Stage(check_structure, requires=("original", "model"), ensures=well_formed)
MEASURE = Stage(measure, requires=("original", "model", "facts"))
CHECK_FINITE = Stage(check_finite, requires=("comparison",))
HOLD_TARGETS = Stage(hold_targets, requires=("comparison",))
NOTE_SAMPLES = Stage(note_samples)
FINISH_PLAN = Stage(finish_plan, requires=("plan", "keep"))
REPORT = Stage(report, requires=("comparison", "edited"))
WRITE = Stage(write, requires=("report",))
