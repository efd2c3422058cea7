"""The members of a sweep: their state, written into the folder after every step, and the Pareto set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxprune.calibration.stage_results import different
from onnxprune.errors import OutputError
from onnxprune.fileio import write_json
from onnxprune.reading import read_json
from onnxprune.report.document import SWEEP_SCHEMA, Member, Sweep

STATE = "sweep.json"


class Family:
    """The members of a sweep: plans, models and timings that are there already.

    Args:
        folder: of all files; it is made.
        quantity: quantity of the shares.
        shares: to remove, ascending.
        settings: digests of everything else that members depend on, by name.

    Raises:
        OutputError: the folder cannot be made, or holds a sweep of other settings.
    """

    def __init__(self, folder: Path, quantity: str, shares: Sequence[float], settings: Mapping[str, str]) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = error.strerror or str(error)
            raise OutputError(
                "the folder cannot be made", where=str(folder), why=why, hint="give another one"
            ) from error
        self.folder, self.quantity, self.shares = folder, quantity, shares
        self._file = folder / STATE
        self._content: dict[str, Any] = {"schema": SWEEP_SCHEMA, "settings": dict(settings), "state": {}}
        if not self._file.exists():
            return
        try:
            found = read_json(self._file)
            changed = different(found["settings"], settings) if found["schema"] == SWEEP_SCHEMA else ["schema"]
            if not changed and not all(map(_is_sound, found["state"].values())):
                raise ValueError("a member is damaged")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            changed = [f"{STATE}, which is damaged"]
        if changed:
            raise OutputError(
                "the folder holds another sweep",
                where=str(folder),
                why=f"different: {', '.join(changed)}",
                hint="give another folder, or remove this one",
            )
        self._content["state"] = found["state"]

    def _key(self, share: float) -> str:
        return f"{self.quantity}-{100 * share:g}".replace(".", "_")

    def name(self, share: float) -> str:
        """Return the name of a member's files: the share that its plan reaches, or the target before there is one."""
        members: dict[str, dict[str, Any]] = self._content["state"]
        return str(members.get(self._key(share), {}).get("name", self._key(share)))

    def reached(self, share: float, removed: tuple[float, float]) -> None:
        """Note the shares of FLOPs and parameters that the plan of a member removes, and name the member by them."""
        which = {"flops": 0, "params": 1}.get(self.quantity)
        name = self._key(share) if which is None else f"{self.quantity}-{100 * removed[which]:.0f}"
        if name in {self.name(other) for other in self.shares if other != share}:
            name = f"{name}-asked-{100 * share:g}".replace(".", "_")
        self.set(share, removed=removed, name=name)

    def path(self, share: float, ending: str) -> Path:
        """Return a file of a member."""
        return self.folder / f"{self.name(share)}{ending}"

    def of(self, share: float) -> dict[str, Any]:
        """Return the state of a member."""
        members: dict[str, dict[str, Any]] = self._content["state"]
        return members.setdefault(self._key(share), {"target": share})

    def set(self, share: float, **values: Any) -> None:
        """Update the state of a member, and write it."""
        self.of(share).update(values)
        write_json(self._file, self._content)

    @property
    def planned(self) -> list[float]:
        """Shares that have a plan."""
        return [s for s in self.shares if "removed" in self.of(s) and self.path(s, ".plan.json").exists()]

    @property
    def unplanned(self) -> list[float]:
        """Shares that have no plan yet, and are not known to be out of reach."""
        return [s for s in self.shares if s not in self.planned and "note" not in self.of(s)]

    def is_made(self, share: float) -> bool:
        """Whether the model is there, with its report."""
        return "report" in self.of(share) and self.path(share, ".onnx").exists()

    def made(self, share: float, report: dict[str, Any]) -> None:
        """Put the figures of a report into the state of a member."""
        before, after, fidelity = report["before"], report["after"], report["fidelity"]
        word, data = report["verdict"]["headline"], f"{report['samples']} samples of {report['data']}"
        figures = {"size": after["size"], "drop": report["lost"], "kl": fidelity.get("kl"), "verdict": word}
        self.set(share, report=figures, before={"size": before["size"]}, data=data)

    def finished(self, model: str) -> Sweep:
        """Return all members, with the Pareto set marked, and write them beside the state."""
        members = []
        for share in self.shares:
            state = self.of(share)
            member = Member(self.name(share), share, note=state.get("note", ""))
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
        first: dict[str, Any] = next((self.of(share) for share in self.shares if "report" in self.of(share)), {})
        found = Sweep(
            model,
            self.quantity,
            tuple(replace(member, pareto=is_on_front(member, members)) for member in members),
            first.get("before", {}).get("size", 0),
            first.get("latency", {}).get("a"),
            first.get("data", ""),
        )
        self._content.update(found.to_dict())
        write_json(self._file, self._content)
        return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _is_report(value: dict[str, Any]) -> bool:
    amounts = all(value[name] is None or _is_number(value[name]) for name in ("drop", "kl"))
    return amounts and _is_number(value["size"]) and isinstance(value["verdict"], str) and len(value) == 4


def _is_latency(value: dict[str, Any]) -> bool:
    return all(map(_is_number, (value["a"], value["b"], value["speedup"]))) and _is_pair(value["speedup_interval"])


SOUND: Mapping[str, Callable[[Any], bool]] = {
    "target": _is_number,
    "name": lambda value: isinstance(value, str) and Path(value).name == value != "",  # no path out of the folder
    "note": lambda value: isinstance(value, str),
    "data": lambda value: isinstance(value, str),
    "removed": _is_pair,
    "report": _is_report,
    "before": lambda value: _is_number(value["size"]),
    "latency": _is_latency,
}
"""What each entry of the state of a member must be."""


def _is_sound(state: dict[str, Any]) -> bool:
    """Tell whether the state of a member is as `Family` writes it; a missing entry raises KeyError."""
    return "target" in state and all(SOUND[name](value) for name, value in state.items())


def is_on_front(member: Member, others: Sequence[Member]) -> bool:
    """Tell whether no other member is at least as good in both respects, latency and loss, and better in one."""

    def costs(one: Member) -> tuple[float, float]:
        size = 1 - one.flops_removed if one.latency_ms is None else one.latency_ms
        return size, one.drop if one.drop is not None else one.kl or 0.0

    mine = costs(member)
    better = (
        other != mine and other[0] <= mine[0] and other[1] <= mine[1]
        for other in (costs(one) for one in others if not one.note)
    )
    return not member.note and not any(better)
