"""What makes samples doubtful before any model runs on them: constant and repeated samples, and samples that are in other data, too."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.data.dataset import Data, Feeds
from onnxprune.data.images import TOLD
from onnxprune.types import Check, doubt

BATCH = 16
"""Samples that are looked at together."""
SHARE = 0.1
"""Share of constant or repeated samples from which the data are doubtful."""
PICTURE = 16
"""Elements from which a constant sample says nothing; fewer may well be equal, as settings are."""


@dataclass(frozen=True)
class Look:
    """What one pass over data saw.

    Attributes:
        digests: one for each sample: of all its inputs, preprocessed.
        constant: samples in which every input has one value.
    """

    digests: tuple[bytes, ...]
    constant: int


def look(data: Data, progress: Callable[[float], None] = lambda share: None) -> Look:
    """Read all samples, and look at each.

    Raises:
        DataError: an image cannot be read, or preprocessed samples hold NaN or infinity.

    >>> from onnxprune.data.dataset import load_data
    >>> from onnxprune.data.input_spec import InputSpec
    >>> samples = np.zeros((4, 20), np.float32)
    >>> seen = look(load_data(samples, [InputSpec("x", np.dtype(np.float32), (None, 20))]))
    >>> (len(set(seen.digests)), seen.constant)
    (1, 4)
    """
    digests: list[bytes] = []
    constant = 0
    for start in range(0, len(data), BATCH):
        stop = min(start + BATCH, len(data))
        for sample in _each(data.samples(start, stop), stop - start):
            found = hashlib.blake2b(digest_size=16)
            for value in sample:
                found.update(value.tobytes())
            digests.append(found.digest())
            large = [value for value in sample if value.size >= PICTURE]
            constant += bool(large) and all(np.all(value == value.flat[0]) for value in large)
        progress(stop / len(data))
    return Look(tuple(digests), constant)


def _each(feeds: Feeds, n: int) -> Iterator[list[np.ndarray]]:
    """Yield the inputs of each of n samples; an input may take several rows of a sample."""
    parts = [np.split(value, n) for value in feeds.values()]
    yield from map(list, zip(*parts, strict=True))


def doubts(data: Data, seen: Look, other: Look | None = None) -> Iterator[Check]:
    """Say what is doubtful about data.

    Args:
        data: the data.
        seen: what a pass over them saw.
        other: what a pass over the calibration samples saw, where others judge.
    """
    n = len(data)
    if seen.constant > SHARE * n:
        yield doubt(
            "constant samples",
            f"{seen.constant} of {n}",
            f"of {data.name}: each value is the same; check the data and --preprocess",
        )
    repeated = n - len(Counter(seen.digests))
    if repeated > SHARE * n and seen.constant <= SHARE * n:
        yield doubt(
            "repeated samples",
            f"{repeated} of {n}",
            f"of {data.name}: they count several times; give different samples",
        )
    known = set(other.digests) if other else set()
    shared = sum(digest in known for digest in seen.digests)
    if shared:
        yield doubt(
            "samples of --eval in --data",
            f"{shared} of {n}",
            "repair and training have seen them, so that the figures are too good; give others with --eval",
        )
    if data.skipped:
        yield Check(
            "files left out",
            str(len(data.skipped)),
            None,
            True,
            f"of {data.name}, they cannot be read: {', '.join(data.skipped[:TOLD])}",
            kind="quality",
        )
    yield from _unused(data)


def _unused(data: Data) -> Iterator[Check]:
    """Say which arrays no input asks for; one that may hold labels leaves quality undecided."""
    if not data.unused:
        return
    labels = [name for name, is_label in data.unused.items() if is_label and data.labels is None]
    if labels:
        yield doubt(
            "labels",
            "none",
            f"no input of the model is named {labels[0]}; where it holds labels, name the array `labels`, so that accuracy is measured",
        )
    others = [name for name in data.unused if name not in labels]
    if others:
        yield Check(
            "arrays without an input",
            ", ".join(others),
            None,
            True,
            f"of {data.name}: they were left out",
            kind="quality",
        )
