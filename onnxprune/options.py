"""The dials of a run, and how targets are written. Light to import: the command line reads it before anything else."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

from onnxprune.errors import OptionError

AUTO = "auto"
WITH_GRADIENTS = ("taylor", "fisher", "hessian")
"""Importances that take torch."""
WITH_DATA = ("obs", "activation", "apoz", *WITH_GRADIENTS)
"""Importances that look at what samples do in the network."""
IMPORTANCES = (AUTO, *WITH_DATA, "l1", "l2", "fpgm", "bn_scale", "random")
GRANULARITIES = ("filter", "kernel", "rank", "depth")
"""What goes: channels; taps of kernels; directions of a layer; branches, and layers between others."""
SCOPES = (AUTO, "sensitivity", "global", "uniform")
REPAIRS = (AUTO, "lstsq", "bias", "merge", "none")
DATA_FREE = ("merge", "none")
"""Repairs that look at weights alone."""
SCHEDULES = ("block", "progressive")
PACES = ("linear", "cubic")
GROUPED = (AUTO, "positions", "whole")
HEADS = ("whole", "width")
NORMS = (AUTO, "keep", "cut")
OPTIMIZERS = ("adamw", "sgd")
RATES = {"adamw": 3e-3, "sgd": 5e-3}
"""Highest learning rate, by optimizer; for adamw as a share of the size of a filter, see `onnxprune.training.optimizer`."""
LABELS = 0.3
"""Share of the loss that is cross-entropy, where there are labels."""
RATE_SCHEDULES = ("onecycle", "cosine", "constant")
BATCHNORMS = ("eval", "train")
PRECISIONS = ("float32", "bfloat16")
UNITS = ("steps", "epochs", "min")
QUANTITIES = ("flops", "params", "size", "memory", "latency")
"""What targets are of: FLOPs per sample, parameters, bytes of the file, bytes of activations alive at once, time of a run."""
MEASURED = ("size", "memory", "latency")
"""Quantities that are predicted while channels are chosen, and then measured of the result."""
PRESETS = ("unit", "imagenet", "tf")
"""Names of ways to scale images; `onnxprune.data.dataset` has what they mean."""
LEAST_MEMORY = 64e6
SUFFIXES = {"k": 1e3, "m": 1e6, "g": 1e9}
TIMES = {"us": 1e-3, "ms": 1.0, "s": 1e3}
"""Milliseconds in a unit of time."""


@dataclass(frozen=True)
class Options:
    """How to prune.

    Attributes:
        reduce: share to remove, by quantity: {"flops": 0.5}. All targets hold. See `QUANTITIES`.
        limit: absolute bound, by quantity: {"flops": 300e6}; FLOPs are 2 x MACs, latency is in milliseconds.
        max_drop: points of top-1 (without labels: of agreement with the original) that may be lost: of the models that lose no more, the one
            with the least `minimise`, one of `QUANTITIES`, is looked for.
        granularity: what may go, of `GRANULARITIES`; several compete by the loss of the output per what they save. All but `filter` need data.
        importance: one of `IMPORTANCES`; `auto` is `obs` with data, `l2` without.
        schedule: `block` (one shot) or `progressive` (weakest first, scored anew after each of `steps` steps).
        pace: of the progressive schedule: `linear`, the same share in every step, or `cubic`, much at first and little at last.
        scope: `sensitivity` weighs groups by what the output loses, measured; `global` ranks all channels together, `uniform` takes the
            same share of every group. `auto` is `sensitivity` with data (but `global` for a threshold), `global` without.
        repair: `lstsq` fits every layer behind a cut to what it gave before, `bias` only its bias; `merge` needs no data: what reads a
            channel that goes reads the survivor most like it; `none` leaves all weights. `auto` is `lstsq` with data, else `merge`.
        samples: calibration samples that are used, at most.
        augment: kinds of augmentation of them, for the repair, or `auto`: some, where layers with more unknowns than rows hold
            most of the parameters, or the samples are images that were enlarged.
        memory: bytes that statistics and activations may take; what exceeds it goes to temporary files.
        round_to: the survivors of a group are a multiple of this; `auto`: of what this machine is measured to compute at once.
        min_channels: channels that every group keeps at least.
        max_ratio: share of a group that may go at most.
        threshold: remove every channel whose importance, divided by the mean of its group, lies below.
        ignore: glob patterns of layers that keep all channels.
        grouped: what goes in a grouped convolution: the same `positions` of every group, or `whole` groups; `auto`: whole ones from
            eight on, which is what runs faster.
        heads: what goes in attention: `whole` heads, or `width` of every head.
        norms: whether channels that a normalisation runs over (LayerNormalization, RMSNormalization, a mean; the embedding of a
            transformer) are to `keep`, or may be `cut`: the statistics then run over what is left, which changes all other channels
            and takes least-squares repair. `auto` is `cut` with it, else `keep`.
        seed: for everything random.
    """

    reduce: Mapping[str, float] = field(default_factory=dict)
    limit: Mapping[str, float] = field(default_factory=dict)
    max_drop: float | None = None
    minimise: str = QUANTITIES[0]
    granularity: tuple[str, ...] = GRANULARITIES[:1]
    importance: str = AUTO
    schedule: str = "block"
    steps: int = 5
    pace: str = "linear"
    scope: str = AUTO
    repair: str = AUTO
    samples: int = 512
    augment: tuple[str, ...] | str = AUTO
    memory: float = 2e9
    round_to: int | str = AUTO
    min_channels: int = 1
    max_ratio: float = 0.9
    threshold: float | None = None
    ignore: tuple[str, ...] = ()
    grouped: str = AUTO
    heads: str = "whole"
    norms: str = AUTO
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("importance", self.importance, IMPORTANCES),
            ("schedule", self.schedule, SCHEDULES),
            ("pace", self.pace, PACES),
            ("scope", self.scope, SCOPES),
            ("repair", self.repair, REPAIRS),
            ("grouped", self.grouped, GROUPED),
            ("heads", self.heads, HEADS),
            ("norms", self.norms, NORMS),
            ("minimise", self.minimise, QUANTITIES),
        ):
            if value not in known:
                raise OptionError(f"unknown {name} {value!r}", hint=f"choose one of {', '.join(known)}")
        unknown = [kind for kind in self.granularity if kind not in GRANULARITIES]
        if isinstance(self.granularity, str) or unknown or not self.granularity:
            raise OptionError(
                f"unknown granularity {', '.join(unknown) or self.granularity!r}",
                hint=f"choose some of {', '.join(GRANULARITIES)}",
            )
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise OptionError(f"--max-drop {self.max_drop:g} is out of range", hint="give points from 0 to 100")
        for name, targets in (("reduce", self.reduce), ("limit", self.limit)):
            if not isinstance(targets, Mapping):
                raise OptionError(f"{name} is {targets!r}", hint='give a mapping, for instance {"flops": 0.5}')
            for quantity, amount in targets.items():
                _check_quantity(name, quantity)
                if not isinstance(amount, Real):
                    raise OptionError(f"{name} of {quantity} is {amount!r}", hint="give a number")
                if name == "reduce" and not 0 < amount < 1:
                    raise OptionError(
                        f"--reduce {quantity}={amount:.4g} is out of range",
                        why="it is the share to remove",
                        hint=f"give more than 0 % and less than 100 %, for instance --reduce {quantity}=50%",
                    )
                if name == "limit" and not 0 < amount < float("inf"):
                    raise OptionError(f"--limit {quantity}={amount:.4g} is out of range", hint="give a number above 0")
        if isinstance(self.ignore, str):
            raise OptionError(f"ignore is {self.ignore!r}", hint="give a list of patterns")
        for name, number, least in (
            ("steps", self.steps, 1),
            ("round-to", 1 if self.round_to == AUTO else self.round_to, 1.0),
            ("min-channels", self.min_channels, 1),
            ("seed", self.seed, 0),
            ("samples", self.samples, 1),
            ("memory", self.memory, LEAST_MEMORY),
        ):
            whole = isinstance(number, Integral) or name == "memory"
            if not whole or float(number) < least:
                raise OptionError(f"--{name} {number} is out of range", hint=f"give {least} or more")
        if not 0 < self.max_ratio <= 1:
            raise OptionError(f"--max-ratio {self.max_ratio} is out of range", hint="give more than 0 and at most 1")
        if self.threshold is not None and not 0 <= self.threshold < float("inf"):
            raise OptionError(
                f"--threshold {self.threshold} is out of range", hint="give 0 or more; 1 is the mean of a group"
            )

    def resolved(self, data: bool) -> Options:
        """Return the options with `auto` replaced by what it stands for.

        Raises:
            OptionError: a method that needs data, without any.
        """
        importance = (WITH_DATA[0] if data else "l2") if self.importance == AUTO else self.importance
        scope = self.scope
        if scope == AUTO:
            scope = "sensitivity" if data and self.threshold is None else "global"
        repair = ("lstsq" if data else "merge") if self.repair == AUTO else self.repair
        norms = ("cut" if data and repair == "lstsq" else "keep") if self.norms == AUTO else self.norms
        if not data:
            for option, value, needs in (
                ("granularity", ",".join(sorted(self.blocks)), bool(self.blocks)),
                ("importance", importance, importance in WITH_DATA),
                ("scope", scope, scope == "sensitivity"),
                ("repair", repair, repair not in DATA_FREE),
                ("norms", norms, norms == "cut"),
            ):
                if needs:
                    raise OptionError(
                        f"--{option} {value} needs inputs of the model",
                        hint="give --data; `--data generated` makes some up where there are none",
                    )
        if norms == "cut" and repair != "lstsq":
            raise OptionError(
                f"--norms cut does not go with --repair {repair}",
                why="without a channel that a normalisation runs over all others change, which only least squares make up for",
                hint="give --repair lstsq, or --norms keep",
            )
        return replace(self, importance=importance, scope=scope, repair=repair, norms=norms)

    @property
    def blocks(self) -> frozenset[str]:
        """What may go beside channels."""
        return frozenset(self.granularity) - {GRANULARITIES[0]}

    @property
    def rounds(self) -> int:
        """Steps in which the target is approached: one, unless the schedule is progressive."""
        return self.steps if self.schedule == "progressive" else 1

    @property
    def has_target(self) -> bool:
        """Tell whether anything says how much to remove."""
        return bool(self.reduce or self.limit or self.threshold is not None or self.max_drop is not None)


@dataclass(frozen=True)
class Bound:
    """What must hold for weights after each step of training: a range of their elements, or a norm of each of their filters.

    Attributes:
        pattern: glob on names of initializers.
        low, high: range of the elements.
        norm: Euclidean norm of a filter, at most; None where the range is meant.
    """

    pattern: str
    low: float = -math.inf
    high: float = math.inf
    norm: float | None = None

    @property
    def option(self) -> str:
        """The option that says so."""
        return "clamp" if self.norm is None else "max-norm"

    @property
    def text(self) -> str:
        """The bound, as it was written."""
        return f"{self.low:g},{self.high:g}" if self.norm is None else f"{self.norm:g}"


@dataclass(frozen=True)
class Training:
    """How to fine-tune.

    Attributes:
        amount, unit: how long: a number of `steps`, `epochs` or minutes (`min`).
        batch: samples per gradient.
        accumulate: gradients that are summed before a step; it is then that of a batch as many times as large.
        optimizer: `adamw` or `sgd` (Nesterov momentum 0.9).
        rate: highest learning rate; None: `RATES`. For `adamw` it is what an element moves in a step as a share of the size of its filter.
        schedule: `onecycle` (up, then down to nothing), `cosine` (down), `constant`.
        decay: weight decay, of weights with two axes or more.
        clip: norm of the whole gradient, at most; 0: any.
        ema: share of the running mean of weights that stays at each step; the mean is what is written. 0: the weights themselves.
        temperature: of the distillation.
        features: weight of the squared error of activations at group boundaries, beside the distance of the outputs.
        labels: share of the loss that is cross-entropy to labels; None: `LABELS` where there are labels, else 0.
        smoothing: of the labels.
        augment: kinds of augmentation, or `auto`.
        hold_out: share of the samples that are not trained on: the best weights are chosen by them.
        patience: validations without a better one after which training stops; 0: it does not.
        freeze_below: elements whose accumulated gradient is below sit a step out; None: all move.
        gate_below: channels all of whose parameters have gradients below are gated to zero; None: none is.
        bounds: what must hold for weights after each step.
        batchnorm: `eval` keeps the statistics of BatchNormalization that could not be folded, `train` takes those of the batch.
        device: of torch.
        precision: `float32`, or `bfloat16` for mixed precision.
    """

    amount: float = 2.0
    unit: str = "epochs"
    batch: int = 64
    accumulate: int = 1
    optimizer: str = "adamw"
    rate: float | None = None
    schedule: str = "onecycle"
    decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.99
    temperature: float = 2.0
    features: float = 0.0
    labels: float | None = None
    smoothing: float = 0.0
    augment: tuple[str, ...] | str = AUTO
    hold_out: float = 0.1
    patience: int = 0
    freeze_below: float | None = None
    gate_below: float | None = None
    bounds: tuple[Bound, ...] = ()
    batchnorm: str = "eval"
    device: str = "cpu"
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("lr-schedule", self.schedule, RATE_SCHEDULES),
            ("batchnorm", self.batchnorm, BATCHNORMS),
            ("precision", self.precision, PRECISIONS),
            ("unit", self.unit, UNITS),
        ):
            if value not in known:
                raise OptionError(f"unknown {name} {value!r}", hint=f"choose one of {', '.join(known)}")
        inf = math.inf
        for name, number, least, most in (
            ("train-batch", self.batch, 1, inf),
            ("accumulate", self.accumulate, 1, inf),
            ("lr", self.rate, 0, inf),
            ("weight-decay", self.decay, 0, inf),
            ("clip-norm", self.clip, 0, inf),
            ("ema", self.ema, 0, 1),
            ("temperature", self.temperature, 1e-3, inf),
            ("features", self.features, 0, inf),
            ("label-weight", self.labels, 0, 1),
            ("smoothing", self.smoothing, 0, 1),
            ("hold-out", self.hold_out, 0, 0.9),
            ("patience", self.patience, 0, inf),
            ("freeze-below", self.freeze_below, 0, inf),
            ("gate-below", self.gate_below, 0, inf),
        ):
            if number is not None and not (least <= number <= most and math.isfinite(number)):
                text = f"{least:g} or more" if most == inf else f"{least:g} to {most:g}"
                raise OptionError(f"--{name} {number:g} is out of range", hint=f"give {text}")
        if not 0 < self.amount < inf:
            raise OptionError(f"{self.amount:g} {self.unit} of training make no sense", hint="give more than 0")


def parse_budget(text: str) -> dict[str, Any]:
    """Read how long to train: 300steps, 2epochs, 3min.

    Raises:
        OptionError: not of that form.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|min(?:utes?)?|h(?:ours?)?)\s*", text.lower())
    if found is None:
        raise OptionError(f"{text!r} does not say how long to train", hint="for instance 300steps, 2epochs or 3min")
    amount, unit = float(found[1]), found[2]
    if unit.startswith("h"):
        return {"amount": 60 * amount, "unit": "min"}
    return {"amount": amount, "unit": "min" if unit.startswith("min") else unit.removesuffix("s") + "s"}


