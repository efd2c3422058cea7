"""Read and write plan.json: the kept channels of each group, and layer edits. A plan can be edited and replayed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from onnxprune.errors import OptionError, PlanError, content_fault
from onnxprune.file_kinds import PLAN, kind_of
from onnxprune.fileio import Transaction, joined
from onnxprune.options import Options
from onnxprune.reading import read_json
from onnxprune.types import IntArray, Plan, Trace

SCHEMA = "onnxprune.plan/1"
STRUCTURE = ("grouped", "heads", "norms")
ENTRY = "plan.sha256"
"""Entry of the metadata of a result that holds the `fingerprint` of its plan."""
RENEW = "make a new plan with `onnxprune plan`"


def to_dict(plan: Plan, trace: Trace, model_name: str) -> dict[str, Any]:
    """Return the content of plan.json, with the kept indices of each group, counted within the group."""
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


def write(path: Path, plan: Plan, trace: Trace, model_name: str, together: Transaction | None = None) -> None:
    """Write plan.json, one line per group.

    Args:
        path: of the file.
        plan: the plan.
        trace: of the model; where the plan has layer edits, of the edited model.
        model_name: name of the file of the model.
        together: other files that take their places at the same time; None: the plan alone.

    Raises:
        OutputError: the file cannot be written.
    """
    content = to_dict(plan, trace, model_name)
    groups = content.pop("groups")
    head = json.dumps(content, indent=1)[:-2]
    lines = ",\n  ".join(json.dumps(group) for group in groups)
    with joined(together) as files:
        files.file(path).write_text(f'{head},\n "groups": [\n  {lines}\n ]\n}}\n', encoding="utf-8")


def fingerprint(content: Mapping[str, Any]) -> str:
    """Return a SHA-256 of the kept channels and of the edits in the content of plan.json; a result has it in its metadata."""
    kept = {str(group["name"]): sorted(set(group["keep"])) for group in content["groups"]}
    return hashlib.sha256(json.dumps([kept, content.get("blocks", [])], sort_keys=True).encode()).hexdigest()


def refuse_other(path: Path, digest: str, model: Path, stored: str) -> None:
    """Refuse a plan by which a result was not made: each may be of another run than the other.

    Args:
        path: of the plan.
        digest: of the original.
        model: path of the result.
        stored: `fingerprint` of its plan, from its metadata; empty: not known, and not compared.

    Raises:
        PlanError: the plan is damaged, or is not the plan of this result or of this original.
    """
    content = _content(path, digest)
    with _damaged(path):
        found = fingerprint(content)
    if stored and found != stored:
        why = f"{model.name} was made by a plan with the fingerprint {stored[:12]}…, and this one has {found[:12]}…"
        _refuse(
            path, "the plan and the model do not belong together", why, "give the plan that was written with the model"
        )


def structure(path: Path) -> dict[str, Any]:
    """Return the options of a plan that define channels; empty where the file cannot be read, which `read` reports."""
    try:
        settings = {"norms": "keep"} | read_json(path)["settings"]  # the value of older plans
        known = Options(**{name: settings[name] for name in STRUCTURE if name in settings}).resolved(True)
        return {name: getattr(known, name) for name in STRUCTURE if name in settings}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OptionError):
        return {}


def blocks(path: Path, digest: str) -> tuple[tuple[dict[str, Any], ...], ...]:
    """Return the layer edits of a plan, in rounds.

    Raises:
        PlanError: the file is no plan, or a plan for another model.
    """
    rounds = _content(path, digest).get("blocks", [])
    lists = isinstance(rounds, list) and all(isinstance(part, list) for part in rounds)
    if not lists or not all(isinstance(entry, dict) for part in rounds for entry in part):
        _refuse(path, "`blocks` is no list of rounds", f"it is {str(rounds)[:40]}", RENEW)
    return tuple(map(tuple, rounds))


def read(path: Path, trace: Trace, digest: str) -> Plan:
    """Read a plan.

    Args:
        path: of the file.
        trace: of the model; where the plan has layer edits, of the edited model.
        digest: of the model.

    Raises:
        PlanError: the file is no plan, a plan for another model, or a plan that deletes pinned channels.
    """
    content = _content(path, digest)
    with _damaged(path):
        groups = {str(entry["name"]): entry for entry in content["groups"]}
        complete = len(groups) == len(content["groups"])
        steps = tuple((float(step["flops_removed"]), float(step["params_removed"])) for step in content.get("path", []))
        settings = dict(content.get("settings", {}))
    odd = sorted(set(groups) ^ {group.name for group in trace.groups})
    if odd or not complete:
        why = f"missing or unknown: {', '.join(odd[:3])}" if odd else "a group is listed twice"
        _refuse(path, "the plan's groups are not the model's", why, "list every group of the model once")
    keep = np.zeros(trace.n_channels, dtype=bool)
    for group in trace.groups:
        where = f"{path}, group {group.name}"
        keep[group.channels[_kept(groups[group.name].get("keep"), group.channels.size, where)]] = True
        lost = group.channels[trace.pinned[group.channels] & ~keep[group.channels]]
        if lost.size:
            pin = trace.why_pinned(lost)[0]
            _refuse(where, "the plan deletes pinned channels", f"{pin.reason} ({pin.node})", "put them back")
    if not all(keep[extent].any() for extent in trace.extents):
        why = "all channels of one branch are deleted"
        _refuse(path, "the plan leaves a tensor without channels", why, "keep one of each branch")
    return Plan(keep, digest, settings, steps, blocks=tuple(map(tuple, content.get("blocks", ()))))


def _kept(listed: Any, size: int, where: str) -> IntArray:
    """Return the kept indices of a group with `size` channels."""
    if not isinstance(listed, list) or not all(type(entry) is int for entry in listed):
        _refuse(where, "`keep` is no list of whole numbers", f"it is {str(listed)[:40]}", "list the indices")
    odd = [entry for entry in listed if not 0 <= entry < size]
    if odd or not listed:
        why = f"the group has no channel {odd[0]}" if odd else "a group cannot lose all its channels"
        _refuse(where, "`keep` is out of range", why, f"give at least one index, from 0 to {size - 1}")
    return np.array(listed)


def _content(path: Path, digest: str) -> dict[str, Any]:
    """Return the content of a plan for the model with this digest."""
    try:
        with _damaged(path):
            content: dict[str, Any] = read_json(path)
            schema, made_for = content["schema"], content["model"]["sha256"]
    except OSError as error:
        _refuse(path, "the plan cannot be read", error.strerror or str(error), "check the path given to --plan")
    if schema != SCHEMA:
        _refuse(path, "the plan has another schema", f"it is {schema!r}, this version reads {SCHEMA!r}", RENEW)
    if made_for != digest:
        why = f"SHA-256 {str(made_for)[:12]}… instead of {digest[:12]}…"
        _refuse(path, "the plan was made for another model", why, RENEW)
    return content


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Refuse a plan with missing entries or wrong types."""
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        kind = kind_of(path)
        if kind is not None and kind is not PLAN:
            _refuse(path, f"not a plan, but {kind.text}", "", RENEW)
        _refuse(path, "not a plan, or a damaged one", content_fault(error), RENEW)


def _refuse(where: Path | str, what: str, why: str, hint: str) -> NoReturn:
    raise PlanError(what, where=str(where), why=why, hint=hint)
