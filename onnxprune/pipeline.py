"""The stages of a run, in order: load, trace, score, allocate, rewrite, prove, repair, fine-tune, verify, report."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import output as outputs
from onnxprune import plan_file
from onnxprune.allocation.cost_estimator import CostEstimator
from onnxprune.analysis import (
    Analysis,
    layers_of,
    pinned_of,
    refuse_unprunable,
    removed,
    unless_it_does_not_run,
    versions,
)
from onnxprune.data.dataset import Data, DataLike, inputs_of, load_data
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import OptionError, OutputError, PlanError, ProofError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.evaluation.compare import compare, predict
from onnxprune.evaluation.never_slower import refuse_slower
from onnxprune.evaluation.structure import check_structure, full_check
from onnxprune.graph import io
from onnxprune.graph import model as models
from onnxprune.graph.model import Model
from onnxprune.mending import Mended
from onnxprune.metrics.outputs import Outputs, classification_accuracy, compare_outputs
from onnxprune.options import Options, ResolvedOptions, Training
from onnxprune.progress import ProgressCallback, quiet
from onnxprune.recovery import Recovery, augmented
from onnxprune.reforming.base import EditedModel, replayed
from onnxprune.reforming.choose import decide
from onnxprune.report import grouping, saving
from onnxprune.report.details import details
from onnxprune.report.document import Report, figures
from onnxprune.runtime.session import open_session
from onnxprune.search import Choice, choose
from onnxprune.surgery import channels as rewrite
from onnxprune.surgery import edits
from onnxprune.surgery.mask import mask
from onnxprune.surgery.proof import Proof, prove
from onnxprune.types import BoolArray, Check, Plan, Trace, Verdict
from onnxprune.workspace import Workspace, opened, workspace_for

WARN_BELOW = 0.5
"""Share of FLOPs that can move, below which a run warns."""


@dataclass(frozen=True)
class Result:
    """What `prune` returns: the pruned model, the plan, the report, and what a file says of how it was made."""

    model: Model
    plan: Plan
    report: Report
    trace: Trace
    provenance: dict[str, str] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the pruned model to `path`.

        Raises:
            OutputError: it cannot be written there.
        """
        io.save(self.model, path, models.provenance(self.plan.digest, **self.provenance))


