"""The harness itself: it tells each kind of fault, follows from its seed, and sees what a careless writer leaves."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import children
import click
import commands
import faults
import pytest
from children import Limits
from model_mutators import mutate_model
from mutators import mutate_bytes, mutate_text, mutate_tree, to_json, to_toml

from onnxprune.cli import main
from onnxprune.errors import ModelError
from onnxprune.evaluation import policy
from onnxprune.report import ci_formats, console, saving  # noqa: F401  what a child would import each time

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
LIMITS = Limits(memory=0, file=0, seconds=2)


def fail() -> None:
    raise IndexError("odd")


def refuse() -> None:
    raise ModelError("no", hint="another")


def usage() -> None:
    raise click.UsageError("no such option")


def crash() -> None:
    ctypes.string_at(0)


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: "yes", "done"),
        (lambda: 3, "done"),
        (lambda: 1, "refused"),
        (refuse, "refused"),
        (usage, "refused"),
        (fail, "defect"),
        (crash, "crash"),
        (lambda: time.sleep(60), "hang"),
        (lambda: Path("../other").write_text("x"), "escape"),
        (lambda: str(Path("own").write_text("x")), "done"),
    ],
    ids=["text", "verdict", "exit", "refused", "usage", "exception", "signal", "no end", "outside", "inside"],
)
def test_each_kind_of_outcome_is_told_and_costs_no_other_case(call, kind, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    found = children.run(lambda case: case(), [lambda: "before", call, lambda: "after"], folder, LIMITS)
    assert [outcome.kind for outcome in found] == ["done", kind, "done"]


def test_memory_is_bounded(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (found,) = children.run(lambda size: len(bytearray(size)), [2 * 10**9], folder, Limits(memory=1e9))
    assert (found.kind, "memory" in found.detail) == ("refused", True)


def test_mutations_follow_from_the_seed():
    model, tree = commands.network(), {"a": [1, {"b": "c"}], "d": 0.5}
    for seed in range(200):
        for mutate, value in (
            (mutate_bytes, b"some bytes"),
            (mutate_text, b"a,1\nb,2\n"),
            (lambda found, rng: to_json(mutate_tree(found, rng)), tree),
            (lambda found, rng: to_toml(mutate_tree(found, rng)), tree),
            (lambda found, rng: mutate_model(found, rng).SerializeToString(), model),
        ):
            assert mutate(value, random.Random(seed)) == mutate(value, random.Random(seed))
    assert model == commands.network()
    assert tree == {"a": [1, {"b": "c"}], "d": 0.5}


def test_every_command_meets_faults():
    assert {command.args[0] for command in commands.COMMANDS} == set(main.commands) - {
        "ops"
    }  # it reads and writes no file


INIT = faults.named("check --init")


@pytest.fixture
def findings(tmp_path: Path) -> Callable[[], list[str]]:
    """Return a function that injects faults at every call of `check --init`, and returns what is wrong."""

    def found() -> list[str]:
        scene = faults.Scene(tmp_path / "scene", prepared=False)
        reference = scene.reference(INIT)
        return [
            problem
            for trial in faults.at_every_call(reference, ("ENOSPC",))
            for problem in scene.trial(trial, reference)
        ]

    return found


@pytest.mark.fuzz
def test_atomic_writer_is_clean(findings):
    assert findings() == []


@contextlib.contextmanager
def in_place(target: Path) -> Iterator[Path]:
    """Write a file where it is."""
    yield target


@contextlib.contextmanager
def without_cleaning(target: Path) -> Iterator[Path]:
    """Leave the temporary file where writing fails."""
    temporary = target.with_suffix(".part")
    yield temporary
    temporary.replace(target)


@pytest.mark.fuzz
@pytest.mark.parametrize(("writer", "says"), [(in_place, "has other bytes"), (without_cleaning, "is left behind")])
def test_careless_writer_is_found(writer, says, findings, monkeypatch):
    monkeypatch.setattr(policy, "atomic_write", writer)
    monkeypatch.setattr(faults, "EXACT", (".toml",))
    assert any(says in problem for problem in findings())


def test_changed_input_is_found(tmp_path):
    scene = faults.Scene(tmp_path / "scene", prepared=False)
    reference = scene.reference(INIT)

    def overwrite() -> None:
        (scene.folder / "in/model.onnx").write_bytes(b"")

    faults.run(INIT, scene.folder, before=overwrite)
    assert list(scene.inputs_changed()) == ["the input model.onnx is changed"]
    assert list(scene.inputs_changed()) == []  # it is put back
    assert reference.code == 0


def test_a_child_leaves_the_temporary_folders_of_its_parent(tmp_path: Path) -> None:
    """It ends as a process does, by its own exit functions, and not by those of the process that it was forked from."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        faults.Scene(tmp_path / "scene").reference(faults.named("check --init"))
        assert Path(folder).is_dir()
