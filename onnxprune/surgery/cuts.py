"""Run two models part by part: parts of the second one take their inputs from the first one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxprune.errors import ModelError
from onnxprune.graph import io
from onnxprune.graph.io import Parsed
from onnxprune.graph.model import Model
from onnxprune.runtime.session import UNOPTIMIZED, Feeds, SessionConfig, open_session, run_batch
from onnxprune.runtime.weight_files import LARGE, release

Source = str | Model | Parsed | onnx.ModelProto
"""A path, a model, a file that was read, or a proto."""
Values = list[Feeds]
"""The values of tensors by name, batch by batch."""
COMPUTED = "__computed"
"""Suffix of the name under which a cut model gives a tensor that its other nodes take from outside."""


@dataclass(frozen=True)
class Subject:
    """A model of a proof, and its name in errors."""

    source: Source
    where: str

    def values(self, feeds: Sequence[Feeds], points: Sequence[str], cuts: Values | None = None) -> Values:
        """Return the outputs for all batches and, where the model has them, the tensors `points`.

        `cuts` holds, batch by batch, values of some of these tensors. The nodes that take such a tensor get that value; the one
        that the model computes is returned.

        Raises:
            ModelError: the model cannot be loaded or run.
        """
        given = [{} for _ in feeds] if cuts is None else cuts
        opened = self.opened(points, given[0])
        found = [opened(inputs, fed) for inputs, fed in zip(feeds, given, strict=True)]
        del opened
        release(self.size)
        return found

    @property
    def size(self) -> float:
        """Bytes of the file, or of the file that the model comes from; 0 for a proto."""
        if isinstance(self.source, str):
            return os.path.getsize(self.source)
        return self.source.size if isinstance(self.source, Model | Parsed) else 0

    def opened(
        self, points: Sequence[str], cuts: Feeds, config: SessionConfig = UNOPTIMIZED
    ) -> Callable[[Feeds, Feeds], Feeds]:
        """Return a function of a batch and of values at `cuts`; see `values`. `cuts` holds such values, for their types."""
        proto, weights, folder = self._parts(points)
        produced = {name for node in proto.graph.node for name in node.output}
        outputs = [value.name for value in proto.graph.output]
        names = [*outputs, *(name for name in points if name in produced and name not in outputs)]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names[len(outputs) :])
        cut = {name: value for name, value in cuts.items() if name in produced}
        cut_at(proto.graph, cut)
        session = open_session(proto, config, where=self.where, weights=weights, folder=folder)
        wanted = [name + COMPUTED * (name in cut) for name in names]

        def run(inputs: Feeds, fed: Feeds) -> Feeds:
            both = inputs | {name: fed[name] for name in cut}
            return dict(zip(names, run_batch(session, both, where=self.where, names=wanted), strict=True))

        return run

    def _parts(self, points: Sequence[str]) -> tuple[onnx.ModelProto, Mapping[str, Any], str]:
        """Return a proto that may be changed, the weights that it lacks, and the folder of its external data."""
        if isinstance(self.source, Model | Parsed):
            return *self.source.stub(), ""
        if isinstance(self.source, str):
            if os.path.islink(self.source) or self.size >= LARGE:
                # data of a hub's cache lie beside the link or beside its target; a large proto takes memory several times
                return *io.read(self.source).stub(), ""
            folder = os.path.dirname(os.path.realpath(self.source))
            return onnx.load(self.source, load_external_data=False), {}, folder
        proto = onnx.ModelProto()
        proto.CopyFrom(self.source)
        return proto, {}, ""


def cut_at(graph: onnx.GraphProto, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Make tensors inputs of a graph, which gives what it computes for each under another name; in place."""
    for entry in (*graph.node, *graph.output):
        if isinstance(entry, onnx.ValueInfoProto):
            entry.name += COMPUTED * (entry.name in values)
        else:
            entry.output[:] = [name + COMPUTED * (name in values) for name in entry.output]
    for name, value in values.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * value.ndim))


class Pair:
    """An original, and a changed model that selects what the original selects: both run batch by batch.

    Args:
        original, changed: the models.
        names: tensors that are wanted of both.
        points: tensors that the changed model takes from the original, as far as both have them in one shape.
        config: how the models are executed.
    """

    def __init__(
        self,
        original: Subject,
        changed: Subject,
        names: Sequence[str],
        points: Sequence[str],
        config: SessionConfig = UNOPTIMIZED,
    ) -> None:
        self.names, self._points, self._changed, self._config = tuple(names), tuple(points), changed, config
        self._watched = tuple(dict.fromkeys((*points, *names)))
        self._original = original.opened(self._watched, {}, config)
        self._follow: Callable[[Feeds, Feeds], Feeds] | None = None

    def __call__(self, feeds: Feeds) -> list[Any]:
        """Return the wanted tensors of the original, then those of the changed model; an empty array for what it lacks.

        Raises:
            ModelError: a model cannot be loaded or run.
        """
        first = self._original(feeds, {})
        if self._follow is None:
            found = matched([first], self._changed, [feeds], self._points)[0]
            cut = {name: first[name] for name in self._points if name in found and name in first}
            self._follow = self._changed.opened(self._watched, cut, self._config)
        second = self._follow(feeds, first)
        return [*(first[name] for name in self.names), *(second.get(name, np.empty((0,))) for name in self.names)]


def matched(reference: Values, subject: Subject, feeds: Sequence[Feeds], points: Sequence[str]) -> Values:
    """Run a model with the values that a reference has at `points`, as far as both have them in one shape.

    Returns:
        The outputs, and the tensors that were taken from the reference, as the model itself computes them.

    Raises:
        ModelError: the model cannot be loaded or run.
    """
    known = _alike(reference, reference, points)
    with contextlib.suppress(ModelError):  # as a rule every point has one shape in both models
        found = subject.values(feeds, known, _only(reference, known))
        if _alike(reference, found, known) == known:
            return found
    cut: list[str] = []
    while True:  # a point with deleted channels has another shape; one behind an open boundary may have one by chance
        found = subject.values(feeds, known, _only(reference, cut))
        alike = _alike(reference, found, known)
        if set(alike) <= set(cut):
            left = set(known) - set(cut)
            return [{name: value for name, value in each.items() if name not in left} for each in found]
        cut = [name for name in known if name in cut or name in alike]


def _only(values: Values, names: Sequence[str]) -> Values:
    return [{name: each[name] for name in names} for each in values]


def _alike(one: Values, two: Values, names: Sequence[str]) -> list[str]:
    """Return the names of the tensors that have one shape in both models, for every batch."""

    def shape(value: Any) -> tuple[int, ...] | None:
        return value.shape if isinstance(value, np.ndarray) else None

    def same(name: str) -> bool:
        shapes = ((shape(a.get(name)), shape(b.get(name))) for a, b in zip(one, two, strict=True))
        return all(a is not None and a == b for a, b in shapes)

    return [name for name in names if same(name)]
