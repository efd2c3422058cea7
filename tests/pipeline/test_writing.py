"""What a run writes takes its place together, and what a run deletes is its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import onnx
import pytest
from kills import forks, killed

import onnxprune
from onnxprune import fileio, plan_file
from onnxprune.errors import OptionError, OutputError
from onnxprune.graph import io
from onnxprune.graph.model import PROVENANCE, provenance

QUICK = onnxprune.BenchmarkConfig(latency=False)


def prune(model: Path, output: Path, share: float) -> None:
    onnxprune.prune(model, output=output, reduce={"flops": share}, repair="none", round_to=1, measure=QUICK)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.exists()}  # without dangling links


def stored(model: Path) -> str:
    entries = {entry.key: entry.value for entry in onnx.load(model, load_external_data=False).metadata_props}
    return entries.get(PROVENANCE + plan_file.ENTRY, "")


def belong_together(original: Path, model: Path, plan: Path) -> bool:
    try:
        plan_file.refuse_other(plan, io.read(original).digest, model, stored(model))
    except onnxprune.OnnxPruneError:
        return False
    return True


@pytest.mark.parametrize("large", [False, True])
def test_a_failure_at_any_file_leaves_the_old_model_and_its_plan(large, tiny_path, out, monkeypatch):
    if large:
        monkeypatch.setattr(io, "PROTO_LIMIT", 1000)
    target = out / "s.onnx"
    prune(tiny_path, target, 0.3)
    before = contents(out)
    assert belong_together(tiny_path, target, out / "s.plan.json")
    real = os.replace
    for broken in range(2 + large):
        moved = []

        def fail(source: Path, place: Path, broken: int = broken, moved: list[Path] = moved) -> None:
            moved.append(place)
            if len(moved) == broken + 1:
                raise OSError(5, "Input/output error")
            real(source, place)

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OutputError, match="cannot write"):
            prune(tiny_path, target, 0.6)
        monkeypatch.setattr(os, "replace", real)
        assert contents(out) == before


@forks
def test_a_kill_between_plan_and_model_is_told(tiny_path, out):
    target, plan = out / "s.onnx", out / "s.plan.json"
    old, new = (
        onnxprune.prune(tiny_path, reduce={"flops": share}, repair="none", round_to=1, measure=QUICK)
        for share in (0.3, 0.6)
    )

    def write(result: onnxprune.pipeline.results.ModelResult) -> None:
        with fileio.Transaction() as files:
            plan_file.write(plan, result.plan, result.trace, tiny_path.name, files)
            io.save(result.model, target, provenance(result.report.sha256, **result.provenance), files)

    told = []
    for number in range(1, 60):
        write(old)
        if not killed(lambda: write(new), number):
            break
        found = [path.read_bytes() for path in (plan, target)]
        told.append(belong_together(tiny_path, target, plan))
        write(old)
        same = [path.read_bytes() == content for path, content in zip((plan, target), found, strict=True)]
        assert told[-1] == (same[0] == same[1])
        assert sorted(contents(out)) == ["s.onnx", "s.plan.json"]
    assert {True, False} == set(told)


def test_output_without_a_name_is_refused(tiny_path, out):
    for output in ("", ".", os.sep):
        with pytest.raises(OptionError, match="names no file"):
            onnxprune.prune(tiny_path, output=output, reduce={"flops": 0.3}, measure=QUICK)


# ------------------------------------------------------------------------------------------------------- with training


@pytest.fixture
def trained(tiny_path, samples, out):
    """Return a function that trains a pruned model, and the path of that model."""
    pytest.importorskip("torch")
    prune(tiny_path, out / "s.onnx", 0.3)
    short = onnxprune.Training(amount=2, unit="steps", augment=())

    def train(**more: object) -> onnxprune.pipeline.results.ModelResult:
        arguments = {"data": samples, "training": short, "measure": QUICK, "output": out / "t.onnx", **more}
        return onnxprune.finetune(out / "s.onnx", tiny_path, **arguments)

    return train


@pytest.mark.torch
def test_plan_of_another_result_is_refused_before_the_training(trained, tiny_path, out):
    plan = out / "s.plan.json"
    trained(plan=plan)
    assert stored(out / "t.onnx") == stored(out / "s.onnx") != ""
    (out / "t.onnx").unlink()
    prune(tiny_path, out / "other.onnx", 0.6)
    with pytest.raises(onnxprune.OnnxPruneError, match="do not belong together"):
        trained(plan=out / "other.plan.json")
    assert not (out / "t.onnx").exists()


@pytest.mark.torch
def test_checkpoint_of_the_run_is_deleted_and_no_other_file(trained, out):
    state = out / "state"
    (out / "state.1").write_text("of the user")
    trained(checkpoint=state)
    assert not state.exists()
    assert (out / "state.1").read_text() == "of the user"
    assert (out / "t.onnx").exists()


@pytest.mark.torch
@pytest.mark.parametrize(
    ("checkpoint", "more"),
    [
        ("t.onnx", {}),
        ("s.onnx", {}),
        ("t", {"output": "t.1"}),
        ("t.md", {"report_output": "t.md"}),
        ("t", {"evaluation": "t.2"}),
        ("link", {}),
    ],
)
def test_checkpoint_that_is_another_file_of_the_run_is_refused(checkpoint, more, trained, samples, out):
    (out / "link").symlink_to("t.onnx")
    more = {name: out / value for name, value in more.items()}
    if "evaluation" in more:
        shutil.copy(samples, more["evaluation"])
    before, steps = contents(out), []
    with pytest.raises(OutputError, match="would overwrite"):
        trained(checkpoint=out / checkpoint, on_stage=lambda stage, *_: steps.append(stage), **more)
    assert set(steps) <= {"load"}
    assert contents(out) == before


@pytest.mark.torch
def test_a_file_that_is_no_checkpoint_is_refused_before_the_work(trained, tiny_path, samples, out):
    state = out / "state"
    state.write_text("of the user")
    with pytest.raises(OutputError, match="checkpoint cannot be read"):
        trained(checkpoint=state)
    state.rename(out / "ck.1")
    steps: list[str] = []
    with pytest.raises(OutputError, match="checkpoint cannot be read"):
        onnxprune.prune(
            tiny_path, data=samples, reduce={"flops": 0.3}, schedule="progressive", steps=2, checkpoint=out / "ck",
            training=onnxprune.Training(amount=2, unit="steps"), on_stage=lambda stage, *_: steps.append(stage),
        )  # fmt: skip
    assert set(steps) == {"load"}
    assert (out / "ck.1").read_text() == "of the user"


@pytest.mark.torch
def test_a_model_with_gated_channels_has_no_plan(tiny, tiny_path, trained, out):
    for tensor in tiny.graph.initializer:  # filters of the first layer that never fire, and get no gradient
        array = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name in ("w1", "b1"):
            array[:5] = 0 if tensor.name == "w1" else -1
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    tiny.metadata_props.add(key=PROVENANCE + plan_file.ENTRY, value="0" * 64)
    onnx.save(tiny, out / "s.onnx")
    gated = onnxprune.Training(amount=40, unit="steps", gate_below=1e-12)
    result = trained(training=gated)
    assert result.report.training["gated"] == 5
    assert stored(out / "t.onnx") == ""
    result.save(out / "again.onnx")
    assert (out / "again.onnx").read_bytes() == (out / "t.onnx").read_bytes()
