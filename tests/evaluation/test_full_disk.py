"""A full disk says nothing about a model."""

from __future__ import annotations

import errno
import tempfile

import pytest

from onnxprune.evaluation.structure import full_check
from onnxprune.graph.io import load


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError()])
def test_temporary_files_that_cannot_be_written_are_no_reason_against_a_model(error, tiny_path, monkeypatch):
    model = load(tiny_path)

    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(type(error)):
        full_check(model)
    monkeypatch.undo()
    assert full_check(model) is None
