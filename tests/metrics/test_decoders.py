"""Decoders of detectors: known boxes are written in each form, and come back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import logit

from onnxprune.errors import DataError
from onnxprune.metrics import boxes
from onnxprune.metrics.decoders import DECODERS, find_decoder

SIZE = (192, 256)
ANCHORS = boxes.cells(SIZE, (8, 16, 32))
KNOWN = [
    np.array([[20.0, 30, 80, 90, 0.9, 2], [120, 40, 200, 100, 0.8, 0], [121, 41, 200, 100, 0.6, 1]]),
    np.array([[10.0, 10, 42, 74, 0.7, 1]]),
]
"""Boxes of two samples, which overlap in different classes alone: x1 y1 x2 y2 score class."""
CLASSES = 3
Form = Callable[[], list[np.ndarray]]


def centres(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([(rows[:, :2] + rows[:, 2:4]) / 2, rows[:, 2:4] - rows[:, :2]], axis=1)


def relative(found: np.ndarray) -> np.ndarray:
    return found / np.array([SIZE[1], SIZE[0], SIZE[1], SIZE[0]])


def dense(count: int, *, doubles: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return corners (2, count, 4) and class probabilities (2, count, 3): known boxes among empty ones, with worse doubles."""
    random = np.random.default_rng(0)
    found = np.zeros((2, count, 4))
    found[..., :2] = random.uniform(0, 150, (2, count, 2))
    found[..., 2:] = found[..., :2] + random.uniform(5, 40, (2, count, 2))
    scores = np.full((2, count, CLASSES), 1e-6)
    for sample, rows in enumerate(KNOWN):
        places = random.permutation(count)[: 2 * len(rows)].reshape(2, -1)
        for row, place, double in zip(rows, *places, strict=True):
            found[sample, place], scores[sample, place, int(row[5])] = row[:4], row[4]
            if doubles:
                found[sample, double] = row[:4] + np.array([1, 0, 0, 1])
                scores[sample, double, int(row[5])] = row[4] / 2
    return found, scores


def centred(found: np.ndarray) -> np.ndarray:
    return np.stack([centres(rows) for rows in found])


def yolov8() -> list[np.ndarray]:
    found, scores = dense(ANCHORS)
    return [np.concatenate([centred(found), scores], axis=2).transpose(0, 2, 1)]


def yolov8_logits() -> list[np.ndarray]:
    found, scores = dense(ANCHORS)
    return [np.concatenate([centred(found), logit(scores)], axis=2).transpose(0, 2, 1)]


def yolov5(count: int = 3 * ANCHORS) -> list[np.ndarray]:
    found, scores = dense(count)
    objectness = np.full((2, count, 1), 0.95)
    return [np.concatenate([centred(found), objectness, scores / 0.95], axis=2)]


def yolox() -> list[np.ndarray]:
    return yolov5(ANCHORS)


def yolox_in_cells() -> list[np.ndarray]:
    (rows,) = yolov5(ANCHORS)
    places = boxes.grid(SIZE, (8, 16, 32))
    random = np.random.default_rng(1)
    empty = rows[..., 5:].max(axis=2) < 1e-3
    rows[..., :2] = rows[..., :2] / places[:, 2:] - places[:, :2]
    rows[empty, :2] = random.uniform(0, 1, (int(empty.sum()), 2))
    rows[..., 2:4] = np.log(rows[..., 2:4] / places[:, 2:])
    return [rows]


def end2end() -> list[np.ndarray]:
    result = np.zeros((2, 300, 6))
    for sample, rows in enumerate(KNOWN):
        result[sample, 50 : 50 + len(rows)] = rows[::-1]
    return [result]


def rt_detr() -> list[np.ndarray]:
    found, scores = dense(100, doubles=False)
    return [logit(scores), relative(centred(found))]


def detr() -> list[np.ndarray]:
    found, scores = dense(100, doubles=False)
    nothing = 1 - scores.sum(axis=2, keepdims=True)
    return [relative(centred(found)), np.log(np.concatenate([scores, nothing], axis=2)) + 9]


def detr_shares() -> list[np.ndarray]:
    found, logits = detr()
    return [np.exp(logits - 9), found]


def ssd() -> list[np.ndarray]:
    found, scores = dense(2000)
    return [np.concatenate([1 - scores.sum(axis=2, keepdims=True), scores], axis=2), relative(found)]


def ssd_raw() -> list[np.ndarray]:
    scores, _ = ssd()
    return [dense(2000)[0], np.log(scores) + 3]


def torchvision() -> list[np.ndarray]:
    rows = KNOWN[0][[1, 0, 2]]
    return [rows[:, :4], rows[:, 5].astype(np.int64), rows[:, 4]]


def masked() -> list[np.ndarray]:
    return [*torchvision(), np.zeros((3, 1, 28, 28))]


