"""Every command of onnxprune on a small model, with all the files it writes, in well below a second."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import onnxruntime
from children import command
from onnx import TensorProto, helper, numpy_helper

from onnxprune.calibration import stage_results
from onnxprune.cli import main

Check = Callable[[Path], Any]
SAMPLES = 32
FAST = ("--no-latency", "--samples", SAMPLES, "--round-to", 1, "--augment", "none")
CUT = ("--reduce", "flops=30%", "--granularity", "filter")  # edits are chosen by times, which differ without a cache
TRAIN = ("--train-batch", 8, "--train-augment", "none")
TIMES = ("--runs", 3, "--warmup", 1)
QUIET = ("--quiet",)


def network(channels: int = 8, seed: int = 17) -> onnx.ModelProto:
    """Return a classifier: input "x" (n, 3, 8, 8), two Conv, output "y" (n, 4)."""
    rng = np.random.default_rng(seed)
    conv: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", **conv),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", **conv),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "head", transB=1),
    ]
    n = channels
    shapes = {"w1": (n, 3, 3, 3), "b1": (n,), "w2": (n, n, 3, 3), "b2": (n,), "w3": (4, n), "b3": (4,)}
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.3, size).astype(np.float32), name) for name, size in shapes.items()
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4]),
    ]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def samples() -> dict[str, np.ndarray[Any, Any]]:
    """Return samples of the network with the labels that it gives itself."""
    rng = np.random.default_rng(5)
    x = (rng.normal(size=(SAMPLES, 3, 8, 8)) + 2 * rng.normal(size=(SAMPLES, 3, 1, 1))).astype(np.float32)
    return {"x": x, "labels": np.arange(SAMPLES) % 4}


def loads(model: Path | bytes) -> None:
    """Fail where onnxruntime does not load a model: a file, or bytes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    onnxruntime.InferenceSession(
        str(model) if isinstance(model, Path) else model, options, providers=["CPUExecutionProvider"]
    )


def _xml(path: Path) -> None:
    ElementTree.parse(path)


def _text(*endings: str) -> Check:
    def check(path: Path) -> None:
        text = path.read_text(encoding="utf-8").rstrip()
        if not text or not text.endswith(endings or ("",)):
            raise ValueError("it is cut off")

    return check


def _checkpoint(path: Path) -> None:
    import torch

    torch.load(path, map_location="cpu", weights_only=True)


def _arrays(path: Path) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays:
            arrays[name]


def _json(path: Path) -> None:
    json.loads(path.read_text(encoding="utf-8"))


WHOLE: dict[str, Check] = {
    ".html": _text("</html>"),
    ".json": _json,
    ".md": _text(),
    ".npz": _arrays,
    ".onnx": loads,
    ".sarif": _json,
    ".state": _checkpoint,
    ".svg": _text("</svg>"),
    ".toml": _text(),
    ".xml": _xml,
}
"""By suffix of an output, a check that fails where the file is not whole."""


@dataclass(frozen=True)
class Command:
    """A command whose outputs all go to `out`.

    Attributes:
        name: short name.
        args: arguments; paths are relative to the scene.
        replaces: whether it replaces old outputs.
        resumes: whether it goes on from what an interrupted run left.
        before: what its process does first.
    """

    name: str
    args: tuple[object, ...]
    replaces: bool = True
    resumes: bool = False
    before: Callable[[], None] = lambda: None


def _store_all() -> None:
    """Keep the result of every stage for `--resume`, however short it was."""
    stage_results.WORTH = 0.0


DATA = ("--data", "in/data.npz")
OUT = ("-o", "out/o.onnx")
PRUNE = ("prune", "in/model.onnx", *OUT, *CUT)
EVERY = (
    Command("inspect", ("inspect", "in/model.onnx", "--json")),
    Command("plan", ("plan", "in/model.onnx", "-o", "out/plan.json", *CUT, "--round-to", 1)),
    Command("prune", (*PRUNE, *DATA, *FAST)),
    Command("prune --resume", (*PRUNE, *DATA, *FAST, "--resume"), resumes=True, before=_store_all),
    Command(
        "prune, plan and report elsewhere",
        (*PRUNE, *FAST, "--repair", "none", "--plan-output", "out/p.plan.json", "--report", "out/r.json"),
    ),
    Command(
        "prune with a page and times",
        (*PRUNE, "--round-to", 1, "--repair", "none", "--force", *TIMES, "--report", "out/r.html"),
    ),
    Command(
        "prune by a plan", ("prune", "in/model.onnx", *OUT, "--plan", "in/plan.json", *FAST, "--repair", "bias", *DATA)
    ),
    Command(
        "prune with external data",
        ("prune", "in/external.onnx", *OUT, *CUT, *FAST, "--repair", "none", "--report", "out/r.md"),
    ),
    Command(
        "prune and train",
        (*PRUNE, *DATA, *FAST, "--finetune", "4steps", "--checkpoint", "out/o.state", *TRAIN),
        replaces=False,
        resumes=True,
    ),
    Command(
        "finetune",
        (
            *("finetune", "in/small.onnx", "--teacher", "in/model.onnx", *DATA, *OUT, "--no-latency"),
            *("--for", "4steps", "--checkpoint", "out/o.state", *TRAIN, "--report", "out/r.json"),
        ),
        replaces=False,
        resumes=True,
    ),
    Command("sensitivity", ("sensitivity", "in/model.onnx", *DATA, "--samples", SAMPLES, "--plot", "out/c.svg")),
    Command(
        "sweep",
        (
            *("sweep", "in/model.onnx", "-o", "out/sizes", *DATA, *FAST, "--repair", "none"),
            *("--targets", "params=20%,40%", "--report", "out/r.json"),
        ),
        replaces=False,
        resumes=True,
    ),
    Command(
        "check with all outputs",
        (
            *("check", "in/small.onnx", "--baseline", "in/model.onnx", *DATA, "--no-latency", "--max-drop", 100),
            *(
                "--junit",
                "out/c.xml",
                "--sarif",
                "out/c.sarif",
                "--markdown",
                "out/c.md",
                "--report",
                "out/c.json",
                "--github",
            ),
        ),
    ),
    Command("check --init", ("check", "--init", "out/policy.toml"), replaces=False),
    Command("bench", ("bench", "in/model.onnx", "in/small.onnx", *TIMES)),
    Command("bench with a latency table", ("bench", "in/model.onnx", *TIMES, "--latency-table", "out/t.json")),
    Command("cache --clear", ("cache", "--clear")),
)
COMMANDS: tuple[Command, ...] = tuple(command for command in EVERY if command.args[0] in main.commands)


def scene(folder: Path) -> Path:
    """Make the folder that commands run in: `in` with all inputs, and an empty `out`."""
    inputs = folder / "in"
    for part in (inputs, folder / "out", folder / "tmp"):
        part.mkdir(parents=True, exist_ok=True)
    model = network()
    (inputs / "model.onnx").write_bytes(model.SerializeToString())
    np.savez(inputs / "data.npz", **samples())  # type: ignore[arg-type]
    onnx.save_model(
        model, inputs / "external.onnx", save_as_external_data=True, location="external.data", size_threshold=0
    )
    return folder


def prepare(folder: Path) -> None:
    """Write, in a child, the inputs that commands of onnxprune make: a pruned model and a plan."""
    command(
        "prune",
        "in/model.onnx",
        "-o",
        "in/small.onnx",
        *CUT,
        *FAST,
        "--repair",
        "none",
        "--plan-output",
        "in/plan.json",
        *QUIET,
    )
    shutil.rmtree(folder / "cache", ignore_errors=True)
