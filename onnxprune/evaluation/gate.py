"""Judge whether a candidate may replace a baseline: structure, robustness, and the limits of the gate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxprune.data.dataset import Data, DataLike, hint_of, load_data
from onnxprune.data.input_spec import input_specs
from onnxprune.data.preprocess import Preprocess
from onnxprune.data.sanity import doubts, look
from onnxprune.errors import OnnxPruneError, OptionError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.evaluation.compare import Front, compare, finite_check, runner, task_of
from onnxprune.evaluation.cost_checks import Measurements, hold
from onnxprune.evaluation.policy import GateLimits
from onnxprune.evaluation.sanity import normalization
from onnxprune.evaluation.structure import check_structure, full_check
from onnxprune.graph import io
from onnxprune.graph.comparison_points import in_front_of_files
from onnxprune.graph.io import Parsed
from onnxprune.graph.shapes import light
from onnxprune.graph.signature import Signature, derive
from onnxprune.metrics.outputs import all_finite, relative_difference
from onnxprune.metrics.tasks import Task, find_task
from onnxprune.options.judging import Judging
from onnxprune.progress import ProgressCallback, quiet, share_of
from onnxprune.runtime import paired_timing
from onnxprune.runtime.memory_limit import CHECKED
from onnxprune.runtime.providers import CPU_PROVIDER, short_name
from onnxprune.runtime.session import Feeds, SessionConfig, open_session, random_feeds, run_batch
from onnxprune.runtime.weight_files import release
from onnxprune.surgery.cuts import Pair, Subject
from onnxprune.types import Check, Verdict

if TYPE_CHECKING:
    import onnxruntime as ort


SCHEMA = "onnxprune.check/3"
BATCHES = (1, 2, 7)
"""Batch sizes that must run where the batch is dynamic."""
EXTREME = 1e3
"""Magnitude of extreme inputs without data."""
REPEATS = 3
"""Number of runs on the same inputs, which must give the same outputs."""
SAME = 1e-6
"""Largest difference between these runs, as a share of the range of the output, that the order of sums explains."""
ORIGINAL = "onnxprune.original.sha256"
"""Metadata of a pruned model: the digest of its original."""


@dataclass(frozen=True)
class Judgement:
    """The verdict on a candidate for a baseline; both are paths."""

    candidate: str
    baseline: str
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; the schema is `check.schema.json` in `onnxprune.report`."""
        checks = self.verdict.checks
        return {
            "schema": SCHEMA,
            "verdict": self.verdict.headline,
            "quality": self.verdict.quality,
            "integrity": self.verdict.integrity,
            "passed": bool(self.verdict),
            "undecided": sum(check.undecided for check in checks),
            "checks": [{**asdict(check), "status": check.status} for check in checks],
        }


