"""The table of importances: needs, function and paper of each method.

Light to import: the options list these names. A new method is one row here; its function may stand below the table.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """One importance.

    Attributes:
        doc: what a score is, and the paper.
        function: `module.name` in this package; the function takes `ScoringInputs` and returns (n_channels,) scores, NaN where the
            method does not apply. Empty: a score is the loss of a channel at its place in the order of removal.
        data: whether the method needs calibration samples.
        torch: whether the method differentiates the loss, in torch; its scores are in units of the loss.
    """

    doc: str
    function: str = ""
    data: bool = False
    torch: bool = False

    def load(self) -> Callable[[Any], Any]:
        """Import and return the function."""
        module, _, name = self.function.rpartition(".")
        function: Callable[[Any], Any] = getattr(importlib.import_module(f"onnxprune.importance.{module}"), name)
        return function


METHODS = {
    "obs": Method("error of the readers after compensation (Hassibi and Stork, 1993, eq. 5)", data=True),
    "activation": Method("variance x squared weight: obs with a diagonal Hessian", "obs.activation", data=True),
    "apoz": Method("share of non-zero activations (Hu et al., 2016, eq. 1)", "obs.activation", data=True),
    "taylor": Method("E |dL/dm| (Molchanov et al., 2019, eq. 8)", "gradients.scores", data=True, torch=True),
    "fisher": Method("E (dL/dm)^2 / 2 (Theis et al., 2018, eq. 7)", "gradients.scores", data=True, torch=True),
    "hessian": Method("diagonal of the Hessian / 2 (Bekas et al., 2007)", "gradients.scores", data=True, torch=True),
    "l1": Method("L1 norm of writers x L1 norm of readers (Li et al., 2017)", "weights.l1"),
    "l2": Method("L2 norm of writers x L2 norm of readers (He et al., 2018, soft filter pruning)", "weights.l2"),
    "fpgm": Method("sum of distances to the other filters (He et al., 2019, eq. 6)", "weights.fpgm"),
    "bn_scale": Method("magnitude of the BatchNormalization scale (Liu et al., 2017)", "weights.bn_scale"),
    "random": Method("random, by the seed", "weights.random"),
}
"""Methods by the name that `--importance` takes; the first one is the default with calibration samples."""
