#!/usr/bin/env python3
"""Write the tables of options in README.md and docs/ from the fields of `Options`, `Training` and `GateLimits`.

Example:
    python tools/options.py
"""

from __future__ import annotations

import os
from pathlib import Path

from onnxprune.dials import AUTO, dials, number_type
from onnxprune.evaluation.policy import GateLimits
from onnxprune.options import Options, Training

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": Options, "docs/training.md": Training, "docs/gate.md": GateLimits}
START, END = "<!-- options: start -->", "<!-- options: end -->"


def table(kind: type, folder: str) -> str:
    """Return a row for each option, with links as they are from a folder."""
    rows = ["| option | what it does | default |", "| --- | --- | --- |"]
    for each, dial, flag in dials(kind):
        if dial.flag is None:
            continue
        placeholder = dial.metavar or ("N" if number_type(each) else "")
        more = f" {dial.more}." if dial.more else ""
        unsaid = [word for word in dial.choices if word != AUTO and word not in dial.help + more]
        choices = f" `{'`, `'.join(dial.choices)}`." if unsaid else ""
        default = dial.shown or each.default
        if dial.decided:
            default = f"`auto`: {dial.decided}" if default == AUTO else dial.decided
        elif not isinstance(default, str | int | float):
            default = ""
        else:
            default = f"`{default}`"
        text = f"{dial.help}{choices}{more}".replace("|", "\\|")
        if folder:
            text = text.replace("](docs/", f"]({os.path.relpath('docs', folder)}/").replace("(./", "(")
        rows.append(f"| `--{flag}{f' {placeholder}' if placeholder else ''}` | {text} | {default} |")
    return "\n".join(rows)


def page(name: str) -> str:
    """Return a page with its table as the fields say."""
    text = (ROOT / name).read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    return f"{head}{START}\n{table(PAGES[name], os.path.dirname(name))}\n{END}{tail}"


if __name__ == "__main__":
    for name in PAGES:
        (ROOT / name).write_text(page(name), encoding="utf-8")
