"""The public functions and the command line with the detector and the U-Net of models/: limits, figures and reports are of their metrics."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import onnxprune
import onnxprune.errors
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.options import Training
from onnxprune.options.judging import Judging

ROOT = Path(__file__).resolve().parents[2]
MODELS = {name: ROOT / "models" / f"{name}.onnx" for name in ("detector", "unet")}
LEADS = {"detector": ("map", "mAP"), "unet": ("miou", "mIoU")}
UNTIMED = BenchmarkConfig(latency=False)
QUICK: dict[str, Any] = {"measure": UNTIMED, "repair": "bias", "scope": "global", "round_to": 1}
SCENES, CALIBRATION = 32, 8


@functools.cache
def scenes(name: str) -> dict[str, np.ndarray]:
    """Return some scenes and their labels."""
    file = {"detector": "scenes_boxes.npz", "unet": "scenes_masks.npz"}[name]
    stored = np.load(ROOT / "models" / file)
    return {
        "images": (stored["images"][:SCENES] / np.float32(255)).astype(np.float32),
        "labels": stored["labels"][:SCENES],
    }


@functools.cache
def calibration() -> dict[str, np.ndarray]:
    stored = np.load(ROOT / "models" / "scenes_calibration.npz")["images"][:CALIBRATION]
    return {"images": (stored / np.float32(255)).astype(np.float32)}


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "detector":
        pytest.importorskip("pycocotools")
    return str(request.param)


def right_pixels(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return the percentage of the pixels of garments that are of the right class."""
    return 100 * float((outputs.argmax(axis=1) == labels)[labels > 0].mean())


def test_the_search_is_in_the_unit_of_the_metric(name: str) -> None:
    metric, label = LEADS[name]
    found = onnxprune.prune(MODELS[name], data=calibration(), evaluation=scenes(name), max_drop=12, **QUICK)
    before, after = found.report.before.accuracy[metric], found.report.after.accuracy[metric]
    assert found.report.after.flops < found.report.before.flops
    assert before - after <= 12
    row = next(check for check in found.report.verdict.checks if check.limit == 12)
    assert row.name == f"{label} drop (points)"
    assert row.value == pytest.approx(before - after)
    assert row.status != "FAILED"
    if name == "unet":
        return
    # less may be lost, and less is removed
    less = onnxprune.prune(MODELS[name], data=calibration(), evaluation=scenes(name), max_drop=1, **QUICK)
    assert less.report.after.flops > found.report.after.flops


