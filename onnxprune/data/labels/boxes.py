"""Boxes, keypoints and outlines of objects: COCO, YOLO and Pascal VOC."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from onnxprune.data.geometry import Geometry
from onnxprune.data.images import geometries
from onnxprune.data.instances import Instances
from onnxprune.data.labels.names import names_near
from onnxprune.data.labels.outlines import POINTS, Outline, coco_outline, complete, extent, instances
from onnxprune.data.labels.values import (
    BOX,
    Files,
    Labels,
    check_classes,
    grouped,
    is_upright,
    moved,
    object_array,
    read_file,
)
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError, DataWarning, first_line
from onnxprune.reading import parse_json, read_bytes, read_text
from onnxprune.types import FloatArray, IntArray

BEYOND = 0.05
"""Share of the boxes that may reach beyond their images."""
LARGEST = 2**31 - 1
"""Largest class number."""
ROUNDING = 0.01
"""Distance by which normalised coordinates may leave the image."""


def _wrong(where: Path | str, why: str, hint: str = "correct the label file") -> NoReturn:
    raise DataError("the labels are not valid", where=str(where), why=why, hint=hint)


# ------------------------------------------------------------------------------------------------------------------ COCO


def read_coco(path: Path, images: Sequence[Path], how: Preprocess, *, keypoints: bool = False) -> Labels:
    """Read objects of COCO: categories become 0 … k - 1 in ascending order of their ids.

    Without `keypoints`, objects have masks where each has a segmentation; one without a box has that of its segmentation.

    Raises:
        DataError: the file is not valid, or does not name an image.
    """
    content = read_file(path, lambda: parse_json(read_bytes(path)), "JSON")
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ("images", "annotations")
    ):
        _wrong(path, "it has no lists named images and annotations", "give JSON of COCO, with boxes")
    return read_file(path, lambda: _coco(content, path, images, how, keypoints), "COCO")


def _coco(content: dict[str, Any], path: Path, images: Sequence[Path], how: Preprocess, keypoints: bool) -> Labels:
    entries, objects = content["images"], content["annotations"]
    names = {int(one["id"]): str(one["name"]) for one in content.get("categories", ())}
    ids = {one: number for number, one in enumerate(sorted(names or {int(o["category_id"]) for o in objects}))}
    numbers = Files((str(one["file_name"]) for one in entries), path).numbers(images)
    known = {one["id"] for one in entries}
    if len(known) < len(entries):
        _wrong(
            path, f"{len(entries) - len(known)} of its images have an id that another one has", "give each image an id"
        )
    owner_of = {entries[number]["id"]: place for place, number in enumerate(numbers) if number is not None}
    mine = [one for one in objects if one["image_id"] in owner_of]
    lost = sum(one["image_id"] not in known for one in objects)
    if lost:
        _warn(
            path, f"{lost} of {len(objects)} annotations are of an image that the file does not list, and are left out"
        )
    unknown = next((one["category_id"] for one in mine if int(one["category_id"]) not in ids), None)
    if unknown is not None:
        _wrong(path, f"an annotation has the category {unknown}, which is not among the categories")
    outlines: list[Outline | None] = [] if keypoints else _coco_outlines(mine, path)
    boxes = np.array([_coco_box(*one, path) for one in itertools.zip_longest(mine, outlines)]).reshape(-1, BOX)
    facts = np.array([(ids[int(one["category_id"])], bool(one.get("iscrowd"))) for one in mine], dtype=np.float64)
    columns = [boxes, facts.reshape(-1, 2)]
    if keypoints:
        columns.append(_coco_keypoints(mine, path))
    rows = np.concatenate(columns, axis=1)
    if not np.isfinite(rows).all() or (boxes[:, 2:] < boxes[:, :2]).any():
        _wrong(path, "a box is not finite, or its width or height is negative")
    owners = np.array([owner_of[one["image_id"]] for one in mine], dtype=np.int64)
    places = list(geometries(images, how))
    sizes = [_sides(entries[number or 0]) for number in numbers]
    _remark(path, rows, owners, _told(sizes, places), sized=True)
    result: list[FloatArray | Instances] = []
    whole = complete(outlines)
    for image, size, place, of in zip(
        images, sizes, places, grouped(np.arange(len(rows)), owners, len(images)), strict=True
    ):
        upright = not all(size) or is_upright(place, size, image, path)
        if whole is None:
            result.append(moved(rows[of], place, upright=upright))
        else:
            result.append(instances(rows[of], [whole[one] for one in of], place, str(path), upright=upright))
    classes = tuple(names[one] for one in ids) if names else ()
    return Labels(object_array(result), classes, "keypoints" if keypoints else "boxes")


def _coco_outlines(objects: Sequence[Mapping[str, Any]], path: Path) -> list[Outline | None]:
    """Return the outline of each object; where one is not valid, or some have none and others do, warn that masks are not read."""
    found = []
    for one in objects:
        try:
            found.append(coco_outline(one.get("segmentation")))
        except (ValueError, TypeError, KeyError) as error:
            _warn(path, f"masks are not read: the segmentation of the annotation {one.get('id')}: {first_line(error)}")
            return [None] * len(objects)
    without = sum(one is None for one in found)
    if 0 < without < len(found):
        _warn(path, f"masks are not read: {without} of {len(found)} annotations have no segmentation")
    return found


def _coco_box(one: Mapping[str, Any], outline: Outline | None, path: Path) -> FloatArray:
    """Return corners: of the box that an annotation has, or of its outline."""
    if not one.get("bbox") and outline is not None:
        return extent(outline)
    box = np.array(one.get("bbox") or (), dtype=np.float64)
    if box.shape != (BOX,):
        _wrong(path, f"the annotation {one.get('id')} has no box of four numbers")
    box[2:] += box[:2]
    return box


def _sides(entry: Mapping[str, Any]) -> tuple[int, int]:
    """Return width and height of an image as the file says; 0 where it does not."""
    return int(entry.get("width") or 0), int(entry.get("height") or 0)


def _told(sizes: Sequence[tuple[int, int]], places: Sequence[Geometry]) -> FloatArray:
    """Return widths and heights of images, (images, 2): as a label file says, else as they are."""
    pairs = [size if all(size) else place.source for size, place in zip(sizes, places, strict=True)]
    return np.array(pairs, dtype=np.float64)


def _remark_twice(path: Path, rows: FloatArray, owners: IntArray) -> None:
    """Warn of objects of one image that are listed twice."""
    twice = len(rows) - len(np.unique(np.column_stack([owners, rows]), axis=0))
    if twice:
        _warn(path, f"{twice} of {len(rows)} annotations are there twice")


def _remark(path: Path, rows: FloatArray, owners: IntArray, sizes: FloatArray, *, sized: bool) -> None:
    """Warn of objects that are listed twice, lie outside their images, or are corners read as sizes.

    Args:
        path: of the labels.
        rows: x1 y1 x2 y2 and more of all objects.
        owners: number of the image of each.
        sizes: width and height of images, (images, 2).
        sized: whether the labels give width and height of boxes.
    """
    if not len(rows):
        return
    _remark_twice(path, rows, owners)
    size = sizes[owners]
    outside = (rows[:, :2] >= size).any(axis=1) | (rows[:, 2:BOX] <= 0).any(axis=1)
    if outside.any():
        _warn(path, f"{int(outside.sum())} of {len(rows)} boxes lie outside their images, and are left out")
    beyond = ~outside & (rows[:, 2:BOX] > size + 1).any(axis=1)
    if sized and beyond.sum() > BEYOND * len(rows):
        _warn(
            path,
            f"{int(beyond.sum())} of {len(rows)} boxes reach beyond their images: COCO gives x, y, width, height, not corners",
        )


def _warn(where: Path | str, text: str) -> None:
    warnings.warn(DataWarning(f"{where}: {text}"), stacklevel=2)


def _coco_keypoints(objects: Sequence[Mapping[str, Any]], path: Path) -> FloatArray:
    lengths = {len(one.get("keypoints") or ()) for one in objects}
    if len(lengths) > 1 or any(length % 3 or not length for length in lengths):
        _wrong(
            path, "not every annotation has keypoints, or not the same number of them", "give keypoints to every object"
        )
    width = max(lengths, default=0)
    return np.array([one["keypoints"] for one in objects], dtype=np.float64).reshape(len(objects), width)


# ------------------------------------------------------------------------------------------------------------------ YOLO


def read_yolo(
    folder: Path, files: Sequence[Path], images: Sequence[Path], how: Preprocess, *, keypoints: bool = False
) -> Labels:
    """Read objects of YOLO, `class cx cy w h` in shares of the image turned upright; an image without a file has none.

    Lines may be `class x1 y1 x2 y2 x3 y3 …`, the points of an outline; where all of them are, objects have masks. With `keypoints`,
    lines of boxes go on with x, y and visibility of each point, or with x and y alone.

    Raises:
        DataError: a line is not valid, or no image has a file.
    """
    numbers = Files((_stem_in(folder, file) for file in files), folder).numbers(images, all_named=False)
    missing = sum(number is None for number in numbers)
    if missing > len(images) / 2:
        _warn(folder, f"{missing} of {len(images)} images have no label file, and count as images without objects")
    places, found, width = list(geometries(images, how)), [], 0
    for number, place in zip(numbers, places, strict=True):
        rows, outlines = (np.zeros((0, 0)), []) if number is None else _yolo_rows(files[number], place, keypoints)
        if len(rows) and width and rows.shape[1] != width:
            _wrong(files[number or 0], "its objects have another number of keypoints than those of other files")
        width = rows.shape[1] if len(rows) else width
        found.append((rows, outlines))
    width = width or BOX + 2
    found = [(rows if len(rows) else np.zeros((0, width)), outlines) for rows, outlines in found]
    classes = names_near(folder)
    every_row = np.concatenate([rows for rows, _ in found])
    check_classes(every_row, classes, folder)
    _remark_twice(folder, every_row, np.repeat(np.arange(len(found)), [len(rows) for rows, _ in found]))
    every = [outline for _, outlines in found for outline in outlines]
    if 0 < every.count(None) < len(every):
        _warn(
            folder, f"masks are not read: {every.count(None)} of {len(every)} lines are boxes, the others are outlines"
        )
    values: list[FloatArray | Instances]
    if complete(every) is None:
        values = [moved(rows, place) for (rows, _), place in zip(found, places, strict=True)]
    else:
        values = [
            instances(rows, [one for one in outlines if one is not None], place, str(folder))
            for (rows, outlines), place in zip(found, places, strict=True)
        ]
    return Labels(object_array(values), classes, "keypoints" if keypoints else "boxes")


def _yolo_rows(file: Path, place: Geometry, keypoints: bool) -> tuple[FloatArray, list[Outline | None]]:
    """Return boxes in pixels of the upright image, and the outline of each; None: it has none."""
    lines = [line.split() for line in read_file(file, lambda: read_text(file), "text").splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        return np.zeros((0, BOX + 2)), []
    least = 1 + BOX
    lengths = {len(line) for line in lines}
    points = min(lengths) - least
    if keypoints:
        known = len(lengths) == 1 and points > 0 and not (points % 3 and points % 2)
    else:
        known = all(length == least or _is_outline(length) for length in lengths)
    if not known:
        _wrong(
            file,
            f"its lines have {' or '.join(map(str, sorted(lengths)))} values",
            "give lines of class, center x, center y, width and height, or of class and the points of an outline; scores are not read"
            if not keypoints
            else "give lines of class, center x, center y, width and height, then x, y and visibility of each point",
        )
    try:
        each = [np.array(line, dtype=np.float64) for line in lines]
    except ValueError:
        _wrong(file, "a value is not a number")
    number = np.array([line[0] for line in each])
    if not all(np.isfinite(line).all() for line in each) or (number < 0).any() or (number % 1).any():
        _wrong(file, "a class is no whole number from 0, or a coordinate is not finite")
    if number.max() > LARGEST:
        _wrong(file, f"a class is larger than {LARGEST}")
    size = np.array(place.source, dtype=np.float64)
    outlines: list[Outline | None] = [None] * len(each)
    boxes = np.zeros((len(each), BOX))
    for row, line in enumerate(each):
        shares = line[1:] if not keypoints and _is_outline(len(line)) else line[1:least]
        if (shares < -ROUNDING).any() or (shares > 1 + ROUNDING).any():
            _wrong(
                file, "a coordinate is below 0 or above 1", "divide coordinates by the width and height of the image"
            )
        corners = shares.reshape(-1, 2) * size
        if len(corners) >= POINTS:
            outlines[row] = (corners,)
            boxes[row] = extent((corners,))
        else:
            center, half = corners[0], corners[1] / 2
            boxes[row] = *(center - half), *(center + half)
    columns = [boxes, number[:, None], np.zeros((len(each), 1))]
    if keypoints:
        marks = np.array([line[least:] for line in each]).reshape(len(each), -1, 2 if points % 3 else 3)
        seen = marks[..., 2:] if marks.shape[2] == 3 else 2.0 * (marks > 0).any(axis=2, keepdims=True)
        columns.append(np.concatenate([marks[..., :2] * size, seen], axis=2).reshape(len(each), -1))
    return np.concatenate(columns, axis=1), outlines


def _is_outline(values: int) -> bool:
    """Tell whether a line of so many values is a class and the points of an outline."""
    return values >= 1 + 2 * POINTS and values % 2 == 1


def _stem_in(folder: Path, file: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


# ------------------------------------------------------------------------------------------------------------------- VOC


def read_voc(folder: Path, files: Sequence[Path], images: Sequence[Path], how: Preprocess) -> Labels:
    """Read objects of Pascal VOC; difficult ones count as crowds.

    Class numbers are those of `classes.txt` or `data.yaml`, else of the names in alphabetical order, as in the VOC challenge.
    Coordinates count from 1, as there, unless one is below 1.

    Raises:
        DataError: a file is not valid, or an image has none.
    """
    numbers = Files((_stem_in(folder, file) for file in files), folder).numbers(images)
    trees = [read_file(files[n], lambda n=n: _tree(files[n]), "XML") for n in numbers if n is not None]  # type: ignore[misc]
    sources = [files[n] for n in numbers if n is not None]
    found = [_voc_objects(tree, file) for tree, file in zip(trees, sources, strict=True)]
    named = {name for objects in found for name, *_ in objects}
    given = names_near(folder)
    if given and not named <= set(given):
        _wrong(folder, f"the class {min(named - set(given))} is not among the names of classes", "name every class")
    classes = given or tuple(sorted(named))
    number_of = {name: number for number, name in enumerate(classes)}
    rows = [
        np.array([(*box, number_of[name], hard) for name, box, hard in objects]).reshape(-1, 6) for objects in found
    ]
    first = min((float(row[:, :2].min()) for row in rows if len(row)), default=1.0)
    places = list(geometries(images, how))
    sizes = [
        read_file(file, functools.partial(_size_of, tree), "XML") for tree, file in zip(trees, sources, strict=True)
    ]
    for row in rows:
        row[:, :2] -= first >= 1
    owners = np.repeat(np.arange(len(rows)), list(map(len, rows)))
    _remark(folder, np.concatenate(rows), owners, _told(sizes, places), sized=False)
    result = []
    for image, file, size, place, row in zip(images, sources, sizes, places, rows, strict=True):
        upright = not all(size) or is_upright(place, size, image, file)
        result.append(moved(row, place, upright=upright))
    return Labels(object_array(result), classes, "boxes")


def _size_of(tree: Element) -> tuple[int, int]:
    """Return width and height of an image as the file says; 0 where it does not."""
    width, height = (int(float(tree.findtext(f"size/{key}") or 0)) for key in ("width", "height"))
    return width, height


def _voc_objects(tree: Element, file: Path) -> list[tuple[str, tuple[float, ...], bool]]:
    objects = []
    for one in tree.iter("object"):
        try:
            box = tuple(float(one.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError:
            _wrong(file, "an object has no bndbox of four numbers")
        name = (one.findtext("name") or "").strip()
        if not name or not np.isfinite(box).all() or box[2] < box[0] or box[3] < box[1]:
            _wrong(file, "an object has no name, or its right edge lies before its left one")
        objects.append((name, box, (one.findtext("difficult") or "0").strip() not in ("", "0")))
    return objects


def _tree(file: Path) -> Element:
    """Return the root of an XML file; entities, which can grow without end or read other files, are refused."""
    parser, builder = expat.ParserCreate(), TreeBuilder()

    def refuse(*_: object) -> NoReturn:
        _wrong(file, "it has a document type or entities", "leave out <!DOCTYPE>")

    handlers: dict[str, Callable[..., Any]] = {
        "StartElementHandler": builder.start,
        "EndElementHandler": builder.end,
        "CharacterDataHandler": builder.data,
        "StartDoctypeDeclHandler": refuse,
        "EntityDeclHandler": refuse,
    }
    for name, handler in handlers.items():
        setattr(parser, name, handler)
    parser.Parse(read_bytes(file), True)
    return builder.close()
