"""Hold a model against the one it came from: the oracle, structure, fidelity and accuracy."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxprune.data import Data
from onnxprune.errors import DataError, ModelError, ProofError
from onnxprune.graph.shapes import concrete_shapes, has_dynamic_batch
from onnxprune.metrics.outputs import ROUNDING_FACTOR, Outputs, jittered, relative_difference
from onnxprune.model import STORED_IN, Model, tensors_of
from onnxprune.quantised import is_quantiser, unrounded
from onnxprune.runtime.session import UNOPTIMIZED, Feeds, concatenate_outputs, open_session, random_feeds, run_batch
from onnxprune.types import Check

if TYPE_CHECKING:
    import onnxruntime as ort

TOLERANCE = 1e-4
"""Largest difference between pruned and masked, as a share of the range of an output."""
PROOF_BATCHES = (1, 3)
INPUT_SCALES = (1.0, 0.1, 0.01)
"""Standard deviations of the inputs that are tried."""
Progress = Callable[[float], None]
Source = str | Model | onnx.ModelProto
"""A path, a model, or its proto."""


@dataclass(frozen=True)
class Proof:
    """Largest differences found, as shares of the output's range.

    Attributes:
        difference: pruned against masked.
        normalised: the model as it was loaded (constants and BatchNormalization folded) against the file.
        batches: sizes of the batches both were run on.
        tolerance: the largest difference that is accepted.
        note: what is particular to this proof; empty when nothing is.
    """

    difference: float
    normalised: float
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
    """Run models on the same seeded inputs, without graph optimisation, and compare every output.

    The pruned model must equal the masked one, and the original as loaded must equal its file. Networks that amplify
    rounding (large activations into an exponential) can differ by more than the tolerance though both are right; so a
    difference no larger than what a jitter of the input's last bits does is put down to rounding, and the comparison is
    made again on smaller inputs, where it has to hold.

    A model that quantises its activations is compared once more with quantisers that clip but do not round, and has to
    hold there: rounding hides small errors, and a sum that lies between two integers can fall to either side, depending on
    the order in which it was added up. Only the latter is let pass with rounding on, and noted.

    Args:
        original: as loaded.
        pruned: channels deleted.
        masked: channels there, what reads them zero.
        known: shapes of the data, for dynamic axes other than the batch.
        seed: of the inputs.
        loaded: whether the original is what it is in memory, not in its file: trained, for instance.

    Raises:
        ProofError: two of them differ by more than `TOLERANCE`, or the pruned model does not run.
        ModelError: the original cannot be run.
    """
    header = original.header
    batches = PROOF_BATCHES if has_dynamic_batch(header) else (1,)
    shapes = [concrete_shapes(header, batch, known=known) for batch in batches]
    unit = [random_feeds(header, shape, seed + batch) for shape, batch in zip(shapes, batches, strict=True)]
    path = str(original.path)
    sources: tuple[Source, ...] = (original if loaded else path, original, masked, pruned)
    proof, error = _compare(sources, unit, batches, seed, path)
    protos = [unrounded(proto) for proto in _protos(sources)] if any(map(is_quantiser, original.graph.nodes)) else []
    smooth = [proto for proto in protos if proto is not None]
    if len(smooth) < len(sources):  # nothing is rounded
        if error is not None:
            raise error
        return proof
    exact, failure = _compare(smooth, unit, batches, seed, path)
    if failure is not None:
        raise failure
    if error is None:
        return Proof(max(proof.difference, exact.difference), max(proof.normalised, exact.normalised), batches)
    difference = max(proof.difference, proof.normalised)
    return replace(exact, note=f"without the rounding of its quantisers, with which outputs differ by {difference:.0e}")


def _protos(sources: Sequence[Source]) -> Iterator[onnx.ModelProto]:
    for source in sources:
        if isinstance(source, str):
            yield onnx.load(source)
        else:
            yield source.to_proto() if isinstance(source, Model) else source


def _compare(
    sources: Sequence[Source], unit: list[Feeds], batches: tuple[int, ...], seed: int, path: str
) -> tuple[Proof, ProofError | None]:
    """Compare the file with the loaded model, and the masked model with the pruned one, on inputs of every scale in turn.

    Returns:
        What was found, and an error where that is no proof.

    Raises:
        ProofError: the pruned model does not run.
    """
    file_, original, masked, pruned = sources
    for scale in INPUT_SCALES:
        feeds = [{name: _scaled(value, scale) for name, value in inputs.items()} for inputs in unit]
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
                hint=f"{DEFECT}; --ignore can leave out layers",
            ) from error
        normalised, difference = _worst(file, loaded, file), _worst(reference, candidate, file)
        proof = Proof(difference, normalised, batches)
        if max(normalised, difference) <= TOLERANCE:
            return proof, None
        shaken = [{name: jittered(value, seed) for name, value in inputs.items()} for inputs in feeds]
        rounding = (
            _worst(file, _outputs(file_, shaken, path), file),
            _worst(reference, _outputs(masked, shaken, "the masked model"), file),
        )
        if normalised > ROUNDING_FACTOR * rounding[0] or difference > ROUNDING_FACTOR * rounding[1]:
            what = "the pruned model is not the masked model"
            if normalised > TOLERANCE:
                what = "the model as loaded is not the model in the file"
            return proof, ProofError(what, where=path, why=_too_far(max(normalised, difference)), hint=DEFECT)
    return proof, ProofError(
        "the result cannot be proven: this model amplifies rounding",
        where=path,
        why=f"{_too_far(max(normalised, difference))}, but so they do when the last bits of the input change",
        hint="nothing was written; check that the model gives stable outputs",
    )


DEFECT = "nothing was written; this is a defect of onnxprune: please report it"


def _too_far(difference: float) -> str:
    return f"outputs differ by {difference:.2e} of their range, {TOLERANCE:.0e} is allowed"


def _outputs(source: Source, feeds: list[Feeds], where: str) -> list[list[Any]]:
    """Return the outputs for each batch; one model is open at a time."""
    if isinstance(source, Model):
        opened = source.session(UNOPTIMIZED, where=where)
    else:
        opened = open_session(source, UNOPTIMIZED, where=where)
    return [run_batch(opened, inputs, where=where) for inputs in feeds]


def _worst(expected: list[list[Any]], found: list[list[Any]], original: list[list[Any]]) -> float:
    rows = [row for batch in zip(expected, found, original, strict=True) for row in zip(*batch, strict=True)]
    return max((relative_difference(*row) for row in rows), default=0.0)


def _scaled(value: np.ndarray[Any, Any], scale: float) -> np.ndarray[Any, Any]:
    return value if value.dtype.kind in "iub" else (value * scale).astype(value.dtype)


def structure(
    candidate: onnx.ModelProto | Model, baseline: onnx.ModelProto | Model, *, strict: bool = True
) -> list[Check]:
    """Check that a model is well-formed and has the inputs and outputs of the baseline.

    Args:
        candidate: the model to judge.
        baseline: the original.
        strict: whether onnx's full check counts; off where the original does not pass it either.
    """
    checks = []
    if strict:
        reason = full_check(candidate)
        checks.append(Check("onnx checker", "ok" if reason is None else "invalid", None, reason is None, reason or ""))
    for kind in ("input", "output"):
        ours, theirs = (_signature(source, kind) for source in (candidate, baseline))
        different = [name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)]
        detail = "; ".join(
            f"{name}: {ours.get(name, 'missing')} instead of {theirs.get(name, 'nothing')}"
            for name in sorted(different)
        )
        checks.append(Check(f"same {kind}s", not different, None, not different, detail))
    return checks


def full_check(source: onnx.ModelProto | Model) -> str | None:
    """Return why onnx's full check refuses a model; None when it passes. It does not look at the weights of a `Model`."""
    try:
        if not isinstance(source, Model):
            onnx.checker.check_model(source, full_check=True)
            return None
        proto, weights = source.stub()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(proto.SerializeToString())
            with (Path(folder) / STORED_IN).open("wb") as file:  # a hole of that size: nothing is written
                file.truncate(max((values.nbytes for values in weights.values()), default=0))
            onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        return str(error).strip().splitlines()[0][:200]
    return None


