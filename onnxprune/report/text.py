"""Numbers and sentences that every format of a report shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.metrics.table import named
from onnxprune.report.document import Report
from onnxprune.runtime.providers import CPU_PROVIDER, short_name
from onnxprune.runtime.timing import Latency
from onnxprune.types import Check, Repaired, Verdict, amount_text

TOLD = 2
"""Checks that a line names."""
PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def human(value: float, unit: str = "") -> str:
    """Write a number with a decimal prefix: 20.2 M."""
    for factor, prefix in PREFIXES:
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.4g} {unit}".rstrip()


def size(value: float) -> str:
    """Write bytes in decimal units."""
    return human(value, "B")


def relative(before: float, after: float) -> str:
    """Write a change in percent."""
    return f"{100 * (after / before - 1):+.1f} %" if before else ""


def speedup(ratio: float | None, interval: tuple[float, float] | None) -> str:
    """Write a speed-up with its interval; empty where it was not measured."""
    return "" if ratio is None or interval is None else f"{ratio:.2f}x ({interval[0]:.2f} to {interval[1]:.2f})"


def option_value(value: Any) -> str:
    """Write the value of an option."""
    if value is None or value in ("", (), []) or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={option_value(entry)}" for key, entry in value.items() if entry is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(option_value, value))
    return amount_text(value)


def summary(verdict: Verdict) -> str:
    """Summarize a verdict in a line: the word for quality first, then integrity, then limits on costs."""
    parts = [f"quality {verdict.quality}{_decisive(verdict)}", f"integrity {verdict.integrity}"]
    parts += [f"costs {verdict.word('cost')}"] if verdict.word("cost") != "NOT MEASURED" else []
    undecided = sum(check.status == "UNDECIDED" for check in verdict.checks)
    parts += [f"{undecided} undecided"] if undecided else []
    return f"{verdict.headline}: {', '.join(parts)}"


def _decisive(verdict: Verdict) -> str:
    """Return in brackets what decided the word for quality: a value and its limit, or the name of a doubt."""
    found = [check for check in verdict.of("quality") if check.status == verdict.quality]
    told = [check.name if check.limit is None else _with_limit(check) for check in found]
    return f" ({'; '.join(told[:TOLD])}{', …' if len(told) > TOLD else ''})" if told else ""


def _with_limit(check: Check) -> str:
    return f"{check.name} {option_value(check.value)}, limit {option_value(check.limit)}"


def quality(verdict: Verdict) -> str:
    """Return the word for quality, with the values that decided it and their limits."""
    decisive = [check for check in verdict.of("quality") if check.status == verdict.quality and check.limit is not None]
    told = [*map(_with_limit, decisive)]
    return f"{verdict.quality}: {'; '.join(told)}" if told else verdict.quality


def ranked(verdict: Verdict) -> list[Check]:
    """Return the checks in the order of a report: quality, costs, then integrity where it failed."""
    order = ("FAILED", "UNDECIDED", "PASSED", "INFO")
    kinds = [sorted(verdict.of(kind), key=lambda check: order.index(check.status)) for kind in ("quality", "cost")]
    return [*kinds[0], *kinds[1], *(check for check in verdict.of("integrity") if not check)]


def integrity(verdict: Verdict) -> str:
    """Return a line on the checks of integrity."""
    found = verdict.of("integrity")
    if verdict.integrity != "PASSED":
        return f"integrity: FAILED | {sum(not check for check in found)} of {len(found)} checks"
    return f"integrity: PASSED | {', '.join(check.name for check in found)}"


def result(report: Report) -> str:
    """Return a line with the change in quality, then in speed, size and FLOPs."""
    a, b, parts = report.before, report.after, list[str]()
    if report.lead in a.accuracy and report.lead in b.accuracy:
        lead, old, new = named(report.lead), a.accuracy[report.lead], b.accuracy[report.lead]
        parts.append(f"{lead.label}: {lead.text(old)} -> {lead.text(new)}, {lead.change(old, new)}")
    else:
        if "agreement" in report.fidelity:
            parts.append(f"agreement with the original: {report.fidelity['agreement']:.2f} %")
        if "explained" in report.fidelity:
            parts.append(f"explained variance of the original's outputs: {report.fidelity['explained']:.2f} %")
    if report.latency is not None and report.latency.speedup is not None:
        parts.append(f"speed-up: {report.latency.speedup:.2f}x")
    parts.append(f"file size: {relative(a.size, b.size)}")
    parts.append(f"FLOPs removed: {100 * (1 - b.flops / a.flops):.1f} %" if a.flops else "FLOPs removed: none counted")
    return "; ".join(parts)


def sources(report: Report) -> list[str]:
    """Return lines on how the figures were measured."""
    found = [f"measured on {report.samples} samples of {report.data}"]
    if report.latency is not None:
        found.append(timing(report.latency))
    if len(report.path) > 1:
        found.append(f"FLOPs removed step by step: {' -> '.join(f'{flops:.1%}' for flops, _ in report.path)}")
    return found


def timing(latency: Latency) -> str:
    """Return a line on how latency was measured."""
    turns = "interleaved runs" if latency.b is not None else "runs"
    threads = f"{latency.threads or 'default'} thread{'' if latency.threads == 1 else 's'}"
    on = "" if latency.provider == CPU_PROVIDER else f", on {short_name(latency.provider)}"
    return f"latency: median of {latency.runs} {turns}{on}, batch {latency.batch}, {threads}, 95 % bootstrap interval"


def changes(report: Report) -> list[str]:
    """Return lines on repair and training."""
    found = [repair(report.repair)] if report.repair else []
    return found if report.training is None else [*found, training(report.training)]


def repair(layers: Sequence[Repaired]) -> str:
    """Return a line on repair, with the error on held-out rows that is left: geometric mean over the layers."""
    better = [layer.after / layer.before for layer in layers if layer.after < layer.before]
    left = f", error left on held-out rows: {np.exp(np.mean(np.log(np.maximum(better, 1e-12)))):.0%}" if better else ""
    return f"repaired: {len(better)} of {len(layers)} layers behind a cut{left}"


def training(found: Mapping[str, Any]) -> str:
    """Return a line on training, with the change in divergence on held-out samples."""
    looks = found["looks"]
    last = min(looks, key=lambda look: float(look["divergence"]))
    first, best = looks[0], next((look for look in looks if look["step"] == found["best_step"]), last)
    line = f"training: {found['steps']} steps, {found['samples']} samples, {found['seconds']:.0f} s; weights of step {found['best_step']}"
    line += f"; on held-out samples: divergence {first['divergence']:.3g} -> {best['divergence']:.3g}"
    for name, key in (("agreement", "agreement"), ("top-1", "top1")):
        if first[key] is not None and best[key] is not None:
            line += f", {name} {first[key]:.1f} -> {best[key]:.1f} %"
    return line


def edits(rounds: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return a line for each kind of edit, with the edited layers."""
    layers: dict[str, list[str]] = {}
    for entry in (entry for part in rounds for entry in part):
        layers.setdefault(str(entry["what"]), []).append(str(entry["layer"]))
    return [f"{what}: {', '.join(names)}" for what, names in sorted(layers.items())]


def settings(values: Mapping[str, Any]) -> list[str]:
    """Return a line with the resolved options."""
    given = [f"{key} {option_value(value)}" for key, value in values.items() if value not in (None, "", (), [], {})]
    return [f"decided: {'; '.join(given)}"] if given else []


def pins(pinned: Sequence[tuple[str, str, int]]) -> list[str]:
    """Return a line for each pin, from (reason, node, channels)."""
    return [f"pinned: {count} channels at {node}: {reason}" for reason, node, count in pinned]


def decisions(report: Report) -> list[str]:
    """Return the decisions of a run: options, pins and repair, line by line."""
    line = "repaired: {0.label}, error {0.before:.3g} -> {0.after:.3g} on held-out rows"
    return [*settings(report.settings), *pins(report.pinned), *map(line.format, report.repair)]
