"""The measures of `tools/trained.py`, and its verdicts; the models themselves are fetched by the tool alone."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.fixture(scope="module")
def tool() -> Any:
    """Return modules of tools/ by name."""
    sys.path.insert(0, str(TOOLS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    sys.path.remove(str(TOOLS))


@pytest.mark.parametrize(
    ("reading", "wanted", "right"), [("abc", "abc", 3), ("axc", "abc", 2), ("", "abc", 0), ("abcd", "abc", 2)]
)
def test_characters_are_counted_by_edit_distance(tool: Any, reading: str, wanted: str, right: int) -> None:
    assert tool("trained_tasks").same_text(reading, wanted) == (right, len(wanted))


def test_ctc_drops_repeats_and_blanks(tool: Any) -> None:
    classes = [1, 1, 0, 1, 2, 2]
    logits = np.eye(3)[classes][None]
    assert tool("trained_tasks").ctc(["", "a", "b"])([logits]) == "aab"


def test_boxes_match_once_and_within_their_class(tool: Any) -> None:
    tasks = tool("trained_tasks")
    wanted = tasks.rows([(0, 0, 10, 10, 0), (20, 20, 30, 30, 1)])
    assert tasks.same_boxes(wanted, wanted) == (4, 4)
    doubled = tasks.rows([(0, 0, 10, 10, 0), (0, 0, 10, 11, 0)])
    assert tasks.same_boxes(doubled, wanted) == (2, 4)
    other_class = tasks.rows([(0, 0, 10, 10, 1), (20, 20, 30, 30, 1)])
    assert tasks.same_boxes(other_class, wanted) == (2, 4)


def test_blobs_are_the_boxes_of_what_the_map_marks(tool: Any) -> None:
    page = np.zeros((1, 1, 20, 30), np.float32)
    page[0, 0, 2:6, 3:12] = page[0, 0, 10:15, 5:25] = 0.9
    found = tool("trained_tasks").blobs(0.3)([page])
    assert found.tolist() == [[3, 2, 12, 6, 0], [5, 10, 25, 15, 0]]


def test_pitch_counts_frames_within_50_cents(tool: Any) -> None:
    wanted = np.array([440.0, 440.0, 440.0, 0.0])
    reading = 440 * 2 ** (np.array([40, -60, 0, 0]) / 1200)
    assert tool("trained_tasks").within_50_cents(reading, wanted) == (2, 3)


def test_values_explain_their_own_variance(tool: Any) -> None:
    values = np.arange(10.0)
    shared, whole = tool("trained_tasks").same_values(values, values)
    assert shared == whole > 0
    assert tool("trained_tasks").same_values(np.full(10, 4.5), values)[0] == pytest.approx(0)


GOOD = {
    "rc": 0,
    "passed": True,
    "proof": 1e-7,
    "reached": 0.31,
    "bytes": 700,
    "parameters": 0.2,
    "counted": 0.31,
    "peak": 5e8,
}


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({}, None),
        ({"reached": 0.47, "counted": 0.47}, "got -47"),
        ({"bytes": 1200}, "grew by 20%"),
        ({"peak": 2e9}, "2.0 GB of memory"),
        ({"proof": None}, "not proven"),
        ({"counted": 0.1}, "inspect"),
        ({"passed": False, "failed": ["same inputs"]}, "same inputs"),
        ({"rc": 1, "error": "Traceback: ValueError"}, "Traceback"),
        ({"rc": 1, "error": "nothing can be pruned"}, "nothing"),
    ],
)
def test_a_run_is_right_only_when_all_of_it_is(tool: Any, changed: dict[str, Any], fault: str | None) -> None:
    model = next(m for m in tool("trained_models").MODELS if not m.legitimate)
    verdict = tool("trained_page").judge(model, {"bytes": 1000}, {**GOOD, **changed})
    assert verdict == "right" if fault is None else verdict.startswith("wrong") and fault in verdict


def test_a_refusal_counts_only_with_its_reason(tool: Any) -> None:
    model = next(m for m in tool("trained_models").MODELS if m.legitimate.startswith("quanti"))
    judge = tool("trained_page").judge
    assert judge(model, {"bytes": 1000}, {"rc": 1, "error": "the model is quantized"}).startswith("refused")
    assert judge(model, {"bytes": 1000}, {"rc": 1, "error": "Traceback: the model is quantized"}).startswith("wrong")
    assert judge(model, {"bytes": 1000}, {"rc": 1, "error": "a shape does not fit"}).startswith("wrong")
