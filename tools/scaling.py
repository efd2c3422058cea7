#!/usr/bin/env python3
"""Measure how time and memory grow with a model, beside Torch-Pruning where that is installed.

Writes a section that `tools/coverage.py` puts into docs/coverage.md. Times are processor seconds on one thread, so that a busy
machine does not stretch them; each measurement has a process of its own.

Example:
    python tools/scaling.py                 # series, comparison; then the page
    python tools/scaling.py --only resnet50 --only densenet121
    python tools/scaling.py --compare ../before . --rounds 5     # two trees of the package, from the command line; no page
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import coverage
import numpy as np
import zoo
from onnx import ModelProto, TensorProto, helper, numpy_helper

NODES = (1000, 2000, 5000, 10000, 20000)
CHANNELS = 16
COMPARED = zoo.words(
    "resnet50 densenet121 vgg16 resnet152 convnext_large resnet18 vgg11_bn mobilenet_v2 mobilenet_v3_large mnasnet1_0 "
    "efficientnet_b0 googlenet inception_v3 squeezenet1_1 shufflenet_v2_x1_0 regnet_y_400mf resnext50_32x4d densenet169 "
    "convnext_tiny wide_resnet50_2 efficientnet_v2_s swin_t"
)
STAGES = ("load", "trace", "plan", "delete")
RATIO = 0.3
HOW = zoo.words("--reduce flops=30% --repair none --round-to 8 --no-latency --force --json --quiet")
BOTH_TREES = zoo.words("resnet50 densenet121 vgg16")
Record = dict[str, Any]


def chain(nodes: int, path: Path) -> None:
    """Write a chain of residual blocks (Conv, Relu, Conv, Add, Relu) of about `nodes` nodes; every ten blocks a new trunk."""
    rng = np.random.default_rng(nodes)
    body, weights = [], []

    def conv(source: str, name: str, inputs: int) -> str:
        shape = (CHANNELS, inputs, 3, 3)
        values = (rng.standard_normal(shape, dtype=np.float32) * np.float32(0.1)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"{name}.weight"))
        weights.append(numpy_helper.from_array(rng.standard_normal(CHANNELS, dtype=np.float32), f"{name}.bias"))
        body.append(
            helper.make_node("Conv", [source, f"{name}.weight", f"{name}.bias"], [name], name=name, pads=[1, 1, 1, 1])
        )
        return name

    def relu(source: str) -> str:
        body.append(helper.make_node("Relu", [source], [f"{source}.relu"], name=f"{source}.relu"))
        return f"{source}.relu"

    at, block = relu(conv("input", "stem", 3)), 0
    while len(body) < nodes - 7:
        if block % 10 == 0:
            at = relu(conv(at, f"trunk{block}", CHANNELS))
        inner = conv(relu(conv(at, f"block{block}.a", CHANNELS)), f"block{block}.b", CHANNELS)
        body.append(helper.make_node("Add", [at, inner], [f"block{block}"], name=f"block{block}"))
        at, block = relu(f"block{block}"), block + 1
    weights.append(numpy_helper.from_array(rng.standard_normal((10, CHANNELS), dtype=np.float32), "head.weight"))
    body.append(helper.make_node("GlobalAveragePool", [at], ["pool"], name="pool"))
    body.append(helper.make_node("Flatten", ["pool"], ["flat"], name="flat"))
    body.append(helper.make_node("Gemm", ["flat", "head.weight"], ["output"], name="head", transB=1))
    graph = helper.make_graph(
        body,
        "chain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )


def ours(source: Path) -> Record:
    """Return processor seconds per stage, peak memory above the imports, and the size of the file."""
    from onnxprune.graph import analysis as analysing
    from onnxprune.graph import io
    from onnxprune.options import Options
    from onnxprune.pipeline import schedule
    from onnxprune.surgery import channels as rewrite

    importlib.import_module("scipy.sparse.csgraph")  # onnxprune imports it late; imports don't count, on either side
    coverage.single_threaded(True)
    times: dict[str, float] = {}
    base, last = coverage.peak_memory(), time.process_time()

    def lap(stage: str) -> None:
        nonlocal last
        now = time.process_time()
        times[stage], last = now - last, now

    model = io.load(source)
    lap("load")
    analysis = analysing.analyse(model)
    lap("trace")
    plan = schedule.make_plan(analysis, Options(reduce={"flops": RATIO}))
    lap("plan")
    pruned = rewrite.delete(model, analysis.trace, plan.keep)
    lap("delete")
    peak = coverage.peak_memory()
    before, after = analysis.cost.totals(np.ones_like(plan.keep))[0], analysis.cost.totals(plan.keep)[0]
    return {
        "times": times,
        "memory": peak - base,
        "base": base,
        "bytes": source.stat().st_size,
        "nodes": len(model.graph.nodes),
        "left": len(pruned.graph.nodes),
        "reached": 1 - after / before,
        "imported": True,
    }


def series(nodes: int, folder: Path) -> Record:
    """Measure one chain."""
    path = folder / "chain.onnx"
    writer = multiprocessing.get_context("fork").Process(target=chain, args=(nodes, path))
    writer.start()
    writer.join()
    return ours(path)


def network(entry: zoo.Entry, cache: Path, folder: Path) -> Record:
    """Measure one network of the zoo."""
    path = folder / "model.onnx"
    writer = multiprocessing.get_context("fork").Process(target=zoo.materialise, args=(entry, cache, path))
    writer.start()
    writer.join()
    return ours(path)


def torch_pruning(entry: zoo.Entry) -> Record:
    """Return processor seconds of Torch-Pruning on the same network: its dependency graph, and one step."""
    import torch
    import torch_pruning as tp

    torch.set_num_threads(1)
    model, shape = zoo.build(entry)
    example = torch.randn(1, *shape)
    ignored = [
        m for m in model.modules() if getattr(m, "out_features", 0) == 1000 or getattr(m, "out_channels", 0) == 1000
    ]
    base, begin = coverage.peak_memory(), time.process_time()
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = tp.pruner.BasePruner(
        model, example, importance=importance, pruning_ratio=RATIO, round_to=8, ignored_layers=ignored
    )
    built = time.process_time()
    pruner.step()
    done = time.process_time()
    peak = coverage.peak_memory()
    with torch.no_grad():
        model(example)
    return {"times": {"graph": built - begin, "step": done - built}, "memory": peak - base, "base": base}


def command(package: Path, arguments: Sequence[str]) -> tuple[float, float, float]:
    """Run the command line of a tree of the package; return seconds, processor seconds and the peak of memory in MB."""
    start = [sys.executable, "-c", "from onnxprune.cli import main; main()"]
    environment = {**os.environ, "PYTHONPATH": str(package)}
    begin = time.perf_counter()
    process = subprocess.Popen([*start, *arguments], env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(arguments)}: exit code {process.returncode} in {package}")
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3


def fill(name: str, target: Path) -> None:
    """Write a graph of tests/zoo with random weights."""
    content = (coverage.ROOT / "tests" / "zoo" / f"dynamo-{name}.onnx.z").read_bytes()
    proto = ModelProto.FromString(zlib.decompress(content))
    zoo.fill(proto)
    target.write_bytes(proto.SerializeToString())


def compare(packages: Sequence[Path], rounds: int) -> None:
    """Measure `prune` without data and `--help` in two trees in turn; print the least of each and the ratio of the second to the first."""
    print("| command | seconds | ratio | processor seconds | ratio | peak memory, MB | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in (*BOTH_TREES, "--help"):
        with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
            arguments = [name]
            if name != "--help":
                source = Path(folder) / "model.onnx"
                writer = multiprocessing.get_context("fork").Process(target=fill, args=(name, source))
                writer.start()  # apart: what this process has had in memory counts as the peak of those it starts
                writer.join()
                arguments = ["prune", str(source), "-o", f"{folder}/out.onnx", *HOW]
            found = np.array([[command(package.resolve(), arguments) for package in packages] for _ in range(rounds)])
        least = found.min(axis=0)  # (trees, measures): what else the machine does only adds to them
        cells = [f"{a:.3g} -> {b:.3g} | {b / a:.2f}" for a, b in zip(*least, strict=True)]
        print(_row([name, *cells]), flush=True)


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def section(results: dict[str, Record]) -> str:
    """Return the section of docs/coverage.md."""
    lines = [
        "\n## Time and memory\n",
        "Processor seconds on one thread; each row in a process of its own. *memory*: peak of load, trace, plan and delete above the imports.\n",
        "### Growth with the number of nodes\n",
        "Chains of residual blocks of 16 channels (`tools/scaling.py`), 30 % of the FLOPs removed.\n",
        "| nodes | file | load | trace | plan | delete | together | per 1,000 nodes | memory | memory / file |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for nodes in NODES:
        r = results.get(f"chain/{nodes}")
        if r is None or "times" not in r:
            continue
        total = sum(r["times"].values())
        lines.append(
            _row([
                f"{r['nodes']:,}", f"{r['bytes'] / 1e6:.1f} MB", *(f"{r['times'][s]:.2f}" for s in STAGES), f"{total:.2f}",
                f"{1000 * total / r['nodes']:.2f}", f"{r['memory'] / 1e6:.0f} MB", f"{r['memory'] / r['bytes']:.1f}",
            ])
        )  # fmt: skip
    lines += [
        "\n### Beside Torch-Pruning\n",
        "Torch-Pruning: building the dependency graph and one step (ratio 0.3, L2, multiples of 8) on the PyTorch module in memory. onnxprune: reading "
        "the dynamo export from disk, with the check that onnxruntime loads it, trace, plan and delete (30 % of the FLOPs). "
        "*ratio*: above 1, onnxprune is faster. Memory is that above the imports and the loaded inputs.\n",
        "| network | nodes | file | load | trace | plan | delete | onnxprune | Torch-Pruning: graph | step | together | ratio | memory | memory / file | memory, Torch-Pruning |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    if any("imported" not in r for key, r in results.items() if key.startswith(("chain/", "ours/")) and "times" in r):
        late = "Here *trace* includes about 0.13 s for a late import of scipy, which newer measurements leave out.\n"
        lines.insert(2, late)
    ratios = []
    for name in COMPARED:
        a, b = results.get(f"ours/{name}", {}), results.get(f"torch-pruning/{name}", {})
        if "times" not in a:
            continue
        own = sum(a["times"].values())
        cells = [
            name,
            f"{a['nodes']:,}",
            f"{a['bytes'] / 1e6:.0f} MB",
            *(f"{a['times'][s]:.2f}" for s in STAGES),
            f"{own:.2f}",
        ]
        if "times" in b:
            other = sum(b["times"].values())
            ratios.append(other / own)
            cells += [
                f"{b['times']['graph']:.2f}",
                f"{b['times']['step']:.2f}",
                f"{other:.2f}",
                f"**{other / own:.1f}**",
            ]
        else:
            what = b.get("error", {}).get("what", "not run")
            cells += ["", "", what.replace("|", "/")[:80], ""]
        memory = f"{b['memory'] / 1e6:.0f} MB" if "memory" in b else ""
        cells += [f"{a['memory'] / 1e6:.0f} MB", f"{a['memory'] / a['bytes']:.1f}", memory]
        lines.append(_row(cells))
    if ratios:
        ahead = sum(r > 1 for r in ratios)
        lines.append(
            f"\nFaster than Torch-Pruning on {ahead} of {len(ratios)}; median ratio {float(np.median(ratios)):.1f}."
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=coverage.ROOT / "build" / "zoo", help="as for coverage.py")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a network, or a number of nodes")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for each measurement (default: 300)")
    parser.add_argument("--again", action="store_true", help="measure what is there, too")
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar="FOLDER", help="folders of two trees to measure in turn"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of --compare (default: 5)")
    arguments = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    if arguments.compare:
        compare(arguments.compare, arguments.rounds)
        return
    cache = arguments.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    store = cache / "scaling.json"
    results: dict[str, Record] = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}
    memory = 12 * 2**30

    def step(key: str, work: Any, *parameters: Any) -> None:
        current = results.get(key)
        if current is not None and current.get("digest") == coverage.package_digest() and not arguments.again:
            return
        if current is not None and key.startswith("torch-pruning/") and not arguments.again:
            return
        with tempfile.TemporaryDirectory(prefix="scaling-") as name:
            folder = Path(name)
            extra = () if work is torch_pruning else (folder,)
            record = coverage.in_process(
                "spawn", work, (*parameters, *extra), folder / "r.json", arguments.timeout, memory
            )
        results[key] = {**record, "digest": coverage.package_digest()}
        store.write_text(json.dumps(results, indent=1), encoding="utf-8")
        print(key, record.get("times", record.get("error")), file=sys.stderr, flush=True)

    for nodes in NODES:
        if not arguments.only or str(nodes) in arguments.only:
            step(f"chain/{nodes}", series, nodes)
    for network_name in COMPARED:
        if arguments.only and network_name not in arguments.only:
            continue
        entry = zoo.Entry("torchvision", network_name, "dynamo", zoo.DYNAMO_OPSET)
        if not zoo.cached(entry, cache).exists():
            with tempfile.TemporaryDirectory() as name:
                coverage.in_process(
                    "spawn", zoo.prepare, (entry, cache), Path(name) / "r.json", arguments.timeout, memory
                )
        if zoo.cached(entry, cache).exists():
            step(f"ours/{network_name}", network, entry, cache)
            step(f"torch-pruning/{network_name}", torch_pruning, entry)
    (cache / "scaling.md").write_text(section(results), encoding="utf-8")
    coverage.write_page(cache)


if __name__ == "__main__":
    main()