def _signature(source: onnx.ModelProto | Model, kind: str) -> dict[str, str]:
    """Return dtype and shape of each `input` or `output`."""
    if isinstance(source, Model):
        graph, weights = source.header.graph, {tensor.name for _, _, tensor in tensors_of(source.graph)}
    else:
        graph, weights = source.graph, {tensor.name for tensor in source.graph.initializer}
    result = {}
    for value in getattr(graph, kind):
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        dims = (
            ["?" if not d.HasField("dim_value") else d.dim_value for d in tensor.shape.dim]
            if tensor.HasField("shape")
            else "any"
        )
        result[value.name] = f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}{dims}"
    return result


def predict(
    opened: ort.InferenceSession, data: Data, batch: int, where: str, progress: Progress | None = None
) -> Outputs:
    """Run all data through a model; return each output, joined over the samples.

    A model with a fixed batch of another size is fed that size; a rest too small for a batch is left out.
    """
    parts: list[list[Any]] = []
    fixed = opened.get_inputs()[0].shape[0] if opened.get_inputs()[0].shape else None
    size = fixed if isinstance(fixed, int) else min(batch, len(data))
    if len(data) < size:
        raise DataError(
            "too few samples for one batch",
            where=data.name,
            why=f"the model takes {size} at a time, there are {len(data)}",
            hint="give more samples, or export with a dynamic batch",
        )
    for feeds in data.batches(size):
        if isinstance(fixed, int) and len(next(iter(feeds.values()))) < size:
            break
        parts.append(run_batch(opened, feeds, where=where))
        if progress:
            progress(min(1.0, len(parts) * size / len(data)))
    return concatenate_outputs(parts)
