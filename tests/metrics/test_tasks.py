"""The task of a model, where the user has a metric of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.data.labels.values import object_array
from onnxprune.errors import DataError
from onnxprune.metrics.tasks import find_task
from onnxprune.options.judging import Judging

TEXTS = np.array(["ab", "c"], dtype=object)
BOXES = object_array([np.zeros((1, 6)), np.zeros((2, 6))])
FRAMES = [np.eye(4, dtype=np.float32)[None, [1, 2, 3]].repeat(2, axis=0)]
HEADS = [np.zeros((2, 255, side, side), np.float32) for side in (8, 4, 2)]


def own(outputs: Any, labels: Any) -> float:
    return 1.0


@pytest.mark.parametrize(("labels", "outputs", "name"), [(TEXTS, FRAMES, "ctc"), (BOXES, HEADS, "detect")])
def test_own_metric_needs_no_decoder(labels: Any, outputs: Any, name: str) -> None:
    """What labels tell of the task is an error only where its metrics are wanted."""
    found = find_task(Judging(metric=own), labels, outputs, size=(64, 64))
    assert found is not None
    assert (found.name, found.decode, [metric.name for metric in found.metrics]) == ("metric", None, ["own"])
    for asked in (Judging(), Judging(task=name), Judging(task=name, metric=own)):
        with pytest.raises(DataError, match=r"numbers of classes|no decoder fits"):
            find_task(asked, labels, outputs, size=(64, 64))
