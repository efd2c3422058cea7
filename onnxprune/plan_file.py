"""plan.json: which channels stay, by group, to be read, edited and replayed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import PlanError, first_line
from onnxprune.output import staged
from onnxprune.types import Plan, Trace

SCHEMA = "onnxprune.plan/1"
STRUCTURE = ("grouped", "heads", "norms")
RENEW = "make a new plan with `onnxprune plan`"


def to_dict(plan: Plan, trace: Trace, model_name: str) -> dict[str, Any]:
    """Return the plan as it is written: per group the indices that stay, counted within the group."""
    return {
        "schema": SCHEMA,
        "model": {"name": model_name, "sha256": plan.digest},
        "settings": plan.settings,
        **({"blocks": [list(map(dict, part)) for part in plan.blocks]} if plan.blocks else {}),
        "path": [{"flops_removed": flops, "params_removed": params} for flops, params in plan.path],
        "groups": [
            {
                "name": group.name,
                "layers": list(group.layers),
                "channels": int(group.channels.size),
                "pinned": int(trace.pinned[group.channels].sum()),
                "keep": np.flatnonzero(plan.keep[group.channels]).tolist(),
            }
            for group in trace.groups
        ],
    }


def write(path: Path, plan: Plan, trace: Trace, model_name: str) -> None:
    """Write plan.json, one group a line.

    Raises:
        OutputError: it cannot be written there.
    """
    with written(path, plan, trace, model_name):
        pass


@contextmanager
def written(path: Path, plan: Plan, trace: Trace, model_name: str) -> Iterator[None]:
    """Write plan.json beside its place, and move it there when the block succeeds."""
    content = to_dict(plan, trace, model_name)
    groups = content.pop("groups")
    head = json.dumps(content, indent=1)[:-2]
    lines = ",\n  ".join(json.dumps(group) for group in groups)
    with staged(path) as temporary:
        temporary.write_text(f'{head},\n "groups": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
        yield


def structure(path: Path) -> dict[str, Any]:
    """Return the options of a plan that say what a channel is; empty where the file is none that can be read: `read` says why."""
    try:
        settings = {"norms": "keep"} | json.loads(path.read_text(encoding="utf-8"))["settings"]  # older plans don't say
        return {name: settings[name] for name in STRUCTURE if isinstance(settings.get(name), str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def blocks(path: Path, digest: str) -> tuple[tuple[dict[str, Any], ...], ...]:
    """Return the edits of layers in a plan, in rounds; what they are is for `onnxprune.surgery.edits` to say.

    Raises:
        PlanError: not a plan, or for another model.
    """
    content = _content(path, digest)
    rounds = content.get("blocks", [])
    plain = isinstance(rounds, list) and all(
        isinstance(part, list) and all(isinstance(entry, dict) for entry in part) for part in rounds
    )
    if not plain:
        raise PlanError("`blocks` is no list of rounds", where=str(path), why=f"it is {str(rounds)[:40]}", hint=RENEW)
    return tuple(tuple(part) for part in rounds)


def read(path: Path, trace: Trace, digest: str) -> Plan:
    """Read a plan made for this model, perhaps edited.

    Args:
        path: of the file.
        trace: of the model, or where the plan has blocks of what these leave of it.
        digest: of the model.

    Raises:
        PlanError: not a plan, for another model, or one that deletes what must stay.
    """
    content = _content(path, digest)
    with _damaged(path):
        groups = {str(entry["name"]): entry for entry in content["groups"]}
        complete = len(groups) == len(content["groups"])
        steps = tuple((float(step["flops_removed"]), float(step["params_removed"])) for step in content.get("path", []))
        settings = dict(content.get("settings", {}))
    names = {group.name for group in trace.groups}
    if set(groups) != names or not complete:
        odd = ", ".join(sorted(set(groups) ^ names)[:3])
        raise PlanError(
            "the plan's groups are not the model's",
            where=str(path),
            why=f"missing or unknown: {odd}" if odd else "a group is there twice",
            hint="list every group of the model once",
        )
    keep = np.zeros(trace.n_channels, dtype=bool)
    for group in trace.groups:
        listed = groups[group.name].get("keep")
        where = f"{path}, group {group.name}"
        if not isinstance(listed, list) or not all(type(entry) is int for entry in listed):
            raise PlanError(
                "`keep` is no list of whole numbers",
                where=where,
                why=f"it is {str(listed)[:40]}",
                hint="list the indices",
            )
        odd_ones = [entry for entry in listed if not 0 <= entry < group.channels.size]
        if odd_ones or not listed:
            raise PlanError(
                "`keep` is out of range",
                where=where,
                why=f"the group has no channel {odd_ones[0]}" if odd_ones else "a group cannot lose all its channels",
                hint=f"give at least one index, from 0 to {group.channels.size - 1}",
            )
        index = np.array(listed)
        keep[group.channels[index]] = True
        lost = group.channels[trace.pinned[group.channels] & ~keep[group.channels]]
        if lost.size:
            pin = trace.why_pinned(lost)[0]
            raise PlanError(
                "the plan deletes channels that must stay",
                where=where,
                why=f"{pin.reason} ({pin.node})",
                hint="put them back",
            )
    for extent in trace.extents:
        if not keep[extent].any():
            raise PlanError(
                "the plan leaves a tensor without channels",
                where=str(path),
                why="all channels of one branch are gone",
                hint="keep one of each branch",
            )
    return Plan(keep, digest, settings, steps, blocks=tuple(tuple(part) for part in content.get("blocks", ())))


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Say of what is missing in a plan, or of another kind, that the file is damaged."""
    try:
        yield
    except KeyError as error:
        raise PlanError(
            "not a plan, or a damaged one", where=str(path), why=f"it has no {error}", hint=RENEW
        ) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise PlanError("not a plan, or a damaged one", where=str(path), why=first_line(error), hint=RENEW) from error


def _content(path: Path, digest: str) -> dict[str, Any]:
    """Return what a plan file holds, made for a model of this digest."""
    try:
        with _damaged(path):
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            schema, made_for = content["schema"], content["model"]["sha256"]
    except OSError as error:
        raise PlanError(
            "the plan cannot be read",
            where=str(path),
            why=error.strerror or str(error),
            hint="check the path given to --plan",
        ) from error
    if schema != SCHEMA:
        raise PlanError(
            "the plan has another schema",
            where=str(path),
            why=f"it is {schema!r}, this version reads {SCHEMA!r}",
            hint=RENEW,
        )
    if made_for != digest:
        raise PlanError(
            "the plan was made for another model",
            where=str(path),
            why=f"SHA-256 {str(made_for)[:12]}… instead of {digest[:12]}…",
            hint=RENEW,
        )
    return content
