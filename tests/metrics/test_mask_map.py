"""Masks of instances: their mean average precision against pycocotools, and masks that decoders read, against their sources."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import Builder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import onnxprune
from onnxprune.data.instances import Instances, encoded
from onnxprune.data.labels.values import npz_boxes, object_array
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.evaluation.policy import GateLimits
from onnxprune.metrics import detection, masks
from onnxprune.metrics.boxes import cells
from onnxprune.metrics.decoders import find_decoder
from onnxprune.metrics.statistics import on_all
from onnxprune.metrics.tasks import Task, find_task
from onnxprune.options.judging import Judging

pytest.importorskip("pycocotools")
mask_of = pytest.importorskip("pycocotools.mask")

SIZE = (24, 32)


def blob(random: np.random.Generator) -> np.ndarray:
    """Return a random mask, at times an empty one: a rectangle with holes."""
    result = np.zeros(SIZE, dtype=bool)
    top, left = random.integers(0, 16), random.integers(0, 24)
    result[top : top + random.integers(0, 12), left : left + random.integers(0, 12)] = True
    return result & (random.random(SIZE) < 0.9)


def box(mask: np.ndarray) -> list[float]:
    x, y, width, height = mask_of.toBbox(encoded(mask, SIZE))
    return [x, y, x + width, y + height]


def drawn(seed: int, images: int, classes: int, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions near random objects and others, scores of few digits (ties), some objects crowds."""
    random = np.random.default_rng(seed)
    predictions, labels = [], []
    for _ in range(images):
        there = [blob(random) for _ in range(random.integers(0, 5))]
        facts = np.column_stack([random.integers(0, classes, len(there)), random.random(len(there)) < 0.3])
        rows = np.concatenate([np.reshape([box(one) for one in there], (-1, 4)), facts], axis=1)
        labels.append(Instances(rows, [encoded(one, SIZE) for one in there]))
        near = random.integers(0, len(there), random.integers(0, 8)) if there else np.zeros(0, dtype=int)
        found = [there[n] ^ (random.random(SIZE) < random.choice([0, 0.02, 0.2])) & there[n] for n in near]
        found += [blob(random) for _ in range(random.integers(0, 4))]
        kinds = [*facts[near, 0], *random.integers(0, classes + 1, len(found) - len(near))]
        scores = random.random(len(found)).round(digits)
        rows = np.concatenate(
            [np.reshape([box(one) for one in found], (-1, 4)), np.column_stack([scores, np.reshape(kinds, -1)])], axis=1
        )
        order = random.permutation(len(found))
        predictions.append(Instances(rows[order], [encoded(found[n], SIZE) for n in order]))
    return object_array(predictions), object_array(labels)


def reference(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return stats[0] of COCOeval in percent, NaN where it has none, through the public classes of pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truths, results = [], []
    for image, one in enumerate(labels):
        for row, mask in zip(one.rows, one.masks, strict=True):
            truths.append({"image_id": image, "category_id": int(row[4]), "segmentation": mask})
            truths[-1] |= {"iscrowd": int(row[5]), "area": float(mask_of.area(mask)), "id": len(truths)}
    for image, one in enumerate(predictions):
        for row, mask in zip(one.rows, one.masks, strict=True):
            results.append({"image_id": image, "category_id": int(row[5]), "segmentation": mask, "score": row[4]})
            results[-1] |= {"iscrowd": 0, "area": float(mask_of.area(mask)), "id": len(results)}
    sets = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (truths, results):
            coco = COCO()
            coco.dataset = {
                "images": [{"id": n, "height": SIZE[0], "width": SIZE[1]} for n in range(len(labels))],
                "categories": [{"id": number} for number in range(10)],
                "annotations": annotations,
            }
            coco.createIndex()
            sets.append(coco)
        evaluation = COCOeval(*sets, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(100 * evaluation.stats[0]) if evaluation.stats[0] >= 0 else np.nan


def equal(found: float, expected: float) -> bool:
    return bool(np.isclose(found / 100, expected / 100, rtol=0, atol=1e-12, equal_nan=True))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3))
def test_map_of_masks_is_that_of_pycocotools(seed: int, images: int, classes: int, digits: int) -> None:
    predictions, labels = drawn(seed, images, classes, digits)
    assert equal(on_all(detection.mask_average_precision(predictions, labels), images), reference(predictions, labels))
    # boxes are those of the same rows without masks
    plain = (object_array([one.rows for one in samples]) for samples in (predictions, labels))
    first, second = (on_all(detection.mean_average_precision(*pair), images) for pair in ((predictions, labels), plain))
    assert equal(first, second)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 2), st.integers(1, 3))
