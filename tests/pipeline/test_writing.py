"""What a run writes takes its place together, and what a run deletes is its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import onnx
import pytest

import onnxprune
from onnxprune import plan_file
from onnxprune.errors import OptionError, OutputError
from onnxprune.graph import io
from onnxprune.graph.model import PROVENANCE

QUICK = onnxprune.BenchmarkConfig(latency=False)


def prune(model: Path, output: Path, share: float) -> None:
    onnxprune.prune(model, output=output, reduce={"flops": share}, repair="none", round_to=1, measure=QUICK)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stored(model: Path) -> str:
    entries = {entry.key: entry.value for entry in onnx.load(model, load_external_data=False).metadata_props}
    return entries.get(PROVENANCE + plan_file.ENTRY, "")


def belong_together(original: Path, model: Path, plan: Path) -> bool:
    try:
        plan_file.refuse_other(plan, io.read(original)[2], model, stored(model))
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


def test_a_kill_between_plan_and_model_is_told(tiny_path, out):
    target, plan = out / "s.onnx", out / "s.plan.json"
    prune(tiny_path, target, 0.3)
    new = out.with_name("new")
    new.mkdir()
    prune(tiny_path, new / "s.onnx", 0.6)
    shutil.copy(new / "s.plan.json", plan)  # what a kill before the last of the two leaves
    assert not belong_together(tiny_path, target, plan)
    prune(tiny_path, target, 0.6)
    assert belong_together(tiny_path, target, plan)
    assert contents(out) == contents(new)


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
