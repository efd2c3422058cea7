"""plan.json: which channels stay, by group, to be read, edited and replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import PlanError
from onnxprune.output import write_text
from onnxprune.types import Plan, Trace

SCHEMA = "onnxprune.plan/1"


def to_dict(plan: Plan, trace: Trace, model_name: str) -> dict[str, Any]:
    """Return the plan as it is written: per group the indices that stay, counted within the group."""
    return {
        "schema": SCHEMA,
        "model": {"name": model_name, "sha256": plan.digest},
        "settings": plan.settings,
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
    """Write plan.json, one group a line."""
    content = to_dict(plan, trace, model_name)
    groups = content.pop("groups")
    head = json.dumps(content, indent=1)[:-2]
    lines = ",\n  ".join(json.dumps(group) for group in groups)
    write_text(path, f'{head},\n "groups": [\n  {lines}\n ]\n}}\n')


def read(path: Path, trace: Trace, digest: str) -> Plan:
    """Read a plan made for this model, perhaps edited.

    Raises:
        PlanError: not a plan, for another model, or one that deletes what must stay.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        groups = {entry["name"]: entry for entry in content["groups"]}
        schema, made_for = content["schema"], content["model"]["sha256"]
        steps = tuple((float(step["flops_removed"]), float(step["params_removed"])) for step in content.get("path", []))
        settings = dict(content.get("settings", {}))
    except OSError as error:
        raise PlanError("the plan cannot be read", where=str(path), why=error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(
            "not a plan, or a damaged one", where=str(path), why=f"{type(error).__name__}: {error}"
        ) from error
    if schema != SCHEMA:
        raise PlanError(
            "the plan has another schema", where=str(path), why=f"it is {schema!r}, this version reads {SCHEMA!r}"
        )
    if made_for != digest:
        raise PlanError(
            "the plan was made for another model",
            where=str(path),
            why=f"SHA-256 {made_for[:12]}… instead of {digest[:12]}…",
            hint="make a new plan with `onnxprune plan`",
        )
    names = {group.name for group in trace.groups}
    if set(groups) != names:
        odd = sorted(set(groups) ^ names)[:3]
        raise PlanError("the plan's groups are not the model's", where=str(path), why=f"differs in {', '.join(odd)}")
    keep = np.zeros(trace.n_channels, dtype=bool)
    for group in trace.groups:
        index = np.asarray(groups[group.name].get("keep", []))
        where = f"{path}, group {group.name}"
        if index.ndim != 1 or (index.size and index.dtype.kind not in "iu"):
            raise PlanError("`keep` is no list of whole numbers", where=where)
        if index.size == 0 or index.min() < 0 or index.max() >= group.channels.size:
            raise PlanError(
                "`keep` is out of range",
                where=where,
                why=f"give at least one index, from 0 to {group.channels.size - 1}",
            )
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
                "the plan leaves a tensor without channels", where=str(path), why="all channels of one branch are gone"
            )
    return Plan(keep, digest, settings, steps)
