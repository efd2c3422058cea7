"""Times that decisions are taken from are measured once, written to a file, and replayed: then to the same bytes."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

import onnxprune
from onnxprune.allocation import channel_multiple, cost_estimator, edit_timing, latency_model
from onnxprune.errors import LatencyError, OutputError
from onnxprune.graph.model import Model
from onnxprune.options import GRANULARITIES
from onnxprune.pipeline import contest, schedule
from onnxprune.runtime import machine
from onnxprune.runtime.timings import SCHEMA, Timings
from onnxprune.types import FloatArray

FEW = onnxprune.BenchmarkConfig(runs=3, warmup=1, seconds=1)
AUTO = {"granularity": GRANULARITIES, "reduce": {"flops": 0.4}, "round_to": 4}
EDITS = {**AUTO, "granularity": ("kernel", "rank")}


def refuse(*_: Any, **__: Any) -> Any:
    pytest.fail("something was timed")


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after which no time that decides may be measured."""

    def forbid() -> None:
        for place, name in (
            (edit_timing, "layer_times"),
            (cost_estimator, "median_times"),
            (schedule, "median_times"),
            (contest, "median_times"),
            (latency_model, "measure"),
            (channel_multiple, "machine_multiple"),
        ):
            monkeypatch.setattr(place, name, refuse)

    return forbid


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a layer take another time whenever it is timed, as on a busy machine."""
    rng = np.random.default_rng(3)
    monkeypatch.setattr(edit_timing, "layer_times", lambda layers: rng.lognormal(size=len(layers)).tolist())


@pytest.fixture
def few(samples: Path, tmp_path: Path) -> Path:
    with np.load(samples) as content:
        np.savez(tmp_path / "few.npz", x=content["x"][:16])
    return tmp_path / "few.npz"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pruned(model: Path, folder: Path, **how: Any) -> dict[str, bytes]:
    folder.mkdir()
    onnxprune.prune(model, output=folder / "o.onnx", **{"measure": FEW, "force": True, **how})
    return files(folder)


def test_the_same_timings_give_the_same_bytes(tiny_path: Path, few: Path, tmp_path: Path, noisy, untimed) -> None:
    how = {"data": few, "timings": tmp_path / "t.json", **AUTO}
    first = pruned(tiny_path, tmp_path / "a", **how)
    table = (tmp_path / "t.json").read_bytes()
    untimed()
    assert pruned(tiny_path, tmp_path / "b", **how) == first
    assert (tmp_path / "t.json").read_bytes() == table


def test_other_timings_give_another_plan(tiny_path: Path, few: Path, noisy, tmp_path: Path, monkeypatch) -> None:
    how = {"data": few, "reduce": {"flops": 0.4}, "granularity": ("kernel", "rank"), "round_to": 2}
    found = set()
    for number in range(4):
        monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / str(number)))
        found.add(str(onnxprune.plan(tiny_path, **how).plan.blocks))
    assert len(found) > 1


def test_two_runs_at_once_with_the_same_timings_give_the_same_bytes(
    tiny_path: Path, few: Path, tmp_path: Path, noisy
) -> None:
    how = {"data": few, "timings": tmp_path / "t.json", **EDITS}
    first = pruned(tiny_path, tmp_path / "a", **how)
    found: list[dict[str, bytes]] = []
    threads = [
        threading.Thread(target=lambda name=name: found.append(pruned(tiny_path, tmp_path / name, **how)))
        for name in "bc"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [first, first]


def test_a_latency_target_is_replayed(tiny_path: Path, tmp_path: Path, untimed, monkeypatch) -> None:
    """Also where the cache has no table of latencies by then."""
    rng = np.random.default_rng(0)

    def profiled(model: Model, *_: object) -> tuple[FloatArray, float]:
        macs = [sum(np.prod(t.shape) for t in node.inputs if isinstance(t, gs.Constant)) for node in model.graph.nodes]
        return np.array([*macs, 1.0]) * rng.uniform(0.9, 1.1), float(sum(macs)) / 1e3

    monkeypatch.setattr(latency_model, "_profiled", profiled)
    monkeypatch.setattr(
        cost_estimator,
        "median_times",
        lambda sessions, *_, **__: [1.0, rng.uniform(0.5, 0.9)][: len(sessions)],
    )
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "one"))
    how = {"reduce": {"latency": 0.3}, "round_to": 1, "repair": "none", "timings": tmp_path / "t.json"}
    first = pruned(tiny_path, tmp_path / "a", **how)
    untimed()
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "none"))
    assert pruned(tiny_path, tmp_path / "b", **how) == first


def test_the_report_says_what_was_replayed(tiny_path: Path, few: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    how = {"data": few, "timings": path, "measure": FEW, **EDITS}
    notes = [onnxprune.plan(tiny_path, **how).notes[-1] for _ in range(2)]
    count = len(json.loads(path.read_text())["times"])
    assert notes == [f"timings {path}: 0 replayed, {count} measured", f"timings {path}: {count} replayed, 0 measured"]
    result = onnxprune.prune(tiny_path, **how)
    assert f"timings {path}: {count} replayed, 1 measured" in result.report.notes  # the final latency


def test_a_sweep_takes_its_timings_from_the_file(tiny_path: Path, tmp_path: Path, untimed) -> None:
    how = {"shares": (0.2,), "repair": "none", "latency": False, "timings": tmp_path / "t.json"}
    onnxprune.sweep(tiny_path, tmp_path / "a", **how)
    untimed()
    onnxprune.sweep(tiny_path, tmp_path / "b", **how)
    first, second = (
        {k: v for k, v in files(tmp_path / n).items() if k.endswith((".onnx", ".plan.json"))} for n in "ab"
    )
    assert first == second
    assert len(first) == 2


def test_timings_are_kept_when_the_run_fails(tmp_path: Path) -> None:
    timings = Timings(tmp_path / "t.json")

    def fails() -> None:
        with timings.kept():
            timings.of("layer", 1, lambda: [0.125])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert Timings(tmp_path / "t.json").of("layer", 1, refuse) == (0.125,)


def test_timings_that_cannot_be_written_do_not_lose_the_result(tiny_path: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OutputError("cannot write t.json", where=str(tmp_path), why="No space left on device")

    monkeypatch.setattr(Timings, "save", full)
    how = {"reduce": {"flops": 0.3}, "repair": "none", "timings": tmp_path / "t.json", "measure": FEW, "force": True}
    result = onnxprune.prune(tiny_path, output=tmp_path / "o.onnx", **how)
    assert (tmp_path / "o.onnx").exists()
    assert any("not written" in note and "No space left" in note for note in result.report.notes)


def test_timings_of_another_machine_are_taken_and_the_report_says_so(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "t.json"
    with (timings := Timings(path)).kept():
        timings.of("layer", 1, lambda: [0.125])
    monkeypatch.setattr(machine, "_processor", lambda: "another one, 3 cores")
    found = Timings(path)
    assert found.of("layer", 1, refuse) == (0.125,)
    assert "this machine is another one, 3 cores" in found.notes[1]


def bad_tables() -> Iterator[str]:
    good = {"schema": SCHEMA, "processor": "p", "runtime": "r", "times": {"a": [1.0]}, "tables": {}}
    yield from ("", "[]", "{}", "nothing", "[" * 100_000, json.dumps({**good, "schema": "onnxprune.timings/0"}))
    for value in ("NaN", "Infinity", "1e999", "0", "-1", '"1"', "true", "null", "[1]", "9" * 400):
        yield json.dumps(good).replace("[1.0]", f"[{value}]")
    for part, value in itertools.product(("times", "tables"), ([], 3, {"a": 3})):
        yield json.dumps({**good, part: value})
    yield json.dumps(good).replace('"tables": {}', '"tables": {"a": {"b": [NaN]}}')


@pytest.mark.parametrize("text", list(bad_tables()), ids=lambda text: text[:80])
def test_a_damaged_file_is_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(LatencyError, match="timing table cannot be used") as caught:
        Timings(path)
    assert caught.value.where == str(path)
    assert path.read_text() == text


def test_a_file_with_another_number_of_times_is_refused(tmp_path: Path) -> None:
    with (timings := Timings(tmp_path / "t.json")).kept():
        timings.of("layer", 2, lambda: [1.0, 2.0])
    with pytest.raises(LatencyError, match="cannot be used") as caught:
        Timings(tmp_path / "t.json").of("layer", 1, refuse)
    assert "`layer` has 2 times instead of 1" in caught.value.why


@pytest.mark.parametrize("name", ["o.onnx", "o.plan.json", "tiny.onnx"])
def test_timings_do_not_overwrite_another_file(name: str, tiny_path: Path, tmp_path: Path) -> None:
    before = tiny_path.read_bytes()
    with pytest.raises((OutputError, LatencyError)):
        onnxprune.prune(tiny_path, output=tmp_path / "o.onnx", timings=tmp_path / name, reduce={"flops": 0.3})
    assert tiny_path.read_bytes() == before
    assert not (tmp_path / "o.onnx").exists()
