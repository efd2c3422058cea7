"""Compare the outputs of a model with those of the original, or with labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.metrics.distances import AUTO, SCORES, takes_class_scores
from onnxprune.metrics.output_distance import distance_of
from onnxprune.metrics.table import of_kind
from onnxprune.types import FloatArray

Array = np.ndarray[Any, Any]
Outputs = list[Array]
BLOCK = 2**20
"""Values that are converted to float64 at a time."""
JUDGED = 8
"""Samples from which outputs with one and the same largest entry are no class scores."""
LEAST_RANGE = 0.005
"""Range of an output, at least, as a share of its largest value: in an output that hardly varies, the last bits (1e-7 of the value)
would be a large share of the range."""
JITTER_BITS = 4
"""Units in the last place by which inputs are jittered."""
ROUNDING_FACTOR = 10
"""A difference of up to this many times the one that jittered inputs cause is attributed to rounding."""
TOLERANCE = 1e-4
"""Largest difference between equivalent models, as a share of the range of an output."""
INPUT_SCALES = (1.0, 0.1, 0.01)
"""Factors of the inputs, tried in turn until rounding does not hide the difference."""


@dataclass(frozen=True)
class OutputPair:
    """The outputs of a model and of the original on the same inputs; (n, …) arrays.

    `classes` tells whether a (n, k) output may hold class scores.
    """

    candidate: Outputs
    original: Outputs
    labels: np.ndarray[Any, Any] | None = None
    classes: bool = True

    def mean(self, measure: Callable[[Any, Any], Any]) -> float | None:
        """Return the mean over outputs of a function of the original and the candidate, (n, …) arrays.

        Outputs whose shapes differ are left out, and integers that are the same everywhere; None where none is left.
        """
        found = [
            float(measure(a, b))
            for a, b in zip(self.original, self.candidate, strict=True)
            if a.shape == b.shape and a.size and _is_numbers(a)
        ]
        return float(np.mean(found)) if found else None

    @staticmethod
    def cosine(original: Array, candidate: Array) -> float:
        """Return the cosine of the angle between rows, mean over rows; rows of zeros count 1 where they are equal, else 0."""
        total = 0.0
        for x, y in _blocks(original, candidate):
            norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
            dots = np.einsum("ij,ij->i", x, y)
            total += float(np.where(norms > 0, dots / np.where(norms > 0, norms, 1), (x == y).all(axis=1)).sum())
        return total / len(original)

    def agreement(self) -> float | None:
        """Return the percentage of samples with the same top-1; None without class scores."""
        scores = self.scores()
        if scores is None:
            return None
        return 100.0 * float((scores[0].argmax(axis=1) == scores[1].argmax(axis=1)).mean())

    def kl(self) -> float | None:
        """Return the mean Kullback-Leibler divergence KL(original || candidate) in nats; None without class scores."""
        scores = self.scores()
        return None if scores is None else _kl(*scores)

    def explained(self) -> float | None:
        """Return the percentage of the variance of the original's outputs that the candidate gives; None where all are class scores.

        This is R^2 with the original in the place of the truth; the variance is that between samples.
        """
        pair = self if self.scores() is None else self._beside_scores()
        share = pair.mean(_unexplained)
        return None if share is None else 100.0 * (1.0 - share)

    def _beside_scores(self, *, labelled: bool = False) -> OutputPair:
        """Return the outputs without the class scores, and without those that name the same classes in another form."""
        place = _place_of_scores(self.original, labelled=labelled or self.labels is not None)
        if place is None:
            return self
        main = self.original[place]
        kept = [n for n, output in enumerate(self.original) if n != place and not names_the_same(main, output)]
        return OutputPair([self.candidate[n] for n in kept], [self.original[n] for n in kept])

    def scores(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
        """Return the class scores of the original and of the candidate; None where the outputs are plain numbers.

        Without labels, outputs of the form (samples, classes) are plain numbers (coordinates, an embedding) where they are
        no probabilities and have the same largest entry for every one of `JUDGED` samples or more.
        """
        labelled = self.labels is not None
        pair = _pair_of_scores(self.original, self.candidate, labelled=labelled) if self.classes else None
        if pair is None or self.labels is not None or len(pair[0]) < JUDGED:
            return pair
        p = pair[0]
        return pair if np.ptp(p.argmax(axis=1)) or _are_probabilities(p) else None

    def amounts(self, kind: str) -> dict[str, float]:
        """Return the metrics of a kind that apply."""
        found = {metric.name: metric.measure(self) for metric in of_kind(kind)}
        return {name: amount for name, amount in found.items() if amount is not None}


def class_scores(outputs: Outputs, *, labelled: bool = False) -> np.ndarray[Any, Any] | None:
    """Return the (n, classes) output of a classifier; None where no output looks like one.

    (n, classes, 1, 1) is one as well. (n, k, 1) is one of a `labelled` classifier, and k steps of a forecast else.
    """
    place = _place_of_scores(outputs, labelled=labelled)
    return None if place is None else outputs[place].reshape(len(outputs[place]), -1)


def _place_of_scores(outputs: Outputs, *, labelled: bool) -> int | None:
    """Return which output holds class scores."""
    least = 3 if labelled else 4
    for place, output in enumerate(outputs):
        is_flat = output.ndim == 2 or (output.ndim >= least and max(output.shape[2:]) == 1)
        if is_flat and output.shape[1] > 1 and output.dtype.kind == "f":
            return place
    return None


def names_the_same(scores: Array, output: Array) -> bool:
    """Tell whether an output holds the same classes as class scores do: probabilities beside logits, or the best class."""
    best = scores.reshape(len(scores), -1).argmax(axis=1)
    if output.dtype.kind == "f":
        return output.size == scores.size and np.array_equal(output.reshape(len(scores), -1).argmax(axis=1), best)
    return bool(output.size == len(scores) and np.array_equal(output.reshape(-1), best))


def compare_outputs(
    original: Outputs, candidate: Outputs, labels: Array | None = None, *, classes: bool = True
) -> dict[str, float]:
    """Return the fidelity metrics that apply to the outputs of two models on the same inputs.

    `classes` tells whether a (n, k) output may hold class scores; with labels one does.

    >>> scores = [np.array([[0.0, 1.0], [2.0, 0.0]])]
    >>> compare_outputs(scores, scores)
    {'agreement': 100.0, 'cosine': 1.0, 'kl': 0.0}
    """
    return OutputPair(candidate, original, labels, classes).amounts("fidelity")


def output_divergence(original: Outputs, candidate: Outputs, *, scores: bool = True, kind: str = AUTO) -> float:
    """Return the divergence of the outputs of a model from those of the original; 0 where they are the same.

    For an output of the form (samples, classes) the divergence is the Kullback-Leibler divergence, as training takes it, for all others
    the squared error as a share of their variance, mean over outputs; a model with both has the sum. It is infinite where an output is not finite, and
    where no output is comparable: where none holds numbers and has one shape in both models. `scores` tells whether an
    output may be the class scores of a classifier. Whether such an output holds plain numbers is not judged here: the judgement depends
    on the samples, and losses that are compared must be of one kind. The other kinds are those of `onnxprune.metrics.distances`; for
    them `scores` has no effect.

    Raises:
        OptionError: the kind is unknown.
    """
    if not takes_class_scores(kind):
        return _divergence_of_kind(original, candidate, kind) if all_finite(candidate) else float("inf")
    if not all_finite(candidate):
        return float("inf")
    known = kind == SCORES
    pair = _pair_of_scores(original, candidate, labelled=known) if scores or known else None
    whole = OutputPair(candidate, original)
    error = (whole if pair is None else whole._beside_scores(labelled=known)).mean(
        lambda x, y: _squared(x, y) / max(_squared(x, x.mean(dtype=np.float64)), 1e-30)
    )
    if pair is not None:
        return max(_kl(*pair), 0.0) + (error or 0.0)
    return float("inf") if error is None else error


def _divergence_of_kind(original: Outputs, candidate: Outputs, kind: str) -> float:
    """Return the mean distance of the outputs that a kind is made for, plus the mean error of all others."""
    made: list[float] = []
    others: list[float] = []
    for x, y in zip(original, candidate, strict=True):
        found = distance_of(kind, x) if x.shape == y.shape else None
        if found is not None:
            (others if found.measure == "error" else made).append(found(x, y))
    if not made and not others:
        return float("inf")
    return max(0.0, sum((float(np.mean(each)) for each in (made, others) if each), 0.0))


def output_agreement(original: Outputs, candidate: Outputs, kind: str = AUTO) -> float | None:
    """Return the percentage of samples, of maps and frames that of positions, with the same class; None where none names a class.

    >>> map = [np.array([[[1.0, 0.0]], [[0.0, 1.0]]]).reshape(1, 2, 2)]
    >>> output_agreement(map, [map[0][:, ::-1]], "map")
    0.0
    """
    if kind == AUTO:
        return OutputPair(candidate, original).agreement()
    if takes_class_scores(kind):
        pair = _pair_of_scores(original, candidate, labelled=True)
        return None if pair is None else 100.0 * float((pair[0].argmax(axis=1) == pair[1].argmax(axis=1)).mean())
    found = [(distance_of(kind, x), x, y) for x, y in zip(original, candidate, strict=True) if x.shape == y.shape]
    same = [each.agreement(x, y) for each, x, y in found if each is not None and each.tells_classes]
    return 100.0 * float(np.mean(same)) if same else None


KEPT = {"embed": ("cosine",), "segment": ("agreement",), "ctc": ("agreement",)}
"""Metrics of fidelity that say what is lost without labels, by task; `agreement` and `explained` for all others."""


def lost(fidelity: Mapping[str, float], task: str = "") -> float | None:
    """Return the points that are lost without labels: of agreement, of explained variance, or of the cosine; the largest counts.

    >>> lost({"agreement": 99.0, "explained": 98.0}), lost({"cosine": 0.99, "explained": 90.0}, "embed")
    (2.0, 1.0)
    """
    names = KEPT.get(task, ("agreement", "explained"))
    kept = [fidelity[name] * (100 if name == "cosine" else 1) for name in names if name in fidelity]
    return 100 - min(kept) if kept else None


def _is_numbers(output: np.ndarray[Any, Any]) -> bool:
    """Tell whether an output holds amounts: floats, or integers and truth values (pixels, a mask) that are not constant."""
    return output.dtype.kind == "f" or (output.dtype.kind in "iub" and bool((output != output.flat[0]).any()))


def _pair_of_scores(
    original: Outputs, candidate: Outputs, *, labelled: bool = False
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """Return the (n, classes) outputs of two models; None where one has none, or their shapes differ."""
    p, q = (class_scores(outputs, labelled=labelled) for outputs in (original, candidate))
    return None if p is None or q is None or p.shape != q.shape else (p, q)


def _kl(p: np.ndarray[Any, Any], q: np.ndarray[Any, Any]) -> float:
    """Return the mean over samples of KL(p || q) of (n, classes) scores, in nats."""
    log_p, log_q = log_probabilities(p), log_probabilities(q)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


def _unexplained(x: Array, y: Array) -> float:
    """Return the squared error of y as a share of the variance of x between samples, of all values of a single sample."""
    between = _squared(x, x.mean(axis=0, dtype=np.float64) if len(x) > 1 else x.mean(dtype=np.float64))
    rounding = float(np.finfo(np.float32).eps) * max(
        abs(float(x.max())), abs(float(x.min()))
    )  # of an output that is constant
    return _squared(x, y) / max(between, rounding**2, 1e-30)


def _squared(x: Array, y: Array) -> float:
    """Return the mean squared difference of (n, …) arrays; y may be one sample, or one number."""
    whole = np.broadcast_to(y, x.shape)
    return float(sum(np.square(a - b).sum() for a, b in _blocks(x, whole))) / x.size


def _blocks(x: Array, y: Array) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield both arrays as (rows, values) in float64, a few samples at a time: a map for each sample takes much memory."""
    rows = max(1, BLOCK * len(x) // max(x.size, 1))
    for start in range(0, len(x), rows):
        a, b = (array[start : start + rows] for array in (x, y))
        yield a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)


