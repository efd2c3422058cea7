"""Fine-tuning: steps that are what they should be, the course of a run, and what becomes of it after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Builder, as_half, load
from onnx import TensorProto, helper, numpy_helper

from onnxprune import options
from onnxprune.data.dataset import Data, load_data
from onnxprune.errors import DataError, ModelError, OptionError, OutputError, TrainingError
from onnxprune.graph.analysis import analyse
from onnxprune.graph.io import save
from onnxprune.graph.model import Model, inputs_of
from onnxprune.metrics import outputs as metrics
from onnxprune.metrics.outputs import class_scores, output_divergence
from onnxprune.metrics.paired_tests import right
from onnxprune.options import Bound
from onnxprune.options import ResolvedTraining as Training
from onnxprune.runtime.session import UNOPTIMIZED, run_batch
from onnxprune.surgery import channels as rewrite
from onnxprune.torch_backend.batches import Batches
from onnxprune.torch_backend.executor import Executor
from onnxprune.training import checkpoint
from onnxprune.training.distill import Setting, TrainingResult, distill

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch
Array = np.ndarray[Any, Any]
TESTS = Path(__file__).parent.parent
SHORT = Training(amount=12, unit="steps", batch=8, augment=(), clip=0, ema=0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def classifier(batch: int | str = "n") -> onnx.ModelProto:
    b = Builder((2, 6, 6), batch=batch)
    x = b.node("Relu", [b.conv("x", 6, 3, name="first")])
    x = b.node("Relu", [b.conv(x, 8, 3, name="second")])
    return b.build(b.gemm(b.flatten(b.global_pool(x)), 4))


def maps() -> onnx.ModelProto:
    """Return a model without classes."""
    b = Builder((2, 6, 6))
    return b.build(b.conv(b.node("Relu", [b.conv("x", 6, 3)]), 3, 3))


def samples(n: int = 40, seed: int = 3) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 2, 6, 6)) + 2 * rng.normal(size=(n, 2, 1, 1))).astype(np.float32)


def data_for(model: Model, x: Array | Mapping[str, Array] | None = None) -> Data:
    return load_data(samples() if x is None else x, inputs_of(model))


def disturbed(model: Model, by: float = 0.3, seed: int = 0) -> Model:
    """Return the model with all of its weights changed."""
    rng = np.random.default_rng(seed)
    result = model.copy()
    tensors = result.graph.tensors()
    for name in Executor(model).weights:
        values = np.asarray(tensors[name].values)
        tensors[name].values = (values * (1 + by * rng.standard_normal(values.shape))).astype(values.dtype)
    return result


def stored(model: Model, path: Path | None = None) -> dict[str, Array]:
    """Return the initializers of a model as they are written."""
    if path is None:
        proto = model.to_proto()
    else:
        save(model, path)
        proto = onnx.load(path)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def outputs(model: Model, x: Array) -> list[Array]:
    return run_batch(model.session(UNOPTIMIZED), {"x": x})


def finetune(
    student: Model,
    teacher: Model,
    data: Data,
    training: Training,
    state: Path | None = None,
    told: Any = None,
    **how: Any,
) -> TrainingResult:
    return distill(student, teacher, data, training, Setting(checkpoint=state, on_progress=told, **how))


def tune(proto: onnx.ModelProto | None = None, training: Training = SHORT, x: Any = None, **how: Any) -> TrainingResult:
    """Fine-tune a disturbed model towards the one it was."""
    teacher = load(classifier() if proto is None else proto)
    return finetune(disturbed(teacher), teacher, data_for(teacher, x), training, **how)


def same(a: Model, b: Model) -> bool:
    return a.to_proto().SerializeToString() == b.to_proto().SerializeToString()


# ---------------------------------------------------------------------------------------------------------- what is learned


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
def test_distillation_brings_a_disturbed_model_back(optimizer: str, schedule: str) -> None:
    training = Training(
        amount=150, unit="steps", batch=16, optimizer=optimizer, schedule=schedule, rate=0.01, augment=()
    )
    tuned = tune(training=training, x=samples(200))
    assert tuned.validations[0].divergence > 0.05
    best = min(each.divergence for each in tuned.validations)
    assert best < 0.2 * tuned.validations[0].divergence
    assert (tuned.steps, tuned.samples) == (150, 2400)
    # on samples that it never saw, in onnxruntime
    fresh = samples(100, 99)
    teacher = load(classifier())
    before, after = (
        output_divergence(outputs(teacher, fresh), outputs(model, fresh)) for model in (disturbed(teacher), tuned.model)
    )
    assert after < 0.3 * before


def test_models_without_classes_learn_their_outputs() -> None:
    tuned = tune(maps(), replace(SHORT, amount=100, rate=0.01), samples(64))
    assert tuned.validations[-1].divergence < 0.2 * tuned.validations[0].divergence
    assert tuned.validations[-1].agreement is None


def test_nothing_but_weights_changes_in_the_file_and_the_student_stays_as_it_is() -> None:
    teacher = load(classifier())
    student = disturbed(teacher)
    before = student.to_proto().SerializeToString()
    tuned = finetune(student, teacher, data_for(teacher), SHORT)
    assert student.to_proto().SerializeToString() == before
    old, new = student.to_proto(), tuned.model.to_proto()
    assert [w.name for w in old.graph.initializer] == [w.name for w in new.graph.initializer]
    assert all((stored(student)[name] != w).any() for name, w in stored(tuned.model).items())
    for proto in (old, new):
        del proto.graph.initializer[:]
    assert old == new


def test_every_output_is_learned_and_integers_are_ignored() -> None:
    b = Builder((2, 6, 6))
    x = b.node("Relu", [b.conv("x", 6, 3)])
    classes, shape = b.gemm(b.flatten(b.global_pool(x)), 4, name="head"), b.conv(x, 2, 3, name="map")
    proto = b.build(classes, shape, b.node("ArgMax", [classes], (1,), axis=1))
    proto.graph.output[2].type.tensor_type.elem_type = TensorProto.INT64
    teacher = load(proto)
    tuned = finetune(disturbed(teacher), teacher, data_for(teacher, samples(64)), replace(SHORT, amount=100, rate=0.01))
    wanted, before, after = (outputs(m, samples(32, 9)) for m in (teacher, disturbed(teacher), tuned.model))
    for i in (0, 1):
        assert ((wanted[i] - after[i]) ** 2).mean() < 0.3 * ((wanted[i] - before[i]) ** 2).mean()


def test_several_inputs() -> None:
    info = helper.make_tensor_value_info
    rng = np.random.default_rng(0)
    weights = {"w": (4, 3, 3, 3), "v": (5, 4), "u": (5, 4)}
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Mul", ["f", "row"], ["m"]),
        helper.make_node("Gemm", ["m", "v"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [info("image", TensorProto.FLOAT, ["n", 3, 5, 5]), info("row", TensorProto.FLOAT, ["n", 4])],
        [info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(rng.normal(size=weights[k]).astype(np.float32), k) for k in ("w", "v")],
    )
    teacher = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    given = {"image": rng.normal(size=(64, 3, 5, 5)), "row": rng.normal(size=(64, 4))}
    given = {name: x.astype(np.float32) for name, x in given.items()}
    training = replace(SHORT, amount=60, rate=0.02, augment=("noise", "flip"))
    tuned = finetune(disturbed(teacher), teacher, data_for(teacher, given), training)
    assert tuned.validations[-1].divergence < 0.3 * tuned.validations[0].divergence


def test_features_bring_activations_closer() -> None:
    """The student lost channels, so that only those left can be compared."""
    b = Builder((2, 6, 6))
    x = b.node("Relu", [b.conv("x", 8, 3, name="first")], name="act")
    teacher = load(b.build(b.gemm(b.flatten(b.global_pool(b.node("Relu", [b.conv(x, 8, 3)]))), 3)))
    trace = analyse(teacher, ()).trace
    keep = np.ones(trace.n_channels, dtype=bool)
    channels = next(group.channels for group in trace.groups if group.name == "first")
    keep[channels[[1, 4, 5]]] = False
    positions = np.array([0, 2, 3, 6, 7])
    student = disturbed(rewrite.delete(teacher, trace, keep), 0.5)

    def activation_error(model: Model) -> float:
        x = {"x": torch.from_numpy(samples(32, 9))}
        with torch.no_grad():
            a, b = (
                Executor(teacher)(x, ["act_out"])["act_out"][:, positions],
                Executor(model)(x, ["act_out"])["act_out"],
            )
        return float(((a - b) ** 2).mean() / a.var())

    def after(weight: float) -> float:
        training = replace(SHORT, amount=60, rate=0.01, features=weight)
        features = {"act_out": (1, positions)}
        return activation_error(finetune(student, teacher, data_for(teacher), training, features=features).model)

    without, with_ = after(0.0), after(3.0)
    assert with_ < 0.5 * activation_error(student)
    assert with_ < 0.5 * without


def test_labels_are_learned_where_there_are_some() -> None:
    """They contradict the teacher."""
    teacher = load(classifier())
    x = samples(64)
    labels = (outputs(teacher, x)[0].argmax(1) + 1) % 4
    data = data_for(teacher, {"x": x, "labels": labels})
    training = replace(SHORT, amount=150, rate=0.02, hold_out=0.25)

    def top1(labels: float | None) -> float:
        tuned = finetune(teacher, teacher, data, replace(training, labels=labels))
        assert tuned.validations[0].top1 == 0
        return 100 * right(class_scores(outputs(tuned.model, x)), data.labels).mean()  # type: ignore[arg-type]

    assert top1(1.0) > 60
    assert top1(0.0) == 0
    assert (
        finetune(teacher, teacher, data, replace(training, amount=1)).validations[-1].loss > 0.5
    )  # labels count by default
    smooth = finetune(teacher, teacher, data, replace(training, amount=1, labels=1.0, smoothing=0.5))
    assert (
        smooth.validations[-1].loss
        != finetune(teacher, teacher, data, replace(training, amount=1, labels=1.0)).validations[-1].loss
    )


def test_labels_out_of_range() -> None:
    teacher = load(classifier())
    data = data_for(teacher, {"x": samples(), "labels": np.arange(40) % 5})
    with pytest.raises(DataError, match="out of range") as caught:
        finetune(teacher, teacher, data, SHORT)
    assert "label 4" in caught.value.why
    assert "4 classes" in caught.value.why
    assert finetune(disturbed(teacher), teacher, data, replace(SHORT, labels=0.0)).validations[-1].top1 is None


def test_labels_that_are_asked_for_and_not_there() -> None:
    teacher = load(classifier())
    with pytest.raises(OptionError, match="needs labels"):
        finetune(teacher, teacher, data_for(teacher), replace(SHORT, labels=0.3))
    other = load(maps())
    data = data_for(other, {"x": samples(), "labels": np.zeros(40, np.int64)})
    with pytest.raises(OptionError, match="needs labels"):
        finetune(other, other, data, replace(SHORT, labels=0.3))
    assert finetune(disturbed(other), other, data, SHORT).steps == 12  # not asked for: they are of no use


def test_statistics_of_batchnormalization_are_trained_and_written() -> None:
    b = Builder((2, 6, 6))
    proto = b.build(b.gemm(b.flatten(b.batchnorm(b.node("Relu", [b.conv("x", 6, 3)]))), 4))
    (node,) = (node for node in proto.graph.node if node.op_type == "BatchNormalization")
    for mode in ("eval", "train"):
        tuned = tune(proto, replace(SHORT, amount=30, batchnorm=mode, patience=0), samples(64))
        before, after = stored(load(proto)), stored(tuned.model)
        assert any((before[name] != after[name]).any() for name in node.input[3:5]) == (mode == "train")
    # those of the weights that were best: the same as when all ends there
    assert tuned.best
    with torch.no_grad():
        found = Executor(tuned.model)({"x": torch.from_numpy(samples(8, 5))})
    np.testing.assert_allclose(
        next(iter(found.values())).numpy(), outputs(tuned.model, samples(8, 5))[0], rtol=1e-3, atol=1e-4
    )


# ----------------------------------------------------------------------------------------------------------------- single steps


@pytest.mark.parametrize("proto", [classifier(), maps()], ids=["classes", "maps"])
@pytest.mark.parametrize("features", [0.0, 1.0])
def test_accumulated_gradients_are_those_of_one_large_batch(proto: onnx.ModelProto, features: float) -> None:
    teacher = load(proto)
    x = samples(64) * np.linspace(0.2, 3, 64, dtype=np.float32)[:, None, None, None]  # batches that differ
    wanted = {next(node.output[0] for node in proto.graph.node if node.op_type == "Relu"): (1, None)}
    tuned = [
        finetune(
            disturbed(teacher),
            teacher,
            data_for(teacher, x),
            Training(
                amount=4, unit="steps", batch=batch, accumulate=times, optimizer="sgd", hold_out=0, augment=(),
                features=features, schedule="constant", rate=0.05,
            ),
            features=wanted,
        )
        for batch, times in ((8, 4), (32, 1), (8, 1))
    ]  # fmt: skip
    parts, whole, other = (stored(each.model) for each in tuned)
    assert tuned[0].best == tuned[1].best == 4
    assert tuned[0].samples == tuned[1].samples == 128
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5, atol=1e-5)
    assert max(float(np.abs(other[name] - value).max()) for name, value in whole.items()) > 1e-3


def test_a_step_of_sgd_by_hand() -> None:
    """The gradient of KL(teacher || student), clipped, with weight decay of matrices, from autograd on a graph of its own."""
    b = Builder((5,))
    teacher = load(b.build(b.gemm("x", 3)))
    student = disturbed(teacher)
    x = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    training = Training(
        amount=1, unit="steps", batch=16, optimizer="sgd", schedule="constant", rate=0.5, decay=0.1, clip=0.05,
        temperature=3.0, hold_out=0, augment=(), ema=0,
    )  # fmt: skip
    found = stored(finetune(student, teacher, data_for(teacher, x), training).model)
    (w, bias), (tw, tb) = (
        [torch.tensor(v, dtype=torch.float64) for v in stored(model).values()] for model in (student, teacher)
    )
    w.requires_grad_(), bias.requires_grad_()
    given = torch.from_numpy(x).double()
    p, q = (torch.log_softmax((given @ m.T + c) / 3, 1) for m, c in ((tw, tb), (w, bias)))
    (9 * (p.exp() * (p - q)).sum(1).mean()).backward()
    norm = float(torch.sqrt(w.grad.square().sum() + bias.grad.square().sum()))
    assert norm > 0.05
    scale = 0.05 / norm
    moved_w = w - 0.5 * 1.9 * (scale * w.grad + 0.1 * w)  # the first step of Nesterov is 1 + momentum times as long
    moved_b = bias - 0.5 * 1.9 * scale * bias.grad
    for value, expected in zip(found.values(), (moved_w, moved_b), strict=True):
        np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("bounds", [(), (Bound("*", -9, 9), Bound("*", norm=0.8))], ids=["free", "bounded"])
def test_elements_with_small_gradients_keep_their_value_exactly(ema: float, bounds: tuple[Bound, ...]) -> None:
    """With all that moves elements without a gradient: momentum, weight decay, a running mean, and the norm of their filter."""
    teacher = load(classifier())
    student = disturbed(teacher)
    # weights that read nothing but zeros, as the second channel of the input is zero
    x = samples(64)
    x[:, 1] = 0
    training = replace(SHORT, freeze_below=1e-12, decay=0.1, ema=ema, bounds=bounds, rate=0.02, amount=40)
    start = finetune(student, teacher, data_for(teacher, x), replace(training, amount=1, rate=1e-30))
    tuned = finetune(student, teacher, data_for(teacher, x), training)
    free = finetune(student, teacher, data_for(teacher, x), replace(training, freeze_below=None))
    assert tuned.best
    assert free.best
    first = next(node.inputs[1].name for node in student.graph.nodes if node.name == "first")
    before, after, moved = (stored(each.model)[first] for each in (start, tuned, free))
    np.testing.assert_array_equal(after[:, 1], before[:, 1])
    assert (moved[:, 1] != before[:, 1]).all()
    assert (after[:, 0] != before[:, 0]).mean() > 0.9
    assert any("were not updated in a step" in note for note in tuned.notes)
    if bounds:
        assert np.linalg.norm(after.astype(np.float64).reshape(6, -1), axis=1).max() <= 0.8


def test_frozen_elements_are_those_of_the_step() -> None:
    """The whole gradient is below a threshold or none of it is."""
    tuned = tune(training=replace(SHORT, freeze_below=1e9, decay=1.0))
    assert tuned.best == 0
    np.testing.assert_equal(stored(tuned.model), stored(disturbed(load(classifier()))))
    np.testing.assert_equal(
        stored(tune(training=replace(SHORT, freeze_below=0.0)).model), stored(tune(training=SHORT).model)
    )


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("half", [False, True])
def test_bounds_hold_exactly_in_the_file(tmp_path: Path, ema: float, half: bool) -> None:
    proto = as_half(classifier()) if half else classifier()
    bounds = (Bound("b*", -0.1, 0.3001), Bound("w*", norm=0.7))
    tuned = tune(proto, replace(SHORT, bounds=bounds, ema=ema, amount=20, rate=0.05))
    assert tuned.best
    found = stored(tuned.model, tmp_path / "out.onnx")
    touched = 0
    for value in found.values():
        assert value.dtype == (np.float16 if half else np.float32)
        wide = value.astype(np.float64)
        if value.ndim == 1:
            assert wide.min() >= -0.1
            assert wide.max() <= 0.3001
        else:
            norms = np.linalg.norm(wide.reshape(len(wide), -1), axis=1)
            assert norms.max() <= 0.7
            touched += int((norms > 0.69).sum())
    assert touched
    notes = [note for note in tuned.notes if "at the start" in note]
    assert len(notes) > 2
    assert any(note.startswith("--clamp -0.1,0.3001: ") for note in notes)
    assert any(note.startswith("--max-norm 0.7: ") for note in notes)


def test_bounds_hold_where_no_step_was_better() -> None:
    teacher = load(classifier())
    training = replace(SHORT, bounds=(Bound("*", -0.05, 0.05),), rate=1e-30, amount=1)
    tuned = finetune(disturbed(teacher, 0.01), teacher, data_for(teacher), training)
    assert all(np.abs(value.astype(np.float64)).max() <= 0.05 for value in stored(tuned.model).values())
    assert tuned.validations[0].divergence > 0.1  # of the weights as they are bounded


# ---------------------------------------------------------------------------------------------------------- the course of a run


def test_the_same_seed_gives_the_same_bytes() -> None:
    training = replace(SHORT, augment=("flip", "crop", "noise"), ema=0.9, hold_out=0.25)
    first, again, other = (tune(training=training, seed=seed) for seed in (4, 4, 5))
    assert same(first.model, again.model)
    assert [replace(each, seconds=0.0) for each in first.validations] == [
        replace(each, seconds=0.0) for each in again.validations
    ]
    assert not same(first.model, other.model)


def test_samples_that_are_made_anew_each_time_are_the_same() -> None:
    assert same(tune(training=SHORT).model, tune(training=SHORT, memory=0).model)


def test_every_sample_is_trained_on_once_per_epoch_and_none_that_is_held_out() -> None:
    x = np.broadcast_to(np.arange(50, dtype=np.float32)[:, None, None, None], (50, 2, 6, 6)).copy()
    batches = Batches(data_for(load(classifier()), x), replace(SHORT, hold_out=0.2), 1, 1e9)
    held = set(batches.validation.tolist())
    assert (len(held), batches.size, batches.per_epoch) == (10, 8, 5)
    epochs = []
    for epoch in range(2):
        drawn = [batches.draw(5 * epoch + place) for place in range(5)]
        for feeds, chosen in drawn:
            np.testing.assert_array_equal(feeds["x"][:, 0, 0, 0].numpy(), chosen)
        epochs.append(np.concatenate([chosen for _, chosen in drawn]))
        assert sorted(epochs[-1].tolist()) == sorted(set(range(50)) - held)
    assert (epochs[0] != epochs[1]).any()
    np.testing.assert_array_equal(batches.draw(3)[1], epochs[0][24:32])  # in whatever order


def test_augmentation_takes_its_kinds() -> None:
    data = data_for(load(classifier()))
    plain, noisy = (Batches(data, replace(SHORT, augment=kinds), 0, 1e9) for kinds in ((), ("noise",)))
    np.testing.assert_array_equal(plain.draw(1)[1], noisy.draw(1)[1])
    difference = plain.draw(1)[0]["x"] - noisy.draw(1)[0]["x"]
    assert 0 < float(difference.abs().max()) < 1
    assert torch.equal(noisy.draw(1)[0]["x"], noisy.draw(1)[0]["x"])
    assert not torch.equal(noisy.draw(1)[0]["x"], noisy.draw(1 + noisy.per_epoch)[0]["x"])


def test_augmentation_is_resolved_by_one_method() -> None:
    for training, kinds in (
        (options.Training(), ("flip",)),
        (replace(options.Training(), augment=("noise",)), ("noise",)),
    ):
        resolved = training.resolved(("flip",))
        assert (type(resolved), resolved.augment) == (options.ResolvedTraining, kinds)


def test_a_rate_that_destroys_leaves_the_best_weights() -> None:
    tuned = tune(training=replace(SHORT, rate=300.0, amount=40))
    assert max(each.divergence for each in tuned.validations) > tuned.validations[0].divergence
    best = min(tuned.validations, key=lambda each: each.divergence)
    assert tuned.best == best.step
    teacher = load(classifier())
    data = data_for(teacher)
    watched = samples()[Batches(data, SHORT, 0, 1e9).validation]
    found = output_divergence(outputs(teacher, watched), outputs(tuned.model, watched))
    assert found == pytest.approx(best.divergence, rel=1e-3)


def test_validations_come_at_even_distances() -> None:
    steps = [each.step for each in tune(training=replace(SHORT, amount=40)).validations]
    assert steps == list(range(0, 41, 2))
    assert [each.step for each in tune(training=replace(SHORT, amount=3)).validations] == [0, 1, 2, 3]


def test_training_stops_early_without_improvement() -> None:
    tuned = tune(training=replace(SHORT, amount=400, rate=1e-30, patience=3))
    assert tuned.steps == 60
    assert any("stopped after 60 steps: 3 validations" in note for note in tuned.notes)
    assert tune(training=replace(SHORT, amount=40, rate=1e-30)).steps == 40


@pytest.mark.parametrize(
    ("amount", "unit", "times", "steps"), [(2, "epochs", 1, 9), (2, "epochs", 2, 5), (7, "steps", 2, 7)]
)
def test_length(amount: float, unit: str, times: int, steps: int) -> None:
    """4 of 40 samples are held out; the 36 others make 4.5 batches of 8, 4 whole ones."""
    training = replace(SHORT, amount=amount, unit=unit, accumulate=times)
    expected = steps if unit == "steps" else -(-2 * 4 // times)
    tuned = tune(training=training)
    assert (tuned.steps, tuned.samples) == (expected, 8 * times * expected)
    assert tuned.validations[-1].step == tuned.steps


def test_time_is_a_length() -> None:
    start = time.monotonic()
    told: list[float] = []
    tuned = tune(training=replace(SHORT, amount=0.02, unit="min"), told=lambda share, text: told.append(share))
    assert 1.2 <= tuned.seconds < 2.5
    assert tuned.seconds < time.monotonic() - start
    assert tuned.steps == len(told) > 20
    assert told == sorted(told)
    assert tuned.validations[-1].step == tuned.steps
    assert 10 < len(tuned.validations) <= 22


def test_progress_is_told() -> None:
    told: list[tuple[float, str]] = []
    tune(training=SHORT, told=lambda share, text: told.append((share, text)))
    assert [share for share, _ in told] == pytest.approx([k / 12 for k in range(1, 13)])
    assert all(text.startswith("loss ") and "agreement" in text for _, text in told)


def test_the_running_mean_is_what_is_validated_and_written() -> None:
    """A mean that forgets nothing stays near the start, while the weights run away; the weights are as without a mean."""
    plain, mean = (tune(training=replace(SHORT, amount=30, rate=0.02, ema=ema)) for ema in (0.0, 0.95))
    assert [each.loss for each in plain.validations] == [each.loss for each in mean.validations]
    assert [each.divergence for each in plain.validations[1:]] != [each.divergence for each in mean.validations[1:]]
    teacher = load(classifier())
    watched = samples()[Batches(data_for(teacher), SHORT, 0, 1e9).validation]
    found = output_divergence(outputs(teacher, watched), outputs(mean.model, watched))
    assert found == pytest.approx(min(each.divergence for each in mean.validations), rel=1e-3)


def test_bfloat16_is_close_to_single_precision() -> None:
    tuned = [tune(training=replace(SHORT, amount=60, rate=0.01, precision=p)) for p in ("float32", "bfloat16")]
    assert tuned[1].validations[-1].divergence < 0.3 * tuned[1].validations[0].divergence
    assert tuned[0].validations[-1].loss != tuned[1].validations[-1].loss
    assert all(value.dtype == np.float32 for value in stored(tuned[1].model).values())


# ----------------------------------------------------------------------------------------------------------------- its state


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
import test_distill as t
from onnxprune.training import distill
distill.SAVED_EVERY = 0.0
t.resumable(Path(sys.argv[1]), lambda share, text: print(share, flush=True))
"""


