"""The distances of a model's outputs from the original's, by kind, and the kind that each task takes.

Light to import. `onnxprune.metrics.output_distance` measures them in numpy, `onnxprune.torch_backend.output_losses` in torch.
"""

from __future__ import annotations

from onnxprune.errors import OptionError

AUTO, SCORES = "auto", "scores"
DISTANCES = {
    AUTO: "KL of the first output of the form (samples, classes); relative squared error of all others",
    SCORES: "the same, where one output is known to hold class scores",
    "numbers": "squared error of each output as a share of its variance",
    "boxes": "the same, with a variance for each entry of a box: pixels and scores count alike",
    "map": "KL over the classes of each position of (samples, classes, ...), of one class that of Bernoulli; mean over positions",
    "frames": "KL over the last axis of (samples, steps, classes), mean over steps",
    "embedding": "1 - cosine of the rows of (samples, values)",
}
"""What is measured, by kind; in the last three, outputs of another form count by their relative squared error."""
OF_TASK = {
    "classify": SCORES,
    "binary": "numbers",
    "multilabel": "numbers",
    "regress": "numbers",
    "embed": "embedding",
    "detect": "boxes",
    "keypoints": "boxes",
    "segment": "map",
    "ctc": "frames",
}
"""Kind of the distance by task."""


def takes_class_scores(kind: str) -> bool:
    """Tell whether a kind looks for one output with class scores.

    Raises:
        OptionError: the kind is unknown.

    >>> takes_class_scores("scores"), takes_class_scores("map")
    (True, False)
    """
    if kind not in DISTANCES:
        raise OptionError(f"unknown distance {kind!r}", hint=f"choose one of {', '.join(DISTANCES)}")
    return kind in (AUTO, SCORES)