def parse_bounds(clamps: Iterable[str], norms: Iterable[str]) -> tuple[Bound, ...]:
    """Read constraints: `lo,hi` or `GLOB=lo,hi`, and `R` or `GLOB=R`.

    Raises:
        OptionError: not of that form.
    """
    bounds = []
    for option, text in (*(("clamp", text) for text in clamps), *(("max-norm", text) for text in norms)):
        pattern, equals, amount = text.rpartition("=")
        numbers = []
        with contextlib.suppress(ValueError):
            numbers = [float(part) for part in amount.split(",")]
        pattern = pattern if equals else "*"
        if option == "clamp" and len(numbers) == 2 and numbers[0] <= numbers[1]:
            bounds.append(Bound(pattern, numbers[0], numbers[1]))
        elif option == "max-norm" and len(numbers) == 1 and 0 < numbers[0] < math.inf:
            bounds.append(Bound(pattern, norm=numbers[0]))
        else:
            example = "-1,1 or 'conv*.weight=-1,1'" if option == "clamp" else "3 or 'conv*.weight=3'"
            raise OptionError(f"--{option} {text!r} is not a bound", hint=f"for instance --{option} {example}")
    return tuple(bounds)


def _check_quantity(option: str, quantity: str) -> None:
    if quantity not in QUANTITIES:
        raise OptionError(f"--{option} does not know {quantity!r}", hint=f"give one of {', '.join(QUANTITIES)}")