def test_an_image_drawn_twice_is_two_images(seed: int, images: int, classes: int, digits: int) -> None:
    predictions, labels = drawn(seed, images, classes, digits)
    counts = np.random.default_rng(seed).integers(0, 4, (3, images))
    found = detection.mask_average_precision(predictions, labels)(counts)
    for row, amount in zip(counts, found, strict=True):
        numbers = np.repeat(np.arange(images), row)
        assert equal(amount, reference(predictions[numbers], labels[numbers]))


def test_masks_follow_their_boxes_where_some_are_dropped() -> None:
    one, other = (encoded(np.ones((4, 4)), SIZE, at, at) for at in (0, 8))
    label = object_array([Instances(np.array([[0.0, 0, 4, 4, 0, 0]]), [one])])
    rows = np.array([[np.nan, 0, 4, 4, 0.9, 0], [0, 0, 4, 4, 0.8, 7], [0, 0, 4, 4, 0.5, 0]])
    found = detection.mask_average_precision(object_array([Instances(rows, [other, other, one])]), label)
    assert on_all(found, 1) == pytest.approx(100)
    found = detection.mask_average_precision(object_array([Instances(rows, [one, one, other])]), label)
    assert on_all(found, 1) == 0


def test_masks_that_cannot_be_compared() -> None:
    row = np.array([[0.0, 0, 4, 4, 0.5, 0]])
    one, other = (object_array([Instances(row, [encoded(np.ones(size), size)])]) for size in (SIZE, (8, 9)))
    with pytest.raises(DataError, match="differ in size") as caught:
        detection.mask_average_precision(one, other)
    assert caught.value.why == "they are 9 x 8 and 32 x 24"
    with pytest.raises(DataError, match="has no masks"):
        detection.mask_average_precision(one, object_array([row]))


def test_instances_are_read_as_their_boxes() -> None:
    one = drawn(0, 1, 2, 2)[1][0]
    assert (np.asarray(one, dtype=np.float32) == one.rows.astype(np.float32)).all()
    assert npz_boxes(object_array([one]))[0] is one
    again = pickle.loads(pickle.dumps(one))
    assert (again.rows == one.rows).all()
    assert list(again.masks) == list(one.masks)


# --------------------------------------------------------------------------------------------------------------- decoders


def pixels(mask: dict) -> np.ndarray:
    return np.asarray(mask_of.decode(mask)).astype(bool)