def check(
    candidate: str | os.PathLike[str],
    baseline: str | os.PathLike[str] | None,
    *,
    data: DataLike | None = None,
    preprocess: Preprocess | str | None = None,
    judging: Judging | None = None,
    limits: GateLimits | None = None,
    measure: BenchmarkConfig | None = None,
    providers: tuple[str, ...] = (CPU_PROVIDER,),
    shape: Mapping[str, tuple[int, ...]] | None = None,
    on_stage: ProgressCallback = quiet,
) -> Verdict:
    """Judge a candidate against a baseline.

    Args:
        candidate: path of the model to judge.
        baseline: path of the model it should replace; None: there is none, and only amounts of the candidate are held.
        data: samples that both models run on; None: seeded random inputs.
        preprocess: as for `prune`.
        judging: how quality is judged; None: as labels and outputs tell.
        limits: limits of the gate.
        measure: the benchmark config.
        providers: execution providers that the candidate must load on; the first one runs the comparison.
        shape: shapes of inputs, for axes without a size.
        on_stage: progress callback.

    Raises:
        OnnxPruneError: a file or the data cannot be used, or a limit cannot be measured.
    """
    limits, config = limits or GateLimits(), replace(measure or BenchmarkConfig(), provider=providers[0])
    for name in ("max_drop", "max_class_drop", "max_calibration_rise"):
        if getattr(limits, name) is not None and data is None:
            raise OptionError(f"--{name.replace('_', '-')} needs data", hint="give --data")
    on_stage("load", None)
    alone, baseline = baseline is None, candidate if baseline is None else baseline
    files = io.read(baseline, CHECKED), io.read(candidate, CHECKED)
    theirs, ours = (file.proto for file in files)
    checks = check_structure(files[1], files[0], strict=full_check(files[0]) is None)
    checks += [*([] if alone else _origin(ours, files[0].digest)), *_operators(ours, limits)]
    size = max(file.size for file in files)
    release(size)
    if not all(checks):
        return Verdict(tuple(checks))
    original = _open(baseline, config.session)
    signature = derive(light(theirs), theirs, _given(original), shape, hint_of(data, preprocess))
    specs = input_specs(theirs, signature.inputs, signature.fixed)
    judging = judging or Judging()
    loaded = load_data(data, specs, preprocess, judging.labels, judging.task) if data is not None else None
    doubtful = tuple(_doubts(files[0], loaded, on_stage))
    ran = None
    for found, opened in _loads(candidate, providers, config):
        checks.append(found)
        ran = opened if ran is None else ran
        del opened
    release(size)
    if ran is None or not all(checks):
        return Verdict(tuple(checks))
    front = _front((baseline, files[0]), (candidate, files[1]), config.session)
    task = _task(judging, loaded, original, front, signature, config)
    quiet_config = replace(config, latency=False)
    compared = compare(
        original, None if alone else ran, ours, loaded, quiet_config, signature, on_stage, front=front, task=task
    )
    on_stage("verify", None)
    checks.append(finite_check(compared))
    checks += _robustness(original, ran, ours, loaded, signature) if compared.finite else []
    del original, ran, front
    timed = None
    if config.latency:

        def opener(path: str | os.PathLike[str]) -> ort.InferenceSession:
            release(size)
            return _open(path, config.session)

        timed = paired_timing.time_pair(
            (lambda: opener(baseline), lambda: opener(candidate)),
            compared.feeds,
            runs=config.runs,
            warmup=config.warmup,
            seconds=config.seconds,
            progress=share_of(on_stage, "time"),
        )
    release(size)
    on_stage("memory", None)
    paths = baseline, candidate
    measured = Measurements(compared, limits, paths, files, timed, config.session, doubts=doubtful)
    return Verdict((*checks, *hold(measured)))


def _task(
    asked: Judging,
    data: Data | None,
    original: ort.InferenceSession,
    front: Front | None,
    signature: Signature,
    config: BenchmarkConfig,
) -> Task | None:
    """Return the task of the baseline; None where nothing tells it."""
    if data is None or data.is_generated:
        return find_task(asked, None, [])
    names = front.pair.names if front else ()

    def of_original(feeds: Feeds) -> list[Any]:
        assert front is not None
        return front.pair(feeds)[: len(names)]

    in_front = of_original if front else None
    size = signature.per_evaluation(config.eval_batch)
    return task_of(asked, data, (runner(original, "the baseline"), in_front), names, signature, size).task


def _doubts(baseline: Parsed, data: Data | None, on_stage: ProgressCallback) -> Iterator[Check]:
    """Say what is doubtful about the data."""
    if data is not None and not data.is_generated:
        yield from doubts(data, look(data, share_of(on_stage, "look")))
        yield from normalization(baseline.proto, data, baseline.weights)


def _given(opened: ort.InferenceSession) -> Callable[[], ort.InferenceSession]:
    return lambda: opened


def _open(path: str | os.PathLike[str], config: SessionConfig) -> ort.InferenceSession:
    return open_session(os.fspath(path), config, where=os.fspath(path))


def _front(
    baseline: tuple[str | os.PathLike[str], Parsed],
    candidate: tuple[str | os.PathLike[str], Parsed],
    config: SessionConfig,
) -> Front | None:
    """Return what stands for outputs that a selection leads to, where both files compute it."""
    found = in_front_of_files(baseline[1].proto, candidate[1].proto)
    if found is None:
        return None
    first, second = (Subject(file, os.fspath(path)) for path, file in (baseline, candidate))
    return Front(found, Pair(first, second, found.names, found.points, config))


