"""Edits of layers: one file per granularity, the protocol that they share, and the registry.

A granularity is one file and one row of `GRANULARITIES`, named in `onnxprune.options.GRANULARITIES`. See `protocol` for
the methods of an edit, and `apply` for how edits are applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from onnxprune.errors import PlanError
from onnxprune.graph.model import Model
from onnxprune.surgery.edits.depth import DropBranch, Merge
from onnxprune.surgery.edits.inputs import DropInputs
from onnxprune.surgery.edits.kernel import Kernel
from onnxprune.surgery.edits.low_rank import LowRank
from onnxprune.surgery.edits.protocol import Candidate, Edit

GRANULARITIES: Mapping[str, tuple[type[Edit], ...]] = {
    "kernel": (Kernel,),
    "rank": (LowRank,),
    "depth": (DropBranch, Merge),
    "input": (DropInputs,),
}
"""Kinds of edits by value of `--granularity`."""
REMOVED = {"grouped": "group", "split": "kernel"}
"""Kinds that plans of earlier versions may hold, and the granularity that they had."""
KINDS: Mapping[str, type[Edit]] = {kind.kind: kind for kinds in GRANULARITIES.values() for kind in kinds}


def candidates(model: Model, granularities: Iterable[str], multiple: int) -> Iterator[Candidate]:
    """Yield the edits of some keys of `GRANULARITIES` that a model allows, for a channel multiple."""
    for name in granularities:
        for kind in GRANULARITIES[name]:
            yield from kind.candidates(model, multiple)


def from_dict(content: Mapping[str, Any], where: str) -> Edit:
    """Read an edit of a plan.

    Raises:
        PlanError: the entry describes no known edit.
    """
    name = str(content.get("kind"))
    try:
        if name in REMOVED:
            raise ValueError(f"edits of the kind {name!r} (granularity {REMOVED[name]}) are no longer made")
        if name not in KINDS:
            raise ValueError(f"its kind {name!r} is none of {', '.join(KINDS)}")
        kind = KINDS[name]
        unknown = set(content) - {"kind", "what", "why", *kind.plan_fields()}
        missing = set(kind.plan_fields()) - set(content)
        if unknown or missing:
            wrong = [f"{word} {', '.join(sorted(s))}" for word, s in (("unknown", unknown), ("missing", missing)) if s]
            raise ValueError(f"an edit of the kind {name!r} has fields that are {' and '.join(wrong)}")
        return kind(**{field: _frozen(content[field]) for field in kind.plan_fields()})
    except (TypeError, ValueError) as error:
        hint = "make a new plan with `onnxprune plan`"
        raise PlanError("an edit of the plan cannot be read", where=where, why=str(error), hint=hint) from error


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
