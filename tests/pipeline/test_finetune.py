"""Training as a stage of `prune`, and as a command of its own."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.cli.parsers import parse_bounds
from onnxprune.graph.analysis import analyse
from onnxprune.options import Training
from onnxprune.pipeline import reporting
from onnxprune.repair import least_squares as repair
from onnxprune.runtime.session import open_session, run_batch
from onnxprune.types import Check

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

QUICK = ("--no-latency", "--round-to", "1", "-q")


def report_of(result) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_prune_trains_and_comes_closer(run, tiny_path, samples, out):
    channels = ("--granularity", "filter")
    plain = report_of(
        run(
            "prune",
            tiny_path,
            "-o",
            out / "a.onnx",
            "--data",
            samples,
            "--reduce",
            "flops=50%",
            *QUICK,
            *channels,
            "--json",
        )
    )
    command = (
        "--data",
        samples,
        "--reduce",
        "flops=50%",
        "--finetune",
        "60steps",
        "--train-augment",
        "none",
        "--lr",
        "0.03",
        *QUICK,
        *channels,
    )
    tuned = report_of(run("prune", tiny_path, "-o", out / "b.onnx", *command, "--json"))
    assert tuned["fidelity"]["kl"] < 0.85 * plain["fidelity"]["kl"]
    training = tuned["training"]
    assert training["steps"] == 60
    assert training["looks"][0]["step"] == 0
    assert tuned["settings"]["training"]["unit"] == "steps"
    again = run("prune", tiny_path, "-o", out / "c.onnx", *command)
    assert "FLOPs removed: " in again.stdout
    assert "training: 60 steps" in again.stdout
    assert (out / "b.onnx").read_bytes() == (out / "c.onnx").read_bytes()


def test_progressive_trains_between_steps(run, tiny_path, samples, out):
    state = out / "state"
    report = report_of(
        run(
            *("prune", tiny_path, "-o", out / "a.onnx", "--data", samples, "--reduce", "flops=60%", "--json"),
            *("--schedule", "progressive", "--steps", 3, "--pace", "cubic", "--finetune", "40steps", *QUICK),
            *("--checkpoint", state),
        )
    )
    assert report["training"]["steps"] == 20  # half of them come last
    removed = [step["flops_removed"] for step in report["path"]]
    assert len(removed) == 3
    assert removed[0] >= 0.6 * (1 - (2 / 3) ** 3) - 1e-9
    assert removed[-1] >= 0.6
    assert report["verdict"]["passed"]
    assert {path.name for path in out.iterdir()} == {"a.onnx", "a.plan.json"}  # no state is left
    replayed = run("prune", tiny_path, "-o", out / "b.onnx", "--plan", out / "a.plan.json", "--data", samples, *QUICK)
    assert replayed.exit_code == 0, replayed.output
    shapes = [[i.dims for i in onnx.load(out / name).graph.initializer] for name in ("a.onnx", "b.onnx")]
    assert sorted(map(str, shapes[0])) == sorted(map(str, shapes[1]))


def test_what_was_trained_is_repaired_towards_a_model_of_as_many_channels(monkeypatch, tiny_path, samples):
    real, seen = repair.repair, []

    def spied(task, *args, **kwargs):
        seen.append((analyse(task.reference).trace.n_channels, task.trace.n_channels))
        return real(task, *args, **kwargs)

    monkeypatch.setattr(repair, "repair", spied)
    onnxprune.prune(
        tiny_path, data=samples, reduce={"flops": 0.6}, round_to=1, schedule="progressive", steps=3,
        training=onnxprune.Training(amount=20, unit="steps"), measure=onnxprune.BenchmarkConfig(latency=False),
    )  # fmt: skip
    assert len({channels for channels, _ in seen}) > 1
    assert all(channels == known for channels, known in seen)


def test_channels_that_are_gated_are_deleted(run, tiny, tmp_path, samples, out):
    for tensor in tiny.graph.initializer:  # filters of the first layer that never fire, and get no gradient
        array = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name == "w1":
            array[:5] = 0
        if tensor.name == "b1":
            array[:5] = -1
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    path = tmp_path / "dead.onnx"
    onnx.save(tiny, path)
    command = ("--data", samples, "--plan", out / "none.json", "--finetune", "40steps", "--repair", "none", *QUICK)
    plan = run("plan", path, "-o", out / "none.json", "--reduce", "flops=1%", "--round-to", "1", "--ignore", "conv1")
    assert plan.exit_code == 0, plan.output
    report = report_of(run("prune", path, "-o", out / "a.onnx", *command, "--gate-below", "1e-12", "--json"))
    assert report["training"]["gated"] == 5
    assert len(report["path"]) == 2
    first = next(layer for layer in report["layers"] if layer["name"] == "conv1")
    assert (first["channels_before"], first["channels_after"]) == (16, 11)
    kept = json.loads((out / "a.plan.json").read_text())["groups"][0]
    assert kept["keep"] == list(range(5, 16))


def test_finetune_command(run, tiny_path, samples, out):
    pruned = out / "pruned.onnx"
    run("prune", tiny_path, "-o", pruned, "--data", samples, "--reduce", "flops=50%", "--repair", "none", *QUICK)
    command = ("finetune", pruned, "--teacher", tiny_path, "--data", samples, "--no-latency", "-q")
    more = (
        "--for",
        "80steps",
        "--train-augment",
        "none",
        "--lr",
        "0.03",
        "--clamp",
        "w*=-0.5,0.5",
        "--max-norm",
        "w3=0.4",
    )
    features = ("--features", "0.1", "--plan", out / "pruned.plan.json")
    report = report_of(run(*command, "-o", out / "a.onnx", *more, *features, "--json"))
    looks = report["training"]["looks"]
    assert min(look["divergence"] for look in looks) < 0.8 * looks[0]["divergence"]
    assert report["after"]["flops"] < report["before"]["flops"]
    assert any("--clamp" in note for note in report["notes"])
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(out / "a.onnx").graph.initializer}
    assert all(np.abs(value).max() <= 0.5 for name, value in weights.items() if name.startswith("w"))
    assert np.linalg.norm(weights["w3"].astype(np.float64), axis=1).max() <= 0.4
    text = run(*command, "-o", out / "b.onnx", "--for", "2epochs", "--tolerate", "100")
    assert text.exit_code == 0, text.output
    assert f"written: {out / 'b.onnx'}" in text.stdout


def test_python_says_the_same(tiny_path, samples, out):
    training = Training(amount=10, unit="steps", bounds=parse_bounds(["-1,1"], []))
    quick = onnxprune.BenchmarkConfig(latency=False)
    result = onnxprune.prune(
        tiny_path, data=samples, reduce={"flops": 0.4}, training=training, round_to=1, measure=quick
    )
    result.save(out / "a.onnx")
    tuned = onnxprune.finetune(
        out / "a.onnx", tiny_path, data=samples, training=training, measure=quick, output=out / "b.onnx"
    )
    assert tuned.report.training is not None
    x = np.load(samples)["x"][:4]
    expected = run_batch(tuned.model.session(), {"x": x})[0]
    np.testing.assert_allclose(run_batch(open_session(str(out / "b.onnx")), {"x": x})[0], expected, atol=1e-6)


def test_without_torch_the_extra_is_named(refused, tiny_path, samples, out, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    command = (
        "prune",
        tiny_path,
        "-o",
        out / "a.onnx",
        "--data",
        samples,
        "--reduce",
        "flops=50%",
        "--finetune",
        "2steps",
    )
    refused(*command, says="onnxprune[train]", code=2)
    refused(
        "finetune", tiny_path, "--teacher", tiny_path, "--data", samples, "-o", out / "a.onnx", says="[train]", code=2
    )


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--finetune", "fast"), "is not a length of a training"),
        (("--finetune", "0steps"), "is no length of training"),
        (("--lr", "0.1"), "options of a training, but no training"),
        (("--clamp", "0,1"), "options of a training, but no training"),
        (("--finetune", "2steps", "--clamp", "2,1"), "not a bound"),
        (("--finetune", "2steps", "--max-norm", "nothing*=1"), "names no filters"),
        (("--finetune", "2steps", "--ema", "2"), "out of range"),
        (("--finetune", "2steps", "--label-weight", "0.5"), "needs labels"),
        (("--finetune", "2steps", "--train-augment", "blur"), "blur"),
    ],
)
def test_options_that_make_no_sense(refused, tiny_path, samples, out, more, says):
    refused(
        *("prune", tiny_path, "-o", out / "a.onnx", "--data", samples, "--reduce", "flops=50%", *QUICK, *more),
        says=says,
        code=2,
    )


def test_training_needs_inputs(refused, tiny_path, out):
    command = ("prune", tiny_path, "-o", out / "a.onnx", "--reduce", "flops=50%", "--finetune", "2steps", *QUICK)
    refused(*command, says="needs inputs", code=2)


def test_a_teacher_of_another_kind_is_refused(refused, tiny, tiny_path, tmp_path, samples, out):
    tiny.graph.output[0].name = tiny.graph.node[-1].output[0] = "z"
    other = tmp_path / "other.onnx"
    onnx.save(tiny, other)
    command = ("finetune", tiny_path, "--teacher", other, "--data", samples, "-o", out / "a.onnx", "-q")
    refused(*command, says="inputs and outputs of its teacher")


def test_a_trained_model_without_integrity_is_kept_under_another_name(tiny_path, samples, out, monkeypatch) -> None:
    monkeypatch.setattr(reporting, "finite_check", lambda *_: Check("finite", False, None, False, "NaN in y"))
    short = Training(amount=1, unit="steps", batch=8)
    result = onnxprune.finetune(
        tiny_path, tiny_path, data=samples, output=out / "q.onnx", training=short, latency=False
    )
    assert [path.name for path in out.iterdir()] == ["q.rejected.onnx"]
    assert not result.report.verdict
    assert result.report.output == str(out / "q.rejected.onnx")
    assert "NaN in y" in result.report.notes[-1]
