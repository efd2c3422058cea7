"""Errors a user can act on: each says what happened, where, why, and what to do.

OnnxPruneError
├── ModelError    the .onnx cannot be read, is refused, or has nothing to prune
├── DataError     calibration or evaluation data do not fit the model
├── OptionError   an option or a policy value makes no sense (exit 2)
├── TargetError   the target cannot be reached; carries the nearest reachable figure
├── PlanError     a plan.json does not belong to this model, or is damaged
├── OutputError   the result cannot be written where it was asked for
├── TrainingError fine-tuning cannot go on
├── LatencyError  a latency table does not belong to this model, or a result would be slower
└── ProofError    the pruned model differs from the masked one: nothing is written
"""

from __future__ import annotations


class OnnxPruneError(Exception):
    """Base of all errors that end in one message and no stack trace.

    Args:
        what: one sentence, what went wrong.
        where: the file, node or option concerned.
        why: the cause, as far as it is known.
        hint: what the user can do now.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.why, self.hint = what, where, why, hint

    def __str__(self) -> str:
        rows = (("where", self.where), ("why", self.why), ("do", self.hint))
        return "\n".join([self.what, *(f"  {key + ':':<7}{text}" for key, text in rows if text)])


class ModelError(OnnxPruneError):
    """The model cannot be read, is refused, or has nothing to prune."""


class DataError(OnnxPruneError):
    """The data do not fit the model."""


class OptionError(OnnxPruneError):
    """An option has a value that makes no sense."""

    exit_code = 2


class TargetError(OnnxPruneError):
    """The target cannot be reached."""


class PlanError(OnnxPruneError):
    """The plan does not belong to this model, or is damaged."""


class OutputError(OnnxPruneError):
    """The result cannot be written."""


class TrainingError(OnnxPruneError):
    """Fine-tuning cannot go on."""


class LatencyError(OnnxPruneError):
    """A latency table cannot be used, or a result is slower than what it came from."""


class ProofError(OnnxPruneError):
    """The pruned model is not the masked model."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error, shortened."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
