"""How the length of a training and its constraints are written, and which values its options take."""

from __future__ import annotations

import math

import pytest

from onnxprune.cli.parsers import parse_bounds, parse_budget
from onnxprune.errors import OptionError
from onnxprune.options import Bound, Training


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("300steps", 300, "steps"),
        ("1step", 1, "steps"),
        ("2epochs", 2, "epochs"),
        (" 0.5 Epoch ", 0.5, "epochs"),
        ("3min", 3, "min"),
        ("2.5 minutes", 2.5, "min"),
        ("1minute", 1, "min"),
        ("2h", 120, "min"),
        ("1.5hours", 90, "min"),
    ],
)
def test_budget(text, amount, unit):
    assert parse_budget(text) == {"amount": amount, "unit": unit}
    Training(**parse_budget(text))


@pytest.mark.parametrize("text", ["", "3", "min", "-3min", "3days", "1e3steps", "3 min 2", "nanmin", "3steps,2epochs"])
def test_budget_of_another_form_is_refused_with_an_example(text):
    with pytest.raises(OptionError, match="not a length of a training") as caught:
        parse_budget(text)
    assert "300steps" in caught.value.hint


@pytest.mark.parametrize("text", ["0steps", "0.0min"])
def test_no_training_at_all_is_refused(text):
    with pytest.raises(OptionError, match="is no length of training"):
        Training(**parse_budget(text))


@pytest.mark.parametrize(
    ("clamps", "norms", "expected"),
    [
        ((), (), ()),
        (("-1,1",), (), (Bound("*", -1, 1),)),
        (("conv*.weight=-0.5,2e-1", "0,0"), (), (Bound("conv*.weight", -0.5, 0.2), Bound("*", 0, 0))),
        (("-inf,3",), (), (Bound("*", -math.inf, 3),)),
        ((), ("3", "a=b=0.5"), (Bound("*", norm=3), Bound("a=b", norm=0.5))),
        (("-1,1",), ("2",), (Bound("*", -1, 1), Bound("*", norm=2))),
    ],
)
def test_bounds(clamps, norms, expected):
    assert parse_bounds(clamps, norms) == expected


@pytest.mark.parametrize("text", ["", "1", "1,", "1,2,3", "2,1", "a,b", "nan,1", "w=", "w=1"])
def test_range_of_another_form_is_refused_with_an_example(text):
    with pytest.raises(OptionError, match=r"--clamp .* is not a bound") as caught:
        parse_bounds((text,), ())
    assert "-1,1" in caught.value.hint


@pytest.mark.parametrize("text", ["", "0", "-1", "1,2", "inf", "nan", "a", "w=", "w=0"])
def test_norm_of_another_form_is_refused_with_an_example(text):
    with pytest.raises(OptionError, match=r"--max-norm .* is not a bound") as caught:
        parse_bounds((), (text,))
    assert "conv" in caught.value.hint


@pytest.mark.parametrize(
    ("bound", "option", "text"),
    [(Bound("*", -1, 0.25), "clamp", "-1,0.25"), (Bound("w", norm=3.0), "max-norm", "3")],
)
def test_a_bound_says_how_it_was_written(bound, option, text):
    assert (bound.option, bound.text) == (option, text)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"amount": 0}, "0 epochs is no length of training"),
        ({"amount": math.nan}, "nan epochs"),
        ({"unit": "days"}, "unknown unit 'days'"),
        ({"optimizer": "adam"}, "unknown optimizer"),
        ({"schedule": "step"}, "unknown lr-schedule"),
        ({"batchnorm": "fold"}, "unknown batchnorm"),
        ({"precision": "float16"}, "unknown precision"),
        ({"batch": 0}, "--train-batch 0"),
        ({"accumulate": 0}, "--accumulate 0"),
        ({"rate": -1e-3}, "--lr -0.001"),
        ({"rate": math.inf}, "--lr inf"),
        ({"decay": -1}, "--weight-decay"),
        ({"clip": math.nan}, "--clip-norm nan"),
        ({"ema": 1.5}, "--ema 1.5"),
        ({"temperature": 0}, "--temperature 0"),
        ({"features": -1}, "--features"),
        ({"labels": 2}, "--label-weight 2"),
        ({"smoothing": 1.1}, "--smoothing"),
        ({"hold_out": 1.0}, "--hold-out 1"),
        ({"patience": -1}, "--patience -1"),
        ({"freeze_below": -1}, "--freeze-below"),
        ({"gate_below": math.inf}, "--gate-below inf"),
    ],
)
def test_value_that_makes_no_sense(values, says):
    with pytest.raises(OptionError, match=says) as caught:
        Training(**values)
    assert caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "values",
    [{"ema": 0}, {"labels": 0}, {"labels": 1}, {"hold_out": 0}, {"freeze_below": 0}, {"rate": None}, {"clip": 0}],
)
def test_value_on_the_edge_is_taken(values):
    assert all(getattr(Training(**values), name) == value for name, value in values.items())
