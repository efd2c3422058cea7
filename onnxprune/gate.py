"""`check`: may this candidate replace that baseline?"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxprune import fidelity, files, footprint, memory, rounds, runtime, statistics, verify
from onnxprune.comparison import Comparison, Measure, Stage, compare, quiet, share_of, timed_feeds
from onnxprune.data import Data, DataLike, Preprocess, inputs_of, load_data
from onnxprune.errors import OnnxPruneError, OptionError
from onnxprune.fidelity import relative_difference
from onnxprune.policy import GateLimits
from onnxprune.report.document import CHECK_SCHEMA, Judgement
from onnxprune.types import Check, Verdict

if TYPE_CHECKING:
    import onnxruntime as ort

SCHEMA = CHECK_SCHEMA
BATCHES = (1, 2, 7)
"""Sizes of batches that must run, where the batch is dynamic."""
EXTREME = 1e3
"""Size of extreme inputs, where no data say what is usual."""
REPEATS = 3
"""Runs on the same inputs, which must give the same outputs."""
SAME = 1e-6
"""Difference between them, as a share of the output's range, that is put down to the order of sums."""
NOISY = 0.25
"""Range of the speed-up over the rounds, as a share of it, from which the machine is called noisy."""
ROUNDING = 1e-9
"""A value this much beyond its limit still counts as equal to it: 92.5 - 92.0 is not quite 0.5."""
ORIGINAL = "onnxprune.original.sha256"


def check(
    candidate: str | os.PathLike[str],
    baseline: str | os.PathLike[str],
    *,
    data: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    limits: GateLimits | None = None,
    measure: Measure | None = None,
    providers: tuple[str, ...] = (runtime.CPU,),
    on_stage: Stage = quiet,
) -> Verdict:
    """Hold any candidate against a baseline.

    Args:
        candidate: path of the model to judge.
        baseline: path of the model it should replace.
        data: what to run both on; seeded random inputs when None.
        preprocess: as for `prune`.
        limits: what the candidate must keep.
        measure: how to measure.
        providers: of onnxruntime, on which the candidate must load; the first one runs the comparison.
        on_stage: called as the run goes on.

    Raises:
        OnnxPruneError: a file or the data cannot be used at all, or a limit has nothing to be held against.
    """
    limits, measure = limits or GateLimits(), measure or Measure()
    for name in ("max_drop", "max_class_drop", "max_calibration_rise"):
        if getattr(limits, name) is not None and data is None:
            raise OptionError(f"--{name.replace('_', '-')} needs data", hint="give --data")
    on_stage("load", None)
    (ours, size), (digest, theirs, _) = files.read(candidate), files.read_with_digest(baseline)
    checks = verify.structure(ours, theirs, strict=verify.full_check(theirs) is None)
    checks += [*_origin(ours, digest), *_operators(ours, limits)]
    if not all(checks):
        return Verdict(tuple(checks))
    loaded = load_data(data, inputs_of(theirs), preprocess) if data is not None else None

    def open_model(path: str | os.PathLike[str]) -> ort.InferenceSession:
        return runtime.session(os.fspath(path), threads=measure.threads, where=os.fspath(path), provider=providers[0])

    original = open_model(baseline)
    opened = list(_loads(candidate, providers, measure.threads))
    checks += [found for found, _ in opened]
    ran = opened[0][1]
    if ran is None or not all(checks):
        return Verdict(tuple(checks))
    found = compare(original, ran, ours, loaded, replace(measure, latency=False), on_stage)
    feeds = timed_feeds(original, ours, loaded, measure.batch)
    raced = None
    if measure.latency:
        raced = rounds.race(
            (lambda: open_model(baseline), lambda: open_model(candidate)),
            feeds,
            runs=measure.runs,
            warmup=measure.warmup,
            seconds=measure.seconds,
            progress=share_of(on_stage, "time"),
        )
    on_stage("verify", None)
    odd = list(_robustness(original, ran, ours, loaded)) if found.finite else []
    on_stage("memory", None)
    took = list(_memory((baseline, theirs), (candidate, ours), feeds, limits, measure.threads, providers[0]))
    checks += [
        Check("finite outputs", found.finite, None, found.finite),
        *odd,
        *_accuracy(found, limits),
        *(_by_label(found, limits) if found.finite else ()),
        *(() if raced is None else _speed(raced, limits, measure, _batch(feeds))),
        _at_most("size (bytes)", float(size), limits.max_size, "of the file and of the weights beside it"),
        _parameters(ours, limits),
        *took,
    ]
    return Verdict(tuple(checks))


