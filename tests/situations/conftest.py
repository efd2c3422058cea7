"""A fixture that writes the files of a situation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from networks import build


@pytest.fixture
def situation(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes a situation into a temporary folder and returns the path of its model."""
    return lambda name: build(name, tmp_path)
