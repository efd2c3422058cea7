"""A checkpoint is one file that is always complete; files that hold anything else are neither overwritten nor deleted."""

from __future__ import annotations

import pytest

import onnxprune
from onnxprune.errors import OutputError
from onnxprune.options import Training

torch = pytest.importorskip("torch")
from onnxprune.training import checkpoint  # noqa: E402  # it imports torch

pytestmark = pytest.mark.torch


@pytest.fixture
def state(tmp_path):
    path = tmp_path / "state"
    checkpoint.save(path, "key", {"weights": {"w": torch.arange(4.0)}, "notes": ["one"]})
    return path


def test_state_is_read_back(state, tmp_path):
    found = checkpoint.load(state, "key")
    assert found["notes"] == ["one"]
    assert found["weights"]["w"].tolist() == [0, 1, 2, 3]
    assert checkpoint.load(tmp_path / "none", "key") is None
    with pytest.raises(OutputError, match="another run"):
        checkpoint.load(state, "another key")


def test_only_the_state_of_the_run_is_deleted(state, tmp_path):
    checkpoint.forget(state, "another key")
    assert state.exists()
    checkpoint.forget(state, "key")
    assert not state.exists()
    checkpoint.forget(state, "key")


FOREIGN = {
    "text": lambda path: path.write_text("of the user"),
    "empty": lambda path: path.write_bytes(b""),
    "dict": lambda path: torch.save({"weights": torch.zeros(2)}, path),
    "list": lambda path: torch.save([1, 2], path),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_files_are_told_apart(kind, tmp_path):
    path = tmp_path / "ck.1"
    FOREIGN[kind](path)
    before = path.read_bytes()
    for step in (checkpoint.refuse_foreign, lambda path: checkpoint.load(path, "key")):
        with pytest.raises(OutputError, match="checkpoint cannot be read") as caught:
            step(path)
        assert caught.value.where == str(path)
    checkpoint.forget(path, "key")
    assert path.read_bytes() == before


def test_files_of_the_steps_of_a_schedule(tmp_path):
    path = tmp_path / "state"
    assert [checkpoint.file_of(path, step, 3).name for step in (1, 2, 3)] == ["state.1", "state.2", "state"]
    assert checkpoint.file_of(path, 1, 1) == path


NESTED = {
    "weights": {"w": torch.arange(4.0)},
    "validator": {"history": [{"step": 0, "loss": None}, {"step": 1, "loss": 0.5}], "best": {"w": torch.ones(2)}},
    "notes": ["one"],
}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["weights"]["w"][3].add_(1),
        lambda state: state["weights"].update(w=state["weights"]["w"].double()),
        lambda state: state["validator"].update(best=torch.ones(2)),
        lambda state: state["validator"]["best"].update(w=0.5),
        lambda state: state["validator"]["history"][1].update(step=torch.ones(2)),
        lambda state: state["validator"]["history"][1].update(loss={}),
        lambda state: state["validator"]["history"].pop(),
        lambda state: state["notes"].append(torch.ones(2)),
        lambda state: state.pop("digest"),
        lambda state: state.update(digest=torch.ones(2)),
    ],
    ids=["a value", "dtype", "best", "a weight", "a step", "a loss", "a row", "a note", "no digest", "another digest"],
)
def test_damage_in_the_depth_is_told_where_the_file_is_read(tmp_path, change):
    path = tmp_path / "state"
    checkpoint.save(path, "key", NESTED)
    assert checkpoint.load(path, "key")["notes"] == ["one"]
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    with pytest.raises(OutputError, match="cannot be read") as caught:
        checkpoint.load(path, "key")
    assert caught.value.where == str(path)
    assert "damaged" in caught.value.why


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("progress", 3),
        ("progress", {"step": "many"}),
        ("weights", 3),
        ("weights", {}),
        ("weights", {"w1": torch.zeros(2)}),
        ("weights", {"w1": "text"}),
        ("mean", None),
        ("buffers", []),
        ("validator", {}),
        ("optimizer", {}),
        ("notes", 3),
    ],
)
def test_damaged_content_is_told(tiny_path, samples, tmp_path, monkeypatch, entry, value):
    training = Training(amount=4, unit="steps", batch=16)
    call = {"data": samples, "training": training, "latency": False, "checkpoint": tmp_path / "ck"}
    with monkeypatch.context() as patch:
        patch.setattr("onnxprune.pipeline.reporting.compare", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            onnxprune.finetune(tiny_path, tiny_path, **call)
    state = torch.load(tmp_path / "ck", weights_only=True)
    torch.save({**state, entry: value}, tmp_path / "ck")
    with pytest.raises(OutputError, match="cannot be read"):
        onnxprune.finetune(tiny_path, tiny_path, **call)
