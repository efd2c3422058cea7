#!/usr/bin/env python3
"""Make reports of networks of very different sizes, and measure how large they are and how long a browser takes to open them.

A page counts as open when its plots are drawn (`data-ready`), counted from the start of the navigation, in a headless Chromium that has
opened nothing before. ResNet-152 is exported with random weights where torchvision is installed, or taken from `--resnet152`.

Example:
    python tools/report.py --folder pages/                              # make and measure
    python tools/report.py --folder pages/ --resnet152 model.onnx --write   # and put the table into docs/report.md
    python tools/report.py --measure page.html                          # measure what is there
    python tools/report.py --measure page.html --screenshots pictures/  # and take pictures of each section
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune import BenchmarkConfig
from onnxprune.runtime import machine

if TYPE_CHECKING:
    from playwright.sync_api import Browser


ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "report.md"
START, END = "<!-- sizes: start -->", "<!-- sizes: end -->"
OPENED = 5
"""Times that each page is opened."""
WAYS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}


def chain(layers: int, channels: int = 16) -> onnx.ModelProto:
    """Return a classifier of images of 8 x 8: convolutions in residual blocks of two, and a Gemm."""
    rng = np.random.default_rng(0)
    nodes, weights = [], {}

    def conv(name: str, source: str, inputs: int) -> str:
        weights[f"{name}.w"] = rng.normal(0, 0.6 / np.sqrt(inputs * 9), (channels, inputs, 3, 3)).astype(np.float32)
        inputs_ = [source, f"{name}.w"]
        nodes.append(helper.make_node("Conv", inputs_, [f"{name}.y"], f"/{name}/Conv", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"{name}.y"], [f"{name}.r"], f"/{name}/Relu"))
        return f"{name}.r"

    x = conv("stem", "x", 3)
    for block in range((layers - 2) // 2):
        name = f"stage{block // 20}/block{block % 20}"
        y = conv(f"{name}/second", conv(f"{name}/first", x, channels), channels)
        nodes.append(helper.make_node("Add", [x, y], [f"{name}.sum"], f"/{name}/Add"))
        x = f"{name}.sum"
    if layers % 2:
        x = conv("last", x, channels)
    weights["head.w"] = rng.normal(0, 1, (10, channels)).astype(np.float32)
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["pooled"], "/pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "/flatten"),
        helper.make_node("Gemm", ["flat", "head.w"], ["y"], "/head/Gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def resnet152(path: Path) -> None:
    """Export ResNet-152 with random weights."""
    import torch
    import torchvision

    torch.manual_seed(0)
    network, names = torchvision.models.resnet152(weights=None).eval(), {"x": {0: "n"}, "y": {0: "n"}}
    how = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": names, "opset_version": 17, "dynamo": False}
    torch.onnx.export(network, (torch.zeros(1, 3, 224, 224),), str(path), **how)


def made(folder: Path, given: Path | None) -> list[tuple[str, Path]]:
    """Prune networks of 3, 156 and 1,000 layers, with a report each; return what they are, and the pages."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    networks = [("3 layers", folder / "small.onnx", 8), ("1,000 layers", folder / "large.onnx", 8)]
    onnx.save(chain(3), networks[0][1])
    onnx.save(chain(1000), networks[1][1])
    if given is None:
        given = folder / "resnet152.onnx"
        resnet152(given)
    networks.insert(1, ("ResNet-152, 156 layers", given, 224))
    pages = []
    for name, path, side in networks:
        page = folder / f"{path.stem}.html"
        source = onnx.load(path, load_external_data=False).graph.input[0].name
        samples = 64 if side < 100 else 16
        data = {source: rng.normal(size=(samples, 3, side, side)).astype(np.float32)}
        data["labels"] = rng.integers(0, 10, samples)
        measure = BenchmarkConfig(runs=5, warmup=1, seconds=5, eval_batch=8)
        dials = {"importance": "l2", "repair": "none", "reduce": {"flops": 0.5}, "round_to": 1}
        onnxprune.prune(path, evaluation=data, measure=measure, report_output=page, **dials)
        pages.append((name, page))
    return pages


def measured(pages: list[tuple[str, Path]]) -> str:
    """Return a table of the size of each page, and of the time that it takes to open."""
    lines = [
        f"Chromium {{version}}, {machine.environment(0, 0).processor}; median (and longest) of {OPENED}.",
        "",
        "| report | size, MB | opened after, s |",
        "| --- | ---: | ---: |",
    ]
    version = ""
    for name, page in pages:
        times = []
        for _ in range(OPENED):
            with opened() as browser:
                version = browser.version
                tab = browser.new_page()
                tab.goto(page.resolve().as_uri())
                tab.wait_for_selector("html[data-ready=yes]")
                times.append(tab.evaluate("performance.getEntriesByName('ready')[0].startTime") / 1000)
        size = page.stat().st_size / 1e6
        lines.append(f"| {name} | {size:.1f} | {statistics.median(times):.2f} ({max(times):.2f}) |")
    return "\n".join(lines).format(version=version) + "\n"


@contextlib.contextmanager
def opened() -> Iterator[Browser]:
    """Start a new headless Chromium."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def pictures(page: Path, folder: Path) -> None:
    """Take a picture of each section, in light, in dark and as on a telephone, and print the page."""
    folder.mkdir(parents=True, exist_ok=True)
    with opened() as browser:
        for way, how in WAYS.items():
            tab = browser.new_page(**how)
            tab.goto(page.resolve().as_uri())
            tab.wait_for_selector("html[data-ready=yes]")
            for number, section in enumerate(tab.locator("main > section").all()):
                name = section.locator("h2").get_attribute("id")
                section.screenshot(path=folder / f"{page.stem}-{way}-{number:02}-{name}.png")
            tab.close()
        tab = browser.new_page(color_scheme="dark")
        tab.goto(page.resolve().as_uri())
        tab.wait_for_selector("html[data-ready=yes]")
        tab.pdf(path=folder / f"{page.stem}.pdf", format="A4", print_background=False)


def main() -> None:
    """Make, measure, take pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="make reports here, and measure them")
    parser.add_argument("--resnet152", type=Path, metavar="MODEL", help="exported already")
    parser.add_argument("--measure", type=Path, nargs="+", default=[], metavar="PAGE", help="pages that are there")
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="put pictures of each page here")
    parser.add_argument("--write", action="store_true", help="put the table into docs/report.md")
    arguments = parser.parse_args()
    pages = [] if arguments.folder is None else made(arguments.folder, arguments.resnet152)
    pages += [(page.name, page) for page in arguments.measure]
    table = measured(pages)
    print(table)
    if arguments.screenshots is not None:
        for _, page in pages:
            pictures(page, arguments.screenshots)
    if arguments.write:
        text = PAGE.read_text(encoding="utf-8")
        before, _, rest = text.partition(START)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{START}\n\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
