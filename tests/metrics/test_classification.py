"""Metrics of classifiers, against scikit-learn and torchmetrics."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resampled import assert_counts_repeat_samples, drawn

from onnxprune.errors import DataError
from onnxprune.metrics import classification
from onnxprune.metrics.statistics import on_all

Array = np.ndarray[Any, Any]
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def reference() -> Any:
    return pytest.importorskip("sklearn.metrics")


def close(amount: float) -> Any:
    return pytest.approx(amount, rel=1e-12, abs=1e-11, nan_ok=True)


def one_class(seed: int) -> tuple[Array, Array]:
    """Scores with ties, and labels of which some classes are missing."""
    rng = np.random.default_rng(seed)
    n, classes = int(rng.integers(1, 40)), int(rng.integers(2, 8))
    return rng.integers(0, 6, (n, classes)) / 2.0, rng.integers(0, classes, n)


def several_labels(seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(1, 40)), int(rng.integers(1, 6))
    return rng.integers(-6, 7, (n, k)) / 4.0 + 0.125, rng.integers(0, 2, (n, k))


@settings(deadline=None)
@given(SEEDS, st.integers(1, 5))
def test_topk_counts_labels_among_the_largest(seed: int, k: int) -> None:
    scores, labels = one_class(seed)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    expected = 100 * (order == labels[:, None]).any(axis=1).mean()
    assert on_all(classification.topk(k)(scores, labels), len(labels)) == close(expected)
    assert_counts_repeat_samples(classification.topk(k), scores, labels, seed)


def test_topk_is_that_of_scikit_learn(reference: Any) -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random((200, 10)), rng.integers(0, 10, 200)
    for k in (1, 3, 5):
        expected = reference.top_k_accuracy_score(labels, scores, k=k, labels=np.arange(10))
        assert on_all(classification.topk(k)(scores, labels), 200) == close(100 * expected)


def test_scores_that_are_nan_are_wrong() -> None:
    scores = np.full((4, 3), np.nan)
    assert on_all(classification.topk(1)(scores, np.array([1, 2, 1, 2])), 4) == 0


@pytest.mark.parametrize("wrong", [-1, 3])
@pytest.mark.parametrize("metric", [classification.topk(1), classification.macro_f1])
def test_labels_out_of_range_are_refused(metric: Any, wrong: int) -> None:
    with pytest.raises(DataError, match="out of range") as caught:
        metric(np.zeros((2, 3)), np.array([0, wrong]))
    assert str(wrong) in caught.value.why


@settings(deadline=None)
@given(SEEDS)
def test_macro_f1_of_classes(reference: Any, seed: int) -> None:
    scores, labels = one_class(seed)
    expected = reference.f1_score(labels, scores.argmax(axis=1), average="macro")
    assert on_all(classification.macro_f1(scores, labels), len(labels)) == close(100 * expected)
    assert_counts_repeat_samples(classification.macro_f1, scores, labels, seed)


@settings(deadline=None)
@given(SEEDS)
def test_macro_f1_of_labels(reference: Any, seed: int) -> None:
    scores, labels = several_labels(seed)
    expected = (
        reference.f1_score(labels.reshape(len(labels), -1), scores > 0, average="macro", zero_division=np.nan)
        if labels.shape[1] > 1
        else reference.f1_score(labels[:, 0], scores[:, 0] > 0, zero_division=np.nan)
    )
    found = on_all(classification.macro_f1(scores, labels, probabilities=False), len(labels))
    assert found == close(100 * expected)
    assert_counts_repeat_samples(lambda p, y: classification.macro_f1(p, y, probabilities=False), scores, labels, seed)


def test_probabilities_are_cut_at_a_half_and_logits_at_zero() -> None:
    logits, labels = np.array([[-1.0, 2.0], [0.3, -2.0]]), np.array([[0, 1], [1, 0]])
    probabilities = 1 / (1 + np.exp(-logits))
    for scores in (logits, probabilities, probabilities.astype(np.float32)):
        assert on_all(classification.macro_f1(scores, labels), 2) == 100
    within = np.array([[0.2, 0.1]])
    assert classification.above(within).tolist() == [[False, False]]
    assert classification.above(within, probabilities=False).tolist() == [[True, True]]


@settings(deadline=None)
@given(SEEDS)
def test_accuracy_of_two_classes(reference: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, labels = rng.integers(0, 5, 30) / 4, rng.integers(0, 2, 30)
    assert on_all(classification.accuracy(p, labels), 30) == close(100 * reference.accuracy_score(labels, p > 0.5))
    assert_counts_repeat_samples(classification.accuracy, p, labels, seed)


@settings(deadline=None)
@given(SEEDS)
def test_area_of_two_classes(reference: Any, seed: int) -> None:
    scores, labels = (array[:, 0] for array in several_labels(seed))
    found = on_all(classification.auc(scores, labels), len(labels))
    expected = reference.roc_auc_score(labels, scores) if np.ptp(labels) else np.nan
    assert found == close(100 * expected)
    assert_counts_repeat_samples(classification.auc, scores, labels, seed)


@settings(deadline=None)
@given(SEEDS)
def test_area_of_labels_leaves_out_those_with_one_value(reference: Any, seed: int) -> None:
    scores, labels = several_labels(seed)
    pairs = [(y, p) for y, p in zip(labels.T, scores.T, strict=True) if np.ptp(y)]
    expected = np.mean([reference.roc_auc_score(*pair) for pair in pairs]) if pairs else np.nan
    assert on_all(classification.auc(scores, labels), len(labels)) == close(100 * expected)
    assert_counts_repeat_samples(classification.auc, scores, labels, seed)


@settings(deadline=None)
@given(SEEDS)
def test_average_precision(reference: Any, seed: int) -> None:
    scores, labels = several_labels(seed)
    pairs = [(y, p) for y, p in zip(labels.T, scores.T, strict=True) if y.any()]
    expected = np.mean([reference.average_precision_score(*pair) for pair in pairs]) if pairs else np.nan
    assert on_all(classification.label_map(scores, labels), len(labels)) == close(100 * expected)
    if len(pairs) == labels.shape[1]:
        whole = reference.average_precision_score(labels, scores, average="macro")
        assert on_all(classification.label_map(scores, labels), len(labels)) == close(100 * whole)
    assert_counts_repeat_samples(classification.label_map, scores, labels, seed)


def test_many_resamples_are_taken_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scores, labels, counts = rng.random((50, 3)), rng.integers(0, 2, (50, 3)), drawn(50, 20)
    for metric in (classification.auc, classification.label_map):
        whole = metric(scores, labels)(counts)
        with monkeypatch.context() as patch:
            patch.setattr(classification, "BLOCK", 120)
            assert metric(scores, labels)(counts).tolist() == whole.tolist()


@pytest.mark.torch
def test_as_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(0)
    scores, labels = rng.random((300, 4)), rng.integers(0, 2, (300, 4))
    several = [torch.from_numpy(array) for array in (scores, labels)]
    logits, classes = rng.normal(size=(300, 7)), rng.integers(0, 6, 300)
    one = [torch.from_numpy(array) for array in (logits, classes)]
    two = [torch.from_numpy(array) for array in (scores[:, 0], labels[:, 0])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "macro_f1 of labels": functional.multilabel_f1_score(*several, 4),
            "auc of labels": functional.multilabel_auroc(*several, 4),
            "label_map": functional.multilabel_average_precision(*several, 4),
            "macro_f1": functional.multiclass_f1_score(*one, 7),
            "top3": functional.multiclass_accuracy(*one, 7, average="micro", top_k=3),
            "accuracy": functional.binary_accuracy(*two),
            "auc": functional.binary_auroc(*two),
        }
    found = {
        "macro_f1 of labels": classification.macro_f1(scores, labels),
        "auc of labels": classification.auc(scores, labels),
        "label_map": classification.label_map(scores, labels),
        "macro_f1": classification.macro_f1(logits, classes),
        "top3": classification.topk(3)(logits, classes),
        "accuracy": classification.accuracy(scores[:, 0], labels[:, 0]),
        "auc": classification.auc(scores[:, 0], labels[:, 0]),
    }
    amounts = {name: on_all(statistic, 300) for name, statistic in found.items()}
    assert amounts == pytest.approx({name: 100 * float(one) for name, one in expected.items()}, rel=1e-5)  # float32
