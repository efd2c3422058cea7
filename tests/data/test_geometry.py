"""Labels move as their images do."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from onnxprune.data.dataset import load_data
from onnxprune.data.geometry import Geometry, geometry
from onnxprune.data.images import geometries, read_image
from onnxprune.data.input_spec import InputSpec
from onnxprune.data.preprocess import Preprocess, load_preprocess
from onnxprune.errors import DataError

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIDES = st.integers(24, 90)
EXACT = SIDES | st.tuples(SIDES, SIDES)
ORIENTATION = 0x0112


def ways(interpolations: tuple[str, ...]) -> st.SearchStrategy[Preprocess]:
    sizes = st.one_of(
        st.just({}),
        st.builds(lambda side: {"resize": side}, SIDES),
        st.builds(lambda side: {"crop": side}, st.integers(16, 24)),
        st.builds(lambda side, less: {"resize": side, "crop": side - less}, SIDES, st.integers(0, 9)),
        st.builds(lambda sides: {"stretch": sides}, EXACT),
        st.builds(lambda sides, value: {"letterbox": sides, "pad_value": value}, EXACT, st.sampled_from([0, 114])),
    )
    rest = st.fixed_dictionaries(
        {"pad": st.integers(0, 3), "exif": st.booleans(), "interpolation": st.sampled_from(interpolations)}
    )
    return st.builds(lambda size, more: Preprocess(**size, **more, color="L"), sizes, rest)


def saved(pixels: np.ndarray, orientation: int, path: Path) -> Path:
    image = Image.fromarray(pixels)
    tags = image.getexif()
    tags[ORIENTATION] = orientation
    image.save(path, exif=tags)
    return path


def as_input(path: Path, how: Preprocess) -> np.ndarray:
    return how.apply(read_image(path, how)[None])[0, 0]


@QUICK
@given(
    how=ways(("bilinear", "nearest")),
    size=st.tuples(SIDES, SIDES),
    orientation=st.integers(1, 8),
    share=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_a_box_of_pixels_is_where_its_box_is_moved_to(how, size, orientation, share, tmp_path):
    (width, height), (a, b, c, d) = size, share
    x1, y1 = int(a * (width - 8)), int(b * (height - 8))
    x2, y2 = x1 + 8 + int(c * (width - 8 - x1)), y1 + 8 + int(d * (height - 8 - y1))
    pixels = np.zeros((height, width), np.uint8)
    pixels[y1:y2, x1:x2] = 255
    path = saved(pixels, orientation, tmp_path / "a.png")
    shown = as_input(path, how)
    (place,) = geometries([path], how)
    (box,), (kept,) = place.boxes(np.array([[x1, y1, x2, y2]], float))
    assert shown.shape == (place.height, place.width)
    rows, columns = (np.flatnonzero((shown > 127).any(axis=axis)) for axis in (1, 0))
    if kept:
        seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(box, seen, atol=1.01)
    else:
        assert rows.size * columns.size <= max(0.1 * (x2 - x1) * (y2 - y1) * place.scale_x * place.scale_y, 0) + 2 * 90


@QUICK
@given(how=ways(("nearest",)), size=st.tuples(SIDES, SIDES), orientation=st.integers(1, 8), seed=st.integers(0, 99))
def test_a_mask_is_resized_as_an_image_is(how, size, orientation, seed, tmp_path):
    pixels = np.random.default_rng(seed).integers(0, 200, size[::-1], dtype=np.uint8)
    path = saved(pixels, orientation, tmp_path / "a.png")
    (place,) = geometries([path], how)
    mask, shown = place.mask(pixels), as_input(path, how)
    left, top, right, bottom = place.picture
    inside = np.zeros(mask.shape, bool)
    inside[top:bottom, left:right] = True
    assert (mask == 255).sum() == (~inside).sum()
    np.testing.assert_array_equal(mask[inside], shown[inside])
    assert set(np.unique(shown[~inside])) <= {0, how.pad_value}


def reference_letterbox(height: int, width: int, new: tuple[int, int]) -> tuple[int, ...]:
    """`LetterBox` of ultralytics 8.3: size without padding, top, bottom, left, right."""
    r = min(new[0] / height, new[1] / width)
    unpadded = round(width * r), round(height * r)
    dw, dh = (new[1] - unpadded[0]) / 2, (new[0] - unpadded[1]) / 2
    return (*unpadded, round(dh - 0.1), round(dh + 0.1), round(dw - 0.1), round(dw + 0.1))


@given(st.integers(20, 900), st.integers(20, 900), st.tuples(st.integers(32, 640), st.integers(32, 640)))
def test_letterbox_rounds_as_ultralytics_does(height, width, room):
    wide, high, top, bottom, left, right = reference_letterbox(height, width, room)
    place = geometry(Preprocess(letterbox=room), (width, height))
    if min(wide, high) > 0:
        assert place.resized == (wide, high)
        assert (place.shift_x, place.shift_y) == (left, top)
        assert (place.width - wide - left, place.height - high - top) == (right, bottom)
    assert (place.height, place.width) == room


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("color", ["RGB", "BGR", "L"])
def test_letterbox_pads_in_every_color(layout, color, tmp_path):
    Image.new("RGB", (8, 4), (200, 200, 200)).save(tmp_path / "a.png")
    how = Preprocess(letterbox=(8, 8), pad_value=7, color=color, layout=layout)
    pixels = read_image(tmp_path / "a.png", how)
    rows = pixels if layout == "NHWC" else np.moveaxis(pixels, 0, 2)
    assert rows.shape == (8, 8, 1 if color == "L" else 3)
    assert (rows[:2] == 7).all()
    assert (rows[2:6] == 200).all()
    assert (rows[6:] == 7).all()


def test_stretch_is_height_and_width(tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    for n, size in enumerate([(10, 8), (5, 20)]):
        Image.new("RGB", size).save(folder / f"{n}.png")
    spec = (InputSpec("x", np.dtype(np.float32), (None, 3, None, None)),)
    assert load_data(folder, spec, Preprocess(stretch=[6, 12])).rows(0, 2)["x"].shape == (2, 3, 6, 12)
    assert load_data(folder, spec, Preprocess(stretch=6)).rows(0, 2)["x"].shape == (2, 3, 6, 6)


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((10, 10, 20, 20), True),
        ((0, 10, 10, 20), False),  # outside
        ((0, 10, 10.9, 20), False),  # 9 % of 10.9
        ((0, 10, 11.5, 20), True),
        ((20, 20, 20.5, 30), False),  # thinner than a pixel
        ((-50, -50, 90, 90), True),
    ],
)
def test_boxes_are_dropped_by_what_is_left_of_them(box, kept):
    place = geometry(Preprocess(crop=20), (40, 40))
    (moved,), (found,) = place.boxes(np.array([box], float))
    assert found == kept
    assert (moved >= 0).all()
    assert (moved <= 20).all()
    assert place.boxes(np.zeros((0, 4)))[0].shape == (0, 4)


def test_boxes_are_clipped_to_the_picture_not_to_its_padding():
    place = geometry(Preprocess(letterbox=32, pad=1), (32, 16))
    assert place.picture == (1, 9, 33, 25)
    assert place.boxes(np.array([[-5.0, -5, 99, 99]]))[0].tolist() == [[1, 9, 33, 25]]
    assert place.points(np.array([[[0.0, 0.0]]])).tolist() == [[[1, 9]]]


@pytest.mark.parametrize("orientation", range(10))
def test_orientation_counts_only_where_images_are_turned(orientation):
    turned, plain = (geometry(Preprocess(exif=exif), (30, 20), orientation) for exif in (True, False))
    assert isinstance(plain, Geometry)
    assert plain.stored == turned.stored == (30, 20)
    assert plain.source == (30, 20)
    assert turned.source == ((20, 30) if orientation in (5, 6, 7, 8) else (30, 20))
    upright = np.array([[2.0, 3.0]])
    np.testing.assert_array_equal(turned.points(upright, upright=True), upright)


@pytest.mark.parametrize("suffix", ["jpg", "tif", "webp", "png"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_geometry_of_a_file_is_that_of_its_pixels(suffix, orientation, tmp_path):
    pixels = np.zeros((20, 30), np.uint8)
    path = saved(pixels, orientation, tmp_path / f"a.{suffix}")
    (place,) = geometries([path], Preprocess())
    assert read_image(path, Preprocess()).shape == (3, place.height, place.width)


def test_files_that_cannot_be_measured_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="an image cannot be read") as caught:
        geometries([tmp_path / "a.png"], Preprocess())
    assert caught.value.where.endswith("a.png")
    Image.new("L", (8, 4)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="smaller than the crop") as caught:
        geometries([tmp_path / "b.png"], Preprocess(crop=5))
    assert caught.value.where.endswith("b.png")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"stretch": 8, "crop": 8}, "'stretch' and 'crop' exclude each other"),
        ({"letterbox": 8, "resize": 8}, "'letterbox' and 'resize' exclude each other"),
        ({"letterbox": 8, "stretch": 8}, "'stretch' and 'letterbox' exclude each other"),
        ({"stretch": 0}, "'stretch' has a wrong value"),
        ({"stretch": (8, 8, 8)}, "'stretch' has a wrong value"),
        ({"letterbox": (8, 2.5)}, "'letterbox' has a wrong value"),
        ({"letterbox": True}, "'letterbox' has a wrong value"),
        ({"letterbox": 8, "pad_value": 256}, "'pad_value' has a wrong value"),
        ({"pad_value": 1}, "'pad_value' has a wrong value"),
    ],
    ids=str,
)
def test_sizes_that_contradict_each_other_are_refused(given, says):
    with pytest.raises(DataError, match=says) as caught:
        Preprocess(**given)
    assert caught.value.hint


def test_sizes_of_a_file(tmp_path):
    path = tmp_path / "how.toml"
    path.write_text("[image]\nletterbox = [48, 64]\npad_value = 0\n")
    how = load_preprocess(str(path))
    assert how == Preprocess(letterbox=(48, 64), pad_value=0)
    assert {"stretch", "letterbox", "pad_value"} <= {one.name for one in fields(Preprocess)}
    assert hash(how) == hash(Preprocess(letterbox=np.array([48, 64]), pad_value=0))
