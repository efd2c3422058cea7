"""Loss curves of a model that hold for the same model after edits of some of its layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.readers import readers_of
from onnxprune.types import Curve


@dataclass(frozen=True)
class KnownCurves:
    """Curves that were measured, and the model that they were measured on."""

    analysis: Analysis
    curves: tuple[Curve, ...]

    def carried(self, analysis: Analysis) -> dict[str, Curve]:
        """Return the curves of groups that are the same in another model, by name, in channels of that model.

        A group is the same where the same layers write it, and the same layers with weights of the same shapes read it. What its readers get
        differs by what edits elsewhere have changed and repair has left, which is little beside the loss of its own channels.
        """
        before, after = _forms(self.analysis), _forms(analysis)
        old, new = ({group.name: group.channels for group in each.trace.groups} for each in (self.analysis, analysis))
        found = {}
        for curve in self.curves:
            if curve.group in after and before[curve.group] == after[curve.group]:
                place = np.full(self.analysis.trace.n_channels, -1)
                place[old[curve.group]] = new[curve.group]
                found[curve.group] = replace(curve, order=place[curve.order])
        return found


def _forms(analysis: Analysis) -> dict[str, tuple[Any, ...]]:
    """Return what makes the groups of two models the same, by name."""
    model, trace = analysis.model, analysis.trace
    readers = readers_of(model, trace)
    return {
        group.name: (
            group.layers,
            group.width,
            trace.pinned[group.channels].tolist(),
            sorted(
                (trace.labels[n], layer.values.shape, layer.form)
                for reader in readers.get(group.name, ())
                for n, layer in reader.members
            ),
        )
        for group in trace.groups
    }
