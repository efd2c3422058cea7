"""Outlines of objects in COCO and YOLO become masks in pixels of the model's input."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onnxprune.data.dataset import load_data
from onnxprune.data.images import read_image
from onnxprune.data.input_spec import InputSpec
from onnxprune.data.instances import Instances
from onnxprune.data.labels import outlines
from onnxprune.data.labels.outlines import RunLengths, extent
from onnxprune.data.labels.reading import read_labels
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError, DataWarning

mask_of = pytest.importorskip("pycocotools.mask")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools

WIDTH, HEIGHT = 40, 24
CORNERS = {"a": [(4, 6, 20, 16), (24, 2, 36, 22)], "b": [], "c": [(0, 0, 40, 24)]}
"""Objects of images: rectangles without the quarter at the top right, as corners of their boxes."""
Form = Callable[[tuple[int, int, int, int]], Any]


def drawn(box: tuple[int, int, int, int]) -> np.ndarray:
    """Return the pixels of an object."""
    x1, y1, x2, y2 = box
    result = np.zeros((HEIGHT, WIDTH), np.uint8)
    result[y1:y2, x1:x2] = 1
    result[y1 : (y1 + y2) // 2, (x1 + x2) // 2 : x2] = 0
    return result


def polygon(box: tuple[int, int, int, int]) -> list[list[float]]:
    x1, y1, x2, y2 = box
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return [[x1, y1, x, y1, x, y, x2, y, x2, y2, x1, y2]]


def two_polygons(box: tuple[int, int, int, int]) -> list[list[float]]:
    x1, y1, x2, y2 = box
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return [[x1, y1, x, y1, x, y, x1, y], [x1, y, x2, y, x2, y2, x1, y2], [x1, y1, x2, y2]]


def compressed(box: tuple[int, int, int, int]) -> dict[str, Any]:
    found = mask_of.encode(np.asfortranarray(drawn(box)))
    return {"size": [HEIGHT, WIDTH], "counts": found["counts"].decode()}


def uncompressed(box: tuple[int, int, int, int]) -> dict[str, Any]:
    flat = np.pad(drawn(box).T.reshape(-1), 1, constant_values=2)
    counts = np.diff(np.flatnonzero(np.diff(flat))).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": [0, *counts] if flat[1] else counts}


FORMS: dict[str, Form] = {form.__name__: form for form in (polygon, two_polygons, compressed, uncompressed)}


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "photos" / f"{name}.png" for name in CORNERS]
    paths[0].parent.mkdir()
    for path in paths:
        Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    return paths


def coco(path: Path, form: Form, change: Callable[[list[dict[str, Any]]], Any] = lambda objects: None) -> Path:
    objects = [
        {
            "id": 10 * image + number,
            "image_id": image,
            "category_id": 1,
            "iscrowd": number,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "segmentation": form((x1, y1, x2, y2)),
        }
        for image, boxes in enumerate(CORNERS.values())
        for number, (x1, y1, x2, y2) in enumerate(boxes)
    ]
    change(objects)
    files = [{"id": n, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT} for n, name in enumerate(CORNERS)]
    path.write_text(json.dumps({"images": files, "annotations": objects, "categories": [{"id": 1, "name": "one"}]}))
    return path


def yolo(folder: Path) -> Path:
    folder.mkdir()
    for name, boxes in CORNERS.items():
        lines = [(np.reshape(polygon(box), (-1, 2)) / [WIDTH, HEIGHT]).reshape(-1) for box in boxes]
        (folder / f"{name}.txt").write_text("\n".join(" ".join(map(repr, [0, *line.tolist()])) for line in lines))
    return folder


def labels_of(form: str, tmp_path: Path, images: list[Path], how: Preprocess) -> list[Instances]:
    path = yolo(tmp_path / "labels") if form == "yolo" else coco(tmp_path / "c.json", FORMS[form])
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        found = read_labels(path, images, how)
    assert found.kind == "boxes"
    assert all(isinstance(one, Instances) for one in found.values)
    return list(found.values)


def pixels(one: Instances) -> list[np.ndarray]:
    return [mask_of.decode(mask) for mask in one.masks]


@pytest.mark.parametrize("form", [*FORMS, "yolo"])
def test_masks_come_back_from_every_form(form: str, images: list[Path], tmp_path: Path) -> None:
    found = labels_of(form, tmp_path, images, Preprocess())
    for one, boxes in zip(found, CORNERS.values(), strict=True):
        assert (one.rows[:, :4] == np.reshape(boxes, (-1, 4))).all()
        assert one.rows[:, 5].tolist() == ([0] * len(boxes) if form == "yolo" else [*range(len(boxes))])
        assert len(one.masks) == len(boxes)
        for mask, box in zip(pixels(one), boxes, strict=True):
            assert (mask == drawn(box)).all()


@pytest.mark.parametrize("form", [*FORMS, "yolo"])
@pytest.mark.parametrize(
    "how",
    [
        Preprocess(letterbox=(64, 80), pad=2),
        Preprocess(stretch=(48, 40)),
        Preprocess(crop=16),
        Preprocess(resize=48, crop=48),
    ],
    ids=["letterbox", "stretch", "crop", "resize and crop"],
)
def test_masks_move_with_their_images(form: str, how: Preprocess, images: list[Path], tmp_path: Path) -> None:
    """A mask is near the picture of its object after the same preprocessing."""
    found = labels_of(form, tmp_path, images, how)
    for one, boxes in zip(found, CORNERS.values(), strict=True):
        assert len(one.masks) == len(one.rows) == len(boxes)
        for mask, box in zip(pixels(one), boxes, strict=True):
            Image.fromarray(drawn(box) * 255).convert("RGB").save(tmp_path / "object.png")
            picture = read_image(tmp_path / "object.png", replace(how, interpolation="nearest"))
            expected = np.pad(picture[0] > 200, how.pad)
            assert mask.shape == expected.shape
            assert (mask & expected).sum() > 0.9 * (mask | expected).sum()
            if form in ("compressed", "uncompressed"):
                assert (mask == expected).all()


def test_objects_that_are_dropped_take_their_masks_along(images: list[Path], tmp_path: Path) -> None:
    first, *_ = labels_of("polygon", tmp_path, images, Preprocess(crop=24))  # columns 8 to 32
    assert first.rows.tolist() == [[0, 6, 12, 16, 0, 0], [16, 2, 24, 22, 0, 1]]
    assert [mask.sum() for mask in pixels(first)] == [drawn(box)[:, 8:32].sum() for box in CORNERS["a"]]
    (tmp_path / "small").mkdir()
    one, *_ = labels_of("polygon", tmp_path / "small", images, Preprocess(crop=4))  # rows 10 to 14, columns 18 to 22
    assert one.rows.tolist() == []
    assert one.masks == ()


@pytest.mark.parametrize("form", ["polygon", "compressed"])
@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_masks_of_an_image_before_it_is_turned(form: str, orientation: int, images: list[Path], tmp_path: Path) -> None:
    image = Image.open(images[0])
    tags = image.getexif()
    tags[0x0112] = orientation
    image.save(images[0], exif=tags)
    first, *_ = labels_of(form, tmp_path, images, Preprocess())
    if orientation in (2, 3):  # width and height are those of the upright image, which labels then belong to
        assert (pixels(first)[0] == drawn(CORNERS["a"][0])).all()
        return
    turned = np.rot90(drawn(CORNERS["a"][0]), 3 if orientation == 6 else 1)
    assert (pixels(first)[0] == turned).all()
    assert first.rows[0, :4].tolist() == [
        *np.argwhere(turned).min(axis=0)[::-1],
        *np.argwhere(turned).max(axis=0)[::-1] + 1,
    ]


def test_masks_are_cut_at_the_picture(images: list[Path], tmp_path: Path) -> None:
    """A polygon that leaves its image does not enter the border that letterbox adds."""

    def form(box: tuple[int, int, int, int]) -> list[list[int]]:
        return [[-9, -9, 50, -9, 50, 50, -9, 50]]

    path = coco(tmp_path / "c.json", form)
    last = read_labels(path, images, Preprocess(letterbox=40)).values[2]
    assert last.rows[0, :4].tolist() == [0, 8, 40, 32]
    expected = np.zeros((40, 40), np.uint8)
    expected[8:32] = 1
    assert (pixels(last)[0] == expected).all()


@pytest.mark.parametrize("form", FORMS)
def test_boxes_that_a_file_lacks_are_those_of_the_outlines(form: str, images: list[Path], tmp_path: Path) -> None:
    path = coco(tmp_path / "c.json", FORMS[form], lambda objects: [one.pop("bbox") for one in objects])
    for one, boxes in zip(read_labels(path, images, Preprocess()).values, CORNERS.values(), strict=True):
        assert (one.rows[:, :4] == np.reshape(boxes, (-1, 4))).all()


@pytest.mark.parametrize("task", ["detect", None])
def test_data_keep_their_masks(task: str | None, images: list[Path], tmp_path: Path) -> None:
    path = coco(tmp_path / "c.json", polygon)
    spec = InputSpec("x", np.dtype(np.float32), (None, 3, HEIGHT, WIDTH))
    data = load_data(images[0].parent, [spec], Preprocess(), str(path), task)
    assert data.labels is not None
    assert all(isinstance(one, Instances) for one in data.take(np.array([2, 0])).labels)  # type: ignore[union-attr]
    points = coco(tmp_path / "k.json", polygon, lambda objects: [one.update(keypoints=[1, 1, 2]) for one in objects])
    assert not any(
        isinstance(one, Instances) for one in read_labels(points, images, Preprocess(), keypoints=True).values
    )


def told(path: Path, images: list[Path]) -> list[str]:
    """Return what is warned of a file whose objects are read as boxes alone."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        found = read_labels(path, images, Preprocess()).values
    for rows, boxes in zip(found, CORNERS.values(), strict=True):
        assert type(rows) is np.ndarray
        assert (rows[:, :4] == np.reshape(boxes, (-1, 4))).all()
    return [str(one.message).split(": ", 1)[1] for one in caught]


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ([], "masks are not read: 1 of 3 annotations have no segmentation"),
        ([[1, 2, 3, 4]], "masks are not read: 1 of 3 annotations have no segmentation"),
        ([[1, 2, 3, 4, 5, 6, 7]], "masks are not read: the segmentation of the annotation 0: a polygon is no list"),
        ([1, 2, 3, 4, 5, 6], "masks are not read: the segmentation of the annotation 0: a polygon is no list"),
        ("nonsense", "masks are not read: the segmentation of the annotation 0: "),
        ({"counts": [3]}, "masks are not read: the segmentation of the annotation 0: "),
        (
            [[1, 2, 3, 4, 5, float("nan")]],
            "masks are not read: the segmentation of the annotation 0: a polygon is no list",
        ),
    ],
    ids=str,
)
def test_segmentations_that_are_no_outlines(segmentation: Any, says: str, images: list[Path], tmp_path: Path) -> None:
    path = coco(tmp_path / "c.json", polygon, lambda objects: objects[0].update(segmentation=segmentation))
    (said,) = told(path, images)
    assert said.startswith(says)


