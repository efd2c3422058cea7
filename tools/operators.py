#!/usr/bin/env python3
"""Write docs/operators.md from the rule table.

Example:
    python tools/operators.py
"""

from __future__ import annotations

from pathlib import Path

from onnxprune.graph.operators import SHAPE_RULES, support

TARGET = Path(__file__).resolve().parent.parent / "docs" / "operators.md"


def page() -> str:
    """Return the page."""
    rows = "\n".join(f"| {operator} | {text} |" for operator, text in support())
    return f"""# Operators

What becomes of channels at each operator of the ONNX domain, opsets 7 to the newest that onnx knows. Printed from the rule table
by `python tools/operators.py`; `onnxprune ops` prints the same at the terminal. An operator that is not listed pins whatever
reaches it, and `onnxprune inspect` says so, with the share of FLOPs that it holds.

| operator | what becomes of channels there |
| --- | --- |
{rows}

Shapes that are computed at run time are followed through {", ".join(sorted(SHAPE_RULES))}: a size that comes from Shape follows the
survivors by itself, and a literal joined to it is rewritten.
"""


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
