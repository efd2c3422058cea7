"""A full disk says nothing about a model, and ends no run that can do without temporary files."""

from __future__ import annotations

import errno

import pytest

from onnxprune import leftovers
from onnxprune.evaluation import structure
from onnxprune.evaluation.structure import full_check
from onnxprune.graph.io import load


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError()])
def test_temporary_files_that_cannot_be_written_are_no_reason_against_a_model(error, tiny_path, monkeypatch):
    model = load(tiny_path)

    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(leftovers, "_new_folder", full)
    if isinstance(error, OSError):
        assert full_check(model) is None
        monkeypatch.setattr(structure, "PROTO_LIMIT", 1)
    with pytest.raises(type(error)):
        full_check(model)