def _origin(candidate: onnx.ModelProto, digest: str) -> Iterator[Check]:
    """Check that a model which says what it was pruned from was pruned from the baseline, whose SHA-256 is `digest`."""
    said = {entry.key: entry.value for entry in candidate.metadata_props}.get(ORIGINAL)
    if said is None:
        return
    detail = "" if said == digest else f"it was pruned from {said[:12]}…, the baseline is {digest[:12]}…"
    yield Check("pruned from the baseline", said == digest, None, said == digest, detail)


def _operators(candidate: onnx.ModelProto, limits: GateLimits) -> Iterator[Check]:
    opset = next((entry.version for entry in candidate.opset_import if entry.domain in ("", "ai.onnx")), 0)
    yield Check("opset", float(opset), limits.max_opset, limits.max_opset is None or opset <= limits.max_opset)
    used = sorted({node.domain or "ai.onnx" for node in candidate.graph.node})
    odd = [] if limits.domains is None else sorted(set(used) - {"ai.onnx", *limits.domains})
    told = None if limits.domains is None else ", ".join(("ai.onnx", *limits.domains))
    yield Check("operator domains", ", ".join(used), told, not odd, f"not allowed: {', '.join(odd)}" if odd else "")


def _loads(candidate: str | os.PathLike[str], providers: tuple[str, ...], threads: int) -> Iterator[tuple[Check, Any]]:
    for provider in providers:
        name = f"loads on {provider.removesuffix('ExecutionProvider')}"
        try:
            opened = runtime.session(
                os.fspath(candidate), threads=threads, where=os.fspath(candidate), provider=provider
            )
        except OnnxPruneError as error:
            yield Check(name, False, None, False, error.why or error.what), None
        else:
            yield Check(name, True, None, True), opened


def _robustness(original: Any, ran: Any, proto: onnx.ModelProto, data: Data | None) -> Iterator[Check]:
    """Run both on inputs that data seldom hold, and the candidate several times on the same."""
    known = None if data is None else data.shapes()
    shapes = runtime.workable_shapes(original, proto, 1) if known is None else None
    dynamic = runtime.has_dynamic_batch(proto)
    broken: list[str] = []
    for batch in BATCHES if dynamic else (1,):
        each = runtime.concrete_shapes(proto, batch, known=known or shapes)
        for name, feeds in _odd_inputs(proto, each, data):
            where = f"{name}, batch {each[proto.graph.input[0].name][0] if dynamic else 'fixed'}"
            try:
                expected = runtime.run(original, feeds)
            except OnnxPruneError:
                continue  # the baseline does not run on that either
            try:
                outputs = runtime.run(ran, feeds)
            except OnnxPruneError as error:
                broken.append(f"{where}: {error.why[:120]}")
                continue
            if any(_spoilt(a, b) for a, b in zip(expected, outputs, strict=True)):
                broken.append(f"{where}: not finite, where the baseline is")
    sizes = ", ".join(map(str, BATCHES)) if dynamic else "that of the model"
    yield Check(
        "runs on odd inputs",
        not broken,
        None,
        not broken,
        "; ".join(broken[:3]) or f"zeros, extremes, noise; batches {sizes}",
    )
    feeds = runtime.random_feeds(proto, runtime.concrete_shapes(proto, 1, known=known or shapes), 0)
    first, *others = (runtime.run(ran, feeds) for _ in range(REPEATS))
    worst = max((relative_difference(a, b) for other in others for a, b in zip(first, other, strict=True)), default=0.0)
    yield Check("deterministic", worst, SAME, worst <= SAME, f"{REPEATS} runs, share of the output's range")


def _spoilt(expected: Any, found: Any) -> bool:
    a, b = np.asarray(expected), np.asarray(found)
    return a.dtype.kind == "f" and b.dtype.kind == "f" and bool(np.isfinite(a).all() and not np.isfinite(b).all())


