"""Recall at k of embeddings, against its definition, scikit-learn's neighbours and torchmetrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resampled import drawn

from onnxprune.metrics import retrieval
from onnxprune.metrics.statistics import on_all

Array = np.ndarray[Any, Any]
SEEDS = st.integers(0, 2**32 - 1)


def embedded(seed: int, n: int | None = None) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    n = n or int(rng.integers(2, 40))
    labels = rng.integers(0, max(2, n // 3), n) * 7 - 3
    centres = rng.normal(size=(int(labels.max()) + 4, 4))
    return centres[labels + 3] + rng.normal(size=(n, 4)), labels


def by_definition(embeddings: Array, labels: Array, k: int) -> tuple[Array, Array]:
    """Return which samples are queries, and which find their identity."""
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    queries, hits = [], []
    for n in range(len(labels)):
        others = np.delete(np.arange(len(labels)), n)
        nearest = others[np.argsort(-(units[others] @ units[n]))[:k]]
        queries.append((labels[others] == labels[n]).any())
        hits.append((labels[nearest] == labels[n]).any())
    return np.array(queries), np.array(hits)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 5))
def test_is_its_definition_on_all_and_on_resamples_of_queries(seed: int, k: int) -> None:
    embeddings, labels = embedded(seed)
    queries, hits = by_definition(embeddings, labels, k)
    counts = np.vstack([np.ones(len(labels), dtype=int), drawn(len(labels), seed=seed)])
    found = retrieval.recall(k)(embeddings, labels)(counts)
    drawn_queries = counts @ queries
    expected = 100 * (counts @ (hits & queries)) / np.where(drawn_queries > 0, drawn_queries, np.nan)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-12, nan_ok=True)


def test_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = embedded(3, 200)
    whole = retrieval.recall(2)(embeddings, labels)(drawn(200))
    monkeypatch.setattr(retrieval, "BLOCK", 200 * 7)
    assert retrieval.recall(2)(embeddings, labels)(drawn(200)).tolist() == whole.tolist()


@pytest.mark.parametrize("embedding", [0.0, 0.3, np.nan])
def test_one_embedding_for_all_finds_nothing(embedding: float) -> None:
    labels = np.arange(12) // 2
    for kind in (np.float32, np.float64):
        assert on_all(retrieval.recall(5)(np.full((12, 3), embedding, dtype=kind), labels), 12) == 0


def test_rounding_finds_nothing_either() -> None:
    row = np.random.default_rng(0).normal(size=37)
    for kind in (np.float32, np.float64):
        embeddings = (np.linspace(1, 2, 1003)[:, None] * row).astype(kind)  # one direction
        assert on_all(retrieval.recall(5)(embeddings, np.arange(1003) // 2), 1003) == 0


def test_length_does_not_count_and_half_floats_work() -> None:
    embeddings, labels = embedded(1, 60)
    whole = on_all(retrieval.recall(1)(embeddings, labels), 60)
    assert on_all(retrieval.recall(1)(embeddings * np.arange(1, 61)[:, None], labels), 60) == whole
    assert np.isfinite(on_all(retrieval.recall(1)((embeddings * 300).astype(np.float16), labels), 60))


def test_without_queries_there_is_no_recall() -> None:
    assert np.isnan(on_all(retrieval.recall(1)(np.eye(3), np.arange(3)), 3))


def test_identities_may_be_names() -> None:
    embeddings, labels = embedded(2, 30)
    names = np.array([f"person {label}" for label in labels])
    recall = retrieval.recall(1)
    assert on_all(recall(embeddings, names), 30) == on_all(recall(embeddings, labels), 30)


def test_as_the_neighbours_of_scikit_learn() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    embeddings, labels = embedded(5, 300)
    index = neighbors.NearestNeighbors(metric="cosine").fit(embeddings)
    for k in (1, 5):
        nearest = index.kneighbors(n_neighbors=k, return_distance=False)  # without the query itself
        queries = (labels[:, None] == labels).sum(axis=1) > 1
        hits = (labels[nearest] == labels[:, None]).any(axis=1)
        expected = 100 * hits[queries].mean()
        assert on_all(retrieval.recall(k)(embeddings, labels), 300) == pytest.approx(expected, rel=1e-12)


@pytest.mark.torch
def test_as_the_hit_rate_of_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    torchmetrics = pytest.importorskip("torchmetrics.retrieval")
    embeddings, labels = embedded(6, 80)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    query, other = np.nonzero(~np.eye(80, dtype=bool))
    metric = torchmetrics.RetrievalHitRate(top_k=5, empty_target_action="skip")
    metric.update(
        torch.from_numpy((units @ units.T)[query, other]),
        torch.from_numpy(labels[query] == labels[other]),
        indexes=torch.from_numpy(query),
    )
    found = on_all(retrieval.recall(5)(embeddings, labels), 80)
    assert found == pytest.approx(100 * float(metric.compute()), rel=1e-5)  # float32
