"""Prune exported ONNX CNNs, and prove it with onnxruntime.

>>> import onnxprune
>>> result = onnxprune.prune("model.onnx", data="calibration.npz", reduce={"flops": 0.5})  # doctest: +SKIP
>>> result.save("pruned.onnx")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.data.preprocess import Preprocess
    from onnxprune.errors import OnnxPruneError
    from onnxprune.evaluation.benchmark import BenchmarkConfig
    from onnxprune.evaluation.gate import check
    from onnxprune.finetuning import finetune
    from onnxprune.options import Training
    from onnxprune.pipeline import Result, prune
    from onnxprune.sweeping import sweep


_HOMES = {
    "BenchmarkConfig": "evaluation.benchmark",
    "OnnxPruneError": "errors",
    "Preprocess": "data.preprocess",
    "Result": "pipeline",
    "Training": "options",
    "check": "evaluation.gate",
    "finetune": "finetuning",
    "prune": "pipeline",
    "sweep": "sweeping",
}
__all__ = [
    "BenchmarkConfig",
    "OnnxPruneError",
    "Preprocess",
    "Result",
    "Training",
    "check",
    "finetune",
    "prune",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that `import onnxprune` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"onnxprune.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