def _odd_inputs(
    proto: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], data: Data | None
) -> Iterator[tuple[str, runtime.Feeds]]:
    noise = runtime.random_feeds(proto, shapes, 1)
    floating = {name for name, value in noise.items() if value.dtype.kind == "f"}
    yield "noise", noise
    yield "zeros", {name: np.zeros_like(value) if name in floating else value for name, value in noise.items()}
    usual = {} if data is None else data.rows(0, min(16, len(data)))
    for sign in (-1, 1):
        extreme = {}
        for name, value in noise.items():
            size = 10 * float(np.abs(usual[name]).max()) if name in usual and name in floating else EXTREME
            extreme[name] = np.full_like(value, sign * size) if name in floating else value
        yield f"extremes ({'+' if sign > 0 else '-'})", extreme


def _accuracy(found: Comparison, limits: GateLimits) -> list[Check]:
    checks = []
    where = f"{found.samples} samples of {found.data}"
    before, after, agreement = found.accuracy_a[0], found.accuracy_b[0], found.fidelity.get("agreement")
    if agreement is None and (limits.min_agreement is not None or (limits.max_drop is not None and before is None)):
        raise OptionError(
            "there is nothing to hold the accuracy limit against",
            why="no output of the form (samples, classes)",
            hint="leave the limit out",
        )
    first, second = (fidelity.scores_of(outputs) for outputs in found.outputs)
    if before is not None and after is not None and found.labels is not None:
        assert first is not None
        assert second is not None
        told = statistics.paired(statistics.right(first, found.labels), statistics.right(second, found.labels))
        detail = f"{before:.2f} -> {after:.2f} %, {_interval(told)}, {where}"
        checks.append(decide_drop("top-1 drop (points)", told, limits.max_drop, detail))
    elif agreement is not None and limits.max_drop is not None and first is not None and second is not None:
        same = first.argmax(axis=1) == second.argmax(axis=1)
        told = statistics.paired(np.ones_like(same), same)
        checks.append(decide_drop("agreement drop (points)", told, limits.max_drop, f"{_interval(told)}, {where}"))
    if agreement is not None:
        checks.append(_at_least("agreement (%)", agreement, limits.min_agreement, where))
    if "cosine" in found.fidelity or limits.min_cosine is not None:
        checks.append(_at_least("cosine", found.fidelity.get("cosine", math.nan), limits.min_cosine, where))
    if "kl" in found.fidelity:
        checks.append(_at_most("KL (nats)", found.fidelity["kl"], limits.max_kl, where))
    elif limits.max_kl is not None:
        raise OptionError("--max-kl needs outputs of the form (samples, classes)", hint="leave the limit out")
    return checks


def _interval(told: statistics.Paired) -> str:
    return (
        f"no worse than {told.upper:.2f} at 95 %, interval {told.low:.2f} to {told.high:.2f}, "
        f"{told.lost} lost and {told.gained} gained, McNemar p {told.p:.2g}"
    )


def decide_drop(name: str, told: statistics.Paired, limit: float | None, detail: str) -> Check:
    """Fail where more is lost than allowed; undecided where it is not, but chance could hide that."""
    passed = limit is None or told.drop <= limit + ROUNDING
    undecided = limit is not None and passed and told.upper > limit + ROUNDING
    return Check(name, told.drop, limit, passed, detail, undecided)


def _by_label(found: Comparison, limits: GateLimits) -> Iterator[Check]:
    first, second = (fidelity.scores_of(outputs) for outputs in found.outputs)
    if found.labels is None or first is None or second is None:
        for name in ("max_class_drop", "max_calibration_rise"):
            if getattr(limits, name) is not None:
                raise OptionError(f"--{name.replace('_', '-')} needs labels", hint="give data with labels")
        return
    labels = found.labels
    drops = statistics.class_drops(statistics.right(first, labels), statistics.right(second, labels), labels)
    worst = max(drops, key=lambda one: one.low if limits.max_class_drop is not None else one.drop)
    limit = limits.max_class_drop
    detail = f"class {worst.label}: {worst.before:.1f} -> {worst.after:.1f} % of {worst.samples} samples, {worst.low:.1f} at least at 95 %"
    passed = limit is None or worst.low <= limit + ROUNDING
    yield Check(
        "largest class drop (points)",
        worst.drop,
        limit,
        passed,
        detail,
        passed and limit is not None and worst.drop > limit,
    )
    errors = [statistics.calibration_error(fidelity.log_probabilities(scores), labels) for scores in (first, second)]
    yield _at_most(
        "calibration error, rise (points)",
        errors[1] - errors[0],
        limits.max_calibration_rise,
        f"{errors[0]:.2f} -> {errors[1]:.2f}",
    )