def tensorflow() -> list[np.ndarray]:
    found, labels, scores = np.ones((2, 10, 4)), np.ones((2, 10)), np.full((2, 10), 0.01)
    for sample, rows in enumerate(KNOWN):
        found[sample, : len(rows)] = relative(rows[:, :4])[:, [1, 0, 3, 2]]
        labels[sample, : len(rows)], scores[sample, : len(rows)] = rows[:, 5], rows[:, 4]
    return [found, labels, scores, np.array([3.0, 1.0])]


def efficient_nms() -> list[np.ndarray]:
    found, labels, scores, number = tensorflow()
    found = boxes.pixels(found[..., [1, 0, 3, 2]], SIZE)
    return [number.astype(np.int32)[:, None], found, scores, labels.astype(np.int32)]


FORMS: list[tuple[str, Form]] = [
    ("yolov8", yolov8),
    ("yolov8", yolov8_logits),
    ("yolov5", yolov5),
    ("yolox", yolox),
    ("yolox", yolox_in_cells),
    ("end2end", end2end),
    ("detr", rt_detr),
    ("detr", detr),
    ("detr", detr_shares),
    ("ssd", ssd),
    ("ssd", ssd_raw),
    ("nms", torchvision),
    ("nms", masked),
    ("nms", tensorflow),
    ("nms", efficient_nms),
]


@pytest.mark.parametrize(("name", "form"), FORMS, ids=[form.__name__ for _, form in FORMS])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_known_boxes_come_back(name: str, form: Form, kind: type) -> None:
    outputs = [output if output.dtype.kind == "i" else output.astype(kind) for output in form()]
    decoder = find_decoder(outputs, SIZE)
    assert decoder.name == name
    found = decoder.decode(outputs, SIZE)
    samples = 1 if form in (torchvision, masked) else 2
    assert found.shape == (samples,)
    assert found.dtype == object
    for rows, expected in zip(found, KNOWN, strict=False):
        assert rows.dtype == np.float64
        rows = rows[rows[:, 4] > 0.05]  # a softmax of classes that are hardly there leaves low scores
        assert rows == pytest.approx(expected, abs=1e-3)


def test_a_box_counts_for_each_of_its_classes_and_300_are_left() -> None:
    output = np.zeros((1, 4 + 2, 400))
    output[0, 0], output[0, 2:4] = np.arange(400) * 20, 10
    output[0, 4], output[0, 5] = 0.3, 0.2
    (rows,) = DECODERS["yolov8"].decode([output], SIZE)
    assert rows.shape == (300, 6)
    (rows,) = DECODERS["yolov8"].decode([output[..., :100]], SIZE)
    assert (rows[:, 5] == 0).sum() == (rows[:, 5] == 1).sum() == 100


def test_nothing_found() -> None:
    for name, outputs in (
        ("yolov8", [np.zeros((1, 5, 90))]),
        ("end2end", [np.zeros((1, 30, 6))]),
        ("nms", [np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64)]),
        ("nms", [np.zeros((1, 9, 4)), np.ones((1, 9)), np.zeros((1, 9)), np.zeros(1)]),
        ("db", [np.zeros((1, 1, 24, 32))]),
    ):
        (rows,) = find_decoder(outputs, SIZE, name).decode(outputs, SIZE)
        assert rows.shape == (0, 6), name


def test_keypoints_come_back() -> None:
    points = 5
    random = np.random.default_rng(0)
    output = np.zeros((2, ANCHORS, 5 + 3 * points))
    expected = []
    for sample, rows in enumerate(KNOWN):
        rows = np.concatenate([rows, random.uniform(0, 1, (len(rows), 3 * points))], axis=1)
        rows[:, 5], rows[:, 4] = 0, np.linspace(0.9, 0.7, len(rows))
        rows = rows[:2]  # the third box overlaps the second one
        output[sample, 7 : 7 + len(rows)] = np.concatenate([centres(rows), rows[:, 4:5], rows[:, 6:]], axis=1)
        expected.append(rows)
    outputs = [output.transpose(0, 2, 1)]
    decoder = find_decoder(outputs, SIZE, task="keypoints")
    assert decoder.name == "yolov8_pose"
    for rows, known in zip(decoder.decode(outputs, SIZE), expected, strict=True):
        assert rows == pytest.approx(known)
    assert find_decoder(outputs, SIZE).name == "yolov8"  # of 16 classes, by its shape


