"""Labels of samples, and the files of images that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np

from onnxprune.data.geometry import Geometry
from onnxprune.data.images import TOLD
from onnxprune.data.instances import Instances
from onnxprune.errors import DataError, first_line
from onnxprune.paths import IMAGE_SUFFIXES
from onnxprune.types import FloatArray, IntArray

Array = np.ndarray[Any, Any]
Kind = Literal["classes", "boxes", "masks", "text", "numbers", "keypoints"]
T = TypeVar("T")
BOX = 4
"""Coordinates of a box: x1, y1, x2, y2."""
ENDS = 4
"""Parts of the longest end of a path by which a file is found; whole paths have any length."""
SEVERAL = -1


@dataclass(frozen=True)
class Labels:
    """Labels of a label file, one per image, in the order of the images.

    Attributes:
        values: array with samples first. Classes are (n,) class numbers, or (n, k) truth values of k classes; masks (n, height,
            width) class numbers, 255 is ignored; text (n,) strings; numbers (n, …). Boxes are an (n,) object array of (m, 6): x1, y1,
            x2, y2, class, crowd, or of `Instances`, which have a mask for each box; keypoints of (m, 6 + 3 k): as boxes, then x, y and
            visibility (0, 1 or 2) of k points.
        classes: names of the classes; empty where the file has none.
        kind: what the values are.
    """

    values: Array
    classes: tuple[str, ...]
    kind: Kind


def object_array(items: Sequence[Any]) -> Array:
    """Return an (n,) array of n items, whatever their shapes.

    >>> object_array([np.zeros((2, 6)), np.zeros((2, 6))]).shape
    (2,)
    """
    result = np.empty(len(items), dtype=object)
    for i, item in enumerate(items):
        result[i] = item
    return result


def npz_boxes(array: Array) -> Array:
    """Return boxes of an array that is padded to one number of boxes per sample, as an (n,) object array of (m, 6).

    Args:
        array: (n, m, 5) or (n, m, 6), x1, y1, x2, y2, class and (default 0) crowd; padded rows have the class -1 or NaN. Or an
            (n,) object array of such (m, 5) or (m, 6), or of `Instances`, which stay.

    Raises:
        DataError: the shape is another one, or a coordinate is not finite.

    >>> npz_boxes(np.array([[[0, 0, 4, 4, 2], [0, 0, 0, 0, -1]]]))[0].tolist()
    [[0.0, 0.0, 4.0, 4.0, 2.0, 0.0]]
    """
    result: list[FloatArray | Instances] = []
    for i, rows in enumerate(array):
        if isinstance(rows, Instances):
            result.append(rows)
            continue
        try:
            boxes = np.asarray(rows, dtype=np.float64)
        except (TypeError, ValueError):
            boxes = np.zeros(())
        boxes = boxes.reshape(0, BOX + 2) if boxes.shape == (0,) else boxes
        if boxes.ndim != 2 or boxes.shape[1] not in (BOX + 1, BOX + 2):
            raise DataError(
                "the boxes have another shape",
                where="labels",
                why=f"those of sample {i} are {list(boxes.shape)}"
                if boxes.ndim
                else f"those of sample {i} are no numbers",
                hint="give (samples, boxes, 5 or 6): x1, y1, x2, y2, class and crowd",
            )
        boxes = boxes[boxes[:, BOX] >= 0]  # NaN is not
        if not np.isfinite(boxes).all():
            raise DataError(
                "a box holds NaN or infinity",
                where="labels",
                why=f"first in sample {i}",
                hint="pad with the class -1, or with NaN in all columns",
            )
        result.append(boxes if boxes.shape[1] == BOX + 2 else np.pad(boxes, ((0, 0), (0, 1))))
    return object_array(result)


def moved(rows: FloatArray, place: Geometry, *, upright: bool = True) -> FloatArray:
    """Return rows of boxes or keypoints, (m, 6 + 3 k), in pixels of the model's input, without boxes that are dropped."""
    if not len(rows):
        return rows
    boxes, kept = place.boxes(rows[:, :BOX], upright=upright)
    result = np.concatenate([boxes, rows[:, BOX:]], axis=1)[kept]
    if rows.shape[1] > BOX + 2 and len(result):
        keypoints = rows[kept, BOX + 2 :].reshape(len(result), -1, 3)
        points, seen = place.points(keypoints[..., :2], upright=upright), keypoints[..., 2]
        left, top, right, bottom = place.picture
        inside = ((points >= (left, top)) & (points <= (right, bottom))).all(axis=-1)
        seen = np.where(inside, seen, 0.0)
        points = np.where((seen > 0)[..., None], points, 0.0)
        result[:, BOX + 2 :] = np.concatenate([points, seen[..., None]], axis=-1).reshape(len(result), -1)
    return result


