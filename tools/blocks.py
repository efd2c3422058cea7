#!/usr/bin/env python3
"""Measure what the granularities are worth at equal latency, and write docs/blocks.md.

Five networks that are common in another way each: the residual reference model, and a VGG16, a ResNet-50, a GoogLeNet and a mobile network
rich in 5x5 and 7x7 kernels, all at half or a quarter of their width and trained on Fashion-MNIST by `--train` (three passes each, five to
fifteen minutes with one thread). Two that others have trained on photographs stand beside them: open_nsfw and EfficientNet-lite0.
Each is pruned to the same latency by channels alone, by every other granularity alone, and by all of them.

The page also says on how many layers of the 28 networks of tests/zoo the rewritten layers gave what the masked ones give (`--zoo`).

Every measurement runs in a process of its own and is kept as a line of JSON in the folder of the models; what is there already is not run
again until the sources of the package change. Leave the machine alone meanwhile: times decide what is chosen.

Example:
    python tools/blocks.py --train all              # once; needs torch
    python tools/blocks.py                          # measure, about an hour on two cores, and write the page
    python tools/blocks.py --only 'vgg16/*'
    python tools/blocks.py --zoo                    # the proofs, on the structure of 28 networks from both exporters
    python tools/blocks.py --report                 # the page alone
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import accuracy
import coverage
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PAGE, PLOT = ROOT / "docs" / "blocks.md", ROOT / "docs" / "blocks.svg"
MODES = {
    "filter": ("filter",),
    "auto": "auto",
    "rank": ("rank",),
    "kernel": ("kernel",),
    "depth": ("depth",),
    "input": ("input",),
}
REAL = ("open-nsfw", "lite0-dynamo")
"""Trained on photographs by others; what they and the photographs come from is told in tools/accuracy.py."""
SUMMARY = {
    "resnet": "residual reference model",
    "vgg16": "VGG16, a quarter of its width",
    "resnet50": "ResNet-50, a quarter of its width",
    "googlenet": "GoogLeNet, half of its width",
    "large_kernels": "inverted residuals with 5x5 and 7x7 kernels",
    "open-nsfw": "open_nsfw, a thin ResNet-50, photographs",
    "lite0-dynamo": "EfficientNet-lite0 (5x5 kernels), photographs",
}
TARGET = 0.5
CLEARLY = 0.8
"""Share of the loss by channels alone below which another one is clearly less."""
LIMIT = 3000.0
Record = dict[str, Any]
EPOCHS, RATE, DECAY, BATCH = 3, 0.05, 5e-4, 64
SIDE = 32


def networks() -> dict[str, Any]:
    """Return what builds each network, by name."""
    import torch
    from torch import nn

    def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[Any]:
        return [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]

    def head(channels: int) -> list[Any]:
        return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]

    def vgg16() -> Any:
        """Simonyan and Zisserman, 2014, configuration D, at a quarter of the width, with BatchNormalization and one linear layer."""
        layers: list[Any] = []
        before = 1
        for width, count in ((16, 2), (32, 2), (64, 3), (128, 3), (128, 3)):
            for _ in range(count):
                layers += conv(before, width, 3)
                before = width
            layers.append(nn.MaxPool2d(2))
        return nn.Sequential(*layers, *head(before))

    class Bottleneck(nn.Module):  # type: ignore[misc]
        def __init__(self, inputs: int, width: int, stride: int) -> None:
            super().__init__()
            outputs = 4 * width
            last = [nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
            self.body = nn.Sequential(*conv(inputs, width, 1), *conv(width, width, 3, stride), *last)
            self.shortcut: Any = nn.Identity()
            if stride > 1 or inputs != outputs:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )
            self.relu = nn.ReLU()

        def forward(self, x: Any) -> Any:
            return self.relu(self.body(x) + self.shortcut(x))

    def resnet50() -> Any:
        """He et al., 2015, at a quarter of the width."""
        layers: list[Any] = [*conv(1, 16, 3), nn.MaxPool2d(2)]
        before = 16
        for width, count, stride in ((16, 3, 1), (32, 4, 2), (64, 6, 2), (128, 3, 2)):
            for number in range(count):
                layers.append(Bottleneck(before, width, stride if not number else 1))
                before = 4 * width
        return nn.Sequential(*layers, *head(before))

    class Inception(nn.Module):  # type: ignore[misc]
        def __init__(self, inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], pool: int) -> None:
            super().__init__()
            self.branches = nn.ModuleList(
                [
                    nn.Sequential(*conv(inputs, one, 1)),
                    nn.Sequential(*conv(inputs, three[0], 1), *conv(three[0], three[1], 3)),
                    nn.Sequential(*conv(inputs, five[0], 1), *conv(five[0], five[1], 5)),
                    nn.Sequential(nn.MaxPool2d(3, 1, 1), *conv(inputs, pool, 1)),
                ]
            )

        def forward(self, x: Any) -> Any:
            return torch.cat([branch(x) for branch in self.branches], 1)

    def googlenet() -> Any:
        """Szegedy et al., 2014, table 1, at half the width, 5x5 kernels as they were meant."""
        table = (
            (96, 32, (48, 64), (8, 16), 16), (128, 64, (64, 96), (16, 48), 32), None,
            (240, 96, (48, 104), (8, 24), 32), (256, 80, (56, 112), (12, 32), 32), (256, 64, (64, 128), (12, 32), 32),
            (256, 56, (72, 144), (16, 32), 32), (264, 128, (80, 160), (16, 64), 64), None,
            (416, 128, (80, 160), (16, 64), 64), (416, 192, (96, 192), (24, 64), 64),
        )  # fmt: skip
        layers: list[Any] = [*conv(1, 32, 7, 2), *conv(32, 32, 1), *conv(32, 96, 3), nn.MaxPool2d(2)]
        layers += [nn.MaxPool2d(2) if row is None else Inception(*row) for row in table]
        return nn.Sequential(*layers, *head(512))

    class Inverted(nn.Module):  # type: ignore[misc]
        def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
            super().__init__()
            wide = expand * inputs
            last = [nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
            self.body = nn.Sequential(*conv(inputs, wide, 1), *conv(wide, wide, kernel, stride, wide), *last)
            self.adds = stride == 1 and inputs == outputs

        def forward(self, x: Any) -> Any:
            return x + self.body(x) if self.adds else self.body(x)

    def large_kernels() -> Any:
        """Inverted residuals (Sandler et al., 2018) with kernels of 5 and 7, as searched mobile networks have them."""
        layers: list[Any] = conv(1, 24, 5)
        before = 24
        for width, count, kernel, stride in ((24, 1, 5, 2), (32, 2, 7, 1), (48, 3, 5, 2), (64, 3, 7, 1), (96, 3, 5, 2)):
            for number in range(count):
                layers.append(Inverted(before, width, kernel, stride if not number else 1, 4))
                before = width
        return nn.Sequential(*layers, *conv(before, 256, 1), *head(256))

    return {
        "vgg16": vgg16,
        "resnet50": resnet50,
        "googlenet": googlenet,
        "large_kernels": large_kernels,
    }


def train(name: str, folder: Path, seed: int = 0) -> None:
    """Train one network on the 60,000 training images, and export it."""
    import make_models
    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    images, labels = (torch.from_numpy(a) for a in make_models.load("train"))
    model = networks()[name]().to(memory_format=torch.channels_last)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    steps = len(images) // BATCH
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, EPOCHS * steps, pct_start=0.2, cycle_momentum=False)
    for epoch in range(EPOCHS):
        start, total = time.perf_counter(), 0.0
        model.train()
        order = torch.from_numpy(rng.permutation(len(images)))
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            x = make_models.prepare(make_models.augment(images[batch], rng), (1, SIDE, SIDE))
            out = model(x.to(memory_format=torch.channels_last))
            loss = functional.cross_entropy(out, labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
            if step % 100 == 99:
                print(f"{name}: step {step + 1} of {steps}, loss {total / (step + 1):.4f}", flush=True)
        print(f"{name}: epoch {epoch + 1}, loss {total / steps:.4f}, {time.perf_counter() - start:.0f} s", flush=True)
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    example = torch.zeros(1, 1, SIDE, SIDE)
    torch.onnx.export(
        model, (example,), str(folder / f"{name}.onnx"), input_names=["images"], output_names=["logits"],
        dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}}, dynamo=False, opset_version=17,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------- measure


def samples(split: str, count: int | None, name: str, side: int) -> dict[str, Any]:
    """Return images as a network takes them, and their labels; a seeded choice of so many, or all."""
    import make_models
    import torch

    images, labels = make_models.load(split)  # type: ignore[arg-type]
    if count is not None:
        chosen = np.random.default_rng(0).permutation(len(images))[:count]
        images, labels = images[chosen], labels[chosen]
    return {name: make_models.prepare(torch.from_numpy(images), (1, side, side)).numpy(), "labels": labels}


def measure(network: str, mode: str, folder: Path) -> Record:
    """Prune one network one way, and return what came of it."""
    import onnx

    import onnxprune
    from onnxprune.data.dataset import load_data
    from onnxprune.errors import TargetError
    from onnxprune.evaluation import benchmark
    from onnxprune.evaluation.compare import predict
    from onnxprune.graph.io import load
    from onnxprune.graph.model import inputs_of
    from onnxprune.metrics.outputs import compare_outputs
    from onnxprune.runtime.session import SessionConfig, random_feeds

    if network in REAL:
        task = accuracy.task(network, ROOT / "build" / "accuracy")
        path, data, evaluation, how = task.path, task.data, task.evaluation, task.preprocess
    else:
        path, how = ROOT / "models" / "resnet.onnx" if network == "resnet" else folder / f"{network}.onnx", None
        value = onnx.load(path).graph.input[0]
        side = value.type.tensor_type.shape.dim[2].dim_value
        data, evaluation = samples("train", 512, value.name, side), samples("t10k", None, value.name, side)
        del data["labels"]
    start = time.perf_counter()
    try:
        result = onnxprune.prune(
            path,
            data=data,
            evaluation=evaluation,
            preprocess=how,
            reduce={"latency": TARGET},
            granularity=MODES[mode],
            measure=onnxprune.BenchmarkConfig(runs=400),
            force=True,
        )
    except TargetError as error:
        return {"error": f"{error}".splitlines()[0] + ": " + str(error.why)}
    seconds = time.perf_counter() - start
    report = result.report
    assert report.latency is not None
    blocks = [entry for part in report.blocks for entry in part]
    shapes = result.model.signature.input_shapes(1, result.trace.input_shapes)
    feeds = random_feeds(result.model.header, shapes, 0)
    rows = benchmark.side_by_side(
        [benchmark.layer_times(source, feeds, SessionConfig(threads=1)) for source in (str(path), result.model)]
    )
    times = []
    for entry in blocks:
        mine = [row for row in rows if row.name == entry["layer"] or row.name.startswith(f"{entry['layer']}__")]
        before, after = (sum(t for row in mine if (t := getattr(row, of)) is not None) for of in ("a", "b"))
        times.append((entry["layer"], before, after))
    original = load(path)
    calibrated = load_data(data, inputs_of(original), how)
    outputs = [
        predict(model.session(), calibrated, 64, original.signature, network) for model in (original, result.model)
    ]
    return {
        "calibration": compare_outputs(*outputs).get("kl"),
        "before": report.before.top1,
        "after": report.after.top1,
        "agreement": report.fidelity.get("agreement"),
        "kl": report.fidelity.get("kl"),
        "flops": 1 - report.after.flops / report.before.flops,
        "params": 1 - report.after.params / report.before.params,
        "ms": (report.latency.a, report.latency.b),
        "interval": report.latency.speedup_interval,
        "speedup": report.latency.speedup,
        "difference": None if report.proof is None else report.proof.difference,
        "forms": Counter(entry["kind"] if entry["kind"] != "rank" else f"rank ({entry['form']})" for entry in blocks),
        "times": times,
        "notes": [note for note in report.notes if "compared on" in note or "not measured to be" in note],
        "seconds": seconds,
    }


def kept(record: Record) -> str:
    """Say what is left of the accuracy, or without labels of the agreement."""
    if record["before"] is None:
        return f"agreement {record['agreement']:.1f}"
    return f"{record['before']:.2f} -> {record['after']:.2f}"


def read(folder: Path) -> list[Record]:
    """Return all that was measured, oldest first."""
    file = folder / "results.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def run(wanted: Sequence[str], folder: Path) -> None:
    """Measure what is not there yet."""
    known = {(record["id"], record["digest"]) for record in read(folder) if "error" not in record}
    for number, name in enumerate(wanted, start=1):
        record: Record = {"id": name, "digest": coverage.package_digest(), "day": date.today().isoformat()}
        if (name, record["digest"]) in known:
            continue
        accuracy.fill(record, [sys.executable, __file__, "--models", str(folder), "--measure", name], LIMIT)
        with (folder / "results.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        kl = record.get("kl")
        said = record.get("error") or f"{kept(record)}, KL {kl:.4f}, {record['speedup']:.2f}x"
        print(f"{number}/{len(wanted)} {name}: {said}", flush=True)


def zoo(folder: Path) -> None:
    """Prove random edits of every layer of every network of the zoo, and keep what was found."""
    sys.path.insert(0, str(ROOT / "tests"))
    import edited_models
    import graphs
    import zoo_models

    from onnxprune.graph.analysis import analyse
    from onnxprune.surgery.edits.apply import apply_edits
    from onnxprune.surgery.proof import prove

    known = {record["id"] for record in read(folder) if record["digest"] == coverage.package_digest()}
    networks = {file.name.removesuffix(".onnx.z").partition("-")[2] for file in zoo_models.ZOO.glob("*.z")}
    for name in sorted(networks):
        for exporter in zoo_models.EXPORTERS:
            entry = f"zoo/{exporter}-{name}"
            if entry in known:
                continue
            model = graphs.load(zoo_models.fill(zoo_models.ZOO / f"{exporter}-{name}.onnx.z"))
            edits = edited_models.reformable(model, edited_models.some(model, np.random.default_rng(0), 0.5))
            found = apply_edits(model, edits)
            shapes = analyse(model).trace.input_shapes
            proof = prove(model, found.model, found.masked, shapes, loaded=True)
            record = {
                "id": entry,
                "digest": coverage.package_digest(),
                "day": date.today().isoformat(),
                "edits": Counter(edit.kind for edit in edits),
                "difference": proof.difference,
            }
            with (folder / "results.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
            print(f"{entry}: {dict(record['edits'])}, {proof.difference:.1e}", flush=True)


# -------------------------------------------------------------------------------------------------------------------- page


def latest(folder: Path) -> dict[str, Record]:
    """Return the newest record of everything."""
    return {record["id"]: record for record in read(folder)}


def form_of(kind: str) -> str:
    """Return a kind of edit as the table calls it."""
    words = kind.replace(",", "").replace("(", "").replace(")", "").split()
    return " ".join(reversed(words))


def rows(found: dict[str, Record]) -> Iterator[str]:
    """Yield the table of all measurements."""
    yield "| network | granularity | latency | FLOPs | top-1 | KL | KL, calibration | edits | minutes |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |"
    for network, summary in SUMMARY.items():
        for mode in MODES:
            record = found.get(f"{network}/{mode}")
            if record is None:
                continue
            head = f"| {summary if mode == 'filter' else ''} | `{mode}` |"
            if "error" in record:
                yield f"{head} {record['error'][:160].replace('|', '/')} | | | | | | |"
                continue
            forms = ", ".join(f"{count} x {form_of(kind)}" for kind, count in sorted(record["forms"].items()))
            before, after = record["ms"]
            yield (
                f"{head} {before:.3f} -> {after:.3f} ms (-{1 - after / before:.0%}) | -{record['flops']:.0%} | "
                f"{kept(record)} | {record['kl']:.4f} | {record['calibration']:.4f} | {forms} | {record['seconds'] / 60:.1f} |"
            )


def reach(found: dict[str, Record]) -> Iterator[str]:
    """Yield what was asked for, and what was measured."""
    pairs = {n: (found.get(f"{n}/filter", {}), found.get(f"{n}/auto", {})) for n in SUMMARY}
    pairs = {n: (a, b) for n, (a, b) in pairs.items() if "kl" in a and "kl" in b}
    for of, kind in (("kl", "on the test images"), ("calibration", "on the calibration data")):
        no_worse = [
            n
            for n, (a, b) in pairs.items()
            if b[of] <= a[of] or not b["forms"] or (of == "kl" and b["before"] is not None and b["after"] >= a["after"])
        ]
        clearly = [n for n, (a, b) in pairs.items() if b["forms"] and b[of] <= CLEARLY * a[of]]
        lost = "top-1, or no more KL," if of == "kl" else "KL"
        yield f"- {kind.capitalize()} `auto` loses no more {lost} than `filter` on {len(no_worse)} of {len(pairs)} networks, and clearly less KL (at most {CLEARLY:.0%}) on {len(clearly)}: {', '.join(clearly)}."
    same = [n for n, (_, b) in pairs.items() if not b["forms"]]
    if same:
        yield f"- On {', '.join(same)} it took channels alone, as nothing else lost less on the samples held out: what differs there is what was measured while the target of latency was met, and counts as no more."
    times = [time for _, b in pairs.values() for time in b["times"]]
    slower = [time for time in times if time[2] > time[1]]
    yield (
        f"- Of {len(times)} layers that `auto` edited, {len(slower)} are slower than the one they replaced, as onnxruntime's profiler has it in the whole network"
        + (
            ": " + ", ".join(f"`{layer}` {before:.1f} -> {after:.1f} us" for layer, before, after in slower) + "."
            if slower
            else "."
        )
    )
    proofs = [record for name, record in found.items() if name.startswith("zoo/")]
    if proofs:
        edits = sum((Counter(record["edits"]) for record in proofs), Counter())
        worst = max(record["difference"] for record in proofs)
        sources = Counter(record["digest"] for record in proofs)
        yield f"- Rewritten layers gave what masked ones give, to {worst:.0e} of the range (1e-4 is allowed), on {len(proofs)} exports of the zoo, with {', '.join(f'{count} edits of {kind}' for kind, count in sorted(edits.items()))} (sources {', '.join(f'{d}: {n}' for d, n in sources.most_common())})."


def plot(found: dict[str, Record]) -> None:
    """Draw the losses side by side."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "onnxprune", "font.size": 10})
    import matplotlib.pyplot as plt

    networks = [n for n in SUMMARY if "kl" in found.get(f"{n}/filter", {}) and "kl" in found.get(f"{n}/auto", {})]
    figure, axes = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    for number, (mode, hatch) in enumerate((("filter", ""), ("auto", "//"))):
        places = np.arange(len(networks)) + 0.4 * number - 0.2
        values = [found[f"{n}/{mode}"]["kl"] for n in networks]
        bars = axes.bar(places, values, 0.38, label=mode, hatch=hatch, edgecolor="white")
        axes.bar_label(bars, [kept(found[f"{n}/{mode}"]).split()[-1] for n in networks], fontsize=8)
    axes.set_xticks(np.arange(len(networks)), networks)
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_ylabel("KL on the test images (nats)")
    axes.set_title("At half the latency: loss, and top-1 or agreement (%) above each bar")
    axes.legend(frameon=False)
    figure.savefig(PLOT, metadata={"Date": None})


