"""Verdicts on candidates of every task: equal ones pass, broken ones fail, and what says nothing is undecided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Builder, signature_of

from onnxprune.data.dataset import load_data
from onnxprune.data.input_spec import InputSpec
from onnxprune.errors import OptionError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.evaluation.compare import Comparison, compare
from onnxprune.evaluation.policy import GateLimits
from onnxprune.evaluation.verdict import Judged, hold_quality
from onnxprune.metrics.tasks import find_task
from onnxprune.options.judging import Judging
from onnxprune.runtime.session import open_session
from onnxprune.types import Verdict

Array = np.ndarray[Any, Any]
N, SIZE, CLASSES = 80, (64, 64), 4
ONE = np.ones(1, np.float32)


@dataclass(frozen=True)
class Case:
    """Samples that are the outputs of a network, and labels.

    Attributes:
        outputs: (n, …), right but for some noise.
        labels: samples first.
        broken: what a broken candidate multiplies the outputs by.
        lead: the leading metric.
        asked: how quality is judged.
    """

    outputs: Array
    labels: Array
    broken: Array
    lead: str
    asked: dict[str, Any] = field(default_factory=dict)

    def some(self, numbers: Array) -> Case:
        """Return the case of some samples."""
        return replace(self, outputs=self.outputs[numbers], labels=self.labels[numbers])

    def shuffled(self) -> Case:
        """Return the case with the labels of other samples."""
        return replace(self, labels=self.labels[np.random.default_rng(1).permutation(len(self.labels))])


def objects(items: list[Any]) -> Array:
    found = np.empty(len(items), dtype=object)
    for number, item in enumerate(items):
        found[number] = item
    return found


def scored(labels: Array, noise: float = 0.5, seed: int = 0) -> Array:
    """Return scores, the classes on a new last axis, that are mostly right."""
    rng = np.random.default_rng(seed)
    return (4 * np.eye(CLASSES)[labels] + noise * rng.normal(size=(*labels.shape, CLASSES))).astype(np.float32)


def of_boxes(keypoints: int = 0) -> tuple[Array, Array]:
    """Return outputs of the form of YOLOv8 with three boxes per sample, and labels."""
    rng = np.random.default_rng(0)
    rows = 5 + 3 * keypoints if keypoints else 4 + CLASSES
    outputs, labels = np.zeros((N, rows, 24), np.float32), []
    for number in range(N):
        centre, sides = rng.uniform(16, 48, (3, 2)), rng.uniform(8, 20, (3, 2))
        kind = np.zeros(3, int) if keypoints else rng.integers(0, CLASSES, 3)
        outputs[number, :4, :3] = np.concatenate([centre, sides], axis=1).T + rng.normal(0, 0.3, (4, 3))
        outputs[number, 4 + kind, np.arange(3)] = rng.uniform(0.8, 0.95, 3)
        points = centre[:, None] + rng.uniform(-4, 4, (3, keypoints, 2))
        seen = np.concatenate([points, np.full((3, keypoints, 1), 2.0)], axis=2).reshape(3, -1)
        if keypoints:
            outputs[number, 5:, :3] = np.where(np.arange(3 * keypoints) % 3 == 2, 0.9, seen).T
        corners = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1)
        labels.append(np.concatenate([corners, kind[:, None], np.zeros((3, 1)), seen], axis=1))
    return outputs, objects(labels)


def cases() -> dict[str, Case]:
    rng = np.random.default_rng(0)
    classes, truth = rng.integers(0, CLASSES, N), rng.integers(0, 2, N)
    several, masks = rng.integers(0, 2, (N, 3)), rng.integers(0, CLASSES, (N, 2, 2)).repeat(4, 1).repeat(4, 2)
    target, texts = rng.normal(size=(N, 3)).astype(np.float32), rng.integers(1, CLASSES, (N, 3))
    path = np.stack([texts, np.zeros_like(texts)], axis=2).reshape(N, 6)
    half = np.ones((4 + CLASSES, 1), np.float32)
    half[:4] = 0.5
    far = np.ones((11, 1), np.float32)
    far[5:] = 0.5
    seen = 3 * np.eye(20)[np.arange(N) % 20] + 0.2 * rng.normal(size=(N, 20))
    return {
        "classify": Case(scored(classes), classes, -ONE, "top1"),
        "binary": Case((4.0 * truth - 2 + rng.normal(size=N)).astype(np.float32)[:, None], truth, -ONE, "accuracy"),
        "multilabel": Case((4.0 * several - 2 + rng.normal(size=(N, 3))).astype(np.float32), several, -ONE, "label_map"),
        "regress": Case((target + 0.1 * rng.normal(size=(N, 3))).astype(np.float32), target, 0.3 * ONE, "r2"),
        "embed": Case(
            seen.astype(np.float32), np.arange(N) % 20, (np.arange(20) < 2).astype(np.float32), "recall1", {"task": "embed"}
        ),
        "segment": Case(np.moveaxis(scored(masks), 3, 1), masks, -ONE, "miou"),
        "ctc": Case(scored(path), objects([tuple(row) for row in texts]), -ONE, "cer", {"task": "ctc"}),
        "detect": Case(*of_boxes(), half, "map"),
        "keypoints": Case(*of_boxes(2), far, "keypoint_map", {"task": "keypoints"}),
    }  # fmt: skip


CASES = cases()
NEEDS = {"detect": "pycocotools", "keypoints": "pycocotools", "ctc": "rapidfuzz"}


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    if request.param in NEEDS:
        pytest.importorskip(NEEDS[request.param])
    return str(request.param)


def network(shape: tuple[int, ...], factor: Array) -> onnx.ModelProto:
    """Return a network that multiplies its input."""
    b = Builder(shape)
    return b.build(b.node("Mul", ["x", b.const(factor)]))


def compared(case: Case, factor: Array | None = ONE, **asked: Any) -> Comparison:
    """Compare a right network with one that multiplies by `factor`; None: there is none."""
    shape = case.outputs.shape[1:]
    proto = network(shape, ONE)
    spec = InputSpec("x", np.dtype(np.float32), (None, *shape))
    data = load_data({"x": case.outputs, "labels": case.labels}, [spec])
    labels = case.labels if case.labels.dtype == object else data.labels
    data = replace(data, labels=labels)
    task = find_task(Judging(**{**case.asked, **asked}), labels, [case.outputs], None, SIZE)
    candidate = None if factor is None else open_session(network(shape, factor))
    config = BenchmarkConfig(latency=False)
    return compare(open_session(proto), candidate, proto, data, config, signature_of(proto), task=task)


def verdict(found: Comparison, **limits: Any) -> Verdict:
    return Verdict(tuple(hold_quality(Judged(found, GateLimits(**limits)))))


def drop_row(found: Verdict) -> Any:
    return next(check for check in found.checks if check.limit is not None)


def doubts(found: Verdict) -> list[str]:
    return [check.name for check in found.checks if check.status == "UNDECIDED" and check.limit is None]


def test_an_equal_candidate_passes(name: str) -> None:
    found = compared(CASES[name])
    assert found.lead is not None
    assert found.lead.name == CASES[name].lead
    assert found.lost == 0
    told = verdict(found)
    assert (told.quality, doubts(told)) == ("PASSED", [])
    assert drop_row(told).limit == 2.0


def test_a_broken_candidate_fails(name: str) -> None:
    found = compared(CASES[name], CASES[name].broken)
    assert found.lead is not None
    assert found.lost is not None
    assert found.lost > 2
    for limits in ({}, {"max_drop": 1}):
        told = verdict(found, **limits)
        assert told.quality == "FAILED"
        row = drop_row(told)
        assert found.lead.label in row.name
        assert ("rise" if found.lead.direction == "lower" else "drop") in row.name
        assert row.value == pytest.approx(found.lost)


def test_few_samples_are_undecided(name: str) -> None:
    few = CASES[name].some(np.arange(24 if name == "embed" else 12))
    told = verdict(compared(few, (1 + 1e-6) * ONE))
    assert told.quality == "UNDECIDED"
    assert "samples" in doubts(told)


def test_labels_of_other_samples_are_near_chance(name: str) -> None:
    told = verdict(compared(CASES[name].shuffled()))
    assert told.quality == "UNDECIDED"
    assert "original near chance" in doubts(told)


def test_amounts_are_held_without_a_baseline(name: str) -> None:
    case = CASES[name]
    found = compared(case, None)
    assert found.lead is not None
    amount, higher = found.accuracy[0][case.lead], found.lead.direction == "higher"
    side = "min" if higher else "max"
    apart = 40 if higher else -40
    assert verdict(found, **{side: {case.lead: f"{max(amount - apart, 0)}%"}}).quality == "PASSED"
    beyond = f"{amount + 1}%" if higher else f"{amount - 1e-3}%"
    if amount < 99 if higher else amount > 1e-3:
        assert verdict(found, **{side: {case.lead: beyond}}).quality == "FAILED"
    assert verdict(found).quality == "NOT MEASURED"
    with pytest.raises(OptionError, match="--max-drop needs a baseline"):
        verdict(found, max_drop=1)
    other = "miou" if case.lead != "miou" else "map"
    if other not in found.accuracy[0]:
        with pytest.raises(OptionError, match=f"--min {other} was not measured"):
            verdict(found, min={other: "10%"})


def own_of(case: Case) -> Callable[[Any, Any], float]:
    """Return the leading metric as a function of a user."""
    from onnxprune.metrics.statistics import on_all

    def mine(outputs: Any, labels: Array) -> float:
        task = find_task(Judging(**case.asked), labels, [outputs], None, SIZE)
        assert task is not None
        assert task.decode is not None
        return on_all(task.statistics([outputs], task.decode([outputs]), labels)[case.lead], len(labels))

    return mine


@pytest.mark.parametrize("name", ["classify", "regress", "segment", "multilabel"])
def test_a_metric_of_the_users_own_says_the_same(name: str) -> None:
    case = CASES[name]
    plain = compared(case, case.broken)
    own = compared(case, case.broken, metric=own_of(case))
    assert own.lead is not None
    assert (own.lead.name, own.lead.unit) == ("mine", "")
    assert [each["mine"] for each in own.accuracy] == pytest.approx([each[case.lead] for each in plain.accuracy])
    assert own.lost == pytest.approx(plain.lost)
    assert verdict(own).quality == verdict(plain).quality == "FAILED"
    assert verdict(compared(case, metric=own_of(case))).quality == "PASSED"
    assert verdict(own, min={"own": "1000"}).quality == "FAILED"


def error_of(outputs: Array, labels: Array) -> float:
    return float(np.abs(outputs - labels).mean())


def test_lower_amounts_of_a_metric_of_the_users_own_are_better() -> None:
    case = CASES["regress"]
    broken = compared(case, case.broken, metric=error_of, direction="lower")
    assert broken.lost == pytest.approx(broken.accuracy[1]["error_of"] - broken.accuracy[0]["error_of"])
    told = verdict(broken)
    assert told.quality == "FAILED"
    assert "rise" in drop_row(told).name
    assert drop_row(told).limit == pytest.approx(0.02 * broken.accuracy[0]["error_of"])
    assert verdict(compared(case, metric=error_of, direction="lower")).quality == "PASSED"
    assert verdict(broken, max={"own": "0.01"}).quality == "FAILED"
    assert verdict(compared(case, metric=error_of, direction="lower"), max={"own": "1"}).quality == "PASSED"


def test_the_wrong_direction_is_doubted() -> None:
    case = CASES["regress"]
    for metric, direction in ((error_of, "higher"), (lambda o, y: -error_of(o, y), "lower")):
        assert doubts(verdict(compared(case, metric=metric, direction=direction))) == ["direction of the metric"]


@pytest.mark.parametrize(
    "metric",
    [lambda o, y: 1.0, lambda o, y: float(np.abs(o).mean()), lambda o, y: float(y.mean())],
)
def test_a_metric_that_ignores_outputs_or_labels_is_doubted(metric: Callable[[Any, Any], float]) -> None:
    told = verdict(compared(CASES["regress"], metric=metric))
    assert told.quality == "UNDECIDED"
    assert "original near chance" in doubts(told)


def test_a_limit_that_leaves_little_is_doubted() -> None:
    case = CASES["classify"]
    mostly = np.ones(CLASSES, np.float32)
    mostly[:2] = -1
    found = compared(case, mostly)
    assert found.lost is not None
    assert found.lost > 40
    assert doubts(verdict(found, max_drop=100)) == ["limit"]
    assert verdict(found, max_drop=100).quality == "UNDECIDED"
    assert verdict(found, max_drop=5).quality == "FAILED"
    assert doubts(verdict(compared(case), max_drop=100)) == []