def test_boxes_without_any_segmentation_are_not_remarked(images: list[Path], tmp_path: Path) -> None:
    assert told(coco(tmp_path / "c.json", lambda box: []), images) == []
    assert (
        told(coco(tmp_path / "d.json", polygon, lambda objects: [one.pop("segmentation") for one in objects]), images)
        == []
    )


def test_boxes_among_outlines_of_yolo(images: list[Path], tmp_path: Path) -> None:
    folder = yolo(tmp_path / "labels")
    (folder / "c.txt").write_text("0 .5 .5 1 1")
    assert told(folder, images) == ["masks are not read: 1 of 3 lines are boxes, the others are outlines"]


@pytest.mark.parametrize("form", ["polygon", "compressed"])
def test_without_pycocotools(form: str, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlines, "can_encode", lambda: False)
    path = coco(tmp_path / "c.json", FORMS[form], lambda objects: objects[0].pop("bbox"))
    assert told(path, images) == []
    assert told(yolo(tmp_path / "labels"), images) == []


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ({"size": [HEIGHT, WIDTH], "counts": [3, 4]}, "do not add up to 24 x 40"),
        ({"size": [HEIGHT, WIDTH], "counts": [-3, 963]}, "do not add up to 24 x 40"),
        ({"size": [HEIGHT, WIDTH], "counts": "123"}, "do not add up to 24 x 40"),
        ({"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}, "it is 24 x 40, the image is 40 x 24"),
    ],
    ids=str,
)
def test_run_lengths_that_are_wrong(segmentation: Any, says: str, images: list[Path], tmp_path: Path) -> None:
    path = coco(tmp_path / "c.json", polygon, lambda objects: objects[0].update(segmentation=segmentation))
    with pytest.raises(DataError) as caught:
        read_labels(path, images, Preprocess())
    assert says in caught.value.why
    assert caught.value.where == str(path)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 70), st.integers(1, 70), st.sampled_from([0.0, 0.01, 0.5, 0.99, 1.0]))
def test_run_lengths_are_those_of_pycocotools(seed: int, height: int, width: int, share: float) -> None:
    mask = np.asfortranarray(np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    rle = mask_of.encode(mask)
    lengths = RunLengths(height, width, rle["counts"].decode())
    assert (lengths.pixels() == mask).all()
    x, y, wide, high = mask_of.toBbox(rle)
    assert extent(lengths).tolist() == ([x, y, x + wide, y + high] if mask.any() else [0, 0, 0, 0])


@pytest.mark.parametrize("value", [1e38, -1e9, 2.0**31])
def test_a_polygon_far_outside_of_its_image_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="at most 131,072 pixels are read"):
        outlines.coco_outline([[value, 1, 5, 1, 5, 4]])
