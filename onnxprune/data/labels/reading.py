"""Label files of any known format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from onnxprune.data.labels.boxes import read_coco, read_voc, read_yolo
from onnxprune.data.labels.masks import read_masks
from onnxprune.data.labels.names import LISTED
from onnxprune.data.labels.tables import TABLES, read_table
from onnxprune.data.labels.values import Labels
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError
from onnxprune.paths import LABEL_SUFFIXES

KNOWN = "JSON of COCO, a CSV or tab-separated table, or a folder of YOLO .txt, Pascal VOC .xml or PNG masks"


def read_labels(
    path: str | os.PathLike[str],
    images: Sequence[Path],
    how: Preprocess,
    *,
    task: str | None = None,
    keypoints: bool = False,
) -> Labels:
    """Read the labels of images.

    | path | labels |
    | --- | --- |
    | .json | boxes or keypoints of COCO, with masks where objects have a segmentation |
    | .csv; .tsv or .txt, separated by tabs | classes, numbers or text; see `tables.interpreted` |
    | folder of .xml | boxes of Pascal VOC |
    | folder of .txt | boxes, outlines (boxes with masks) or keypoints of YOLO |
    | folder of .png | masks |

    Boxes, points and masks belong to images that are turned as their EXIF orientation says, if `how.exif`. Where a label file
    says width and height, and they are those of the image before it is turned, they are turned with the image.

    Args:
        path: a label file, or a folder of them.
        images: image files, in the order of the samples.
        how: the preprocessing of the images, which moves boxes, points and masks as well.
        task: name of the task; None: the form of the labels says it. See `tables.interpreted`.
        keypoints: whether objects are read with their keypoints; so they are for the task `keypoints`.

    Raises:
        DataError: the labels cannot be read, or an image has none (of YOLO: all of them have none).
    """
    place, keypoints = Path(path), keypoints or task == "keypoints"
    if place.is_dir():
        return _of_folder(place, images, how, keypoints)
    if not place.is_file():
        raise DataError("no such labels", where=str(place), hint="check the path of the labels")
    if place.suffix.lower() == ".json":
        return read_coco(place, images, how, keypoints=keypoints)
    if place.suffix.lower() in TABLES:
        return read_table(place, images, task)
    raise DataError(f"labels of type {place.suffix or 'none'} are not known", where=str(place), hint=f"give {KNOWN}")


def _of_folder(folder: Path, images: Sequence[Path], how: Preprocess, keypoints: bool) -> Labels:
    """Read a folder of label files."""
    stems = {image.stem for image in images}
    files: dict[str, list[Path]] = {suffix: [] for suffix in LABEL_SUFFIXES}
    for root, _, names in os.walk(folder):
        for name in sorted(names):
            file = Path(root) / name
            if file.suffix.lower() in files and name != LISTED:
                files[file.suffix.lower()].append(file)
    own = {image.resolve() for image in images if image.suffix.lower() == ".png"}
    files[".png"] = [file for file in files[".png"] if not own or file.resolve() not in own]
    kinds = [suffix for suffix in LABEL_SUFFIXES if any(file.stem in stems for file in files[suffix])]
    if len(kinds) > 1:
        raise DataError(
            "the folder holds labels in several forms",
            where=str(folder),
            why=f"images have {' and '.join(kinds)} of their names",
            hint="give a folder with one form",
        )
    kind = next(iter(kinds), None)
    if kind is None:
        some = [str(len(found)) + f" {suffix}" for suffix, found in files.items() if found]
        raise DataError(
            "the folder holds no labels of the images",
            where=str(folder),
            why=f"it has {' and '.join(some) or 'no .xml, .txt or .png'}, none with the name of an image such as {images[0].name}",
            hint=f"give {KNOWN}",
        )
    if kind == ".xml":
        return read_voc(folder, files[kind], images, how)
    if kind == ".txt":
        return read_yolo(folder, files[kind], images, how, keypoints=keypoints)
    return read_masks(folder, files[kind], images, how)