def parse_shares(text: str) -> tuple[str, list[float]]:
    """Read the targets of a sweep: `flops=10%,30%,0.5`.

    Raises:
        OptionError: not of that form.
    """
    quantity, equals, amounts = (part.strip().lower() for part in text.partition("="))
    if not equals:
        raise OptionError(
            f"--targets {text!r} is not of the form QUANTITY=SHARES", hint="for instance --targets flops=20%,40%,60%"
        )
    return quantity, [parse_targets("reduce", [f"{quantity}={amount}"])[quantity] for amount in amounts.split(",")]


def _unit(quantity: str, amount: str) -> tuple[str, float]:
    """Split an amount into its number and the factor of its unit."""
    if quantity == "latency":
        unit = next((unit for unit in TIMES if amount.endswith(unit)), "")  # `s` ends them all, and comes last
        return amount.removesuffix(unit).strip(), TIMES.get(unit, 1.0)
    if quantity in ("size", "memory"):
        amount = amount.removesuffix("b").strip()
    if amount[-1:] in SUFFIXES:
        return amount[:-1].strip(), SUFFIXES[amount[-1]]
    return amount, 1.0


def parse_memory(text: str) -> float:
    """Read an amount of memory: 2GB, 500M, or bytes.

    Raises:
        OptionError: not of that form.
    """
    amount = text.strip().lower().removesuffix("b")
    factor = SUFFIXES.get(amount[-1:], 1.0)
    try:
        return float(amount[:-1] if factor > 1 else amount) * factor
    except ValueError:
        raise OptionError(f"--memory {text!r} is not an amount", hint="for instance --memory 2GB") from None


