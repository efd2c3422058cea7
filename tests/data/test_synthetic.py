"""Generated inputs: they fit the model, and images among them look like images in their statistics."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import batches_of
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.data import synthetic as module
from onnxprune.data.input_spec import InputSpec
from onnxprune.data.synthetic import generate, why_not_generated
from onnxprune.errors import DataError

SETTINGS = settings(deadline=None, derandomize=True, max_examples=40)
SIDES = st.integers(1, 12)
BFLOAT16, INT4 = (onnx.helper.tensor_dtype_to_np_dtype(n) for n in (onnx.TensorProto.BFLOAT16, onnx.TensorProto.INT4))
CHANNELS = st.sampled_from((1, 2, 3, 4, 7))


def spec(*shape: int | None, name: str = "x", dtype: object = np.float32) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


def images(*shape: int, samples: int = 64, seed: int = 0) -> np.ndarray:
    return generate((spec(None, *shape),), {}, samples, seed).arrays["x"]


# ---------------------------------------------------------------------------------------------------------- contracts


@given(
    sides=st.lists(SIDES, min_size=1, max_size=4),
    dynamic=st.sets(st.integers(0, 3)),
    dtype=st.sampled_from(("float16", "float32", "float64", "int64", "uint8", "bool", BFLOAT16)),
    samples=st.integers(1, 9),
)
@SETTINGS
def test_shape_and_dtype_are_those_of_the_input(sides, dynamic, dtype, samples):
    wanted = spec(None, *(None if n in dynamic else side for n, side in enumerate(sides)), dtype=dtype)
    data = generate((wanted,), {"x": (1, *sides)}, samples, 0)
    x = data.arrays["x"]
    assert (x.shape, x.dtype) == ((samples, *sides), wanted.dtype)
    assert np.isfinite(x.astype(np.float64)).all()
    assert (len(data), data.labels, data.preprocess, data.inputs) == (samples, None, None, (wanted,))
    assert data.name == "generated inputs"


@given(shape=st.tuples(CHANNELS, SIDES, SIDES), seed=st.integers(0, 2**32))
@SETTINGS
def test_seed_decides(shape, seed):
    x = images(*shape, samples=4, seed=seed)
    np.testing.assert_array_equal(images(*shape, samples=4, seed=seed), x)
    assert not np.array_equal(images(*shape, samples=4, seed=seed + 1), x)
    assert len(np.unique(x.reshape(4, -1), axis=0)) == 4


def test_batches_come_as_the_model_takes_them():
    wanted = (spec(None, 3, None, 8), spec(None, 5, name="z", dtype=np.float64), spec(None, name="k", dtype=np.int32))
    data = generate(wanted, {"x": (1, 3, 6, 8)}, 10, 0)
    batches = batches_of(data, 4)
    assert [{name: value.shape for name, value in feeds.items()} for feeds in batches] == [
        {"x": (n, 3, 6, 8), "z": (n, 5), "k": (n,)} for n in (4, 4, 2)
    ]
    assert [value.dtype for value in batches[0].values()] == [np.float32, np.float64, np.int32]
    np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in batches]), data.arrays["x"])


def test_an_input_does_not_depend_on_those_after_it_nor_repeat_them():
    alone = generate((spec(None, 4),), {}, 8, 3).arrays["x"]
    both = generate((spec(None, 4), spec(None, 4, name="y")), {}, 8, 3).arrays
    np.testing.assert_array_equal(both["x"], alone)
    assert not np.array_equal(both["x"], both["y"])


@pytest.mark.parametrize(
    ("firsts", "samples", "expected"),
    [((4,), 10, 12), ((4,), 8, 8), ((4,), 1, 4), ((1,), 5, 5), ((None,), 5, 5), ((4, None), 5, 8), ((4, 6), 1, 12)],
)
def test_samples_fill_fixed_batches(firsts, samples, expected):
    wanted = tuple(spec(first, 2, name=f"x{n}") for n, first in enumerate(firsts))
    data = generate(wanted, {one.name: (1, 2) for one in wanted}, samples, 0)
    assert [len(data.arrays[one.name]) for one in wanted] == [expected] * len(wanted)


def test_fixed_axes_come_from_the_model_and_its_batch_is_not_that_of_the_shape():
    assert generate((spec(None, 3, None, 8),), {"x": (7, 5, 6, 9)}, 2, 0).shapes() == {"x": (1, 3, 6, 8)}


@pytest.mark.parametrize(
    ("wanted", "shapes", "says"),
    [
        (spec(None, None), {}, "not known"),
        (spec(None, None), {"y": (1, 3)}, "not known"),
        (spec(None, None), {"x": (1, 0)}, "not known"),
        (spec(), {"x": ()}, "scalar"),
        (spec(None, 2, dtype=object), {}, "type object"),
        (spec(None, 2, dtype=np.complex64), {}, "type complex64"),
    ],
)
def test_what_cannot_be_generated_is_refused(wanted, shapes, says):
    with pytest.raises(DataError, match=says) as caught:
        generate((wanted,), shapes, 4, 0)
    assert caught.value.where == "input x"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (spec(None, 3), None),
        (spec(None, 9, dtype=np.int64), "type int64"),
        (spec(None, dtype=bool), "bool"),
        (spec(), "scalar"),
    ],
)
def test_inputs_of_which_nothing_is_known(wanted, says):
    reason = why_not_generated((spec(None, 2), wanted))
    assert reason is None if says is None else says in reason


# ------------------------------------------------------------------------------------------------------------- values


def test_other_floats_are_standard_normal():
    x = images(50, samples=400)
    assert abs(x.mean()) < 0.03
    assert x.std() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(x[:, 0], x[:, 1])[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(np.uint8, (9,)), *((dtype, shape) for dtype in (np.int64, np.int8, bool, INT4) for shape in ((9,), (3, 5, 5)))],
)
def test_integers_and_booleans_are_0_and_1(dtype, shape):
    x = generate((spec(None, *shape, dtype=dtype),), {}, 50, 0).arrays["x"].astype(np.int64)
    assert set(np.unique(x)) == {0, 1}
    assert x.mean() == pytest.approx(0.5, abs=0.1)


def test_one_pixel_is_no_image():
    x = images(1, 1, 1, samples=1000)
    assert x.std() == pytest.approx(1, abs=0.1)
    assert abs(x.mean()) < 0.1


@pytest.mark.parametrize("sides", [(32, 32), (24, 40), (1, 64), (64, 1)])
def test_spectrum_falls_as_that_of_natural_images(sides):
    h, w = sides
    power = (abs(np.fft.fft2(images(3, *sides, samples=200))) ** 2).mean(1)
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w))
    seen = (frequency > 0) & (frequency <= 0.5)
    slopes = np.polyfit(np.log(frequency[seen]), np.log(power[:, seen]).T, 1)[0]
    # power goes with the square of the amplitude: slopes of -1 … -3, blurred by the clipping and by few frequencies
    assert np.median(slopes) == pytest.approx(-2, abs=0.4)
    assert np.percentile(slopes, 10) < -2.3
    assert np.percentile(slopes, 90) > -1.8
    assert slopes.max() < 0


def test_no_direction_is_preferred():
    power = (abs(np.fft.fft2(images(1, 32, 32, samples=300))) ** 2).mean(1)
    along, across = power[:, 0, 1:16].sum(1), power[:, 1:16, 0].sum(1)
    diagonal = power[:, range(1, 12), range(1, 12)].sum(1) * 15 / 11
    assert np.median(along / across) == pytest.approx(1, abs=0.25)
    assert np.median(diagonal / along) < 1  # higher frequencies


def test_channels_have_most_in_common_but_not_all():
    x = images(3, 16, 16, samples=40)
    correlations = np.array([np.corrcoef(sample.reshape(3, -1))[np.triu_indices(3, 1)] for sample in x])
    assert 0.75 < np.median(correlations) < 0.97
    assert correlations.max() < 0.999


def test_half_of_the_samples_have_flat_areas_and_all_differ_in_gain_and_offset():
    x = images(1, 24, 24, samples=300)[:, 0].reshape(300, -1)
    flat = (x == x.min(1, keepdims=True)).sum(1) > 5
    assert 0.4 < flat.mean() < 0.6
    assert (x[flat] == x[flat].min(1, keepdims=True)).mean() > 0.15
    gain, offset = x[~flat].std(1), x[~flat].mean(1)
    assert gain.min() >= 0.5 - 1e-4
    assert gain.max() <= 1.5 + 1e-4
    assert gain.max() - gain.min() > 0.8
    assert abs(offset).max() <= 0.5 + 1e-4
    assert offset.max() - offset.min() > 0.8


@given(channels=st.sampled_from((1, 3, 4)), h=st.integers(5, 12), w=st.integers(5, 12), seed=st.integers(0, 99))
@SETTINGS
def test_channels_last_is_channels_first_transposed(channels, h, w, seed):
    last = images(h, w, channels, samples=3, seed=seed)
    np.testing.assert_array_equal(last, np.moveaxis(images(channels, h, w, samples=3, seed=seed), 1, 3))


def test_samples_are_drawn_piece_by_piece(monkeypatch):
    at_once = images(2, 8, 8, samples=7)
    monkeypatch.setattr(module, "CHUNK", 3 * 2 * 8 * 8)
    x = images(2, 8, 8, samples=7)
    assert len(np.unique(x.reshape(7, -1), axis=0)) == 7
    assert not np.array_equal(x[:3], at_once[:3])
    np.testing.assert_array_equal(x[:3], images(2, 8, 8, samples=3))  # the first piece does not depend on the others
    np.testing.assert_array_equal(x[:6], images(2, 8, 8, samples=6))
    large = images(2, 16, 16, samples=2)  # one sample is larger than a piece
    np.testing.assert_array_equal(large[:1], images(2, 16, 16, samples=1))
