"""What of a sweep is done, kept in its folder after every step, and the Pareto set of its members."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxprune import fileio
from onnxprune.errors import OutputError
from onnxprune.report.document import SWEEP_SCHEMA, Member, Sweep

STATE = "sweep.json"


def name_of(quantity: str, share: float) -> str:
    """Return the name of a member's files."""
    return f"{quantity}-{100 * share:g}".replace(".", "_")


class SweepState:
    """State of a sweep: plans, models and timings that are there already."""

    def __init__(self, folder: Path, quantity: str, settings: str) -> None:
        _make(folder)
        self._folder, self._file, self._quantity = folder, folder / STATE, quantity
        self._content: dict[str, Any] = {"schema": SWEEP_SCHEMA, "settings": settings, "state": {}}
        if not self._file.exists():
            return
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
            same = found["schema"] == SWEEP_SCHEMA and found["settings"] == settings
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise OutputError(
                "the folder holds another sweep",
                where=str(folder),
                why="its model, data or dials are others",
                hint="give another folder, or remove this one",
            )
        self._content["state"] = found["state"]

    def path(self, share: float, ending: str) -> Path:
        """Return a file of a member."""
        return self._folder / f"{name_of(self._quantity, share)}{ending}"

    def _of(self, share: float) -> dict[str, Any]:
        members: dict[str, dict[str, Any]] = self._content["state"]
        return members.setdefault(name_of(self._quantity, share), {"target": share})

    def set(self, share: float, **values: Any) -> None:
        """Note what is known of a member."""
        self._of(share).update(values)
        self._write()

    def _write(self) -> None:
        with fileio.atomic_write(self._file) as temporary:
            temporary.write_text(json.dumps(self._content, indent=1), encoding="utf-8")

    def is_planned(self, share: float) -> bool:
        """Whether it is known what goes, or that the target cannot be reached."""
        return "note" in self._of(share) or self.has_plan(share)

    def has_plan(self, share: float) -> bool:
        """Whether there is a plan."""
        return "removed" in self._of(share) and self.path(share, ".plan.json").exists()

    def is_made(self, share: float) -> bool:
        """Whether the model is there, with its report."""
        return "report" in self._of(share) and self.path(share, ".onnx").exists()

    def is_timed(self, share: float) -> bool:
        """Whether its latency is known."""
        return "latency" in self._of(share)

    def made(self, share: float, report: dict[str, Any]) -> None:
        """Note the figures of a model."""
        before, after, fidelity = report["before"], report["after"], report["fidelity"]
        drop = None if before["top1"] is None else before["top1"] - after["top1"]
        if drop is None and "agreement" in fidelity:
            drop = 100 - fidelity["agreement"]
        passed, data = report["verdict"]["passed"], f"{report['samples']} samples of {report['data']}"
        figures = {"size": after["size"], "drop": drop, "kl": fidelity.get("kl"), "verdict": passed}
        self.set(share, report=figures, before={"size": before["size"]}, data=data)

    def family(self, model: str, quantity: str, shares: Sequence[float]) -> Sweep:
        """Return all members, with the Pareto set marked."""
        members = []
        for share in shares:
            state = self._of(share)
            member = Member(name_of(quantity, share), share, note=state.get("note", ""))
            if "report" in state:
                timed = state.get("latency", {})
                member = replace(
                    member,
                    flops_removed=state["removed"][0],
                    params_removed=state["removed"][1],
                    latency_ms=timed.get("b"),
                    speedup=timed.get("speedup"),
                    speedup_interval=tuple(timed["speedup_interval"]) if timed else None,
                    **state["report"],
                )
            members.append(member)
        first: dict[str, Any] = next((self._of(share) for share in shares if "report" in self._of(share)), {})
        return Sweep(
            model,
            quantity,
            tuple(replace(member, pareto=is_on_front(member, members)) for member in members),
            first.get("before", {}).get("size", 0),
            first.get("latency", {}).get("a"),
            first.get("data", ""),
        )

    def save(self, found: Sweep) -> None:
        """Write the result beside what is done."""
        self._content.update(found.to_dict())
        self._write()


def is_on_front(member: Member, others: Sequence[Member]) -> bool:
    """Tell whether no other member is at least as good in both respects, and better in one."""

    def costs(one: Member) -> tuple[float, float]:
        size = 1 - one.flops_removed if one.latency_ms is None else one.latency_ms
        return size, one.drop if one.drop is not None else one.kl or 0.0

    mine = costs(member)
    better = (
        other != mine and other[0] <= mine[0] and other[1] <= mine[1]
        for other in (costs(one) for one in others if not one.note)
    )
    return not member.note and not any(better)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            "the folder cannot be made", where=str(folder), why=error.strerror or str(error), hint="give another one"
        ) from error
