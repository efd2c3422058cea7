"""Label files of every format say the same of the same images."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxprune.data.array_labels import as_labels
from onnxprune.data.dataset import load_data
from onnxprune.data.images import images_in
from onnxprune.data.input_spec import InputSpec
from onnxprune.data.labels.reading import read_labels
from onnxprune.data.labels.values import Files, npz_boxes, object_array
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError

PLAIN = Preprocess()
NAMES = ("cat", "dog", "owl")
SIZES = {"a": (40, 30), "b": (20, 50), "sub/a": (32, 32)}
TRUTH = {
    "a": [(2, 4, 12, 14, 0, 0), (5, 5, 38, 29, 2, 1)],
    "b": [],
    "sub/a": [(1, 2, 31, 30, 1, 0)],
}
"""Boxes of images of some sizes: x1, y1, x2, y2, class, crowd."""
POINTS = {"a": [(3, 5, 2, 11, 13, 1), (6, 6, 2, 0, 0, 0)], "b": [], "sub/a": [(2, 3, 1, 30, 29, 2)]}
SPEC = (InputSpec("x", np.dtype(np.float32), (None, 3, None, None)),)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name, size in SIZES.items():
        path = folder / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (9, 9, 9)).save(path)
    return folder


def files_of(photos: Path) -> list[Path]:
    return [photos / f"{name}.jpg" for name in SIZES]


def coco(path: Path, truth=TRUTH, sizes=SIZES, **more: object) -> Path:
    ids = {0: 3, 1: 17, 2: 90}
    objects = [
        {
            "id": 10 * n + k,
            "image_id": 100 - n,
            "category_id": ids[c],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "iscrowd": crowd,
            "keypoints": list(POINTS[name][k]),
        }
        for n, (name, boxes) in enumerate(truth.items())
        for k, (x1, y1, x2, y2, c, crowd) in enumerate(boxes)
    ]
    content = {
        "images": [
            {"id": 100 - n, "file_name": f"{name}.jpg", "width": w, "height": h}
            for n, (name, (w, h)) in enumerate(sizes.items())
        ],
        "annotations": objects[::-1][::-1],
        "categories": [{"id": ids[c], "name": NAMES[c]} for c in (2, 0, 1)],
    }
    path.write_text(json.dumps(content | more))
    return path


def yolo(folder: Path, truth=TRUTH, *, points: bool = False) -> Path:
    for name, boxes in truth.items():
        w, h = SIZES[name]
        lines = []
        for k, (x1, y1, x2, y2, c, _) in enumerate(boxes):
            line = [c, (x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h]
            for x, y, seen in np.reshape(POINTS[name][k], (-1, 3)) if points else ():
                line += [x / w, y / h, seen]
            lines.append(" ".join(f"{v:.9g}" for v in line))
        path = folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        if lines or points:
            path.write_text("\n".join(lines) + "\n")
    (folder / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return folder


def voc(folder: Path, truth=TRUTH, start: int = 1) -> Path:
    for name, boxes in truth.items():
        w, h = SIZES[name]
        objects = "".join(
            f"<object><name>{NAMES[c]}</name><difficult>{hard}</difficult><bndbox><xmin>{x1 + start}</xmin>"
            f"<ymin>{y1 + start}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for x1, y1, x2, y2, c, hard in boxes
        )
        path = folder / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = f"<size><width>{w}</width><height>{h}</height><depth>3</depth></size>"
        path.write_text(f"<annotation>{size}{objects}</annotation>")
    return folder


def assert_truth(values: np.ndarray, *, crowds: bool = True) -> None:
    assert values.shape == (len(TRUTH),)
    for found, boxes in zip(values, TRUTH.values(), strict=True):
        wanted = np.array(boxes, float).reshape(-1, 6)
        wanted[:, 5] *= crowds
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, wanted, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------------ boxes


@pytest.mark.parametrize("form", ["coco", "yolo", "voc", "npz"])
def test_boxes_come_back_from_every_format(form, photos, tmp_path):
    if form == "npz":
        padded = np.full((3, 4, 6), np.nan)
        for rows, boxes in zip(padded, TRUTH.values(), strict=True):
            rows[: len(boxes)] = np.reshape(boxes, (-1, 6))
        assert_truth(npz_boxes(padded))
        assert_truth(npz_boxes(np.where(np.isnan(padded), -1, padded)))
        assert_truth(npz_boxes(npz_boxes(padded)))
        assert_truth(npz_boxes(padded[:, :, :5]), crowds=False)
        return
    path = {"coco": coco, "yolo": yolo, "voc": voc}[form](tmp_path / ("c.json" if form == "coco" else "labels"))
    found = read_labels(path, files_of(photos), PLAIN)
    assert (found.kind, found.classes) == ("boxes", NAMES)
    assert_truth(found.values, crowds=form != "yolo")
    if form != "voc":  # the class of a part of the images is that of all
        assert read_labels(path, files_of(photos)[2:], PLAIN).values[0][0, 4] == 1


@pytest.mark.parametrize("form", ["coco", "yolo", "voc"])
def test_boxes_move_with_their_images(form, photos, tmp_path):
    path = {"coco": coco, "yolo": yolo, "voc": voc}[form](tmp_path / ("c.json" if form == "coco" else "labels"))
    found = read_labels(path, files_of(photos), Preprocess(letterbox=(60, 80), pad=1)).values
    np.testing.assert_allclose(found[0][0, :4], [5, 9, 25, 29], atol=1e-6)
    np.testing.assert_allclose(
        found[2][0, :4], [10 + 1 + 60 / 32, 1 + 120 / 32, 10 + 1 + 31 * 60 / 32, 1 + 30 * 60 / 32]
    )


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_keypoints(form, photos, tmp_path):
    path = coco(tmp_path / "c.json") if form == "coco" else yolo(tmp_path / "labels", points=True)
    found = read_labels(path, files_of(photos), PLAIN, keypoints=True)
    assert found.kind == "keypoints"
    for rows, points in zip(found.values, POINTS.values(), strict=True):
        assert rows.shape == (len(points), 12)
        np.testing.assert_allclose(rows[:, 6:], np.reshape(points, (-1, 6)), atol=1e-6)
    assert read_labels(path, files_of(photos), PLAIN, task="keypoints").kind == "keypoints"
    cropped = read_labels(path, files_of(photos)[:1], Preprocess(crop=30), keypoints=True).values[0]
    np.testing.assert_allclose(cropped[0, 6:], [0, 0, 0, 6, 13, 1], atol=1e-6)  # the first point lies outside


def test_keypoints_that_some_objects_lack(photos, tmp_path):
    path = coco(tmp_path / "c.json")
    content = json.loads(path.read_text())
    del content["annotations"][0]["keypoints"]
    path.write_text(json.dumps(content))
    assert_truth(read_labels(path, files_of(photos), PLAIN).values)
    with pytest.raises(DataError, match="not valid") as caught:
        read_labels(path, files_of(photos), PLAIN, keypoints=True)
    assert "keypoints" in caught.value.why


def turned(path: Path, orientation: int) -> None:
    image = Image.open(path)
    tags = image.getexif()
    tags[0x0112] = orientation
    image.save(path, exif=tags)


@pytest.mark.parametrize("form", ["coco", "voc"])
def test_boxes_of_an_image_before_it_is_turned(form, photos, tmp_path):
    """The file says 40 x 30, the image is shown as 30 x 40."""
    path = coco(tmp_path / "c.json") if form == "coco" else voc(tmp_path / "labels")
    turned(photos / "a.jpg", 6)
    (found,) = read_labels(path, files_of(photos)[:1], PLAIN).values
    np.testing.assert_allclose(found[0, :4], [30 - 14, 2, 30 - 4, 12])
    (plain,) = read_labels(path, files_of(photos)[:1], Preprocess(exif=False)).values
    np.testing.assert_allclose(plain[0, :4], [2, 4, 12, 14])


def test_boxes_of_yolo_belong_to_the_upright_image(photos, tmp_path):
    path = yolo(tmp_path / "labels")
    turned(photos / "a.jpg", 6)
    (found,) = read_labels(path, files_of(photos)[:1], PLAIN).values
    np.testing.assert_allclose(found[0, :4] / [30, 40, 30, 40], np.array([2, 4, 12, 14]) / [40, 30, 40, 30])


@pytest.mark.parametrize("form", ["coco", "voc"])
def test_labels_of_other_sizes_are_refused(form, photos, tmp_path):
    path = coco(tmp_path / "c.json") if form == "coco" else voc(tmp_path / "labels")
    Image.new("RGB", (80, 60)).save(photos / "a.jpg")
    with pytest.raises(DataError, match="of another size") as caught:
        read_labels(path, files_of(photos), PLAIN)
    assert "40 x 30" in caught.value.why
    assert "80 x 60" in caught.value.why


def test_coordinates_of_voc_that_start_at_zero(photos, tmp_path):
    truth = TRUTH | {"a": [(0, 0, 12, 14, 0, 0), (5, 5, 38, 29, 2, 1)]}
    found = read_labels(voc(tmp_path / "labels", truth, start=0), files_of(photos), PLAIN)
    np.testing.assert_allclose(found.values[0][0, :4], [0, 0, 12, 14])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_not_expanded(encoding, photos, tmp_path):
    folder = voc(tmp_path / "labels")
    bomb = '<?xml version="1.0" encoding="{}"?><!DOCTYPE a [<!ENTITY b "{}">]><annotation>&b;</annotation>'
    (folder / "a.xml").write_bytes(bomb.format(encoding, "x" * 9).encode(encoding))
    with pytest.raises(DataError, match="not valid") as caught:
        read_labels(folder, files_of(photos), PLAIN)
    assert "entities" in caught.value.why


def test_names_of_yolo_may_be_in_yaml(photos, tmp_path, monkeypatch):
    folder = yolo(tmp_path / "set" / "labels" / "train")
    (folder / "classes.txt").unlink()
    assert read_labels(folder, files_of(photos), PLAIN).classes == ()
    (tmp_path / "set" / "data.yaml").write_text("names: {0: cat, 1: dog, 2: owl}\nnc: 3\n")
    pytest.importorskip("yaml")
    assert read_labels(folder, files_of(photos), PLAIN).classes == NAMES
    (tmp_path / "set" / "data.yaml").write_text("names: [cat, dog]\n")
    with pytest.raises(DataError, match="a class has no name"):
        read_labels(folder, files_of(photos), PLAIN)
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert read_labels(folder, files_of(photos), PLAIN).classes == ()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0 .5 .5 .2", "4 values"),
        ("0 .1 .1 .2 .2 .3 .3 .4", "8 values"),
        ("0 .5 .5 .2 x", "not a number"),
        ("0.5 .5 .5 .2 .2", "no whole number"),
        ("-1 .5 .5 .2 .2", "no whole number"),
        ("0 20 20 10 10", "above 1"),
        ("0 nan .5 .2 .2", "not finite"),
        ("0 .5 .5 .2 .2\n1 .5 .5 .2 .2 .9", "5 or 6 values"),
    ],
)
def test_lines_of_yolo_that_are_wrong(line, says, photos, tmp_path):
    folder = yolo(tmp_path / "labels")
    (folder / "a.txt").write_text(line)
    with pytest.raises(DataError, match="not valid") as caught:
        read_labels(folder, files_of(photos), PLAIN)
    assert says in caught.value.why
    assert caught.value.where.endswith("a.txt")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"annotations": 3}, "no lists"),
        ({"categories": [{"id": 3, "name": "cat"}]}, "not among the categories"),
        ({"annotations": [{"id": 7, "image_id": 100, "category_id": 3}]}, "annotation 7"),
        ({"annotations": [{"id": 7, "image_id": 100, "category_id": 3, "bbox": [1, 1, -5, 3]}]}, "negative"),
        ({"annotations": [{"id": 7, "image_id": 100, "category_id": 3, "bbox": [1, 1, "x", 3]}]}, ""),
        ({"annotations": [{"id": 7}]}, ""),
    ],
    ids=str,
)
def test_coco_that_is_wrong(change, says, photos, tmp_path):
    with pytest.raises(DataError) as caught:
        read_labels(coco(tmp_path / "c.json", **change), files_of(photos), PLAIN)
    assert says in caught.value.why
    assert caught.value.hint


# ------------------------------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_masks(mode, photos, tmp_path):
    folder = tmp_path / "masks"
    truth = []
    for n, (name, (w, h)) in enumerate(SIZES.items()):
        pixels = np.full((h, w), n, np.uint8)
        pixels[:, : w // 2] = 7
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels if mode != "I;16" else pixels.astype(np.uint16) + 300)
        if mode == "P":
            image.putpalette(list(range(256)) * 3)
        image.save(path)
        truth.append(pixels)
    found = read_labels(folder, files_of(photos), Preprocess(stretch=(10, 20)))
    assert (found.kind, found.values.shape) == ("masks", (3, 10, 20))
    base = np.int64(300 * (mode == "I;16"))
    for n in range(3):
        assert (found.values[n][:, :10] == 7 + base).all()
        assert (found.values[n][:, 10:] == n + base).all()
    boxed = read_labels(folder, files_of(photos), Preprocess(letterbox=50)).values
    assert (boxed[1][:, :15] == 255).all()
    with pytest.raises(DataError, match="masks have different sizes"):
        read_labels(folder, files_of(photos), PLAIN)
    turned(photos / "a.jpg", 3)
    upright = read_labels(folder, files_of(photos)[:1], PLAIN).values[0]
    np.testing.assert_array_equal(upright, truth[0] + base)


def test_masks_that_are_wrong(photos, tmp_path):
    folder = tmp_path / "masks"
    (folder / "sub").mkdir(parents=True)
    for name, size in SIZES.items():
        Image.new("RGB", size).save(folder / f"{name}.png")
    with pytest.raises(DataError, match="a mask has colors"):
        read_labels(folder, files_of(photos), Preprocess(stretch=8))
    for name in SIZES:
        Image.new("L", (9, 9)).save(folder / f"{name}.png")
    with pytest.raises(DataError, match="of another size"):
        read_labels(folder, files_of(photos), Preprocess(stretch=8))


def test_images_are_not_their_own_masks(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="holds no labels of the images"):
        read_labels(tmp_path, [tmp_path / "a.png"], PLAIN)


# ----------------------------------------------------------------------------------------------------------------- tables

IMAGES = [Path("x/0.jpg"), Path("x/1.jpg"), Path("x/2.jpg"), Path("x/3.jpg")]


def table(path: Path, rows: list[str], header: str = "", separator: str = ",") -> Path:
    lines = [header] * bool(header) + [f"{n}.jpg{separator}{row}" for n, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("header", ["", "file,label"])
@pytest.mark.parametrize(
    ("rows", "task", "kind", "values", "classes"),
    [
        (["3", "0", "1", "3"], None, "classes", [3, 0, 1, 3], ()),
        (["3", "0", "1", "3"], "classify", "classes", [3, 0, 1, 3], ()),
        (["3", "-1", "1", "3"], "regress", "numbers", [3.0, -1.0, 1.0, 3.0], ()),
        (["3", "0.5", "1e3", "-2"], None, "numbers", [3, 0.5, 1000, -2], ()),
        (["3", "0", "1", "03"], "ctc", "text", ["3", "0", "1", "03"], ()),
        (["owl", "cat", "owl", "cat"], None, "classes", [1, 0, 1, 0], ("cat", "owl")),
        (["owl", "cat", "dog", "cat"], "classify", "classes", [2, 0, 1, 0], NAMES),
        (["owl", "cat", "dog", "cat"], None, "text", ["owl", "cat", "dog", "cat"], ()),
        (["owl", "", "owl", "owl"], "ctc", "text", ["owl", "", "owl", "owl"], ()),
        (['"a, b"', "c", "d", "e"], None, "text", ["a, b", "c", "d", "e"], ()),
    ],
)
def test_one_column(rows, task, kind, values, classes, header, tmp_path):
    found = read_labels(table(tmp_path / "t.csv", rows, header), IMAGES[::-1], PLAIN, task=task)
    assert (found.kind, found.classes) == (kind, classes)
    assert found.values.tolist() == values[::-1]
    assert found.values.dtype.kind == {"classes": "i", "numbers": "f", "text": "O"}[kind]


@pytest.mark.parametrize("task", [None, "multilabel"])
def test_several_columns_of_truth_values(task, tmp_path):
    path = table(tmp_path / "t.csv", ["0,1", "1,1", "0,0", "1,0"], "file,cat,dog")
    found = read_labels(path, IMAGES, PLAIN, task=task)
    assert (found.kind, found.classes) == ("classes", ("cat", "dog"))
    assert found.values.tolist() == [[0, 1], [1, 1], [0, 0], [1, 0]]
    assert found.values.dtype == np.int64


def test_several_columns_of_numbers(tmp_path):
    path = table(tmp_path / "t.csv", ["0,1.5", "1,1", "0,0", "1,0"])
    found = read_labels(path, IMAGES, PLAIN)
    assert (found.kind, found.values.shape) == ("numbers", (4, 2))


@pytest.mark.parametrize("suffix", ["txt", "tsv"])
def test_texts_after_a_tab(suffix, tmp_path):
    texts = ['say "a, b"', "Zeile\u2028mit Trenner", "4711", "a b"]
    found = read_labels(table(tmp_path / f"t.{suffix}", texts, separator="\t"), IMAGES, PLAIN)
    assert (found.kind, found.values.tolist()) == ("text", texts)


def test_names_without_a_suffix_and_with_folders(tmp_path):
    (tmp_path / "t.csv").write_text("id;label\n3;5\n1;6\nother/2.jpg;7\n/old/x/0.jpg;8\n9;9\n", encoding="utf-8-sig")
    assert read_labels(tmp_path / "t.csv", IMAGES, PLAIN).values.tolist() == [8, 6, 7, 5]


@pytest.mark.parametrize(
    ("rows", "task", "says"),
    [
        (["1", "", "1", "2"], "classify", "label of row 2 is empty"),
        (["1", "1,2", "1", "2"], None, "row 2 has another number of cells"),
        (["1,2", "1,2", "1,2", "2,2"], "classify", "2 columns"),
        (["1,a", "1,2", "1,2", "2,2"], None, "not a number"),
        (["1", "a", "1", "2"], "regress", "not a number"),
        (["1", "nan", "1", "2"], None, "NaN"),
        (["1", "0.5", "1", "2"], "classify", "not a whole number"),
        (["1,2", "1,0", "1,0", "0,0"], "multilabel", "neither 0 nor 1"),
        (["1", "1", "1", "1"], "detect", "no labels of the task detect"),
    ],
)
def test_tables_that_are_wrong(rows, task, says, tmp_path):
    with pytest.raises(DataError, match="not valid") as caught:
        read_labels(table(tmp_path / "t.csv", rows), IMAGES, PLAIN, task=task)
    assert says in caught.value.why


# ---------------------------------------------------------------------------------------------------------- names of files


@pytest.mark.parametrize("form", ["coco", "voc", "masks", "csv"])
def test_images_without_labels_are_named(form, photos, tmp_path):
    for n in range(4):
        Image.new("RGB", (8, 8)).save(photos / f"new{n}.jpg")
    images = [*files_of(photos), *sorted(photos.glob("new*"))]
    path = tmp_path / "labels"
    if form == "masks":
        path.mkdir()
        Image.new("L", (40, 30)).save(path / "b.png")
    elif form == "csv":
        path = tmp_path / "t.csv"
        path.write_text("".join(f"{name}.jpg,1\n" for name in SIZES))
    else:
        path = coco(tmp_path / "c.json") if form == "coco" else voc(path)
    with pytest.raises(DataError, match=f"{6 if form == 'masks' else 4} of 7 images have no labels") as caught:
        read_labels(path, images, PLAIN)
    assert "and 1 more" in caught.value.why or "and 3 more" in caught.value.why
    assert caught.value.why.count(".jpg") == 3


def test_folder_without_any_label_of_the_images(photos, tmp_path):
    folder = yolo(tmp_path / "labels")
    for path in folder.rglob("*.txt"):
        path.rename(path.with_name(f"other-{path.name}"))
    with pytest.raises(DataError, match="holds no labels of the images"):
        read_labels(folder, files_of(photos), PLAIN)


@pytest.mark.parametrize("name", ["l.json", "l.parquet"])
def test_files_that_are_missing_or_of_another_type(name, tmp_path):
    with pytest.raises(DataError, match="no such labels"):
        read_labels(tmp_path / name, IMAGES, PLAIN)
    (tmp_path / name).write_text("{")
    with pytest.raises(DataError, match=r"cannot be read|are not known"):
        read_labels(tmp_path / name, IMAGES, PLAIN)


def test_paths_are_compared_from_their_end():
    files = Files(["train/1.jpg", "val/1.jpg", "old/val/2.jpg", "3", "./4.jpg", r"a\5.jpg"], "f")
    found = [
        files.find(Path(f"/d/{name}"))
        for name in ("val/1.jpg", "train/1.jpg", "val/2.jpg", "3.png", "4.jpg", "a/5.jpg")
    ]
    assert found == [1, 0, 2, 3, 4, 5]
    assert files.find(Path("/d/6.jpg")) is None
    with pytest.raises(DataError, match="does not tell images apart"):
        files.find(Path("/d/1.jpg"))
    assert Files(["1.jpg", "sub/1.jpg"], "f").find(Path("/d/1.jpg")) == 0
    with pytest.raises(DataError, match="names an image twice"):
        Files(["1.jpg", "./1.jpg"], "f")
    with pytest.raises(DataError, match="a label fits two images"):
        Files(["1.jpg"], "f").numbers([Path("a/1.jpg"), Path("b/1.jpg")])


# ------------------------------------------------------------------------------------------------------------ in the data


@pytest.mark.parametrize("inside", [False, True])
def test_labels_of_a_folder_with_subfolders(inside, photos, tmp_path):
    data = load_data(photos, SPEC, Preprocess(stretch=16), labels=coco(tmp_path / "c.json"))
    assert [path.relative_to(photos).as_posix() for path in data.pictures] == ["a.jpg", "b.jpg", "sub/a.jpg"]
    assert data.classes == NAMES
    assert data.class_labels is None
    assert [len(boxes) for boxes in data.labels] == [2, 0, 1]
    assert [len(boxes) for boxes in data.take(np.array([2, 0])).labels] == [1, 2]
    masks = (photos if inside else tmp_path) / "masks"
    for name, size in SIZES.items():
        (masks / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size).save(masks / f"{name}.png")
    assert load_data(photos, SPEC, Preprocess(stretch=16), labels=masks).labels.shape == (3, 16, 16)


def test_a_label_file_wins_over_class_folders(photos, tmp_path):
    for name in ("a", "b"):
        (photos / f"{name}.jpg").rename(photos / "sub" / f"_{name}.jpg")
    assert load_data(photos, SPEC, Preprocess(stretch=8)).labels.tolist() == [0, 0, 0]
    (tmp_path / "t.csv").write_text("_a.jpg,owl\n_b.jpg,cat\na.jpg,owl\nz.jpg,cat\n")
    data = load_data(photos, SPEC, Preprocess(stretch=8), labels=tmp_path / "t.csv")
    assert (data.labels.tolist(), data.classes) == ([1, 0, 1], ("cat", "owl"))
    assert data.class_labels is data.labels
    assert load_data(photos, SPEC, Preprocess(stretch=8), labels=[4, 5, 6]).labels.tolist() == [4, 5, 6]


def test_images_left_out_need_no_labels(photos, tmp_path):
    (photos / "bad.jpg").write_bytes(b"")
    data = load_data(photos, SPEC, Preprocess(stretch=8, skip_bad=True), labels=coco(tmp_path / "c.json"))
    assert len(data.labels) == len(data) == 3


X = np.zeros((4, 3, 8, 8), np.float32)


@pytest.mark.parametrize("form", ["npy", "csv", "header", "array", "list", "mapping", "batches"])
def test_labels_of_arrays(form, tmp_path):
    given: object = np.array([2, 0, 1, 1])
    source: object = X
    if form == "npy":
        np.save(tmp_path / "l.npy", given)
        given = tmp_path / "l.npy"
    elif form in ("csv", "header"):
        (tmp_path / "l.csv").write_text("label\n" * (form == "header") + "2\n0\n1\n1\n")
        given = str(tmp_path / "l.csv")
    elif form == "list":
        given = [2, 0, 1, 1]
    elif form == "mapping":
        source, given = {"x": X, "labels": given}, None
    elif form == "batches":
        source = [X[:3], X[3:]]
    data = load_data(source, SPEC, labels=given)
    assert data.labels.tolist() == [2, 0, 1, 1]
    assert data.class_labels is data.labels


@pytest.mark.parametrize(
    ("labels", "task", "shape", "kind"),
    [
        (np.zeros(4), None, (4,), "f"),
        (np.zeros((4, 1)), None, (4, 1), "f"),
        (np.zeros((4, 1), int), None, (4,), "i"),
        (np.zeros((4, 1), int), "multilabel", (4, 1), "i"),
        (np.array([1, -2, 3, 0]), "regress", (4,), "f"),
        (np.zeros((4, 8, 8), np.uint8), None, (4, 8, 8), "u"),
        (np.full((4, 8, 8), -1), None, (4, 8, 8), "i"),
        (np.ones((4, 5), bool), None, (4, 5), "b"),
        (np.ones(4, bool), None, (4,), "i"),
        (np.array(["a", "b", "", "c"]), None, (4,), "U"),
        (["a", "b", "", "c"], None, (4,), "U"),
        ([(1, 2), (3,), (), (4, 5, 6)], "ctc", (4,), "O"),
        ([np.zeros((n, 6)) for n in range(4)], None, (4,), "O"),
        ([np.zeros((n, 6)) for n in range(4)], "detect", (4,), "O"),
        ([np.zeros((2, 6))] * 4, "detect", (4,), "O"),
        (np.full((4, 2, 5), np.nan), None, (4, 2, 5), "f"),
        (np.full((4, 2, 5), np.nan), "detect", (4,), "O"),
        (np.zeros((4, 2, 9)), "keypoints", (4,), "O"),
    ],
)
def test_labels_of_every_form(labels, task, shape, kind):
    for source, given in (({"x": X, "labels": labels}, None), (X, labels)):
        found = load_data(source, SPEC, labels=given, task=task)
        assert found.labels.shape == shape
        assert found.labels.dtype.kind == kind
        assert (found.class_labels is None) == (len(shape) > 1 or kind != "i")
        assert found.take(np.array([1, 3])).labels.shape == (2, *shape[1:])


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.zeros(3), "labels don't fit"),
        (np.float64(3), "labels don't fit"),
        (np.zeros(4, complex), "labels don't fit"),
        (object_array([None, 1, 2, 3]), "labels don't fit"),
        (object_array(["a", np.array([np.nan]), 2, 3]), "labels don't fit"),
        (np.array([0, 1, np.nan, 2]), "NaN or infinity"),
        (np.full((4, 2, 4), np.nan), "NaN or infinity"),
        (np.full((4, 2, 5), np.inf), "NaN or infinity"),
        (np.array([0, 1, -1, 2]), "a label is negative"),
    ],
)
def test_labels_that_do_not_fit(labels, says):
    with pytest.raises(DataError, match=says) as caught:
        load_data(X, SPEC, labels=labels)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        (np.zeros((4, 2, 4)), "another shape"),
        (object_array(["a", "b", "c", "d"]), "another shape"),
        (np.where(np.arange(5) == 1, np.nan, np.zeros((4, 2, 5))), "a box holds NaN"),
    ],
)
def test_boxes_of_another_shape(boxes, says):
    with pytest.raises(DataError, match=says):
        npz_boxes(boxes)


@pytest.mark.parametrize("name", ["l.npz", "l.npy"])
def test_label_files_of_arrays_that_cannot_be_read(name, tmp_path):
    with pytest.raises(DataError, match="no such labels"):
        load_data(X, SPEC, labels=tmp_path / name)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"cannot be read|do not fit arrays"):
        load_data(X, SPEC, labels=tmp_path / name)
    (tmp_path / "l.csv").write_text("1\n2\n")
    with pytest.raises(DataError, match="not valid") as caught:
        load_data(X, SPEC, labels=tmp_path / "l.csv")
    assert "2 rows" in caught.value.why


def test_arrays_of_one_shape_stay_one_array():
    assert as_labels([np.zeros((2, 6))] * 3).shape == (3, 2, 6)
    assert as_labels([[1, 2], [3, 4]]).shape == (2, 2)


# ------------------------------------------------------------------------------------------------------------------ sizes


def test_reading_takes_time_in_proportion_to_the_images(tmp_path):
    """Every folder has a file of the same name; a search among those of one name would be quadratic."""

    def seconds(n: int) -> float:
        images = [Path(f"/d/{i}/image.jpg") for i in range(n)]
        (tmp_path / "t.csv").write_text("file,label\n" + "".join(f"{i}/image.jpg,{i % 10}\n" for i in range(n)))
        start = time.process_time()
        found = read_labels(tmp_path / "t.csv", images, PLAIN)
        assert found.values[-1] == (n - 1) % 10
        return time.process_time() - start

    assert seconds(40_000) < 40 * max(seconds(4_000), 0.01)


def test_hidden_folders_hold_no_images(photos):
    (photos / ".thumbs").mkdir()
    Image.new("RGB", (8, 8)).save(photos / ".thumbs" / "a.jpg")
    assert len(images_in(photos, deep=True)) == 3
    assert images_in(photos, deep=True, but=photos / "sub") == [photos / "a.jpg", photos / "b.jpg"]
    assert replace(PLAIN, stretch=(4, 4)).stretch == (4, 4)


def test_a_folder_of_masks_is_found_by_another_form_of_its_path(photos, monkeypatch):
    Image.new("L", (8, 8)).save(photos / "sub" / "mask.png")
    monkeypatch.chdir(photos.parent)
    assert len(images_in(Path("photos"), deep=True, but=photos / "sub")) == 2
