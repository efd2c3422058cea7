"""Everything that needs gradients: the graph run by torch, fine-tuning, and importances from gradients. The only importer of torch."""

from __future__ import annotations

import importlib.util

from onnxprune.errors import OptionError


def require_torch(what: str) -> None:
    """Refuse what needs torch where it is not installed; it is not loaded.

    Args:
        what: the option or command that needs it.

    Raises:
        OptionError: it is missing.
    """
    if importlib.util.find_spec("torch") is None:
        raise OptionError(
            f"{what} needs torch",
            why="it is not installed, as everything else does without",
            hint="pip install 'onnxprune[train]'",
        )
