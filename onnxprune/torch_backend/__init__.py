"""The graph in torch: the executor, the operator functions, and the losses and batches that need tensors.

May import errors, types, options, runtime, data, calibration, the modules of the graph, and fidelity. Its modules load torch; this one does not.
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
            why="it is not installed, as everything else does without",
            hint="pip install 'onnxprune[train]'",
        )