def test_drops_of_a_sweep_are_of_the_metric(name: str, tmp_path: Path) -> None:
    metric, _ = LEADS[name]
    given = {"data": calibration(), "evaluation": scenes(name), **QUICK}
    found = onnxprune.sweep(MODELS[name], tmp_path / "s", shares=(0.1, 0.5), **given)
    drops = []
    for member in found.report.members:
        report = json.loads((tmp_path / "s" / f"{member.name}.json").read_text())
        assert member.drop == pytest.approx(report["before"][metric] - report["after"][metric])
        drops.append(member.drop)
    assert drops[0] < drops[1]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a U-Net of which half is gone."""
    path = tmp_path_factory.mktemp("pruned") / "small.onnx"
    onnxprune.prune(MODELS["unet"], output=path, data=calibration(), reduce={"flops": 0.5}, **QUICK)
    return path


@pytest.mark.torch
def test_training_of_a_segmenter_with_its_labels(pruned: Path) -> None:
    pytest.importorskip("torch")
    quick = Training(amount=12, unit="steps", batch=8, augment=())
    given = {"data": scenes("unet"), "evaluation": scenes("unet"), "training": quick, "measure": UNTIMED}
    found = onnxprune.finetune(pruned, MODELS["unet"], judging=Judging(task="segment"), **given)
    plain = onnxprune.check(pruned, MODELS["unet"], data=scenes("unet"), measure=UNTIMED)
    row = next(check for check in plain.verdict.checks if check.name == "mIoU drop (points)")
    before, after = found.report.before.accuracy["miou"], found.report.after.accuracy["miou"]
    assert after > before - row.value


def test_every_function_takes_a_metric_of_the_users_own(pruned: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"data": {key: v[:16] for key, v in scenes("unet").items()}, "metric": right_pixels}
    result = onnxprune.prune(MODELS["unet"], reduce={"flops": 0.1}, **given, **QUICK)
    expected = result.report.before.accuracy["right_pixels"]
    assert expected > 50
    checked = onnxprune.check(pruned, MODELS["unet"], measure=UNTIMED, **given)
    row = next(check for check in checked.verdict.checks if check.name.startswith("right pixels drop"))
    assert row.status == "FAILED"
    family = onnxprune.sweep(MODELS["unet"], tmp_path / "s", shares=(0.1,), **given, **QUICK)
    (member,) = family.report.members
    report = json.loads((tmp_path / "s" / f"{member.name}.json").read_text())
    assert report["before"]["right_pixels"] == pytest.approx(expected)
    assert member.drop == pytest.approx(report["before"]["right_pixels"] - report["after"]["right_pixels"])
    few = {key: value[:8] for key, value in scenes("unet").items()}
    curves = onnxprune.sensitivity(MODELS["unet"], data=few, metric=right_pixels, augment=()).curves
    assert len(curves) > 3


def test_samples_of_a_function(run: Any, tmp_path: Path, pruned: Path) -> None:
    np.savez(tmp_path / "scenes.npz", **scenes("unet"))
    code = "import numpy as np\nfrom pathlib import Path\n\ndef load():\n    return dict(np.load(Path(__file__).parent / 'scenes.npz'))\n"
    (tmp_path / "samples.py").write_text(code)
    told = {}
    for data in ("scenes.npz", "samples.py:load"):
        result = run("check", pruned, "--baseline", MODELS["unet"], "--data", tmp_path / data, "--no-latency", "--json")
        assert result.exit_code == 3, result.output
        checks = json.loads(result.stdout)["checks"]
        told[data] = next(check for check in checks if check["name"] == "mIoU drop (points)")["value"]
    assert told["scenes.npz"] == pytest.approx(told["samples.py:load"])


def test_reports_hold_the_metrics_of_the_task(run: Any, name: str, tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    metric, label = LEADS[name]
    np.savez(tmp_path / "scenes.npz", **scenes(name))
    np.savez(tmp_path / "calibration.npz", **calibration())
    plain = ("--data", tmp_path / "calibration.npz", "--eval", tmp_path / "scenes.npz", "--no-latency", "-q")
    small = tmp_path / "small.onnx"
    options = ("--reduce", "flops=20%", "--repair", "bias", "--scope", "global", "--force", "--json")
    for report in ("r.html", "r.md"):
        result = run("prune", MODELS[name], "-o", small, *plain, *options, "--report", tmp_path / report)
        assert result.exit_code in (0, 3), result.output
    content = json.loads(result.stdout)
    assert content["before"][metric] > content["after"][metric]
    for report in ("r.html", "r.md"):
        text = (tmp_path / report).read_text(encoding="utf-8")
        assert label in text
        assert f"{content['before'][metric]:.2f}" in text
    files = ("--junit", tmp_path / "c.xml", "--markdown", tmp_path / "c.md", "--report", tmp_path / "c.html")
    data = ("--data", tmp_path / "scenes.npz", "--min", f"{metric}=1%", "--no-latency", "-q")
    result = run("check", small, "--baseline", MODELS[name], *data, *files)
    assert result.exit_code == 0, result.output
    cases = {case.get("name") for case in ElementTree.parse(tmp_path / "c.xml").iter("testcase")}
    assert f"{label} (%)" in cases
    assert f"{label} (%)" in (tmp_path / "c.md").read_text(encoding="utf-8")
    assert label in (tmp_path / "c.html").read_text(encoding="utf-8")


def test_doubts_about_labels_are_told_before_the_work_begins(name: str) -> None:
    wrong = scenes(name)["labels"].copy()
    if name == "detector":
        wrong[..., 2:4] -= wrong[..., :2]
    else:
        wrong = np.roll(wrong, 16, axis=2)
    says = {"detector": "boxes in another form", "unet": "original too sure"}[name]
    with pytest.warns(onnxprune.errors.DataWarning, match=says):
        found = onnxprune.prune(
            MODELS[name],
            data=calibration(),
            evaluation={**scenes(name), "labels": wrong},
            reduce={"flops": 0.05},
            **QUICK,
        )
    assert found.report.verdict.quality != "PASSED"
    assert [check.name for check in found.report.verdict.checks].count(says) == 1
