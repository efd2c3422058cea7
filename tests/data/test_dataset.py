"""Arrays and images become what the model takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import batches_of
from PIL import Image

from onnxprune.data.dataset import load_data
from onnxprune.data.input_spec import InputSpec, input_specs
from onnxprune.data.preprocess import PRESETS, Preprocess, load_preprocess
from onnxprune.errors import DataError
from onnxprune.graph import io

SPEC = (InputSpec("x", np.dtype(np.float32), (None, 3, 8, 8)),)


def joined(data, size: int = 3) -> np.ndarray:
    return np.concatenate([feeds["x"] for feeds in batches_of(data, size)])


# ---------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("form", ["array", "mapping", "npz", "npy", "NPZ", "string"])
def test_arrays_are_taken_in_every_form(form, images, tmp_path):
    source: object = images
    if form == "mapping":
        source = {"x": images}
    elif form == "npy":
        source = tmp_path / "d.npy"
        np.save(source, images)
    elif form != "array":
        source = tmp_path / ("d.NPZ" if form == "NPZ" else "d.npz")
        with source.open("wb") as stream:
            np.savez(stream, x=images)
        source = str(source) if form == "string" else source
    data = load_data(source, SPEC)
    assert len(data) == 8
    assert data.labels is None
    np.testing.assert_array_equal(joined(data), images)
    assert data.name == (source if form != "string" else Path(source)).name if form[0] in "nN" else data.name


def test_mapping_may_hold_lists_and_more_arrays_than_needed(images):
    data = load_data({"x": images.tolist(), "labels": [0] * 8, "names": np.array(["a"] * 3)}, SPEC)
    np.testing.assert_allclose(joined(data), images)
    assert data.labels.dtype == np.int64
    assert set(batches_of(data, 2)[0]) == {"x"}


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_floats_are_converted(dtype, images):
    feeds = load_data(images.astype(dtype), SPEC).rows(0, 8)["x"]
    assert feeds.dtype == np.float32
    assert feeds.flags.c_contiguous
    np.testing.assert_allclose(feeds, images, atol=2e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64])
def test_labels_of_any_integer_type_are_taken(dtype, images):
    data = load_data({"x": images, "labels": np.arange(8, dtype=dtype)}, SPEC)
    np.testing.assert_array_equal(data.labels, np.arange(8))


def test_input_called_labels_is_an_input():
    spec = (InputSpec("labels", np.dtype(np.float32), (None, 2)),)
    data = load_data({"labels": np.ones((4, 2), np.float32)}, spec)
    assert data.labels is None
    assert data.rows(0, 4)["labels"].shape == (4, 2)


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_batches_cover_every_sample_once(size, images):
    sizes = [len(feeds["x"]) for feeds in batches_of(load_data(images, SPEC), size)]
    assert sum(sizes) == 8
    assert all(n == size for n in sizes[:-1])
    assert 0 < sizes[-1] <= size


def test_dynamic_axes_take_any_size_and_fixed_ones_do_not():
    spec = (InputSpec("x", np.dtype(np.float32), (None, 3, None, None)),)
    assert load_data(np.zeros((2, 3, 5, 7), np.float32), spec).shapes() == {"x": (1, 3, 5, 7)}
    with pytest.raises(DataError, match="another shape") as caught:
        load_data(np.zeros((2, 4, 5, 7), np.float32), spec)
    assert "[3, 'any', 'any']" in caught.value.why


def test_array_for_a_model_of_two_inputs_is_refused(images):
    two = (*SPEC, InputSpec("z", np.dtype(np.float32), (None, 2)))
    with pytest.raises(DataError, match="an array holds one input, the model has 2"):
        load_data(images, two)


def test_inputs_of_a_model(tiny, models):
    assert input_specs(tiny) == SPEC
    (spec,) = input_specs(io.read(models / "resnet.onnx").proto)
    assert (spec.name, spec.dtype, spec.shape) == ("image", np.float32, (None, 1, 28, 28))


@pytest.mark.parametrize(("model", "toml"), [("resnet", "28x28"), ("mobile", "28x28"), ("small", "32x32")])
@pytest.mark.parametrize("name", ["calibration.npz", "evaluation.npz"])
def test_reference_data_fit_the_reference_models(name, model, toml, models):
    specs = input_specs(io.read(models / f"{model}.onnx").proto)
    data = load_data(models / name, specs, str(models / f"{toml}.toml"))
    feeds = data.rows(0, 256)["image"]
    assert abs(feeds.mean()) < 0.2 + (toml == "32x32")  # zeros pad the larger ones
    assert data.labels.shape == (len(data),)


# --------------------------------------------------------------------------------------------- batches from Python

TWO = (*SPEC, InputSpec("z", np.dtype(np.float32), (None, 2)))


class Tensor:
    """What numpy takes for an array, as a tensor of torch."""

    def __init__(self, value: np.ndarray, problem: str = "") -> None:
        self.value, self.problem = value, problem

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        if self.problem:
            raise RuntimeError(self.problem)
        return self.value


@pytest.mark.parametrize("form", ["arrays", "mappings", "pairs", "lists", "singles", "tensors", "mappings with labels"])
@pytest.mark.parametrize("lazy", [False, True])
def test_batches_are_joined(form, lazy, images):
    labels = np.arange(8)
    make = {
        "arrays": lambda x, y: x,
        "mappings": lambda x, y: {"x": x, "name": "ignored"},
        "pairs": lambda x, y: (x, y),
        "lists": lambda x, y: [Tensor(x), Tensor(y)],
        "singles": lambda x, y: [x],
        "tensors": lambda x, y: Tensor(x),
        "mappings with labels": lambda x, y: {"x": x, "labels": y.tolist()},
    }[form]
    batches = [make(images[i : i + 3], labels[i : i + 3]) for i in range(0, 8, 3)]
    data = load_data((batch for batch in batches) if lazy else batches, SPEC)
    np.testing.assert_array_equal(joined(data), images)
    assert data.name == "batches"
    if form in ("pairs", "lists", "mappings with labels"):
        np.testing.assert_array_equal(data.labels, labels)
    else:
        assert data.labels is None


def test_batches_are_preprocessed_and_held_to_the_same_rules(images):
    np.testing.assert_allclose(joined(load_data([images[:4], images[4:]], SPEC, "unit")), images / 255, rtol=1e-6)
    with pytest.raises(DataError, match="holds NaN or infinity"):
        load_data([images, images * np.float32(np.inf)], SPEC)
    with pytest.raises(DataError, match="a label is negative"):
        load_data([(images, np.full(8, -1))], SPEC)


def test_batches_for_several_inputs(images):
    z = np.arange(16, dtype=np.float32).reshape(8, 2)
    data = load_data(({"x": images[i : i + 4], "z": z[i : i + 4]} for i in (0, 4)), TWO)
    np.testing.assert_array_equal(data.rows(0, 8)["z"], z)


@pytest.mark.parametrize(
    ("make", "spec", "says"),
    [
        (lambda x: [], SPEC, "there are no batches"),
        (lambda x: 3, SPEC, "data of type int are not known"),
        (lambda x: None, SPEC, "data of type NoneType are not known"),
        (lambda x: [x, "text"], SPEC, "the form of a batch is not known"),
        (lambda x: [x.tolist()], SPEC, "the form of a batch is not known"),
        (lambda x: [(x, x, x)], SPEC, "the form of a batch is not known"),
        (lambda x: b"ab", SPEC, "the form of a batch is not known"),
        (lambda x: [x, x[:, :2]], SPEC, "the batches of x have different shapes"),
        (lambda x: [(x, np.zeros(8, int)), x], SPEC, "the batches do not have the same arrays"),
        (lambda x: [(x, np.zeros(7, int))], SPEC, "the arrays have no common number of samples"),
        (lambda x: [(x[0], np.int64(3))], SPEC, "the arrays have no common number of samples"),
        (lambda x: [{"image": x}], SPEC, "the arrays have no common number of samples"),
        (lambda x: [x[0], x[1]], SPEC, "input x has another shape"),
        (lambda x: [x], TWO, "batch 0 holds one input, the model has 2"),
        (lambda x: [{"x": x}], TWO, "the data don't have every input"),
        (lambda x: [Tensor(x, "it requires grad")], SPEC, "a batch cannot be read"),
    ],
)
def test_batches_that_do_not_fit(make, spec, says, images):
    with pytest.raises(DataError, match=says) as caught:
        load_data(make(images), spec)
    assert caught.value.hint


def test_an_error_of_the_iterable_itself_is_not_hidden(images):
    def broken():
        yield images
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        load_data(broken(), SPEC)


# --------------------------------------------------------------------------------------------------- preprocessing


def test_steps_come_in_the_order_of_the_fields():
    batch = np.full((1, 1, 2, 2), 10, np.uint8)
    x = Preprocess(pad=1, repeat=2, scale=0.1, mean=(0.5, 0.25), std=(0.5, 0.25)).apply(batch)
    assert x.shape == (1, 2, 4, 4)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x[0, :, 1, 1], [1, 3], rtol=1e-6)
    np.testing.assert_allclose(x[0, :, 0, 0], [-1, -1], rtol=1e-6)  # padded before it is scaled


def test_channels_last():
    batch = np.zeros((1, 2, 2, 3), np.uint8)
    x = Preprocess(layout="NHWC", pad=1, mean=(1, 2, 3)).apply(batch)
    assert x.shape == (1, 4, 4, 3)
    np.testing.assert_allclose(x[0, 0, 0], [-1, -2, -3])


def test_preprocessing_does_not_touch_the_stored_values(images):
    before = images.copy()
    data = load_data(images, SPEC, "unit")
    np.testing.assert_allclose(joined(data), before / 255, rtol=1e-6)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unit", [0, 1, 0.2]),
        ("tf", [-1, 1, -0.6]),
        ("imagenet", [-0.485 / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]),
    ],
)
def test_presets_map_bytes_as_documented(name, expected):
    pixel = np.array([0, 255, 51], np.uint8).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(PRESETS[name].apply(pixel).ravel(), expected, rtol=1e-5)


@pytest.mark.parametrize("batch", [np.zeros(4), np.zeros((4, 5)), np.zeros((4, 5, 6))])
def test_means_that_do_not_fit_are_refused_at_any_rank(batch):
    with pytest.raises(DataError, match="mean or std"):
        Preprocess(mean=(1, 2, 3)).apply(batch)
    assert Preprocess(mean=(1,)).apply(batch).shape == batch.shape


def test_toml_file(tmp_path):
    path = tmp_path / "how.toml"
    path.write_text('[image]\nresize = 40\ncolor = "BGR"\n[array]\nscale = 2\nmean = 1\nstd = [1, 2.5]\n')
    expected = Preprocess(resize=40, color="BGR", scale=2, mean=(1,), std=(1, 2.5))
    assert load_preprocess(str(path)) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"std": 0},
        {"std": (1, -1)},
        {"mean": "abc"},
        {"mean": ()},
        {"scale": None},
        {"scale": float("inf")},
        {"resize": 0},
        {"crop": 2.5},
        {"pad": True},
        {"repeat": 0},
        {"color": "rgb"},
        {"layout": ["NCHW"]},
    ],
    ids=str,
)
def test_preprocess_from_python_is_held_to_the_same_rules(fields):
    with pytest.raises(DataError, match=f"{next(iter(fields))!r} has a wrong value") as caught:
        Preprocess(**fields)
    assert caught.value.hint


def test_preprocess_takes_numpy_numbers_and_lists():
    how = Preprocess(resize=np.int64(4), scale=np.float32(0.5), mean=np.array([1.0, 2.0]), std=[3])
    assert (how.mean, how.std) == ((1.0, 2.0), (3,))


# ---------------------------------------------------------------------------------------------------------- images


@pytest.fixture
def photos(tmp_path) -> Path:
    """Return a folder of 10 x 8 images; every pixel of one has the same colour."""
    folder = tmp_path / "photos"
    for n, name in enumerate(("cat", "dog", "owl")):
        (folder / name).mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (10, 8), (40 * n, 20 * k, 7)).save(folder / name / f"{k}.png")
    return folder


def test_subfolders_are_classes_in_alphabetical_order(photos):
    (photos / ".cache").mkdir()
    (photos / "cat" / "notes.txt").write_text("not an image")
    (photos / "cat" / "0.png").rename(photos / "cat" / "0.PNG")
    data = load_data(photos, SPEC, Preprocess(crop=8))
    assert data.classes == ("cat", "dog", "owl")
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    x = joined(data, 4)
    assert x.shape == (6, 3, 8, 8)
    np.testing.assert_array_equal(x[:, 0, 3, 3], [0, 0, 40, 40, 80, 80])
    np.testing.assert_array_equal(x[:, 1, 3, 3], [0, 20] * 3)


def test_class_without_images_keeps_its_number(photos):
    for path in (photos / "dog").iterdir():
        path.unlink()
    assert load_data(photos, SPEC, Preprocess(crop=8)).labels.tolist() == [0, 0, 2, 2]


def test_images_without_subfolders_have_no_labels(photos):
    data = load_data(photos / "owl", SPEC, Preprocess(crop=8))
    assert (len(data), data.labels, data.classes) == (2, None, ())


@pytest.mark.parametrize(
    ("how", "shape", "pixel"),
    [
        (Preprocess(crop=8), (3, 8, 8), [80, 20, 7]),
        (Preprocess(crop=8, color="BGR"), (3, 8, 8), [7, 20, 80]),
        (Preprocess(crop=8, color="L", repeat=3), (3, 8, 8), [36, 36, 36]),
        (Preprocess(resize=16, crop=8), (3, 8, 8), [80, 20, 7]),
        (Preprocess(crop=4, pad=2, interpolation="nearest"), (3, 8, 8), [80, 20, 7]),
        (Preprocess(crop=8, scale=1 / 10), (3, 8, 8), [8, 2, 0.7]),
    ],
)
def test_image_options(how, shape, pixel, photos):
    x = load_data(photos / "owl", SPEC, how).rows(1, 2)["x"][0]
    assert x.shape == shape
    np.testing.assert_allclose(x[:, 3, 3], pixel, rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "resized"), [((10, 8), (5, 4)), ((8, 16), (4, 8)), ((3, 3), (4, 4)), ((41, 8), (20, 4))]
)
def test_resize_keeps_the_aspect_ratio(size, resized, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    Image.new("RGB", size).save(folder / "a.png")
    spec = (InputSpec("x", np.dtype(np.float32), (None, 3, None, None)),)
    assert load_data(folder, spec, Preprocess(resize=4)).shapes()["x"][2:] == resized[::-1]


def test_crop_is_central(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    pixels = np.zeros((8, 10, 3), np.uint8)
    pixels[2:6, 3:7] = 9
    Image.fromarray(pixels).save(folder / "a.png")
    spec = (InputSpec("x", np.dtype(np.float32), (None, 3, 4, 4)),)
    assert (load_data(folder, spec, Preprocess(crop=4)).rows(0, 1)["x"] == 9).all()


def test_channels_last_images(photos):
    spec = (InputSpec("x", np.dtype(np.float32), (None, 8, 8, 3)),)
    x = load_data(photos, spec, Preprocess(crop=8, layout="NHWC")).rows(5, 6)["x"][0]
    np.testing.assert_array_equal(x[3, 3], [80, 20, 7])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_every_colour_mode_is_read(mode, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    Image.new("RGB", (8, 8)).convert(mode).save(folder / ("a.tif" if mode == "CMYK" else "a.png"))
    assert load_data(folder, SPEC, Preprocess()).rows(0, 1)["x"].shape == (1, 3, 8, 8)


def test_labels_in_a_column_are_those_of_the_samples() -> None:
    spec = InputSpec("x", np.dtype(np.float32), (None, 3))
    found = load_data({"x": np.zeros((4, 3), np.float32), "labels": np.arange(4)[:, None]}, [spec], None)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("field", ["resize", "crop", "pad", "stretch", "letterbox"])
def test_sides_of_images_have_a_limit(field, tmp_path):
    path = tmp_path / "p.toml"
    path.write_text(f"[image]\n{field} = 99999999999\n")
    with pytest.raises(DataError, match="wrong value") as caught:
        load_preprocess(str(path))
    assert "16384" in caught.value.hint


def test_no_other_program_is_started_for_an_image(tmp_path):
    """Pillow hands a PostScript file to Ghostscript, whatever its name is."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="cannot be read") as caught:
        load_data(tmp_path, SPEC, Preprocess(stretch=8))
    assert "cannot identify" in caught.value.why


def test_an_image_that_is_too_large_is_refused_with_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="cannot be read") as caught:
        load_data(tmp_path, SPEC, Preprocess(stretch=8))
    assert "exceeds limit of 60 pixels: it is too large to be read" in caught.value.why
