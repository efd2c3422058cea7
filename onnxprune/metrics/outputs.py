"""Hold the outputs of a model against those of another, or against labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxprune.errors import DataError

Outputs = list[np.ndarray[Any, Any]]
JITTER_BITS = 4
ROUNDING_FACTOR = 10
"""A difference up to this many times what jitter does is put down to rounding."""
TOLERANCE = 1e-4
"""Largest difference between two models that should be the same, as a share of the range of an output."""
INPUT_SCALES = (1.0, 0.1, 0.01)
"""Factors of the inputs that are tried in turn, until a comparison is not blurred by rounding."""


def class_scores(outputs: Outputs) -> np.ndarray[Any, Any] | None:
    """Return the (n, classes) output of a classifier; None where no output looks like one."""
    for output in outputs:
        squeezed = output.reshape(output.shape[0], -1) if output.ndim > 2 and max(output.shape[2:]) == 1 else output
        if squeezed.ndim == 2 and squeezed.shape[1] > 1 and squeezed.dtype.kind == "f":
            return squeezed
    return None


def classification_accuracy(outputs: Outputs, labels: np.ndarray[Any, Any]) -> dict[str, float]:
    """Return top-1 (and top-5, with more than five classes) in percent.

    Raises:
        DataError: the outputs are not those of a classifier, or a label is out of their range.
    """
    scores = class_scores(outputs)
    if scores is None:
        raise DataError(
            "there are labels, but no output of the form (samples, classes)",
            hint="leave the labels out to compare with the original",
        )
    labels = labels[: len(scores)]
    if labels.max() >= scores.shape[1]:
        raise DataError(
            "a label is out of range",
            why=f"the largest is {labels.max()}, the model has {scores.shape[1]} classes",
            hint="check that the labels belong to this model",
        )
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = order == labels[:, None]
    result = {"top1": 100.0 * float(hits[:, 0].mean())}
    if scores.shape[1] > 5:
        result["top5"] = 100.0 * float(hits[:, :5].any(axis=1).mean())
    return result


def compare_outputs(original: Outputs, candidate: Outputs) -> dict[str, float]:
    """Compare the outputs of two models on the same inputs.

    Returns:
        `cosine`: mean over samples of the cosine of the angle between flattened outputs, mean over outputs. For classifiers
        also `agreement`: percent of samples with the same top-1; `kl`: mean Kullback-Leibler divergence KL(original ||
        candidate) in nats, after softmax unless rows already are probabilities.
    """
    result: dict[str, float] = {}
    cosines = []
    for a, b in zip(original, candidate, strict=True):
        if a.shape == b.shape and a.dtype.kind == "f" and a.size:
            x, y = (v.reshape(len(v), -1).astype(np.float64) for v in (a, b))
            norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
            dots = np.einsum("ij,ij->i", x, y)
            cosines.append(
                float(np.where(norms > 0, dots / np.where(norms > 0, norms, 1), (x == y).all(axis=1)).mean())
            )
    if cosines:
        result["cosine"] = float(np.mean(cosines))
    p, q = class_scores(original), class_scores(candidate)
    if p is not None and q is not None and p.shape == q.shape:
        result["agreement"] = 100.0 * float((p.argmax(axis=1) == q.argmax(axis=1)).mean())
        log_p, log_q = log_probabilities(p), log_probabilities(q)
        result["kl"] = float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())
    return result


def output_divergence(original: Outputs, candidate: Outputs) -> float:
    """Return how far the outputs of a model are from those of the original; 0 where they are the same.

    For a classifier the mean Kullback-Leibler divergence in nats (see `fidelity`), for any other model the squared error of its
    floating point outputs as a share of their variance, mean over outputs. Infinite where an output is not finite.
    """
    if any(not np.isfinite(b).all() for b in candidate if b.dtype.kind == "f"):
        return float("inf")
    found = compare_outputs(original, candidate)
    if "kl" in found:
        return max(found["kl"], 0.0)
    errors = []
    for a, b in zip(original, candidate, strict=True):
        if a.dtype.kind == "f" and a.shape == b.shape and a.size:
            x, y = a.astype(np.float64), b.astype(np.float64)
            errors.append(float(((x - y) ** 2).mean() / max(float(x.var()), 1e-30)))
    return float(np.mean(errors)) if errors else 0.0


def log_probabilities(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the logarithm of the probabilities that (n, classes) scores stand for; rows that are probabilities already are taken as such."""
    x = scores.astype(np.float64)
    if (x >= 0).all() and np.allclose(x.sum(axis=1), 1, atol=1e-3):
        return np.asarray(np.log(np.maximum(x, 1e-12)))
    x = x - x.max(axis=1, keepdims=True)
    log_p: np.ndarray[Any, Any] = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return log_p


def relative_difference(expected: Any, found: Any, original: Any = None) -> float:
    """Return the largest difference as a share of the range of the output.

    Args:
        expected: an output.
        found: what should be the same.
        original: the same output of the unpruned model. Its range counts where it is the larger one: a pruned network that
            was not repaired may saturate, and what is left of its range is then rounding.

    Returns:
        max |expected - found| / range; infinity where shapes, types, or the places of NaN and infinity differ.
    """
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
    scale = max(_range(a), 0.0 if original is None else _range(np.asarray(original).astype(np.float64)))
    return gap / scale if scale else gap


def largest_difference(expected: Outputs, found: Outputs, original: Outputs | None = None) -> float:
    """Return the largest `relative_difference` of any output."""
    rows = zip(expected, found, expected if original is None else original, strict=True)
    return max((relative_difference(*row) for row in rows), default=0.0)


def scaled(inputs: Mapping[str, np.ndarray[Any, Any]], scale: float) -> dict[str, np.ndarray[Any, Any]]:
    """Multiply floating point inputs."""
    return {name: x if x.dtype.kind in "iub" else (x * scale).astype(x.dtype) for name, x in inputs.items()}


def jittered(inputs: Mapping[str, np.ndarray[Any, Any]], seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Change the last bits of floating point inputs."""
    result = dict(inputs)
    for name, x in inputs.items():
        if x.dtype.kind == "f":
            noise = np.random.default_rng(seed).uniform(-1, 1, x.shape) * JITTER_BITS * np.finfo(x.dtype).eps
            result[name] = np.asarray(x * (1 + noise), dtype=x.dtype)
    return result


def _range(values: np.ndarray[Any, Any]) -> float:
    """Return max - min of the finite values; for a single value, or equal ones, their magnitude."""
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0
    return float(np.ptp(values)) or float(np.abs(values).max())