def page(folder: Path) -> str:
    """Return the measured part of the page."""
    found = latest(folder)
    used = [record for name, record in found.items() if not name.startswith("zoo/") and "error" not in record]
    digests = Counter(record["digest"] for record in used)
    days = sorted({record["day"] for record in used})
    lines = [
        *rows(found), "", "![Losses side by side](blocks.svg)", "", *reach(found), "",
        f"Measured {' and '.join(days)} with sources {', '.join(f'{d} ({n})' for d, n in digests.most_common())}.",
    ]  # fmt: skip
    return "\n".join(lines)


MARKS = ("<!-- measured: start -->", "<!-- measured: end -->")


def write(folder: Path) -> None:
    """Put what was measured between the marks of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    PAGE.write_text(f"{before}{MARKS[0]}\n{page(folder)}\n{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")
    plot(latest(folder))


def main() -> int:
    """Run what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", type=Path, default=ROOT / "build" / "blocks", help="folder of the networks and results"
    )
    parser.add_argument("--train", metavar="NAME", help="train one network, or all, instead of measuring")
    parser.add_argument("--only", action="append", metavar="GLOB", help="measure these alone: network/granularity")
    parser.add_argument("--zoo", action="store_true", help="prove edits on the zoo instead of measuring")
    parser.add_argument("--report", action="store_true", help="write the page from what is there")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.models.mkdir(parents=True, exist_ok=True)
    if args.measure:
        print(json.dumps(measure(*args.measure.split("/"), args.models)))
        return 0
    if args.train:
        for name in networks() if args.train == "all" else [args.train]:
            train(name, args.models)
        return 0
    if args.zoo:
        zoo(args.models)
    elif not args.report:
        every = [f"{network}/{mode}" for mode in MODES for network in SUMMARY]
        chosen = [name for name in every if any(fnmatch.fnmatch(name, g) for g in args.only or ("*",))]
        run(chosen, args.models)
    write(args.models)
    return 0


if __name__ == "__main__":
    sys.exit(main())
