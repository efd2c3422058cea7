"""`check`: a candidate is held against the limits, on the edge as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxprune
from onnxprune.errors import OptionError
from onnxprune.evaluation.policy import GateLimits
from onnxprune.types import Verdict

MEASURE = onnxprune.BenchmarkConfig(runs=3, warmup=1)


def values(verdict: Verdict) -> dict[str, object]:
    return {check.name: check.value for check in verdict.checks}


@pytest.fixture
def half_wrong(images, tiny_path) -> dict[str, np.ndarray]:
    """Return data of which the tiny model gets every second sample right."""
    answers = ort.InferenceSession(tiny_path.read_bytes()).run(None, {"x": images})[0].argmax(axis=1)
    return {"x": images, "labels": np.where(np.arange(8) % 2, answers, (answers + 1) % 4)}


@pytest.fixture
def constant(tiny, tmp_path) -> Path:
    """Return a candidate that always gives class 2."""
    for tensor in tiny.graph.initializer:
        if tensor.name in ("w3", "b3"):
            value = np.zeros(tensor.dims, np.float32)
            if tensor.name == "b3":
                value[2] = 1
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    path = tmp_path / "constant.onnx"
    path.write_bytes(tiny.SerializeToString())
    return path


def test_identical_model_loses_nothing(tiny_path, half_wrong):
    limits = GateLimits(max_drop=0, min_agreement=100)
    verdict = onnxprune.check(tiny_path, tiny_path, data=half_wrong, limits=limits, measure=MEASURE)
    assert verdict
    found = values(verdict)
    assert (found["top-1 drop (points)"], found["agreement (%)"]) == (0, 100)
    assert found["cosine"] == pytest.approx(1)


def test_drop_is_the_difference_of_the_accuracies(tiny_path, constant, half_wrong):
    right = 100 * float((half_wrong["labels"] == 2).mean())
    verdict = onnxprune.check(constant, tiny_path, data=half_wrong, measure=MEASURE)
    assert values(verdict)["top-1 drop (points)"] == pytest.approx(50 - right)


@pytest.mark.parametrize(("slack", "passes"), [(0, True), (1, True), (-1, False)])
@pytest.mark.parametrize("labelled", [True, False])
def test_limit_itself_still_passes(labelled, slack, passes, tiny_path, constant, half_wrong):
    data = half_wrong if labelled else half_wrong["x"]
    name = "top-1 drop (points)" if labelled else "agreement drop (points)"
    free = onnxprune.check(constant, tiny_path, data=data, measure=MEASURE, limits=GateLimits(max_drop=100))
    drop = values(free)[name]
    assert free
    assert 1 < drop < 99
    limits = GateLimits(max_drop=drop + slack)
    assert bool(onnxprune.check(constant, tiny_path, data=data, measure=MEASURE, limits=limits)) == passes


def test_size_counts_external_data(tiny, tiny_path, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save_model(tiny, str(path), save_as_external_data=True, location="m.data", size_threshold=0)
    verdict = onnxprune.check(path, tiny_path, measure=MEASURE)
    assert values(verdict)["size (MB)"] == (path.stat().st_size + (tmp_path / "m.data").stat().st_size) / 1e6


@pytest.mark.parametrize(("bytes_over", "passes"), [(0, True), (-1, False)])
def test_size_limit_is_in_bytes(bytes_over, passes, tiny_path):
    limits = GateLimits(max_size=tiny_path.stat().st_size + bytes_over)
    assert bool(onnxprune.check(tiny_path, tiny_path, limits=limits, measure=MEASURE)) == passes


def test_accuracy_limit_without_a_classifier_is_an_error(tiny, images, tmp_path):
    del tiny.graph.node[5:]
    tiny.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("r2", onnx.TensorProto.FLOAT, ["n", 16, 8, 8]))
    tiny.graph.node.pop()
    path = tmp_path / "features.onnx"
    path.write_bytes(tiny.SerializeToString())
    assert onnxprune.check(path, path, data=images, measure=MEASURE)
    with pytest.raises(OptionError, match="--min-agreement needs outputs of the form"):
        onnxprune.check(path, path, data=images, limits=GateLimits(min_agreement=1), measure=MEASURE)


@pytest.mark.parametrize("batch", [1, 3])
def test_models_of_a_fixed_batch(batch, tiny, images, tmp_path):
    for value in (tiny.graph.input[0], tiny.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    path = tmp_path / "fixed.onnx"
    path.write_bytes(tiny.SerializeToString())
    for data in (images, None):
        assert onnxprune.check(path, path, data=data, measure=onnxprune.BenchmarkConfig(runs=2, batch=2))


def test_measured_batch_is_as_large_as_asked_for(tiny_path, images):
    verdict = onnxprune.check(tiny_path, tiny_path, data=images, measure=onnxprune.BenchmarkConfig(runs=2, batch=20))
    (speed,) = [check for check in verdict.checks if check.name == "speed-up"]
    assert "batch 20" in speed.detail


def test_stages_are_told(tiny_path, images):
    seen: list[tuple[str, float | None]] = []
    measure = onnxprune.BenchmarkConfig(runs=2, eval_batch=4)
    onnxprune.check(tiny_path, tiny_path, data=images, measure=measure, on_stage=lambda *stage: seen.append(stage))
    assert list(dict.fromkeys(name for name, _ in seen)) == ["load", "look", "evaluate", "verify", "time", "memory"]
    shares = [share for name, share in seen if name == "evaluate"]
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize(
    "fields",
    [{"max_drop": -0.1}, {"max_drop": 101}, {"min_agreement": 100.1}, {"min_speedup": float("nan")}, {"max_size": -1}],
    ids=str,
)
def test_limit_out_of_range(fields):
    with pytest.raises(OptionError, match="out of range"):
        GateLimits(**fields)


def test_dictionary_says_the_same_as_the_verdict(tiny_path):
    content = onnxprune.check(tiny_path, tiny_path, limits=GateLimits(max_size=1), measure=MEASURE).report.to_dict()
    assert content["passed"] is False
    assert [check["name"] for check in content["checks"] if not check["passed"]] == ["size (MB)"]
    assert next(check for check in content["checks"] if not check["passed"])["limit"] == 1e-6


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_fail(value, tiny, tiny_path, tmp_path):
    bias = next(tensor for tensor in tiny.graph.initializer if tensor.name == "b3")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([0, value, 0, 0], np.float32), "b3"))
    path = tmp_path / "broken.onnx"
    path.write_bytes(tiny.SerializeToString())
    verdict = onnxprune.check(path, tiny_path, measure=MEASURE)
    assert [check.name for check in verdict.checks if not check] == ["finite outputs"]


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"min": {"size": "1GB"}}, "--min size is no limit"),
        ({"max": {"explained": 99}}, "--max explained is no limit"),
        ({"min": {"kl": 1}}, "--min kl is no limit"),
        ({"max": {"cer": 1}}, "may be 1 % or 100 %"),
        ({"max": {"cer": "0.5"}}, "may be 0.5 % or 50 %"),
        ({"min": {"top1": 1.0}}, "may be 1 % or 100 %"),
        ({"min": {"top1": "101%"}}, "out of range"),
        ({"min": {"top1": "nan"}}, "out of range"),
        ({"max": {"latency": -1}}, "out of range"),
        ({"max": {"size": "-4MB"}}, "out of range"),
        ({"max": {"size": "much"}}, "is not an amount"),
    ],
)
def test_limits_that_cannot_be_held_are_refused(limits, told):
    with pytest.raises(OptionError, match=told):
        GateLimits(**limits)


def test_megabytes_are_the_unit_of_plain_sizes():
    assert GateLimits(max={"size": 4, "memory": "64kB"}).amounts("max") == {"size": 4e6, "memory": 64e3}


@pytest.mark.parametrize(
    "limits", [GateLimits(max_latency=1), GateLimits(max={"latency": "1us"}), GateLimits(min_speedup=1)]
)
def test_a_limit_on_time_needs_timings(limits, tiny_path):
    with pytest.raises(OptionError, match="needs timings"):
        onnxprune.check(tiny_path, tiny_path, limits=limits, latency=False)
