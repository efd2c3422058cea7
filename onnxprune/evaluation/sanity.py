"""What makes figures of quality say nothing: data that the original itself does not understand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx

from onnxprune.data.dataset import Data
from onnxprune.metrics.outputs import OutputPair, Outputs, log_probabilities
from onnxprune.metrics.paired_tests import difference, right
from onnxprune.metrics.statistics import Statistic, on_all
from onnxprune.metrics.tasks import Task
from onnxprune.runtime.session import UNOPTIMIZED, open_session, run_batch
from onnxprune.types import Array, Check, FloatArray, IntArray, doubt

SIGNIFICANCE = 0.01
"""Probability with which chance alone is as good as the original, above which the original is near chance."""
FEW = 30
"""Samples below which a drop within the limit is undecided."""
BETTER = 20.0
"""Points that another assignment of classes must gain to be named."""
LEAST_ABOVE = 0.05
"""Share of what is possible above chance that the original reaches, at least: with labels of another model a few agree by luck."""
OVERCONFIDENT = 25.0
"""Points by which the mean probability of the predicted class may exceed the accuracy: models are that well calibrated on data like
those that trained them, and far less on others (Guo et al., 2017; Ovadia et al., 2019)."""
FLAT = 0.05
"""Deviation of (n, k) outputs between samples, as a share of that between their entries, below which they hardly depend on the input."""
FLAT_MAP = 0.01
"""The same of (n, C, h, w) outputs, whose pixels may have biases of their own."""
SPREAD, SHIFT = 2.2, 1.5
"""Factor between the deviation of a normalised tensor and that of its statistics, and distance of the means in deviations, that are usual."""
LOOKED = 64
"""Samples on which the first normalisation, and maps, are looked at."""
REMEDY = "check --preprocess (values scaled twice, or not at all; the order of colors), and that the data belong to this model"


def doubts(outputs: Outputs, labels: IntArray | None, *, classes: bool = True) -> Iterator[Check]:
    """Say why the outputs of the original say nothing; (n, …) each, with labels, (n,).

    >>> [str(found.value) for found in doubts([np.eye(2)[np.ones(40, int)]], None)]
    ['all 40 samples']
    """
    scores = OutputPair(outputs, outputs, labels, classes).scores()
    if scores is None:
        yield from _flat(outputs)
    else:
        yield from _doubtful_scores(scores[0], labels)


def near_chance(
    task: Task | None, statistics: Mapping[str, Statistic], shuffled: Statistic | None, samples: int
) -> Iterator[Check]:
    """Say that a model is hardly better on its labels than on those of other samples; of classifiers `doubts` says more.

    Args:
        task: what the model does.
        statistics: its metrics.
        shuffled: the leading metric with the predictions in another order.
        samples: number of samples.

    Source: Ojala and Garriga, 2010, "Permutation tests for studying classifier performance", test 1; here with one order, and the
    bootstrap in place of many orders.
    """
    lead = None if task is None else task.lead
    if task is None or lead is None or shuffled is None or samples < 2 or task.name == "classify":
        return
    right, other = statistics[lead.name], shuffled
    if lead.direction == "lower":
        right, other = other, right
    found = difference(right, other, samples)
    above = abs(lead.ideal - on_all(shuffled, samples)) * (LEAST_ABOVE if lead.unit == "%" else 0)
    if found.lower > 0 and found.drop >= above:
        return
    amounts = [lead.text(on_all(each, samples)) for each in (statistics[lead.name], shuffled)]
    told = f"with the labels of other samples {lead.label} is {amounts[1]}"
    if task.own is not None and found.upper < 0:
        better = "lower" if lead.direction == "higher" else "higher"
        told += f", which is better: check --direction; {better} amounts seem to be better"
        yield doubt("direction of the metric", f"{amounts[0]} {lead.label}", told)
        return
    yield doubt(
        "original near chance", f"{amounts[0]} {lead.label}", f"{told}: {REMEDY}, and its labels to the samples"
    )


def _flat(outputs: Outputs) -> Iterator[Check]:
    """Say that outputs hardly depend on the input."""
    for output in outputs:
        if output.ndim not in (2, 4) or output.dtype.kind != "f" or len(output) < FEW or output[0].size < 2:
            continue
        is_map = output.ndim == 4
        some = output[:: -(-len(output) // LOOKED)] if is_map else output
        values = some.reshape(len(some), -1).astype(np.float64)
        entries = float((values - values.mean(axis=1, keepdims=True)).std())
        share = float((values - values.mean(axis=0)).std()) / entries if entries else 0.0
        if share < (FLAT_MAP if is_map else FLAT):
            yield doubt(
                "nearly the same outputs",
                f"all {len(output)} samples",
                f"they deviate by {share:.1%} of the range of an output: {REMEDY}",
            )


def _doubtful_scores(scores: FloatArray, labels: IntArray | None) -> Iterator[Check]:
    given = scores.argmax(axis=1)
    classes = np.unique(given)
    one_label = labels is not None and len(np.unique(labels)) == 1
    flat = list(_flat([scores]))
    yield from flat
    if len(classes) == 1 and len(given) > 1 and not one_label and not flat:
        yield doubt(
            "one class predicted",
            f"all {len(given)} samples",
            f"the original gives class {classes[0]} for all: {REMEDY}",
        )
    if labels is None:
        return
    if one_label:
        if len(labels) > 1:
            yield doubt(
                "one class in the labels",
                f"all {len(labels)} samples",
                f"are of class {labels[0]}: give samples of all classes",
            )
        return
    better = _better_assignment(given, labels, scores.shape[1])
    if better:
        yield doubt("labels of other classes", better[0], better[1])
        return
    rate, chance = 100 * float(right(scores, labels).mean()), 100 * _majority(labels)
    said = 100 * float(np.exp(log_probabilities(scores).max(axis=1)).mean())
    if _is_near_chance(scores, labels):
        yield doubt(
            "original near chance", f"{rate:.2f} %", f"the most frequent label is {chance:.2f} % of all: {REMEDY}"
        )
    elif said - rate > OVERCONFIDENT and len(labels) >= FEW:
        told = f"although its probability for them is {said:.0f} % on average: {REMEDY}"
        yield doubt("original too sure", f"{rate:.2f} % right", told)


def _majority(labels: IntArray) -> float:
    """Return the share of the most frequent label: what a model without knowledge reaches."""
    return float(np.bincount(labels).max()) / len(labels)


def _is_near_chance(scores: FloatArray, labels: IntArray) -> bool:
    """Tell whether chance alone would often be as good: the exact binomial test against the share of the most frequent label."""
    from scipy.stats import binomtest

    hits = int(right(scores, labels).sum())
    return float(binomtest(hits, len(labels), _majority(labels), alternative="greater").pvalue) > SIGNIFICANCE


def _better_assignment(given: IntArray, labels: IntArray, classes: int) -> tuple[str, str] | None:
    """Return the share that is right, and which other assignment of class numbers agrees with the labels much better.

    The best assignment is that of the confusion matrix; see `assignment`.
    """
    size = max(classes, int(labels.max()) + 1)
    used = np.unique(np.concatenate([given, labels]))
    place = np.zeros(size, dtype=np.int64)
    place[used] = np.arange(len(used))
    confusion = np.zeros((len(used), len(used)))
    np.add.at(confusion, (place[labels], place[given]), 1)
    before, after, how = assignment(confusion / len(labels), used)
    if after - before < BETTER or len(labels) < FEW or after - before < 2 * 100 * len(used) / len(labels):
        return None
    told = f"of the original's predictions are right, {how} they are {after:.2f} %: check the order and the first number of the classes"
    return f"{before:.2f} %", told


def assignment(confusion: FloatArray, classes: IntArray) -> tuple[float, float, str]:
    """Return the percent that is right, the percent with the best assignment of class numbers, and the assignment in words.

    Args:
        confusion: (classes, classes), share of all samples with a label (rows) and a prediction (columns).
        classes: (classes,) their numbers.

    Source: Kuhn, 1955, "The Hungarian method for the assignment problem".
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(confusion, maximize=True)
    before, after = (100 * float(found) for found in (np.trace(confusion), confusion[rows, columns].sum()))
    seen = confusion[rows, columns] > 0
    steps = {int(classes[c] - classes[r]) for r, c in zip(rows[seen], columns[seen], strict=True)}
    how = f"with labels {steps.pop():+d}" if len(steps) == 1 else "in another order of the classes"
    return before, after, how