def resumable(state: Path | None, told: Any = None) -> TrainingResult:
    """Run with everything that has a state: momentum, a running mean, statistics, gates, patience, augmentation."""
    b = Builder((2, 6, 6))
    x = b.batchnorm(b.node("Relu", [b.conv("x", 6, 3, name="first")]))
    proto = b.build(b.gemm(b.flatten(b.global_pool(b.node("Relu", [b.conv(x, 8, 3)]))), 4))
    teacher = load(proto)
    student = disturbed(teacher)
    training = replace(
        SHORT, amount=60, batchnorm="train", ema=0.9, augment=("noise", "flip"), gate_below=0.025, freeze_below=1e-4,
        bounds=(Bound("w*", norm=1.2),), clip=0.5, patience=18,
    )  # fmt: skip
    trace = analyse(student, ()).trace
    return finetune(student, teacher, data_for(teacher), training, trace=trace, state=state, told=told)


def test_a_run_that_was_killed_goes_on_to_the_same_result(tmp_path: Path) -> None:
    state = tmp_path / "state.ckpt"
    code = CHILD.format(paths=[str(path) for path in (TESTS.parent, TESTS, TESTS / "training")])
    lasted = []
    for steps in (17, 40):  # twice, and the second time in the resumed run
        with subprocess.Popen([sys.executable, "-c", code, str(state)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                lasted.append(float(line))
                if lasted[-1] >= steps / 60:
                    os.kill(child.pid, signal.SIGKILL)
                    break
            child.wait(60)
        assert child.returncode == -signal.SIGKILL
    assert lasted[0] == pytest.approx(1 / 60)
    assert all(share > 10 / 60 for share in lasted[20:])  # the second did not start anew
    resumed, whole = resumable(state), resumable(None)
    assert sum(note.startswith("resumed after ") for note in resumed.notes) == 2
    assert whole.gated is not None
    assert whole.gated.any()
    assert whole.best
    assert same(resumed.model, whole.model)
    np.testing.assert_array_equal(resumed.gated, whole.gated)
    assert (resumed.steps, resumed.best) == (whole.steps, whole.best)
    assert [replace(each, seconds=0.0) for each in resumed.validations] == [
        replace(each, seconds=0.0) for each in whole.validations
    ]
    # what is finished is there at once, and the same again
    again = resumable(state, told=lambda share, text: pytest.fail("a step was taken"))
    assert same(again.model, whole.model)
    assert again.validations == resumed.validations
    assert (again.notes, again.seconds) == (resumed.notes, resumed.seconds)


@pytest.mark.parametrize("change", ["seed", "training", "data", "labels", "student"])
def test_the_state_of_another_run_is_refused(tmp_path: Path, change: str) -> None:
    state = tmp_path / "state.ckpt"
    teacher = load(classifier())
    student, data, training, seed = disturbed(teacher), data_for(teacher), replace(SHORT, amount=1), 0
    finetune(student, teacher, data, training, seed=seed, state=state)
    before = state.read_bytes()
    finetune(student, teacher, data, training, seed=seed, state=state)
    if change == "seed":
        seed = 1
    elif change == "training":
        training = replace(training, rate=1e-4)
    elif change == "data":
        data = data_for(teacher, samples(40, 8))
    elif change == "labels":
        data = data_for(teacher, {"x": samples(), "labels": np.zeros(40, np.int64)})
    else:
        student = disturbed(teacher, seed=1)
    before = state.read_bytes()
    with pytest.raises(OutputError, match="another run") as caught:
        finetune(student, teacher, data, training, seed=seed, state=state)
    assert "--checkpoint" in caught.value.hint
    assert state.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other"])
def test_a_damaged_state_is_refused(tmp_path: Path, damage: str) -> None:
    state = tmp_path / "state.ckpt"
    checkpoint.save(state, "key", {"weights": {"w": torch.ones(100)}})
    content = state.read_bytes()
    if damage == "other":
        torch.save([1, 2], state)
    else:
        state.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(OutputError, match="cannot be read") as caught:
        checkpoint.load(state, "key")
    assert caught.value.where == str(state)


def test_a_state_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state.ckpt"
    assert checkpoint.load(state, "key") is None
    checkpoint.save(state, "key", {"step": 1})

    def full(content: object, path: Path) -> None:
        path.write_bytes(b"a part")
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match="cannot write"):
        checkpoint.save(state, "key", {"step": 2})
    loaded = checkpoint.load(state, "key")
    assert loaded is not None
    assert loaded["step"] == 1
    assert list(tmp_path.iterdir()) == [state]
    with pytest.raises(OutputError):
        checkpoint.save(tmp_path / "nowhere" / "state.ckpt", "key", {})


# ------------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_loss_that_is_not_finite_stops_and_says_where(tmp_path: Path, ema: float) -> None:
    training = replace(SHORT, rate=1e30, schedule="constant", amount=40, ema=ema)
    state = tmp_path / "state.ckpt"
    tuned = tune(training=training, state=state)
    assert tuned.steps < 40
    (note,) = tuned.notes
    assert f"stopped at step {tuned.steps + 1}: the loss is not finite" in note
    assert "comes from Conv " in note or "comes from Gemm " in note
    assert f"of step {tuned.best}" in note
    assert all(np.isfinite(value).all() for value in stored(tuned.model).values())
    assert same(tune(training=training, state=state).model, tuned.model)


def test_a_sample_that_overflows_is_told_with_its_node() -> None:
    b = Builder((2, 6, 6))
    x = b.conv("x", 4, 3, name="first")
    x = b.node("Mul", [x, x], name="square")
    proto = b.build(b.gemm(b.flatten(b.global_pool(x)), 3))
    x_ = samples(64)
    x_[Batches(data_for(load(proto), x_), replace(SHORT, amount=20), 0, 1e9).draw(2)[1][0]] = 1e25
    tuned = tune(proto, replace(SHORT, amount=20), x_)
    assert tuned.steps == 2
    (note,) = tuned.notes
    assert "step 3" in note
    assert "Mul square" in note
    assert tuned.validations[-1].divergence < np.inf


def test_an_original_that_overflows_is_named() -> None:
    b = Builder((4,))
    teacher = load(b.build(b.node("Exp", [b.gemm("x", 3)], name="power")))
    student = teacher.copy()
    tensors = student.graph.tensors()
    for name in Executor(student).weights:
        tensors[name].values = np.asarray(tensors[name].values) * np.float32(1e-4)
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    x[Batches(data_for(teacher, x), SHORT, 0, 1e9).draw(1)[1][3]] = 300
    tuned = finetune(student, teacher, data_for(teacher, x), SHORT)
    assert tuned.steps == 1
    assert (
        "step 2: the loss is not finite; the first value that is not finite comes from Exp power of the original"
        in (tuned.notes[0])
    )


def test_a_gradient_that_is_not_finite_stops_and_changes_nothing() -> None:
    """The square root of 0 is finite, with an infinite slope."""
    b = Builder((4,))
    y = b.gemm("x", 3)
    teacher = load(b.build(b.node("Sqrt", [b.node("Mul", [y, y])])))
    student = disturbed(teacher)
    tensors = student.graph.tensors()
    for name in Executor(student).weights:
        tensors[name].values = np.zeros_like(tensors[name].values)
    x = np.abs(np.random.default_rng(0).normal(size=(32, 4))).astype(np.float32)
    tuned = finetune(student, teacher, data_for(teacher, x), SHORT)
    assert tuned.steps == 0
    assert "stopped at step 1: the gradient is not finite" in tuned.notes[0]
    np.testing.assert_equal(stored(tuned.model), stored(student))


def test_an_operator_without_a_function_is_named() -> None:
    b = Builder((4,))
    x = b.node("Reshape", [b.gemm("x", 9), b.ints(0, 3, 3)], (3, 3))
    proto = b.build(b.node("Reshape", [b.node("Det", [x], (), name="volume"), b.ints(-1, 1)], (1,)))
    teacher = load(proto)
    with pytest.raises(ModelError, match="Det has no function") as caught:
        finetune(teacher, teacher, data_for(teacher, np.ones((16, 4), np.float32)), SHORT)
    assert caught.value.where == "volume"


@pytest.mark.parametrize(
    "problem",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes")],
    ids=["python", "torch"],
)
def test_out_of_memory_suggests_a_smaller_batch(monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    def fail(*_: object) -> None:
        raise problem

    monkeypatch.setattr(torch.Tensor, "backward", fail)
    with pytest.raises(TrainingError, match="out of memory") as caught:
        tune()
    assert "--train-batch" in caught.value.hint
    assert "--accumulate" in caught.value.hint


def test_other_errors_of_torch_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(torch.Tensor, "backward", fail)
    with pytest.raises(RuntimeError, match="something else"):
        tune()


def test_a_model_without_weights_or_outputs_to_learn() -> None:
    b = Builder((4,))
    bare = load(b.build(b.node("Relu", ["x"])))
    with pytest.raises(ModelError, match="nothing can be trained"):
        finetune(bare, bare, data_for(bare, np.ones((16, 4), np.float32)), SHORT)
    b = Builder((4,))
    proto = b.build(b.node("ArgMax", [b.gemm("x", 3)], (1,), axis=1))
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    chosen = load(proto)
    with pytest.raises(ModelError, match="nothing can be learned"):
        finetune(chosen, chosen, data_for(chosen, np.ones((16, 4), np.float32)), SHORT)


def test_too_few_samples() -> None:
    teacher = load(classifier(batch=8))
    with pytest.raises(DataError, match="too few samples") as caught:
        finetune(teacher, teacher, data_for(teacher, samples(7)), SHORT)
    assert "batches have 8; there are 7 samples" in caught.value.why


def test_models_that_torch_gets_wrong_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "TOLERANCE", 1e-12)
    monkeypatch.setattr(metrics, "ROUNDING_FACTOR", 1e-12)
    with pytest.raises(ModelError, match="do not agree"):
        tune()


def test_models_that_amplify_rounding_are_trained_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "TOLERANCE", 1e-12)
    monkeypatch.setattr(metrics, "ROUNDING_FACTOR", 1e9)
    notes = [note for note in tune().notes if "amplifies rounding" in note]
    assert len(notes) == 2
    monkeypatch.undo()
    assert not tune().notes


