"""Times of layers are kept from run to run, and a damaged file counts as empty."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import onnxprune
from onnxprune.allocation import edit_timing
from onnxprune.runtime import layer_times
from onnxprune.runtime.layer_times import LayerTimes
from onnxprune.runtime.session import SessionConfig


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(folder))
    return folder


def test_times_are_kept_for_the_machine_and_the_way_to_run() -> None:
    times = LayerTimes(SessionConfig(threads=1), 1)
    with times.kept():
        assert times.of("a", 2, lambda: [2.0, 1.0]) == (2.0, 1.0)
        assert times.of("a", 2, lambda: [9.0, 9.0]) == (2.0, 1.0)
    assert LayerTimes(SessionConfig(threads=1), 1).of("a", 2, lambda: [9.0, 9.0]) == (2.0, 1.0)
    assert LayerTimes(SessionConfig(threads=2), 1).of("a", 2, lambda: [9.0, 9.0]) == (9.0, 9.0)
    assert LayerTimes(SessionConfig(threads=1), 8).of("a", 2, lambda: [9.0, 9.0]) == (9.0, 9.0)
    assert LayerTimes(SessionConfig(threads=1), 1).of("a", 1, lambda: [7.0]) == (7.0,), "another number of times"


def test_two_processes_keep_what_both_have_measured() -> None:
    one, two = (LayerTimes(SessionConfig(), 1) for _ in range(2))
    with one.kept(), two.kept():
        one.of("a", 1, lambda: [1.0])
        two.of("b", 1, lambda: [2.0])
    assert {"a", "b"} == set(json.loads(one.path.read_text())["times"])


def test_what_was_measured_is_kept_on_an_error_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_times, "MOST", 3)
    times = LayerTimes(SessionConfig(), 1)

    def broken() -> None:
        with times.kept():
            for number, key in enumerate("abcd", start=1):
                times.of(key, 1, lambda number=number: [float(number)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert list(json.loads(times.path.read_text())["times"]) == ["b", "c", "d"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"schema": "onnxprune.layer-times/1"}', '{"schema": 1, "times": {}}', '{"times": {"a": "b"}}'],
)
def test_a_damaged_file_counts_as_empty(text: str) -> None:
    times = LayerTimes(SessionConfig(), 1)
    times.path.parent.mkdir(parents=True, exist_ok=True)
    times.path.write_text(text)
    again = LayerTimes(SessionConfig(), 1)
    with again.kept():
        assert again.of("a", 1, lambda: [3.0]) == (3.0,)
    assert LayerTimes(SessionConfig(), 1).of("a", 1, lambda: [4.0]) == (3.0,)


@pytest.mark.parametrize("value", [0, -1, "NaN", "Infinity", '"x"', "[1]"])
def test_a_time_that_is_none_is_measured(value: object) -> None:
    times = LayerTimes(SessionConfig(), 1)
    with times.kept():
        times.of("a", 1, lambda: [5.0])
    times.path.write_text(times.path.read_text().replace("5.0", str(value)))
    assert LayerTimes(SessionConfig(), 1).of("a", 1, lambda: [6.0]) == (6.0,)


def test_the_same_command_chooses_the_same_edits_again_whatever_it_would_measure(
    tiny_path: Path, samples: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(edit_timing, "layer_times", lambda layers: list(rng.lognormal(0, 1, len(layers))))
    how = {"data": samples, "reduce": {"flops": 0.4}, "round_to": 2}
    blocks = [onnxprune.plan(tiny_path, **how).plan.blocks for _ in range(3)]
    assert blocks[0] == blocks[1] == blocks[2]
    seen = set()
    for number in range(4):
        monkeypatch.setenv("ONNXPRUNE_CACHE", str(own_cache / str(number)))
        seen.add(json.dumps(onnxprune.plan(tiny_path, **how, granularity=("rank", "kernel")).plan.blocks))
    assert len(seen) > 1, "with other times other edits are chosen, so that the cache is what keeps them"
