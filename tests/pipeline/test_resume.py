"""A run that breaks off at any stage goes on from its work, and gives the same bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import onnxprune
from onnxprune.calibration import stage_results
from onnxprune.errors import OutputError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.options import Options, Training
from onnxprune.pipeline.distillation import state_file
from onnxprune.pipeline.run import Destinations, Run, Sources

UNTIMED = BenchmarkConfig(latency=False)
KINDS = {
    "block": Options(reduce={"flops": 0.4}, round_to=1, augment=()),
    "progressive": Options(reduce={"flops": 0.4}, round_to=1, augment=(), schedule="progressive", steps=2),
    "edits": Options(reduce={"flops": 0.4}, round_to=1, augment=(), granularity=("filter", "kernel", "rank")),
    "least loss": Options(max_drop=30.0, round_to=2, augment=()),
}


@pytest.fixture(autouse=True)
def store_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_results, "WORTH", 0.0)


class BreakError(Exception):
    """The run breaks off."""


def breaking(at: int) -> Iterator[Any]:
    """Yield a progress callback that raises when the stage changes for the `at`-th time."""
    seen: list[str] = []

    def on_stage(stage: str, share: float | None, detail: str = "") -> None:
        if not seen or seen[-1] != stage:
            seen.append(stage)
        if len(seen) > at:
            raise BreakError(stage)

    return on_stage


def stages_of(call: dict[str, Any]) -> tuple[bytes, int]:
    """Return the bytes of a run that is not disturbed, and how often its stage changes."""
    seen: list[str] = []

    def on_stage(stage: str, share: float | None, detail: str = "") -> None:
        if not seen or seen[-1] != stage:
            seen.append(stage)

    onnxprune.prune(**call, on_stage=on_stage)
    return Path(call["output"]).read_bytes(), len(seen)


@pytest.mark.parametrize("kind", KINDS)
def test_prune_goes_on_from_any_stage(kind: str, tiny_path: Path, samples: Path, out: Path) -> None:
    call = {"model": tiny_path, "data": samples, "options": KINDS[kind], "measure": UNTIMED, "output": out / "o.onnx"}
    whole, stages = stages_of(call)
    reused = 0
    for at in (1, stages // 2, stages - 1):
        for path in out.iterdir():
            path.unlink()
        with pytest.raises(BreakError) as caught:
            onnxprune.prune(**call, on_stage=breaking(at))
        assert [path.name for path in out.iterdir()] in ([], ["o.onnx.state"])
        reused += bool(getattr(caught.value, "__notes__", []))
        onnxprune.prune(**call, resume=True)
        assert (out / "o.onnx").read_bytes() == whole
        assert sorted(path.name for path in out.iterdir()) == ["o.onnx", "o.plan.json"]
    assert reused == 2  # there is nothing to go on from at first


def test_a_resumed_run_does_the_long_steps_no_more(
    tiny_path: Path, samples: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = {
        "model": tiny_path,
        "data": samples,
        "options": KINDS["block"],
        "measure": UNTIMED,
        "output": out / "o.onnx",
    }
    with monkeypatch.context() as patch:
        patch.setattr("onnxprune.pipeline.reporting.compare", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError) as caught:
            onnxprune.prune(**call)
    assert "--resume goes on" in caught.value.__notes__[0]
    for name in ("onnxprune.pipeline.edited_model.refit_if_better", "onnxprune.allocation.problem.calibrated_scores"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("the result is there"))
    assert onnxprune.prune(**call, resume=True).report.verdict


@pytest.mark.torch
def test_training_goes_on(tiny_path: Path, samples: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    training = Training(amount=4, unit="steps", batch=16)
    call = {"model": tiny_path, "data": samples, "options": KINDS["block"], "measure": UNTIMED, "training": training}
    onnxprune.prune(**call, output=out / "whole.onnx")
    with monkeypatch.context() as patch:
        patch.setattr("onnxprune.pipeline.reporting.compare", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            onnxprune.prune(**call, output=out / "o.onnx")
    assert (out / "o.onnx.state" / "training").exists()
    result = onnxprune.prune(**call, output=out / "o.onnx", resume=True)
    assert (out / "o.onnx").read_bytes() == (out / "whole.onnx").read_bytes()
    assert not any("resumed" in note for note in result.report.notes)  # it was finished
    assert not (out / "o.onnx.state").exists()


def test_other_inputs_are_refused(tiny_path: Path, samples: Path, out: Path) -> None:
    call = {
        "model": tiny_path,
        "data": samples,
        "options": KINDS["block"],
        "measure": UNTIMED,
        "output": out / "o.onnx",
    }
    with pytest.raises(BreakError):
        onnxprune.prune(**call, on_stage=breaking(6))
    assert (out / "o.onnx.state").exists()
    other = {name: array + 1 for name, array in np.load(samples).items()}
    np.savez(samples, **other)
    with pytest.raises(OutputError, match="different: data"):
        onnxprune.prune(**call, resume=True)
    onnxprune.prune(**call)


def test_the_limit_of_the_verdict_is_no_other_run(tiny_path: Path, samples: Path, out: Path) -> None:
    call = {"model": tiny_path, "data": samples, "reduce": {"flops": 0.3}, "measure": UNTIMED, "output": out / "o.onnx"}
    with pytest.raises(BreakError):
        onnxprune.prune(**call, on_stage=breaking(6))
    assert (out / "o.onnx.state").is_dir()
    assert onnxprune.prune(**call, tolerate=50.0, resume=True).files


def test_a_state_that_is_a_file_is_told(tiny_path: Path, samples: Path, out: Path) -> None:
    (out / "o.onnx.state").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        onnxprune.prune(tiny_path, data=samples, reduce={"flops": 0.3}, output=out / "o.onnx", measure=UNTIMED)
    assert (out / "o.onnx.state").read_text() == "mine"


def test_command(run: Any, tiny_path: Path, samples: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = (
        "prune",
        tiny_path,
        "-o",
        out / "o.onnx",
        "--data",
        samples,
        "--reduce",
        "flops=40%",
        "--round-to",
        1,
        "--no-latency",
    )
    with monkeypatch.context() as patch:
        patch.setattr("onnxprune.pipeline.reporting.compare", lambda *_: (_ for _ in ()).throw(OutputError("no room")))
        broken = run(*call)
    assert broken.exit_code == 1
    assert f"kept:  the work so far is kept in {out / 'o.onnx.state'}" in broken.stderr
    assert run(*call, "--resume").exit_code == 0
    assert not (out / "o.onnx.state").exists()


def _with_external_data(tiny: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "apart.onnx"
    onnx.save_model(tiny, str(path), save_as_external_data=True, location="apart.data", size_threshold=0)
    return path


def test_a_sweep_sees_changed_inputs(tiny: onnx.ModelProto, images: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "pictures" / "a").mkdir(parents=True)
    model = _with_external_data(tiny, folder)
    for number in range(8):
        Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(folder / "pictures" / "a" / f"{number}.png")
    arrays = np.repeat(images, 200, axis=0)
    options = Options(round_to=2, augment=(), repair="none")

    def swept(**change: Any) -> None:
        call: dict[str, Any] = {"data": arrays, "options": options, "measure": UNTIMED, "shares": (0.3,)}
        onnxprune.sweep(model, tmp_path / "s", **call | change)

    swept()
    swept()  # the same
    other = arrays.copy()
    other[700, 1, 4, 4] += 1
    with pytest.raises(OutputError, match="different: data"):
        swept(data=other)
    pictures = {"data": folder / "pictures", "preprocess": "unit"}
    with pytest.raises(OutputError, match="different: data"):
        swept(**pictures)
    data = folder / "apart.data"
    content, stamp = bytearray(data.read_bytes()), data.stat()
    content[8] ^= 1
    data.write_bytes(content)
    os.utime(data, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(OutputError, match="different: model"):
        swept()


def test_a_sweep_sees_a_changed_picture(tiny_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures" / "a"
    folder.mkdir(parents=True)
    for number in range(8):
        Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(folder / f"{number}.bmp")
    call: dict[str, Any] = {"data": folder.parent, "preprocess": "unit", "measure": UNTIMED, "shares": (0.3,)}
    call["options"] = Options(round_to=2, augment=(), repair="none")
    onnxprune.sweep(tiny_path, tmp_path / "s", **call)
    stamp = (folder / "3.bmp").stat()
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(folder / "3.bmp")
    os.utime(folder / "3.bmp", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(OutputError, match="different: data"):
        onnxprune.sweep(tiny_path, tmp_path / "s", **call)


@pytest.mark.torch
def test_a_second_attempt_of_a_schedule_has_states_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    options = KINDS["progressive"].resolved(True)
    run = Run(Sources(tmp_path / "m.onnx"), Destinations(checkpoint=tmp_path / "ck"), options=options)
    names = [[state_file(replace(run, attempt=attempt), step) for step in (1, 2)] for attempt in (1, 2)]
    assert names == [[tmp_path / "ck.1", tmp_path / "ck"], [tmp_path / "ck.3", tmp_path / "ck"]]