def priors(size: tuple[int, int]) -> np.ndarray:
    """Return the priors of RetinaFace, cx cy w h in parts of the input, as its own loops make them."""
    result = []
    for step, sides in ((8, (16, 32)), (16, (64, 128)), (32, (256, 512))):
        for row in range(-(-size[0] // step)):
            for column in range(-(-size[1] // step)):
                for side in sides:
                    result.append(
                        [(column + 0.5) * step / size[1], (row + 0.5) * step / size[0], side / size[1], side / size[0]]
                    )
    return np.array(result)


@pytest.mark.parametrize("raw", [False, True])
def test_retinaface(raw: bool) -> None:
    prior = priors(SIZE)
    offsets, scores = np.zeros((2, len(prior), 4)), np.full((2, len(prior), 2), [0.999, 0.001])
    expected = [np.array([[20.0, 30, 80, 90, 0.9, 0], [120, 40, 200, 100, 0.8, 0]]), KNOWN[1] * [1, 1, 1, 1, 1, 0]]
    for sample, rows in enumerate(expected):
        for row, place in zip(relative(centres(rows)), (11, 800), strict=False):
            offsets[sample, place, :2] = (row[:2] - prior[place, :2]) / prior[place, 2:] / 0.1
            offsets[sample, place, 2:] = np.log(row[2:] / prior[place, 2:]) / 0.2
        for row, place in zip(rows, (11, 800), strict=False):
            scores[sample, place] = [1 - row[4], row[4]]
    outputs = [offsets, np.log(scores) if raw else scores, np.zeros((2, len(prior), 10))]
    decoder = find_decoder(outputs, SIZE)
    assert decoder.name == "retinaface"
    for rows, known in zip(decoder.decode(outputs, SIZE), expected, strict=True):
        assert rows == pytest.approx(known)
    with pytest.raises(DataError, match="do not have the priors of RetinaFace"):
        decoder.decode([output[:, 1:] for output in outputs], SIZE)


def test_text_maps() -> None:
    text = np.zeros((2, 1, SIZE[0] // 2, SIZE[1] // 2))
    text[0, 0, 10:20, 30:70] = 0.9
    text[0, 0, 50:60, 5:25] = 0.8
    text[0, 0, 80:90, 5:25] = 0.5  # too low a mean
    text[0, 0, 70:72, 60:80] = 0.9  # too thin
    text[1, 0, :8, :20] = 0.7
    decoder = find_decoder([text], SIZE)
    assert decoder.name == "db"
    first, second = decoder.decode([text], SIZE)
    # area / perimeter is 400 / 100 and 200 / 60; the map has half the size of the input
    assert first == pytest.approx(np.array([[48, 8, 152, 52, 0.9, 0], [0, 90, 60, 130, 0.8, 0]]))
    grow = 1.5 * 160 / 56
    assert second == pytest.approx(np.array([[0, 0, 2 * (20 + grow), 2 * (8 + grow), 0.7, 0]]))
    (corner,) = decoder.decode([np.pad(np.eye(9), 4)[None, None]], (17, 17))
    assert corner.shape == (1, 6)  # pixels that touch at corners are one region


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ([(1, 10)], "no decoder fits"),
        ([(1, 1000)] * 3, "no decoder fits"),
        ([(1, 2000, 4)], "no decoder fits"),
        ([(1, 3, 24, 32)], "no decoder fits"),
        ([], "no decoder fits"),
    ],
)
def test_outputs_that_no_decoder_reads(shapes: list[tuple[int, ...]], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        find_decoder([np.zeros(shape) for shape in shapes], SIZE)
    assert all(str(shape) in caught.value.why for shape in shapes)
    assert caught.value.hint.startswith("--decode NAME, one of yolov8, ")
    assert all(name in caught.value.hint for name in DECODERS)


def test_outputs_that_several_decoders_read(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = yolov8()
    monkeypatch.setitem(DECODERS, "other", DECODERS["yolov8"])  # type: ignore[misc]
    with pytest.raises(DataError, match="outputs fit yolov8 and yolov8"):
        find_decoder(outputs, SIZE)


def test_decoder_by_name() -> None:
    other = [np.zeros((1, 500, 8))]  # custom anchors
    assert find_decoder(other, SIZE, "yolov5").name == "yolov5"
    with pytest.raises(DataError, match="no decoder has the name yolov99"):
        find_decoder(other, SIZE, "yolov99")
    with pytest.raises(DataError, match="do not have the form of detr") as caught:
        find_decoder(other, SIZE, "detr")
    assert "(1, 500, 8)" in caught.value.why


@pytest.mark.parametrize("size", [(64, 64), (160, 160), (320, 320), (416, 416), (640, 640), (384, 640)])
def test_forms_of_usual_models_fit_one_decoder(size: tuple[int, int]) -> None:
    anchors = boxes.cells(size, (8, 16, 32))
    for name, shapes in {
        "yolov8": [(1, 84, anchors)] if anchors > 84 else [(1, 5, anchors)],
        "yolov5": [(1, 3 * anchors, 6)],
        "yolox": [(1, anchors, 6)],
        "end2end": [(1, 300, 6)],
        "detr": [(1, 300, 80), (1, 300, 4)],
        "ssd": [(1, 4420, 2), (1, 4420, 4)],
        "retinaface": [(1, 2 * anchors, 4), (1, 2 * anchors, 2), (1, 2 * anchors, 10)],
        "db": [(1, 1, *size)],
    }.items():
        assert find_decoder([np.zeros(shape, dtype=np.float32) for shape in shapes], size).name == name