def is_upright(place: Geometry, size: tuple[int, int], image: Path, where: Path | str) -> bool:
    """Tell whether labels for an image of some width and height are those of the image turned upright.

    Raises:
        DataError: the image has another size.
    """
    if size == place.source:
        return True
    if size == place.stored:
        return False
    raise DataError(
        "the labels belong to an image of another size",
        where=str(where),
        why=f"it says {size[0]} x {size[1]}, {image} is {place.source[0]} x {place.source[1]}",
        hint="give the images that the labels were made for; resize them with --preprocess",
    )


class Files:
    """Finds, for the path of an image, the entry of a label file with the same name.

    Paths are compared from their end: `train/7.jpg` of a label file is `/data/train/7.jpg`, and `7.jpg` where the image
    has no such folder. Names without the suffix of an image are compared with stems.

    Args:
        names: names in the label file, with folders or without.
        where: the label file, for errors.
    """

    def __init__(self, names: Iterable[str], where: Path | str) -> None:
        self._where, self._names = str(where), list(names)
        self._found: dict[tuple[str, ...], int] = {}
        whole: dict[tuple[str, ...], int] = {}
        for number, name in enumerate(self._names):
            parts = tuple(part for part in name.strip().replace("\\", "/").split("/") if part not in ("", "."))
            if whole.setdefault(parts, number) != number:
                raise DataError(
                    "the label file names an image twice",
                    where=self._where,
                    why=f"it is {name}",
                    hint="leave one of them",
                )
            for start in range(max(1, len(parts) - ENDS), len(parts)):
                end = parts[start:]
                self._found[end] = SEVERAL if end in self._found else number
        self._found |= whole  # a whole name comes before the end of another
        self._longest = max(map(len, self._found), default=0)

    def find(self, image: Path) -> int | None:
        """Return the number of the entry of an image; None: there is none.

        Raises:
            DataError: several entries may be meant.
        """
        parts = image.parts
        for last in (parts[-1], image.stem):
            parts = (*parts[:-1], last)
            for start in range(max(0, len(parts) - self._longest), len(parts)):
                number = self._found.get(parts[start:])
                if number == SEVERAL:
                    raise DataError(
                        "the label file does not tell images apart",
                        where=self._where,
                        why=f"several of its entries end with {'/'.join(parts[start:])}",
                        hint="name images with their folders",
                    )
                if number is not None:
                    return number
        return None

    def numbers(self, images: Sequence[Path], *, all_named: bool = True) -> list[int | None]:
        """Return the number of the entry of each image.

        Raises:
            DataError: an image has none (only if `all_named`), or two images have the same.
        """
        numbers = [self.find(image) for image in images]
        missing = [image for image, number in zip(images, numbers, strict=True) if number is None]
        if missing and (all_named or len(missing) == len(images)):
            unnamed(missing, len(images), self._where)
        first: dict[int, int] = {}
        for place, number in enumerate(numbers):
            if number is not None and images[first.setdefault(number, place)] != images[place]:
                raise DataError(
                    "a label fits two images",
                    where=self._where,
                    why=f"{self._names[number]} may be {images[first[number]]} or {images[place]}",
                    hint="name images with their folders",
                )
        return numbers


def unnamed(missing: Sequence[Path], n: int, where: Path | str) -> NoReturn:
    """Raise the error for images that have no labels."""
    told = ", ".join(path.name for path in missing[:TOLD])
    more = f", and {len(missing) - TOLD} more" if len(missing) > TOLD else ""
    raise DataError(
        f"{len(missing)} of {n} images have no labels",
        where=str(where),
        why=f"there are none for {told}{more}",
        hint="label every image, or leave out those without labels",
    )


def is_image_name(text: str) -> bool:
    """Tell whether a text is the name of an image file."""
    return Path(text.strip()).suffix.lower() in IMAGE_SUFFIXES


def read_file(path: Path, read: Callable[[], T], kind: str) -> T:
    """Return what a function reads.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return read()
    except DataError:
        raise
    except Exception as error:  # a damaged file can make a parser raise nearly anything
        raise DataError(
            "the labels cannot be read", where=str(path), why=first_line(error), hint=f"give a valid {kind} file"
        ) from error


def check_classes(rows: FloatArray, classes: Sequence[str], where: Path | str) -> None:
    """Refuse class numbers, in column 4 of boxes, that have no name where classes have names.

    Raises:
        DataError: there is one.
    """
    highest = int(rows[:, BOX].max(initial=-1))
    if classes and highest >= len(classes):
        raise DataError(
            "a class has no name",
            where=str(where),
            why=f"there is a class {highest}, and {len(classes)} names",
            hint="name every class, in the order of their numbers",
        )


def grouped(rows: Array, owners: IntArray, n: int) -> list[Array]:
    """Return the rows of each of n owners, in their order."""
    order = np.argsort(owners, kind="stable")
    return np.split(rows[order], np.searchsorted(owners[order], np.arange(1, n)))
