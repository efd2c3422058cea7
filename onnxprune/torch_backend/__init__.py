"""The graph in torch: the executor, the operator functions, and the losses and batches that need tensors.

It imports `runtime`, `data`, `graph`, `metrics` and `calibration`, and modules of the root. Its modules load torch;
this one does not.
"""

from __future__ import annotations

import importlib.util

from onnxprune.errors import OptionError


def require_torch(what: str) -> None:
    """Refuse an option or command that needs torch where torch is not installed. Does not load torch.

    Raises:
        OptionError: torch is missing.
    """
    if importlib.util.find_spec("torch") is None:
        raise OptionError(
            f"{what} needs torch",
            why="torch is not installed; only training and importances from gradients need it",
            hint="pip install 'onnxprune[train]'",
        )