# ---------------------------------------------------------------------------------------------------- forms of models and data


def test_half_precision_is_trained_and_written_back_as_such() -> None:
    proto = as_half(classifier())
    tuned = tune(proto, replace(SHORT, amount=80, rate=0.01), samples(64))
    assert all(value.dtype == np.float16 for value in stored(tuned.model).values())
    assert tuned.validations[-1].divergence < 0.2 * tuned.validations[0].divergence
    x = samples(32, 9).astype(np.float16)
    before, after = (
        output_divergence(outputs(load(proto), x), outputs(model, x)) for model in (disturbed(load(proto)), tuned.model)
    )
    assert after < 0.3 * before


def test_probabilities() -> None:
    b = Builder((2, 6, 6))
    x = b.flatten(b.global_pool(b.node("Relu", [b.conv("x", 8, 3)])))
    tuned = tune(b.build(b.node("Softmax", [b.gemm(x, 4)], axis=1)), replace(SHORT, amount=80, rate=0.01), samples(64))
    assert tuned.validations[-1].divergence < 0.2 * tuned.validations[0].divergence
    assert tuned.validations[-1].agreement is not None


@pytest.mark.parametrize("hold_out", [0.0, 0.3])
@pytest.mark.parametrize("batch", [1, 5])
def test_a_fixed_batch_is_what_is_fed(batch: int, hold_out: float) -> None:
    teacher = load(classifier(batch=batch))
    data = data_for(teacher, samples(38))
    training = replace(SHORT, batch=64, hold_out=hold_out, rate=0.01, accumulate=4, amount=20)
    batches = Batches(data, training, 0, 1e9)
    assert batches.size == batch
    assert {len(feeds["x"]) for feeds in batches.for_validation()} == {batch}
    assert len(batches.validation) == {0.0: 38, 0.3: 11}[hold_out] // batch * batch
    tuned = finetune(disturbed(teacher), teacher, data, training)
    assert tuned.samples == 20 * 4 * batch
    assert tuned.validations[-1].divergence < 0.5 * tuned.validations[0].divergence


