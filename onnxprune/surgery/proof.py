"""Prove a change: the pruned model equals the masked model, and the loaded model equals its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx

from onnxprune.errors import ModelError, ProofError
from onnxprune.graph import io
from onnxprune.graph.model import Model
from onnxprune.graph.qdq import is_quantizer, unrounded
from onnxprune.graph.shapes import concrete_shapes, has_dynamic_batch
from onnxprune.metrics.outputs import (
    INPUT_SCALES,
    ROUNDING_FACTOR,
    TOLERANCE,
    Outputs,
    jittered,
    largest_difference,
    scaled,
)
from onnxprune.runtime.session import UNOPTIMIZED, Feeds, open_session, random_feeds, run_batch

PROOF_BATCHES = (1, 3)
Source = str | Model | onnx.ModelProto
"""A path, a model, or its proto."""


@dataclass(frozen=True)
class Proof:
    """Largest differences between outputs, as shares of the output's range.

    Attributes:
        difference: of the pruned model from the masked model.
        normalized: of the model as loaded (constants and BatchNormalization folded) from the file.
        batches: batch sizes of the runs.
        tolerance: the largest accepted difference.
        note: a restriction of this proof; empty without one.
    """

    difference: float
    normalized: float
    batches: tuple[int, ...]
    tolerance: float = TOLERANCE
    note: str = ""


def prove(
    original: Model,
    pruned: Model,
    masked: Model,
    known: dict[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    *,
    loaded: bool = False,
) -> Proof:
    """Run models on the same seeded inputs, without graph optimization, and compare every output.

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
        seed: of the inputs.
        loaded: compare with the original in memory instead of its file, which differs after training, for instance.

    Raises:
        ProofError: outputs differ by more than `TOLERANCE`, or the pruned model does not run.
        ModelError: the original does not run.
    """
    header = original.header
    batches = PROOF_BATCHES if has_dynamic_batch(header) else (1,)
    shapes = [concrete_shapes(header, batch, known=known) for batch in batches]
    unit = [random_feeds(header, shape, seed + batch) for shape, batch in zip(shapes, batches, strict=True)]
    path = str(original.path)
    sources: tuple[Source, ...] = (original if loaded else path, original, masked, pruned)
    proof, error = _compare(sources, unit, batches, seed, path)
    rounds = any(map(is_quantizer, original.graph.nodes))
    smooth = [proto for source in sources if rounds and (proto := unrounded(_proto(source))) is not None]
    if len(smooth) < len(sources):  # nothing is rounded
        if error is not None:
            raise error
        return proof
    exact, failure = _compare(smooth, unit, batches, seed, path)
    if failure is not None:
        raise failure
    if error is None:
        return Proof(max(proof.difference, exact.difference), max(proof.normalized, exact.normalized), batches)
    difference = max(proof.difference, proof.normalized)
    return replace(exact, note=f"without the rounding of its quantizers, with which outputs differ by {difference:.0e}")


def _proto(source: Source) -> onnx.ModelProto:
    if isinstance(source, str):
        return io.read(source)[0]
    return source.to_proto() if isinstance(source, Model) else source


def _compare(
    sources: Sequence[Source], unit: list[Feeds], batches: tuple[int, ...], seed: int, path: str
) -> tuple[Proof, ProofError | None]:
    """Compare file and loaded model, and masked and pruned model, on inputs of every scale in turn.

    Returns the differences, and an error where they are no proof.

    Raises:
        ProofError: the pruned model does not run.
    """
    file_, original, masked, pruned = sources
    for scale in INPUT_SCALES:
        feeds = [scaled(inputs, scale) for inputs in unit]
        file = _outputs(file_, feeds, path)
        loaded = _outputs(original, feeds, "the model as loaded")
        reference = _outputs(masked, feeds, "the masked model")
        try:
            candidate = _outputs(pruned, feeds, "the pruned model")
        except ModelError as error:
            raise ProofError(
                "the pruned model does not run",
                where=path,
                why=error.why,
                hint=f"{DEFECT}; --ignore can exclude layers",
            ) from error
        normalized = largest_difference(file, loaded)
        difference = largest_difference(reference, candidate, file)
        proof = Proof(difference, normalized, batches)
        if max(normalized, difference) <= TOLERANCE:
            return proof, None
        shaken = [jittered(inputs, seed) for inputs in feeds]
        rounding = (
            largest_difference(file, _outputs(file_, shaken, path)),
            largest_difference(reference, _outputs(masked, shaken, "the masked model"), file),
        )
        if normalized > ROUNDING_FACTOR * rounding[0] or difference > ROUNDING_FACTOR * rounding[1]:
            what = "the pruned model is not the masked model"
            if normalized > TOLERANCE:
                what = "the model as loaded is not the model in the file"
            return proof, ProofError(what, where=path, why=_too_far(max(normalized, difference)), hint=DEFECT)
    return proof, ProofError(
        "the result cannot be proven: this model amplifies rounding",
        where=path,
        why=f"{_too_far(max(normalized, difference))}, and as far when only the last bits of the input change",
        hint="nothing was written; check that the model gives stable outputs",
    )


DEFECT = "nothing was written; this is a defect of onnxprune: please report it"


def _too_far(difference: float) -> str:
    return f"outputs differ by {difference:.2e} of their range, {TOLERANCE:.0e} is allowed"


def _outputs(source: Source, feeds: list[Feeds], where: str) -> Outputs:
    """Return the outputs for all batches; one model is open at a time."""
    if isinstance(source, Model):
        opened = source.session(UNOPTIMIZED, where=where)
    else:
        opened = open_session(source, UNOPTIMIZED, where=where)
    return [output for inputs in feeds for output in run_batch(opened, inputs, where=where)]
