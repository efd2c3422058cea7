"""Decoders of detectors: from the raw outputs of one run to boxes, scores and classes.

A detector's outputs have no standard form. Each row of `DECODERS` reads one form, which `find_decoder` recognizes by the number, ranks and
shapes of the outputs, or is told by name. Below n is the number of samples of the run, A that of anchors, c that of classes; sizes are
(height, width) of the network's input, and boxes are in pixels of it.

Not read: heads in front of their decoding (YOLOv5 with three outputs, SSD with offsets).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.data.instances import Instances
from onnxprune.data.labels.values import object_array
from onnxprune.errors import DataError
from onnxprune.metrics import masks
from onnxprune.metrics.boxes import (
    FLOOR,
    IOU,
    LIMIT,
    cells,
    corners,
    grid,
    pixels,
    probabilities,
    relative,
    shares,
    suppress,
    suppressed,
    table,
)
from onnxprune.metrics.text_maps import text_boxes
from onnxprune.types import Array, FloatArray

Outputs = Sequence[Array]
Size = tuple[int, int]
Shape = tuple[int, ...]

SSD_FLOOR, SSD_IOU = 0.01, 0.45
"""Lowest score and IoU of the suppression of SSD (https://arxiv.org/abs/1512.02325, section 3.1)."""
FACE_FLOOR, FACE_IOU = 0.02, 0.4
"""Lowest score and IoU of the suppression of RetinaFace (its evaluation on WIDER FACE)."""
QUERIES = 1000
"""Most rows of a form without anchors (queries of DETR, results of YOLOv10); a form with anchors has more."""
GRIDS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
"""Strides of the grids of YOLO: of P3 to P5, P3 to P6, P2 to P5, and of the tiny ones."""


@dataclass(frozen=True)
class Decoder:
    """A form of outputs, and how it is read.

    Attributes:
        name: of `--decode`.
        form: of the outputs, in words.
        shapes: tells whether shapes of outputs can be of this form.
        decode: returns of outputs and the input's size an (n,) object array of (m, 6) float64: x1 y1 x2 y2 score class; with K keypoints
            (m, 6 + 3K): and x y confidence of each. The highest scores are first.
        usual: tells of shapes that can be of this form whether they are likely, for an input of a size.
        task: `detect`, or `keypoints`.
        instances: returns the same with the mask of each box, as `Instances`, where the outputs hold masks; None: they hold none.
        classes: returns the number of classes that outputs tell; 0: they do not.
    """

    name: str
    form: str
    shapes: Callable[[Sequence[Shape]], bool]
    decode: Callable[[Outputs, Size], Array]
    usual: Callable[[Sequence[Shape], Size], bool] = lambda shapes, size: True
    task: str = "detect"
    instances: Callable[[Outputs, Size], Array] | None = None
    classes: Callable[[Outputs], int] = lambda outputs: 0

    def fits(self, outputs: Outputs, size: Size) -> bool:
        """Return whether outputs have this form, judged by their number, ranks and shapes."""
        shapes = [output.shape for output in outputs]
        return self.shapes(shapes) and self.usual(shapes, size)


def find_decoder(outputs: Outputs, size: Size, name: str | None = None, *, task: str = "detect") -> Decoder:
    """Return the decoder of a name, or the only one of a task that fits.

    Args:
        outputs: of one run.
        size: height and width of the network's input, in pixels.
        name: of a row of `DECODERS`; None: the form is recognized.
        task: `detect` or `keypoints`, of the decoders among which one is recognized.

    Raises:
        DataError: no decoder has the name, or it cannot read these shapes; or none or several fit.

    >>> find_decoder([np.zeros((1, 84, 8400), dtype=np.float32)], (640, 640)).name
    'yolov8'
    """
    shapes = [output.shape for output in outputs]
    written = ", ".join(str(tuple(int(side) for side in shape)) for shape in shapes)
    known = ", ".join(one.name for one in DECODERS.values())
    if name is not None:
        if name not in DECODERS:
            raise DataError(f"no decoder has the name {name}", hint=f"--decode NAME, one of {known}")
        decoder = DECODERS[name]
        if not decoder.shapes(shapes):
            raise DataError(
                f"the outputs do not have the form of {name}",
                why=f"shapes are {written}; {name} is {decoder.form}",
                hint=f"--decode NAME, one of {known}",
            )
        return decoder
    fitting = [one for one in DECODERS.values() if one.task == task and one.fits(outputs, size)]
    if len(fitting) == 1:
        return fitting[0]
    several = " and ".join(one.name for one in fitting)
    raise DataError(
        f"outputs fit {several}" if fitting else "no decoder fits the outputs",
        why=f"shapes are {written}, and the input is {size[0]} x {size[1]}",
        hint=f"--decode NAME, one of {known}",
    )


# ------------------------------------------------------------------------------------------------------------------- forms


def _grids(size: Size) -> set[int]:
    return {cells(size, strides) for strides in GRIDS}


def _one(shapes: Sequence[Shape], rank: int = 3) -> bool:
    return len(shapes) == 1 and len(shapes[0]) == rank


def _rows_of(shapes: Sequence[Shape], least: int) -> bool:
    """Return whether the one output is (n, A, columns) with at least so many columns."""
    return _one(shapes) and shapes[0][2] >= least


def _columns_of(shapes: Sequence[Shape], least: int) -> bool:
    """Return whether the one output is (n, columns, A) with at least so many columns, and A is larger."""
    return _one(shapes) and least <= shapes[0][1] < shapes[0][2]


def _pair(shapes: Sequence[Shape], classes: int) -> bool:
    """Return whether two outputs are boxes (n, A, 4) and scores (n, A, at least so many classes)."""
    if len(shapes) != 2 or any(len(shape) != 3 for shape in shapes) or shapes[0][:2] != shapes[1][:2]:
        return False
    widths = sorted(shape[2] for shape in shapes)
    return 4 in widths and min(widths) >= classes


def _prototypes(shapes: Sequence[Shape]) -> bool:
    """Return whether outputs are (n, 4 + c + k, A) and prototypes of masks (n, k, h, w), in any order."""
    ranked = sorted(shapes, key=len)
    return (
        [len(shape) for shape in ranked] == [3, 4]
        and ranked[0][0] == ranked[1][0]
        and 4 + 1 + ranked[1][1] <= ranked[0][1] < ranked[0][2]
    )


def _faces(shapes: Sequence[Shape]) -> bool:
    return (
        len(shapes) == 3
        and all(len(shape) == 3 for shape in shapes)
        and len({shape[:2] for shape in shapes}) == 1
        and sorted(shape[2] for shape in shapes) == [2, 4, 10]
    )


def _lists(shapes: Sequence[Shape]) -> bool:
    """Return whether outputs are results of a suppression: boxes, scores, labels, and maybe how many of them are results."""
    shapes = [shape for shape in shapes if len(shape) < 4]  # masks
    boxes = [shape for shape in shapes if shape[-1:] == (4,) and len(shape) > 1 and shapes.count(shape[:-1]) == 2]
    if len(boxes) != 1:
        return False
    samples = boxes[0][0]
    others = [shape for shape in shapes if shape not in (boxes[0], boxes[0][:-1])]
    return not others or (len(boxes[0]) == 3 and len(others) == 1 and others[0] in ((samples,), (samples, 1)))


# ---------------------------------------------------------------------------------------------------------------- decoding


def _yolov8(outputs: Outputs, size: Size) -> Array:
    rows = outputs[0].transpose(0, 2, 1)
    return suppressed(corners(rows[..., :4]), probabilities(rows[..., 4:]))


def _yolov8_seg(outputs: Outputs, size: Size) -> Array:
    rows, prototypes = sorted(outputs, key=np.ndim)
    return _yolov8([rows[:, : -prototypes.shape[1]]], size)


def _yolov8_masks(outputs: Outputs, size: Size) -> Array:
    rows, prototypes = sorted(outputs, key=np.ndim)
    rows, k = rows.transpose(0, 2, 1), prototypes.shape[1]
    found = suppressed(corners(rows[..., :4]), probabilities(rows[..., 4:-k]), beside=rows[..., -k:])
    return object_array(
        [
            Instances(of[:, :6], masks.of_prototypes(of[:, 6:], planes, of[:, :4], size))
            for of, planes in zip(found, prototypes, strict=True)
        ]
    )


def _yolov5(outputs: Outputs, size: Size) -> Array:
    rows = outputs[0]
    scores = probabilities(rows[..., 4:])
    return suppressed(corners(rows[..., :4]), scores[..., :1] * scores[..., 1:])


def _yolox(outputs: Outputs, size: Size) -> Array:
    """Read YOLOX; where centres are offsets in their cells (its export without `--decode_in_inference`), decode them first."""
    rows = outputs[0]
    boxes = rows[..., :4].astype(np.float64)
    strides = next((strides for strides in GRIDS if cells(size, strides) == rows.shape[1]), None)
    # centres in pixels are spread over the input, and their mean is near its middle; offsets in cells are near 0..1
    if strides is not None and boxes[..., 0].mean() < size[1] / 8:
        places = grid(size, strides)
        with np.errstate(over="ignore"):
            boxes = np.concatenate([boxes[..., :2] + places[:, :2], np.exp(boxes[..., 2:])], axis=-1) * places[:, 2:]
    return _yolov5([np.concatenate([boxes, rows[..., 4:]], axis=-1)], size)


def _end2end(outputs: Outputs, size: Size) -> Array:
    def of(rows: Array) -> FloatArray:
        rows = np.asarray(rows, dtype=np.float64)
        rows = rows[rows[:, 4] >= FLOOR]
        return rows[np.argsort(-rows[:, 4], kind="stable")[:LIMIT]]

    return object_array([of(rows) for rows in outputs[0]])


def _pose(outputs: Outputs, size: Size) -> Array:
    def of(rows: Array) -> FloatArray:
        rows = rows[rows[:, 4] >= FLOOR].astype(np.float64)
        classes = np.zeros(len(rows), dtype=np.int64)
        left = suppress(corners(rows[:, :4]), rows[:, 4], classes, iou=IOU, limit=LIMIT)
        rows = rows[left]
        return np.concatenate([table(corners(rows[:, :4]), rows[:, 4], classes[left]), rows[:, 5:]], axis=1)

    rows = outputs[0].transpose(0, 2, 1)
    rows = np.concatenate([rows[..., :4], probabilities(rows[..., 4:5]), rows[..., 5:]], axis=-1)
    rows[..., 7::3] = probabilities(rows[..., 7::3])
    return object_array([of(sample) for sample in rows])


def _boxes_and_scores(outputs: Outputs, are_boxes: Callable[[Array], bool]) -> tuple[Array, Array]:
    """Return boxes, then scores; where both have four columns, values tell: rows of scores may sum to 1, and boxes look like boxes."""
    first, second = outputs
    if first.shape[2] != second.shape[2]:
        return (first, second) if first.shape[2] == 4 else (second, first)
    sums = [_sum_to_1(output) for output in outputs]
    boxes_last = sums[0] if sums[0] != sums[1] else are_boxes(second)
    return (second, first) if boxes_last else (first, second)


def _sum_to_1(scores: Array) -> bool:
    return bool((np.abs(scores.sum(axis=2, dtype=np.float64) - 1) < 1e-2).all())


def _detr(outputs: Outputs, size: Size) -> Array:
    """Read queries: softmax with "no object" as the last class, or a sigmoid per class.

    It is a softmax where "no object" has the largest score, above 0, in most queries: that of most queries of a softmax finds nothing,
    and a sigmoid then has no positive score.
    """
    boxes, scores = _boxes_and_scores(outputs, lambda boxes: bool(boxes.min() >= 0 and boxes.max() <= 1))
    nothing = (scores.argmax(axis=2) == scores.shape[2] - 1) & (scores[..., -1] > 0)
    if scores.shape[2] > 1 and (_sum_to_1(scores) or nothing.mean() > 0.5):
        scores = shares(scores)[..., :-1]
    else:
        scores = probabilities(scores)
    boxes = pixels(corners(boxes), size)

    def of(boxes: Array, scores: Array) -> FloatArray:
        first = np.argsort(-scores, axis=None, kind="stable")[:LIMIT]
        queries, classes = np.unravel_index(first, scores.shape)
        return table(boxes[queries], scores[queries, classes], classes)

    return object_array([of(*sample) for sample in zip(boxes, scores, strict=True)])


def _ssd(outputs: Outputs, size: Size) -> Array:
    boxes, scores = _boxes_and_scores(outputs, lambda boxes: bool((boxes[..., 2:] >= boxes[..., :2]).mean() > 0.9))
    boxes = pixels(boxes, size) if relative(boxes) else boxes.astype(np.float64)
    return suppressed(boxes, shares(scores)[..., 1:], SSD_FLOOR, SSD_IOU)


def _retinaface(outputs: Outputs, size: Size) -> Array:
    """Read RetinaFace: offsets from two priors in each cell, of 16 and 32, 64 and 128, 256 and 512 pixels."""
    boxes, scores, _ = (next(output for output in outputs if output.shape[2] == width) for width in (4, 2, 10))
    places = grid(size, (8, 16, 32), copies=2)
    if len(places) != boxes.shape[1]:
        raise DataError(
            "the outputs do not have the priors of RetinaFace",
            why=f"they have {boxes.shape[1]}, and an input of {size[0]} x {size[1]} has {len(places)}",
        )
    centres = (places[:, :2] + 0.5) * places[:, 2:]
    sides = (2 * places[:, 2] * np.tile([1, 2], len(places) // 2))[:, None]
    sides[places[:, 2] == 16] *= 2
    sides[places[:, 2] == 32] *= 4
    with np.errstate(over="ignore"):
        decoded = np.concatenate(
            [centres + 0.1 * boxes[..., :2] * sides, sides * np.exp(0.2 * boxes[..., 2:].astype(np.float64))], axis=-1
        )
    return suppressed(corners(decoded), shares(scores)[..., 1:], FACE_FLOOR, FACE_IOU)


def _nms(outputs: Outputs, size: Size, planes: Array | None = None) -> Array:
    """Read results of a suppression in the graph: corners in pixels, or in parts of the input.

    Labels are integers. Where two outputs hold whole numbers labels come first. With a number of results, boxes in parts of the input are
    y1 x1 y2 x2, as in TensorFlow's detection API; boxes behind that number are left out. With masks (n, m, h, w) results are instances.
    """
    shapes = [output.shape for output in outputs]
    at = _boxes_among(shapes)
    boxes, lead = outputs[at].astype(np.float64), shapes[at][:-1]
    first, second = (output for output in outputs if output.shape == lead)
    counts = [output for output in outputs if output.shape not in (lead, shapes[at]) and output.ndim < 3]
    whole = [np.issubdtype(one.dtype, np.integer) for one in (first, second)]
    if whole[0] == whole[1]:
        whole = [bool((one == np.round(one)).all()) for one in (first, second)]
    labels, scores = (second, first) if whole == [False, True] else (first, second)
    if boxes.ndim == 2:
        boxes, labels, scores = boxes[None], labels[None], scores[None]
    left = scores > 0
    if counts:
        left &= np.arange(scores.shape[1]) < counts[0].reshape(-1, 1)
    if left.any() and relative(boxes[left]):
        boxes = pixels(boxes[..., [1, 0, 3, 2]] if counts else boxes, size)

    def of(sample: int) -> FloatArray | Instances:
        rows = table(boxes[sample], scores[sample], labels[sample])
        order = np.flatnonzero(left[sample])
        order = order[np.argsort(-rows[order, 4], kind="stable")]
        rows = rows[order]
        return rows if planes is None else Instances(rows, masks.pasted(planes[sample][order], rows[:, :4], size))

    return object_array([of(sample) for sample in range(len(boxes))])


def _nms_masks(outputs: Outputs, size: Size) -> Array:
    """Read masks (m, 1, h, w) or (n, m, h, w) beside the results, probabilities in their boxes or in the whole input (Mask R-CNN)."""
    shapes = [output.shape for output in outputs]
    lead = shapes[_boxes_among(shapes)][:-1]
    one = len(lead) == 1
    found = next((o for o in outputs if o.ndim == 4 and o.shape[:2] == ((*lead, 1) if one else lead)), None)
    return _nms(outputs, size, found[None, :, 0] if one and found is not None else found)


def _boxes_among(shapes: Sequence[Shape]) -> int:
    """Return the number of the output that holds the boxes: (…, 4), where two others are (…)."""
    return next(n for n, s in enumerate(shapes) if s[-1:] == (4,) and len(s) > 1 and shapes.count(s[:-1]) == 2)


DECODERS: Mapping[str, Decoder] = {
    decoder.name: decoder
    for decoder in (
        Decoder(
            "yolov8",
            "(n, 4 + c, A), c >= 1, A > 4 + c: centre, size, class probabilities (YOLOv8, v9, v11)",
            lambda shapes: _columns_of(shapes, 5),
            _yolov8,
            classes=lambda outputs: outputs[0].shape[1] - 4,
        ),
        Decoder(
            "yolov8_seg",
            "(n, 4 + c + k, A), prototypes (n, k, h, w): as yolov8, then coefficients of masks (YOLOv8-seg, v11-seg)",
            _prototypes,
            _yolov8_seg,
            instances=_yolov8_masks,
            classes=lambda outputs: min(outputs, key=np.ndim).shape[1] - 4 - max(outputs, key=np.ndim).shape[1],
        ),
        Decoder(
            "yolov5",
            "(n, A, 5 + c), A = 3 x cells: centre, size, objectness, class probabilities (YOLOv5, v7)",
            lambda shapes: _rows_of(shapes, 6),
            _yolov5,
            classes=lambda outputs: outputs[0].shape[2] - 5,
            usual=lambda shapes, size: shapes[0][1] in {3 * number for number in _grids(size)},
        ),
        Decoder(
            "yolox",
            "(n, A, 5 + c), A = cells: centre, size, objectness, class probabilities (YOLOX), in pixels or in cells",
            lambda shapes: _rows_of(shapes, 6),
            _yolox,
            classes=lambda outputs: outputs[0].shape[2] - 5,
            usual=lambda shapes, size: shapes[0][1] in _grids(size),
        ),
        Decoder(
            "end2end",
            "(n, m, 6), m <= 1000: corners, score, class (YOLOv10, YOLO26)",
            lambda shapes: _rows_of(shapes, 6) and shapes[0][2] == 6,
            _end2end,
            usual=lambda shapes, size: (
                shapes[0][1] <= QUERIES and not {shapes[0][1], shapes[0][1] / 3} & {*_grids(size)}
            ),
        ),
        Decoder(
            "detr",
            "logits (n, q, c + 1) or (n, q, c), boxes (n, q, 4), q <= 1000: relative centre and size (DETR, RT-DETR)",
            lambda shapes: _pair(shapes, 1),
            _detr,
            classes=lambda outputs: max(output.shape[2] for output in outputs),
            usual=lambda shapes, size: shapes[0][1] <= QUERIES,
        ),
        Decoder(
            "ssd",
            "boxes (n, A, 4), scores (n, A, c + 1), A > 1000: corners, the background first (SSD, Ultra-Light)",
            lambda shapes: _pair(shapes, 2),
            _ssd,
            usual=lambda shapes, size: shapes[0][1] > QUERIES,
        ),
        Decoder(
            "retinaface",
            "boxes (n, A, 4), scores (n, A, 2), landmarks (n, A, 10), A = 2 x cells (RetinaFace)",
            _faces,
            _retinaface,
            usual=lambda shapes, size: shapes[0][1] == 2 * cells(size, GRIDS[0]),
        ),
        Decoder(
            "nms",
            "boxes (m, 4) or (n, m, 4), scores, labels, maybe their number, masks (torchvision, TensorFlow's detection API)",
            _lists,
            _nms,
            instances=_nms_masks,
        ),
        Decoder(
            "db",
            "(n, 1, h, w): probabilities of text (PP-OCR)",
            lambda shapes: _one(shapes, 4) and shapes[0][1] == 1,
            lambda outputs, size: text_boxes(probabilities(outputs[0][:, 0]), size),
        ),
        Decoder(
            "yolov8_pose",
            "(n, 5 + 3K, A), A > 5 + 3K: centre, size, score, keypoints (YOLOv8-pose, v11-pose)",
            lambda shapes: _columns_of(shapes, 8) and shapes[0][1] % 3 == 2,
            _pose,
            task="keypoints",
        ),
    )
}
"""Known forms of outputs, by name."""
