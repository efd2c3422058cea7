"""The layers of the package, and the modules that may import each third-party library."""

from __future__ import annotations

LAYERS = (
    (
        "escaping",
        "errors",
        "types",
        "progress",
        "metrics.table",
        "importance.methods",
        "options",
        "leftovers",
        "fileio",
        "reading",
        "paths",
    ),
    ("runtime",),
    ("data",),
    ("graph",),
    ("plan_file",),
    ("metrics",),
    ("surgery",),
    ("calibration",),
    ("evaluation",),
    ("torch_backend",),
    ("repair",),
    ("importance",),
    ("training",),
    ("allocation",),
    ("report",),
    ("pipeline",),
    ("cli",),
)
OWNERS = {
    "click": {"cli"},
    "torch": {"torch_backend", "training", "importance.gradients"},
    "onnxruntime": {"runtime"},
    "onnx_graphsurgeon": {"graph", "surgery", "repair", "allocation", "torch_backend", "training"},
    "PIL": {"data", "report.thumbnails"},
    "yaml": {"data.labels"},
    "joblib": {"runtime.workers"},
    "dask": {"runtime.workers"},
    "distributed": {"runtime.workers"},
    "rapidfuzz": {"metrics.text"},
    "pycocotools": {"data.instances", "metrics.detection"},
    "platformdirs": {"runtime.machine"},
    "matplotlib": {"report.matplotlib_plots"},
    "bokeh": {"report.bokeh_plots"},
    "jinja2": {"report.html"},
    "rich": {"report.console", "cli"},
}
"""Who may import a third party at run time; anybody may where only a type checker looks."""