def enlarged(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return values (h, w) enlarged bilinearly, edges of pixels on edges, pixel by pixel."""
    places = [
        np.clip((np.arange(outer) + 0.5) * inner / outer - 0.5, 0, inner - 1)
        for outer, inner in zip(size, values.shape, strict=True)
    ]
    result = np.zeros(size)
    for row, y in enumerate(places[0]):
        for column, x in enumerate(places[1]):
            a, b = int(y), int(x)
            for i, j in ((a, b), (a + 1, b), (a, b + 1), (a + 1, b + 1)):
                share = max(0.0, 1 - abs(y - i)) * max(0.0, 1 - abs(x - j))
                if share:
                    result[row, column] += share * values[i, j]
    return result


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32))
def test_prototypes_are_read_as_ultralytics_does(seed: int) -> None:
    random = np.random.default_rng(seed)
    k, inner, m = 5, (6, 8), 4
    coefficients, prototypes = random.normal(size=(m, k)), random.normal(size=(k, *inner))
    low = random.uniform(-6, 28, (m, 2))
    boxes = np.concatenate([low, low + random.uniform(-1, 20, (m, 2))], axis=1)
    found = masks.of_prototypes(coefficients, prototypes, boxes, SIZE)
    rows, columns = np.arange(inner[0])[:, None], np.arange(inner[1])
    for one, weights, (x1, y1, x2, y2) in zip(found, coefficients, boxes / 4, strict=True):
        inside = (columns >= x1) & (columns < x2) & (rows >= y1) & (rows < y2)
        values = np.tensordot(weights, prototypes, axes=1) * inside
        assert (pixels(one) == (enlarged(values, SIZE) > 1e-12)).all()


def test_prototypes_as_torch_enlarges_them() -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    prototypes, size = random.normal(size=(3, 10, 14)), (37, 59)  # sides that are no multiples
    (found,) = masks.of_prototypes(np.ones((1, 3)), prototypes, np.array([[0.0, 0, 59, 37]]), size)
    values = torch.from_numpy(prototypes.sum(axis=0))[None, None]
    expected = torch.nn.functional.interpolate(values, size, mode="bilinear", align_corners=False)[0, 0] > 0
    assert (pixels(found) == expected.numpy()).all()


def test_boxes_that_are_not_finite_have_empty_masks() -> None:
    boxes = np.array([[np.nan, 0, 9, 9], [-np.inf, 0, 9, 9], [3, 3, 3, 9], [9, 9, 3, 3], [-9, -9, -1, -1]])
    for one in masks.of_prototypes(np.full((5, 2), np.nan), np.ones((2, 6, 8)), boxes, SIZE):
        assert pixels(one).sum() == 0
    for one in masks.pasted(np.ones((5, 4, 4)), boxes, SIZE):
        assert pixels(one).sum() == 0


def test_masks_are_pasted_into_their_boxes() -> None:
    whole = np.ones((28, 28))
    half = np.pad(np.ones((28, 14)), ((0, 0), (0, 14)))
    found = masks.pasted(np.stack([whole, 9 * half - 4]), np.tile([[4.0, 2, 20, 18]], (2, 1)), SIZE)
    expected = np.zeros(SIZE, dtype=bool)
    expected[2:18, 4:12] = True
    assert (pixels(found[1]) == expected).all()  # the 9 says that these are logits
    found = masks.pasted(np.stack([whole, half]), np.tile([[4.0, 2, 20, 18]], (2, 1)), SIZE)
    assert (pixels(found[1]) == expected).all()
    expected[2:18, 4:20] = True
    assert (pixels(found[0]) == expected).all()
    (same,) = masks.pasted(expected[None].astype(np.float32), np.array([[0.0, 0, 1, 1]]), SIZE)
    assert (pixels(same) == expected).all()
    (beyond,) = masks.pasted(whole[None], np.array([[-8.0, -8, 8, 99]]), SIZE)
    expected[:] = False
    expected[:, :8] = True
    assert (pixels(beyond) == expected).all()


INPUT = (64, 64)
OBJECTS = np.array([[8.0, 8, 40, 40, 1, 0], [32, 20, 60, 60, 0, 0]])
"""Boxes of labels."""


def shape_of(row: np.ndarray) -> np.ndarray:
    """Return the corners of an object, which fills its box but for the quarter at the top right."""
    x1, y1, x2, y2 = row[:4]
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return np.array([[x1, y1], [x, y1], [x, y], [x2, y], [x2, y2], [x1, y2]])


def yolov8_seg(*, right: bool = True) -> list[np.ndarray]:
    """Return outputs that find the objects, and their masks unless not `right`: then the masks are the missing quarters."""
    rows = np.zeros((1, 4 + 2 + 32, cells(INPUT, (8, 16, 32))), np.float32)
    prototypes = np.full((1, 32, 16, 16), 1 if right else -1, np.float32)
    for number, row in enumerate(OBJECTS):
        rows[0, :4, number] = [*(row[:2] + row[2:4]) / 2, *row[2:4] - row[:2]]
        rows[0, 4 + int(row[4]), number], rows[0, 6 + number, number] = 0.9 - 0.1 * number, 1
        x, y = ((row[:2] + row[2:4]) / 8).astype(int)
        prototypes[0, number, :y, x:] *= -1
    return [rows, prototypes]


def labelled() -> np.ndarray:
    found = [mask_of.frPyObjects([shape_of(row).reshape(-1).tolist()], *INPUT)[0] for row in OBJECTS]
    return object_array([Instances(OBJECTS, found)])


@pytest.mark.parametrize("swapped", [False, True])
def test_yolov8_seg(swapped: bool) -> None:
    outputs = yolov8_seg()[:: -1 if swapped else 1]
    decoder = find_decoder(outputs, INPUT)
    assert (decoder.name, decoder.classes(outputs)) == ("yolov8_seg", 2)
    (rows,) = decoder.decode(outputs, INPUT)
    assert rows == pytest.approx(np.concatenate([OBJECTS[:, :4], [[0.9, 1], [0.8, 0]]], axis=1))
    assert decoder.instances is not None
    (found,) = decoder.instances(outputs, INPUT)
    assert (found.rows == rows).all()
    overlaps = [
        mask_of.iou([mask], [there], [0])[0, 0] for mask, there in zip(found.masks, labelled()[0].masks, strict=True)
    ]
    assert min(overlaps) > 0.75  # zeros around the crop: half a pixel of a prototype is added there


def test_mask_r_cnn() -> None:
    scores = np.array([0.3, 0.0, 0.9], np.float32)
    boxes = np.concatenate([OBJECTS[:, :4], OBJECTS[:1, :4]]).astype(np.float32)[[0, 2, 1]]
    planes = np.zeros((3, 1, 28, 28), np.float32)
    planes[...] = 0.9
    planes[..., :14, 14:] = 0
    outputs = [boxes, np.array([1, 1, 0]), scores, planes]
    decoder = find_decoder(outputs, INPUT)
    assert decoder.name == "nms"
    assert decoder.instances is not None
    (found,) = decoder.instances(outputs, INPUT)
    assert found.rows[:, 4:].tolist() == [[pytest.approx(0.9), 0], [pytest.approx(0.3), 1]]
    assert on_all(detection.mask_average_precision(object_array([found]), labelled()), 1) == pytest.approx(100)
    batched = [boxes[None], np.array([[1, 1, 0]]), scores[None], planes[None, :, 0]]
    (again,) = find_decoder(batched, INPUT).instances(batched, INPUT)  # type: ignore[misc]
    assert list(again.masks) == list(found.masks)
    (plain,) = decoder.instances(outputs[:3], INPUT)
    assert isinstance(plain, np.ndarray)
    empty = [np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 1, 28, 28))]
    (nothing,) = decoder.instances(empty, INPUT)
    assert (len(nothing), nothing.masks) == (0, ())


def test_masks_are_measured_where_both_hold_them() -> None:
    def metrics(labels: np.ndarray, outputs: list[np.ndarray]) -> list[str]:
        task = find_task(Judging(task="detect"), labels, outputs, None, INPUT)
        assert isinstance(task, Task)
        assert task.lead is not None
        assert task.lead.name == "map"
        return [metric.name for metric in task.metrics]

    with_masks, boxes = labelled(), object_array([OBJECTS])
    outputs = yolov8_seg()
    assert metrics(with_masks, outputs) == ["map", "map50", "mask_map"]
    assert metrics(boxes, outputs) == ["map", "map50"]
    assert metrics(with_masks, [outputs[0][:, :6]]) == ["map", "map50"]


# ---------------------------------------------------------------------------------------------------------- command line


def network(path: Path, outputs: list[np.ndarray]) -> Path:
    """Save a network whose outputs are constants and a little noise, which the picture gives."""
    b = Builder((3, *INPUT))
    noise = b.node("Mul", [b.reshape(b.global_pool("x"), [-1, 3, 1], (3, 1)), b.const(np.float32(-1e-4))])
    noise = b.node("ReduceSum", [noise, b.ints(1)], keepdims=1)
    first = b.node("Add", [noise, b.const(outputs[0])])
    flat = b.node("Add", [noise, b.const(outputs[1].reshape(1, 32, -1))])
    onnx.save(b.build(first, b.reshape(flat, [-1, 32, 16, 16], (32, 16, 16))), path)
    return path


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_a_check_holds_the_map_of_masks(form: str, tmp_path: Path) -> None:
    n, random = 24, np.random.default_rng(0)
    photos, wide = tmp_path / "photos", (128, 96)  # width and height of the pictures
    photos.mkdir()
    for number in range(n):
        Image.fromarray(random.integers(0, 255, (wide[1], wide[0], 3), dtype=np.uint8)).save(photos / f"{number}.png")
    scale = np.array(wide) / INPUT[0]
    if form == "coco":
        objects = [
            {
                "id": 2 * image + number + 1,
                "image_id": image,
                "category_id": int(row[4]),
                "iscrowd": 0,
                "bbox": [*(row[:2] * scale), *((row[2:4] - row[:2]) * scale)],
                "segmentation": [(shape_of(row) * scale).reshape(-1).tolist()],
            }
            for image in range(n)
            for number, row in enumerate(OBJECTS)
        ]
        images = [{"id": image, "file_name": f"{image}.png", "width": wide[0], "height": wide[1]} for image in range(n)]
        content = {
            "images": images,
            "annotations": objects,
            "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
        }
        labels = tmp_path / "labels.json"
        labels.write_text(json.dumps(content))
    else:
        labels = tmp_path / "labels"
        labels.mkdir()
        lines = [" ".join(map(str, [int(row[4]), *(shape_of(row) / INPUT[0]).reshape(-1)])) for row in OBJECTS]
        for image in range(n):
            (labels / f"{image}.txt").write_text("\n".join(lines))
    right, wrong = (
        network(tmp_path / f"{kind}.onnx", yolov8_seg(right=kind == "right")) for kind in ("right", "wrong")
    )
    given = {
        "data": photos,
        "preprocess": Preprocess(stretch=INPUT, scale=1 / 255),
        "judging": Judging(task="detect", labels=str(labels)),
        "measure": BenchmarkConfig(latency=False),
        "limits": GateLimits(min={"map": "99%", "mask_map": "50%"}),
    }
    checks = {check.name: check for check in onnxprune.check(wrong, right, **given).verdict.checks}
    print(*checks.values(), sep="\n")
    assert checks["mAP drop (points)"].value == 0  # boxes lead, and are the same
    assert checks["mAP of masks (%)"].value == 0
    assert checks["mAP of masks (%)"].status == "FAILED"
    alone = {check.name: check for check in onnxprune.check(right, **given).verdict.checks}["mAP of masks (%)"]
    assert (alone.value, alone.status) == (pytest.approx(60), "PASSED")  # IoU is 0.79 and 0.76
