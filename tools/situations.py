#!/usr/bin/env python3
"""Run the tests of all reported situations, print one row per situation, and write docs/situations.md.

A situation is right where every test marked `@pytest.mark.situation(NAME)` passes; `tests/situations/networks.py` builds the
networks.

Example:
    python tools/situations.py                 # about four minutes on two cores
    python tools/situations.py hwc crnn        # some; the page is not written
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "situations"
PAGE = ROOT / "docs" / "situations.md"
sys.path.insert(0, str(FOLDER))

SITUATIONS = {
    "siamese": (
        "two inputs through one network, all weights shared",
        "uses of one tensor tied; d(x, x) stays 0; the file shrinks",
    ),
    "retina": ("head shared by three levels", "one tensor stays one; figures counted in the file"),
    "tied": ("autoencoder with tied weights", "one tensor stays one; figures counted in the file"),
    "batch1only": ("dynamic batch declared, Reshape fixed at batch 1", "works with batch 1, and a note names the node"),
    "crnn": (
        "output (T, N, classes) of an OCR network",
        "the batch axis of an output is derived; hidden units are prunable",
    ),
    "condconv": ("weight of a Conv computed from the input", "tied, or pinned with that reason; the rest is pruned"),
    "siamrpn": ("features become the kernel of a correlation", "tied; everything but the outputs is prunable"),
    "nms": ("NonMaxSuppression inside, rows depend on the data", "compared in front of it; samples counted right"),
    "landmarks2": ("ten coordinates, `--max-drop 0.5`", "recognised as regression; error held"),
    "hwc": ("input (H, W, 3) without a batch", "one picture at a time"),
    "bigconst": ("Tile, ConstantOfShape, float16 behind Cast", "never larger; dtype kept"),
    "uint8nhwc": ("uint8 NHWC, normalised inside, generated data", "bytes like an image's"),
    "hfcache": ("links into a folder of blobs, as model hubs lay them", "loads; containment tested"),
    "defaults_in": ("an input with a default", "kept in the signature"),
    "dcn": ("DeformConv", "understood: free, and exact"),
    "einsumdense": ("Einsum with an ellipsis or two written labels", "understood: free, and exact"),
    "ortopt": ("a file that onnxruntime has optimised", "counted, listed, named"),
    "loopnet": ("weights captured by the body of a Loop", "counted per trip, listed, pinned with that reason"),
    "ifnet": ("weights read only in bodies of If", "counted, listed, pinned with that reason"),
    "dropout_train": ("Dropout left in training mode, random masks", "the model is random: the node is named"),
    "sparse": ("sparse_initializer", "densified in its own type"),
    "square": ("only 96x96 runs, height and width dynamic", "usual squares are tried; `--shape` for every command"),
    "fixedbatch": ("batch fixed at 8, 50 samples", "figures per sample; no sample is left out"),
    "constif": ("If with a constant condition", "inlined: free, and exact"),
    "segnet": ("MaxPool indices and MaxUnpool", "free, and exact"),
    "convlstm": ("ConvLSTM, unrolled, zero states", "free, and exact"),
    "optiona": ("Slice with a step, zero Pad of channels", "free, and exact"),
    "attn23": ("Attention of opset 23", "free, and exact"),
    "seqsplit": ("SplitToSequence and SequenceAt", "free, and exact"),
    "eca": ("channel attention by Conv1d", "pins right; 64 channels with one reason"),
    "halfdouble": ("float16 and float64", "float16 right; float64 refused, as onnxruntime has no such Conv"),
}
"""Situation and what is right, by name."""


class Outcomes:
    """Plugin of pytest that collects the outcome of each test by situation."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.found: dict[str, list[tuple[str, bool]]] = defaultdict(list)
        self.of_test: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep the tests of the situations that are asked for."""
        for item in list(items):
            marked = [mark.args[0] for mark in item.iter_markers("situation")]
            self.of_test[item.nodeid] = marked
            if not set(marked) & set(self.names):
                items.remove(item)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note a test that passed, or that failed in any phase."""
        if report.when == "call" or report.failed:
            for name in self.of_test[report.nodeid]:
                self.found[name].append((report.nodeid.rpartition("::")[2], not report.failed))


def table(found: dict[str, list[tuple[str, bool]]], names: list[str]) -> list[str]:
    """Return the rows of the table."""
    rows = ["| situation | what it is | right | tests | outcome |", "| --- | --- | --- | --- | --- |"]
    for name in names:
        outcomes = dict(found.get(name, []))
        failed = [test for test, passed in found.get(name, []) if not passed]
        outcome = "**no test**" if not outcomes else f"**wrong**: {', '.join(failed)}" if failed else "right"
        what, right = SITUATIONS[name]
        rows.append(f"| {name} | {what} | {right} | {len(outcomes)} | {outcome} |")
    return rows


def main() -> int:
    """Run the tests; return 0 where every situation is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="situations; all by default")
    names = parser.parse_args().names or list(SITUATIONS)
    if unknown := set(names) - set(SITUATIONS):
        parser.error(f"no such situation: {', '.join(sorted(unknown))}")
    outcomes = Outcomes(names)
    pytest.main(["-q", "--no-header", "-p", "no:cacheprovider", str(FOLDER)], plugins=[outcomes])
    rows = table(outcomes.found, names)
    print("\n".join(rows))
    if len(names) == len(SITUATIONS):
        text = [
            "# Situations that people reported",
            "",
            f"Written by `python tools/situations.py` on {date.today()}: each situation is rebuilt small (`tests/situations/networks.py`),",
            "and is right where all tests that are marked with its name pass.",
            "",
            *rows,
        ]
        PAGE.write_text("\n".join(text) + "\n", encoding="utf-8")
    return int(any("**" in row for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