def _origin(candidate: onnx.ModelProto, digest: str) -> Iterator[Check]:
    """Check that the original of a pruned model is the baseline."""
    named = {entry.key: entry.value for entry in candidate.metadata_props}.get(ORIGINAL)
    if named is None:
        return
    detail = "" if named == digest else f"it was pruned from {named[:12]}…, the baseline is {digest[:12]}…"
    yield Check("pruned from the baseline", named == digest, None, named == digest, detail)


def _operators(candidate: onnx.ModelProto, limits: GateLimits) -> Iterator[Check]:
    opset = next((entry.version for entry in candidate.opset_import if entry.domain in ("", "ai.onnx")), 0)
    fits = limits.max_opset is None or opset <= limits.max_opset
    yield Check("opset", float(opset), limits.max_opset, fits, kind="cost")
    used = sorted({node.domain or "ai.onnx" for node in candidate.graph.node})
    odd = [] if limits.domains is None else sorted(set(used) - {"ai.onnx", *limits.domains})
    allowed = None if limits.domains is None else ", ".join(("ai.onnx", *limits.domains))
    detail = f"not allowed: {', '.join(odd)}" if odd else ""
    yield Check("operator domains", ", ".join(used), allowed, not odd, detail, kind="cost")


def _loads(
    candidate: str | os.PathLike[str], providers: tuple[str, ...], config: BenchmarkConfig
) -> Iterator[tuple[Check, Any]]:
    for provider in providers:
        name = f"loads on {short_name(provider)}"
        try:
            opened = _open(candidate, replace(config, provider=provider).session)
        except OnnxPruneError as error:
            yield Check(name, False, None, False, error.why or error.what), None
        else:
            yield Check(name, True, None, True), opened


def _robustness(
    original: Any, ran: Any, proto: onnx.ModelProto, data: Data | None, signature: Signature
) -> Iterator[Check]:
    """Check both models on unusual inputs, and several runs of the candidate on the same inputs."""
    known = None if data is None else data.shapes()
    batches = tuple(dict.fromkeys(map(signature.per_run, BATCHES)))
    broken: list[str] = []
    for batch in batches:
        each = signature.input_shapes(batch, known)
        for name, feeds in _odd_inputs(proto, each, data):
            where = f"{name}, batch {batch}"
            try:
                expected = run_batch(original, feeds)
            except OnnxPruneError:
                continue
            try:
                outputs = run_batch(ran, feeds)
            except OnnxPruneError as error:
                broken.append(f"{where}: {error.why[:120]}")
                continue
            if any(all_finite([a]) and not all_finite([b]) for a, b in zip(expected, outputs, strict=True)):
                broken.append(f"{where}: not finite, where the baseline is")
    detail = "; ".join(broken[:3]) or f"zeros, extremes, noise; batches {', '.join(map(str, batches))}"
    yield Check("runs on odd inputs", not broken, None, not broken, detail)
    feeds = signature.random_feeds(proto, 1, 0, known)
    first, *others = (run_batch(ran, feeds) for _ in range(REPEATS))
    worst = max((relative_difference(a, b) for other in others for a, b in zip(first, other, strict=True)), default=0.0)
    yield Check("deterministic", worst, SAME, worst <= SAME, f"{REPEATS} runs, share of the output's range")


def _odd_inputs(
    proto: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], data: Data | None
) -> Iterator[tuple[str, Feeds]]:
    noise = random_feeds(proto, shapes, 1)
    floating = {name for name, value in noise.items() if value.dtype.kind == "f"}
    yield "noise", noise
    yield "zeros", {name: np.zeros_like(value) if name in floating else value for name, value in noise.items()}
    usual = {} if data is None else data.samples(0, min(16, len(data)))
    for sign in (-1, 1):
        extreme = {}
        for name, value in noise.items():
            size = 10 * float(np.abs(usual[name]).max()) if name in usual and name in floating else EXTREME
            extreme[name] = np.full_like(value, sign * size) if name in floating else value
        yield f"extremes ({'+' if sign > 0 else '-'})", extreme


def strict(verdict: Verdict) -> Verdict:
    """Return a verdict in which undecided checks fail."""
    checks = (replace(check, passed=check.passed and not check.undecided) for check in verdict.checks)
    return replace(verdict, checks=tuple(checks))
