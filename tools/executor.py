#!/usr/bin/env python3
"""Hold the executor (torch_backend/executor.py) against onnxruntime and against torch, and write docs/executor.md.

parity: the largest difference from onnxruntime without optimisations, for every graph of a zoo and every .onnx file of a folder.
speed:  one training step (forward, backward, SGD) of the executor and of the same network written in torch, run in turn on one thread.
Networks of torchvision are measured where that is installed. Results add up in --cache, so that the two may be made by different
environments.

Example:
    python tools/executor.py parity --graphs tests/zoo --models ~/models
    python tools/executor.py speed                      # all networks that can be built
    python tools/executor.py speed --only resnet50 --batch 4
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import importlib
import importlib.util
import io
import json
import logging
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_models
import numpy as np
import onnx
import torch
import zoo
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from onnxprune.errors import OnnxPruneError, first_line
from onnxprune.graph import io as graph_io
from onnxprune.graph import model as models
from onnxprune.metrics.outputs import relative_difference
from onnxprune.runtime.session import SessionConfig, run_batch
from onnxprune.torch_backend.executor import Executor

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "executor.md"
LIMIT, SLOWEST = 1e-4, 1.15
OWN = ("small", "resnet", "mobile")
TORCHVISION = zoo.words("resnet50 mobilenet_v2 efficientnet_b0 convnext_tiny vit_b_16 swin_t")
OPSETS = {"dynamo": 18, "legacy": 17}
Record = dict[str, Any]
Step = Callable[[], None]


# --------------------------------------------------------------------------------------------------------------- parity


def parity(path: Path) -> Record:
    """Compare the executor with onnxruntime on one file."""
    try:
        model = graph_io.load(path)
        session = model.session(SessionConfig(threads=1, optimize=False))
        names = {value.name for value in model.graph.inputs}
        feeds = {n: x for n, x in model.signature.random_feeds(model.header, 2, 0).items() if n in names}
        expected = run_batch(session, feeds)
        executor = Executor(model)
        with torch.no_grad():
            found = executor({name: torch.from_numpy(np.asarray(value)) for name, value in feeds.items()})
        pairs = zip(expected, model.graph.outputs, strict=True)
        worst = max(relative_difference(a, found[v.name].numpy().astype(a.dtype)) for a, v in pairs)
        return {"nodes": len(model.graph.nodes), "weights": len(executor.weights), "difference": worst}
    except OnnxPruneError as error:
        return {"error": first_line(error)}


def graphs(folder: Path) -> Record:
    """Compare every graph without weights of a folder, filled with seeded random ones."""
    results = {}
    for packed in sorted(folder.glob("*.onnx.z")):
        proto = onnx.ModelProto()
        proto.ParseFromString(zlib.decompress(packed.read_bytes()))
        zoo.fill(proto)
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "model.onnx"
            path.write_bytes(proto.SerializeToString())
            del proto
            results[packed.name.removesuffix(".onnx.z")] = told(packed.name, parity(path))
    return results


def told(name: str, record: Record) -> Record:
    """Print a result, and return it."""
    print(name, record, flush=True)
    return record


# ---------------------------------------------------------------------------------------------------------------- speed


def networks() -> dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]]:
    """Return how to build each network: module and shape of an input."""

    def own(name: str) -> tuple[nn.Module, tuple[int, ...]]:
        net = make_models.build(name)
        return net, tuple(net.input_shape)

    def vision(name: str) -> tuple[nn.Module, tuple[int, ...]]:
        return getattr(importlib.import_module("torchvision.models"), name)(), (3, 224, 224)

    builders: dict[str, Any] = {name: lambda name=name: own(name) for name in OWN}
    if importlib.util.find_spec("torchvision"):
        builders |= {name: lambda name=name: vision(name) for name in TORCHVISION}
    return builders


def exported(net: nn.Module, shape: tuple[int, ...], exporter: str) -> models.Model:
    """Export a network, and load it."""
    options: dict[str, Any] = {"opset_version": OPSETS[exporter], "input_names": ["x"], "verbose": False}
    example = (torch.zeros(2, *shape),)
    logging.disable(logging.WARNING)
    with (
        tempfile.TemporaryDirectory() as name,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        path = Path(name) / "model.onnx"
        if exporter == "dynamo":
            options |= {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "external_data": False}
            torch.onnx.export(net, example, str(path), dynamo=True, **options)
        else:
            torch.onnx.export(net, example, str(path), dynamo=False, dynamic_axes={"x": {0: "batch"}}, **options)
        return graph_io.load(path)


def folded(net: nn.Module) -> nn.Module:
    """Return the network with each BatchNormalization in the convolution before it."""
    found: nn.Module = fuse(net)
    for parameter in found.parameters():
        parameter.requires_grad_()
    return found


def step(parameters: Any, forward: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor, half: bool) -> Step:
    """Return one training step."""
    optimiser = torch.optim.SGD(list(parameters), 1e-4, momentum=0.9)

    def run() -> None:
        optimiser.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            output = forward(x)
        torch.autograd.backward(nn.functional.cross_entropy(output.float(), labels))
        optimiser.step()

    return run


def speed(net: nn.Module, shape: tuple[int, ...], exporter: str, batch: int, runs: int) -> Record:
    """Return the median seconds of every variant, run in turn."""
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model = exported(net, shape, exporter)
    source, target = model.graph.inputs[0].name, model.graph.outputs[0].name
    x = torch.randn(batch, *shape)
    outputs = model.header.graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    labels = torch.randint(outputs, (batch,))
    steps: dict[str, Step] = {}
    makers: dict[str, Callable[[nn.Module], nn.Module]] = {"torch": copy.deepcopy}
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        makers["folded"] = folded
    for kind in ("first", "last"):
        layout = torch.channels_last if kind == "last" else torch.contiguous_format
        laid = x.to(memory_format=layout)
        for half in (False, True):
            suffix = f" {kind}{' bf16' if half else ''}"
            for name, maker in makers.items():
                module: Any = maker(net)
                module = module.to(memory_format=layout)
                steps[name + suffix] = step(module.parameters(), module, laid, labels, half)
            executor = Executor(model, channels_last=kind == "last")

            def forward(value: Tensor, executor: Executor = executor) -> Tensor:
                return executor({source: value})[target]

            steps["executor" + suffix] = step(executor.weights.values(), forward, x, labels, half)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for run in steps.values():
        run()
    for count in range(runs):
        for name, run in list(steps.items())[:: 1 if count % 2 == 0 else -1]:
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {
        "nodes": len(model.graph.nodes),
        "batch": batch,
        "times": {n: float(np.median(t)) for n, t in times.items()},
    }


# ----------------------------------------------------------------------------------------------------------------- page


def page(results: Record) -> str:
    """Return docs/executor.md."""
    lines = ["# The executor: the graph in torch", "", "Written by `python tools/executor.py` from real runs."]
    found = {name: r for part in ("graphs", "models") for name, r in results.get(part, {}).items()}
    if found:
        ran = {name: r["difference"] for name, r in found.items() if "difference" in r}
        right = sum(d <= LIMIT for d in ran.values())
        worst = max(ran, key=lambda name: ran[name])
        lines += [
            "",
            "## Parity with onnxruntime",
            "",
            "Largest difference of an output, as a share of its range, from onnxruntime without optimizations; seeded noise, batch 2 where it is "
            f"dynamic. {len(found)} models: {right} within {LIMIT:g}, {len(ran) - right} not, {len(found) - len(ran)} not run. "
            f"Worst: {ran[worst]:.1e} ({worst}).",
            "",
            "| model | nodes | weights | difference |",
            "| --- | ---: | ---: | ---: |",
            *(f"| {name} | {found[name]['nodes']} | {found[name]['weights']} | {d:.1e} |" for name, d in ran.items()),
        ]
        why = Counter(r["error"] for r in found.values() if "error" in r)
        lines += [""] + [
            f"- not run, {count}: {error}: {', '.join(n for n, r in found.items() if r.get('error') == error)}"
            for error, count in why.items()
        ]
    if results.get("speed"):
        lines += ["", "## One training step", *_speed(results["speed"])]
    return "\n".join(lines) + "\n"


def _speed(records: Record) -> list[str]:
    rows, ratios, gains = [], [], []
    for name, record in records.items():
        t = record["times"]
        others = ((kind, f"{other} {kind}") for kind in ("last", "first") for other in ("torch", "folded"))
        cells = [t[f"executor {kind}"] / t.get(other, t[f"torch {kind}"]) for kind, other in others]
        ratios += cells
        gains.append((t["executor first"] / t["executor last"], t["executor last"] / t["executor last bf16"]))
        cells += gains[-1]
        rows.append(f"| {name} | {record['nodes']} | {record['batch']} | {' | '.join(f'{c:.2f}' for c in cells)} |")
    last, half = np.array(gains).T
    return [
        "",
        "Forward, backward and SGD on one processor thread; median of runs in turn. A ratio is the time of the executor over that of "
        "the same network written in torch: below 1 the executor is faster. *folded*: the network in torch has its BatchNormalization "
        "folded into the convolutions, as the loaded graph has; without any, it is the same network. Batch statistics are in neither.",
        "",
        "| network | nodes | batch | channels last: torch | folded | channels first: torch | folded | gain of channels last | gain of bfloat16 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        f"The worst ratio is {max(ratios):.2f}; the limit is {SLOWEST}. Channels last is {min(last):.2f} to {max(last):.2f} times as fast as "
        f"channels first (median {np.median(last):.2f}), bfloat16 by autocast {min(half):.2f} to {max(half):.2f} times as fast as single "
        f"precision (median {np.median(half):.2f}; it depends on the processor).",
    ]


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", nargs="*", choices=["parity", "speed", "page"], metavar="WHAT", help="parity, speed, page"
    )
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "zoo", help="where results add up")
    parser.add_argument("--graphs", type=Path, default=ROOT / "tests" / "zoo", help="folder of graphs without weights")
    parser.add_argument("--models", type=Path, help="folder of .onnx files, at any depth")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a network, for speed")
    parser.add_argument("--batch", type=int, default=4, help="for speed (default: 4; 64 for the small networks)")
    parser.add_argument("--runs", type=int, default=7, help="for speed (default: 7)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    store = arguments.cache / "executor.json"
    arguments.cache.mkdir(parents=True, exist_ok=True)
    results: Record = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}

    def save() -> None:
        store.write_text(json.dumps(results, indent=1), encoding="utf-8")
        PAGE.write_text(page(results), encoding="utf-8")

    if "parity" in arguments.what:
        results["graphs"] = graphs(arguments.graphs)
        if arguments.models:
            found = sorted(arguments.models.rglob("*.onnx"))
            results["models"] = {path.stem: told(path.name, parity(path)) for path in found}
        save()
    if "speed" in arguments.what:
        for name, builder in networks().items():
            for exporter in OPSETS if not arguments.only or name in arguments.only else ():
                torch.manual_seed(0)
                gc.collect()  # of a network before it
                net, shape = builder()
                record = speed(net, shape, exporter, 64 if name in OWN else arguments.batch, arguments.runs)
                results.setdefault("speed", {})[f"{name}, {exporter}"] = told(f"{name} {exporter}", record)
                save()
    save()


if __name__ == "__main__":
    main()
