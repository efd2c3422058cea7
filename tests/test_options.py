"""How targets are written, which values the options take, and what `auto` is resolved to."""

from __future__ import annotations

import dataclasses

import pytest

from onnxprune.cli.parsers import parse_targets
from onnxprune.errors import OptionError
from onnxprune.evaluation.policy import GateLimits
from onnxprune.importance.methods import METHODS
from onnxprune.options import GRANULARITIES, IMPORTANCES, Options, Training
from onnxprune.options.metadata import AUTO, option_fields


@pytest.mark.parametrize(
    ("option", "texts", "expected"),
    [
        ("reduce", [], {}),
        ("reduce", ["flops=50%"], {"flops": 0.5}),
        ("reduce", ["flops=0.5"], {"flops": 0.5}),
        ("reduce", [" FLOPs = 12.5 % "], {"flops": 0.125}),
        ("reduce", ["flops=50%", "params=30%"], {"flops": 0.5, "params": 0.3}),
        ("limit", ["flops=300M"], {"flops": 300e6}),
        ("limit", ["flops=1.2g", "params=20k"], {"flops": 1.2e9, "params": 20e3}),
        ("limit", ["params=1e6"], {"params": 1e6}),
    ],
)
def test_targets_read_as_a_person_writes_them(option, texts, expected):
    assert parse_targets(option, texts) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "=", "flops", "=50%", "flops=%", "flops=50%%", "size 3", "flops=5=6"])
@pytest.mark.parametrize("option", ["reduce", "limit"])
def test_target_of_another_form_is_refused_with_an_example(option, text):
    with pytest.raises(OptionError) as caught:
        parse_targets(option, [text])
    assert "flops" in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"reduce": 0.5}, "reduce is 0.5"),
        ({"reduce": "flops=50%"}, "reduce is 'flops=50%'"),
        ({"limit": [("flops", 3)]}, "limit is"),
        ({"reduce": {"flops": "50%"}}, "reduce of flops is '50%'"),
        ({"reduce": {"speed": 0.5}}, "does not know 'speed'"),
        ({"reduce": {"flops": 1}}, "out of range"),
        ({"limit": {"flops": 0}}, "out of range"),
        ({"ignore": "head*"}, "ignore is 'head\\*'"),
        ({"importance": "magic"}, "unknown importance 'magic'"),
        ({"schedule": "slow"}, "unknown schedule 'slow'"),
        ({"scope": "local"}, "unknown scope 'local'"),
        ({"steps": 0}, "--steps 0"),
        ({"round_to": 0}, "--round-to 0"),
        ({"min_channels": 0}, "--min-channels 0"),
        ({"max_ratio": 0}, "--max-ratio 0"),
        ({"threshold": float("nan")}, "--threshold nan"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_value_from_python_that_makes_no_sense(values, says):
    with pytest.raises(OptionError, match=says) as caught:
        Options(**values)
    assert caught.value.hint


@pytest.mark.parametrize(
    "values",
    [
        {"max_ratio": 1},
        {"threshold": 0},
        {"reduce": {"flops": 0.999}},
        {"ignore": ("a", "b")},
        {"seed": 0},
        *({"importance": name} for name in IMPORTANCES),
    ],
)
def test_value_on_the_edge_is_taken(values):
    options = Options(**values)
    assert all(getattr(options, name) == value for name, value in values.items())


@pytest.mark.parametrize("name", METHODS)
def test_every_importance_has_a_function_or_an_order(name):
    method = METHODS[name]
    assert method.doc
    assert name == "obs" or method.torch or callable(method.load())


def test_defaults_are_sound_and_name_no_target():
    assert not Options().has_target
    assert dataclasses.replace(Options(), threshold=0.0).has_target
    assert dataclasses.replace(Options(), limit={"params": 1.0}).has_target
    assert dataclasses.replace(Options(), reduce={"params": 0.1}).has_target


@pytest.mark.parametrize("data", [False, True])
def test_resolved_options_have_no_auto(data):
    asked = Options(reduce={"flops": 0.5}, steps=3)
    found = asked.resolved(data)
    assert AUTO not in [getattr(found, field.name) for field in dataclasses.fields(found)]
    assert found.resolved(data) == found
    expected = ("obs", "sensitivity", "lstsq", "cut") if data else ("l2", "global", "none", "keep")
    assert (found.importance, found.scope, found.repair, found.norms) == expected
    assert found.settings["round_to"] == found.settings["grouped"] == found.settings["augment"] == AUTO
    assert found.settings["steps"] == 3


@pytest.mark.parametrize(
    ("values", "edits"),
    [
        ({"reduce": {"flops": 0.5}}, True),
        ({"limit": {"size": 1e6, "latency": 1.0}}, True),
        ({"reduce": {"params": 0.5}, "importance": "obs", "scope": "sensitivity", "repair": "lstsq"}, True),
        ({}, False),
        ({"reduce": {"memory": 0.5}}, False),
        ({"reduce": {"flops": 0.5}, "limit": {"memory": 1e6}}, False),
        ({"max_drop": 1.0}, False),
        ({"reduce": {"flops": 0.5}, "threshold": 0.5}, False),
        ({"reduce": {"flops": 0.5}, "importance": "l2"}, False),
        ({"reduce": {"flops": 0.5}, "scope": "global"}, False),
        ({"reduce": {"flops": 0.5}, "repair": "bias"}, False),
        ({"reduce": {"flops": 0.5}, "schedule": "progressive"}, False),
    ],
)
def test_layers_are_edited_by_default_where_that_is_measured_to_pay(values, edits):
    assert Options(**values).resolved(True).granularity == (GRANULARITIES if edits else ("filter",))
    asked = Options(**values, granularity=("filter", "rank")).resolved(True)
    assert asked.granularity == ("filter", "rank")
    if values.get("repair") not in ("bias", "lstsq") and values.get("importance") != "obs" and "scope" not in values:
        assert Options(**values).resolved(False).granularity == ("filter",)


def test_what_is_asked_for_is_not_resolved_away():
    asked = Options(grouped="whole", round_to=4, augment=("flip",), importance="l1", repair="bias")
    found = asked.resolved(True)
    assert (found.grouped, found.round_to, found.augment, found.importance) == ("whole", 4, ("flip",), "l1")
    assert found.norms == "keep", "a bias alone does not correct the statistics of a normalization"


@pytest.mark.parametrize("kind", [Options, Training, GateLimits])
def test_every_field_is_explained_where_it_is_defined(kind):
    assert [field.name for field, _, _ in option_fields(kind)] == [field.name for field in dataclasses.fields(kind)]
    for field, found, _ in option_fields(kind):
        assert f"    {field.name} ({field.type}, default " in kind.__doc__
        assert f"): {found.help}" in kind.__doc__


def test_docstring_has_type_default_unit_words_and_range():
    lines = {line.split(" (")[0].strip(): line for kind in (Options, GateLimits) for line in kind.__doc__.splitlines()}
    assert "(float, default 0.9)" in lines["max_ratio"]
    assert lines["max_ratio"].endswith("Range: more than 0, at most 1.")
    assert "Allowed: block, progressive." in lines["schedule"]
    assert "auto: obs with calibration samples, else l2." in lines["importance"]
    assert "In bytes. Range: 0 or more." in lines["max_size"]
