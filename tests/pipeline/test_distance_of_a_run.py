"""The distance of a run reaches calibration, curves, repair and training."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import Builder

from onnxprune.calibration.stage_results import different
from onnxprune.errors import OptionError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.options import Options, Training
from onnxprune.options.judging import Judging
from onnxprune.pipeline import sensitivity
from onnxprune.pipeline.distillation import train
from onnxprune.pipeline.identity import identity
from onnxprune.pipeline.opening import LOAD, calibration
from onnxprune.pipeline.run import Run, Sources, execute
from onnxprune.types import Curve

OPTIONS = Options(importance="obs", scope="sensitivity", augment=())


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """Return a network of maps, and samples."""
    b = Builder((3, 8, 8))
    x = b.node("Relu", [b.conv(b.node("Relu", [b.conv("x", 8, 3)]), 6, 3)])
    onnx.save(b.build(b.conv(x, 4)), tmp_path / "map.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(48, 3, 8, 8)).astype(np.float32))
    return Sources(tmp_path / "map.onnx", tmp_path / "x.npy")


def losses(curves: tuple[Curve, ...]) -> np.ndarray:
    return np.concatenate([curve.losses for curve in curves])


def test_curves_follow_the_distance_on_one_worker_and_on_several(sources: Sources) -> None:
    run = execute(Run(sources, asked=OPTIONS), (LOAD,))
    auto, pixels = (sensitivity._curves(replace(run, distance=kind)) for kind in ("auto", "map"))
    assert not np.allclose(losses(auto), losses(pixels), rtol=0.05)
    names = tuple(curve.group for curve in pixels)
    part = sensitivity._study_part((sources, OPTIONS, BenchmarkConfig(), "map", names))
    np.testing.assert_allclose(losses(part), losses(pixels), rtol=1e-5)


def test_calibration_takes_the_distance_and_refuses_an_unknown_one(sources: Sources) -> None:
    run = execute(Run(sources, asked=OPTIONS), (LOAD,))
    for kind in ("auto", "frames"):
        with contextlib.ExitStack() as scope:
            workspace = calibration(scope)(replace(run, distance=kind)).workspace
            assert workspace is not None
            assert workspace.distance == workspace.plain.distance == kind
    with contextlib.ExitStack() as scope, pytest.raises(OptionError, match="unknown distance"):
        calibration(scope)(replace(run, distance="pixels"))


def test_a_sweep_of_another_task_is_another_sweep(sources: Sources) -> None:
    run, other = (
        execute(Run(replace(sources, judging=Judging(task=task)), asked=OPTIONS), (LOAD,)) for task in (None, "segment")
    )
    assert different(identity(run), identity(other)) == ["metric"]


@pytest.mark.torch
def test_training_takes_the_distance(sources: Sources) -> None:
    pytest.importorskip("torch")
    training = Training(amount=1, unit="steps", batch=8, augment=())
    run = execute(Run(sources, asked=OPTIONS, training=training), (LOAD,))
    run = replace(run, model=run.original.model)
    for kind, names_classes in (("auto", False), ("map", True)):
        tuned = train(replace(run, distance=kind)).tuned
        assert tuned is not None
        assert (tuned.validations[-1].agreement is not None) == names_classes
