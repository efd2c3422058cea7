"""Results that are refused after the work was done: they are kept beside the output, under a name that says so."""

from __future__ import annotations

from onnxprune.errors import OnnxPruneError
from onnxprune.pipeline.run import Destinations, Run
from onnxprune.types import Check


def refused_by(run: Run) -> tuple[Check, ...]:
    """Return the checks for which the result is not written under the name that was asked for.

    With --force a result is refused only by an error. A pruned model is refused by the costs that it misses, a model that was only trained by its integrity.
    """
    if run.destinations.force and run.refusal is None:
        return ()
    kind = "integrity" if run.plan is None else "cost"
    return tuple(check for check in run.report.verdict.of(kind) if not check)


def delivered_to(run: Run) -> Destinations:
    """Return where the files of the result go."""
    return run.destinations.rejected if refused_by(run) else run.destinations


def kept_note(refused: tuple[Check, ...], destinations: Destinations) -> str:
    """Say where a refused result is, and why it was refused."""
    return f"refused, and kept as {destinations.model}: {'; '.join(map(str, refused))}"


def told(refusal: OnnxPruneError, destinations: Destinations) -> OnnxPruneError:
    """Return the error of a refused result, with the name under which the result is kept."""
    if destinations.model is None:
        return refusal
    plan = "" if destinations.plan is None else f", with its plan {destinations.plan}"
    kept = f"the result is kept as {destinations.model}{plan}"
    return type(refusal)(refusal.what, where=refusal.where, why=refusal.why, hint=f"{kept}; {refusal.hint}")
