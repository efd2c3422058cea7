"""What only a report looks at: latency of layers, classes, samples whose prediction changed, and the graph of groups."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import onnxprune
from onnxprune.data.dataset import Data, load_data
from onnxprune.data.input_spec import InputSpec
from onnxprune.data.preprocess import Preprocess
from onnxprune.evaluation import benchmark
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.evaluation.compare import Comparison
from onnxprune.graph import io as graph_io
from onnxprune.graph.analysis import analyse
from onnxprune.metrics.tasks import Task
from onnxprune.report import details, grouping, thumbnails
from onnxprune.runtime.session import SessionConfig

LOGITS = np.array([[4.0, 0, 0], [4, 0, 0], [0, 4, 0], [0, 0, 1]])
SPEC = InputSpec("x", np.dtype(np.float32), (None, 3, 8, 8))


def compared(second: np.ndarray, labels: list[int] | None) -> Comparison:
    truth = None if labels is None else np.array(labels)
    outputs = [LOGITS], [second]
    task = None if truth is None else Task("classify")
    return Comparison({}, None, "", 4, True, outputs, outputs, truth, {}, 1, task=task)


def made_data(shape: tuple[int, ...] = (3, 8, 8), **how: object) -> Data:
    rng = np.random.default_rng(0)
    preprocess = Preprocess(**how) if how else None
    return Data({"x": rng.normal(size=(4, *shape)).astype(np.float32)}, None, preprocess, (SPEC,), "made", ("a", "b"))


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


# ------------------------------------------------------------------------------------------------------- classes


def test_classes_are_those_of_the_labels():
    found = details.details(("", ""), compared(LOGITS[[0, 2, 2, 3]], [0, 0, 1, 1]), made_data(), 1, ())
    assert found.labelled
    assert [(one.name, one.samples, one.before, one.after, one.drop) for one in found.classes] == [
        ("a", 2, 100, 50, 50),
        ("b", 2, 50, 50, 0),
    ]


def test_classes_are_the_predicted_ones_where_there_are_no_labels():
    found = details.details(("", ""), compared(LOGITS[[0, 2, 2, 3]], None), made_data(), 1, ())
    assert not found.labelled
    assert [(one.name, one.samples, one.before, one.after) for one in found.classes] == [
        ("a", 2, 100, 50),
        ("b", 1, 100, 100),
        ("2", 1, 100, 100),
    ]


def test_samples_that_changed_most_come_first():
    second = LOGITS[[2, 2, 2, 0]]
    found = details.details(("", ""), compared(second, [0, 0, 1, 1]), made_data(), 1, ())
    assert found.changes == 3
    assert [one.sample for one in found.changed] == [0, 1, 3]
    first = found.changed[0]
    assert (first.label, first.before, first.after) == ("a", "a", "b")
    p = 100 * np.exp(4) / (np.exp(4) + 2)
    assert first.confidence_before == pytest.approx(p)
    assert first.moved == pytest.approx(2 * (p - 100 / (np.exp(4) + 2)))
    assert all(one.picture.startswith("data:image/png;base64,") for one in found.changed)
    assert "picture" not in json.dumps(found.to_dict())


def test_no_more_samples_than_a_page_can_show():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 100, 3))
    comparison = replace(compared(LOGITS, None), judged=([first], [second]))
    data = replace(made_data(), arrays={"x": np.zeros((100, 5), np.float32)})
    found = details.details(("", ""), comparison, data, 1, ())
    assert len(found.changed) == details.MOST_CHANGED < found.changes
    assert [one.moved for one in found.changed] == sorted((one.moved for one in found.changed), reverse=True)
    assert not any(one.picture for one in found.changed)


@pytest.mark.parametrize("broken", ["data", "finite", "scores"])
def test_nothing_is_said_of_classes_where_nothing_is_known(broken):
    comparison = compared(LOGITS, None)
    if broken == "finite":
        comparison = replace(comparison, finite=False)
    if broken == "scores":
        comparison = replace(comparison, judged=([LOGITS[:, :1]], [LOGITS[:, :1]]))
    found = details.details(("", ""), comparison, None if broken == "data" else made_data(), 1, ())
    assert found == details.Details()


# ------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    ("shape", "size", "mode"),
    [
        ((3, 8, 6), (6, 8), "RGB"),
        ((8, 6, 3), (6, 8), "RGB"),
        ((1, 28, 28), (28, 28), "L"),
        ((28, 20, 1), (20, 28), "L"),
    ],
)
def test_pictures_of_either_layout(shape, size, mode):
    image = opened(thumbnails.thumbnail(made_data(shape), 0))
    assert (image.size, image.mode) == (size, mode)
    pixels = np.asarray(image)
    assert (pixels.min(), pixels.max()) == (0, 255)


@pytest.mark.parametrize("shape", [(5,), (8, 8), (4, 8, 8), (3, 1, 900), (0, 8, 3)])
def test_what_is_no_image_has_no_picture(shape):
    assert thumbnails.thumbnail(made_data(shape), 0) == ""


def test_large_pictures_are_made_small():
    uri = thumbnails.thumbnail(made_data((3, 400, 200)), 0)
    assert opened(uri).size == (48, 96)
    assert len(uri) < 8000


def test_bytes_and_files_are_shown_as_they_are(tmp_path):
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    stored = Data({"x": np.moveaxis(pixels, 2, 0)[None]}, None, Preprocess(scale=0.01), (SPEC,), "bytes")
    assert np.array_equal(np.asarray(opened(thumbnails.thumbnail(stored, 0))), pixels)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    folder = load_data(tmp_path, (SPEC,), Preprocess(color="BGR", scale=0.01))
    assert np.array_equal(np.asarray(opened(thumbnails.thumbnail(folder, 0))), pixels)


def test_constant_numbers_have_a_picture():
    data = replace(made_data(), arrays={"x": np.full((1, 3, 8, 8), 7.0, np.float32)})
    assert np.asarray(opened(thumbnails.thumbnail(data, 0))).max() == 0


# --------------------------------------------------------------------------------------------------------- groups


def test_groups_know_what_lies_around_them(models):
    analysis = analyse(graph_io.load(models / "resnet.onnx"))
    keep = np.ones(analysis.trace.n_channels, dtype=bool)
    keep[analysis.trace.groups[1].channels[:3]] = False
    found = grouping.groups(analysis.trace, grouping.survivors(analysis.trace, keep))
    assert {one.name for one in found} == {group.name for group in analysis.trace.groups}
    assert sum(one.before for one in found) == analysis.trace.n_channels
    assert sum(one.before - (one.after or 0) for one in found) == 3
    stem = found[0]
    assert stem.writers == ("/stem/conv/Conv", "/stage1a/second/conv/Conv", "/stage1b/second/conv/Conv")
    assert set(stem.readers) >= {"/stage1a/first/conv/Conv", "/stage2a/shortcut/conv/Conv"}
    inner = next(one for one in found if one.name == "/stage1a/first/conv/Conv")
    assert found[inner.feeds[0]] == stem  # the second layer of the block writes what the stem does
    last = found[-1]
    assert last.pinned == last.before
    assert any("output" in reason for reason in last.reasons)


def test_depthwise_layers_follow(models):
    analysis = analyse(graph_io.load(models / "mobile.onnx"))
    found = grouping.groups(analysis.trace, {})
    assert any(one.followers for one in found)
    assert all(one.after is None for one in found)
    for one in found:
        assert not set(one.followers) & set(one.writers)


# -------------------------------------------------------------------------------------------------------- latency


def test_layers_are_timed_in_memory_as_from_the_file(models):
    model = graph_io.load(models / "small.onnx")
    shape = tuple(d.dim_value or 1 for d in model.header.graph.input[0].type.tensor_type.shape.dim)
    feeds = {model.header.graph.input[0].name: np.zeros(shape, np.float32)}
    times = [
        benchmark.layer_times(one, feeds, SessionConfig(threads=1), 1.0) for one in (str(models / "small.onnx"), model)
    ]
    convs = [{name for name, (op, _) in one.items() if op == "Conv"} for one in times]
    assert convs[0] == convs[1] != set()
    assert all(microseconds > 0 for one in times for _, microseconds in one.values())


def test_run_looks_closer_only_for_a_report(tiny_path, samples, out):
    values = {
        "data": str(samples),
        "reduce": {"flops": 0.4},
        "round_to": 1,
        "measure": BenchmarkConfig(runs=3, warmup=0),
    }
    plain = onnxprune.prune(tiny_path, **values).report
    assert plain.details is None
    assert plain.to_dict()["details"] is None
    found = onnxprune.prune(tiny_path, report_output=out / "report.json", **values).report.details
    assert {row.name for row in found.layer_times} >= {"conv1", "conv2", "head"}
    assert [one.name for one in found.groups] == ["conv1", "conv2", "head"]
    assert [one.feeds for one in found.groups] == [(1,), (2,), ()]
    assert sum(one.samples for one in found.classes) == 64
    content = json.loads((out / "report.json").read_text())["details"]
    assert [one["name"] for one in content["groups"]] == ["conv1", "conv2", "head"]
    assert len(content["changed"]) == min(24, content["changes"])
