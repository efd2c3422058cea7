"""Reports of no run at all, with everything that may be in one."""

from __future__ import annotations

import numpy as np

from onnxprune.evaluation.benchmark import LayerTime
from onnxprune.graph.analysis import Layer
from onnxprune.report.details import Changed, ClassRate, Details
from onnxprune.report.document import Figures, Report
from onnxprune.report.grouping import GroupNode
from onnxprune.types import Check, Curve, Repaired, Verdict

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
EVIL = "</script><script>alert(1)</script>$$x$$"
PLAN = {"schema": "onnxprune.plan/1", "groups": []}


def made_details(names: list[str], *, pictures: bool = True) -> Details:
    """Return details of layers that feed each other in a chain, every fifth one also the one before it."""
    times = tuple(LayerTime(name, "Conv", 100.0 + n, 50.0 if n % 2 else None) for n, name in enumerate(names))
    classes = tuple(ClassRate(f"class {n}", 100, 90.0, 90.0 - n, float(n), 0.0) for n in range(10))
    changed = tuple(
        Changed(n, f"class {n}", f"class {n}", EVIL, 60.0, 70.0, 80.0 - n, PIXEL if pictures else "") for n in range(24)
    )
    last = len(names) - 1
    groups = tuple(
        GroupNode(
            name,
            (name, f"{name}/twin", f"{name}/third"),
            ("norm",) if n == 1 else (),
            names[n + 1 : n + 2],
            64,
            64 if n % 3 else 32,
            8 if n % 2 else 0,
            ("it is the model's <output>",) if n % 2 else (),
            tuple(k for k in (n - 1 if n % 5 == 4 else -1, n + 1) if 0 <= k <= last),
        )
        for n, name in enumerate(names)
    )
    return Details(times, True, classes, changed, 30, groups)


def made_report(layers: int) -> Report:
    """Return a report with everything that may be in one, and a layer whose name is evil."""
    rng = np.random.default_rng(0)
    names = [EVIL, *(f"/backbone/stage{n // 9}/block{n % 9}/conv/Conv" for n in range(1, layers))]
    some = tuple(Layer(name, "Conv", 64, int(rng.integers(1, 64)), 10**6, 10**5, 1000, 500) for name in names)
    curves = [Curve(name, np.arange(64), np.array([0, 8, 32]), np.array([0.0, 0.01, rng.random()])) for name in names]
    looks = [
        {"step": step, "seconds": 0.1, "loss": None, "divergence": 1 / (step + 1), "agreement": 90.0, "top1": None}
        for step in (0, 10)
    ]
    checks = (
        Check("fits", True, None, True),
        Check("latency", 2.0, 1.0, False, "a <detail>", kind="cost"),
        Check("lost", 0.5, 0.4, True, "too few samples", undecided=True, kind="quality"),
    )
    return Report(
        model="folder/model.onnx",
        sha256="0" * 64,
        output="small.onnx",
        settings={"reduce": {"flops": 0.5}, "seed": 7},
        before=Figures(2e6, 1e6, 1000, 4000, {"top1": 90.0}),
        after=Figures(1e6, 5e5, 500, 2000, {"top1": 89.0}),
        fidelity={"agreement": 98.5},
        data="data.npz",
        samples=10,
        latency=None,
        layers=some,
        prunable_share=0.9,
        pinned=(("it is the model's <output>", EVIL, 10),),
        proof=None,
        verdict=Verdict(checks),
        notes=("a <b>note</b>",),
        repair=tuple(Repaired(name, 100, 9, 1.0, 0.5, float("inf")) for name in names[1:]),
        curves=tuple(curves),
        training={"steps": 10, "samples": 320, "seconds": 1.0, "best_step": 10, "looks": looks, "gated": None},
        versions={"onnxprune": "0.1.0"},
        details=made_details(names),
    )