def _speed(found: rounds.Race, limits: GateLimits, measure: Measure, batch: int) -> Iterator[Check]:
    """Decide by all rounds; a time in milliseconds only where nothing else kept the processors busy."""
    ratios, times = found.ratios, np.array(found.b)
    ratio, low, high = (float(of(ratios)) for of in (np.median, np.min, np.max))
    detail = f"{low:.2f} to {high:.2f} in {len(ratios)} rounds, {found.runs} runs, batch {batch}, threads {measure.threads or 'default'}"
    if high - low > NOISY * ratio:
        detail += "; the machine is noisy"
    if found.busy:
        detail += f"; others kept {found.others:.1f} processors busy"
    yield _between("speed-up", ratio, limits.min_speedup, low, high, detail, at_least=True)
    if limits.max_latency is not None:
        least, most = float(times.min()), float(times.max())
        alone = (
            least / (1 + (found.others or 0.0)) if found.busy else least
        )  # what it could be where nobody takes a share
        told = f"{least:.3f} to {most:.3f}" + (f"; {alone:.3f} perhaps on a quiet machine" if found.busy else "")
        yield _between("latency (ms)", float(np.median(times)), limits.max_latency, alone, most, told, at_least=False)


def _batch(feeds: runtime.Feeds) -> int:
    first = np.shape(next(iter(feeds.values())))
    return first[0] if first else 1


def _between(
    name: str, value: float, limit: float | None, low: float, high: float, detail: str, *, at_least: bool
) -> Check:
    """Decide only where the whole interval lies on one side of the limit."""
    if limit is None:
        return Check(name, value, None, True, detail)
    surely, possibly = (low >= limit, high >= limit) if at_least else (high <= limit, low <= limit)
    return Check(name, value, limit, possibly, detail, possibly and not surely)


def _parameters(proto: onnx.ModelProto, limits: GateLimits) -> Check:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
    params = float(sum(math.prod(tensor.dims) for tensor in proto.graph.initializer if tensor.data_type in floats))
    return _at_most("parameters", params, limits.max_params, "floats among the initializers")


Named = tuple["str | os.PathLike[str]", onnx.ModelProto]


def _memory(
    baseline: Named, candidate: Named, feeds: runtime.Feeds, limits: GateLimits, threads: int, provider: str
) -> Iterator[Check]:
    """Tell two kinds of memory: what the graph keeps alive at once, counted; and what a process takes to load and run it, measured."""
    batch = _batch(feeds)
    shapes = {name: value.shape for name, value in feeds.items()}
    try:
        before, after = (float(memory.peak_of_proto(proto, shapes)) for _, proto in (baseline, candidate))
    except OnnxPruneError:
        if limits.max_memory is not None:
            raise
    else:
        change = f"activations alive at once, batch {batch}; {before:.6g} in the baseline"
        yield _at_most("activation memory (bytes)", after, limits.max_memory, change)
    with ThreadPoolExecutor() as pool:
        opens = partial(footprint.measure, feeds=feeds, threads=threads, provider=provider)
        took = list(pool.map(opens, (baseline[0], candidate[0])))
    if took[0] is not None and took[1] is not None:
        change = f"that a process takes to load and run it, batch {batch}; {took[0]:.6g} for the baseline"
        yield _at_most("peak memory (bytes)", float(took[1]), limits.max_peak_memory, change)
    elif limits.max_peak_memory is not None:
        raise OptionError("--max-peak-memory needs Linux, which tells what a process takes", hint="leave the limit out")


def _at_most(name: str, value: float, limit: float | None, detail: str) -> Check:
    return Check(name, value, limit, limit is None or value <= limit + ROUNDING, detail)


def _at_least(name: str, value: float, limit: float | None, detail: str) -> Check:
    return Check(name, value, limit, limit is None or value >= limit - ROUNDING, detail)


def strict(verdict: Verdict) -> Verdict:
    """Return a verdict in which checks that are undecided fail."""
    checks = (replace(check, passed=check.passed and not check.undecided) for check in verdict.checks)
    return replace(verdict, checks=tuple(checks))


def to_dict(verdict: Verdict) -> dict[str, Any]:
    """Return plain values for JSON; its schema is `check.schema.json` in `onnxprune.report`."""
    return Judgement("", "", verdict).to_dict()
