"""Loss curves of groups that edits leave as they were are those of the model before, in channels of the model after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edited_models import residual

import onnxprune
from onnxprune.allocation import problem
from onnxprune.allocation.carried_curves import KnownCurves
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.surgery.edits.apply import apply_edits
from onnxprune.surgery.edits.depth import DropBranch
from onnxprune.surgery.edits.kernel import Kernel
from onnxprune.surgery.edits.low_rank import LowRank
from onnxprune.types import Curve


def curves_of(analysis: Analysis) -> tuple[Curve, ...]:
    """Return a made-up curve of each group with channels that can go."""
    found = []
    for number, group in enumerate(analysis.trace.groups):
        free = group.channels[~analysis.trace.pinned[group.channels]][::-1]
        if free.size:
            counts = np.array([0, free.size])
            found.append(Curve(group.name, free, counts, np.array([0.0, number + 1.0]), np.arange(free.size + 1.0)))
    return tuple(found)


def test_a_model_without_edits_has_the_same_curves() -> None:
    analysis = analyse(residual())
    curves = curves_of(analysis)
    found = KnownCurves(analysis, curves).carried(analyse(residual()))
    assert list(found) == [curve.group for curve in curves]
    for curve in curves:
        np.testing.assert_array_equal(found[curve.group].order, curve.order)


@pytest.mark.parametrize(
    ("edit", "other"),
    [
        (LowRank("expand", 2, "channel"), "project"),  # it reads what project writes
        (Kernel("outer", ((1, 1, 1), (0, 1, 3))), "inner"),
        (DropBranch("sum", 0), "inner"),
    ],
)
def test_a_group_with_an_edited_reader_is_measured_again(edit, other) -> None:
    model = residual()
    before = analyse(model)
    after = analyse(apply_edits(model, [edit]).model)
    found = KnownCurves(before, curves_of(before)).carried(after)
    assert found
    assert other not in found
    new = {group.name: group for group in after.trace.groups}
    for curve in curves_of(before):
        if curve.group in found:
            old = next(group for group in before.trace.groups if group.name == curve.group)
            carried = found[curve.group]
            places = [old.channels.tolist().index(channel) for channel in curve.order]
            assert carried.order.tolist() == new[curve.group].channels[places].tolist()
            np.testing.assert_array_equal(carried.losses, curve.losses)


def test_only_what_edits_have_changed_is_measured(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The selections of a run with edits ask for fewer groups than there are, and for all of them at first."""
    asked = []
    plain = problem.calibrated_scores

    def counted(scored, options, keep, on_stage, workspace, names=None):
        asked.append((None if names is None else len(names), len(scored.trace.groups)))
        return plain(scored, options, keep, on_stage, workspace, names)

    monkeypatch.setattr(problem, "calibrated_scores", counted)
    onnxprune.prune(
        models / "small.onnx",
        data=models / "calibration.npz",
        preprocess=str(models / "32x32.toml"),
        samples=64,
        augment=(),
        round_to=1,
        reduce={"flops": 0.75},
        granularity="auto",
        latency=False,
    )
    assert asked[0][0] is None
    later = [number for number, _ in asked[1:]]
    assert later
    assert all(number is not None and number < groups for number, groups in asked[1:])
