"""What is said of label files that hold other things than they seem to."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxprune.data.labels.reading import read_labels
from onnxprune.data.labels.values import Labels
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError, DataWarning

N = 4


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / f"{n}.png" for n in range(N)]
    for path in paths:
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(path)
    return paths


def content() -> dict[str, Any]:
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 30, "height": 20} for n in range(N)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "iscrowd": 0, "bbox": [10 + n, 8, 8, 6]} for n in range(N)
        ],
        "categories": [{"id": 1, "name": "one"}],
    }


def read(found: dict[str, Any], images: list[Path]) -> tuple[Labels, list[str]]:
    path = images[0].parent.parent / "coco.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DataWarning)
        labels = read_labels(path, images, Preprocess())
    return labels, [str(one.message) for one in told]


def test_a_right_file_is_not_remarked(images: list[Path]) -> None:
    labels, told = read(content(), images)
    assert told == []
    assert [len(rows) for rows in labels.values] == [1] * N


def test_images_with_one_id_are_refused(images: list[Path]) -> None:
    found = content()
    for one in found["images"]:
        one["id"] = 0
    with pytest.raises(DataError, match="not valid") as error:
        read(found, images)
    assert "3 of its images have an id that another one has" in error.value.why


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image_id": 99}, "1 of 4 annotations are of an image that the file does not list"),
        ({"bbox": [100, 100, 5, 5]}, "1 of 4 boxes lie outside their images"),
        ({"bbox": [10, 8, 25, 19]}, "1 of 4 boxes reach beyond their images: COCO gives x, y, width, height"),
    ],
)
def test_what_is_left_out_is_counted(change: dict[str, Any], told: str, images: list[Path]) -> None:
    found = content()
    found["annotations"][0].update(change)
    assert [told in text for text in read(found, images)[1]] == [True]


def test_objects_that_are_there_twice_are_counted(images: list[Path]) -> None:
    found = content()
    found["annotations"] += copy.deepcopy(found["annotations"])
    assert ["4 of 8 annotations are there twice" in text for text in read(found, images)[1]] == [True]


def test_files_of_few_images_are_remarked(images: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.warns(DataWarning, match="3 of 4 images have no label file"):
        read_labels(folder, images, Preprocess())


def test_a_folder_with_labels_in_two_forms_is_refused(images: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(folder / "0.png")
    with pytest.raises(DataError, match="several forms"):
        read_labels(folder, images, Preprocess())


def test_boxes_outside_are_counted_where_the_file_says_no_sizes(images: list[Path]) -> None:
    found = content()
    for one in found["images"]:
        del one["width"], one["height"]
    found["annotations"][0]["bbox"] = [100, 100, 5, 5]
    assert ["1 of 4 boxes lie outside their images" in text for text in read(found, images)[1]] == [True]


VOC = "<annotation><object><name>a</name><bndbox><xmin>{}</xmin><ymin>3</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox></object></annotation>"


def test_boxes_of_voc_outside_are_counted(images: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    for number in range(N):
        (folder / f"{number}.xml").write_text(VOC.format(*((100, 110) if number == 1 else (3, 12))))
    with pytest.warns(DataWarning) as told:
        labels = read_labels(folder, images, Preprocess())
    assert [str(one.message).partition(": ")[2] for one in told] == [
        "1 of 4 boxes lie outside their images, and are left out"
    ]
    assert [len(rows) for rows in labels.values] == [1, 0, 1, 1]


def test_objects_of_yolo_that_are_there_twice_are_counted(images: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    for number in range(N):
        (folder / f"{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n" * 2)
    with pytest.warns(DataWarning, match="4 of 8 annotations are there twice"):
        read_labels(folder, images, Preprocess())


def test_a_class_of_yolo_that_no_model_has_is_refused(images: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "0.txt").write_text("100000000000000000000 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match="not valid") as error:
        read_labels(folder, images[:1], Preprocess())
    assert "a class is larger than 2147483647" in error.value.why


@pytest.mark.parametrize("task", [None, "classify", "embed"])
def test_a_class_number_of_a_table_beyond_64_bits_is_named(
    task: str | None, images: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(f"{image.name},{10**23 if image is images[2] else 1}" for image in images))
    with pytest.raises(DataError, match="not valid") as error:
        read_labels(path, images, Preprocess(), task=task)
    assert error.value.why == f"a label of row 3 is {10**23}, beyond 64 bits"
