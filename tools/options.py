#!/usr/bin/env python3
"""Write the tables of options in README.md and docs/ from the fields of `Options`, `Training` and `GateLimits`.

Example:
    python tools/options.py
"""

from __future__ import annotations

import os
from pathlib import Path

from onnxprune.evaluation.policy import GateLimits
from onnxprune.options import Options, Training
from onnxprune.options.metadata import AUTO, number_type, option_fields

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": Options, "docs/training.md": Training, "docs/gate.md": GateLimits}
START, END = "<!-- options: start -->", "<!-- options: end -->"


def table(kind: type, folder: str) -> str:
    """Return a row for each option, with links as they are from a folder."""
    rows = ["| option | what it does | default |", "| --- | --- | --- |"]
    for each, found, flag in option_fields(kind):
        if found.flag is None:
            continue
        placeholder = found.metavar or ("N" if number_type(each) else "")
        more = f" {found.more}." if found.more else ""
        unsaid = [word for word in found.choices if word != AUTO and word not in found.help + more]
        choices = f" `{'`, `'.join(found.choices)}`." if unsaid else ""
        default = found.shown or each.default
        if found.decided:
            default = f"`auto`: {found.decided}" if default == AUTO else found.decided
        elif not isinstance(default, str | int | float):
            default = ""
        else:
            default = f"`{default}`"
        text = f"{found.help}{choices}{more}".replace("|", "\\|")
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