def normalization(proto: onnx.ModelProto, data: Data, weights: Mapping[str, Array] | None = None) -> Iterator[Check]:
    """Say where the first BatchNormalization sees values far from its statistics: those of the samples that trained it.

    Args:
        proto: the original.
        data: samples.
        weights: initializers that the proto lacks; None: it has all.
    """
    first = next((n for n in proto.graph.node if n.op_type == "BatchNormalization" and len(n.input) == 5), None)
    part = None if first is None else _part(proto, first.input[0])
    if first is None or part is None:
        return
    arrays = {t.name: t for t in proto.graph.initializer}
    if not {*first.input[3:]} <= arrays.keys():
        return
    apart = weights or {}
    found = (apart[name] if name in apart else onnx.numpy_helper.to_array(arrays[name]) for name in first.input[3:])
    mean, variance = (values.astype(np.float64) for values in found)
    if not mean.any() and (variance == 1).all():
        return  # as initialised, never trained
    stored = {tensor.name for tensor in part.graph.initializer}
    opened = open_session(part, UNOPTIMIZED, weights={name: x for name, x in apart.items() if name in stored})
    names = {value.name for value in part.graph.input}
    step = data.fixed or min(len(data), 8)
    runs = [data.rows(start, start + step) for start in range(0, min(len(data), LOOKED) - step + 1, step)]
    outputs = [run_batch(opened, {k: v for k, v in feeds.items() if k in names})[0] for feeds in runs]
    values = [np.moveaxis(value, 1, 0).reshape(value.shape[1], -1).astype(np.float64) for value in outputs]
    if not values:
        return
    seen = np.concatenate(values, axis=1)
    deviation = np.sqrt(variance) + 1e-12
    factor = float(np.exp(np.median(np.log((seen.std(axis=1) + 1e-12) / deviation))))
    shift = float(np.median(np.abs(seen.mean(axis=1) - mean) / deviation))
    if not 1 / SPREAD < factor < SPREAD or shift > SHIFT:
        where = first.name or first.output[0]
        told = f"deviate {factor:.3g} times as much as the training samples, their means lie {shift:.2g} deviations away: {REMEDY}"
        yield doubt("values that the model was not trained on", f"at {where}", told)


def _part(proto: onnx.ModelProto, name: str) -> onnx.ModelProto | None:
    """Return the part of a model that computes a tensor; None where nodes with bodies take part."""
    made = {output: node for node in proto.graph.node for output in node.output}
    needed, nodes, names = [name], set[int](), set[str]()
    while needed:
        wanted = needed.pop()
        names.add(wanted)
        node = made.get(wanted)
        if node is None or id(node) in nodes:
            continue
        if any(attribute.HasField("g") for attribute in node.attribute):
            return None
        nodes.add(id(node))
        needed += [each for each in node.input if each]
    part = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    part.graph.name = "part"
    part.graph.node.extend(node for node in proto.graph.node if id(node) in nodes)
    part.graph.initializer.extend(tensor for tensor in proto.graph.initializer if tensor.name in names)
    stored = {tensor.name for tensor in part.graph.initializer}
    part.graph.input.extend(v for v in proto.graph.input if v.name in names and v.name not in stored)
    part.graph.output.add(name=name)
    return part if part.graph.input else None