def prune(
    model: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    data: DataLike | None = None,
    evaluation: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    plan: str | os.PathLike[str] | None = None,
    plan_output: str | os.PathLike[str] | None = None,
    measure: BenchmarkConfig | None = None,
    on_stage: ProgressCallback = quiet,
    options: Options | None = None,
    training: Training | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    latency_table: str | os.PathLike[str] | None = None,
    force: bool = False,
    report_output: str | os.PathLike[str] | None = None,
    command: str | None = None,
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
        training: how to fine-tune what is left towards the original, on all of `data`; None: not at all.
        checkpoint: file that the state of the training is kept in, so that the same call goes on after an interrupt.
        latency_table: file with a table that was measured on the target machine; None: one is measured here where latency is a target.
        force: whether to write a result that is measured to be slower than the original.
        report_output: where to write the report: .html, .md or .json.
        command: what it says it was made by; this call when None.
        dials: or one by one, fields of `onnxprune.options.Options`: reduce={"flops": 0.5}, importance="l2", …

    Raises:
        OnnxPruneError: with a reason; nothing is written then. `LatencyError`: the result is slower.
    """
    command = command or saving.call("prune", locals())
    options, measure = options or _options(dials), measure or BenchmarkConfig()
    destination = Path(output) if output is not None else None
    plan_path = Path(plan_output) if plan_output is not None else destination and destination.with_suffix(".plan.json")
    if plan is not None and plan_output is None and plan_path is not None and outputs.same_file(plan_path, Path(plan)):
        plan_path = None  # the plan that is replayed already lies there
    paths = [Path(path) for path in (model, plan, data, evaluation, preprocess) if isinstance(path, str | os.PathLike)]
    state = None if checkpoint is None else Path(checkpoint)
    page = None if report_output is None else Path(report_output)
    if page is not None:
        saving.check_format(page)
    for target in (destination, plan_path, state, page):
        if target is not None:
            outputs.check_destination(target, *(path for path in paths if path.exists()))
    if destination is not None and plan_path is not None and outputs.same_file(destination, plan_path):
        raise OutputError(
            "the plan would overwrite the model", where=str(destination), hint="give the two different paths"
        )
    saving.refuse_same(page, destination, plan_path, state)

    structure = {} if plan is None else plan_file.structure(Path(plan))  # channels are what they were for the plan
    analysis, given, resolved = opened(model, options, data, preprocess, on_stage, structure)
    for target in (destination, plan_path, page):
        if target is not None:
            outputs.check_destination(target, *analysis.model.files)  # external data, too
    specs = inputs_of(analysis.model.header)
    checked_on = load_data(evaluation, specs, preprocess) if evaluation is not None else given
    known = checked_on.shapes() if checked_on is not None else analysis.trace.input_shapes
    recovery = meter = None
    if training is not None:
        recovery = _recovery(analysis, given if data is not None else None, training, resolved, state, on_stage)
    with contextlib.ExitStack() as scope:
        workspace = None
        if given is not None:
            seen = given if recovery is None else recovery.fitted()
            workspace = scope.enter_context(workspace_for(seen, analysis, resolved))
        base, ready = EditedModel(analysis, analysis.model), None
        if plan is not None:
            base = _replayed(base, Path(plan), resolved, workspace, on_stage)
            if not base.chosen:
                refuse_unprunable(analysis)
            chosen = plan_file.read(Path(plan), base.analysis.trace, analysis.model.digest)
            if resolved.repair != "lstsq":
                _refuse_inexact(base.analysis.trace, chosen, plan)
            choice = Choice(chosen, base.analysis, chosen.keep)  # it may have been edited
        else:
            meter = CostEstimator(analysis, resolved, measure, shapes=known, table=latency_table, on_stage=on_stage)

            def choose_from(base: EditedModel, meter: CostEstimator) -> Choice:
                lost = trainer = None
                if resolved.max_drop is not None and workspace is not None and checked_on is not None:
                    lost = _Loss(base, analysis.model, workspace, resolved, checked_on, measure, on_stage)
                if recovery is not None:
                    trainer = replace(recovery, original=base.teacher)
                return choose(base.analysis, meter.options, on_stage, workspace, trainer, meter, lost, base.reference)

            found = decide(base, resolved, workspace, meter, choose_from, on_stage)
            base, choice, meter, ready = found.base, found.choice, found.meter, found.mended
        whole, analysis = analysis, base.analysis
        if plan is not None:
            choice = replace(choice, plan=replace(chosen, path=(removed(analysis, chosen.keep, whole),)))
        chosen = choice.plan
        pruned, proof = _deleted(choice, base, known, resolved.seed, on_stage)
        mended = ready or Mended(pruned)
        if ready is None and workspace is not None:
            mended = base.mended(choice.start, pruned, choice.keep, workspace, resolved, on_stage)
        mended = _with_base(mended, base)
    tuned = None
    if recovery is not None:
        recovery = replace(recovery, original=base.teacher)
        tuned, keep, again = recovery.last(mended.model, chosen.keep)
        chosen = replace(chosen, keep=keep)
        mended = replace(mended, model=tuned.model, notes=(*mended.notes, *tuned.notes))
        if again is not None:
            chosen = replace(chosen, path=(*chosen.path, removed(analysis, keep, whole)))
            proof = replace(proof, difference=max(proof.difference, again.difference))
    if workspace is not None and evaluation is None and (mended.layers or tuned):
        mended = replace(mended, notes=(*mended.notes, SEEN))
    report = _verify(
        whole, analysis, mended, chosen, proof, checked_on, measure, resolved, on_stage, detailed=page is not None
    )
    if meter is not None and meter.measured:
        targets = meter.checks(report.latency, mended.model)
        report = replace(report, verdict=Verdict((*report.verdict.checks, *targets)), latency_table=meter.table)
    if destination is not None and not force:
        refuse_slower(whole.model, mended.model, report.latency, known, measure)
    if tuned is not None and training is not None:
        settings = {**report.settings, "training": asdict(training)}
        report = replace(report, training=tuned.to_dict(), settings=settings)
    pruned = mended.model
    origin = _provenance(chosen, given, report)
    with contextlib.ExitStack() as both:  # plan and model, or none
        if plan_path is not None:
            both.enter_context(plan_file.written(plan_path, chosen, analysis.trace, analysis.model.path.name))
        if destination is not None:
            on_stage("write", None)
            size = io.save(pruned, destination, models.provenance(chosen.digest, **origin))
            report = replace(report, output=str(destination), after=replace(report.after, size=size))
    if page is not None:
        saving.save(page, report, command, plan_file.to_dict(chosen, analysis.trace, analysis.model.path.name))
    if recovery is not None:
        recovery.forget()
    return Result(pruned, chosen, report, analysis.trace, origin)


def _replayed(
    base: EditedModel, path: Path, options: ResolvedOptions, workspace: Workspace | None, on_stage: ProgressCallback
) -> EditedModel:
    """Make the edits of layers that a plan holds."""
    rounds = [
        [edits.from_dict(entry, str(path)) for entry in part]
        for part in plan_file.blocks(path, base.analysis.model.digest)
    ]
    return replayed(base, rounds, options, workspace, on_stage)


def _with_base(mended: Mended, base: EditedModel) -> Mended:
    """Add what was done to layers before channels went to what a report says of repair."""
    last = {layer.label: layer for layer in mended.layers}
    first = tuple(layer for layer in base.layers if layer.label not in last)
    return replace(mended, layers=(*first, *mended.layers), notes=(*base.notes, *mended.notes))


def _recovery(
    analysis: Analysis,
    data: Data | None,
    training: Training,
    options: ResolvedOptions,
    state: Path | None,
    on_stage: ProgressCallback,
) -> Recovery:
    if data is None:
        raise OptionError(
            "training needs inputs of the model",
            hint="give --data; `--data generated` makes some up where there are none",
        )
    return Recovery(analysis, data, augmented(training, data), options, state, on_stage)


def _provenance(plan: Plan, data: Data | None, report: Report) -> dict[str, str]:
    """Return what a written model says of how it was made, beside its version and its original."""
    settings = plan.settings
    target = {key: settings[key] for key in ("reduce", "limit", "max_drop", "threshold") if settings.get(key)}
    return {
        "plan.sha256": hashlib.sha256(np.packbits(plan.keep).tobytes() + _blocks_text(plan)).hexdigest(),
        "data": "none" if data is None else f"{len(data)} samples, {data.digest()}",
        "target": json.dumps(target, sort_keys=True),
        "verdict": "PASSED" if report.verdict else "FAILED",
    }


def _blocks_text(plan: Plan) -> bytes:
    return json.dumps([list(map(dict, part)) for part in plan.blocks]).encode() if plan.blocks else b""


def _deleted(
    choice: Choice, base: EditedModel, known: dict[str, tuple[int, ...]], seed: int, on_stage: ProgressCallback
) -> tuple[Model, Proof]:
    """Delete what a plan says, and prove it: on what it speaks of, and on what training has made of that on the way."""
    proof = base.proof
    trained = choice.start is not base.analysis
    for start, keep in ((base.analysis, choice.plan.keep), *(((choice.start, choice.keep),) if trained else ())):
        on_stage("rewrite", None)
        with unless_it_does_not_run(start.model, known):
            pruned = rewrite.delete(start.model, start.trace, keep)
            masked = mask(start.model, start.trace, keep)
        if keep.all() and proof is not None:
            continue
        on_stage("prove", None)
        found = prove(start.model, pruned, masked, known, seed, loaded=proof is not None)
        proof = found if proof is None else replace(proof, difference=max(proof.difference, found.difference))
    assert proof is not None
    return pruned, proof


class _Loss:
    """Measures how many points of top-1, or without labels of agreement, a choice loses after repair."""

    def __init__(
        self,
        base: EditedModel,
        original: Model,
        workspace: Workspace,
        options: ResolvedOptions,
        data: Data,
        measure: BenchmarkConfig,
        on_stage: ProgressCallback,
    ) -> None:
        self._base, self._workspace, self._options = base, workspace, options
        self._data, self._batch, self._on_stage = data, measure.eval_batch, on_stage
        self._reference = self._outputs(original)

    def _outputs(self, model: Model) -> Outputs:
        return predict(model.session(), self._data, self._batch, str(model.path))

    def __call__(self, keep: BoolArray) -> float:
        """Return the points."""
        analysis = self._base.analysis
        result = rewrite.delete(analysis.model, analysis.trace, keep)
        result = self._base.mended(analysis, result, keep, self._workspace, self._options, self._on_stage).model
        self._on_stage("evaluate", None)
        outputs = self._outputs(result)
        if self._data.labels is not None:
            before, after = (
                classification_accuracy(found, self._data.labels)["top1"] for found in (self._reference, outputs)
            )
            return before - after
        agreement = compare_outputs(self._reference, outputs).get("agreement")
        if agreement is None:
            raise OptionError(
                "there is nothing to hold --max-drop against",
                why="no output of the form (samples, classes)",
                hint="give --reduce or --limit",
            )
        return 100 - agreement


def _refuse_inexact(trace: Trace, plan: Plan, where: str | os.PathLike[str]) -> None:
    gone = np.flatnonzero(trace.inexact() & ~plan.keep)
    if gone.size:
        raise PlanError(
            "the plan cuts channels that a normalisation runs over, which takes repair",
            where=str(where),
            why=f"without {gone.size} of them all others change",
            hint="give --data, and --repair lstsq or auto",
        )


def _options(dials: dict[str, Any]) -> Options:
    unknown = set(dials) - set(Options.__dataclass_fields__)
    if unknown:
        raise OptionError(
            f"unknown option {', '.join(sorted(unknown))}", hint=f"known are {', '.join(Options.__dataclass_fields__)}"
        )
    return Options(**dials)


def _verify(
    whole: Analysis,
    analysis: Analysis,
    mended: Mended,
    plan: Plan,
    proof: Proof,
    data: Data | None,
    measure: BenchmarkConfig,
    options: ResolvedOptions,
    on_stage: ProgressCallback,
    *,
    detailed: bool,
) -> Report:
    model, trace = whole.model, analysis.trace
    on_stage("verify", None)
    strict = full_check(model) is None
    checks = check_structure(mended.model, model, strict=strict)
    where = f"batch {', '.join(map(str, proof.batches))}" + (f"; {proof.note}" if proof.note else "")
    checks.append(Check("loaded equals file", proof.normalized, f"{proof.tolerance:.0e}", True, where))
    checks.append(Check("pruned equals masked", proof.difference, f"{proof.tolerance:.0e}", True, where))
    failed = [check for check in checks if not check]
    if failed:
        raise ProofError(
            "the pruned model is not well-formed",
            where=str(model.path),
            why="; ".join(str(check) for check in failed),
            hint="nothing was written; this is a defect of onnxprune: please report it",
        )
    original = open_session(str(model.path), measure.session, where=str(model.path))  # as users run it
    candidate = mended.model.session(measure.session, where="the pruned model")
    found = compare(original, candidate, mended.model.header, data, measure, on_stage, options.seed)
    closer = None
    if detailed:
        on_stage("profile", None)
        around = grouping.groups(trace, grouping.survivors(trace, plan.keep))
        closer = details((str(model.path), mended.model), found, data, measure.session, around)
    everything = np.ones(whole.trace.n_channels, dtype=bool)
    (macs0, _), (macs1, params1) = whole.cost.totals(everything), analysis.cost.totals(plan.keep)
    before, after = figures(found, (macs0, model.params, model.size), (macs1, round(params1), mended.model.byte_size()))
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
        latency=found.latency,
        layers=layers_of(analysis, plan.keep, whole),
        prunable_share=whole.cost.prunable_share(),
        pinned=pinned_of(trace),
        proof=proof,
        verdict=Verdict(tuple(checks)),
        path=plan.path,
        notes=(*model.notes, *_notes(analysis, whole, strict, plan, mended, options)),
        repair=mended.layers,
        curves=plan.curves,
        blocks=plan.blocks,
        versions=versions(),
        details=closer,
    )


def _notes(
    analysis: Analysis, whole: Analysis, strict: bool, plan: Plan, mended: Mended, options: ResolvedOptions
) -> list[str]:
    notes = []
    share = whole.cost.prunable_share()
    if share < WARN_BELOW:
        notes.append(f"only {share:.0%} of the FLOPs can move; `onnxprune inspect` says why")
    if not strict:
        notes.append("the original does not pass onnx's full check, so the result was not held to it")
    cut = int((analysis.trace.inexact() & ~plan.keep).sum())
    if cut:
        notes.append(
            f"inexact: {cut} of the channels that went lie under a normalisation, whose statistics now run over what is left: that "
            "equals the masked model with its statistics over the same channels, and repair makes up for it; --norms keep leaves them"
        )
    if options.repair == "none" and not (plan.keep.all() and not plan.blocks):
        notes.append("nothing was repaired: the weights that survive are as they were")
    return [*notes, *mended.notes]


SEEN = "accuracy and agreement were measured on the samples that repair and training have seen; --eval takes others"
