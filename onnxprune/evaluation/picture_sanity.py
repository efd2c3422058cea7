"""What makes pictures doubtful: the original reads them much better with other values, as its training had them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from onnxprune.evaluation.sanity import BETTER
from onnxprune.metrics.paired_tests import difference
from onnxprune.metrics.statistics import Statistic, on_all
from onnxprune.metrics.table import Metric
from onnxprune.runtime.session import Feeds
from onnxprune.types import Array, Check, doubt

PROBED = 32
"""Samples that are read in other ways."""
BYTE = 255.0
"""Largest value of a picture of bytes."""
Change = Callable[[Array], Array]


def readings(pictures: Array) -> dict[str, Change]:
    """Return other readings of pictures, (n, channels, height, width) floats, by what would be done to them.

    >>> sorted(readings(np.linspace(0, 1, 64, dtype=np.float32).reshape(4, 1, 4, 4)))
    ['inverted', 'moved from 0..1 to -1..1', 'multiplied by 255']
    """
    low, high = float(pictures.min()), float(pictures.max())
    if not low < high:
        return {}
    found: dict[str, Change] = {"inverted": lambda x: np.asarray(low + high - x, dtype=x.dtype)}
    if low >= 0 and high <= 1:
        found["moved from 0..1 to -1..1"] = lambda x: 2 * x - 1
        found["multiplied by 255"] = lambda x: np.asarray(x * BYTE, dtype=x.dtype)
    if low < 0:
        found["moved to 0..1"] = lambda x: np.asarray((x - low) / (high - low), dtype=x.dtype)
    if high > 2:
        found["divided by 255"] = lambda x: np.asarray(x / BYTE, dtype=x.dtype)
    if pictures.shape[1] == 3:
        found["with their colors in the other order"] = lambda x: np.ascontiguousarray(x[:, ::-1])
    return found


def is_picture(value: Array) -> bool:
    """Tell whether an input is a batch of pictures of floats."""
    return value.ndim == 4 and value.dtype.kind == "f" and value.shape[1] in (1, 3)


def picture_doubts(lead: Metric, feeds: Feeds, measure: Callable[[Change], Statistic], samples: int) -> Iterator[Check]:
    """Say that the original is much better on pictures that are read in another way.

    Args:
        lead: the leading metric, in percent.
        feeds: inputs of some samples.
        measure: returns the metric of the original where each picture is changed.
        samples: number of these samples.
    """
    pictures = next((value for value in feeds.values() if is_picture(value)), None)
    if pictures is None:
        return
    given = measure(lambda x: x)
    for name, change in readings(pictures).items():
        first, second = measure(change), given
        if lead.direction == "lower":
            first, second = second, first
        found = difference(first, second, samples)
        if found.drop >= BETTER and found.lower > 0:
            amounts = [lead.text(on_all(each, samples)) for each in (given, measure(change))]
            told = f"of the first {samples} samples; {name} they reach {amounts[1]}: check --preprocess"
            yield doubt("values of the pictures", f"{amounts[0]} {lead.label}", told)
            return
