"""Augmented calibration inputs: what each kind may change, and what it must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.cli.parsers import parse_kinds
from onnxprune.data.augment import augment, channel_axis, is_enlarged
from onnxprune.errors import OptionError
from onnxprune.options import AUGMENTATIONS as KINDS

SETTINGS = settings(deadline=None, derandomize=True, max_examples=40)
GEOMETRY = ("crop", "scale", "rotate")
SOME_KINDS = st.sets(st.sampled_from(KINDS), min_size=1)
SHAPES = st.tuples(st.integers(1, 4), st.sampled_from((1, 2, 3)), st.integers(1, 12), st.integers(1, 12))


def pictures(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 2 + 5).astype(dtype)


def augmented(batch: np.ndarray, *kinds: str, seed: int = 0, channels: int = 1) -> np.ndarray:
    return augment(batch, kinds, np.random.default_rng(seed), channels)


def ramps(n: int, h: int = 40, w: int = 60) -> np.ndarray:
    """Return n images of two channels, whose values are row and column: interpolation is exact on them."""
    return np.tile(np.indices((h, w), float), (n, 1, 1, 1))


# --------------------------------------------------------------------------------------------------- the command line


@given(kinds=st.permutations(KINDS).flatmap(lambda names: st.integers(1, len(names)).map(lambda n: names[:n])))
@SETTINGS
def test_kinds_are_read_in_any_order(kinds):
    assert parse_kinds(",".join(kinds)) == tuple(kind for kind in KINDS if kind in kinds)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("none", ()), (" None ", ()), ("flip", ("flip",)), (" Noise , flip,flip", ("flip", "noise"))],
)
def test_kinds_are_read_as_a_person_writes_them(text, expected):
    assert parse_kinds(text) == expected


@pytest.mark.parametrize("text", ["", "flip,", "blur", "none,flip", "flip noise", "all"])
def test_unknown_kind_is_refused_with_the_known_ones(text):
    with pytest.raises(OptionError, match="unknown augmentation") as caught:
        parse_kinds(text)
    assert all(kind in caught.value.hint for kind in ("none", *KINDS))


# ---------------------------------------------------------------------------------------------------------- contracts


@given(shape=SHAPES, kinds=SOME_KINDS, dtype=st.sampled_from(("float16", "float32", "float64", ">f4")))
@SETTINGS
def test_shape_and_dtype_stay_and_the_input_is_untouched(shape, kinds, dtype):
    batch = pictures(*shape, dtype=dtype)
    before = batch.copy()
    batch.flags.writeable = False
    result = augmented(batch, *kinds)
    assert (result.shape, result.dtype) == (batch.shape, batch.dtype)
    assert result.flags.c_contiguous
    assert np.isfinite(result).all()
    assert not np.shares_memory(result, batch)
    np.testing.assert_array_equal(batch, before)


@given(kinds=SOME_KINDS, order=st.randoms(use_true_random=False), seed=st.integers(0, 99))
@SETTINGS
def test_seed_decides_and_the_order_of_kinds_does_not(kinds, order, seed):
    batch = pictures(6, 2, 9, 8)
    result = augmented(batch, *kinds, seed=seed)
    np.testing.assert_array_equal(augmented(batch, *order.sample(sorted(kinds), len(kinds)), seed=seed), result)


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_and_a_second_draw_differ(kind):
    batch = pictures(16, 1, 8, 8)
    rng = np.random.default_rng(0)
    first, second = augment(batch, (kind,), rng), augment(batch, (kind,), rng)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, augmented(batch, kind, seed=1))


@given(shape=SHAPES, kinds=SOME_KINDS, seed=st.integers(0, 99))
@SETTINGS
def test_channels_last_is_channels_first_transposed(shape, kinds, seed):
    first = pictures(*shape)
    last = np.ascontiguousarray(np.moveaxis(first, 1, 3))
    expected = np.moveaxis(augmented(first, *kinds, seed=seed), 1, 3)
    np.testing.assert_array_equal(augmented(last, *kinds, seed=seed, channels=3), expected)


@pytest.mark.parametrize(
    "batch",
    [np.ones((4, 5)), np.ones((2, 3, 4)), np.arange(16).reshape(1, 1, 4, 4), np.ones((0, 1, 4, 4)), np.float32(1)],
    ids=lambda batch: f"{batch.dtype}{batch.shape}",
)
def test_what_is_no_image_comes_back_as_it_is(batch):
    assert augmented(batch, *KINDS) is batch


def test_no_kinds_change_nothing():
    batch = pictures(2, 1, 8, 8)
    assert augmented(batch) is batch


# ---------------------------------------------------------------------------------------------------------- the kinds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_kind_alone_changes_samples_each_in_its_own_way(kind, channels):
    one = pictures(1, 8, 8, 3) if channels == 3 else pictures(1, 3, 8, 8)
    results = augmented(np.repeat(one, 20, axis=0), kind, channels=channels)
    different = len(np.unique(results.reshape(20, -1), axis=0))
    assert different == 2 if kind == "flip" else different > 6
    assert sum(np.array_equal(result, one[0]) for result in results) in (
        range(4, 17) if kind in ("flip", "erase", "detail") else (0,)
    )


@given(kinds=SOME_KINDS, value=st.floats(-100, 100, width=32), seed=st.integers(0, 99))
@SETTINGS
def test_constant_batch_stays_as_it_is(kinds, value, seed):
    batch = np.full((4, 3, 12, 9), value, np.float32)
    np.testing.assert_allclose(augmented(batch, *kinds, seed=seed), batch, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["flip", *GEOMETRY])
def test_geometry_leaves_constant_samples_and_channels(kind):
    batch = np.ones((4, 3, 12, 9)) * np.arange(12.0).reshape(4, 3, 1, 1)
    np.testing.assert_allclose(augmented(batch, kind), batch, rtol=1e-12, atol=1e-12)


def test_flip_swaps_left_and_right():
    batch = pictures(32, 2, 5, 7)
    result = augmented(batch, "flip")
    flipped = np.array([np.array_equal(a, b[..., ::-1]) for a, b in zip(result, batch, strict=True)])
    np.testing.assert_array_equal(result[~flipped], batch[~flipped])
    assert 6 < flipped.sum() < 26


@pytest.mark.parametrize("kinds", [GEOMETRY, *((kind,) for kind in GEOMETRY)], ids="+".join)
def test_geometry_is_an_affine_map_within_its_bounds(kinds):
    batch = ramps(64)
    inner = augmented(batch, *kinds)[..., 12:-12, 12:-12]
    matrices = np.stack([np.diff(inner, axis=axis)[:, :, 0, 0] for axis in (2, 3)], axis=2)
    # one interpolation of a ramp is a ramp
    pixels = np.indices(inner.shape[2:])
    expected = inner[:, :, :1, :1] + np.einsum("nca,ahw->nchw", matrices, pixels)
    np.testing.assert_allclose(inner, expected, atol=1e-9)
    zoom = np.linalg.det(matrices) ** -0.5
    turns = matrices * zoom[:, None, None]
    np.testing.assert_allclose(turns @ np.swapaxes(turns, 1, 2), np.tile(np.eye(2), (64, 1, 1)), atol=1e-9)
    # the centre only moves with a crop
    down, right = (inner.mean((2, 3)) - batch.mean((2, 3))).T
    for kind, values, low, high in (
        ("scale", zoom, 0.9, 1.1),
        ("rotate", np.degrees(np.arcsin(turns[:, 1, 0])), -8, 8),
        ("crop", down, -3.2, 3.2),
        ("crop", right, -4.8, 4.8),
    ):
        if kind in kinds:
            assert low <= values.min() < low + (high - low) / 8
            assert high >= values.max() > high - (high - low) / 8
        else:
            np.testing.assert_allclose(values, (low + high) / 2, atol=1e-9)


def test_detail_makes_samples_smaller_and_mirrors_them_all_around():
    batch = np.tile(np.cos(np.pi * np.arange(41) / 40), (50, 1, 41, 1)).astype(
        np.float64
    )  # half a wave, even about its ends
    rows = augmented(batch, "detail")[:, 0, 20]
    for row in rows:
        phases = np.pi * (20 + np.outer(1 / np.linspace(0.3, 1, 701), np.arange(41) - 20)) / 40
        assert np.abs(np.cos(phases) - row).mean(axis=1).min() < 0.01
    assert 0.9 < rows.std(axis=1).max() / batch.std() < 1.1


@pytest.mark.parametrize("channels", [1, 3])
def test_what_was_enlarged_is_told_from_what_was_not(channels):
    rng = np.random.default_rng(0)
    spectrum = rng.standard_normal((4, 3, 64, 33)) * np.exp(2j * np.pi * rng.random((4, 3, 64, 33)))
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(64))
    photographs = np.fft.irfft2(spectrum / np.maximum(frequency, 1 / 64)).astype(np.float32)
    spectrum[..., frequency > 1 / 8] = 0
    smooth = np.fft.irfft2(spectrum / np.maximum(frequency, 1 / 64)).astype(np.float32)
    assert is_enlarged(np.moveaxis(smooth, 1, channels), channels)
    assert not is_enlarged(np.moveaxis(photographs, 1, channels), channels)


@pytest.mark.parametrize("batch", [np.zeros((4, 3, 8, 8), np.float32), np.ones((4, 3, 2, 8), np.float32), np.ones((4, 3)), np.ones((4, 3, 8, 8), int)])  # fmt: skip
def test_what_holds_no_image_was_not_enlarged(batch):
    assert not is_enlarged(batch)


def test_geometry_moves_all_channels_together():
    batch = np.repeat(pictures(4, 1, 9, 8), 3, axis=1)
    result = augmented(batch, *GEOMETRY)
    np.testing.assert_array_equal(result[:, 1], result[:, 0])
    np.testing.assert_array_equal(result[:, 2], result[:, 0])


def test_jitter_changes_contrast_about_the_mean_and_brightness():
    batch = pictures(200, 2, 6, 6, dtype="float64")
    batch += 3 * np.arange(200).reshape(-1, 1, 1, 1)  # samples with means of their own
    result = augmented(batch, "jitter")
    gain = result.std((1, 2, 3)) / batch.std((1, 2, 3))
    offset = (result.mean((1, 2, 3)) - batch.mean((1, 2, 3))) / batch.std()
    assert 0.85 <= gain.min() < 0.88 < 1.12 < gain.max() <= 1.15
    assert -0.1 <= offset.min() < -0.08 < 0.08 < offset.max() <= 0.1
    expected = (batch - batch.mean((1, 2, 3), keepdims=True)) * gain.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(result - result.mean((1, 2, 3), keepdims=True), expected, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_noise_goes_with_the_spread_of_the_batch(dtype):
    batch = pictures(8, 3, 32, 32, dtype=dtype) * 10
    noise = augmented(batch, "noise") - batch
    assert noise.std() / batch.std() == pytest.approx(0.03, rel=0.03)
    assert abs(noise.mean()) < 0.05 * noise.std()
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1


def test_erase_fills_one_rectangle_with_the_mean_of_the_sample():
    batch = pictures(200, 2, 16, 9, dtype="float64")
    result = augmented(batch, "erase")
    heights, widths = [], []
    for before, after in zip(batch, result, strict=True):
        changed = (before != after).any(0)
        if not changed.any():
            continue
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        box = after[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        np.testing.assert_allclose(box, before.mean())
        assert changed.sum() == box[0].size
        heights.append(len(rows))
        widths.append(len(columns))
    assert 70 < len(heights) < 130
    assert set(heights) == {1, 2, 3, 4}
    assert set(widths) == {1, 2}


def test_erase_reaches_every_pixel_alike():
    batch = pictures(800, 1, 4, 4)
    erased = (augmented(batch, "erase") != batch)[:, 0]
    assert set(erased.sum((1, 2))) == {0, 1}
    assert 350 < erased.sum() < 450
    assert erased.sum(0).min() > 10


def test_erase_cuts_no_rectangle_at_the_edge():
    batch = pictures(4000, 1, 8, 8)
    areas = (augmented(batch, "erase") != batch).sum((1, 2, 3))
    assert areas[areas > 0].mean() == pytest.approx(1.5 * 1.5, abs=0.1)


@pytest.mark.parametrize("sides", [(1, 1), (3, 40), (40, 3)])
def test_erase_leaves_images_without_a_quarter(sides):
    batch = pictures(20, 1, *sides)
    np.testing.assert_array_equal(augmented(batch, "erase"), batch)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((1, 3, 8, 8), 1), ((1, 8, 8, 3), 3), ((1, 16, 8, 8), 1), ((1, 3, 8, 3), 1), ((None, None, None, 1), 3)],
)
def test_channel_axis_is_that_of_colours(shape, axis):
    assert channel_axis(shape) == axis
