"""Options of pruning and of training, with metadata for each field. Imports neither numpy nor onnx."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from onnxprune.errors import OptionError
from onnxprune.importance.methods import METHODS
from onnxprune.metrics.table import TARGETS
from onnxprune.options.metadata import AUTO, check, documented, option

WITH_GRADIENTS = tuple(name for name, method in METHODS.items() if method.torch)
"""Importances that need torch."""
WITH_DATA = tuple(name for name, method in METHODS.items() if method.data)
"""Importances that need calibration samples."""
IMPORTANCES = (AUTO, *METHODS)
GRANULARITIES = ("filter", "kernel", "rank", "depth", "input")
"""What is removed: channels; taps of kernels; directions of a layer; branches and layers; channels that one of several readers drops."""
CHANNELS = GRANULARITIES[:1]
"""Channels alone."""
ALL = "all"
"""Word of the command line for all granularities."""
SAVED = frozenset({"flops", "params", "size", "latency"})
"""Quantities of which layer edits save about as much as they save of a layer by itself; memory depends on what is alive at the same time."""
SCOPES = (AUTO, "sensitivity", "global", "uniform")
REPAIRS = (AUTO, "lstsq", "bias", "none")
QUANTITIES = TARGETS
AUGMENTATIONS = ("flip", "crop", "scale", "rotate", "detail", "jitter", "noise", "erase")
"""Kinds of augmentation, in the order of their application."""
RATES = {"adamw": 3e-3, "sgd": 5e-3}
"""Highest learning rate by optimizer; for adamw as a share of the norm of a filter."""
LABELS = 0.3
"""Default weight of the cross-entropy in the loss, where there are labels."""
PRESETS = ("unit", "imagenet", "tf")
"""Presets of `onnxprune.data.preprocess.Preprocess`."""
MANY = "many"
"""Resolved `auto` of `grouped`: whole groups of convolutions with eight groups or more, positions of the others."""
DEFERRED = {"grouped": MANY, "augment": None, "round_to": None}
"""Values of `ResolvedOptions` that a later stage decides: by each convolution, by the samples, by the machine."""


@documented
@dataclass(frozen=True)
class Options:
    """How to prune.

    >>> Options(reduce={"flops": 0.5}).resolved(data=False).importance
    'l2'
    """

    reduce: Mapping[str, float] = option(
        dict,
        "Share to remove, more than 0 and less than 1: flops=50%, latency=0.3; a share alone is one of the FLOPs. All targets hold.",
        more="`size`, `memory` (activations) and `latency` hold [as measured](docs/targets.md)",
        group="targets",
        metavar="WHAT=SHARE",
        known=QUANTITIES,
        low=0,
        above=True,
        high=1,
        example="more than 0 % and less than 100 %, for instance --reduce {}=50%",
    )
    limit: Mapping[str, float] = option(
        dict,
        "Absolute budget, more than 0: flops=300M, params=1.2M, size=4MB, memory=64MB, latency=3ms.",
        more="FLOPs are 2 x MACs",
        group="targets",
        metavar="WHAT=AMOUNT",
        known=QUANTITIES,
        low=0,
        above=True,
        example="a number above 0",
    )
    max_drop: float | None = option(
        None,
        "Largest loss of the task's metric, in its unit: points of top-1, mAP, mIoU … (without labels: of agreement, or of explained "
        "variance where the outputs are no classes); the smallest model within it is taken.",
        more="[Tasks and metrics](docs/tasks.md)",
        group="targets",
        metavar="POINTS",
        low=0,
        high=100,
    )
    tolerate: float | None = option(
        None,
        "What the result may lose of the task's metric, in its unit (without labels: points of agreement, or of explained variance); "
        "beyond, its quality is FAILED.",
        group="targets",
        metavar="POINTS",
        low=0,
        high=100,
        decided="--max-drop, else 2",
    )
    minimise: str = option(
        QUANTITIES[0], "The quantity that --max-drop minimizes.", group="targets", choices=QUANTITIES
    )
    granularity: tuple[str, ...] | str = option(
        AUTO,
        "What is removed: channels (filter), taps of kernels, directions of a layer (rank), branches and "
        "layers (depth), channels that one of several readers does without (input), or all; several compete by measured loss per saving.",
        more="All but `filter` need samples, generated ones where there are no data; [how](docs/blocks.md)",
        group="granularity",
        metavar="KINDS",
        choices=GRANULARITIES,
        listed=True,
        separator=",",
        auto=True,
        low=1,
        decided="all, for --reduce and --limit of FLOPs, parameters, size and latency with second-order importance, measured losses and "
        "lstsq repair, in one shot; else filter",
    )
    importance: str = option(
        AUTO,
        "Importance of a channel.",
        more="With calibration samples `obs` (second order), `activation` (variance x weight), `apoz`, and by gradients "
        "(`pip install 'onnxprune[train]'`) `taylor`, `fisher`, `hessian` ([docs](docs/gradients.md)); without `l1`, `l2`, `fpgm` "
        "(geometric median), `bn_scale`, `random`",
        group="selection",
        choices=IMPORTANCES,
        decided="obs with calibration samples, else l2",
    )
    schedule: str = option(
        "block",
        "One shot (block), or --steps steps with new importances after each (progressive).",
        more="With `--finetune` the model is trained between steps",
        group="selection",
        choices=("block", "progressive"),
    )
    steps: int = option(5, "Steps of the progressive schedule.", group="selection", low=1)
    pace: str = option(
        "linear",
        "Pace of the progressive schedule: equal steps (linear), or large steps first (cubic).",
        group="selection",
        choices=("linear", "cubic"),
    )
    scope: str = option(
        AUTO,
        "How groups compete: by measured loss of the output (sensitivity), by one ranking of all channels (global), or "
        "with the same share of every group (uniform).",
        group="selection",
        choices=SCOPES,
        decided="sensitivity with calibration samples (with --threshold global), else global",
    )
    repair: str = option(
        AUTO,
        "Least-squares refit of each reader of removed channels to its original output (lstsq), or of its bias (bias).",
        more="Without `--data` inputs are generated for it, unless it is `none`",
        group="repair",
        choices=REPAIRS,
        decided="lstsq; none where inputs cannot be generated",
    )
    samples: int = option(512, "Number of calibration samples, at most.", group="structure", low=1)
    augment: tuple[str, ...] | str = option(
        AUTO,
        f"Augmentation of the calibration samples for the repair: none, or some of {', '.join(AUGMENTATIONS)}.",
        group="structure",
        metavar="KINDS",
        choices=AUGMENTATIONS,
        listed=True,
        separator=",",
        auto=True,
        decided="crop, scale, rotate where layers have fewer rows than unknowns, and detail where images were enlarged",
    )
    memory: float = option(
        2e9,
        "Bytes for statistics and activations, beside the models; activations beyond it go to temporary files.",
        group="structure",
        metavar="AMOUNT",
        low=64e6,
        shown="2GB",
    )
    round_to: int | str = option(
        AUTO,
        "Channel multiple: each group keeps a multiple of so many channels; 1: any number.",
        group="selection",
        low=1,
        auto=True,
        decided="measured on this machine (8 or 16), finer where the target needs it",
    )
    min_channels: int = option(1, "Channels that every group keeps, at least.", group="selection", low=1)
    max_ratio: float = option(
        0.9,
        "Share of a group that is removed, at most; 1: all but --min-channels.",
        group="selection",
        low=0,
        above=True,
        high=1,
    )
    threshold: float | None = option(
        None,
        "Remove every channel whose importance / mean importance of its group is below T; 0: none, 1: the mean.",
        group="targets",
        metavar="T",
        low=0,
    )
    ignore: tuple[str, ...] = option(
        (),
        "Glob pattern of layers (node or weight names) that keep all channels; may be repeated.",
        group="structure",
        metavar="GLOB",
        listed=True,
    )
    shape: Mapping[str, tuple[int, ...]] = option(
        dict,
        "Shape of an input, for axes without a size, for instance images=1x3x640x640; may be repeated.",
        more="Without it, and without data, usual sizes are tried until the model runs",
        group="structure",
        metavar="NAME=SHAPE",
    )
    grouped: str = option(
        AUTO,
        "What is removed from grouped convolutions: the same positions of every group, or whole groups.",
        group="structure",
        choices=(AUTO, "positions", "whole"),
        decided="whole from eight groups on, which runs faster",
    )
    heads: str = option(
        "whole",
        "What is removed from attention: whole heads, or channels of every head (width).",
        group="structure",
        choices=("whole", "width"),
    )
    norms: str = option(
        AUTO,
        "Channels that LayerNormalization, RMSNormalization, LRN or a mean runs over: pinned (keep), or prunable (cut).",
        more="Removing them (the embedding of a transformer) is not exact, and needs `--repair lstsq`",
        group="structure",
        choices=(AUTO, "keep", "cut"),
        decided="cut with --repair lstsq, else keep",
    )
    seed: int = option(0, "Seed of all random numbers.", group="structure", low=0)

    def __post_init__(self) -> None:
        check(self)

    def resolved(self, data: bool) -> ResolvedOptions:
        """Return the options without `auto`; `data` says whether there are calibration samples, given or generated.

        Raises:
            OptionError: a method that needs calibration samples, without any; or two that exclude each other.
        """
        asked: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        repair = ("lstsq" if data else "none") if self.repair == AUTO else self.repair
        meant: dict[str, Any] = {
            **DEFERRED,
            "granularity": GRANULARITIES if data and self._edits_pay else CHANNELS,
            "importance": WITH_DATA[0] if data else "l2",
            "scope": "sensitivity" if data and self.threshold is None else "global",
            "repair": repair,
            "norms": "cut" if repair == "lstsq" else "keep",
        }
        found = ResolvedOptions(**{name: meant[name] if value == AUTO else value for name, value in asked.items()})
        if not data:
            for name, value, needs in (
                ("granularity", ",".join(sorted(found.edits)), bool(found.edits)),
                ("importance", found.importance, found.importance in WITH_DATA),
                ("scope", found.scope, found.scope == "sensitivity"),
                ("repair", found.repair, found.repair != "none"),
                ("norms", found.norms, found.norms == "cut"),
            ):
                if needs:
                    hint = "give --data; `--data generated` generates inputs"
                    raise OptionError(f"--{name} {value} needs inputs of the model", hint=hint)
        if found.norms == "cut" and repair != "lstsq":
            raise OptionError(
                f"--norms cut does not go with --repair {repair}",
                why="without a channel that a normalization runs over all others change, and only least squares corrects that",
                hint="give --repair lstsq, or --norms keep",
            )
        return found

    @property
    def _edits_pay(self) -> bool:
        """Whether layer edits beside channels are measured to pay with these options, see docs/blocks.md."""
        usual = {
            "importance": (AUTO, WITH_DATA[0]),
            "scope": (AUTO, "sensitivity"),
            "repair": (AUTO, "lstsq"),
            "schedule": ("block",),
            "threshold": (None,),
            "max_drop": (None,),
        }
        bounded = {*self.reduce, *self.limit}
        return (
            bool(bounded) and bounded <= SAVED and all(getattr(self, name) in values for name, values in usual.items())
        )

    @property
    def rounds(self) -> int:
        """Number of steps of the schedule."""
        return self.steps if self.schedule == "progressive" else 1

    @property
    def has_target(self) -> bool:
        """Whether any option sets a target."""
        return bool(self.reduce or self.limit or self.threshold is not None or self.max_drop is not None)


@dataclass(frozen=True)
class ResolvedOptions(Options):
    """Options without `auto`, as every stage takes them; made by `Options.resolved`.

    Attributes:
        grouped: `positions`, `whole` or `many` (see `MANY`).
        augment: kinds of augmentation; None: `onnxprune.calibration.workspace.workspace_for` decides by the samples.
        round_to: channel multiple; None: `onnxprune.allocation.channel_multiple` finds one for each group by `multiple`, the machine's.
    """

    granularity: tuple[str, ...] = CHANNELS
    importance: str = "l2"
    scope: str = "global"
    repair: str = "none"
    augment: tuple[str, ...] | None = None  # type: ignore[assignment]
    round_to: int | None = None  # type: ignore[assignment]
    grouped: str = MANY
    norms: str = "keep"
    multiple: int | None = None

    @property
    def edits(self) -> frozenset[str]:
        """Granularities besides `filter`."""
        return frozenset(self.granularity) - {"filter"}

    @property
    def settings(self) -> dict[str, Any]:
        """The options as JSON values, with `auto` where a later stage decides."""
        values = {**asdict(self), "reduce": dict(self.reduce), "limit": dict(self.limit)}
        del values["multiple"]  # of the machine, not an option
        return {**values, **{name: AUTO for name, later in DEFERRED.items() if values[name] == later}}


@dataclass(frozen=True)
class Bound:
    """Constraint on the initializers that match `pattern` (a glob), after each step of training.

    `low` and `high` bound the elements; where `norm` is not None, it bounds the Euclidean norm of each filter instead.
    """

    pattern: str
    low: float = -math.inf
    high: float = math.inf
    norm: float | None = None

    @property
    def option(self) -> str:
        """Name of the click option."""
        return "clamp" if self.norm is None else "max-norm"

    @property
    def text(self) -> str:
        """The value of the click option."""
        return f"{self.low:g},{self.high:g}" if self.norm is None else f"{self.norm:g}"


@documented
@dataclass(frozen=True)
class Training:
    """How to fine-tune.

    >>> Training(amount=3, unit="min").schedule
    'onecycle'
    """

    amount: float = option(2.0, "Length of the training in `unit`; more than 0.", flag=None)
    unit: str = option(
        "epochs", "Unit of the amount: steps, epochs or min (minutes).", choices=("steps", "epochs", "min"), flag=None
    )
    batch: int = option(64, "Samples per gradient.", flag="train-batch", low=1)
    accumulate: int = option(
        1, "Number of gradients that are averaged for one step: a batch that many times as large.", low=1
    )
    optimizer: str = option(
        "adamw",
        "Optimizer; sgd has Nesterov momentum 0.9.",
        more="The rate of `adamw` is the change of an element in a step, as a share of the norm of its filter",
        choices=("adamw", "sgd"),
    )
    rate: float | None = option(
        None,
        "Highest learning rate.",
        flag="lr",
        low=0,
        decided=", ".join(f"{rate:g} for {name}" for name, rate in RATES.items()),
    )
    schedule: str = option(
        "onecycle",
        "Schedule of the learning rate: up for 15 % of the time, then down (onecycle), down (cosine), or constant.",
        flag="lr-schedule",
        choices=("onecycle", "cosine", "constant"),
    )
    decay: float = option(1e-4, "Weight decay of weights with two axes or more.", flag="weight-decay", low=0)
    clip: float = option(1.0, "Largest norm of the whole gradient; 0: no limit.", flag="clip-norm", low=0)
    ema: float = option(
        0.99, "Decay per step of the running mean of the weights, which is written; 0: the last weights.", low=0, high=1
    )
    temperature: float = option(2.0, "Temperature of the distillation.", low=1e-3)
    features: float = option(
        0.0, "Weight of the squared error of the activations of groups in the loss; 0: the outputs alone.", low=0
    )
    labels: float | None = option(
        None,
        "Share of the cross-entropy to labels in the loss, the rest is distillation; 1: labels alone.",
        flag="label-weight",
        low=0,
        high=1,
        decided=f"{LABELS:g} where --data has labels, else 0",
    )
    smoothing: float = option(0.0, "Label smoothing.", low=0, high=1)
    augment: tuple[str, ...] | str = option(
        AUTO,
        f"Augmentation while training: none, or some of {', '.join(AUGMENTATIONS)}.",
        flag="train-augment",
        metavar="KINDS",
        choices=AUGMENTATIONS,
        listed=True,
        separator=",",
        auto=True,
        decided="crop, scale, rotate, and detail where images were enlarged",
    )
    hold_out: float = option(
        0.1,
        "Share of held-out samples, on which the best weights are chosen; 0: they are chosen on training samples.",
        more="It is evaluated twenty times; the result is never worse on it than the weights at the start",
        low=0,
        high=0.9,
    )
    patience: int = option(
        0, "Evaluations without an improvement that end the training; 0: the training runs to its end.", low=0
    )
    freeze_below: float | None = option(
        None, "Weights with |accumulated gradient| < T are not updated in this step.", metavar="T", low=0
    )
    gate_below: float | None = option(
        None,
        "Channels whose gradients all have magnitudes below T are gated to zero, and deleted at the end.",
        metavar="T",
        low=0,
    )
    bounds: tuple[Bound, ...] = option(
        (), "Constraints on weights, which hold after each step.", listed=True, flag=None
    )
    batchnorm: str = option(
        "eval",
        "Statistics of each BatchNormalization that is not folded: stored (eval), or of the batch (train).",
        choices=("eval", "train"),
    )
    device: str = option(
        "cpu",
        "Device of torch: cpu, cuda, mps.",
        more="Only `cpu` is tested here",
        known=("cpu", "cuda", "mps"),
        metavar="NAME",
    )
    precision: str = option(
        "float32", "Precision of the training; bfloat16 is mixed precision.", choices=("float32", "bfloat16")
    )

    def __post_init__(self) -> None:
        if not 0 < self.amount < math.inf:
            raise OptionError(f"{self.amount:g} {self.unit} is no length of training", hint="give more than 0")
        check(self)

    def resolved(self, kinds: tuple[str, ...]) -> ResolvedTraining:
        """Return the training options with `kinds` where `augment` is `auto`."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return ResolvedTraining(**{**values, "augment": kinds if self.augment == AUTO else self.augment})


@dataclass(frozen=True)
class ResolvedTraining(Training):
    """Training options without `auto`."""

    augment: tuple[str, ...] = ()
