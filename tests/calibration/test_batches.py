"""Which samples a model is looked at with, in what batches, and which of them are held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from graphs import Builder, load
from scipy.ndimage import zoom

from onnxprune.calibration.batches import BATCH, COPIES, HELD_EVERY, PARTS, Calibration
from onnxprune.calibration.workspace import workspace_for
from onnxprune.data.dataset import load_data
from onnxprune.data.input_spec import InputSpec
from onnxprune.errors import DataError
from onnxprune.graph.analysis import analyse
from onnxprune.graph.model import inputs_of
from onnxprune.options import Options

Array = np.ndarray[Any, Any]


def calibration(
    n: int, samples: int = 10_000, *, batch: int | None = None, kinds: Sequence[str] = (), seed: int = 0
) -> Calibration:
    """Return one of n samples, the first value of each being its number."""
    x = np.random.default_rng(0).standard_normal((n, 3, 8, 8)).astype(np.float32)
    x[:, 0, 0, 0] = np.arange(n)
    data = load_data({"x": x}, (InputSpec("x", np.dtype(np.float32), (batch, 3, 8, 8)),))
    return Calibration.of(data, samples, tuple(kinds), seed)


def numbers(batch: dict[str, Array]) -> list[int]:
    return batch["x"][:, 0, 0, 0].astype(int).tolist()


def all_numbers(calibration: Calibration) -> list[int]:
    return [n for batch in calibration for n in numbers(batch)]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 31, 100, 256, 300])
def test_every_sample_comes_once_and_in_order(n):
    found = calibration(n)
    assert all_numbers(found) == list(range(n))
    assert len(list(found)) == len(found)


@pytest.mark.parametrize("n", [1, 3, 8, 100, 255, 256, 1000])
def test_batches_are_neither_large_nor_few(n):
    sizes = [len(batch["x"]) for batch in calibration(n)]
    assert max(sizes) <= BATCH
    assert len(sizes) >= min(n, PARTS)
    assert set(sizes[:-1]) <= {sizes[0]}


def test_choice_is_seeded():
    one, two, other = (all_numbers(calibration(100, 20, seed=seed)) for seed in (4, 4, 5))
    assert one == two != other
    assert len(set(one)) == 20
    assert one == sorted(one)  # files are read in the order in which they lie
    assert max(one) > 50  # not just the first ones


def test_all_samples_where_there_are_no_more():
    assert all_numbers(calibration(20, 20, seed=3)) == list(range(20))


def test_batches_are_the_same_each_time():
    found = calibration(20, kinds=("noise", "flip"))
    for one, two in zip(found, found, strict=True):
        np.testing.assert_array_equal(one["x"], two["x"])
    again = list(calibration(20, kinds=("noise", "flip"), seed=1))
    assert not np.array_equal(list(found)[-1]["x"], again[-1]["x"])


@pytest.mark.parametrize(("n", "batches"), [(12, 3), (14, 3), (4, 1), (7, 1)])
def test_a_fixed_batch_stays_whole(n, batches):
    found = calibration(n, batch=4)
    assert [len(batch["x"]) for batch in found] == [4] * batches
    assert len(found) == batches


def test_a_fixed_batch_of_one():
    found = calibration(5, batch=1)
    assert [numbers(batch) for batch in found] == [[n] for n in range(5)]


def test_fewer_samples_than_a_fixed_batch_are_still_a_batch():
    """A model that takes four at a time can be calibrated with no fewer, whatever `samples` says."""
    assert [len(batch["x"]) for batch in calibration(8, 2, batch=4)] == [4]
    with pytest.raises(DataError, match="too few samples") as caught:
        calibration(3, batch=4)
    assert (caught.value.why, caught.value.hint) == ("the model takes 4 at a time, there are 3", "give 4 or more")


def test_augmented_copies_come_after_the_samples():
    plain, found = list(calibration(24)), list(calibration(24, kinds=("noise",)))
    assert len(found) == len(calibration(24, kinds=("noise",))) == len(plain) * (1 + COPIES)
    for one, two in zip(plain, found, strict=False):
        np.testing.assert_array_equal(one["x"], two["x"])
    for number, batch in enumerate(found[len(plain) :]):
        source = plain[number % len(plain)]["x"]
        assert batch["x"].dtype == source.dtype
        assert 0 < np.abs(batch["x"] - source).mean() < 0.2 * source.std()  # the same samples, changed a little


@pytest.mark.parametrize("kinds", [(), ("flip",)])
@pytest.mark.parametrize("n", [1, 3, 8, 20, 100, 512])
def test_no_row_is_both_fitted_and_held_out(n, kinds):
    found = calibration(n, kinds=kinds)
    fitted, held = set[tuple[int, int]](), set[tuple[int, int]]()
    per_sample = 16  # positions
    for number, batch in enumerate(found):
        rows = [(s, p) for s in range(len(batch["x"])) for p in range(per_sample)]
        first = number % (len(found) // (1 + (COPIES if kinds else 0)))
        train, kept = found.split(number, len(rows))
        fitted |= {(first * found.batch + s, p) for s, p in rows[train]}
        held |= {(first * found.batch + s, p) for s, p in rows[kept]}
        assert len(rows[train]) + len(rows[kept]) == len(rows)
    assert fitted
    assert held
    assert not fitted & held  # nor in a copy of what was fitted
    assert 0.1 < len(held) / (len(fitted) + len(held)) < 0.4
    if n >= HELD_EVERY:
        assert not {s for s, _ in fitted} & {s for s, _ in held}


@pytest.mark.parametrize("n", [4, 20, 512])
def test_held_batches_are_those_that_split_holds_out(n):
    found = calibration(n)
    held = [number for number in range(len(found)) if found.is_held(number)]
    assert held
    for number in range(len(found)):
        train, kept = found.split(number, 10)
        assert len(range(10)[kept]) == (10 if number in held else 0)
        assert len(range(10)[train]) == (0 if number in held else 10)


@pytest.mark.parametrize("n", [1, 3])
def test_where_batches_are_few_all_count_as_held(n):
    found = calibration(n)
    assert all(found.is_held(number) for number in range(len(found)))


def test_plain_leaves_out_the_copies():
    found = calibration(20, kinds=("flip", "noise"))
    plain = found.plain
    assert len(plain) * (1 + COPIES) == len(found)
    for batch, expected in zip(plain, calibration(20), strict=True):
        np.testing.assert_array_equal(batch["x"], expected["x"])


@pytest.mark.parametrize(("side", "kinds"), [(8, ("crop", "scale", "rotate", "detail")), (64, ())])
def test_images_that_were_enlarged_get_detail_where_augmentation_is_left_open(side: int, kinds: tuple[str, ...]):
    b = Builder((1, 64, 64))
    b.conv(b.node("Relu", [b.conv("x", 4, 3)]), 3, 3)
    model = load(b.build(b.nodes[-1].output[0]))
    small = np.random.default_rng(0).standard_normal((8, 1, side, side)).astype(np.float32)
    x = zoom(small, (1, 1, 64 // side, 64 // side), order=1)
    data = load_data({"x": x}, inputs_of(model))
    with workspace_for(data, analyse(model), Options().resolved(True)) as workspace:
        assert workspace.calibration.kinds == kinds
        assert any("enlarged" in note for note in workspace.notes) == bool(kinds)
    with workspace_for(data, analyse(model), Options(augment=()).resolved(True)) as workspace:
        assert workspace.calibration.kinds == ()
