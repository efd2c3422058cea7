"""Prove a change: the pruned model equals the masked model, and the loaded model equals its file.

Models are compared at their outputs and at the points of `onnxprune.graph.comparison_points`. The pruned model takes the
values of these points from the masked model, so that every part of the network is compared on equal inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxprune.errors import ModelError, OnnxPruneError, ProofError
from onnxprune.graph import io
from onnxprune.graph.comparison_points import ComparisonPoints, comparison_points
from onnxprune.graph.io import Parsed
from onnxprune.graph.model import Model
from onnxprune.graph.qdq import is_quantizer, unrounded
from onnxprune.metrics.outputs import (
    INPUT_SCALES,
    ROUNDING_FACTOR,
    TOLERANCE,
    arrays_of,
    jittered,
    relative_difference,
    scaled,
)
from onnxprune.runtime.session import Feeds, fed_inputs
from onnxprune.runtime.weight_files import release
from onnxprune.surgery.cuts import Source, Subject, Values, matched
from onnxprune.surgery.random_models import refuse_random

PROOF_BATCHES = (1, 3)
DEFECT = "nothing was written; this is a defect of onnxprune: please report it"


@dataclass(frozen=True)
class Proof:
    """Largest differences between models, as shares of the range of an output or a comparison point.

    Attributes:
        difference: of the pruned model from the masked model.
        normalized: of the model as loaded (constants and BatchNormalization folded) from the file.
        batches: batch sizes of the runs on random inputs.
        tolerance: the largest accepted difference.
        note: a restriction of this proof; empty without one.
    """

    difference: float
    normalized: float
    batches: tuple[int, ...]
    tolerance: float = TOLERANCE
    note: str = ""


@dataclass(frozen=True)
class _Task:
    """What a proof compares.

    Attributes:
        original: the model as loaded.
        points: its comparison points.
        subjects: the file, the model as loaded, the masked and the pruned model.
        tries: inputs to compare on, and the restriction of a proof on them; the next ones are taken where
            rounding hides the difference.
        batches: see `Proof`.
        reach: outputs that must not be empty, since channels are deleted behind a discrete operator.
        seed: of the jitter.
    """

    original: Model
    points: ComparisonPoints
    subjects: tuple[Subject, Subject, Subject, Subject]
    tries: tuple[tuple[list[Feeds], str], ...]
    batches: tuple[int, ...]
    reach: tuple[str, ...]
    seed: int


def prove(
    original: Model,
    pruned: Model,
    masked: Model,
    known: dict[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    *,
    loaded: bool = False,
    samples: Feeds | None = None,
) -> Proof:
    """Run models on the same inputs, without graph optimization, and compare every output and comparison point.

    The pruned model must equal the masked model, and the original as loaded must equal its file. A network that
    amplifies rounding (large activations into an exponential) can exceed the tolerance though both models are right. A
    difference no larger than the effect of a jitter in the last bits of the input is therefore attributed to rounding,
    and the comparison is repeated on smaller inputs, where it must hold.

    A model with quantized activations must also pass with quantizers that clip without rounding: rounding hides small
    errors. With rounding, a sum close to a tie can round either way, depending on the order of additions; such a
    difference is accepted, and noted.

    Args:
        original: the model as loaded.
        pruned: the model with channels deleted.
        masked: the dense model with the weights that read these channels set to zero.
        known: shapes of the data, for dynamic axes other than the batch.
        seed: of the random inputs.
        loaded: compare with the original in memory instead of its file, which differs after training, for instance.
        samples: real inputs to compare on beside random ones.

    Raises:
        ProofError: models differ by more than `TOLERANCE`, or the pruned model does not run.
        ModelError: the original does not run, or is random.
    """
    signature = original.signature
    batches = tuple(dict.fromkeys(map(signature.per_run, PROOF_BATCHES)))
    unit = [signature.random_feeds(original.header, batch, seed + batch, known) for batch in batches]
    real = [] if samples is None else [samples]
    tries = [([*(scaled(inputs, scale) for inputs in unit), *real], "") for scale in INPUT_SCALES]
    tries += [(real, "on the samples alone")] if real else []
    path = str(original.path)
    release(original.size)
    points = comparison_points(original.graph)
    names = (path, "the model as loaded", "the masked model", "the pruned model")
    sources: tuple[Source, ...] = (original if loaded else path, original, masked, pruned)
    subjects, reach = _subjects(sources, names), _behind(points, masked, pruned)
    task = _Task(original, points, subjects, tuple(tries), batches, reach, seed)
    proof, error = _compare(task)
    rounds = any(map(is_quantizer, original.graph.nodes))
    smooth = [proto for source in sources if rounds and (proto := unrounded(_proto(source))) is not None]
    if len(smooth) < len(sources):  # nothing is rounded
        if error is not None:
            raise error
        return proof
    exact, failure = _compare(replace(task, subjects=_subjects(smooth, names)))
    if failure is not None:
        raise failure
    if error is None:
        return replace(
            proof,
            difference=max(proof.difference, exact.difference),
            normalized=max(proof.normalized, exact.normalized),
        )
    difference = max(proof.difference, proof.normalized)
    return replace(exact, note=f"without the rounding of its quantizers, with which outputs differ by {difference:.0e}")


def _subjects(sources: Sequence[Source], names: Sequence[str]) -> tuple[Subject, Subject, Subject, Subject]:
    file, loaded, masked, pruned = (Subject(source, name) for source, name in zip(sources, names, strict=True))
    return file, loaded, masked, pruned


def _proto(source: Source) -> onnx.ModelProto:
    if isinstance(source, str):
        return io.read(source).whole()
    if isinstance(source, Model):
        return source.to_proto()
    return source.whole() if isinstance(source, Parsed) else source


def _behind(points: ComparisonPoints, masked: Model, pruned: Model) -> tuple[str, ...]:
    """Return the outputs behind discrete operators, where channels are deleted there; else none."""
    before = {node.outputs[0].name: node for node in masked.graph.nodes if node.outputs}
    for node in pruned.graph.nodes:
        same = before.get(node.outputs[0].name) if node.outputs else None
        if same is None or node.outputs[0].name not in points.behind:
            continue
        if [tensor.shape for tensor in node.inputs if hasattr(tensor, "values")] != [
            tensor.shape for tensor in same.inputs if hasattr(tensor, "values")
        ]:
            return tuple(t.name for t in pruned.graph.outputs if t.name in points.behind)
    return ()


def _compare(task: _Task) -> tuple[Proof, OnnxPruneError | None]:
    """Compare file and loaded model, and masked and pruned model, on one kind of inputs after the other.

    Returns the differences, and an error where they are no proof.

    Raises:
        ProofError: the pruned model does not run.
        ModelError: another model does not run, or the original is random.
    """
    file, loaded, masked, pruned = task.subjects
    names = task.points.names
    error: OnnxPruneError | None = None
    for feeds, note in task.tries:
        first, reference = file.values(feeds, names), masked.values(feeds, names)
        normalized = _difference(first, matched(first, loaded, feeds, names), first)
        try:
            found = matched(reference, pruned, feeds, names)
        except ModelError as failure:
            raise ProofError(
                "the pruned model does not run",
                where=file.where,
                why=failure.why,
                hint=f"{DEFECT}; --ignore can exclude layers",
            ) from failure
        difference = _difference(reference, found, first)
        proof = Proof(difference, normalized, task.batches, note=note)
        if max(normalized, difference) <= TOLERANCE:
            blind = list(_says_nothing(task, found))
            if not blind:
                return proof, None
            error = error or ProofError(
                "the result cannot be proven: outputs hold no number",
                where=file.where,
                why=f"{', '.join(blind)}: empty, NaN or infinite on every input that was tried"
                f"{_single_numbers(task.original)}",
                hint="nothing was written; give samples with --data",
            )
            continue
        refuse_random(task.original, feeds)
        shaken = [jittered(inputs, task.seed) for inputs in feeds]
        rounding = (
            _difference(first, matched(first, file, shaken, names), first),
            _difference(reference, matched(reference, masked, shaken, names), first),
        )
        if normalized > ROUNDING_FACTOR * rounding[0] or difference > ROUNDING_FACTOR * rounding[1]:
            what = "the pruned model is not the masked model"
            if normalized > TOLERANCE:
                what = "the model as loaded is not the model in the file"
            return proof, ProofError(what, where=file.where, why=_too_far(max(normalized, difference)), hint=DEFECT)
        error = ProofError(
            "the result cannot be proven: this model amplifies rounding",
            where=file.where,
            why=f"{_too_far(max(normalized, difference))}, and as far when only the last bits of the input change",
            hint="nothing was written; check that the model gives stable outputs",
        )
    return proof, error


def _difference(reference: Values, found: Values, original: Values) -> float:
    """Return the largest difference of a tensor from the reference, as a share of its range there or in the original."""
    return max(
        relative_difference(want[name], value, first.get(name))
        for want, have, first in zip(reference, found, original, strict=True)
        for name, value in have.items()
    )


def _says_nothing(task: _Task, found: Values) -> Iterator[str]:
    """Yield the outputs that hold no finite number in any run, and those that must not be empty and are."""
    for name in task.points.outputs:
        values = list(arrays_of(each[name] for each in found))
        sizes = sum(value.size for value in values)
        floats = all(value.dtype.kind == "f" for value in values)
        if (sizes and floats and not any(np.isfinite(value).any() for value in values)) or (
            not sizes and name in task.reach
        ):
            yield name


def _single_numbers(model: Model) -> str:
    """Return a remark on inputs of one number: thresholds and limits, of which a random one is rarely sensible."""
    names = [i.name for i in fed_inputs(model.header) if not i.type.tensor_type.shape.dim]
    return f"; {', '.join(names)} are single numbers, drawn at random" if names else ""


def _too_far(difference: float) -> str:
    return f"outputs differ by {difference:.2e} of their range, {TOLERANCE:.0e} is allowed"
