"""How quality is judged: the task of a model, where its labels are, and the metric that limits are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import OptionError
from onnxprune.metrics.table import TASKS
from onnxprune.options.metadata import check, documented, option

DIRECTIONS = ("higher", "lower")


@documented
@dataclass(frozen=True)
class Judging:
    """How quality is judged.

    `metric` may also be a function of outputs and labels: an array, or a list of arrays where the model has several outputs, samples
    first, and the labels of the same samples; it returns a number.

    >>> Judging(task="segment").direction
    'higher'
    """

    task: str | None = option(
        None,
        "What the model does; decides the metrics, and how outputs are compared without labels.",
        more="[Metrics](docs/tasks.md)",
        choices=tuple(TASKS),
        decided="derived from the labels and the outputs",
    )
    labels: Any = option(  # noqa: RUF009
        None,
        "Labels of the samples that quality is measured on: COCO JSON, a folder of YOLO .txt, VOC .xml or PNG masks, or a CSV.",
        metavar="FILE",
        file=True,
        decided="class folders, or the array `labels` of the data",
    )
    metric: str | Callable[[Any, Any], float] | None = option(  # noqa: RUF009
        None,
        "Your own metric, a function of outputs and labels that returns a number; limits are held against it.",
        metavar="FILE.py:FUNCTION",
        file=True,
        decided="the first metric of the task",
    )
    direction: str = option("higher", "Which amounts of your own metric are better.", choices=DIRECTIONS)
    decode: str | None = option(
        None,
        "How the outputs of a detector become boxes.",
        metavar="NAME",
        decided="by the shapes of the outputs",
    )
    characters: Any = option(  # noqa: RUF009
        None,
        "Characters of a text recogniser, one a line, in the order of its classes.",
        metavar="FILE",
        file=True,
        decided="texts are compared as class numbers",
    )

    def __post_init__(self) -> None:
        check(self)
        if self.direction == "lower" and self.metric is None:
            raise OptionError(
                "--direction has no effect without --metric", hint="give --metric FILE.py:FUNCTION, or leave it out"
            )

    def plain(self) -> Mapping[str, Any]:
        """Return the fields that differ from their defaults, for a report."""
        given = {
            name: value for name, value in vars(self).items() if value != type(self).__dataclass_fields__[name].default
        }
        return {name: getattr(value, "__name__", None) or str(value) for name, value in given.items()}