def _are_probabilities(scores: np.ndarray[Any, Any]) -> bool:
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-3))


def all_finite(outputs: Outputs) -> bool:
    """Tell whether no floating-point output holds NaN or infinity."""
    return all(bool(np.isfinite(array).all()) for array in arrays_of(outputs) if array.dtype.kind == "f")


def arrays_of(values: Iterable[Any]) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the arrays of outputs, of which some are sequences, or have another shape for every sample."""
    for value in values:
        if isinstance(value, list) or np.asarray(value).dtype.kind == "O":
            yield from arrays_of(value)
        else:
            yield np.asarray(value)


def log_probabilities(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the logarithms of softmax, (n, classes); scores that are probabilities already pass through no softmax."""
    x = scores.astype(np.float64)
    if _are_probabilities(x):
        return np.asarray(np.log(np.maximum(x, 1e-12)))
    x = x - x.max(axis=1, keepdims=True)
    log_p: np.ndarray[Any, Any] = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return log_p


def relative_difference(expected: Any, found: Any, original: Any = None) -> float:
    """Return the largest difference as a share of the range of the output.

    Args:
        expected: an output.
        found: the same output of an equivalent model.
        original: the same output of the original. The larger range of the two counts: the outputs of a pruned model without repair may
            saturate, so that rounding makes up their range.

    Returns:
        max |expected - found| / range; infinity where shapes, types, or positions of NaN and infinity differ.
    """
    if isinstance(expected, list):
        pairs = zip(expected, found, strict=True) if len(expected) == len(found) else [(np.zeros(0), np.zeros(1))]
        return max((relative_difference(a, b) for a, b in pairs), default=0.0)
    a, b = np.asarray(expected), np.asarray(found)
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.dtype.kind not in "fiub":
        return 0.0 if (a == b).all() else float("inf")
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return float("inf")
    if not finite.any():
        return 0.0
    gap = float(np.abs(a[finite] - b[finite]).max())
    least = LEAST_RANGE * float(np.abs(a[finite]).max())
    scale = max(least, _range(a), 0.0 if original is None else _range(np.asarray(original).astype(np.float64)))
    return gap / scale if scale else gap


def largest_difference(expected: Outputs, found: Outputs) -> float:
    """Return the largest `relative_difference` over the outputs."""
    return max((relative_difference(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)


def scaled(inputs: Mapping[str, np.ndarray[Any, Any]], scale: float) -> dict[str, np.ndarray[Any, Any]]:
    """Multiply floating-point inputs."""
    return {name: x if x.dtype.kind in "iub" else (x * scale).astype(x.dtype) for name, x in inputs.items()}


def jittered(inputs: Mapping[str, np.ndarray[Any, Any]], seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Change the last bits of floating-point inputs."""
    result = dict(inputs)
    for name, x in inputs.items():
        if x.dtype.kind == "f":
            noise = np.random.default_rng(seed).uniform(-1, 1, x.shape) * JITTER_BITS * np.finfo(x.dtype).eps
            result[name] = np.asarray(x * (1 + noise), dtype=x.dtype)
    return result


def _range(values: np.ndarray[Any, Any]) -> float:
    """Return max - min of the finite values; their magnitude where all are equal."""
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0
    return float(np.ptp(values)) or float(np.abs(values).max())
