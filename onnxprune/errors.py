"""Errors that a user can act on: each says what happened, where, why, and what to do.

OnnxPruneError
├── ModelError    the .onnx cannot be read, is refused, or has nothing to prune
│   └── ShapeError  no input shape that was tried runs
├── RunLimitError  a run of the model takes more time or memory than it may
├── DataError     calibration or evaluation data do not fit the model
├── OptionError   an option or a policy has a value that is not allowed (exit 2)
├── TargetError   the target cannot be reached; names the nearest reachable amount
├── PlanError     a plan.json is damaged, or belongs to another model
├── OutputError   the result cannot be written
├── TrainingError fine-tuning cannot continue
├── LatencyError  a table of latencies or timings cannot be used, or the result is slower than the original
└── ProofError    the pruned model differs from the masked model; nothing is written
"""

from __future__ import annotations

from onnxprune.escaping import visible

FAILED = 3
"""Exit code of a command whose verdict is FAILED; so is that of a result that is refused."""


class OnnxPruneError(Exception):
    """Base of all errors that end in one message and no stack trace.

    Args:
        what (str): one sentence that says what went wrong.
        where (str): the file, node or option concerned; empty where there is none.
        why (str): the cause; empty where it is not known.
        hint (str): what the user can do.

    Attributes:
        result: the result of the call, where the work was done before the error; else None.

    >>> print(OnnxPruneError("no such data", where="d.npz", hint="check the path"))
    no such data
      where: d.npz
      do:    check the path
    """

    exit_code = 1
    result: object = None

    def __init__(self, what: str, *, where: str = "", why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.why, self.hint = what, where, why, hint

    def __str__(self) -> str:
        rows = (("where", self.where), ("why", self.why), ("do", self.hint))
        return "\n".join([visible(self.what), *(f"  {key + ':':<7}{visible(text)}" for key, text in rows if text)])


class ModelError(OnnxPruneError):
    """The model cannot be read, is refused, or has nothing to prune."""


class ShapeError(ModelError):
    """No input shape that was tried runs."""


class RunLimitError(OnnxPruneError):
    """A run of the model takes more time or memory than it may."""


class DataError(OnnxPruneError):
    """The data do not fit the model."""


class OptionError(OnnxPruneError):
    """An option has a value that is not allowed."""

    exit_code = 2


class TargetError(OnnxPruneError):
    """The target cannot be reached."""


class PlanError(OnnxPruneError):
    """The plan is damaged, or belongs to another model."""


class OutputError(OnnxPruneError):
    """The result cannot be written."""


class TrainingError(OnnxPruneError):
    """Fine-tuning cannot continue."""


class LatencyError(OnnxPruneError):
    """A table of latencies or timings cannot be used, or the result is slower than the original."""


class ProofError(OnnxPruneError):
    """The pruned model is not the masked model."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error, at most 300 characters."""
    said = error.strerror if isinstance(error, OSError) else None
    text = (said or str(error)).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def content_fault(error: BaseException) -> str:
    """Say what is wrong with the content of a file, from the error of reading it: a missing entry, one of another type, or a sentence.

    >>> content_fault(KeyError("fits")), content_fault(TypeError("'NoneType' object is not subscriptable"))
    ("it has no entry 'fits'", 'an entry has another type than was written, or the file holds something else')
    """
    if isinstance(error, KeyError):
        return f"it has no entry {error}"
    if isinstance(error, TypeError | AttributeError | OverflowError | IndexError):
        return "an entry has another type than was written, or the file holds something else"
    return first_line(error)


class DataWarning(UserWarning):
    """Data on which figures say little; the verdict says so as well."""

    def __str__(self) -> str:
        return visible(super().__str__())