def test_inputs_without_a_common_batch_are_an_error() -> None:
    teacher = load(classifier())
    data = data_for(teacher)
    (spec,) = data.inputs
    with pytest.raises(ModelError, match="input x has no batch axis"):
        Batches(replace(data, inputs=(replace(spec, shape=()),)), SHORT, 0, 1e9)
    both = (replace(spec, shape=(2, 2, 6, 6)), replace(spec, name="z", shape=(3, 4)))
    with pytest.raises(ModelError, match="different batches") as caught:
        Batches(replace(data, inputs=both), SHORT, 0, 1e9)
    assert "x takes 2, z takes 3" in caught.value.why


def test_images_in_a_folder(tmp_path: Path) -> None:
    from PIL import Image

    from onnxprune.data.preprocess import Preprocess

    b = Builder((3, 6, 6))
    teacher = load(b.build(b.gemm(b.flatten(b.node("Relu", [b.conv("x", 6, 3)])), 3)))
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(12):
            Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).save(tmp_path / name / f"{k}.png")
    data = load_data(tmp_path, inputs_of(teacher), Preprocess(scale=1 / 255, mean=(0.5,), std=(0.3,)))
    kept, read = (
        finetune(disturbed(teacher), teacher, data, replace(SHORT, labels=0.0), memory=memory) for memory in (1e9, 0)
    )
    assert same(kept.model, read.model)
    assert kept.validations[-1].divergence < kept.validations[0].divergence
    assert kept.validations[-1].top1 is not None


