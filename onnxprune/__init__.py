"""Prune exported ONNX CNNs, and prove the result with onnxruntime.

>>> import onnxprune
>>> result = onnxprune.prune("model.onnx", data="samples.npz", reduce={"flops": 0.4}, round_to=1, latency=False)
>>> result.save("pruned.onnx")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.data.preprocess import Preprocess as Preprocess
    from onnxprune.errors import OnnxPruneError as OnnxPruneError
    from onnxprune.evaluation.benchmark import BenchmarkConfig as BenchmarkConfig
    from onnxprune.evaluation.policy import GateLimits as GateLimits
    from onnxprune.options import Options as Options
    from onnxprune.options import Training as Training
    from onnxprune.pipeline.bench import bench as bench
    from onnxprune.pipeline.check import check as check
    from onnxprune.pipeline.finetune import finetune as finetune
    from onnxprune.pipeline.inspect import inspect as inspect
    from onnxprune.pipeline.plan import plan as plan
    from onnxprune.pipeline.prune import prune as prune
    from onnxprune.pipeline.sensitivity import sensitivity as sensitivity
    from onnxprune.pipeline.sweep import sweep as sweep


_HOMES = {
    "GateLimits": "evaluation.policy",
    "OnnxPruneError": "errors",
    "Options": "options",
    "Training": "options",
    "bench": "pipeline.bench",
    "check": "pipeline.check",
    "finetune": "pipeline.finetune",
    "inspect": "pipeline.inspect",
    "plan": "pipeline.plan",
    "prune": "pipeline.prune",
    "sensitivity": "pipeline.sensitivity",
    "sweep": "pipeline.sweep",
}
"""Module of each public name."""
_ARGUMENTS = {"BenchmarkConfig": "evaluation.benchmark", "Preprocess": "data.preprocess"}
"""Types of some arguments, which also take plain values."""
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `import onnxprune` stays light."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("onnxprune")
    home = {**_HOMES, **_ARGUMENTS}.get(name)
    if home is None:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"onnxprune.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