def parse_targets(option: str, texts: Iterable[str]) -> dict[str, float]:
    """Read targets as a person writes them.

    Args:
        option: `reduce` (`flops=50%`, `latency=0.3`) or `limit` (`flops=300M`, `size=4MB`, `latency=3ms`).
        texts: what was given.

    Raises:
        OptionError: not of that form, or the same quantity twice.
    """
    example = "flops=50%" if option == "reduce" else "flops=300M"
    result: dict[str, float] = {}
    for text in texts:
        quantity, equals, amount = (part.strip().lower() for part in text.partition("="))
        if not equals:
            raise OptionError(
                f"--{option} {text!r} is not of the form QUANTITY=AMOUNT", hint=f"for instance --{option} {example}"
            )
        _check_quantity(option, quantity)
        if quantity in result:
            raise OptionError(f"--{option} names {quantity} twice", hint="give one amount per quantity")
        factor = 1.0
        if option == "reduce" and amount.endswith("%"):
            amount, factor = amount[:-1], 0.01
        elif option == "limit":
            amount, factor = _unit(quantity, amount)
        try:
            result[quantity] = float(amount) * factor
        except ValueError:
            raise OptionError(
                f"--{option} {text!r}: {amount!r} is not a number", hint=f"for instance --{option} {example}"
            ) from None
    return result