def test_a_dataloader() -> None:
    teacher = load(classifier())
    x = samples()
    labels = torch.from_numpy(outputs(teacher, x)[0].argmax(1))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(x), labels), 7)
    data = load_data(loader, inputs_of(teacher))
    whole = data_for(teacher, {"x": x, "labels": labels.numpy()})
    a, b = (finetune(disturbed(teacher), teacher, d, SHORT) for d in (data, whole))
    assert same(a.model, b.model)
    assert a.validations[-1].top1 is not None


# --------------------------------------------------------------------------------------------------------------------- gates


def silenced() -> Model:
    """Return a student that has channels whose ReLU never fires."""
    student = disturbed(load(classifier()))
    node = next(node for node in student.graph.nodes if node.name == "first")
    for tensor, low in ((node.inputs[1], 0.0), (node.inputs[2], -5.0)):
        value = np.asarray(tensor.values).copy()
        value[[1, 4]] = low
        tensor.values = value
    return student


def first(trace: Any) -> Array:
    return next(group.channels for group in trace.groups if group.name == "first")


def holds_no(gated: Array, model: Model, trace: Any) -> bool:
    """Tell whether everything that reads a gated channel is zero."""
    weights = stored(model)
    facts = [fact for fact in trace.slices if fact.role == "reads"]
    assert facts
    flags = np.append(gated, False)
    return not any(np.compress(flags[fact.channels], weights[fact.tensor], axis=fact.axis).any() for fact in facts)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_silent_channels_are_gated_and_their_deletion_changes_nothing(ema: float) -> None:
    student = silenced()
    trace = analyse(student, ()).trace
    training = replace(SHORT, gate_below=1e-9, ema=ema, rate=0.01, amount=40)
    tuned = finetune(student, load(classifier()), data_for(student), training, trace=trace)
    assert tuned.gated is not None
    np.testing.assert_array_equal(np.flatnonzero(tuned.gated), first(trace)[[1, 4]])
    assert tuned.to_dict()["gated"] == 2
    assert tuned.best >= 10  # a window is a quarter of the training: what was better before does not count
    pruned = rewrite.delete(tuned.model, trace, ~tuned.gated)
    x = samples(16, 8)
    np.testing.assert_allclose(outputs(pruned, x)[0], outputs(tuned.model, x)[0], rtol=1e-5, atol=1e-6)
    assert holds_no(tuned.gated, tuned.model, trace)
    (note,) = tuned.notes
    assert note.startswith("--gate-below 1e-09: 2 channels gated; quantiles of the other peak gradients: 0% ")


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_weights_from_before_a_gate_are_not_what_is_written(ema: float) -> None:
    """So high a threshold takes most of the network, at the last step: what is written has no such channel all the same."""
    teacher = load(classifier())
    trace = analyse(teacher, ()).trace
    training = replace(SHORT, gate_below=1e3, amount=4, rate=1e-3, ema=ema, labels=None)
    student = disturbed(teacher, 0.02)
    tuned = finetune(student, teacher, data_for(teacher), training, trace=trace)
    assert tuned.gated is not None
    assert tuned.gated.sum() > 6
    assert (
        min(each.divergence for each in tuned.validations) == tuned.validations[0].divergence
    )  # the best validation of all does not count
    assert tuned.best > 0
    assert holds_no(tuned.gated, tuned.model, trace)


