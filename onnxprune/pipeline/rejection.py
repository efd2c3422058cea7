"""Results that are refused after the work was done: they are kept beside the output, under a name that says so."""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path

from onnxprune.errors import FAILED, OnnxPruneError, OutputError
from onnxprune.evaluation.gate import ORIGINAL
from onnxprune.file_kinds import PLAN, kind_of
from onnxprune.pipeline.run import Destinations, Run
from onnxprune.reading import open_regular
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
    error = type(refusal)(refusal.what, where=refusal.where, why=refusal.why, hint=f"{kept}; {refusal.hint}")
    error.exit_code = FAILED
    return error


def refuse_foreign(destinations: Destinations) -> None:
    """Refuse, before any work is done, a destination whose name for a refused result is taken by a file of somebody else.

    Raises:
        OutputError: names the file.
    """
    places = destinations.rejected
    for path, ours in ((places.model, _is_result), (places.plan, lambda found: kind_of(found) is PLAN)):
        if path is not None and path.exists() and not ours(path):
            raise OutputError(
                "the name of a refused result is taken",
                where=str(path),
                why="a result that is refused goes there, and that file is none",
                hint="move it, or give another output",
            )


def _is_result(path: Path) -> bool:
    """Tell whether a file is a model that onnxprune has written."""
    with contextlib.ExitStack() as opened, contextlib.suppress(OSError, ValueError):  # an empty file cannot be mapped
        stream = opened.enter_context(open_regular(path))
        content = opened.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        return content.rfind(ORIGINAL.encode()) >= 0
    return False