def test_gates_hold_where_training_then_fails() -> None:
    """The step that gates makes weights that are not finite: those written are the last good ones, gated."""
    teacher = load(classifier())
    trace = analyse(teacher, ()).trace
    training = replace(SHORT, gate_below=1e3, amount=4, rate=1e38, schedule="constant", optimizer="sgd")
    tuned = finetune(disturbed(teacher, 5.0), teacher, data_for(teacher), training, trace=trace)
    assert tuned.gated is not None
    assert tuned.gated.any()
    weights = stored(tuned.model)
    assert all(np.isfinite(value).all() for value in weights.values())
    assert holds_no(tuned.gated, tuned.model, trace)


def test_a_student_that_is_its_teacher_is_not_gated() -> None:
    teacher = load(classifier())
    trace = analyse(teacher, ()).trace
    training = replace(SHORT, gate_below=1e3, rate=1e-30)
    tuned = finetune(teacher, teacher, data_for(teacher), training, trace=trace)
    assert tuned.gated is not None
    assert not tuned.gated.any()
    assert any("12 of 12 steps did not count" in note for note in tuned.notes)


def test_gates_take_the_groups_of_the_model() -> None:
    with pytest.raises(OptionError, match="--gate-below"):
        tune(training=replace(SHORT, gate_below=1e-9))
